//! Second opinions on a suspect, and how much our own ones are worth (Lifeguard: Dadgar, Phillips, Currey, 2018).
//!
//! Not here: for how long a suspicion is held (`swim/suspicion.rs`). Lifeguard waits until others happen to suspect the same
//! member; we ask a few of them at once, so that an honest suspicion is as quick as before and a lonely one is held:
//! 1. whoever holds a suspicion asks some peers: a datagram with the suspect's standing and `Ask`;
//! 2. they ask the suspect for a sign of life, twice, and tell it that it is suspected;
//! 3. if none comes they say so: a datagram with the suspect's standing alone.

use std::time::Duration;

use mesh_proto::{member::Member, message::Standing};
use rand::seq::IteratorRandom;

use super::{
    Membership,
    swim::{FANOUT, Trust},
    telling::Words,
};
use crate::{mesh::NodeState, moment::Moment};

/// Between two rounds of questions about one suspect.
pub(super) const CONSULT: Duration = Duration::from_millis(500);

/// Suspects asked about in one round.
const CONSULTED_MAX: usize = 8;

/// Questions of others under way.
pub(super) const DOUBTS_MAX: usize = 64;

/// Another's question that we look into.
#[derive(Debug)]
pub(super) struct Doubt {
    asker: Member,
    about: Standing,
    /// When the suspect is asked again.
    again_at: Option<Moment>,
    /// When its silence is told.
    tell_at: Moment,
}

impl Membership {
    /// Asks others about those whom we suspect by our own probes.
    pub(super) fn consult(&mut self, now: Moment) {
        if now < self.consult_at {
            return;
        }
        self.consult_at = now + CONSULT;
        let wanted = self.peers.well().min(FANOUT);
        let open = self.swim.unconfirmed(wanted);
        // Drawn, so that where there are more nobody waits for others all the time.
        for about in open.sample(&mut self.rng, CONSULTED_MAX) {
            for helper in self.helpers(&about.member) {
                self.send(&helper, Words::doubt(about));
            }
        }
    }

    /// How many others could agree with a suspicion of ours.
    ///
    /// Where all are suspected though somebody is heard, it is likely we whom nobody hears: at least one of them would
    /// have to agree, which lets every suspicion be held for its longest time. Of a single peer nobody can tell us more,
    /// and whoever is deaf judges by other evidence (`hearing.rs`).
    pub(super) fn witnesses(&self, now: Moment) -> usize {
        let is_one_wanted = self.swim.active() > 1 && !self.is_deaf(now);
        self.peers.well().max(usize::from(is_one_wanted))
    }

    /// Somebody asks what we think of a suspect.
    pub(super) fn on_question(&mut self, about: Standing, sender: u64, now: Moment) {
        let asker = self.peers.get(sender).filter(|peer| peer.is_active());
        let Some(asker) = asker.and_then(|peer| peer.member) else {
            return;
        };
        let suspect = about.member;
        let is_known = |doubt: &Doubt| doubt.asker == asker && doubt.about.member == suspect;
        let known = self
            .peers
            .get(suspect.id)
            .filter(|peer| peer.member == Some(suspect));
        if known.is_some_and(|peer| !peer.is_active()) {
            // It is down here already: the asker missed that.
            self.send(&asker, Words::agreement(about));
            return;
        }
        if known.is_none() || self.doubts.len() >= DOUBTS_MAX || self.doubts.iter().any(is_known) {
            return;
        }
        let patience = self.patience(&suspect);
        self.doubts.push(Doubt {
            asker,
            about,
            again_at: Some(now + patience),
            tell_at: now + patience * 2,
        });
        self.send(&suspect, Words::doubt(about));
    }

    /// Somebody agrees that a member is silent.
    pub(super) fn on_agreement(&mut self, about: &Standing, sender: u64, now: Moment) {
        // It was asked by us.
        self.be_heard(now);
        let is_well = |state| state == NodeState::Alive;
        if self
            .peers
            .get(sender)
            .is_some_and(|peer| is_well(peer.state))
        {
            self.swim.confirm(about, sender);
            self.counts.confirmations = self.swim.confirmations;
        }
    }

    /// A sign of life answers every question about its sender.
    pub(super) fn settle_doubts(&mut self, sender: u64) {
        if !self.doubts.is_empty() {
            self.doubts.retain(|doubt| doubt.about.member.id != sender);
        }
    }

    /// Asks silent suspects again, and tells the askers once they were silent for long enough.
    pub(super) fn look_after_doubts(&mut self, now: Moment) {
        if self.doubts.is_empty() {
            return;
        }
        // Whoever may be deaf itself, or stood still while the suspect answered, has no opinion.
        let has_opinion = self.trust(now) == Trust::Judge && self.swim.is_awake(now);
        for mut doubt in std::mem::take(&mut self.doubts) {
            if now >= doubt.tell_at {
                if has_opinion {
                    self.send(&doubt.asker, Words::agreement(doubt.about));
                }
                continue;
            }
            if doubt.again_at.is_some_and(|at| now >= at) {
                doubt.again_at = None;
                self.send(&doubt.about.member, Words::doubt(doubt.about));
            }
            self.doubts.push(doubt);
        }
    }

    /// How long an answer of a member may take.
    pub(super) fn patience(&self, member: &Member) -> Duration {
        let zone = self.record_of(member.id).map(|node| &*node.zone);
        self.distances.patience(zone, &self.settings.pace)
    }
}
