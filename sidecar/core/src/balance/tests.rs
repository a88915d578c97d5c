//! The laws of picking: weights, distinctness, tiers, canaries, determinism.

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
    staging::{MS, Stage, at, dice, report},
};

const ALL: [Balance; 5] = [
    Balance::LeastResponseTime,
    Balance::RoundRobin,
    Balance::LeastConnections,
    Balance::PowerOfTwo,
    Balance::Random,
];

const REFUSED: Outcome = Outcome::Unreachable(Unreachable::Refused);

const REPEATABLE: Ask<'_> = Ask {
    tried: &[],
    beyond_tier: None,
    idempotent: true,
    session: None,
    key: None,
    wish: None,
};

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

/// Share of the picks that each tier gets.
fn tier_shares(picker: &mut Picker, now: Moment, rng: &mut StdRng) -> Vec<f64> {
    let mut shares = vec![0.0; picker.columns.len()];
    for _ in 0..10_000 {
        let pick = picker
            .pick(&Ask::default(), now, rng)
            .expect("somebody is in");
        shares[pick.tier] += 1e-4;
    }
    shares
}

fn near(got: &[f64], want: &[f64]) -> bool {
    got.iter()
        .zip(want)
        .all(|(got, want)| (got - want).abs() < 0.02)
}

