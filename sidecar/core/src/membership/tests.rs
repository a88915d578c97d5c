use std::time::Duration;

use mesh_proto::record::{Health, InstanceState};

use super::{Change, Counts, Effect, Notice};
use crate::{
    mesh::{Mesh, NodeState, Remark, Stream},
    sim::gossip::{Sim, address, id, service},
};

const SECOND: Duration = Duration::from_secs(1);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Median and maximum.
fn spread(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

fn mesh(sim: &Sim, index: usize) -> Mesh {
    sim.nodes[index].machine.as_ref().expect("lives").mesh()
}

#[test]
fn nodes_that_join_one_all_find_each_other() {
    for count in [2, 3, 6, 64] {
        let mut sim = Sim::started(1, count);
        let took = sim.until(SECOND * 3, "all know all", Sim::is_whole);
        println!("{count} nodes: whole {took:?} after the last start");
        let mesh = mesh(&sim, 0);
        assert_eq!((mesh.nodes.len(), mesh.instances.len()), (count, count));
        assert!(mesh.joined && !mesh.isolated);
        assert_eq!(mesh.nodes[0].id, 1_000, "this node first");
    }
}

#[test]
fn the_same_seed_runs_the_same() {
    let run = |seed| {
        let mut sim = Sim::settled(seed, 8);
        sim.network.loss = 0.1;
        sim.kill(3);
        sim.run(SECOND * 10);
        sim.trace
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_crash_is_known_to_all_in_time() {
    for count in [3, 4, 5, 6, 16, 64] {
        let seeds = if count < 10 { 40 } else { 9 };
        let times = (0..seeds).map(|seed| {
            let mut sim = Sim::settled(seed, count);
            sim.network.refuses = seed % 2 == 0;
            sim.kill(1);
            let took = sim.until(SECOND * 20, "the crash is known", |sim| {
                sim.all_see(1, NodeState::Down)
            });
            sim.run(SECOND * 5);
            assert_eq!(sim.wronged(), 0, "seed {seed}");
            took
        });
        let (median, max) = spread(times.collect());
        println!("{count} nodes: crash known to all: median {median:?}, max {max:?}");
        assert!(median <= ms(3_500) && max <= ms(5_500));
    }
}

#[test]
fn a_crash_that_one_did_not_hear_of_is_known_to_it_soon_after_all_the_same() {
    let times = (0..9).map(|seed| {
        let mut sim = Sim::settled(seed, 64);
        sim.nodes[5].deaf = true;
        sim.kill(1);
        sim.until(SECOND * 20, "the others know", |sim| {
            let others = sim.alive().filter(|(index, _)| *index != 5);
            let mut views = others.map(|(index, _)| sim.view(1, index));
            views.all(|view| view == Some(NodeState::Down))
        });
        // Until nobody tells it any more.
        sim.run(SECOND * 3);
        sim.nodes[5].deaf = false;
        let took = sim.until(SECOND * 20, "the last one knows", |sim| {
            sim.all_see(1, NodeState::Down)
        });
        assert_eq!(sim.wronged(), 0, "seed {seed}");
        took
    });
    let (median, max) = spread(times.collect());
    println!("who did not hear of it: median {median:?}, max {max:?}");
    assert!(max <= ms(4_000));
}

#[test]
fn a_zone_that_dies_at_once_is_known_in_time() {
    let times = (0..20).map(|seed| {
        let mut sim = Sim::settled(seed, 6);
        sim.kill(4);
        sim.kill(5);
        sim.until(SECOND * 20, "both crashes are known", |sim| {
            sim.all_see(4, NodeState::Down) && sim.all_see(5, NodeState::Down)
        })
    });
    let (median, max) = spread(times.collect());
    println!("2 of 6: median {median:?}, max {max:?}");
    assert!(max <= ms(5_500));
}

#[test]
fn the_last_of_two_declares_the_other_down() {
    for (refuses, within) in [(true, 5), (false, 9)] {
        let mut sim = Sim::settled(3, 2);
        sim.network.refuses = refuses;
        sim.kill(0);
        let took = sim.until(SECOND * within, "the survivor knows", |sim| {
            sim.all_see(0, NodeState::Down)
        });
        println!("the last of two, refuses = {refuses}: {took:?}");
    }
}

#[test]
fn the_last_of_three_declares_the_others_down_if_their_hosts_refuse() {
    let mut sim = Sim::settled(3, 3);
    sim.kill(0);
    sim.kill(1);
    sim.until(SECOND * 8, "the survivor knows", |sim| {
        sim.all_see(0, NodeState::Down) && sim.all_see(1, NodeState::Down)
    });
}

#[test]
fn a_member_cut_off_from_all_says_so_and_wrongs_nobody() {
    let mut sim = Sim::settled(4, 8);
    sim.network.cut = |a, b| (a == 2) != (b == 2);
    sim.until(SECOND * 3, "it knows that it is cut off", |sim| {
        mesh(sim, 2).isolated
    });
    sim.run(SECOND * 30);
    assert!(
        (0..8)
            .filter(|other| *other != 2)
            .all(|other| sim.view(other, 2) != Some(NodeState::Down))
    );
    assert_eq!(sim.view(2, 0), Some(NodeState::Down));
    sim.network.cut = |_, _| false;
    let took = sim.until(SECOND * 12, "all are whole again", Sim::is_whole);
    println!("one of 8 back after 30 s: whole in {took:?}");
    assert!(!mesh(&sim, 2).isolated);
}

#[test]
fn a_deaf_member_wrongs_nobody() {
    for count in [3, 8, 32] {
        let mut sim = Sim::settled(5, count);
        sim.nodes[1].deaf = true;
        sim.run(SECOND * 60);
        let wronged = sim.nodes.iter().enumerate().flat_map(|(by, node)| {
            (node.told.iter()).filter(move |(_, _, state)| by == 1 && *state == NodeState::Down)
        });
        assert_eq!(wronged.count(), 0, "{count} nodes");
        // Streams still reach it, so nobody takes it for dead either.
        assert_eq!(sim.wronged(), 0, "{count} nodes");
        let noticed = |notice: &Notice| matches!(notice, Notice::DatagramsLost { .. });
        assert!(sim.nodes[1].notices.iter().any(noticed));
        let told = (0..count).filter(|by| *by != 1 && is_blocked(&sim, *by, 1_001));
        assert_eq!(
            told.count(),
            count - 1,
            "all others say that its UDP is blocked"
        );
        assert!(!(2..count).any(|other| is_blocked(&sim, 0, 1_000 + other as u64)));
        sim.nodes[1].deaf = false;
        sim.run(SECOND * 40);
        assert!(
            !(0..count).any(|by| is_blocked(&sim, by, 1_001)),
            "and then no more"
        );
    }
}

#[test]
fn a_member_that_hears_and_is_not_heard_wrongs_nobody_and_says_so() {
    // Of two, the other one gives it up and falls silent, and is then missed as one that died.
    for count in [3, 4, 8, 32] {
        let mut sim = Sim::settled(17, count);
        sim.network.cut = |from, _| from == 0;
        let took = sim.until(SECOND * 4, "it knows that it is not heard", |sim| {
            mesh(sim, 0).isolated
        });
        println!("{count} nodes: one knows after {took:?} that it is mute");
        sim.run(SECOND * 60);
        let seen = sim.nodes[0].told.iter();
        let downs = seen.filter(|(_, _, state)| *state == NodeState::Down);
        assert_eq!(downs.count(), 0, "{count} nodes");
        assert!(sim.nodes[0].notices.contains(&Notice::Unheard));
        sim.network.cut = |_, _| false;
        sim.until(SECOND * 12, "all are whole again", Sim::is_whole);
        assert!(!mesh(&sim, 0).isolated);
    }
}

#[test]
fn a_member_whose_peers_are_all_far_is_neither_deaf_nor_mute() {
    // Each is alone in its zone, and an answer takes 0.9 s, nearly as long as any may.
    for count in [2, 3, 6] {
        let mut sim = Sim::handed(19, count, count, true);
        sim.network.across = ms(450);
        // How far they are has to be learned.
        sim.run(SECOND * 90);
        for node in &mut sim.nodes {
            node.notices.clear();
        }
        sim.run(SECOND * 120);
        let alarms = (sim.nodes.iter().flat_map(|node| &node.notices))
            .filter(|notice| matches!(notice, Notice::Unheard | Notice::Isolated(_)));
        assert_eq!(alarms.count(), 0, "{count} nodes");
        assert_eq!(sim.wronged(), 0, "{count} nodes");
    }
}

#[test]
fn whoever_reaches_few_condemns_nobody_that_others_hear() {
    // Node 0 gets through to node 1 alone, and hears everybody.
    let mut sim = Sim::settled(18, 12);
    sim.network.cut = |from, to| from == 0 && to != 1;
    sim.run(SECOND * 60);
    let seen = sim.nodes[0].told.iter();
    let downs = seen.filter(|(_, _, state)| *state == NodeState::Down);
    assert_eq!(downs.count(), 0);
}

/// Three zones of eight, 40 ms apart.
fn three_zones(seed: u64) -> Sim {
    let mut sim = Sim::handed(seed, 24, 3, true);
    sim.network.across = ms(40);
    sim.run(SECOND * 15);
    sim
}

#[test]
fn most_probes_go_to_the_own_zone_and_some_to_others() {
    let sum = |sim: &Sim, count: fn(&Counts) -> u64| {
        let all = sim.alive().map(|(_, machine)| count(&machine.counts));
        all.sum::<u64>()
    };
    let mut sim = three_zones(1);
    let before = (
        sum(&sim, |c| c.probes_near),
        sum(&sim, |c| c.probes_answered),
    );
    sim.run(SECOND * 30);
    let near = sum(&sim, |c| c.probes_near) - before.0;
    let share = near as f64 / (sum(&sim, |c| c.probes_answered) - before.1) as f64;
    println!("share of near probes: {share:.3}");
    assert!((0.7..0.8).contains(&share));
    assert_eq!(sum(&sim, |c| c.probes_failed), 0);
    let measured = sim
        .alive()
        .map(|(_, machine)| machine.round_trips().count());
    assert!(measured.min() >= Some(3), "far zones are measured too");

    let mut sim = Sim::settled(1, 8);
    sim.run(SECOND * 30);
    assert_eq!(
        sum(&sim, |c| c.probes_near),
        0,
        "nobody is nearer than others"
    );
}

#[test]
fn a_crash_and_the_end_of_a_zone_are_known_in_time_across_zones() {
    let (mut crashes, mut outages) = (Vec::new(), Vec::new());
    for seed in 0..8 {
        let mut sim = three_zones(seed);
        sim.network.refuses = seed % 2 == 0;
        sim.kill(5);
        crashes.push(sim.until(SECOND * 20, "the crash is known", |sim| {
            sim.all_see(5, NodeState::Down)
        }));
        let zone = (0..24).filter(|index| index % 3 == 1);
        zone.clone().for_each(|index| sim.kill(index));
        outages.push(
            sim.until(SECOND * 20, "the end of the zone is known", |sim| {
                zone.clone()
                    .all(|index| sim.all_see(index, NodeState::Down))
            }),
        );
        sim.run(SECOND * 5);
        assert_eq!(sim.wronged(), 0, "seed {seed}");
    }
    let (crash, outage) = (spread(crashes), spread(outages));
    println!("three zones: a crash: {crash:?}; a whole zone: {outage:?}");
    assert!(crash.0 <= ms(3_500) && crash.1 <= ms(5_500));
    assert!(outage.1 <= ms(7_000));
}

#[test]
fn a_lone_member_of_a_zone_is_missed_as_soon_as_others() {
    let times = (0..8).map(|seed| {
        let mut sim = Sim::new(seed);
        for index in 0..17 {
            let zone = if index == 16 { "b" } else { "a" };
            sim.place(index, id(index), 1, zone);
            if index > 0 {
                sim.with(index, |machine, now| machine.join(address(0), now));
            }
            sim.run(ms(30));
        }
        sim.until(SECOND * 10, "all know all", Sim::is_whole);
        sim.run(SECOND * 12);
        sim.kill(16);
        sim.until(SECOND * 20, "the crash is known", |sim| {
            sim.all_see(16, NodeState::Down)
        })
    });
    let (median, max) = spread(times.collect());
    println!("alone in its zone: median {median:?}, max {max:?}");
    assert!(median <= ms(3_500) && max <= ms(5_500));
}

fn is_blocked(sim: &Sim, by: usize, whom: u64) -> bool {
    let remarks = mesh(sim, by).remarks;
    matches!(remarks.get(&whom), Some(Remark::StreamsOnly { .. }))
}

#[test]
fn a_suspicion_is_told_with_whose_it_is_and_what_was_tried() {
    for (refuses, wanted) in [(true, Stream::Refused), (false, Stream::Silent)] {
        let mut sim = Sim::settled(3, 8);
        sim.network.refuses = refuses;
        sim.kill(1);
        let is_told = |by_us: bool, stream: Option<Stream>| {
            move |sim: &Sim| {
                (0..8).filter(|by| *by != 1).any(|by| {
                    let remark = mesh(sim, by).remarks.get(&1_001).copied();
                    remark == Some(Remark::Suspected { by_us, stream })
                })
            }
        };
        sim.until(
            SECOND * 5,
            "its prober says why",
            is_told(true, Some(wanted)),
        );
        sim.until(SECOND, "another says by whom", is_told(false, None));
        sim.run(SECOND * 6);
        assert!((2..8).all(|by| mesh(&sim, by).remarks.is_empty()));
    }
}

#[test]
fn loss_wrongs_nobody_and_stops_no_news() {
    for (loss, count, streamless) in [(0.1, 32, false), (0.25, 32, false), (0.1, 32, true)] {
        let mut sim = Sim::settled(6, count);
        sim.network.loss = loss;
        sim.network.streamless = streamless;
        sim.run(SECOND * 60);
        let renewals: u64 = sim
            .alive()
            .map(|(_, machine)| machine.counts.renewals)
            .sum();
        let suspicions: u64 = sim
            .alive()
            .map(|(_, machine)| machine.counts.suspicions)
            .sum();
        println!(
            "{loss} lost among {count}, streamless = {streamless}: {suspicions} suspicions, {renewals} renewals"
        );
        assert_eq!((renewals, sim.wronged()), (0, 0));
        sim.change(1, Change::Offer(service(1, InstanceState::Draining)));
        sim.until(SECOND * 5, "the change is known", |sim| {
            sim.is_known(1, InstanceState::Draining)
        });
    }
}

#[test]
fn stalled_members_wrong_nobody_when_they_wake() {
    let mut sim = Sim::settled(7, 32);
    for round in 0..2 {
        for index in 1..5 {
            sim.nodes[index].stalled_until = sim.now + SECOND * 16;
        }
        let before: Vec<usize> = sim.nodes.iter().map(|node| node.told.len()).collect();
        sim.run(SECOND * 32);
        for (by, node) in sim.nodes.iter().enumerate() {
            let healthy = |id: u64| !(1_001..1_005).contains(&id);
            let wronged = node.told[before[by]..]
                .iter()
                .filter(|(_, id, state)| *state == NodeState::Down && healthy(*id));
            assert_eq!(wronged.count(), 0, "by {by} in round {round}");
        }
        sim.until(SECOND * 12, "the sleepers are back", Sim::is_whole);
    }
}

impl Sim {
    /// A mesh of `count` that has found together.
    fn settled(seed: u64, count: usize) -> Sim {
        let mut sim = Sim::started(seed, count);
        sim.until(SECOND * 10, "all know all", Sim::is_whole);
        let rest = sim.draw(3_000) as u64;
        sim.run(ms(1_000 + rest));
        sim
    }

    /// Runs until the condition holds. Yields the time it took.
    fn until(&mut self, within: Duration, what: &str, holds: impl FnMut(&Sim) -> bool) -> Duration {
        let took = self.run_until(within, holds);
        took.unwrap_or_else(|| {
            for (index, machine) in self.alive() {
                let peers: Vec<_> = machine
                    .peers()
                    .map(|(member, state)| (member.id, state))
                    .collect();
                eprintln!("node {index}: {:x} {peers:?}", machine.hash());
            }
            panic!("{what}: not within {within:?}");
        })
    }

    /// Whether all see this state of a node's service.
    fn is_known(&self, index: usize, state: InstanceState) -> bool {
        let id = self.nodes[index].member.id;
        self.alive().all(|(_, machine)| {
            let mesh = machine.mesh();
            let mut of_node = mesh
                .instances
                .iter()
                .filter(|instance| instance.node.id == id);
            of_node.any(|instance| instance.record.state == state)
        })
    }
}

#[test]
fn a_change_reaches_everybody_at_once() {
    for (count, seeds) in [(3, 20), (64, 4)] {
        let times = (0..seeds).map(|seed| {
            let mut sim = Sim::settled(seed, count);
            sim.change(2, Change::Offer(service(2, InstanceState::Draining)));
            sim.until(SECOND * 5, "draining is known", |sim| {
                sim.is_known(2, InstanceState::Draining)
            })
        });
        let (median, max) = spread(times.collect());
        println!("{count} nodes: change known to all: median {median:?}, max {max:?}");
        assert!(median <= ms(300) && max <= ms(1_000));
    }
}

#[test]
fn who_leaves_is_seen_as_left_and_not_as_down() {
    for count in [2, 6, 64] {
        let mut sim = Sim::settled(8, count);
        sim.change(1, Change::Leave);
        let took = sim.until(SECOND, "the goodbye is known", |sim| {
            sim.all_see(1, NodeState::Left)
        });
        println!("{count} nodes: goodbye known to all: {took:?}");
        sim.until(SECOND * 2, "it is gone", |sim| sim.nodes[1].left);
        sim.run(SECOND * 10);
        assert!(sim.all_see(1, NodeState::Left));
        let told = sim.nodes.iter().flat_map(|node| &node.told);
        assert_eq!(
            told.filter(|(_, _, state)| *state == NodeState::Down)
                .count(),
            0
        );
    }
}

#[test]
fn who_said_goodbye_and_returns_is_alive_to_all() {
    for seed in 0..40 {
        let mut sim = Sim::settled(seed, 6);
        sim.change(1, Change::Leave);
        sim.until(SECOND * 2, "it is gone", |sim| sim.nodes[1].left);
        sim.kill(1);
        sim.start(1, 50);
        // Some hear of the new identity while they still hold the old one's goodbye.
        sim.until(SECOND * 2, "it is back", Sim::is_whole);
        sim.run(SECOND);
        assert!(sim.is_whole(), "seed {seed}");
        sim.change(1, Change::Leave);
        sim.until(SECOND, "the second goodbye is known", |sim| {
            sim.all_see(1, NodeState::Left)
        });
    }
}

#[test]
fn a_restarted_node_replaces_its_old_records() {
    let mut sim = Sim::settled(9, 6);
    sim.change(2, Change::Offer(service(77, InstanceState::Up)));
    sim.run(SECOND);
    assert_eq!(mesh(&sim, 0).instances.len(), 7);
    sim.kill(2);
    sim.run(SECOND / 2);
    sim.start(2, 50);
    sim.until(SECOND, "it is back", |sim| {
        let epochs = |index| {
            mesh(sim, index)
                .instances
                .iter()
                .any(|instance| instance.epoch == 50)
        };
        (0..6).all(epochs) && sim.is_whole()
    });
    let mesh = mesh(&sim, 0);
    let of_node: Vec<_> = mesh
        .instances
        .iter()
        .filter(|instance| instance.node.id == 1_002)
        .collect();
    assert_eq!(of_node.len(), 1);
    assert_eq!(
        (&*of_node[0].record.instance, of_node[0].epoch),
        ("web-2", 50)
    );
}

#[test]
fn a_node_that_lost_its_clock_rises_above_its_old_self() {
    let mut sim = Sim::settled(10, 4);
    sim.kill(2);
    sim.run(SECOND * 6);
    sim.start(2, 0);
    sim.until(SECOND * 5, "it is back", Sim::is_whole);
    let mesh = mesh(&sim, 0);
    let instance = mesh
        .instances
        .iter()
        .find(|instance| instance.node.id == 1_002);
    assert!(instance.is_some_and(|instance| instance.epoch > 1));
}

#[test]
fn the_records_of_a_dead_node_are_masked_and_not_lost() {
    let mut sim = Sim::settled(11, 3);
    sim.kill(1);
    sim.until(SECOND * 6, "the crash is known", |sim| {
        sim.all_see(1, NodeState::Down)
    });
    let mesh = mesh(&sim, 0);
    let instance = mesh
        .instances
        .iter()
        .find(|instance| instance.node.id == 1_001)
        .expect("kept");
    assert_eq!(instance.node.state, NodeState::Down);
}

#[test]
fn a_partition_heals_in_time() {
    for (count, cut_for, seeds) in [(2, 10, 5), (3, 20, 5), (6, 20, 5), (64, 60, 1)] {
        let times = (0..seeds).map(|seed| {
            let mut sim = Sim::settled(seed, count);
            sim.network.cut = |a, b| a % 2 != b % 2;
            sim.run(SECOND * cut_for);
            if count >= 6 {
                assert_eq!(sim.view(1, 0), Some(NodeState::Down));
            }
            sim.change(0, Change::Offer(service(0, InstanceState::Draining)));
            sim.run(SECOND);
            sim.network.cut = |_, _| false;
            let took = sim.until(SECOND * 30, "all are whole again", Sim::is_whole);
            assert!(sim.is_known(0, InstanceState::Draining));
            took
        });
        let (median, max) = spread(times.collect());
        println!(
            "{count} nodes cut in half for {cut_for} s: whole after median {median:?}, max {max:?}"
        );
        assert!(max <= SECOND * 12);
    }
}

#[test]
fn another_cluster_is_refused_with_a_clear_word() {
    let mut sim = Sim::settled(12, 2);
    sim.start(2, 1);
    sim.nodes[2]
        .machine
        .as_mut()
        .expect("lives")
        .settings
        .cluster = "test".into();
    sim.with(2, |machine, now| machine.join(address(1), now));
    sim.run(SECOND * 2);
    let refused = |notice: &Notice| matches!(notice, Notice::OtherCluster { cluster, .. } if &**cluster == "prod");
    assert!(sim.nodes[2].notices.iter().any(refused));
}

#[test]
fn a_replayed_hello_of_a_stream_changes_nothing() {
    let mut sim = Sim::settled(16, 2);
    sim.start(2, 1);
    let nowhere = ([192, 0, 2, 1], 7946).into();
    sim.with(2, |machine, now| machine.join(nowhere, now));
    let (_, hello) = sim.nodes[2].dialled.pop().expect("it called");
    sim.with(0, |machine, now| {
        let hash = machine.hash();
        machine.on_call(&hello, now).expect("answered");
        assert_eq!(machine.hash(), hash);
    });
}

#[test]
fn a_node_that_calls_itself_notices() {
    let mut sim = Sim::settled(16, 2);
    let other_name = ([192, 0, 2, 1], 7946).into();
    sim.with(0, |machine, now| machine.join(other_name, now));
    let (call, hello) = sim.nodes[0].dialled.pop().expect("it called");
    sim.with(0, |machine, now| {
        machine.on_call(&hello, now).expect("answered");
        let welcome = std::iter::from_fn(|| machine.poll()).find_map(|effect| match effect {
            Effect::Frame { payload, .. } => Some(payload),
            _ => None,
        });
        machine.on_stream_message(call, &welcome.expect("said"), now);
        assert!(machine.is_self(other_name));
    });
    assert!(sim.is_whole());
}

#[test]
fn an_idle_mesh_is_quiet() {
    let mut sim = Sim::settled(13, 64);
    sim.run(SECOND * 10);
    let before: usize = sim.nodes.iter().map(|node| node.bytes_sent).sum();
    sim.run(SECOND * 30);
    let after: usize = sim.nodes.iter().map(|node| node.bytes_sent).sum();
    let each = (after - before) / 64 / 30;
    println!("64 idle nodes: {each} B/s each in datagrams");
    assert!(each <= 600);
    assert_eq!(sim.wronged(), 0);
}

#[test]
fn garbage_changes_nothing() {
    use rand::{Rng, SeedableRng};
    let mut sim = Sim::settled(14, 3);
    let mut rng = rand::rngs::StdRng::seed_from_u64(14);
    let hash = sim.nodes[0].machine.as_ref().expect("lives").hash();
    for length in 0..1_149 {
        let mut bytes = vec![0; length];
        rng.fill_bytes(&mut bytes);
        if let Some(kind) = bytes.first_mut() {
            *kind %= 32;
        }
        sim.with(0, |machine, now| machine.on_datagram(&bytes, 4_242, now));
        sim.with(0, |machine, now| machine.on_call(&bytes, now));
    }
    let machine = sim.nodes[0].machine.as_ref().expect("lives");
    assert_eq!(machine.hash(), hash);
    assert!(machine.counts.malformed > 500);
    assert!(sim.is_whole());
}

#[test]
fn whoever_knows_something_else_for_long_is_told_by_name() {
    let mut sim = Sim::settled(19, 6);
    let behind = |sim: &Sim| {
        let machine = sim.nodes[0].machine.as_ref().expect("lives");
        let behind = machine.behind(16, sim.now).into_iter();
        behind.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(behind(&sim), Vec::<String>::new());
    // The news is lost on its way, and nothing can repair that.
    sim.network.streamless = true;
    sim.network.cut = |_, _| true;
    sim.change(5, Change::Offer(service(5, InstanceState::Draining)));
    sim.run(SECOND);
    sim.network.cut = |_, _| false;
    let told = |sim: &Sim| behind(sim) == ["node-5"];
    sim.until(SECOND * 10, "node 5 is told", told);
    sim.network.streamless = false;
    sim.until(SECOND * 10, "nobody is told any more", |sim| {
        behind(sim).is_empty()
    });
}

#[test]
fn many_questions_in_one_datagram_are_answered_once() {
    use mesh_proto::{codec::put_item, message::Item};
    let mut sim = Sim::settled(16, 3);
    let mut payload = Vec::new();
    for _ in 0..100 {
        put_item(&mut payload, &Item::Ask).expect("an item");
    }
    let machine = sim.nodes[0].machine.as_mut().expect("lives");
    machine.on_datagram(&payload, 1_001, sim.now);
    let sent = std::iter::from_fn(|| machine.poll())
        .filter(|effect| matches!(effect, Effect::Send { .. }));
    assert_eq!(sent.count(), 1);
}

#[test]
fn failing_news_goes_through_a_flood() {
    let mut sim = Sim::settled(15, 16);
    for index in 100..1_000 {
        sim.change(1, Change::Offer(service(index, InstanceState::Up)));
    }
    sim.run(ms(200));
    let mut failing = service(2, InstanceState::Up);
    failing.health = Health::Failing;
    sim.change(2, Change::Offer(failing));
    let took = sim.until(SECOND, "failing is known", |sim| {
        sim.alive().all(|(_, machine)| {
            let mesh = machine.mesh();
            mesh.instances
                .iter()
                .any(|instance| instance.record.health == Health::Failing)
        })
    });
    println!("failing news through a flood of 900 records: {took:?}");
    sim.until(SECOND * 10, "the flood is through", Sim::is_whole);
}
