//! Whose requests go where: agreement across sidecars and zones, owners that are out.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::record::{Health, InstanceState};

use super::*;
use crate::{
    hash::hash_of,
    mesh::NodeState,
    outcome::{Outcome, Unreachable},
    policy::{FixedEndpoint, Hash, HashKey, Place, Sticky, Weight},
    snapshot::Snapshot,
    staging::{Stage, at, dice, report},
};

const REFUSED: Outcome = Outcome::Unreachable(Unreachable::Refused);

fn hashing(policy: &mut crate::policy::Policy) {
    policy.hash = Some(Hash::by(HashKey::Header("x-user".into())));
}

fn stage(zones: &[&str]) -> Stage {
    Stage::with(zones, hashing)
}

fn ask(key: u64) -> Ask<'static> {
    Ask {
        idempotent: true,
        key: Some(hash_of(&key.to_le_bytes())),
        ..Ask::default()
    }
}

/// Instance names by key.
fn homes(picker: &mut Picker, keys: u64, now: Moment) -> Vec<Box<str>> {
    let mut rng = dice(1);
    let mut home = |key| {
        let pick = picker.pick(&ask(key), now, &mut rng);
        pick.expect("somebody is in").endpoint.key.instance.clone()
    };
    (0..keys).map(&mut home).collect()
}

fn picker(upstream: &Arc<Upstream>) -> Picker {
    Picker::new(upstream, &mut dice(1))
}

#[test]
fn a_key_has_one_owner_in_whatever_zone_and_order_it_is_asked_from() {
    let zones = ["a1", "b1", "a1", "c1", "b1", "a2", "c1"];
    let mut here = stage(&zones);
    let upstream = here.build(at(0));
    let owners = homes(&mut picker(&upstream), 2_000, at(1));
    let used: BTreeSet<&Box<str>> = owners.iter().collect();
    assert_eq!(used.len(), zones.len(), "zones do not matter for keys");
    // Another sidecar, for which the own zone is another, and which learned of them one by one.
    let mut there = stage(&zones);
    for (i, zone) in zones.iter().enumerate() {
        let elsewhere = if *zone == "c1" { "a1" } else { "z9" };
        there.node(i, |node| node.zone = elsewhere.into());
    }
    let all = std::mem::take(&mut there.instances);
    let mut theirs: Option<Picker> = None;
    for (i, instance) in all.into_iter().rev().enumerate() {
        there.instances.insert(0, instance);
        let upstream = there.build(at(i as u64));
        if let Some(owners) = &upstream.owners {
            owners.table.build();
        }
        match &mut theirs {
            Some(theirs) => theirs.follow(&upstream, at(i as u64)),
            None => theirs = Some(picker(&upstream)),
        }
    }
    let mut theirs = theirs.expect("there are instances");
    assert_eq!(homes(&mut theirs, 2_000, at(10)), owners);
}

#[test]
fn a_restart_another_address_or_a_suspicion_moves_no_key() {
    let mut stage = stage(&["a1"; 5]);
    let mut picker = picker(&stage.build(at(0)));
    let before = homes(&mut picker, 1_000, at(0));
    stage.instances[1].epoch = 2;
    stage.record(2, |record| record.address = ([10, 7, 7, 7], 9).into());
    stage.state(3, NodeState::Suspect, at(1));
    picker.follow(&stage.build(at(1)), at(1));
    assert_eq!(homes(&mut picker, 1_000, at(2)), before);
}

#[test]
fn only_the_keys_of_one_that_fails_or_warns_or_goes_move() {
    let mut stage = stage(&["a1"; 6]);
    let upstream = stage.build(at(0));
    let mut picker = picker(&upstream);
    let before = homes(&mut picker, 3_000, at(0));
    let victim = upstream.tiers[0].members[2].endpoint.key.instance.clone();
    let only_its_own = |after: &[Box<str>]| {
        let pairs = before.iter().zip(after);
        let moved: Vec<&Box<str>> = pairs.filter(|(b, a)| b != a).map(|(b, _)| b).collect();
        assert!(moved.iter().all(|owner| **owner == victim), "{moved:?}");
        moved.len()
    };
    let its_keys = before.iter().filter(|owner| **owner == victim).count();
    for n in 0..5 {
        report(&upstream, 2, REFUSED, 0, at(n));
    }
    let ejected = homes(&mut picker, 3_000, at(10));
    assert_eq!(only_its_own(&ejected), its_keys);
    // Gone for good, they stay where they went when it was only out.
    stage.state(2, NodeState::Left, at(20));
    picker.follow(&stage.build(at(20)), at(20));
    assert_eq!(homes(&mut picker, 3_000, at(20)), ejected);
    stage.state(2, NodeState::Alive, at(30));
    stage.instances[2].epoch = 2;
    stage.record(2, |record| record.health = Health::Warning);
    picker.follow(&stage.build(at(30)), at(30));
    let half = only_its_own(&homes(&mut picker, 3_000, at(30)));
    let near = its_keys * 3 / 10..its_keys * 7 / 10;
    assert!(near.contains(&half), "{half} of {its_keys}");
}

