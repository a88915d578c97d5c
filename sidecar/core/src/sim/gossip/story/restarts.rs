//! Nodes that come back: with their disk and without it, elsewhere, one by one, all at once, twice, from another time.
//!
//! Not here: nodes that stay away (`failures.rs`).

use std::time::Duration;

use super::{SECOND, Story};
use crate::{
    mesh::NodeState,
    sim::gossip::{Sim, address, id, wrong_pairs},
};

impl Story<'_> {
    pub(super) fn restart(&mut self, with_disk: bool) {
        for (round, victim) in self.victims(6).into_iter().enumerate() {
            self.sim.nodes[victim].excused = true;
            self.sim.kill(victim);
            // At once, within a suspicion, and after it.
            self.pass(Duration::from_millis([50, 1_000, 8_000][round % 3]));
            if with_disk {
                self.sim.start(victim, 1_000 + round as u64);
            } else {
                let fresh = 1_000_000 + victim as u64;
                self.sim.start_as(victim, fresh, 1_000);
            }
            let back = self.wait(SECOND * 20, |sim| {
                let id = sim.nodes[victim].member.id;
                let mut others = sim.alive().filter(|(by, _)| *by != victim);
                others.all(|(_, machine)| machine.state_of(id) == Some(NodeState::Alive))
            });
            self.figure("back → known to all, s", back, 5.0);
        }
    }

    /// Pairs swap their addresses: neither may be taken for the other, or stay lost.
    pub(super) fn moved(&mut self) {
        let victims = self.victims(6);
        for (round, pair) in victims.chunks_exact(2).enumerate() {
            let [one, other] = [pair[0], pair[1]];
            for index in [one, other] {
                self.sim.nodes[index].excused = true;
                self.sim.kill(index);
            }
            // At once, within a suspicion, and after it.
            self.pass(Duration::from_millis([50, 1_000, 8_000][round % 3]));
            self.sim.start_at(one, other, 1_000 + round as u64);
            self.sim.start_at(other, one, 1_000 + round as u64);
            let back = self.wait(SECOND * 20, |sim| {
                sim.all_see(one, NodeState::Alive) && sim.all_see(other, NodeState::Alive)
            });
            self.figure("back elsewhere → both known to all, s", back, 5.0);
        }
    }

    pub(super) fn rolling(&mut self) {
        let began = self.sim.now;
        for index in 0..self.count() {
            self.sim.nodes[index].excused = true;
            self.sim.kill(index);
            let pause = Duration::from_millis(100);
            self.sim.run(pause);
            self.sim.start(index, 1_000);
            if index % 10 == 9 {
                self.watcher.look(&self.sim);
                (self.progress)(self.sim.now);
            }
        }
        let span = self.sim.now.since(began).as_secs_f64();
        self.plain("all restarted in, s", span);
        self.after_restarts();
    }

    pub(super) fn mass(&mut self) {
        for index in 0..self.count() {
            self.sim.nodes[index].excused = true;
            self.sim.kill(index);
        }
        self.sim.run(SECOND);
        // Machines come back one after the other, within two seconds.
        let pause = Duration::from_micros(2_000_000 / self.count() as u64);
        for index in 0..self.count() {
            self.sim.start(index, 1_000);
            self.sim.run(pause);
        }
        self.after_restarts();
    }

    pub(super) fn after_restarts(&mut self) {
        for node in &mut self.sim.nodes {
            node.excused = false;
        }
        let whole = self.wait(SECOND * 30, Sim::is_seen_as_it_is);
        self.plain("last start → all see all, s", whole);
        let left = 30.0 - whole.min(30.0);
        self.pass(Duration::from_secs_f64(left));
        let wrong = wrong_pairs(&self.sim);
        self.figure("members seen wrongly 30 s after", wrong as f64, 0.0);
    }

    pub(super) fn cloned(&mut self) {
        let count = self.count();
        self.sim.nodes[1].excused = true;
        self.sim.place(count, id(1), 2, "a");
        self.sim.nodes[count].excused = true;
        self.sim
            .with(count, |machine, now| machine.join(address(0), now));
        self.pass(SECOND * 30);
        let renewals = self.sum(|counts| counts.renewals);
        self.figure("quarrels of the two in 30 s", renewals as f64, 600.0);
        self.sim.kill(count);
        let survivor = self.wait(SECOND * 30, |sim| sim.all_see(1, NodeState::Alive));
        self.figure(
            "one is stopped → the other is seen by all, s",
            survivor,
            20.0,
        );
    }

    pub(super) fn clock(&mut self) {
        let years = 365 * 24 * 3_600 * 1_000;
        let victim = 1;
        self.sim.nodes[victim].excused = true;
        for bump in [10 * years, 1_000] {
            self.sim.kill(victim);
            self.pass(SECOND);
            self.sim.start(victim, bump);
            let back = self.wait(SECOND * 20, |sim| sim.all_see(1, NodeState::Alive));
            self.figure("back → known to all, s", back, 10.0);
        }
        // A node that claims the end of time is believed by nobody, and harms nobody.
        let count = self.count();
        self.sim.place(count, id(count), u64::MAX - 1, "a");
        self.sim.nodes[count].excused = true;
        self.sim
            .with(count, |machine, now| machine.join(address(0), now));
        self.pass(SECOND * 10);
        let believed = self.sim.alive().filter(|(by, _)| *by != count);
        let believed = believed.filter(|(_, machine)| machine.state_of(id(count)).is_some());
        let believed = believed.count();
        self.figure(
            "nodes that believe in the end of time",
            believed as f64,
            0.0,
        );
        self.sim.kill(count);
    }
}
