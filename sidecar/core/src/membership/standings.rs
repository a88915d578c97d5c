//! How each member is seen: what is told of that in an exchange, and what is made of what another tells.
//!
//! Not here: when that is told (`exchange.rs`), and one suspicion alone in a datagram (`doubts.rs`, `telling.rs`).

use mesh_proto::message::Standing;

use super::{Membership, peers::MEMBERS_MAX};
use crate::moment::Moment;

impl Membership {
    pub(super) fn own_standing(&self) -> Standing {
        Standing {
            member: self.me(),
            incarnation: 0,
            state: foca::State::Alive,
            down_for_s: 0,
        }
    }

    /// Everybody and how we see them, ourselves included, those about to be forgotten left out.
    pub(super) fn standings(&self, now: Moment) -> impl Iterator<Item = Standing> + '_ {
        let told = self.peers.iter().filter(move |(_, peer)| peer.is_told(now));
        let others = told.filter_map(move |(_, peer)| {
            Some(Standing {
                member: peer.member?,
                incarnation: peer.incarnation,
                state: peer.standing,
                down_for_s: peer.down_for_s(now),
            })
        });
        others.chain([self.own_standing()])
    }

    /// Takes over how another sees the members. A remote Down about somebody we see alive is only a suspicion here,
    /// and one of ours.
    pub(super) fn take_standings(&mut self, standings: &[Standing], spread: bool, now: Moment) {
        let mut updates = Vec::with_capacity(standings.len());
        let mut strangers = Vec::new();
        let mut doubted = Vec::new();
        for standing in standings {
            // Asked anew each time: an earlier standing may have made us another.
            let me = self.me();
            let (mut state, mut incarnation) = (standing.state, standing.incarnation);
            if !self.believes(standing.member.bump, now) {
                continue;
            }
            let known = self.peers.get(standing.member.id);
            if standing.member.id == me.id {
                if standing.member.bump > me.bump {
                    self.swim
                        .become_again(standing.member.bump.saturating_add(1), now);
                    continue;
                }
                if standing.member.bump < me.bump {
                    continue;
                }
            } else if state == foca::State::Down
                && let Some(peer) = known.filter(|peer| peer.is_active())
            {
                state = foca::State::Suspect;
                if peer.member == Some(standing.member) {
                    // Down counts whatever the incarnation.
                    incarnation = incarnation.max(peer.incarnation);
                }
                doubted.push((standing.member, incarnation));
            }
            let update = foca::Member::new(standing.member, incarnation, state);
            if known.is_none() {
                strangers.push((standing.member.id, standing.down_for_s));
            }
            let has_room = self.peers.len() + strangers.len() <= MEMBERS_MAX;
            if standing.member.id == me.id || (has_room && self.peers.learns_from(&update)) {
                updates.push(update);
            }
        }
        self.swim.apply(updates, spread, now);
        for (member, incarnation) in doubted {
            self.swim.suspect_as_told(member, incarnation, now);
        }
        self.settle(now);
        // Whom we meet as dead was dead before: that is how all forget it at about the same time.
        for (id, down_for_s) in strangers {
            if let Some(peer) = self.peers.get_mut(id).filter(|peer| !peer.is_active()) {
                peer.before_s = down_for_s;
            }
        }
    }
}
