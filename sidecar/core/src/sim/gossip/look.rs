//! What an onlooker who sees all nodes at once finds of a simulated mesh.
//!
//! Not here: what must hold at every moment (`watch.rs`).

use crate::{
    membership::{Membership, member_hash},
    mesh::NodeState,
};

use super::Sim;

impl Sim {
    /// Those whose process runs, by index.
    pub fn alive(&self) -> impl Iterator<Item = (usize, &Membership)> {
        let all = self.nodes.iter().enumerate();
        all.filter_map(|(index, node)| Some((index, node.machine.as_ref()?)))
    }

    /// Every living node sees every living node alive and knows the same services.
    pub fn is_whole(&self) -> bool {
        let mut hashes = self.alive().map(|(_, machine)| machine.hash());
        let first = hashes.next();
        hashes.all(|hash| Some(hash) == first) && self.is_seen_as_it_is()
    }

    /// Every living node sees every living node alive, and nobody else.
    pub fn is_seen_as_it_is(&self) -> bool {
        let living = self.alive().map(|(_, machine)| member_hash(&machine.me()));
        let sum = living.fold(0, u64::wrapping_add);
        self.alive().all(|(_, machine)| machine.sees_only(sum))
    }

    /// How one node sees another.
    pub fn view(&self, of: usize, by: usize) -> Option<NodeState> {
        let machine = self.nodes[by].machine.as_ref()?;
        machine.state_of(self.nodes[of].member.id)
    }

    /// Whether every living node but itself sees a node so.
    pub fn all_see(&self, of: usize, state: NodeState) -> bool {
        let mut others = self.alive().filter(|(by, _)| *by != of);
        others.all(|(by, _)| self.view(of, by) == Some(state))
    }

    /// How often a node that lives now was declared down by another.
    pub fn wronged(&self) -> usize {
        let living: Vec<u64> = (self.alive())
            .map(|(index, _)| self.nodes[index].member.id)
            .collect();
        let told = self.nodes.iter().flat_map(|node| &node.told);
        told.filter(|(_, id, state)| *state == NodeState::Down && living.contains(id))
            .count()
    }

    /// Bytes of all datagrams sent.
    pub fn bytes_sent(&self) -> usize {
        self.nodes.iter().map(|node| node.bytes_sent).sum()
    }
}
/// Pairs of living nodes of which one does not see the other as alive, and members seen alive that are not there.
pub fn wrong_pairs(sim: &Sim) -> usize {
    let mut living: Vec<u64> = sim
        .alive()
        .map(|(index, _)| sim.nodes[index].member.id)
        .collect();
    living.sort_unstable();
    living.dedup();
    let wrong = sim.alive().map(|(index, machine)| {
        let me = sim.nodes[index].member.id;
        let (mut right, mut wrong) = (0, 0);
        for (member, state) in machine.peers() {
            let is_living = living.binary_search(&member.id).is_ok();
            match (is_living, state) {
                (true, NodeState::Alive) if member.id != me => right += 1,
                (false, NodeState::Alive | NodeState::Suspect) => wrong += 1,
                _ => {}
            }
        }
        wrong + (living.len() - 1).saturating_sub(right)
    });
    wrong.sum()
}
