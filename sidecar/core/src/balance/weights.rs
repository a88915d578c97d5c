//! What weights do to the share of each endpoint: by the default policy with one request at a time, and under load.

use mesh_proto::record::Health;

use super::*;
use crate::{
    endpoint::Report,
    mesh::NodeState,
    outcome::Outcome,
    policy::Balance,
    staging::{MS, Stage, at, dice},
};

/// Requests of each run, 100 a second: the first ten seconds of them are not counted.
const REQUESTS: u64 = 4_000;

/// Of those, the first.
const WARM_UP: u64 = 1_000;

/// Endpoints of these weights in the own zone, called as the default policy has it; nobody is sent out.
fn stage(weights: &[u16]) -> Stage {
    let mut stage = Stage::with(&vec!["a1"; weights.len()], |policy| {
        policy.ejection.consecutive = 0;
    });
    for (i, weight) in weights.iter().enumerate() {
        stage.record(i, |record| record.weight = *weight);
    }
    stage
}

/// Share of each endpoint if every request is over before the next begins, and `answer` tells what comes of the one that
/// goes to a place: its outcome and milliseconds.
fn shares_if(stage: &mut Stage, answer: impl FnMut(usize) -> (Outcome, u32)) -> Vec<f64> {
    shares_if_retold(stage, REQUESTS, answer)
}

/// The same if a caller tells another demand every so many requests, as callers in a live mesh do all the time.
fn shares_if_retold(
    stage: &mut Stage,
    every: u64,
    mut answer: impl FnMut(usize) -> (Outcome, u32),
) -> Vec<f64> {
    let mut upstream = stage.build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let ids: Vec<u64> = upstream.members().map(|m| m.endpoint.id).collect();
    let mut counts = vec![0.0; ids.len()];
    for n in 0..REQUESTS {
        let began = at(n * 10);
        if n % every == every - 1 {
            stage.demand(&[("a1", n as u32)]);
            let before = std::mem::replace(&mut upstream, stage.build(began));
            assert!(!Arc::ptr_eq(&before, &upstream), "that is a newer one");
            picker.follow(&upstream, began);
        }
        let pick = picker.pick(&Ask::default(), began, &mut rng);
        let endpoint = pick.expect("all are in").endpoint;
        let place = ids.iter().position(|id| *id == endpoint.id);
        let place = place.expect("it is a member");
        let (outcome, millis) = answer(place);
        let over = began + MS * millis;
        endpoint.begin(began);
        endpoint.head_came(over);
        endpoint.end(over);
        let report = Report {
            outcome,
            latency: outcome.is_well().then_some(MS * millis),
            connection: n,
            canary: None,
        };
        upstream.report(&endpoint, &report, over, &mut rng);
        if n >= WARM_UP {
            counts[place] += 1.0 / (REQUESTS - WARM_UP) as f64;
        }
    }
    counts
}

/// The same where all goes well and an endpoint always takes as long.
fn shares(stage: &mut Stage, millis: &[u32]) -> Vec<f64> {
    shares_if(stage, |place| (Outcome::Success, millis[place]))
}

#[test]
fn endpoints_alike_in_speed_are_asked_by_weight_one_request_at_a_time() {
    for weights in [[100, 200], [100, 400], [10, 1_000]] {
        let sum = f64::from(weights[0] + weights[1]);
        let got = shares(&mut stage(&weights), &[5, 5]);
        let want = weights.map(|weight| f64::from(weight) / sum);
        let off = (got[0] - want[0]).abs();
        assert!(off < 0.02, "{weights:?}: {got:?}, not {want:?}");
    }
}

#[test]
fn a_light_endpoint_does_not_get_everything_for_being_quick() {
    // By weight it would be 9 %, a tenth of the heavy one's 91 %.
    let got = shares(&mut stage(&[10, 100]), &[5, 10]);
    assert!((0.08..0.11).contains(&got[0]), "{got:?}");
    // Ten such have half of the weight, and a right to half of the requests.
    let mut millis = [5; 11];
    millis[10] = 10;
    let mut weights = [10; 11];
    weights[10] = 100;
    let got = shares(&mut stage(&weights), &millis);
    assert!((0.48..0.55).contains(&got[10]), "{got:?}");
}

#[test]
fn shares_go_by_weight_however_often_a_newer_snapshot_comes() {
    let shares = |weights: &[u16], millis: &'static [u32]| {
        let answer = |place: usize| (Outcome::Success, millis[place]);
        shares_if_retold(&mut stage(weights), 10, answer)
    };
    let alike = shares(&[100, 200], &[5, 5]);
    assert!((alike[0] - 1.0 / 3.0).abs() < 0.02, "{alike:?}");
    let quick = shares(&[10, 100], &[5, 10]);
    assert!((0.08..0.11).contains(&quick[0]), "{quick:?}");
}