#[test]
fn an_owner_comes_back_by_one_request_of_its_own_keys() {
    let mut stage = stage(&["a1"; 3]);
    let upstream = stage.build(at(0));
    let mut picker = picker(&upstream);
    let before = homes(&mut picker, 300, at(0));
    for n in 0..5 {
        report(&upstream, 0, REFUSED, 0, at(n));
    }
    let victim = Arc::clone(&upstream.tiers[0].members[0].endpoint);
    let mut rng = dice(1);
    let mut canaries = Vec::new();
    for key in 0..300 {
        let pick = picker
            .pick(&ask(key), at(5_000), &mut rng)
            .expect("some are in");
        if pick.kind == PickKind::Canary {
            canaries.push(key as usize);
        }
        let is_owner = pick.endpoint.key.instance == before[key as usize];
        assert!(is_owner || before[key as usize] == victim.key.instance);
    }
    assert_eq!(canaries.len(), 1, "one at a time");
    assert_eq!(before[canaries[0]], victim.key.instance);
    report(&upstream, 0, Outcome::Success, 1, at(5_001));
    assert_eq!(homes(&mut picker, 300, at(5_002)), before);
}

#[test]
fn a_request_without_a_key_goes_by_zone_and_algorithm() {
    let upstream = stage(&["a1", "a1", "b1"]).build(at(0));
    let mut picker = picker(&upstream);
    let mut rng = dice(1);
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        let pick = picker
            .pick(&Ask::default(), at(1), &mut rng)
            .expect("some are in");
        assert_eq!(pick.tier, 0, "the own zone first");
        seen.insert(pick.endpoint.id);
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn a_repeat_goes_to_the_next_owner_and_then_beyond_the_tier() {
    let upstream = stage(&["a1", "a1", "a1", "b1", "b1"]).build(at(0));
    let mut picker = picker(&upstream);
    let owners = upstream.owners.as_ref().expect("it hashes");
    let mut rng = dice(1);
    for key in 0..200 {
        let order = owners.table.order(ask(key).key.expect("it has one"), 5);
        let order: Vec<u64> = order
            .iter()
            .map(|owner| upstream.at(owners.seats[*owner]).endpoint.id)
            .collect();
        let mut tried: Vec<u64> = Vec::new();
        for owner in &order {
            let ask = Ask {
                tried: &tried,
                ..ask(key)
            };
            let pick = picker
                .pick(&ask, at(1), &mut rng)
                .expect("some are untried");
            assert_eq!(pick.endpoint.id, *owner);
            tried.push(pick.endpoint.id);
        }
        let last = Ask {
            beyond_tier: Some(0),
            ..ask(key)
        };
        let pick = picker.pick(&last, at(1), &mut rng).expect("all are in");
        assert_ne!(pick.tier, 0);
    }
}

#[test]
fn keys_leave_a_zone_that_tripped_and_its_own_keys_find_out_when_it_is_back() {
    let upstream = stage(&["a1", "a1", "b1", "b1"]).build(at(0));
    let mut picker = picker(&upstream);
    for i in 0..2 {
        report(&upstream, i, REFUSED, 0, at(100));
    }
    let mut rng = dice(1);
    let mut canaries = 0;
    for key in 0..1_000 {
        let pick = picker
            .pick(&ask(key), at(101), &mut rng)
            .expect("some are in");
        let is_canary = pick.kind == PickKind::Canary;
        assert!(is_canary || pick.tier != 0, "{pick:?}");
        canaries += usize::from(is_canary);
    }
    assert!((1..=11).contains(&canaries), "{canaries}");
}

#[test]
fn backups_own_nothing_and_help_when_all_owners_are_out() {
    let fixed = |last: u8, backup| FixedEndpoint {
        place: Place::Address(([10, 9, 9, last], 80).into()),
        zone: None,
        weight: Weight::DEFAULT,
        backup,
    };
    let mut stage = Stage::with(&[], |policy| {
        hashing(policy);
        policy.service = None;
        policy.endpoints = vec![fixed(1, false), fixed(2, false), fixed(3, true)];
    });
    let upstream = stage.build(at(0));
    let mut picker = picker(&upstream);
    let used: BTreeSet<Box<str>> = homes(&mut picker, 200, at(0)).into_iter().collect();
    assert_eq!(used.len(), 2);
    for i in 0..2 {
        for n in 0..5 {
            report(&upstream, i, REFUSED, 0, at(n));
        }
    }
    let backup = homes(&mut picker, 20, at(10));
    assert!(
        backup.iter().all(|instance| &**instance == "10.9.9.3:80"),
        "{backup:?}"
    );
}

#[test]
fn instances_of_one_name_and_addresses_of_one_name_are_told_apart() {
    let mut stage = stage(&["a1"; 4]);
    for i in 0..4 {
        stage.node(i, |node| node.name = "localhost".into());
        stage.record(i, |record| record.instance = "localhost-8080".into());
    }
    let upstream = stage.build(at(0));
    let mut picker = picker(&upstream);
    let mut rng = dice(1);
    let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
    for key in 0..1_000 {
        let pick = picker.pick(&ask(key), at(1), &mut rng).expect("all are in");
        *counts.entry(pick.endpoint.id).or_default() += 1;
    }
    assert!(
        counts.len() == 4 && counts.values().all(|count| *count > 150),
        "{counts:?}"
    );
}

#[test]
fn an_owner_gets_no_more_than_the_limit_of_an_endpoint() {
    let mut stage = Stage::with(&["a1"; 3], |policy| {
        hashing(policy);
        policy.limits.endpoint_requests = Some(2);
    });
    let upstream = stage.build(at(0));
    let mut picker = picker(&upstream);
    let mut rng = dice(1);
    for _ in 0..6 {
        let pick = picker
            .pick(&ask(7), at(0), &mut rng)
            .expect("there is room");
        pick.endpoint.begin(at(0));
    }
    assert!(upstream.members().all(|m| m.endpoint.in_flight() == 2));
    assert!(picker.pick(&ask(7), at(0), &mut rng).is_none());
}

#[test]
fn a_snapshot_in_which_only_a_tag_changed_keeps_the_table() {
    let mut stage = stage(&["a1"; 3]);
    let table = |snapshot: &Snapshot| {
        let upstream = snapshot
            .upstream(crate::staging::SERVICE)
            .expect("it is there");
        Arc::clone(&upstream.owners.as_ref().expect("it hashes").table)
    };
    stage.build(at(0));
    let before = table(&stage.snapshot);
    stage.record(0, |record| drop(record.tags.insert("a".into(), "b".into())));
    stage.state(1, NodeState::Suspect, at(1));
    stage.build(at(1));
    assert!(Arc::ptr_eq(&before, &table(&stage.snapshot)));
}

fn sticky(zones: &[&str], by: Sticky) -> Stage {
    Stage::with(zones, |policy| {
        policy.sticky = Some(by);
        policy.balance = crate::policy::Balance::RoundRobin;
    })
}

fn by_cookie() -> Sticky {
    Sticky::Cookie {
        name: "starling".into(),
        ttl: None,
    }
}

fn token(upstream: &Upstream, i: usize) -> Session {
    let member = upstream.members().nth(i).expect("it is there");
    let hosts = upstream.hosts.as_ref().expect("it is sticky");
    let host = hosts
        .by_id(member.endpoint.id)
        .expect("members host sessions");
    Session::Token(host.token().expect("cookies are used"))
}

fn stays(session: Session) -> Ask<'static> {
    Ask {
        idempotent: true,
        session: Some(session),
        ..Ask::default()
    }
}

