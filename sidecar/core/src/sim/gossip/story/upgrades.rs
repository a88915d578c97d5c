//! What is changed while the mesh runs: the version that nodes speak, and the key that they seal with.
//!
//! Not here: how the versions differ (`catalogue/dialect.rs`), and the seals (`lock.rs`).

use std::time::Duration;

use mesh_proto::{frame::KeyId, record::DemandRecord};

use super::{SECOND, Story};
use crate::{
    catalogue::{Content, Dialect},
    membership::{Change, Membership},
    mesh::NodeState,
    sim::gossip::{id, lock::Key},
};

/// A kind of record that no version knows yet.
const UNKNOWN_KIND: u8 = 200;

/// The key before the change, and the one after it.
const OLD_KEY: Key = [1; 32];
const NEW_KEY: Key = [2; 32];

/// Every node takes a step of the change within this time.
const STEP_TIME: Duration = Duration::from_secs(20);

/// The version that a node of an index speaks in a mixed mesh.
fn dialect(index: usize) -> Dialect {
    [Dialect::First, Dialect::Ours, Dialect::Later][index % 3]
}

impl Story<'_> {
    /// Two halves whose newer nodes reach each other through nodes of the first version alone: what these do not
    /// understand must pass through them untouched.
    pub(super) fn versions(&mut self) {
        for index in 0..self.count() {
            self.sim.speak(index, dialect(index));
        }
        self.pass(SECOND * 5);
        self.idle(SECOND * 30);
        self.sim.network.cut = |from, to| {
            let half = |index: usize| (index / 3) % 2;
            let is_first = |index| dialect(index) == Dialect::First;
            !is_first(from) && !is_first(to) && half(from) != half(to)
        };
        self.pass(SECOND * 10);
        let slots: Vec<(u64, u32)> = (0..self.count())
            .filter_map(|index| Some((id(index), self.say_what_is_new(index)?)))
            .collect();
        let told = self.wait(SECOND * 10, |sim| {
            let mut all = sim.alive();
            let mut hashes = sim.alive().map(|(_, machine)| machine.catalogue().hash());
            let first = hashes.next();
            hashes.all(|hash| Some(hash) == first)
                && all.all(|(_, machine)| {
                    let knows = |(owner, slot): &(u64, u32)| {
                        let owner = machine.catalogue().owner(*owner);
                        owner.is_some_and(|owner| owner.entries().any(|(at, _)| at == *slot))
                    };
                    slots.iter().all(knows)
                })
        });
        self.figure("new kinds said → all hold the same, s", told, 5.0);
        self.figure("records changed on their way", self.altered() as f64, 0.0);
        self.figure(
            "demands that a first node read",
            self.read_by_first() as f64,
            0.0,
        );
        let malformed = self.sum(|counts| counts.malformed);
        self.figure("datagrams and frames not understood", malformed as f64, 0.0);
        let changed = self.change_and_wait(1);
        self.figure("change → all nodes, s", changed.1, 5.0);
        let took = self.kill_and_wait(2);
        let most = if self.count() < 200 { 5.5 } else { 6.0 };
        self.figure("crash → last survivor, s", took, most);
        self.sim.network.cut = |_, _| false;
    }

    /// What only newer nodes say; yields its slot, where it is a record of its own.
    fn say_what_is_new(&mut self, index: usize) -> Option<u32> {
        let keys = Change::Keys([KeyId::of(&NEW_KEY)].into());
        let demand = Change::Demand(DemandRecord {
            service: "web".into(),
            per_second: 7,
        });
        match dialect(index) {
            Dialect::First => None,
            Dialect::Ours => {
                self.sim.change(index, keys);
                self.sim.change(index, demand);
                let machine = self.sim.nodes[index].machine.as_ref()?;
                let own = machine.catalogue().owner(id(index))?;
                let mut all = own.entries();
                let demand = all.find(|(_, entry)| matches!(entry.content, Content::Demand(_)));
                demand.map(|(slot, _)| slot)
            }
            Dialect::Later => {
                self.sim.change(index, keys);
                let said = |machine: &mut Membership, _| {
                    machine.say_unread(UNKNOWN_KIND, b"whatever it is")
                };
                self.sim.with(index, said).flatten()
            }
        }
    }

    /// Records that some node holds with other bytes than their owner.
    fn altered(&self) -> usize {
        let originals = self.sim.alive().filter_map(|(index, machine)| {
            let owner = self.sim.nodes[index].member.id;
            Some((owner, machine.catalogue().owner(owner)?))
        });
        let altered = originals.map(|(id, original)| {
            let copies =
                (self.sim.alive()).filter_map(|(_, machine)| machine.catalogue().owner(id));
            let differs = copies.map(|copy| {
                let pairs = original.entries().zip(copy.entries());
                let unlike = pairs.filter(|(a, b)| a.0 != b.0 || a.1.bytes != b.1.bytes);
                unlike.count() + original.entries().count().abs_diff(copy.entries().count())
            });
            differs.sum::<usize>()
        });
        altered.sum()
    }

    fn read_by_first(&self) -> usize {
        let first = (self.sim.alive()).filter(|(index, _)| dialect(*index) == Dialect::First);
        let held = first.flat_map(|(_, machine)| machine.catalogue().owners());
        let entries = held.flat_map(|(_, owner)| owner.entries());
        let read = entries.filter(|(_, entry)| matches!(entry.content, Content::Demand(_)));
        read.count()
    }

    /// Install, use, remove: each step reaches every node within [`STEP_TIME`], each at a moment of its own; the next
    /// begins when all have it. Everything is sealed and opened as in the sidecar, and nothing may be dropped.
    pub(super) fn keys(&mut self) {
        self.sim.lock_all(&[OLD_KEY]);
        // What was under way in clear is lost.
        self.pass(SECOND * 5);
        for node in &mut self.sim.nodes {
            node.lock.iter_mut().for_each(|lock| lock.rejected.clear());
        }
        self.turn_keys(&[&[OLD_KEY, NEW_KEY], &[NEW_KEY, OLD_KEY], &[NEW_KEY]]);
        self.pass(SECOND * 5);
        let rejected = self.rejected();
        self.figure(
            "datagrams and streams dropped meanwhile",
            rejected as f64,
            0.0,
        );
        let opened = |key: Key| {
            let locks = self.sim.nodes.iter().filter_map(|node| node.lock.as_ref());
            let opened = locks.map(|lock| lock.opened.get(&KeyId::of(&key)).copied());
            opened.map(Option::unwrap_or_default).sum::<u64>()
        };
        let (before, after) = (opened(OLD_KEY), opened(NEW_KEY));
        self.plain("datagrams opened with the old key", before as f64);
        self.plain("datagrams opened with the new key", after as f64);
        let changed = self.change_and_wait(1);
        self.figure("change → all nodes, s", changed.1, 5.0);
        self.join_with_each_key();
    }

    /// Hands out the keys of each step.
    pub(in crate::sim::gossip) fn turn_keys(&mut self, steps: &[&[Key]]) {
        for step in steps {
            let mut order: Vec<usize> = (0..self.count()).collect();
            let pause = STEP_TIME / u32::try_from(order.len()).unwrap_or(u32::MAX);
            while !order.is_empty() {
                let drawn = self.sim.draw(order.len());
                let index = order.swap_remove(drawn);
                let lock = self.sim.nodes[index].lock.as_mut();
                lock.into_iter().for_each(|lock| lock.replace(step));
                self.sim.run(pause);
            }
            self.watcher.look(&self.sim);
            (self.progress)(self.sim.now);
        }
    }

    /// What could not be opened, of all kinds and on all nodes.
    pub(in crate::sim::gossip) fn rejected(&self) -> u64 {
        let locks = self.sim.nodes.iter().filter_map(|node| node.lock.as_ref());
        locks.flat_map(|lock| lock.rejected.values()).sum()
    }

    /// A newcomer that holds the new key is let in, one that holds the old one is not even answered.
    fn join_with_each_key(&mut self) {
        let (late, early) = (self.count(), self.count() + 1);
        self.sim.set_keys(&[NEW_KEY]);
        self.sim.start(late, 1);
        let known = self.wait(SECOND * 10, |sim| sim.all_see(late, NodeState::Alive));
        self.figure("newcomer with the new key → known to all, s", known, 5.0);
        self.sim.set_keys(&[OLD_KEY]);
        self.sim.start(early, 1);
        self.sim.nodes[early].excused = true;
        self.pass(SECOND * 5);
        let machine = self.sim.nodes[early].machine.as_ref();
        let seen = machine.map_or(0, |machine| machine.peers().count());
        self.figure("nodes that one with the old key sees", seen as f64, 0.0);
        self.sim.kill(early);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::gossip::{Sim, Watcher};

    #[test]
    fn a_key_that_is_used_before_all_have_it_is_noticed() {
        for (steps, is_sound) in [
            ([&[NEW_KEY, OLD_KEY] as &[Key], &[NEW_KEY]], false),
            ([&[OLD_KEY, NEW_KEY], &[NEW_KEY, OLD_KEY]], true),
        ] {
            let mut story = Story {
                sim: Sim::handed(1, 12, 1, true),
                watcher: Watcher::default(),
                figures: Vec::new(),
                progress: &mut |_| {},
            };
            story.sim.lock_all(&[OLD_KEY]);
            story.turn_keys(&steps);
            assert_eq!(story.rejected() == 0, is_sound);
        }
    }
}