#[test]
fn those_equally_busy_take_turns_however_often_a_newer_snapshot_comes() {
    let mut stage = Stage::with(&["a1"; 5], |policy| {
        policy.balance = Balance::LeastConnections;
    });
    let mut upstream = stage.build(at(0));
    upstream.members().for_each(|m| m.endpoint.begin(at(0)));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut asked = Vec::new();
    for n in 1..=20 {
        stage.demand(&[("a1", n as u32)]);
        upstream = stage.build(at(n * 10));
        picker.follow(&upstream, at(n * 10));
        let pick = picker.pick(&Ask::default(), at(n * 10), &mut rng);
        asked.push(pick.expect("all are in").endpoint.id);
    }
    for member in upstream.members() {
        let turns = asked.iter().filter(|id| **id == member.endpoint.id).count();
        assert_eq!(turns, 4, "{asked:?}");
    }
}

#[test]
fn the_quickest_loses_half_of_its_requests_when_it_warns_and_three_quarters_when_suspected() {
    let millis = [5, 15, 15, 15];
    let former = shares(&mut stage(&[100; 4]), &millis)[0];
    assert!(former > 0.95, "{former}");
    let mut warning = stage(&[100; 4]);
    warning.record(0, |record| record.health = Health::Warning);
    let got = shares(&mut warning, &millis)[0];
    assert!((0.45..=0.51).contains(&(got / former)), "{got} of {former}");
    let mut suspected = stage(&[100; 4]);
    suspected.state(0, NodeState::Suspect, at(0));
    let got = shares(&mut suspected, &millis)[0];
    assert!((0.2..=0.26).contains(&(got / former)), "{got} of {former}");
}

#[test]
fn the_quicker_half_of_a_service_loses_requests_when_it_warns() {
    let mut warning = stage(&[100; 6]);
    for i in 0..3 {
        warning.record(i, |record| record.health = Health::Warning);
    }
    let got = shares(&mut warning, &[5, 5, 5, 15, 15, 15]);
    let quick: f64 = got[..3].iter().sum();
    assert!((0.45..=0.51).contains(&quick), "{got:?}");
}

#[test]
fn a_heavy_endpoint_that_fails_has_no_claim_to_its_weight() {
    let failing = |share: u32| {
        let mut asked = 0;
        let got = shares_if(&mut stage(&[50, 100]), |place| {
            asked += u32::from(place == 1);
            let fails = place == 1 && asked % 100 < share;
            let fault = Outcome::ServerFault { gateway: false };
            (if fails { fault } else { Outcome::Success }, 5)
        });
        got[1]
    };
    assert!(failing(100) < 0.02, "{}", failing(100));
    assert!(failing(50) < 0.3, "{}", failing(50));
    assert!(failing(0) > 0.65, "{}", failing(0));
}

#[test]
fn one_far_slower_than_a_light_one_is_not_asked_for_its_weight() {
    let got = shares(&mut stage(&[50, 100]), &[2, 200]);
    assert!(got[0] > 0.9, "{got:?}");
}

#[test]
fn a_light_endpoint_that_had_its_part_is_told_now_and_then() {
    let mut stage = stage(&[50, 100]);
    let upstream = stage.build(at(0));
    let endpoints: Vec<_> = upstream.members().map(|m| &m.endpoint).collect();
    let (mut last, mut changes) = ([false; 2], [0; 2]);
    shares_if(&mut stage, |place| {
        for (i, endpoint) in endpoints.iter().enumerate() {
            let before = std::mem::replace(&mut last[i], endpoint.is_sated());
            changes[i] += u32::from(before != last[i]);
        }
        (Outcome::Success, [5, 10][place])
    });
    // Forty seconds, and four times in each.
    assert!((10..=160).contains(&changes[0]), "{changes:?}");
    assert_eq!(changes[1], 0, "the heavy one is owed");
}

#[test]
fn a_light_endpoint_that_had_its_part_pays_only_while_it_is_idle() {
    let upstream = stage(&[50, 100]).build(at(0));
    let cost = |i: usize| {
        let told = crate::explain::endpoints(&upstream, at(1));
        told[i].cost.clone().expect("it is usable").sated
    };
    assert_eq!([0, 1].map(cost), [1.0; 2]);
    let light = upstream.members().next().expect("two are there");
    light.endpoint.set_sated(true);
    // Two thirds of the mean weight: one request in flight counts for one and a half, (1 + 0.5 · 1.5)^1.5.
    assert!((cost(0) - 1.75_f64.powf(1.5)).abs() < 1e-5, "{}", cost(0));
    assert_eq!(cost(1), 1.0);
    light.endpoint.begin(at(1));
    assert_eq!(cost(0), 1.0);
}
