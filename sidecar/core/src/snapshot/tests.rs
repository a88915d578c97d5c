//! What a snapshot keeps, whom it offers, and when it does not believe SWIM.

use std::{sync::Arc, time::Duration};

use mesh_proto::record::{Health, InstanceState};

use super::*;
use crate::{
    endpoint::Word,
    mesh::NodeState,
    outcome::{Outcome, Unreachable},
    staging::{MS, Stage, at, report},
};

fn ids(upstream: &Upstream) -> Vec<u64> {
    upstream.members().map(|m| m.endpoint.id).collect()
}

fn sizes(upstream: &Upstream) -> Vec<(usize, u32)> {
    let tiers = upstream.tiers.iter();
    tiers.map(|t| (t.members.len(), t.total)).collect()
}

#[test]
fn endpoints_keep_their_figures_when_weight_tags_or_health_change() {
    let mut stage = Stage::new(&["a1", "a2", "b1"]);
    let first = stage.build(at(0));
    report(&first, 0, Outcome::Success, 1, at(1));
    stage.record(0, |record| {
        record.weight = 7;
        record.tags.insert("version".into(), "2".into());
    });
    let second = stage.build(at(10));
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(ids(&first), ids(&second));
    assert_eq!(second.tiers[0].members[0].weight, 7.0);
    assert_eq!(
        second.tiers[0].members[0].endpoint.load().latency(),
        Some(1e6)
    );
    // Out and in again: still the same.
    stage.record(0, |record| record.health = Health::Failing);
    let third = stage.build(at(20));
    assert_eq!(
        (third.members().count(), third.out[0].why),
        (2, Why::Failing)
    );
    stage.record(0, |record| record.health = Health::Passing);
    assert_eq!(ids(&stage.build(at(30))), ids(&first));
}

#[test]
fn an_upstream_in_which_nothing_changed_keeps_its_arc() {
    let mut stage = Stage::new(&["a1", "a2", "b1"]);
    let first = stage.build(at(0));
    assert!(Arc::ptr_eq(&first, &stage.build(at(5_000))));
    assert_eq!(stage.snapshot.generation, 2);
}

#[test]
fn a_restarted_host_is_a_new_endpoint() {
    let mut stage = Stage::new(&["a1", "a1"]);
    let first = stage.build(at(0));
    stage.instances[0].epoch = 2;
    let second = stage.build(at(10));
    assert_ne!(ids(&first)[0], ids(&second)[0]);
    assert_eq!(ids(&first)[1], ids(&second)[1]);
}

#[test]
fn whoever_is_not_to_be_called_is_listed_with_the_reason() {
    let mut stage = Stage::with(&["a1"; 7], |policy| {
        policy.select = vec![("role".into(), "primary".into())];
    });
    for i in 0..6 {
        stage.record(i, |r| drop(r.tags.insert("role".into(), "primary".into())));
    }
    stage.record(1, |r| r.state = InstanceState::Draining);
    stage.record(2, |r| r.state = InstanceState::Warming);
    stage.record(3, |r| r.health = Health::Failing);
    stage.state(4, NodeState::Down, at(0));
    stage.state(5, NodeState::Left, at(0));
    let upstream = stage.build(at(0));
    let why: Vec<&str> = upstream.out.iter().map(|o| o.why.as_str()).collect();
    let want = [
        "draining",
        "warming",
        "failing",
        "down",
        "left",
        "not selected by tags",
    ];
    assert_eq!(why, want);
    assert_eq!(upstream.members().count(), 1);
}

#[test]
fn a_crash_keeps_the_denominator_and_a_graceful_end_does_not() {
    let mut stage = Stage::by_priority(&["a1", "a1", "a1", "b1"]);
    assert_eq!(sizes(&stage.build(at(0))), [(3, 3), (0, 0), (1, 1)]);
    stage.state(0, NodeState::Down, at(1_000));
    assert_eq!(sizes(&stage.build(at(1_000)))[0], (2, 3));
    stage.record(1, |r| r.state = InstanceState::Draining);
    assert_eq!(sizes(&stage.build(at(2_000)))[0], (1, 2));
    stage.instances.remove(1);
    assert_eq!(sizes(&stage.build(at(3_000)))[0], (1, 2));
    assert_eq!(stage.snapshot.stale_at, Some(at(601_000)));
    assert_eq!(sizes(&stage.build(at(601_000)))[0], (1, 1));
}

