//! The traps that each algorithm is known for, one test for each: it fails when the trap is fallen into.

use std::collections::BTreeSet;

use rand::rngs::StdRng;

use super::*;
use crate::{
    policy::Balance,
    staging::{REPEATABLE, Stage, at, dice},
};

/// Endpoints of these weights, all in the own zone.
fn stage(balance: Balance, weights: &[u16]) -> Stage {
    let zones = vec!["a1"; weights.len()];
    let mut stage = Stage::with(&zones, |policy| policy.balance = balance);
    for (i, weight) in weights.iter().enumerate() {
        stage.record(i, |record| record.weight = *weight);
    }
    stage
}

/// The place of the endpoint that is picked, among those with an id in `ids`.
fn next(picker: &mut Picker, ids: &[u64], rng: &mut StdRng) -> usize {
    let pick = picker.pick(&REPEATABLE, at(1), rng).expect("all are in");
    let place = ids.iter().position(|id| *id == pick.endpoint.id);
    place.expect("it is a member")
}

fn ids(upstream: &Upstream) -> Vec<u64> {
    upstream.members().map(|m| m.endpoint.id).collect()
}

/// Which endpoints come first in fifty sidecars that have just started.
fn firsts(balance: Balance, weights: &[u16]) -> BTreeSet<usize> {
    let upstream = stage(balance, weights).build(at(0));
    let ids = ids(&upstream);
    let first = |seed| {
        let mut rng = dice(seed);
        let mut picker = Picker::new(&upstream, &mut rng);
        next(&mut picker, &ids, &mut rng)
    };
    (0..50).map(first).collect()
}

#[test]
fn sidecars_that_start_together_do_not_all_begin_with_the_same_endpoint() {
    for balance in [
        Balance::RoundRobin,
        Balance::LeastConnections,
        Balance::PowerOfTwo,
        Balance::Random,
        Balance::LeastResponseTime,
    ] {
        let firsts = firsts(balance, &[100; 8]);
        assert!(firsts.len() >= 6, "{balance:?}: {firsts:?}");
    }
    let firsts = firsts(Balance::RoundRobin, &[100, 110, 120, 130, 140]);
    assert!(firsts.len() >= 4, "by weight: {firsts:?}");
}

#[test]
fn turns_by_weight_are_smooth_and_go_on_when_others_come_and_go() {
    let mut stage = stage(Balance::RoundRobin, &[300, 100, 100, 100]);
    let upstream = stage.build(at(0));
    let ids = ids(&upstream);
    let mut rng = dice(2);
    let mut picker = Picker::new(&upstream, &mut rng);
    // One that nobody asks about changes its weight before every pick: turns that began anew with every snapshot
    // would give the heavy one far more or less than half, or several in a row.
    let mut turns = Vec::new();
    for round in 0..600 {
        stage.record(3, |record| record.weight = 100 + round % 2);
        picker.follow(&stage.build(at(1)), at(1));
        turns.push(next(&mut picker, &ids, &mut rng));
    }
    let heavy = turns.iter().filter(|place| **place == 0).count();
    assert!((297..=303).contains(&heavy), "{heavy} of 600");
    let in_a_row = turns
        .windows(3)
        .filter(|turns| turns.iter().all(|place| *place == 0));
    assert_eq!(in_a_row.count(), 0);
}

#[test]
fn weights_count_among_idle_endpoints_with_fewest_connections() {
    // By in flight / weight all idle endpoints would tie, and the light one would get as much as the heavy one.
    let upstream = stage(Balance::LeastConnections, &[300, 100]).build(at(0));
    let ids = ids(&upstream);
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    for _ in 0..50 {
        assert_eq!(next(&mut picker, &ids, &mut rng), 0);
    }
    // Under load they have in flight what they weigh.
    let mut in_flight = [0, 0];
    for _ in 0..400 {
        let place = next(&mut picker, &ids, &mut rng);
        in_flight[place] += 1;
        upstream.tiers[0].members[place].endpoint.begin(at(1));
    }
    assert!((297..=303).contains(&in_flight[0]), "{in_flight:?}");
}

#[test]
fn equals_with_fewest_connections_share_alike() {
    let upstream = stage(Balance::LeastConnections, &[100; 8]).build(at(0));
    let ids = ids(&upstream);
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut counts = [0; 8];
    for _ in 0..800 {
        counts[next(&mut picker, &ids, &mut rng)] += 1;
    }
    assert!(
        counts.iter().all(|count| (60..140).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn the_busier_of_two_is_never_drawn_against_itself() {
    // With replacement a quarter of the draws would be the busy one twice.
    let upstream = stage(Balance::PowerOfTwo, &[100, 100]).build(at(0));
    let ids = ids(&upstream);
    for member in upstream.tiers[0].members.iter().skip(1) {
        (0..5).for_each(|_| member.endpoint.begin(at(0)));
    }
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    for _ in 0..200 {
        assert_eq!(next(&mut picker, &ids, &mut rng), 0);
    }
}

#[test]
fn two_draws_are_by_weight() {
    let upstream = stage(Balance::PowerOfTwo, &[300, 100, 100, 100]).build(at(0));
    let ids = ids(&upstream);
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut heavy = 0;
    for _ in 0..6_000 {
        heavy += usize::from(next(&mut picker, &ids, &mut rng) == 0);
    }
    // All are idle, so the first draw decides: half of them.
    assert!((2_850..3_150).contains(&heavy), "{heavy} of 6,000");
}

#[test]
fn draws_by_chance_follow_weights_that_change() {
    let mut stage = stage(Balance::Random, &[100, 100]);
    let mut rng = dice(1);
    let mut picker = Picker::new(&stage.build(at(0)), &mut rng);
    for (weight, share) in [(100, 0.5), (900, 0.9), (25, 0.2)] {
        stage.record(0, |record| record.weight = weight);
        let upstream = stage.build(at(1));
        let ids = ids(&upstream);
        picker.follow(&upstream, at(1));
        let draws = (0..10_000).filter(|_| next(&mut picker, &ids, &mut rng) == 0);
        let got = draws.count() as f64 / 1e4;
        assert!((got - share).abs() < 0.02, "{got} for {share}");
    }
}
