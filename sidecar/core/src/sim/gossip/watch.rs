//! What must hold in every story, at every moment: versions never fall, nothing taken back returns, queues stay bounded.
//!
//! Not here: who was wronged (`mod.rs` notes it as it happens), and what a story is to come to (`scenario.rs`).

use std::collections::BTreeMap;

use super::Sim;
use crate::{catalogue::Content, membership::Membership, moment::Moment};

/// Nodes looked at, evenly spread: enough to catch what is wrong anywhere.
const WATCHED: usize = 24;

/// Faults told in words; more are only counted.
const FAULTS_MAX: usize = 10;

type Seen = BTreeMap<(u64, u32), (u64, u64, bool)>;

/// Remembers what nodes knew, to see that they know no less later.
#[derive(Debug, Default)]
pub struct Watcher {
    /// Of each node, by index: its own start, and the epoch, version and kind of every slot.
    seen: BTreeMap<usize, (Moment, u64, Seen)>,
    /// What was found wrong.
    pub faults: Vec<String>,
}

impl Watcher {
    /// Looks at some nodes.
    pub fn look(&mut self, sim: &Sim) {
        let stride = sim.nodes.len().div_ceil(WATCHED).max(1);
        for index in (0..sim.nodes.len()).step_by(stride) {
            let node = &sim.nodes[index];
            let Some(machine) = &node.machine else {
                self.seen.remove(&index);
                continue;
            };
            self.look_at(index, node.member.id, machine, sim.now);
        }
    }

    fn look_at(&mut self, index: usize, id: u64, machine: &Membership, now: Moment) {
        if let Some(queue) = machine.overfull() {
            self.fault(format!(
                "{now:?}: node {index} let {queue} grow over its bound"
            ));
        }
        let started = machine.started();
        let held = self.seen.remove(&index);
        let mut seen = match held {
            Some((at, by, seen)) if (at, by) == (started, id) => seen,
            _ => Seen::new(),
        };
        for (owner, part) in machine.catalogue().owners() {
            for (slot, entry) in part.entries() {
                let is_service = matches!(entry.content, Content::Service(_));
                let new = (part.epoch, entry.version, is_service);
                let Some(old) = seen.insert((owner, slot), new) else {
                    continue;
                };
                if (new.0, new.1) < (old.0, old.1) {
                    self.fault(format!(
                        "{now:?}: node {index} fell back from {old:?} to {new:?} of owner {owner}, slot {slot}"
                    ));
                }
                if (new.0, new.1) == (old.0, old.1) && new.2 != old.2 {
                    self.fault(format!(
                        "{now:?}: node {index} revived slot {slot} of owner {owner}"
                    ));
                }
            }
        }
        self.seen.insert(index, (started, id, seen));
    }

    fn fault(&mut self, words: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(words);
        }
    }
}