#[test]
fn a_session_stays_with_its_instance_in_whatever_zone_and_through_other_changes() {
    let mut stage = sticky(&["a1", "a1", "b1"], by_cookie());
    let upstream = stage.build(at(0));
    let mut picker = picker(&upstream);
    let mut rng = dice(1);
    let session = token(&upstream, 2);
    let mut home = |picker: &mut Picker, now| {
        let pick = picker
            .pick(&stays(session), now, &mut rng)
            .expect("somebody is in");
        pick.endpoint.key.instance.clone()
    };
    let far = &upstream.tiers.last().expect("there are tiers").members[0];
    assert_eq!(home(&mut picker, at(1)), far.endpoint.key.instance);
    stage.state(0, NodeState::Left, at(2));
    stage.state(2, NodeState::Suspect, at(2));
    picker.follow(&stage.build(at(2)), at(2));
    assert_eq!(home(&mut picker, at(3)), far.endpoint.key.instance);
    // Another sidecar of the mesh made the cookie: one key, one token.
    let other = sticky(&["a1", "a1", "b1"], by_cookie()).build(at(0));
    assert_eq!(token(&other, 2), session);
}

#[test]
fn a_draining_instance_keeps_its_sessions_and_gets_no_new_ones() {
    let mut stage = sticky(&["a1"; 3], by_cookie());
    let first = stage.build(at(0));
    let session = token(&first, 1);
    let draining = Arc::clone(&first.tiers[0].members[1].endpoint);
    stage.record(1, |record| record.state = InstanceState::Draining);
    let upstream = stage.build(at(10));
    let mut picker = picker(&upstream);
    let mut rng = dice(1);
    for _ in 0..30 {
        let pick = picker
            .pick(&stays(session), at(11), &mut rng)
            .expect("it is there");
        assert_eq!(pick.endpoint.id, draining.id);
        let pick = picker
            .pick(&Ask::default(), at(11), &mut rng)
            .expect("others are in");
        assert_ne!(pick.endpoint.id, draining.id);
    }
    // Draining and dead is dead, and so is draining and failing.
    stage.state(1, NodeState::Down, at(20));
    picker.follow(&stage.build(at(20)), at(20));
    let pick = picker
        .pick(&stays(session), at(21), &mut rng)
        .expect("others are in");
    assert_ne!(pick.endpoint.id, draining.id);
}

