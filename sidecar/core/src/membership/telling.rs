//! What is told in datagrams: our own records, rumours, and suspicions to those suspected.
//!
//! Not here: what foca tells of members (`swim.rs`), and exchanges (`exchange.rs`).

use std::time::Duration;

use mesh_proto::{
    codec::{ITEM_HEAD_BYTES, put_item},
    frame::PAYLOAD_BYTES_MAX,
    member::Member,
    message::{Item, Standing},
};
use rand::seq::IteratorRandom;

use super::{
    Effect, Membership,
    swim::{FANOUT, transmissions},
};
use crate::{catalogue::is_urgent, mesh::NodeState, moment::Moment};

/// Between two words to those suspected.
const NUDGE: Duration = Duration::from_millis(500);

/// Bytes of a member's standing as an item, at the most.
const STANDING_BYTES_MAX: usize = 64;

/// What a datagram is sent for; rumours fill the rest.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Words<'a> {
    packet: Option<&'a [u8]>,
    ask: bool,
    about: Option<Standing>,
}

impl<'a> Words<'a> {
    /// Only what is always said.
    pub fn none() -> Words<'a> {
        Words::default()
    }

    /// What foca says.
    pub fn foca(packet: &'a [u8]) -> Words<'a> {
        Words {
            packet: Some(packet),
            ..Words::default()
        }
    }

    /// Asks for the receiver's hash.
    pub fn question() -> Words<'a> {
        Words {
            ask: true,
            ..Words::default()
        }
    }

    /// Asks what the receiver thinks of a suspect; to the suspect itself, for a sign of life.
    pub fn doubt(about: Standing) -> Words<'a> {
        Words {
            ask: true,
            about: Some(about),
            ..Words::default()
        }
    }

    /// Says that we too find a member silent.
    pub fn agreement(about: Standing) -> Words<'a> {
        Words {
            about: Some(about),
            ..Words::default()
        }
    }
}

impl Membership {
    /// Writes what is unsaid of ourselves into the catalogue and among the rumours.
    pub(super) fn say(&mut self, now: Moment) {
        if !self.offers.is_unsaid() {
            return;
        }
        for (head, body) in self.offers.flush() {
            let urgent = is_urgent(&body);
            // Offers are refused before they come here if they are too long.
            if let Ok(bytes) = self.catalogue.write(head, body) {
                self.rumours.push(&head, bytes, urgent);
            }
        }
        self.refresh(now);
        self.changed = true;
    }

    /// Tells a few peers the news.
    pub(super) fn tell(&mut self, now: Moment) {
        if self.rumours.is_empty() {
            return;
        }
        self.told_at = now;
        for member in self.peers.some_active(FANOUT, &mut self.rng) {
            if !self.rumours.is_empty() {
                self.send(&member, Words::none());
            }
        }
    }

    /// Tells suspects that they are suspected: foca tells it a few times to anybody, and a suspect that missed it would
    /// stay one for ever.
    pub(super) fn nudge_suspects(&mut self, now: Moment) {
        if now < self.nudge_at {
            return;
        }
        self.nudge_at = now + NUDGE;
        let suspects = self.peers.suspects().map(|(member, _)| member);
        for member in suspects.sample(&mut self.rng, FANOUT) {
            self.send(&member, Words::none());
        }
    }

    /// Somebody suspects us: say that we live.
    pub(super) fn refute(&mut self, standing: Standing, now: Moment) {
        if standing.member == self.me()
            && standing.state == foca::State::Suspect
            && self.leaving.is_none()
        {
            let suspected =
                foca::Member::new(standing.member, standing.incarnation, standing.state);
            // Whoever suspects us may be right that we are slow; said often, it is still one suspicion.
            if self.refuted.is_none_or(|last| last < standing.incarnation) {
                self.refuted = Some(standing.incarnation);
                self.swim.worsen();
            }
            self.swim.apply(vec![suspected], true, now);
            self.settle(now);
        }
    }

    /// One datagram: our hash, what foca says, and as many rumours as fit. A suspect hears of it whenever it hears of us.
    pub(super) fn send(&mut self, to: &Member, words: Words<'_>) {
        let mut payload = Vec::with_capacity(PAYLOAD_BYTES_MAX);
        let mut said = vec![Item::Hash(self.hash())];
        said.extend(words.packet.map(Item::Foca));
        said.extend(words.ask.then_some(Item::Ask));
        let peer = self
            .peers
            .get(to.id)
            .filter(|peer| peer.state == NodeState::Suspect);
        let suspicion = peer.map(|peer| Standing {
            member: *to,
            incarnation: peer.incarnation,
            state: foca::State::Suspect,
            down_for_s: 0,
        });
        let suspicion = words.about.or(suspicion);
        let times = u32::from(transmissions(self.swim.size()));
        let used: usize = said
            .iter()
            .map(|item| ITEM_HEAD_BYTES + item_bytes(item))
            .sum();
        let used = used
            + if suspicion.is_some() {
                STANDING_BYTES_MAX
            } else {
                0
            };
        said.extend(suspicion.map(Item::Standing));
        let records = self.rumours.take(PAYLOAD_BYTES_MAX - used, times);
        said.extend(records.iter().map(|bytes| Item::Record(bytes)));
        let fits = said
            .iter()
            .try_for_each(|item| put_item(&mut payload, item));
        debug_assert!(fits.is_ok() && payload.len() <= PAYLOAD_BYTES_MAX);
        self.effects.push_back(Effect::Send {
            to: to.address,
            payload,
        });
    }
}

/// Bytes of an item's body, for those that go into datagrams.
fn item_bytes(item: &Item<'_>) -> usize {
    match item {
        Item::Foca(bytes) | Item::Record(bytes) => bytes.len(),
        Item::Hash(_) => 8,
        _ => 0,
    }
}
