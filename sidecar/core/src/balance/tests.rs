//! The laws of picking: weights, distinctness, canaries, determinism.
//!
//! Not here: zones (`tests/zones.rs`), and who does not answer (`tests/silence.rs`).

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::record::{Health, InstanceState};
use proptest::prelude::*;
use rand::rngs::StdRng;

use super::*;
use crate::{
    endpoint::Report,
    mesh::NodeState,
    outcome::{Outcome, Unreachable},
    policy::{Balance, FixedEndpoint, Place, Weight, ZoneMode},
    staging::{BALANCES, MS, REPEATABLE, Stage, at, dice, report},
};

mod silence;
mod zones;

const REFUSED: Outcome = Outcome::Unreachable(Unreachable::Refused);

fn stage(balance: Balance, zones: &[&str]) -> Stage {
    Stage::with(zones, |policy| policy.balance = balance)
}

/// Picks by endpoint, all at one moment and over at once.
fn counts(
    picker: &mut Picker,
    picks: usize,
    now: Moment,
    rng: &mut StdRng,
) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..picks {
        let pick = picker.pick(&REPEATABLE, now, rng).expect("somebody is in");
        *counts.entry(pick.endpoint.id).or_default() += 1;
    }
    counts
}

fn near(got: &[f64], want: &[f64]) -> bool {
    got.iter()
        .zip(want)
        .all(|(got, want)| (got - want).abs() < 0.02)
}