#[test]
fn a_session_whose_instance_is_out_goes_elsewhere_and_an_unknown_one_begins_anew() {
    let mut stage = sticky(&["a1"; 3], by_cookie());
    let upstream = stage.build(at(0));
    let session = token(&upstream, 0);
    for n in 0..5 {
        report(&upstream, 0, REFUSED, 0, at(n));
    }
    let mut picker = picker(&upstream);
    let mut rng = dice(1);
    let out = upstream.tiers[0].members[0].endpoint.id;
    for _ in 0..20 {
        let pick = picker
            .pick(&stays(session), at(10), &mut rng)
            .expect("others are in");
        assert_ne!(pick.endpoint.id, out);
    }
    // Its canary is one of its own sessions.
    let pick = picker
        .pick(&stays(session), at(5_000), &mut rng)
        .expect("it may be well");
    assert_eq!((pick.endpoint.id, pick.kind), (out, PickKind::Canary));
    // Keys were changed: what was made with the old one means nobody.
    stage.session_keys = Arc::new(mesh_proto::session::SessionKeys::new([[9; 32]]));
    let rekeyed = stage.build(at(6_000));
    assert_ne!(token(&rekeyed, 0), session);
    assert!(seen_host(&rekeyed, session, at(6_000)).is_none());
    stage.session_keys = Arc::new(mesh_proto::session::SessionKeys::new([[8; 32], [9; 32]]));
    let both = stage.build(at(7_000));
    assert!(
        seen_host(&both, token(&rekeyed, 0), at(7_000)).is_some(),
        "while both are held"
    );
}

#[test]
fn sessions_stay_with_a_host_that_is_kept_against_swims_word_and_has_yet_to_answer() {
    let mut stage = sticky(&["a1"; 4], by_cookie());
    stage.build(at(0));
    stage.state(0, NodeState::Down, at(1_000));
    stage.state(1, NodeState::Down, at(1_000));
    let upstream = stage.build(at(1_000));
    assert!(upstream.panic);
    let host = &upstream.members().next().expect("all are kept").endpoint;
    assert_eq!(host.load().allowance(), Some(1));
    let session = token(&upstream, 0);
    let mut picker = picker(&upstream);
    for _ in 0..3 {
        let pick = picker.pick(&stays(session), at(1_001), &mut dice(1));
        let endpoint = pick.expect("it is in").endpoint;
        assert_eq!(endpoint.id, host.id);
        endpoint.begin(at(1_001));
    }
}

