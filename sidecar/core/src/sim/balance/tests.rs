//! The black-hole table, the ratios on small plays, and that a play depends on its seed alone.

use std::time::Duration;

use super::{
    fleet::Way,
    play,
    scenario::{Fault, Scenario, named},
    tally::Figures,
    verdict::Comparison,
};
use crate::policy::Balance;

const OURS: Way = Way::Starling(Balance::LeastResponseTime);

/// The scenario of this name, cut short so that a test takes a second.
fn short(name: &str) -> Scenario {
    Scenario {
        span: Duration::from_secs(8),
        warm_up: Duration::from_secs(3),
        ..named(name).expect("it is in the list")
    }
}

#[test]
fn names_are_unique_and_lead_back() {
    let all = super::scenario::all();
    for scenario in &all {
        let same = all.iter().filter(|other| other.name == scenario.name);
        assert_eq!(same.count(), 1, "{}", scenario.name);
    }
    for way in Way::ALL {
        assert_eq!(Way::named(way.name()), Some(way));
    }
}

#[test]
fn the_same_seed_gives_the_same_play() {
    let mut scenario = short("all");
    scenario.clients = 5;
    scenario.load = 0.2;
    for way in Way::ALL {
        assert_eq!(play(&scenario, way, 6), play(&scenario, way, 6), "{way:?}");
    }
}

/// What the default policy makes of it; prints the seed and what came of it.
fn ours(scenario: &Scenario, seed: u64) -> Figures {
    let figures = play(scenario, OURS, seed).figures();
    println!("{} with seed {seed}: {figures:?}", scenario.name);
    figures
}

#[test]
fn a_backend_that_fails_fast_gets_hardly_any_traffic() {
    let mut scenario = short("failing");
    // Without the success factor it would get nearly all.
    scenario.ejection = false;
    assert!(ours(&scenario, 1).bad_share <= 0.003);
    scenario.ejection = true;
    assert!(ours(&scenario, 2).bad_share <= 0.003);
}

#[test]
fn what_fails_fast_draws_traffic_where_only_latency_counts() {
    let mut scenario = short("failing");
    scenario.ejection = false;
    let ours = ours(&scenario, 12).bad_share;
    // Prequal with error aversion keeps away as well, and is not asked here.
    let linkerd = play(&scenario, Way::Linkerd { breaker: false }, 12).figures();
    println!("linkerd: {:.5}", linkerd.bad_share);
    assert!(
        linkerd.bad_share > 10.0 * ours,
        "{} {ours}",
        linkerd.bad_share
    );
}

/// A scenario with zones and half the workers, so that a test takes seconds and not tens of them.
fn smaller(name: &str) -> Scenario {
    let mut scenario = named(name).expect("it is in the list");
    for backend in &mut scenario.backends {
        backend.workers = 2;
    }
    scenario.span = Duration::from_secs(40);
    scenario
}

#[test]
fn zones_that_are_filled_like_water_are_quicker_than_by_priority() {
    let scenario = smaller("zones_surge_late");
    let water = ours(&scenario, 13);
    let priority = play(&scenario, Way::Priority, 13).figures();
    println!("priority: {priority:?}");
    assert!(water.errors <= 0.0032, "{}", water.errors);
    let slow = |figures: &Figures| figures.quantiles_ms[2];
    assert!(
        slow(&water) < 0.5 * slow(&priority),
        "{water:?} {priority:?}"
    );
    // Nothing leaves a zone that has room: the first one's surplus is all there is to go.
    assert!(water.away > 0.0 && water.away < 0.2, "{}", water.away);
}

#[test]
fn one_that_the_mesh_knows_to_fail_gets_even_less() {
    let mut scenario = named("failing_told_held_back").expect("it is in the list");
    scenario.span = Duration::from_secs(30);
    scenario.load = 0.2;
    let figures = ours(&scenario, 3);
    // Eight errors of each client in seven seconds, whatever the load, and none after that.
    let errors = figures.errors * figures.requests as f64;
    assert!(errors <= 50.0 * 12.0, "{errors}");
    scenario.warm_up = Duration::from_secs(8);
    assert_eq!(ours(&scenario, 3).bad_share, 0.0);
}

#[test]
fn a_slow_backend_does_not_show_in_the_p99() {
    let figures = ours(&short("slow"), 4);
    assert!(figures.bad_share <= 0.01);
    assert!(figures.quantiles_ms[2] <= 70.0);
}

#[test]
fn a_backend_that_falls_silent_is_left_within_moments() {
    let mut scenario = short("alike_75");
    scenario.backends[5].fault = Fault::Silent {
        from: Duration::from_secs(4),
    };
    let figures = ours(&scenario, 5);
    // Without the stall factor 300 a second would be lost until ejection.
    let lost = figures.errors * figures.requests as f64;
    assert!(lost <= 150.0, "{lost}");
}

#[test]
fn all_alike_share_alike() {
    for balance in [Balance::LeastResponseTime, Balance::LeastConnections] {
        let figures = play(&short("alike_75"), Way::Starling(balance), 6).figures();
        println!("{balance:?}: {figures:?}");
        assert!(figures.spread <= 1.5, "{figures:?}");
        assert_eq!(figures.errors, 0.0);
    }
}

#[test]
fn equal_endpoints_share_alike_while_there_is_little_to_do() {
    let figures = ours(&named("pair").expect("it is in the list"), 11);
    // It was 1.7 while the smallest latency won every near tie.
    assert!(figures.spread <= 1.2, "{figures:?}");
}

#[test]
fn a_cold_joiner_is_not_flooded() {
    let mut scenario = named("joiner").expect("it is in the list");
    scenario.span = Duration::from_secs(13);
    scenario.warm_up = Duration::from_secs(9);
    let ratio = ratio(scenario, 7);
    assert!(ratio <= 1.0, "{ratio}");
}

#[test]
fn the_default_policy_beats_envoys_way() {
    for (name, most) in [
        ("alike_90", 1.0),
        ("speeds", 0.55),
        ("all", 0.55),
        ("stalls", 0.8),
    ] {
        let ratio = ratio(short(name), 8);
        assert!(ratio <= most, "{name}: {ratio}");
    }
}

#[test]
fn it_follows_speeds_that_change() {
    let mut scenario = named("flips").expect("it is in the list");
    scenario.span = Duration::from_secs(11);
    let ratio = ratio(scenario, 9);
    assert!(ratio <= 0.35, "{ratio}");
}

/// p99 of the default policy as a multiple of that of Envoy's way.
fn ratio(scenario: Scenario, seed: u64) -> f64 {
    let comparison = Comparison::play(scenario, &[OURS, Way::Envoy], seed, 1);
    let name = comparison.scenario.name;
    let ratio = comparison.p99_ratio(Way::Envoy).expect("both were played");
    println!("{name} with seed {seed}: p99 is {ratio:.3} of Envoy's");
    ratio
}