#[test]
fn every_policy_picks_everybody_and_nobody_twice_for_one_request() {
    for balance in BALANCES {
        let upstream = stage(balance, &["a1"; 5]).build(at(0));
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        let mut tried = Vec::new();
        for _ in 0..5 {
            let ask = Ask {
                tried: &tried,
                ..Ask::default()
            };
            let pick = picker
                .pick(&ask, at(1), &mut rng)
                .expect("some are untried");
            assert!(!tried.contains(&pick.endpoint.id), "{balance:?}");
            tried.push(pick.endpoint.id);
        }
        let ask = Ask {
            tried: &tried,
            ..Ask::default()
        };
        assert!(picker.pick(&ask, at(1), &mut rng).is_none(), "{balance:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn weights_hold_within_one_percent(
        weights in proptest::collection::vec(1_u16..1_000, 1..20),
        seed in 0_u64..1_000,
    ) {
        // One percent is six standard deviations of 100,000 draws; turns need no luck.
        for (balance, picks) in [(Balance::RoundRobin, 20_000), (Balance::Random, 100_000)] {
            let mut stage = stage(balance, &vec!["a1"; weights.len()]);
            for (i, weight) in weights.iter().enumerate() {
                stage.record(i, |record| record.weight = *weight);
            }
            let upstream = stage.build(at(0));
            let mut rng = dice(seed);
            let mut picker = Picker::new(&upstream, &mut rng);
            let counts = counts(&mut picker, picks, at(1), &mut rng);
            let sum: f64 = upstream.members().map(|m| m.weight).sum();
            for member in upstream.members() {
                let got = *counts.get(&member.endpoint.id).unwrap_or(&0) as f64 / picks as f64;
                prop_assert!((got - member.weight / sum).abs() < 0.01, "{balance:?} {got}");
            }
        }
    }

    #[test]
    fn nobody_is_picked_who_is_not_usable(
        kinds in proptest::collection::vec(0_u8..8, 1..12),
        seed in 0_u64..1_000,
    ) {
        for balance in BALANCES {
            let zones = ["a1", "a2", "b1"];
            let zones: Vec<&str> = (0..kinds.len()).map(|i| zones[i % 3]).collect();
            let mut stage = stage(balance, &zones);
            let first = stage.build(at(0));
            for (i, kind) in kinds.iter().enumerate() {
                match kind {
                    1 => stage.record(i, |r| r.state = InstanceState::Draining),
                    2 => stage.record(i, |r| r.state = InstanceState::Warming),
                    3 => stage.record(i, |r| r.health = Health::Failing),
                    4 => stage.state(i, NodeState::Left, at(0)),
                    _ => {}
                }
            }
            drop(first);
            let upstream = stage.build(at(1));
            let members = upstream.members().count();
            for i in 0..members / 2 {
                for n in 0..5 {
                    report(&upstream, i, REFUSED, 0, at(n));
                }
            }
            let mut rng = dice(seed);
            let mut picker = Picker::new(&upstream, &mut rng);
            for i in 0..50 {
                let pick = picker.pick(&REPEATABLE, at(10 + i), &mut rng);
                prop_assert_eq!(pick.is_some(), members > 0);
                if let Some(pick) = pick {
                    prop_assert!(upstream.members().any(|m| m.endpoint.id == pick.endpoint.id));
                    prop_assert!(!pick.endpoint.is_ejected());
                }
            }
        }
    }
}

#[test]
fn round_robin_is_smooth_and_begins_anywhere() {
    let mut stage = stage(Balance::RoundRobin, &["a1"; 2]);
    stage.record(0, |record| record.weight = 300);
    let upstream = stage.build(at(0));
    let heavy = upstream.tiers[0].members[0].endpoint.id;
    let mut rng = dice(3);
    let mut picker = Picker::new(&upstream, &mut rng);
    let turns: Vec<bool> = (0..400)
        .map(|_| {
            picker
                .pick(&REPEATABLE, at(1), &mut rng)
                .expect("both are in")
                .endpoint
                .id
                == heavy
        })
        .collect();
    assert!(
        turns
            .windows(4)
            .all(|w| w.iter().filter(|is_heavy| **is_heavy).count() == 3)
    );
    let even = self::stage(Balance::RoundRobin, &["a1"; 8]).build(at(0));
    let firsts: BTreeSet<u64> = (0..50)
        .map(|seed| {
            let mut rng = dice(seed);
            let mut picker = Picker::new(&even, &mut rng);
            picker
                .pick(&REPEATABLE, at(1), &mut rng)
                .expect("all are in")
                .endpoint
                .id
        })
        .collect();
    assert!(firsts.len() >= 6, "{firsts:?}");
}

#[test]
fn round_robin_goes_on_where_it_was_when_others_come_and_go() {
    let mut stage = stage(Balance::RoundRobin, &["a1"; 6]);
    stage.state(5, NodeState::Left, at(0));
    let upstream = stage.build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut next = |picker: &mut Picker| {
        let pick = picker
            .pick(&REPEATABLE, at(1), &mut rng)
            .expect("some are in");
        let mut known = upstream.members();
        known.position(|m| m.endpoint.id == pick.endpoint.id)
    };
    let first = next(&mut picker).expect("a member");
    stage.state(5, NodeState::Alive, at(1));
    stage.state((first + 3) % 5, NodeState::Left, at(1));
    picker.follow(&stage.build(at(1)), at(1));
    let mut order: Vec<Option<usize>> = (0..5).map(|_| next(&mut picker)).collect();
    order.retain(Option::is_some);
    let want = [1, 2, 4, 5].map(|step| Some((first + step) % 5));
    assert_eq!(order, want[..order.len()]);
}

#[test]
fn a_picker_does_not_go_back_to_an_older_snapshot() {
    let mut stage = Stage::new(&["a1", "a1"]);
    let first = stage.build(at(0));
    stage.state(0, NodeState::Left, at(1));
    let second = stage.build(at(1));
    let mut rng = dice(1);
    let mut picker = Picker::new(&first, &mut rng);
    picker.follow(&second, at(1));
    picker.follow(&first, at(2));
    for _ in 0..100 {
        let pick = picker
            .pick(&REPEATABLE, at(2), &mut rng)
            .expect("one is in");
        assert_eq!(pick.endpoint.id, second.tiers[0].members[0].endpoint.id);
    }
}

#[test]
fn fewest_in_flight_wins_by_weight() {
    for balance in [Balance::LeastConnections, Balance::LeastResponseTime] {
        let upstream = stage(balance, &["a1"; 40]).build(at(0));
        for i in 0..40 {
            report(&upstream, i, Outcome::Success, 1, at(0));
        }
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        for round in 1..=5 {
            for _ in 0..40 {
                let pick = picker
                    .pick(&REPEATABLE, at(0), &mut rng)
                    .expect("all are in");
                pick.endpoint.begin(at(0));
            }
            let in_flight: Vec<u32> = upstream.members().map(|m| m.endpoint.in_flight()).collect();
            assert_eq!(in_flight, [round; 40], "{balance:?}");
        }
    }
}

#[test]
fn idle_endpoints_alike_in_speed_are_asked_by_weight() {
    let mut stage = stage(Balance::LeastResponseTime, &["a1"; 3]);
    stage.record(0, |record| record.weight = 300);
    let upstream = stage.build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut counts = BTreeMap::new();
    for i in 0..5_000 {
        let pick = picker
            .pick(&REPEATABLE, at(i * 20), &mut rng)
            .expect("all are in");
        pick.endpoint.begin(at(i * 20));
        pick.endpoint.head_came(at(i * 20 + 5));
        pick.endpoint.end(at(i * 20 + 5));
        let well = Report {
            outcome: Outcome::Success,
            latency: Some(5 * MS),
            connection: 1,
            canary: pick.canary,
        };
        upstream.report(&pick.endpoint, &well, at(i * 20 + 5), &mut rng);
        *counts.entry(pick.endpoint.id).or_insert(0.0) += 1.0 / 5_000.0;
    }
    let shares: Vec<f64> = upstream.members().map(|m| counts[&m.endpoint.id]).collect();
    assert!(near(&shares, &[0.6, 0.2, 0.2]), "{shares:?}");
}

#[test]
fn an_endpoint_never_gets_more_requests_than_its_limit() {
    for balance in BALANCES {
        let mut stage = Stage::with(&["a1"; 3], |policy| {
            policy.balance = balance;
            policy.limits.endpoint_requests = Some(2);
        });
        let upstream = stage.build(at(0));
        for i in 0..3 {
            report(&upstream, i, Outcome::Success, 1, at(0));
        }
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        for _ in 0..6 {
            let pick = picker
                .pick(&REPEATABLE, at(0), &mut rng)
                .expect("there is room");
            pick.endpoint.begin(at(0));
        }
        assert!(upstream.members().all(|m| m.endpoint.in_flight() == 2));
        assert!(
            picker.pick(&REPEATABLE, at(0), &mut rng).is_none(),
            "{balance:?}"
        );
        assert!(upstream.is_full());
    }
}

#[test]
fn a_new_endpoint_gets_one_request_until_it_has_answered() {
    let mut stage = Stage::new(&["a1"; 3]);
    stage.state(2, NodeState::Left, at(0));
    let upstream = stage.build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    for i in 0..2 {
        report(&upstream, i, Outcome::Success, 1, at(0));
    }
    stage.state(2, NodeState::Alive, at(10));
    let upstream = stage.build(at(10));
    let new = upstream.tiers[0].members[2].endpoint.clone();
    picker.follow(&upstream, at(10));
    for _ in 0..100 {
        let pick = picker
            .pick(&REPEATABLE, at(10), &mut rng)
            .expect("all are in");
        pick.endpoint.begin(at(10));
    }
    assert_eq!(new.in_flight(), 1);
}

#[test]
fn a_new_endpoint_gets_all_requests_if_nobody_else_is_left_for_them() {
    let upstream = Stage::new(&["a1", "a1"]).build(at(0));
    report(&upstream, 0, Outcome::Success, 1, at(0));
    let old = [upstream.tiers[0].members[0].endpoint.id];
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let retry = Ask {
        tried: &old,
        ..Ask::default()
    };
    let busy = |ask: &Ask<'_>, picker: &mut Picker, rng: &mut StdRng| {
        for _ in 0..5 {
            let pick = picker.pick(ask, at(10), rng).expect("the new one is in");
            assert!(!old.contains(&pick.endpoint.id));
            pick.endpoint.begin(at(10));
        }
    };
    busy(&retry, &mut picker, &mut rng);
    for n in 0..5 {
        report(&upstream, 0, REFUSED, 0, at(10 + n));
    }
    busy(&Ask::default(), &mut picker, &mut rng);
}

