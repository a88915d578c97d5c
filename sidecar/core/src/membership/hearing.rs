//! Whether we hear anybody, and anybody hears us: a member that is deaf or mute must not judge others.
//!
//! Not here: how judgement is withheld (`swim/suspicion.rs`).
//!
//! Who is deaf hears nothing. Who is mute hears others, who therefore live, and yet none of them answers: whoever was
//! heard last is asked again and again, and an answer of any kind ends it.

use std::time::Duration;

use mesh_proto::member::Member;

use super::{
    Effect, Membership, Notice,
    peers::{Evidence, Peer},
    swim::{FANOUT, Trust},
    telling::Words,
};
use crate::moment::Moment;

/// Between two questions to those heard, once nobody has answered for two probe periods.
const GREET: Duration = Duration::from_millis(200);

/// So many of them unanswered mean that nobody hears us: sooner than a suspicion can end.
const GREETINGS_MAX: u32 = 5;

impl Membership {
    pub(super) fn hear(&mut self, sender: u64, now: Moment) {
        self.last_heard = Some(sender);
        let was_deaf = self.is_deaf(now);
        self.heard = now;
        if was_deaf {
            self.swim.hear_again(now);
            self.loss_told = false;
            self.peers.forget_evidence();
        }
        if !self.is_mute() {
            self.set_isolated(false);
        }
    }

    /// Somebody answered what we said: it was heard.
    pub(super) fn be_heard(&mut self, now: Moment) {
        let was_mute = self.is_mute();
        (self.answered, self.greetings) = (now, 0);
        if was_mute {
            // Whoever seemed silent was never asked.
            self.swim.hear_again(now);
            self.set_isolated(false);
        }
    }

    /// Others are heard, and none of them answers.
    pub(super) fn is_mute(&self) -> bool {
        self.greetings >= GREETINGS_MAX
    }

    /// Asks whoever was heard last whether it hears us, where nobody has answered for a while.
    fn check_voice(&mut self, now: Moment) {
        let is_silent = now.since(self.answered) >= self.settings.pace.period * 2;
        if !is_silent || now < self.greet_at || self.leaving.is_some() {
            return;
        }
        let peer = self.last_heard.and_then(|id| self.peers.get(id));
        let Some(member) = peer
            .filter(|peer| peer.is_active())
            .and_then(|peer| peer.member)
        else {
            return;
        };
        self.greet_at = now + GREET;
        for (to, packet) in self.swim.ping(member) {
            self.send(&to, Words::foca(&packet));
        }
        self.greetings = self.greetings.saturating_add(1);
        if self.greetings == GREETINGS_MAX {
            self.set_isolated(true);
            self.effects.push_back(Effect::Notice(Notice::Unheard));
        }
    }

    /// Nothing came in for three probe periods although somebody is there.
    pub(super) fn is_deaf(&self, now: Moment) -> bool {
        self.swim.active() > 0 && now.since(self.heard) >= self.settings.pace.deaf_after()
    }

    /// Whether suspicions may start and end here.
    pub(super) fn trust(&self, now: Moment) -> Trust {
        if !self.is_deaf(now) {
            return if self.is_mute() {
                Trust::Withhold
            } else {
                Trust::Judge
            };
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
            self.check_voice(now);
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
