//! The factors of the cost, each by its figures.

use super::*;
use crate::{
    balance::{Ask, Picker},
    endpoint::Report,
    outcome::Outcome,
    policy::Balance,
    staging::{MS, Stage, UNIX_MS, at, dice, report},
    upstream::Upstream,
};

const REST: Factors = Factors {
    latency: 10e6,
    own: 0,
    success: 1.0,
    stall: 1.0,
    ramp: 1.0,
    weight: 1.0,
};

/// What such factors make of the cost of an endpoint at rest.
fn times(factors: Factors) -> f64 {
    factors.cost() / REST.cost()
}

fn near(got: f64, want: f64) -> bool {
    (got / want - 1.0).abs() < 1e-6
}

#[track_caller]
fn assert_near(got: f64, want: f64) {
    assert!(near(got, want), "{got}, not {want}");
}

/// The first member, which has answered once after so many milliseconds.
fn answered(upstream: &Upstream, millis: u32) -> &Endpoint {
    let endpoint = &upstream.tiers[0].members[0].endpoint;
    let well = Report {
        outcome: Outcome::Success,
        latency: Some(MS * millis),
        connection: 1,
        canary: None,
    };
    upstream.report(endpoint, &well, at(0), &mut dice(1));
    endpoint
}

#[test]
fn requests_in_flight_count_half_to_the_power_of_one_and_a_half() {
    // (1 + own / 2)^1.5
    for (own, want) in [(0, 1.0), (1, 1.5_f64.powf(1.5)), (6, 8.0), (16, 27.0)] {
        assert_near(times(Factors { own, ..REST }), want);
    }
    // Of twice the mean weight: half as many.
    let heavy = |own| Factors {
        own,
        weight: 2.0,
        ..REST
    };
    assert_near(times(heavy(32)), 27.0);
    assert_near(times(heavy(0)), 1.0);
    assert_near(
        times(Factors {
            weight: 0.5,
            own: 8,
            ..REST
        }),
        27.0,
    );
}

#[test]
fn failures_count_squared_down_to_a_hundredth_and_a_ramp_by_its_share() {
    for (success, want) in [(0.9, 1.0 / 0.81), (0.5, 4.0), (0.1, 100.0)] {
        assert_near(times(Factors { success, ..REST }), want);
    }
    for success in [0.01, 0.001, 0.0] {
        assert_near(times(Factors { success, ..REST }), 1e4);
    }
    assert_near(times(Factors { ramp: 0.1, ..REST }), 10.0);
    let all = Factors {
        latency: 20e6,
        own: 16,
        success: 0.5,
        stall: 9.0,
        ramp: 0.5,
        weight: 1.0,
    };
    assert_near(times(all), 2.0 * 27.0 * 4.0 * 9.0 * 2.0);
    assert_near(all.soundness(), 0.5 * 0.25 / 9.0);
}

#[test]
fn a_silence_counts_squared_from_three_times_the_latency_on() {
    let stall = |latency: u32, silence: u64| {
        let upstream = Stage::new(&["a1"; 2]).build(at(0));
        let endpoint = answered(&upstream, latency);
        endpoint.begin(at(10));
        Factors::of(endpoint, 1.0, 1.0, 10e6, at(10 + silence)).stall
    };
    // t = 30 ms
    for (silence, want) in [
        (30, 1.0),
        (60, 4.0),
        (300, 100.0),
        (3_000, 1e4),
        (9_000, 1e4),
    ] {
        assert_near(stall(10, silence), want);
    }
    // t is never below 10 ms.
    for (silence, want) in [(10, 1.0), (20, 4.0), (100, 100.0)] {
        assert_near(stall(1, silence), want);
    }
}

#[test]
fn what_has_an_answer_under_way_is_no_stall() {
    let upstream = Stage::new(&["a1"; 2]).build(at(0));
    let endpoint = answered(&upstream, 10);
    endpoint.begin(at(10));
    endpoint.head_came(at(20));
    let factors = Factors::of(endpoint, 1.0, 1.0, 10e6, at(5_000));
    assert_eq!((factors.stall, factors.own), (1.0, 1));
}

#[test]
fn a_newcomer_is_taken_for_a_little_better_than_the_mean_and_grows_over_ten_seconds() {
    let mut stage = Stage::new(&["a1"; 3]);
    stage.record(2, |record| record.started_at_ms = UNIX_MS);
    let upstream = stage.build(at(0));
    let members = &upstream.tiers[0].members;
    assert_eq!(mean_latency(members), UNKNOWN_NS);
    for (i, millis) in [(0, 10), (1, 30)] {
        let well = Report {
            outcome: Outcome::Success,
            latency: Some(MS * millis),
            connection: 1,
            canary: None,
        };
        upstream.report(&members[i].endpoint, &well, at(0), &mut dice(1));
    }
    let mean = mean_latency(members);
    assert_near(mean, 20e6);
    let new = &members[2].endpoint;
    for (now, ramp) in [(0, 0.1), (5_000, 0.55), (10_000, 1.0), (60_000, 1.0)] {
        let factors = Factors::of(new, 1.0, new.ramp(at(now)), mean, at(now));
        assert_near(factors.latency, 18e6);
        assert_near(factors.ramp, ramp);
        assert_near(factors.at_rest(), 18e6 / ramp);
    }
}

#[test]
fn a_warning_halves_what_is_in_flight_and_a_suspicion_quarters_it() {
    use mesh_proto::record::Health;
    for balance in [Balance::LeastResponseTime, Balance::LeastConnections] {
        let mut stage = Stage::with(&["a1"; 3], |policy| policy.balance = balance);
        stage.record(1, |record| record.health = Health::Warning);
        stage.state(2, crate::mesh::NodeState::Suspect, at(0));
        let upstream = stage.build(at(0));
        (0..3).for_each(|i| {
            report(&upstream, i, Outcome::Success, 1, at(0));
        });
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        for _ in 0..70 {
            let pick = picker.pick(&Ask::default(), at(0), &mut rng);
            pick.expect("all are in").endpoint.begin(at(0));
        }
        let in_flight = upstream.members().map(|m| m.endpoint.in_flight());
        for (got, want) in in_flight.zip([40_u32, 20, 10]) {
            assert!(got.abs_diff(want) <= 1, "{balance:?}: {got}, not {want}");
        }
    }
}

#[test]
fn a_connection_that_hangs_keeps_others_from_an_endpoint_that_looks_idle() {
    let upstream = Stage::new(&["a1"; 2]).build(at(0));
    let [gone, busy] = [0, 1].map(|i| &upstream.tiers[0].members[i].endpoint);
    (0..2).for_each(|i| {
        report(&upstream, i, Outcome::Success, 1, at(0));
    });
    // The other one has twenty tunnels open.
    for _ in 0..20 {
        busy.begin(at(0));
        busy.head_came(at(0));
    }
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut asked = 0;
    // A connection every 20 ms until connecting would time out.
    for n in 0..50 {
        let now = at(100 + n * 20);
        let pick = picker.pick(&Ask::default(), now, &mut rng);
        let endpoint = pick.expect("both are in").endpoint;
        endpoint.begin(now);
        if endpoint.id == gone.id {
            asked += 1;
        } else {
            endpoint.head_came(now);
        }
    }
    assert!(asked <= 8, "{asked}");
}