#[test]
fn one_host_that_dies_is_dead_and_many_at_once_are_not_believed() {
    let mut stage = Stage::by_priority(&["a1", "a1", "b1", "b1"]);
    let first = stage.build(at(0));
    stage.state(0, NodeState::Down, at(1_000));
    let one = stage.build(at(1_000));
    assert!(!one.panic && one.members().count() == 3);
    stage.state(0, NodeState::Alive, at(2_000));
    stage.build(at(2_000));
    stage.state(2, NodeState::Down, at(9_000));
    stage.state(3, NodeState::Down, at(9_500));
    let many = stage.build(at(9_500));
    assert!(many.panic);
    assert_eq!(ids(&many), ids(&first));
    assert_eq!(many.tiers[2].members[0].word, Word::Vanished);
    // What this host cannot reach either is dead after all.
    let refused = Outcome::Unreachable(Unreachable::Refused);
    assert!(report(&many, 2, refused, 0, at(9_600)).is_some());
    assert!(report(&many, 3, refused, 0, at(9_600)).is_some());
    let confirmed = stage.build(at(9_700));
    assert!(!confirmed.panic && confirmed.members().count() == 2);
}

#[test]
fn whoever_is_kept_against_swims_word_a_second_time_has_to_answer_anew() {
    let mut stage = Stage::new(&["a1"; 6]);
    let latecomers = stage.instances.split_off(4);
    stage.build(at(0));
    stage.state(0, NodeState::Down, at(1_000));
    stage.state(1, NodeState::Down, at(1_000));
    let kept = stage.build(at(1_000));
    let doubted = Arc::clone(&kept.members().next().expect("all are kept").endpoint);
    assert_eq!((kept.panic, doubted.load().allowance()), (true, Some(1)));
    report(&kept, 0, Outcome::Success, 1, at(1_100));
    assert_eq!(doubted.load().allowance(), None);
    // Of six, two may well have died: SWIM is believed.
    stage.instances.extend(latecomers);
    let believed = stage.build(at(60_000));
    assert!(!believed.panic && believed.members().count() == 4);
    stage.instances.truncate(4);
    let again = stage.build(at(61_000));
    assert!(again.panic && again.members().any(|m| m.endpoint.id == doubted.id));
    assert_eq!(doubted.load().allowance(), Some(1));
    // It is the same disbelief while it lasts.
    report(&again, 0, Outcome::Success, 1, at(61_100));
    stage.record(3, |record| record.weight = 50);
    assert!(stage.build(at(61_200)).panic);
    assert_eq!(doubted.load().allowance(), None);
}

#[test]
fn with_nobody_left_the_last_known_are_kept() {
    let mut stage = Stage::new(&["a1"]);
    let first = stage.build(at(0));
    stage.state(0, NodeState::Down, at(1_000));
    let last = stage.build(at(60_000));
    assert!(last.panic);
    assert_eq!(ids(&last), ids(&first));
    stage.state(0, NodeState::Left, at(61_000));
    assert_eq!(stage.build(at(61_000)).members().count(), 0);
}

#[test]
fn an_ejected_endpoint_whose_owner_finds_it_well_again_need_not_sit_it_out() {
    let mut stage = Stage::new(&["a1", "a1"]);
    let first = stage.build(at(0));
    for i in 0..5 {
        report(
            &first,
            0,
            Outcome::Unreachable(Unreachable::Refused),
            0,
            at(i),
        );
    }
    let endpoint = Arc::clone(&first.tiers[0].members[0].endpoint);
    assert!(
        endpoint
            .ejected_for(at(10))
            .is_some_and(|left| left > 500 * MS)
    );
    stage.record(0, |r| r.health = Health::Failing);
    stage.build(at(20));
    stage.record(0, |r| r.health = Health::Passing);
    stage.build(at(30));
    assert_eq!(endpoint.ejected_for(at(30)), Some(Duration::ZERO));
}

