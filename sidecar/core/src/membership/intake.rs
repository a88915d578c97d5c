//! What comes in by datagram, and every record however it came: what of it is believed, and what it is to us.
//!
//! Not here: streams (`exchange.rs`), and what SWIM makes of a packet (`swim.rs`).

use mesh_proto::{
    codec::{CodecError, decode_head, items},
    member::Member,
    message::Item,
    record::{Head, NODE_SLOT},
};

use super::{Effect, Membership, packet::Packet, peers::Peer, telling::Words};
use crate::{catalogue::Applied, moment::Moment};

/// Questions about suspects answered for one datagram; whoever asks asks about one.
const QUESTIONS_MAX: usize = 4;

/// A bump is the clock of its node at a start, in Unix milliseconds. One further ahead of ours than this, a hundred
/// years, is believed by nobody: whoever holds the key could otherwise use up all bumps of a node, and lock it out. It
/// is so wide because our own clock may stand at 1970.
const BUMP_AHEAD_MAX_MS: u64 = 100 * 365 * 24 * 3_600 * 1_000;

impl Membership {
    /// Takes in the items of a datagram; its seal says that `sender` sent it.
    pub fn on_datagram(&mut self, payload: &[u8], sender: u64, now: Moment) {
        if sender == self.settings.me.id {
            return;
        }
        let news_before = self.counts.news;
        let mut is_heard = false;
        let mut is_question = false;
        let mut questions = 0;
        for item in items(payload) {
            if item.is_ok() && !std::mem::replace(&mut is_heard, true) {
                self.hear(sender, now);
                self.settle_doubts(sender);
            }
            match item {
                Ok(Item::Hash(hash)) => self.compare(sender, hash, now),
                Ok(Item::Foca(packet)) if self.leaving.is_none() => self.on_packet(packet, now),
                Ok(Item::Record(bytes)) => self.take_in(bytes, true, now),
                Ok(Item::Standing(standing)) if standing.member == self.me() => {
                    self.refute(standing, now);
                }
                Ok(Item::Standing(standing)) if standing.state != foca::State::Suspect => {}
                Ok(Item::Standing(standing)) if is_question => {
                    questions += 1;
                    if questions <= QUESTIONS_MAX {
                        self.on_question(standing, sender, now);
                    }
                }
                Ok(Item::Standing(standing)) => self.on_agreement(&standing, sender, now),
                // Once is enough: one datagram shall not make us send many.
                Ok(Item::Ask) if std::mem::replace(&mut is_question, true) => {}
                Ok(Item::Ask) => {
                    if let Some(member) = self.peers.get(sender).and_then(|peer| peer.member) {
                        self.send(&member, Words::none());
                    }
                }
                // Words of streams.
                Ok(_) => {}
                Err(_) => self.counts.malformed += 1,
            }
        }
        self.refresh(now);
        if self.counts.news > news_before {
            self.tell_soon(now);
        }
    }

    fn on_packet(&mut self, bytes: &[u8], now: Moment) {
        let Ok(mut packet) = Packet::read(bytes) else {
            self.counts.malformed += 1;
            return;
        };
        let (src, incarnation) = (packet.header.src, packet.header.src_incarnation);
        let source = foca::Member::new(src, incarnation, foca::State::Alive);
        let learns_source = self.peers.learns_from(&source);
        let known = self.peers.get(src.id);
        let (is_stranger, known) = (known.is_none(), known.and_then(Peer::as_known));
        if !self.is_credible(&src, now) || (is_stranger && !learns_source) {
            return;
        }
        let me = self.settings.me.id;
        let told = packet.updates.len();
        let mut updates = std::mem::take(&mut packet.updates);
        updates.retain(|update| {
            update.id().id == me
                || (self.peers.learns_from(update) && self.is_credible(update.id(), now))
        });
        self.touched.extend(learns_source.then_some(src.id));
        self.touched
            .extend(updates.iter().map(|update| update.id().id));
        packet.updates = updates;
        if let Some(known) = known {
            self.swim.invite(known);
        }
        let rewritten = (packet.updates.len() < told).then(|| packet.write());
        let bytes = rewritten.as_deref().unwrap_or(bytes);
        if self.swim.on_packet(&packet.header, bytes, now).is_err() {
            self.counts.malformed += 1;
        }
        match packet.header.message {
            foca::Message::Ack(_) => {
                // A late one too: the way is open.
                self.hear_answer(&src);
                self.be_heard(now);
            }
            foca::Message::ForwardedAck { .. } => self.be_heard(now),
            _ => {}
        }
        if let Some((member, took)) = self.swim.take_round_trip() {
            let owner = self.catalogue.owner(member.id);
            if let Some(node) = owner.and_then(|owner| owner.node.as_ref()) {
                self.distances.measure(&node.zone, took);
            }
        }
        self.settle(now);
    }

    /// The last bump that lies in a believable future: nothing of a later one is to be taken from anybody.
    pub fn bump_max(&self, now: Moment) -> u64 {
        let age = u64::try_from(now.since(self.started).as_millis()).unwrap_or(u64::MAX);
        let ahead = self.settings.me.bump.saturating_add(age);
        ahead.saturating_add(BUMP_AHEAD_MAX_MS)
    }

    pub(super) fn believes(&self, bump: u64, now: Moment) -> bool {
        bump <= self.bump_max(now)
    }

    pub(super) fn is_credible(&mut self, member: &Member, now: Moment) -> bool {
        let is_credible = self.believes(member.bump, now);
        self.counts.absurd += u64::from(!is_credible);
        is_credible
    }

    /// Merges a record that somebody told.
    pub(super) fn take_in(&mut self, bytes: &[u8], spread: bool, now: Moment) {
        match self.merge(bytes, now) {
            Ok(Applied::News(news)) => {
                self.counts.news += 1;
                self.changed = true;
                let owner = news.head.owner;
                if news.head.slot == NODE_SLOT || self.peers.get(owner).is_none() {
                    self.touched.push(owner);
                }
                if spread {
                    self.rumours.push(&news.head, bytes.into(), news.urgent);
                }
            }
            Ok(Applied::Stale) => {}
            Ok(Applied::Full) => self.counts.refused += 1,
            Err(_) => self.counts.malformed += 1,
        }
    }

    fn merge(&mut self, bytes: &[u8], now: Moment) -> Result<Applied, CodecError> {
        let head = decode_head(bytes)?;
        if !self.believes(head.epoch, now) {
            self.counts.absurd += 1;
            return Ok(Applied::Stale);
        }
        if head.owner == self.settings.me.id {
            self.defend(&head);
            return Ok(Applied::Stale);
        }
        if self.catalogue.is_stale(&head, bytes) {
            return Ok(Applied::Stale);
        }
        self.catalogue.apply(bytes)
    }

    /// Only we write our records. One that we did not write is of a later start whose memory we lost: rise above it.
    fn defend(&mut self, head: &Head) {
        if self.offers.is_beyond(head) {
            self.offers.rise_above(head.epoch);
            self.effects
                .push_back(Effect::Bump(self.offers.epoch.max(self.me().bump)));
        }
    }
}
