//! When an exchange is begun: on a difference that lasts, now and then without one, and with those who are down.
//!
//! Not here: the exchange itself (`exchange.rs`).

use std::time::Duration;

use rand::seq::IteratorRandom;

use super::{
    Membership,
    exchange::Reason,
    peers::Peer,
    swim::{FANOUT, FORGET_AFTER},
};
use crate::{mesh::NodeState, moment::Moment};

/// A difference that lasts so long is not on its way to be healed by rumours.
const DIFFERENCE_TIME: Duration = Duration::from_secs(1);

/// Between two exchanges that we begin with the same peer, or over a difference with anyone.
const EXCHANGE_GAP: Duration = Duration::from_secs(2);

/// An exchange without any sign of a difference.
const BACKSTOP: Duration = Duration::from_secs(60);

/// The same while somebody is down or we are alone.
pub(super) const BACKSTOP_IN_TROUBLE: Duration = Duration::from_secs(10);

/// Whoever is down is called again this often ...
pub(super) const RETRY_DOWN: Duration = Duration::from_secs(2);

/// ... and, after this time, as often as [`BACKSTOP_IN_TROUBLE`].
const TROUBLE_TIME: Duration = Duration::from_secs(600);

impl Membership {
    /// Notes a peer's catalogue hash; one that differs for a second is asked again, and then called.
    pub(super) fn compare(&mut self, id: u64, hash: u64, now: Moment) {
        let ours = self.hash();
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        if hash == ours {
            peer.differs = None;
            peer.asked = false;
            return;
        }
        let since = *peer.differs.get_or_insert(now);
        let is_lasting = now.since(since) >= DIFFERENCE_TIME;
        let is_free = peer
            .exchanged
            .is_none_or(|at| now.since(at) >= EXCHANGE_GAP);
        if let (true, true, true, Some(member)) =
            (is_lasting, is_free, peer.is_active(), peer.member)
        {
            peer.differs = None;
            peer.asked = false;
            self.dial_exchange(Reason::Repair, member.address, Some(member), now);
        }
    }

    /// Asks peers whose hash differed a second ago for their hash now.
    pub(super) fn look_after_differences(&mut self, now: Moment) {
        let mut questions = Vec::new();
        for (_, peer) in self.peers.iter_mut() {
            let is_lasting = peer
                .differs
                .is_some_and(|since| now.since(since) >= DIFFERENCE_TIME);
            if let (true, false, true, Some(member)) =
                (is_lasting, peer.asked, peer.is_active(), peer.member)
            {
                peer.asked = true;
                questions.push(member);
            }
            if !is_lasting {
                peer.asked = false;
            }
        }
        for to in questions.into_iter().take(FANOUT) {
            self.send(&to, None, true);
        }
    }

    fn is_in_trouble(&self, now: Moment) -> bool {
        let is_fresh =
            |peer: &Peer| peer.state == NodeState::Down && peer.lasts(now) < TROUBLE_TIME;
        !self.has_company() || self.peers.iter().any(|(_, peer)| is_fresh(peer))
    }

    pub(super) fn backstop(&mut self, now: Moment) -> Duration {
        let span = if self.is_in_trouble(now) {
            BACKSTOP_IN_TROUBLE
        } else {
            BACKSTOP
        };
        span + self.jitter(span)
    }

    /// The exchange without a reason, and another try at those who are down: this is what heals a partition.
    pub(super) fn look_after_exchanges(&mut self, now: Moment) {
        if now >= self.exchange_at {
            self.exchange_at = now + self.backstop(now);
            if let [member] = self.peers.some_active(1, &mut self.rng)[..] {
                self.dial_exchange(Reason::Repair, member.address, Some(member), now);
            }
        }
        if now >= self.retry_at {
            let pause = if self.is_in_trouble(now) {
                RETRY_DOWN
            } else {
                BACKSTOP_IN_TROUBLE
            };
            self.retry_at = now + pause + self.jitter(pause);
            let taken: Vec<_> = self
                .peers
                .active()
                .map(|(member, _)| member.address)
                .collect();
            let down = (self.peers.iter())
                .filter(|(_, peer)| peer.state == NodeState::Down && peer.lasts(now) < FORGET_AFTER)
                .filter_map(|(_, peer)| peer.member)
                .filter(|member| !taken.contains(&member.address));
            for member in down.sample(&mut self.rng, 2) {
                self.dial_exchange(Reason::Retry, member.address, Some(member), now);
            }
        }
    }
}