#[test]
fn a_host_that_answers_us_is_not_dead_whatever_gossip_says() {
    let mut stage = Stage::new(&["a1", "a1", "a1", "b1"]);
    let first = stage.build(at(0));
    report(&first, 3, Outcome::Success, 1, at(4_000));
    stage.state(3, NodeState::Down, at(5_000));
    let kept = stage.build(at(5_000));
    assert!(kept.panic && kept.members().count() == 4);
    assert_eq!(stage.snapshot.stale_at, Some(at(6_000)));
    report(&kept, 3, Outcome::Success, 1, at(5_900));
    assert_eq!(stage.build(at(6_000)).members().count(), 4);
    // Nobody happens to ask it for a while.
    assert_eq!(stage.build(at(30_000)).members().count(), 4);
    let gone = stage.build(at(36_000));
    assert!(!gone.panic && gone.members().count() == 3);
}

#[test]
fn hosts_lost_one_by_one_within_the_window_are_lost_together() {
    let mut stage = Stage::by_priority(&["a1", "a1", "a1", "b1", "b1", "b1"]);
    let first = stage.build(at(0));
    stage.state(3, NodeState::Down, at(1_000));
    assert_eq!(stage.build(at(1_000)).members().count(), 5);
    stage.state(4, NodeState::Down, at(2_000));
    assert_eq!(stage.build(at(2_000)).members().count(), 4);
    stage.state(5, NodeState::Down, at(3_000));
    let all = stage.build(at(3_000));
    assert!(all.panic);
    assert_eq!(ids(&all), ids(&first));
    // Long after the window they are still not believed dead, and one more is a case of its own.
    stage.state(2, NodeState::Down, at(60_000));
    assert_eq!(stage.build(at(60_000)).members().count(), 6);
    // Whoever was lost long before belongs to nothing.
    let mut stage = Stage::by_priority(&["a1", "a1", "a1", "b1", "b1", "b1"]);
    stage.build(at(0));
    for (i, second) in [(3, 1), (4, 11), (5, 21)] {
        stage.state(i, NodeState::Down, at(second * 1_000));
        stage.build(at(second * 1_000));
    }
    assert_eq!(stage.upstream().members().count(), 3);
}

#[test]
fn where_one_of_a_lost_zone_answers_its_neighbours_are_kept_until_they_fail() {
    let mut stage = Stage::new(&["a1", "a1", "a1", "a1", "a1", "b1", "b1", "b1"]);
    let first = stage.build(at(0));
    stage.state(5, NodeState::Down, at(5_000));
    assert_eq!(stage.build(at(5_000)).members().count(), 7);
    report(&first, 6, Outcome::Success, 1, at(5_500));
    stage.state(6, NodeState::Down, at(6_000));
    stage.state(7, NodeState::Down, at(6_000));
    // Nobody asked two of them lately, and one of those is out already.
    let kept = stage.build(at(6_000));
    assert!(kept.panic);
    assert_eq!(ids(&kept), ids(&first));
    // A refusal is evidence of the one that refused.
    let refused = Outcome::Unreachable(Unreachable::Refused);
    report(&kept, 7, refused, 0, at(6_500));
    assert_eq!(stage.build(at(7_000)).members().count(), 7);
    // When none of them has answered for long, SWIM is believed.
    assert_eq!(stage.build(at(40_000)).members().count(), 5);
}

#[test]
fn what_a_silent_zone_asked_for_stands_and_is_then_reckoned_by_its_hosts() {
    let mut stage = Stage::new(&["a1", "a1", "b1", "c1", "c1"]);
    stage.demand(&[("a1", 100), ("b1", 50), ("c1", 30)]);
    let told = |upstream: &Upstream| -> Vec<(f64, Told)> {
        let water = upstream.water.as_ref().expect("water-filling is usual");
        water.zones.iter().map(|z| (z.demand, z.told)).collect()
    };
    let fresh = |demand: f64| (demand, Told::Fresh);
    let all = [fresh(100.0), fresh(50.0), fresh(30.0)];
    assert_eq!(told(&stage.build(at(0))), all);
    // Its only host there is lost: what it asked for, others ask for soon.
    stage.state(2, NodeState::Down, at(1_000));
    assert_eq!(told(&stage.build(at(1_000))), all);
    assert_eq!(stage.snapshot.stale_at, Some(at(11_000)));
    let frozen = (50.0, Told::Frozen { since: at(1_000) });
    assert_eq!(told(&stage.build(at(11_000)))[1], frozen);
    assert_eq!(stage.snapshot.stale_at, Some(at(61_000)));
    let hosts = (0.0, Told::Hosts { since: at(1_000) });
    assert_eq!(told(&stage.build(at(61_000)))[1], hosts);
    // Then nothing is heard of anybody: two hosts of c1 ask for as much as those of our own zone do.
    stage.state(2, NodeState::Alive, at(70_000));
    assert_eq!(told(&stage.build(at(70_000))), all);
    stage.isolated = true;
    assert_eq!(told(&stage.build(at(80_000))), all);
    assert_eq!(stage.snapshot.stale_at, Some(at(90_000)));
    let frozen = told(&stage.build(at(90_000)));
    assert_eq!(frozen[0], fresh(100.0));
    assert_eq!(frozen[2], (30.0, Told::Frozen { since: at(80_000) }));
    let since = at(80_000);
    let hosts = [
        fresh(100.0),
        (50.0, Told::Hosts { since }),
        (100.0, Told::Hosts { since }),
    ];
    assert_eq!(told(&stage.build(at(140_000))), hosts);
    stage.isolated = false;
    assert_eq!(told(&stage.build(at(150_000))), all);
}

