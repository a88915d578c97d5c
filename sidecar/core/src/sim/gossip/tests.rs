use mesh_proto::record::Health;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn play(scenario: Scenario, nodes: usize, seed: u64) -> Report {
    run(scenario, nodes, seed, &mut |_| {})
}

#[test]
fn every_short_story_meets_its_targets() {
    let long = [Scenario::Hour, Scenario::Loss];
    for scenario in Scenario::ALL {
        if long.contains(&scenario) {
            continue;
        }
        let report = play(scenario, 24, 3);
        assert!(report.holds(), "{}: {report:?}", report.replay());
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    let trace = |seed| play(Scenario::Noise, 16, seed).trace;
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}

#[test]
fn mixed_versions_and_a_change_of_keys_are_borne_by_a_larger_mesh_too() {
    for scenario in [Scenario::Versions, Scenario::Keys] {
        let report = play(scenario, 64, 9);
        assert!(report.holds(), "{}: {report:?}", report.replay());
    }
}

#[test]
fn a_narrow_view_of_a_larger_mesh_is_enough() {
    // As of ten thousand nodes each looks at a tenth, so here: 16 and their guests of 200.
    let mut sim = Sim::new(11);
    for index in 0..200 {
        sim.start(index, 1);
        sim.with(index, |machine, _| machine.narrow_view(16));
        sim.run(Duration::from_millis(5));
    }
    let whole = sim.run_until(SECOND * 20, Sim::is_whole);
    assert!(whole.is_some(), "all know all");
    sim.run(SECOND * 10);
    for victim in [7, 70, 170] {
        sim.kill(victim);
        let died = sim.run_until(SECOND * 8, |sim| sim.all_see(victim, NodeState::Down));
        println!("a crash seen through narrow views: {died:?}");
        assert!(died.is_some());
    }
    assert_eq!(sim.wronged, Vec::new());
}

#[test]
fn a_change_and_a_crash_get_through_a_thousand_nodes() {
    let mut sim = Sim::handed(1, 1_000, 1, false);
    sim.run(SECOND);
    sim.change(5, Change::Offer(service(5, InstanceState::Draining)));
    let new = sim.nodes[5]
        .machine
        .as_ref()
        .and_then(|machine| machine.version_of(id(5)));
    let is_known = |sim: &Sim| {
        let mut all = sim.alive();
        all.all(|(_, machine)| machine.version_of(id(5)) == new)
    };
    let took = sim.run_until(SECOND * 5, is_known).expect("known to all");
    sim.kill(9);
    let died = sim.run_until(SECOND * 6, |sim| sim.all_see(9, NodeState::Down));
    println!("1,000 nodes: a change in {took:?}, a crash in {died:?}");
    assert!(died.is_some() && sim.wronged.is_empty());
}

#[test]
fn a_node_with_a_slow_link_is_given_the_time_it_needs() {
    let mut sim = Sim::handed(2, 12, 3, true);
    sim.network.across = Duration::from_millis(90);
    sim.run(SECOND * 30);
    let machine = sim.nodes[0].machine.as_ref().expect("lives");
    let far = machine.round_trips().filter(|(zone, _)| **zone != *"a");
    let far: Vec<_> = far.collect();
    assert_eq!(far.len(), 2, "{far:?}");
    assert!(
        far.iter()
            .all(|(_, took)| *took > Duration::from_millis(100)),
        "{far:?}"
    );
    assert!(sim.wronged.is_empty());
    let failed: u64 = sim
        .alive()
        .map(|(_, machine)| machine.counts.probes_failed)
        .sum();
    assert_eq!(failed, 0);
}

#[test]
fn repairs_are_begun_with_near_peers_first() {
    let mut sim = Sim::handed(3, 30, 3, true);
    sim.network.across = Duration::from_millis(30);
    sim.run(SECOND * 5);
    // Nobody is told of the change by datagram, so exchanges must carry it.
    sim.network.cut = |_, _| true;
    sim.change(0, Change::Offer(service(77, InstanceState::Up)));
    sim.run(SECOND / 2);
    sim.network.cut = |_, _| false;
    assert!(sim.run_until(SECOND * 20, Sim::is_whole).is_some());
}

#[test]
fn a_suspicion_that_nobody_shares_is_held() {
    // Node 0 does not hear node 1 and neither streams nor helpers get through to it: it alone finds node 1 silent.
    let mut sim = Sim::handed(4, 16, 1, true);
    sim.network.streamless = true;
    sim.network.cut = |from, to| from == 1 && to == 0;
    sim.run(SECOND * 60);
    assert_eq!(sim.wronged, Vec::new());
}

#[test]
fn who_started_again_apart_from_the_others_is_found_by_them() {
    // Node 0 joins node 1, which is just going down itself, and node 1 joins node 0: nobody told the others.
    let mut sim = Sim::handed(9, 12, 1, true);
    sim.kill(0);
    sim.kill(1);
    sim.start(0, 1_000);
    sim.run(SECOND);
    sim.start(1, 1_000);
    // An exchange without a reason would find them too, after ten seconds.
    let whole = sim.run_until(SECOND * 5, Sim::is_seen_as_it_is);
    assert!(whole.is_some(), "the mesh stays in two parts");
}

#[test]
fn a_member_from_the_end_of_time_is_refused() {
    let report = play(Scenario::Clock, 8, 5);
    assert!(report.holds(), "{report:?}");
    let mut sim = Sim::handed(5, 4, 1, true);
    let forged = Standing {
        member: Member {
            bump: u64::MAX,
            ..sim.nodes[0].member
        },
        incarnation: 0,
        state: foca::State::Alive,
        down_for_s: 0,
    };
    sim.with(0, |machine, now| machine.acquaint(&[forged], &[], now));
    let machine = sim.nodes[0].machine.as_ref().expect("lives");
    assert_eq!(
        machine.me(),
        sim.nodes[0].member,
        "it did not rise to a bump that nothing is above"
    );
}

#[test]
fn invented_members_fill_no_table() {
    let mut sim = Sim::handed(6, 2, 1, true);
    let invented: Vec<Standing> = (0..NODES_MAX as u64 + 2_000)
        .map(|number| Standing {
            member: Member {
                id: 1 << 40 | number,
                address: ([10, 9, (number / 250) as u8, (number % 250) as u8], 7946).into(),
                bump: 1,
            },
            incarnation: 0,
            state: foca::State::Alive,
            down_for_s: 0,
        })
        .collect();
    for part in invented.chunks(4_000) {
        sim.with(0, |machine, now| machine.acquaint(part, &[], now));
    }
    let machine = sim.nodes[0].machine.as_ref().expect("lives");
    assert!(machine.peers().count() <= crate::catalogue::OWNERS_MAX);
    assert_eq!(machine.overfull(), None);
}

#[test]
fn the_watcher_sees_a_version_that_fell() {
    let mut sim = Sim::handed(7, 3, 1, true);
    let mut watcher = Watcher::default();
    let mut failing = service(1, InstanceState::Up);
    failing.health = Health::Failing;
    sim.change(1, Change::Offer(failing));
    sim.run(SECOND);
    watcher.look(&sim);
    assert!(watcher.faults.is_empty());
    // The same process, as the watcher must think, with an emptier memory of node 1.
    let mut old = Sim::handed(7, 3, 1, true);
    sim.nodes = std::mem::take(&mut old.nodes);
    watcher.look(&sim);
    assert!(
        watcher
            .faults
            .iter()
            .any(|fault| fault.contains("fell back")),
        "{watcher:?}"
    );
}

#[test]
fn who_is_missing_or_too_many_is_counted() {
    let mut sim = Sim::handed(8, 4, 1, true);
    sim.run(SECOND);
    assert_eq!(wrong_pairs(&sim), 0);
    sim.kill(2);
    assert_eq!(wrong_pairs(&sim), 3, "three see it alive that is not there");
}

#[test]
fn one_node_is_fed_a_large_mesh() {
    let fed = feed(2_000, 0.1, SECOND * 30, 1, |core| {
        assert_eq!(core.backlog().0, 2_001);
    });
    assert_eq!(fed.changes as u64, fed.news);
    assert_eq!(fed.members, 200);
}