#[test]
fn whoever_has_no_place_in_the_order_of_zones_hosts_nobody() {
    let mut stage = sticky(&["b1"], by_cookie());
    let session = token(&stage.build(at(0)), 0);
    Arc::make_mut(&mut stage.policies[0]).zones.order = vec!["c1".into()];
    stage.record(0, |record| record.state = InstanceState::Draining);
    let upstream = stage.build(at(10));
    assert!(seen_host(&upstream, session, at(10)).is_none());
    let pick = picker(&upstream).pick(&stays(session), at(10), &mut dice(1));
    assert!(pick.is_none());
}

#[test]
fn an_address_stays_where_it_was_sent_first_for_as_long_as_it_comes_back() {
    let ttl = Duration::from_secs(60);
    let mut stage = sticky(&["a1"; 4], Sticky::SourceIp { ttl });
    let upstream = stage.build(at(0));
    let mut here = picker(&upstream);
    // Another worker of the same sidecar knows as well.
    let mut there = picker(&upstream);
    let mut rng = dice(1);
    let mut homes = Vec::new();
    for source in 0..20 {
        let client = stays(Session::Source(source));
        let first = here
            .pick(&client, at(source), &mut rng)
            .expect("all are in");
        for _ in 0..5 {
            let again = there
                .pick(&client, at(40_000), &mut rng)
                .expect("all are in");
            assert_eq!(again.endpoint.id, first.endpoint.id);
        }
        homes.push(first.endpoint.id);
    }
    let used: BTreeSet<&u64> = homes.iter().collect();
    assert_eq!(used.len(), 4, "the algorithm deals out those that are new");
    // Restarted under the same name it is the same host of sessions.
    let place = upstream.tiers[0]
        .members
        .iter()
        .position(|m| m.endpoint.id == homes[0]);
    let place = place.expect("it is a member");
    let instance = upstream.tiers[0].members[place]
        .endpoint
        .key
        .instance
        .clone();
    stage.instances[place].epoch = 2;
    here.follow(&stage.build(at(50_000)), at(50_000));
    let client = stays(Session::Source(0));
    let pick = here
        .pick(&client, at(50_000), &mut rng)
        .expect("all are in");
    assert_eq!(pick.endpoint.key.instance, instance);
}

#[test]
fn clients_by_address_find_out_when_their_instance_is_back_and_return() {
    let ttl = Duration::from_secs(600);
    let upstream = sticky(&["a1"; 4], Sticky::SourceIp { ttl }).build(at(0));
    let mut picker = picker(&upstream);
    let mut rng = dice(1);
    let mut all = |now| -> Vec<Pick> {
        let mut pick = |source| picker.pick(&stays(Session::Source(source)), now, &mut rng);
        (0..20).map(|i| pick(i).expect("others are in")).collect()
    };
    let ids = |picks: &[Pick]| -> Vec<u64> { picks.iter().map(|p| p.endpoint.id).collect() };
    let homes = ids(&all(at(0)));
    let victim = &upstream.tiers[0].members[0].endpoint;
    for n in 0..5 {
        report(&upstream, 0, REFUSED, 0, at(n));
    }
    let meanwhile = ids(&all(at(10)));
    assert_eq!(ids(&all(at(20))), meanwhile, "they stay there, too");
    let pairs = homes.iter().zip(&meanwhile);
    assert!(
        pairs
            .into_iter()
            .all(|(home, now)| (home != now) == (*home == victim.id))
    );
    // The same clients as ever, and nobody new: one of those that belong there is its canary.
    let later = all(at(60_000));
    let canaries = later.iter().filter(|p| p.kind == PickKind::Canary);
    assert!(
        canaries
            .into_iter()
            .all(|pick| pick.endpoint.id == victim.id)
    );
    assert!(ids(&later).contains(&victim.id));
    report(&upstream, 0, Outcome::Success, 1, at(60_001));
    assert_eq!(ids(&all(at(60_100))), homes);
}
