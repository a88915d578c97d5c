//! Nothing at all, crashes, changes, and networks that lose, cut and keep waiting.
//!
//! Not here: nodes that come back (`restarts.rs`).

use std::time::Duration;

use mesh_proto::record::InstanceState;

use super::{SECOND, Story, spread};
use crate::{
    membership::Change,
    mesh::NodeState,
    sim::gossip::{Sim, id, service},
};

impl Story<'_> {
    pub(super) fn idle(&mut self, span: Duration) {
        let before = self.sim.bytes_sent();
        self.pass(span);
        let bytes = (self.sim.bytes_sent() - before) as f64;
        let each = bytes / self.count() as f64 / span.as_secs_f64();
        self.figure("bytes sent per node and second", each, 600.0);
    }

    /// Kills some nodes, each at a moment of its own.
    pub(super) fn crash(&mut self) {
        let count = self.count();
        let (times, most) = match count {
            0..200 => (12, (3.5, 5.5)),
            200..2_000 => (12, (4.0, 6.0)),
            2_000..7_000 => (6, (4.5, 7.0)),
            _ => (4, (5.0, 8.0)),
        };
        let mut took = Vec::new();
        for victim in self.victims(times) {
            let pause = Duration::from_millis(self.sim.draw(1_000) as u64);
            self.pass(pause);
            self.sim.network.refuses = victim % 2 == 0;
            took.push(self.kill_and_wait(victim));
        }
        let (median, worst) = spread(&mut took);
        self.figure("crash → last survivor, median s", median, most.0);
        self.figure("crash → last survivor, worst s", worst, most.1);
    }

    pub(super) fn kill_and_wait(&mut self, victim: usize) -> f64 {
        let died = self.sim.now;
        let dead = self.sim.nodes[victim].member.id;
        self.sim.downs.remove(&dead);
        self.sim.kill(victim);
        let survivors = self.sim.alive().count();
        self.wait(SECOND * 30, |sim| {
            sim.downs
                .get(&dead)
                .is_some_and(|told| told.len() >= survivors)
        });
        let told = self.sim.downs.get(&dead);
        let last = told
            .filter(|told| told.len() >= survivors)
            .and_then(|told| told.last());
        last.map_or(f64::INFINITY, |last| last.since(died).as_secs_f64())
    }

    /// Some distinct nodes, the first left out.
    pub(super) fn victims(&mut self, times: usize) -> Vec<usize> {
        let count = self.count();
        let mut victims = Vec::new();
        while victims.len() < times.min(count / 3) {
            let drawn = 1 + self.sim.draw(count - 1);
            if !victims.contains(&drawn) {
                victims.push(drawn);
            }
        }
        victims
    }

    pub(super) fn change(&mut self) {
        let most = match self.count() {
            0..200 => 0.6,
            200..2_000 => 0.8,
            2_000..7_000 => 1.2,
            _ => 1.5,
        };
        let (mut nearly, mut all) = (Vec::new(), Vec::new());
        for writer in self.victims(if self.count() < 2_000 { 12 } else { 5 }) {
            let pause = Duration::from_millis(500 + self.sim.draw(1_000) as u64);
            self.pass(pause);
            let took = self.change_and_wait(writer);
            nearly.push(took.0);
            all.push(took.1);
        }
        let ((median, worst), (_, last)) = (spread(&mut nearly), spread(&mut all));
        self.figure("change → 99.9 % of nodes, median s", median, most);
        self.plain("change → 99.9 % of nodes, worst s", worst);
        self.figure("change → all nodes, worst s", last, 5.0);
    }

    pub(super) fn change_and_wait(&mut self, writer: usize) -> (f64, f64) {
        let owner = self.sim.nodes[writer].member.id;
        let change = Change::Offer(service(writer, InstanceState::Draining));
        let said = |sim: &Sim| sim.nodes[writer].machine.as_ref()?.version_of(owner);
        let old = said(&self.sim);
        self.sim.change(writer, change);
        // In the midst of much news it is held back until the next tick.
        let began = self.wait(SECOND, |sim| said(sim) > old);
        let Some(new) = said(&self.sim).filter(|new| Some(*new) > old) else {
            return (f64::INFINITY, f64::INFINITY);
        };
        let knowing = |sim: &Sim| {
            let knows = sim
                .alive()
                .filter(|(_, machine)| machine.version_of(owner) >= Some(new));
            knows.count()
        };
        let most = (self.count() * 999)
            .div_ceil(1_000)
            .min(self.sim.alive().count());
        let nearly = self.wait(SECOND * 10, |sim| knowing(sim) >= most);
        let living = self.sim.alive().count();
        let all = self.wait(SECOND * 10, |sim| knowing(sim) >= living);
        (began + nearly, began + nearly + all)
    }

    pub(super) fn zones(&mut self) {
        self.sim.network.across = Duration::from_millis(40);
        self.idle(SECOND * 30);
        let changed = self.change_and_wait(1);
        self.figure("change → all nodes, s", changed.1, 5.0);
        let took = self.kill_and_wait(2);
        self.figure(
            "crash → last survivor, s",
            took,
            if self.count() < 200 { 5.5 } else { 6.0 },
        );
    }

    pub(super) fn noise(&mut self) {
        self.sim.network.loss = 0.05;
        self.sim.network.twice = 0.05;
        self.sim.network.jitter = Duration::from_millis(50);
        self.pass(SECOND * 60);
        let changed = self.change_and_wait(1);
        self.figure("change → all nodes, s", changed.1, 5.0);
    }

    pub(super) fn deaf(&mut self) {
        // Others may take it for dead; it must take nobody for dead.
        self.sim.nodes[1].deaf = true;
        self.pass(SECOND * 60);
        let wronged = self.taken_by(1);
        self.figure(
            "healthy nodes the deaf one took for dead",
            wronged as f64,
            0.0,
        );
        self.sim.nodes[1].deaf_to_streams = true;
        self.sim.nodes[1].excused = true;
        self.pass(SECOND * 60);
        let wronged = self.taken_by(1);
        self.figure("the same, deaf to streams too", wronged as f64, 0.0);
        self.sim.nodes[1].deaf = false;
        self.sim.nodes[1].deaf_to_streams = false;
        let whole = self.wait(SECOND * 30, Sim::is_whole);
        self.figure("hearing again → whole, s", whole, 12.0);
    }

    pub(super) fn mute(&mut self) {
        // Others may take it for dead; it must take nobody for dead.
        self.sim.nodes[1].excused = true;
        self.sim.network.cut = |from, _| from == 1;
        self.pass(SECOND * 60);
        let wronged = self.taken_by(1);
        self.figure(
            "healthy nodes the mute one took for dead",
            wronged as f64,
            0.0,
        );
        self.sim.network.cut = |_, _| false;
        let whole = self.wait(SECOND * 30, Sim::is_whole);
        self.figure("heard again → whole, s", whole, 12.0);
    }

    pub(super) fn zone_lost(&mut self) {
        self.sim.network.across = Duration::from_millis(40);
        self.idle(SECOND * 12);
        self.sim.network.refuses = false;
        let died = self.sim.now;
        let ends: Vec<usize> = (0..self.count()).filter(|index| index % 3 == 1).collect();
        for index in &ends {
            self.sim.kill(*index);
        }
        self.wait(SECOND * 60, Sim::is_whole);
        let survivors = self.sim.alive().count();
        let known_by_all = |index: &usize| {
            let told = self.sim.downs.get(&self.sim.nodes[*index].member.id)?;
            let last = told.last().filter(|_| told.len() >= survivors)?;
            Some(last.since(died).as_secs_f64())
        };
        let mut took: Vec<f64> = (ends.iter())
            .map(|index| known_by_all(index).unwrap_or(f64::INFINITY))
            .collect();
        let (median, last) = spread(&mut took);
        self.plain("one of its members → last survivor, median s", median);
        let most = if self.count() < 200 { 7.0 } else { 12.0 };
        self.figure("all of its members → last survivor, s", last, most);
    }

    pub(super) fn taken_by(&self, index: usize) -> usize {
        let told = self.sim.nodes[index].told.iter();
        told.filter(|(_, _, state)| *state == NodeState::Down)
            .count()
    }

    pub(super) fn stall(&mut self) {
        let sleepers: Vec<usize> = (1..5).filter(|index| *index < self.count()).collect();
        for index in &sleepers {
            // They may be taken for dead while they sleep; those they take for dead are counted below.
            self.sim.nodes[*index].excused = true;
        }
        for _ in 0..3 {
            for index in &sleepers {
                self.sim.nodes[*index].stalled_until = self.sim.now + SECOND * 16;
            }
            self.pass(SECOND * 32);
        }
        let is_healthy = |told: u64| !sleepers.iter().any(|index| id(*index) == told);
        let told = sleepers
            .iter()
            .flat_map(|index| &self.sim.nodes[*index].told);
        let wronged =
            told.filter(|(_, about, state)| *state == NodeState::Down && is_healthy(*about));
        let wronged = wronged.count();
        self.figure(
            "healthy nodes taken for dead by sleepers",
            wronged as f64,
            0.0,
        );
    }

    pub(super) fn partition(&mut self) {
        for node in &mut self.sim.nodes {
            node.excused = true;
        }
        self.sim.network.cut = |from, to| from % 2 != to % 2;
        self.pass(SECOND * 60);
        let parted = self.sim.view(1, 0) == Some(NodeState::Down);
        self.figure(
            "halves that see each other while cut",
            f64::from(!parted),
            0.0,
        );
        self.sim.network.cut = |_, _| false;
        let whole = self.wait(SECOND * 90, Sim::is_whole);
        let most = if self.count() < 200 { 12.0 } else { 30.0 };
        self.figure("cut over → whole, s", whole, most);
    }
}
