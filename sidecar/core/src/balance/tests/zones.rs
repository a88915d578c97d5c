//! How requests are split over the zones, how a zone is left, and how it comes back.
//!
//! Not here: a zone that falls silent (`silence.rs`), and how the shares are reckoned (`zone/`).

use super::*;

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