#[test]
fn a_young_endpoint_starts_with_a_tenth_unless_all_are_young() {
    let young = |record: &mut mesh_proto::record::ServiceRecord| {
        record.started_at_ms = crate::staging::UNIX_MS;
    };
    let mut stage = stage(Balance::Random, &["a1"; 2]);
    stage.record(0, young);
    let upstream = stage.build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let young_id = upstream.tiers[0].members[0].endpoint.id;
    let share = |c: BTreeMap<u64, usize>| c[&young_id] as f64 / 1e4;
    let at_first = share(counts(&mut picker, 10_000, at(0), &mut rng));
    assert!((at_first - 0.1 / 1.1).abs() < 0.01, "{at_first}");
    let grown = share(counts(&mut picker, 10_000, at(10_000), &mut rng));
    assert!((grown - 0.5).abs() < 0.02, "{grown}");
    stage.record(1, young);
    let upstream = stage.build(at(10_001));
    assert!(
        upstream
            .members()
            .all(|m| m.endpoint.ramp(at(10_001)) == 1.0)
    );
}

#[test]
fn requests_are_counted_once_however_often_they_are_tried() {
    let upstream = Stage::new(&["a1", "a1"]).build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let first = picker
        .pick(&REPEATABLE, at(0), &mut rng)
        .expect("two are in");
    let tried = [first.endpoint.id];
    let again = Ask {
        tried: &tried,
        ..REPEATABLE
    };
    picker.pick(&again, at(0), &mut rng);
    assert_eq!(upstream.shared.asked(), 1);
}