#[test]
fn every_policy_picks_everybody_and_nobody_twice_for_one_request() {
    for balance in ALL {
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
        for balance in ALL {
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
    for balance in ALL {
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
fn traffic_stays_near_and_spills_by_what_is_lost() {
    let mut stage = Stage::with(&["a1", "a1", "a2", "a2", "b1", "b1"], |policy| {
        policy.balance = Balance::Random;
        policy.zones.mode = ZoneMode::Priority;
    });
    let upstream = stage.build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    assert!(near(
        &tier_shares(&mut picker, at(1), &mut rng),
        &[1.0, 0.0, 0.0]
    ));
    stage.state(0, NodeState::Down, at(1_000));
    picker.follow(&stage.build(at(1_000)), at(1_000));
    assert!(near(
        &tier_shares(&mut picker, at(1_000), &mut rng),
        &[0.7, 0.3, 0.0]
    ));
    // It comes back: 5 % of the whole per second.
    stage.instances[0].epoch = 2;
    stage.state(0, NodeState::Alive, at(2_000));
    picker.follow(&stage.build(at(2_000)), at(2_000));
    let mut shares = Vec::new();
    for second in 2..=8 {
        shares.push(tier_shares(&mut picker, at(second * 1_000), &mut rng)[0]);
    }
    assert!(
        near(&shares, &[0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]),
        "{shares:?}"
    );
}

/// Three zones that can take 200 requests a second each; the own one is asked for all of that.
fn own_zone_overfull() -> Stage {
    let mut stage = Stage::new(&["a1", "a1", "a2", "a2", "b1", "b1"]);
    for i in 0..6 {
        stage.record(i, |record| record.capacity = Some(100));
    }
    stage.demand(&[("a1", 200), ("a2", 120), ("b1", 40)]);
    stage
}

#[test]
fn any_hundred_requests_are_split_as_the_shares_say() {
    let mut stage = own_zone_overfull();
    let mut rng = dice(1);
    let mut picker = Picker::new(&stage.build(at(0)), &mut rng);
    for _ in 0..100 {
        let mut counts = [0.0; 3];
        for _ in 0..100 {
            let pick = picker.pick(&Ask::default(), at(1), &mut rng);
            counts[pick.expect("somebody is in").tier] += 1.0;
        }
        // Dice would be off by 4.6 one time in three.
        for (count, share) in counts.into_iter().zip([70.0, 10.0, 20.0]) {
            assert!(f64::abs(count - share) <= 3.0, "{counts:?}");
        }
    }
}

#[test]
fn demand_runs_into_the_capacity_of_the_zones_nearest_first() {
    let mut stage = own_zone_overfull();
    let mut rng = dice(1);
    let mut picker = Picker::new(&stage.build(at(0)), &mut rng);
    // 200 capacity each, T = 0.7: 60 too many for the own zone, 20 of which have room in the region.
    let shares = tier_shares(&mut picker, at(1), &mut rng);
    assert!(near(&shares, &[0.7, 0.1, 0.2]), "{shares:?}");
    // One of two in the own zone is lost, first to this caller alone.
    for i in 2..8 {
        report(&stage.upstream(), 0, REFUSED, 0, at(i));
    }
    let shares = tier_shares(&mut picker, at(10), &mut rng);
    assert!(near(&shares, &[0.36, 0.12, 0.52]), "{shares:?}");
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
fn a_repeat_of_a_lost_zone_is_spread_over_those_equally_near() {
    let upstream = Stage::new(&["a1", "b1", "b1", "c1"]).build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let ask = Ask {
        beyond_tier: Some(0),
        ..Ask::default()
    };
    let mut counts = [0; 3];
    for _ in 0..3_000 {
        let pick = picker.pick(&ask, at(0), &mut rng).expect("others are in");
        counts[pick.tier] += 1;
        pick.endpoint.begin(at(0));
        pick.endpoint.end(at(0));
    }
    assert_eq!(counts[0], 0);
    assert!((1_850..2_150).contains(&counts[1]), "{counts:?}");
}

#[test]
fn zones_may_be_ignored_or_ordered() {
    let zones = ["a1", "b1", "c1", "c1"];
    let mut ignoring = Stage::with(&zones, |policy| {
        policy.balance = Balance::Random;
        policy.zones.mode = ZoneMode::Ignore;
    });
    let mut rng = dice(1);
    let upstream = ignoring.build(at(0));
    let mut picker = Picker::new(&upstream, &mut rng);
    assert_eq!(counts(&mut picker, 1_000, at(0), &mut rng).len(), 4);
    let mut ordered = Stage::with(&zones, |policy| {
        policy.zones.order = vec!["c1".into(), "b1".into()];
    });
    let upstream = ordered.build(at(0));
    let members: Vec<usize> = upstream.tiers.iter().map(|t| t.members.len()).collect();
    assert_eq!(members, [2, 1]);
    assert_eq!(upstream.out[0].why.as_str(), "zone not in order");
}

#[test]
fn a_backup_is_used_only_when_nobody_else_is_left() {
    let fixed = |last: u8, backup| FixedEndpoint {
        place: Place::Address(([10, 9, 9, last], 80).into()),
        zone: None,
        weight: Weight::DEFAULT,
        backup,
    };
    let mut stage = Stage::with(&[], |policy| {
        policy.service = None;
        policy.endpoints = vec![fixed(1, false), fixed(2, false), fixed(3, true)];
    });
    let upstream = stage.build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let check = |n: u8| ("shop".into(), ([10, 9, 9, n], 80).into());
    stage.not_passing.insert(check(1), Health::Failing);
    picker.follow(&stage.build(at(1)), at(1));
    assert!(near(
        &tier_shares(&mut picker, at(1), &mut rng),
        &[1.0, 0.0, 0.0, 0.0]
    ));
    stage.not_passing.insert(check(2), Health::Failing);
    picker.follow(&stage.build(at(2)), at(2));
    assert!(near(
        &tier_shares(&mut picker, at(2), &mut rng),
        &[0.0, 0.0, 0.0, 1.0]
    ));
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
fn a_retry_goes_beyond_its_tier_if_there_is_anybody() {
    let upstream = Stage::by_priority(&["a1", "a1", "b1"]).build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let far = upstream.tiers[2].members[0].endpoint.id;
    let mut ask = Ask {
        beyond_tier: Some(0),
        ..Ask::default()
    };
    let tried = [far];
    assert_eq!(picker.pick(&ask, at(0), &mut rng).map(|p| p.tier), Some(2));
    ask.tried = &tried;
    assert_eq!(picker.pick(&ask, at(0), &mut rng).map(|p| p.tier), Some(0));
}

#[test]
fn a_zone_found_bad_within_a_second_is_left_at_once_and_returns_by_a_ramp() {
    let upstream = Stage::new(&["a1", "a1", "a1", "b1", "b1", "b1"]).build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    picker.pick(&REPEATABLE, at(0), &mut rng);
    report(&upstream, 0, REFUSED, 0, at(100));
    report(&upstream, 1, REFUSED, 0, at(150));
    let (mut usual, mut canaries) = (BTreeMap::new(), BTreeMap::new());
    // A request a millisecond; the zone is dead for two seconds.
    for i in 160..40_000 {
        let pick = picker
            .pick(&REPEATABLE, at(i), &mut rng)
            .expect("others are in");
        let dead = pick.tier == 0 && i < 2_160;
        let told = Report {
            outcome: if dead { REFUSED } else { Outcome::Success },
            latency: (!dead).then_some(MS),
            connection: 1,
            canary: pick.canary,
        };
        upstream.report(&pick.endpoint, &told, at(i), &mut rng);
        if pick.tier == 0 {
            let counts = if pick.kind == PickKind::Canary {
                &mut canaries
            } else {
                &mut usual
            };
            *counts.entry(i / 1_000).or_insert(0) += 1;
        }
    }
    let early: i32 = canaries.range(..2).map(|(_, count)| count).sum();
    assert!(
        (5..=25).contains(&early),
        "1 % until they are sent out: {canaries:?}"
    );
    // The third of its endpoints had not been found out yet when the other two had been sent out.
    let unwitting: i32 = usual.range(..2).map(|(_, count)| count).sum();
    assert!(unwitting <= 5, "{usual:?}");
    let second = *usual.range(2..).next().expect("it returned").0;
    assert!(second <= 6, "{usual:?}");
    let shares: Vec<i32> = (second..second + 25).map(|at| usual[&at]).collect();
    assert!(shares[1] <= 110 && shares[24] == 1_000, "{shares:?}");
    let steps = shares.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(steps.into_iter().all(|step| step <= 130), "{shares:?}");
}

#[test]
fn a_zone_comes_back_while_streams_into_it_are_open() {
    let upstream = Stage::new(&["a1", "a1", "b1", "b1"]).build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    picker.pick(&REPEATABLE, at(0), &mut rng);
    for member in upstream.members().take(2) {
        member.endpoint.begin(at(10));
        member.endpoint.head_came(at(11));
    }
    report(&upstream, 0, REFUSED, 0, at(100));
    report(&upstream, 1, REFUSED, 0, at(150));
    for i in 160..3_000 {
        let pick = picker
            .pick(&REPEATABLE, at(i), &mut rng)
            .expect("all are in");
        let told = Report {
            outcome: Outcome::Success,
            latency: Some(MS),
            connection: 1,
            canary: pick.canary,
        };
        upstream.report(&pick.endpoint, &told, at(i), &mut rng);
    }
    assert!(
        upstream
            .members()
            .take(2)
            .all(|m| m.endpoint.in_flight() == 1)
    );
    assert!(picker.trips.iter().all(|trip| !trip.is_ill()));
}

#[test]
fn half_a_zone_that_stays_dead_does_not_keep_the_other_half_away() {
    let upstream = Stage::by_priority(&["a1", "a1", "a1", "a1", "b1", "b1"]).build(at(0));
    let dead: Vec<u64> = upstream.members().take(2).map(|m| m.endpoint.id).collect();
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut local = vec![0; 60];
    let mut errors = 0;
    for i in 0..60_000 {
        let pick = picker
            .pick(&REPEATABLE, at(i), &mut rng)
            .expect("others are in");
        let refused = dead.contains(&pick.endpoint.id);
        let told = Report {
            outcome: if refused { REFUSED } else { Outcome::Success },
            latency: (!refused).then_some(MS),
            connection: 1,
            canary: pick.canary,
        };
        upstream.report(&pick.endpoint, &told, at(i), &mut rng);
        local[(i / 1_000) as usize] += i32::from(pick.tier == 0);
        errors += i32::from(refused);
    }
    // 1.4 times the half that is left, from the end of the ramp on and without a break.
    assert!(
        local[25..].iter().all(|count| (630..780).contains(count)),
        "{local:?}"
    );
    assert!(errors < 60, "{errors}");
}

/// A request to the `i`th member is begun and answered.
fn answer(upstream: &Upstream, i: usize, now: Moment) {
    let member = upstream.members().nth(i).expect("the member is there");
    member.endpoint.begin(now);
    member.endpoint.load().head_came(now);
    report(upstream, i, Outcome::Success, 1, now);
    member.endpoint.load().end();
}

#[test]
fn where_requests_are_thick_an_endpoint_that_went_quiet_comes_last() {
    let firsts = |busy: usize| -> BTreeSet<u64> {
        let picks = (0..40).map(|seed| {
            let upstream = Stage::new(&["a1"; 4]).build(at(0));
            for i in 0..4 {
                let quiet = i == 3;
                let answered = at(if quiet { 950 } else { 1_000 });
                answer(&upstream, i, answered);
            }
            for member in upstream.members().take(busy) {
                member.endpoint.begin(at(1_000));
            }
            let mut rng = dice(seed);
            let mut picker = Picker::new(&upstream, &mut rng);
            let pick = picker.pick(&REPEATABLE, at(1_005), &mut rng);
            let first = pick.expect("all are in").endpoint.id;
            let place = upstream.members().position(|m| m.endpoint.id == first);
            place.expect("it is one of them") as u64
        });
        picks.collect()
    };
    assert_eq!(firsts(2), BTreeSet::from([2]));
    // Nothing in flight anywhere: that nobody answers says nothing.
    assert_eq!(firsts(0), BTreeSet::from([0, 1, 2, 3]));
    // One in flight at each of the others, and it is worth a try.
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    for i in 0..4 {
        answer(&upstream, i, at(900 + i as u64));
    }
    for member in upstream.members().take(3) {
        member.endpoint.begin(at(1_000));
    }
    let quiet = upstream
        .members()
        .nth(3)
        .expect("there are four")
        .endpoint
        .id;
    let mut rng = dice(1);
    let pick = Picker::new(&upstream, &mut rng).pick(&REPEATABLE, at(1_005), &mut rng);
    assert_eq!(pick.expect("all are in").endpoint.id, quiet);
}

#[test]
fn an_endpoint_that_went_quiet_is_asked_again_after_a_second() {
    let is_asked = |now: u64| {
        (0..40).any(|seed| {
            let upstream = Stage::new(&["a1"; 4]).build(at(0));
            for i in 0..4 {
                let answered = if i == 3 { 950 } else { now - 1 };
                answer(&upstream, i, at(answered));
            }
            for member in upstream.members().take(2) {
                member.endpoint.begin(at(now));
            }
            let quiet = upstream.members().nth(3).expect("there are four");
            let mut rng = dice(seed);
            let pick = Picker::new(&upstream, &mut rng).pick(&REPEATABLE, at(now), &mut rng);
            pick.expect("all are in").endpoint.id == quiet.endpoint.id
        })
    };
    assert!(!is_asked(1_500));
    assert!(is_asked(2_000));
}

#[test]
fn a_zone_that_falls_silent_is_left_within_a_second() {
    let upstream = Stage::new(&["a1", "a1", "b1", "b1"]).build(at(0));
    for i in 0..4 {
        report(&upstream, i, Outcome::Success, 1, at(0));
    }
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut last_local = 0;
    for i in 0..3_000 {
        let pick = picker
            .pick(&REPEATABLE, at(i), &mut rng)
            .expect("all are in");
        pick.endpoint.begin(at(i));
        if pick.tier == 0 {
            last_local = i;
        } else {
            pick.endpoint.head_came(at(i));
            pick.endpoint.end(at(i));
        }
    }
    assert!((800..900).contains(&last_local), "{last_local}");
}

#[test]
fn a_machine_that_stood_still_for_seconds_does_not_blame_its_zone() {
    let upstream = Stage::new(&["a1", "a1", "b1", "b1"]).build(at(0));
    for i in 0..4 {
        report(&upstream, i, Outcome::Success, 1, at(0));
    }
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let picked = |picker: &mut Picker, rng: &mut StdRng, now: Moment| {
        let pick = picker.pick(&REPEATABLE, now, rng).expect("all are in");
        pick.endpoint.begin(now);
        pick
    };
    let mut waiting: Vec<Pick> = (0..20)
        .map(|i| picked(&mut picker, &mut rng, at(i * 10)))
        .collect();
    // Of the answers that came meanwhile none is read before the next few picks.
    for i in 0..5 {
        waiting.push(picked(&mut picker, &mut rng, at(3_000 + i)));
    }
    for pick in &waiting {
        pick.endpoint.head_came(at(3_005));
        pick.endpoint.end(at(3_005));
    }
    for i in 0..500 {
        waiting.push(picked(&mut picker, &mut rng, at(3_006 + i)));
    }
    assert!(waiting.iter().all(|pick| pick.tier == 0));
}

#[test]
fn clients_that_lose_patience_do_not_hide_a_silence() {
    let upstream = Stage::new(&["a1", "b1"]).build(at(0));
    for i in 0..2 {
        report(&upstream, i, Outcome::Success, 1, at(0));
    }
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut local = Vec::new();
    for i in 0..60 {
        // One request at a time, given up after 200 ms.
        let (began, over) = (at(i * 250), at(i * 250 + 200));
        let pick = picker
            .pick(&REPEATABLE, began, &mut rng)
            .expect("both are in");
        pick.endpoint.begin(began);
        picker.pick(&REPEATABLE, over, &mut rng);
        if pick.tier == 0 {
            local.push(i);
            pick.endpoint.gave_up(over);
            upstream.cancelled(&pick.endpoint, None, 200 * MS, over);
        } else {
            pick.endpoint.head_came(began);
        }
        pick.endpoint.end(over);
    }
    // Given up, they raise the latency to 200 ms, and 20 times that is a silence; then one in a while finds out.
    let late = local.iter().filter(|i| **i >= 20).count();
    assert!(local.len() <= 30 && late <= 8, "{local:?}");
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
    for balance in ALL {
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
