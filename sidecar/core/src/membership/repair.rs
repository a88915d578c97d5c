//! When an exchange is begun: on a difference that lasts, now and then without one, and with those who are down.
//!
//! Not here: the exchange itself (`exchange.rs`).

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use mesh_proto::member::Member;
use rand::seq::IteratorRandom;

use super::{
    Membership,
    exchange::Reason,
    swim::{FANOUT, FORGET_AFTER},
    telling::Words,
};
use crate::moment::Moment;

/// A difference that lasts so long is not on its way to be healed by rumours.
pub(super) const DIFFERENCE_TIME: Duration = Duration::from_secs(1);

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
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        if hash == ours {
            self.peers.set_differs(id, None);
            return;
        }
        let since = self.peers.differs(id).unwrap_or(now);
        let is_free = now >= self.repair_at
            && (self.peers.exchanged(id)).is_none_or(|at| now.since(at) >= EXCHANGE_GAP);
        let (is_active, member) = (peer.is_active(), peer.member);
        self.peers.set_differs(id, Some(since));
        let Some(member) = member.filter(|_| is_active && is_free) else {
            return;
        };
        // Whoever is near repairs first; what is left after that takes the long way.
        let patience = if self.is_near(&member) {
            DIFFERENCE_TIME
        } else {
            DIFFERENCE_TIME * 2
        };
        if now.since(since) >= patience {
            self.peers.set_differs(id, None);
            // While nodes come and go all the time, everybody differs from everybody, and rumours are cheaper.
            self.repair_at = now + EXCHANGE_GAP;
            self.dial_exchange(Reason::Repair, member.address, Some(member), now);
        }
    }

    /// Asks peers whose hash differed a second ago for their hash now, near ones first.
    pub(super) fn look_after_differences(&mut self, now: Moment) {
        // Nothing would come of an answer yet.
        if now < self.repair_at {
            return;
        }
        let is_due = |id| {
            let since = self.peers.differs(id);
            since.is_some_and(|since| now.since(since) >= DIFFERENCE_TIME)
                && !self.peers.is_asked(id)
        };
        let mut questions: Vec<Member> = (self.peers.differing())
            .filter(|(member, peer)| peer.is_active() && is_due(member.id))
            .map(|(member, _)| member)
            .collect();
        questions.sort_by_key(|member| !self.is_near(member));
        for to in questions.into_iter().take(FANOUT) {
            self.peers.set_asked(to.id);
            self.send(&to, Words::question());
        }
    }

    fn is_in_trouble(&self, now: Moment) -> bool {
        let mut down = self.peers.down();
        !self.has_company() || down.any(|(_, peer)| peer.lasts(now) < TROUBLE_TIME)
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
            if let Some(member) = self.draw_near() {
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
            let down: Vec<Member> = (self.peers.down())
                .filter(|(_, peer)| peer.lasts(now) < FORGET_AFTER)
                .map(|(member, _)| member)
                .collect();
            if down.is_empty() {
                return;
            }
            let active = self.peers.active().map(|(member, _)| member.address);
            let taken: BTreeSet<SocketAddr> = active.collect();
            let down = (down.into_iter()).filter(|member| !taken.contains(&member.address));
            for member in down.sample(&mut self.rng, 2) {
                self.dial_exchange(Reason::Retry, member.address, Some(member), now);
            }
        }
    }
}
