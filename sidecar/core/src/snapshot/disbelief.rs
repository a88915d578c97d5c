//! When SWIM is not believed: it took away too many at once, or all, or somebody who answers all the same.
//!
//! Not here: everything else that decides who may be called (`builder.rs`).

use std::{collections::BTreeSet, time::Duration};

use crate::{
    endpoint::{Endpoint, Word},
    upstream::Why,
};

use super::builder::{Builder, Candidate};

/// Hosts that SWIM lost within this time were lost together: a suspicion of 2 s and its spread, twice over.
const VANISH_WINDOW: Duration = Duration::from_secs(5);

/// SWIM is not believed about more than this share of a service lost together.
const VANISH_SHARE: f64 = 0.4;

/// Whoever answered this caller so short a time ago is not dead: suspicion alone takes longer.
const ANSWERED_WITHIN: Duration = Duration::from_millis(1_500);

/// Once kept, it may be left alone for so long: should it die now, the next request finds out.
const ANSWERS_KEPT: Duration = Duration::from_secs(30);

/// Fewest hosts lost together that make SWIM the suspect; one host simply dies now and then.
const VANISH_NODES_MIN: usize = 2;

/// Whose answers speak against SWIM.
#[derive(Default)]
struct Proven {
    nodes: BTreeSet<u64>,
    zones: BTreeSet<Box<str>>,
}

impl Builder<'_> {
    /// Keeps those that SWIM took away if it took too many at once, or all, or if they or their neighbours answer us all
    /// the same. True if there are any.
    pub(super) fn disbelieve(
        &self,
        candidates: &mut [Candidate],
        callable: &BTreeSet<u64>,
    ) -> bool {
        let usable = candidates
            .iter()
            .filter(|c| c.standing.is_ok() && c.tier.is_some())
            .count();
        let too_many = self.vanished(candidates, callable, usable);
        let proven = self.proven(candidates, callable);
        let mut panic = false;
        for candidate in candidates.iter_mut() {
            let Endpoint { id, key, zone, .. } = &*candidate.endpoint;
            let down = candidate.standing == Err(Why::Down) && candidate.tier.is_some();
            let keep = down
                && (usable == 0
                    || too_many.contains(id)
                    || self.is_unblamed(candidate, callable)
                        && (proven.nodes.contains(&key.node)
                            || proven.zones.contains(zone) && self.is_lately_lost(candidate)));
            if keep {
                candidate.standing = Ok(Word::Vanished);
                panic = true;
            }
        }
        panic
    }

    /// Ids of those that could be called, or could until SWIM took their hosts away.
    pub(super) fn callable(&self) -> BTreeSet<u64> {
        let Some(previous) = self.previous else {
            return BTreeSet::new();
        };
        let members = previous.members().map(|m| m.endpoint.id);
        let lost = previous.out.iter();
        let lost = lost.filter(|out| out.was_callable || out.why == Why::NotInSubset);
        members.chain(lost.map(|out| out.endpoint.id)).collect()
    }

    /// Ids of those that SWIM was believed about until now.
    pub(super) fn believed_down(&self) -> BTreeSet<u64> {
        let out = self.previous.iter().flat_map(|previous| &previous.out);
        let down = out.filter(|out| out.why == Why::Down);
        down.map(|out| out.endpoint.id).collect()
    }

    /// Whether SWIM took its host away so short a time ago that it belongs to what goes on now, or is not believed.
    fn is_lately_lost(&self, candidate: &Candidate) -> bool {
        let since = candidate.down_since.map(|at| self.now.since(at));
        since.is_some_and(|since| since <= VANISH_WINDOW)
            || candidate.endpoint.word() == Word::Vanished
    }

    /// Those lost together, if they are so many that SWIM is the suspect. It loses host by host, over seconds, so those
    /// that are out already count as well.
    fn vanished(
        &self,
        candidates: &[Candidate],
        callable: &BTreeSet<u64>,
        usable: usize,
    ) -> BTreeSet<u64> {
        let lost = candidates.iter().filter(|c| {
            c.standing == Err(Why::Down)
                && c.tier.is_some()
                // What this host could not reach either is no mistake of SWIM's.
                && !c.endpoint.is_ejected()
                && callable.contains(&c.endpoint.id)
                && self.is_lately_lost(c)
        });
        let nodes: BTreeSet<u64> = lost.clone().map(|c| c.endpoint.key.node).collect();
        let ids: BTreeSet<u64> = lost.map(|c| c.endpoint.id).collect();
        let share = ids.len() as f64 / (ids.len() + usable).max(1) as f64;
        if nodes.len() >= VANISH_NODES_MIN && share > VANISH_SHARE {
            ids
        } else {
            BTreeSet::new()
        }
    }

    /// Nothing but SWIM speaks against it.
    fn is_unblamed(&self, candidate: &Candidate, callable: &BTreeSet<u64>) -> bool {
        callable.contains(&candidate.endpoint.id)
            && !candidate.endpoint.is_ejected()
            && candidate.endpoint.trial.bad_since().is_none()
    }

    /// Where gossip alone is cut off, answers say so: of the hosts they come from, and of the zones those stand in.
    /// Whoever was not asked for a moment, beside them, cannot have said it for itself.
    fn proven(&self, candidates: &[Candidate], callable: &BTreeSet<u64>) -> Proven {
        let mut proven = Proven::default();
        for candidate in candidates {
            let answered = candidate.endpoint.trial.well_at();
            let within = match candidate.endpoint.word() {
                Word::Vanished => ANSWERS_KEPT,
                Word::Sure | Word::Suspect => ANSWERED_WITHIN,
            };
            if candidate.standing == Err(Why::Down)
                && self.is_unblamed(candidate, callable)
                && answered.is_some_and(|at| self.now.since(at) <= within)
            {
                proven.nodes.insert(candidate.endpoint.key.node);
                proven.zones.insert(candidate.endpoint.zone.clone());
            }
        }
        proven
    }
}