#[test]
fn a_warning_halves_the_share_and_a_suspicion_quarters_it() {
    for balance in [Balance::RoundRobin, Balance::Random] {
        let mut stage = Stage::with(&["a1"; 3], |policy| {
            policy.balance = balance;
            policy.service = Some("shop".into());
        });
        stage.record(1, |record| record.health = Health::Warning);
        stage.state(2, NodeState::Suspect, at(0));
        let upstream = stage.build(at(0));
        let mut rng = dice(3);
        let mut picker = Picker::new(&upstream, &mut rng);
        let mut counts = BTreeMap::new();
        for _ in 0..70_000 {
            let pick = picker.pick(&REPEATABLE, at(0), &mut rng).expect("somebody");
            *counts
                .entry(pick.endpoint.key.instance.clone())
                .or_insert(0) += 1;
        }
        let counts: Vec<i32> = counts.into_values().collect();
        for (count, share) in counts.iter().zip([40_000, 20_000, 10_000]) {
            assert!(
                (count - share).abs() < share / 20,
                "{balance:?}: {counts:?}"
            );
        }
    }
}

#[test]
fn a_callers_check_that_warns_halves_the_share_and_is_told() {
    let mut stage = Stage::with(&[], |policy| {
        policy.service = None;
        policy.balance = Balance::RoundRobin;
        let fixed = |n: u8| FixedEndpoint {
            place: Place::Address(([10, 9, 9, n], 80).into()),
            zone: None,
            weight: Weight::DEFAULT,
            backup: false,
        };
        policy.endpoints = vec![fixed(1), fixed(2)];
    });
    let address = ([10, 9, 9, 2], 80).into();
    stage
        .not_passing
        .insert(("shop".into(), address), Health::Warning);
    let upstream = stage.build(at(0));
    let mut rng = dice(3);
    let mut picker = Picker::new(&upstream, &mut rng);
    let picks = (0..300).filter_map(|_| picker.pick(&REPEATABLE, at(0), &mut rng));
    let warned = picks
        .filter(|pick| pick.endpoint.key.address == address)
        .count();
    assert_eq!(warned, 100);
    let told = crate::explain::endpoints(&upstream, at(0));
    let why: Vec<_> = told.iter().map(|view| (view.usable, view.why)).collect();
    assert_eq!(why, [(true, None), (true, Some("warning"))]);
}