#[test]
fn a_goodbye_ends_a_demand_and_a_new_one_is_seen() {
    let mut stage = Stage::new(&["a1", "b1"]);
    stage.demand(&[("a1", 100), ("b1", 50)]);
    let first = stage.build(at(0));
    assert!(Arc::ptr_eq(&stage.build(at(1)), &first));
    stage.demand(&[("a1", 100), ("b1", 60)]);
    let demand = |upstream: &Upstream| upstream.water.as_ref().expect("usual").zones[1].demand;
    assert_eq!(demand(&stage.build(at(2))), 60.0);
    stage.state(1, NodeState::Left, at(3));
    assert_eq!(demand(&stage.build(at(3))), 0.0);
}

#[test]
fn capacities_count_only_where_all_declare_them_and_the_whole_service_is_called() {
    let declared = |stage: &mut Stage| {
        let upstream = stage.build(at(0));
        let capacities = upstream.members().map(|m| m.capacity).collect::<Vec<_>>();
        (upstream.water.as_ref().expect("usual").declared, capacities)
    };
    let mut stage = Stage::new(&["a1", "b1"]);
    stage.record(0, |r| r.capacity = Some(500));
    assert_eq!(declared(&mut stage), (false, vec![100.0, 100.0]));
    stage.record(1, |r| (r.capacity, r.health) = (Some(300), Health::Warning));
    assert_eq!(declared(&mut stage), (true, vec![500.0, 150.0]));
    let mut part = Stage::with(&["a1"], |policy| {
        policy.select = vec![("x".into(), "y".into())]
    });
    part.record(0, |r| {
        (r.capacity, r.tags) = (Some(500), [("x".into(), "y".into())].into())
    });
    assert_eq!(declared(&mut part), (false, vec![100.0]));
}

#[test]
fn an_order_of_zones_is_ours_alone_or_everybodys() {
    let levels = |order: &[&str]| {
        let order: Vec<Box<str>> = order.iter().map(|zone| (*zone).into()).collect();
        let mut stage = Stage::with(&["a1", "a2", "b1"], |policy| policy.zones.order = order);
        let upstream = stage.build(at(0));
        let water = upstream.water.clone().expect("usual");
        let names: Vec<String> = upstream
            .tiers
            .iter()
            .map(|t| format!("{}/{}", t.name, t.zone))
            .collect();
        let of = |from: usize| {
            (0..3)
                .map(|to| water.levels.of(from, to))
                .collect::<Vec<_>>()
        };
        (names, [of(0), of(1), of(2)])
    };
    let (names, default) = levels(&[]);
    assert_eq!(names, ["zone/a1", "region/a2", "elsewhere/b1"]);
    assert_eq!(default, [[0, 1, 2], [1, 0, 2], [2, 2, 0]]);
    let (_, own) = levels(&["a1", "b1", "*"]);
    assert_eq!(own, [[0, 2, 1], [1, 0, 2], [2, 2, 0]]);
    let (names, all) = levels(&["b1", "*"]);
    assert_eq!(names, ["b1/b1", "*/a1", "*/a2"]);
    assert_eq!(all, [[1, 1, 0], [1, 1, 0], [1, 1, 0]]);
}
