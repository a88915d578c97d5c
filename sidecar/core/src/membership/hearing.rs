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

/// Between two questions to those heard, once nobody has answered for two probe periods or so: at least so long, and on slow
/// links so much of the patience with them that the answer to the first can come before the last is asked.
const GREET: Duration = Duration::from_millis(200);
const GREETINGS_PER_PATIENCE: u32 = GREETINGS_MAX - 1;

/// A probe takes two and a half times the patience with its target, and one more may pass until the answer to the next is
/// here: where even the nearest peer is far, silence for less means nothing.
const SILENCE_PATIENCES: f64 = 3.5;

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
        let silence = (self.settings.pace.period * 2).max(self.usual_silence());
        let is_silent = now.since(self.answered) >= silence;
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
        self.greet_at = now + GREET.max(self.patience(&member) / GREETINGS_PER_PATIENCE);
        for (to, packet) in self.swim.ping(member) {
            self.send(&to, Words::foca(&packet));
        }
        self.greetings = self.greetings.saturating_add(1);
        if self.greetings == GREETINGS_MAX {
            self.set_isolated(true);
            self.effects.push_back(Effect::Notice(Notice::Unheard));
        }
    }

    /// Nothing came in for three probe periods, or what far peers need, although somebody is there.
    pub(super) fn is_deaf(&self, now: Moment) -> bool {
        self.swim.active() > 0 && now.since(self.heard) >= self.deaf_after()
    }

    fn deaf_after(&self) -> Duration {
        self.settings.pace.deaf_after().max(self.usual_silence())
    }

    /// For so long nobody may have to say anything although all are well.
    fn usual_silence(&self) -> Duration {
        let patience = self.distances.patience_with_nearest(&self.settings.pace);
        patience.mul_f64(SILENCE_PATIENCES)
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
        if now.since(self.heard_on_stream) >= self.deaf_after() {
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
