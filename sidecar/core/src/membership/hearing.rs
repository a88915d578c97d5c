//! Whether we hear anybody: a member that hears nothing must not judge others.
//!
//! Not here: how judgement is withheld (`swim.rs`).

use mesh_proto::member::Member;

use super::{
    Effect, Membership, Notice,
    peers::{Evidence, Peer},
    swim::{FANOUT, Trust},
};
use crate::moment::Moment;

impl Membership {
    pub(super) fn hear(&mut self, now: Moment) {
        let was_deaf = self.is_deaf(now);
        self.heard = now;
        if was_deaf {
            self.swim.hear_again(now);
            self.loss_told = false;
            self.peers.forget_evidence();
        }
        self.set_isolated(false);
    }

    /// Nothing came in for three probe periods although somebody is there.
    pub(super) fn is_deaf(&self, now: Moment) -> bool {
        self.swim.active() > 0 && now.since(self.heard) >= self.settings.pace.deaf_after()
    }

    /// Whether suspicions may start and end here.
    pub(super) fn trust(&self, now: Moment) -> Trust {
        if !self.is_deaf(now) {
            return Trust::Judge;
        }
        // Hosts that refuse connections prove that our network is well and their sidecars are gone. Of mere silence a
        // single peer can be the cause, several at once hardly, unless another one refuses.
        let waited = now.since(self.heard) >= self.settings.pace.calm;
        let is_only_one = self.peers.active().count() == 1;
        let evidence = |(member, _): (Member, &Peer)| self.peers.evidence(member.id);
        let is_any_refused =
            (self.peers.active()).any(|peer| evidence(peer) == Some(Evidence::Refused));
        let is_gone = |evidence| match evidence {
            Some(Evidence::Refused) => true,
            Some(Evidence::Silent) => waited && (is_only_one || is_any_refused),
            Some(Evidence::Answered) | None => false,
        };
        if self.peers.active().all(|peer| is_gone(evidence(peer))) {
            Trust::Judge
        } else {
            Trust::Withhold
        }
    }

    pub(super) fn check_hearing(&mut self, now: Moment) {
        if !self.is_deaf(now) {
            return;
        }
        if now.since(self.heard_on_stream) >= self.settings.pace.deaf_after() {
            self.set_isolated(true);
        }
        if now >= self.evidence_at {
            self.evidence_at = now + self.settings.pace.period;
            for member in self.peers.some_active(FANOUT, &mut self.rng) {
                self.dial_probe(member, now);
            }
        }
    }

    pub(super) fn set_isolated(&mut self, isolated: bool) {
        if self.isolated != isolated {
            self.isolated = isolated;
            self.changed = true;
            self.effects
                .push_back(Effect::Notice(Notice::Isolated(isolated)));
        }
    }
}