#[test]
fn picks_against_swims_word_are_flagged() {
    let mut stage = Stage::new(&["a1", "a1"]);
    stage.build(at(0));
    for i in 0..2 {
        stage.state(i, NodeState::Down, at(1_000));
    }
    let upstream = stage.build(at(1_000));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let pick = picker.pick(&REPEATABLE, at(1_000), &mut rng).expect("kept");
    assert_eq!(pick.kind, PickKind::Panic);
}

#[test]
fn if_all_that_is_left_was_sent_out_it_gets_one_request_at_a_time() {
    let mut stage = Stage::new(&["a1", "a1"]);
    let upstream = stage.build(at(0));
    for n in 0..5 {
        report(&upstream, 0, REFUSED, 0, at(n));
    }
    stage.state(1, NodeState::Left, at(10));
    let upstream = stage.build(at(10));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let pick = picker
        .pick(&REPEATABLE, at(20), &mut rng)
        .expect("better than nothing");
    assert_eq!(pick.kind, PickKind::Panic);
    pick.endpoint.begin(at(20));
    assert!(picker.pick(&REPEATABLE, at(20), &mut rng).is_none());
    pick.endpoint.head_came(at(21));
    pick.endpoint.end(at(21));
    report(&upstream, 0, Outcome::Success, 1, at(21));
    let pick = picker
        .pick(&REPEATABLE, at(22), &mut rng)
        .expect("it is back");
    assert_eq!(pick.kind, PickKind::Usual);
}

#[test]
fn a_blemished_endpoint_is_asked_now_and_then_with_what_can_be_repeated() {
    let upstream = Stage::new(&["a1"; 3]).build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    for n in 0..50 {
        report(
            &upstream,
            0,
            Outcome::ServerFault { gateway: false },
            1,
            at(n),
        );
        report(&upstream, 1, Outcome::Success, 1, at(n));
        report(&upstream, 2, Outcome::Success, 1, at(n));
    }
    let sick = upstream.tiers[0].members[0].endpoint.clone();
    assert!(
        !sick.is_ejected(),
        "one connection within 100 ms is one burst"
    );
    sick.begin(at(50));
    sick.head_came(at(50));
    sick.end(at(50));
    let mut asked = Vec::new();
    for i in 0..20_000_u64 {
        let now = at(50) + MS * i as u32;
        let ask = if i % 2 == 0 {
            REPEATABLE
        } else {
            Ask::default()
        };
        let pick = picker.pick(&ask, now, &mut rng).expect("others are in");
        if pick.endpoint.id == sick.id {
            assert_eq!((pick.kind, i % 2), (PickKind::Canary, 0));
            asked.push(i);
        }
        pick.endpoint.begin(now);
        pick.endpoint.head_came(now);
        pick.endpoint.end(now);
    }
    assert!((3..=4).contains(&asked.len()), "every 5 s: {asked:?}");
}

#[test]
fn the_same_dice_give_the_same_picks() {
    for balance in BALANCES {
        let picks = |seed| {
            let mut stage = stage(balance, &["a1", "a1", "a1", "a2", "b1"]);
            let first = stage.build(at(0));
            let ids: Vec<u64> = first.members().map(|m| m.endpoint.id).collect();
            stage.state(0, NodeState::Down, at(500));
            let second = stage.build(at(500));
            let mut rng = dice(seed);
            let mut picker = Picker::new(&first, &mut rng);
            let mut order = Vec::new();
            for i in 0..500 {
                if i == 250 {
                    picker.follow(&second, at(500));
                }
                let pick = picker
                    .pick(&REPEATABLE, at(i * 2), &mut rng)
                    .expect("some are in");
                order.push(ids.iter().position(|id| *id == pick.endpoint.id));
            }
            order
        };
        assert_eq!(picks(5), picks(5), "{balance:?}");
    }
}
