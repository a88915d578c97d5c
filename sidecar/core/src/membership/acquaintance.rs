//! For simulated meshes: knowledge handed over without a word, so that they need not find together, and other versions.
//!
//! Not here: how nodes learn from each other (`exchange.rs`). No sidecar calls this.

use std::{collections::VecDeque, sync::Arc};

use mesh_proto::{codec::encode_record, message::Standing, record::Body};

use super::{Membership, rumours::Rumours};
use crate::{catalogue::Dialect, moment::Moment};

impl Membership {
    /// Takes over members and records as after a whole exchange.
    pub fn acquaint(&mut self, standings: &[Standing], records: &[Arc<[u8]>], now: Moment) {
        self.take_standings(standings, false, now);
        for record in records {
            self.take_in(record, false, now);
        }
        self.refresh(now);
        self.peers.shrink();
        self.settle_down(now);
    }

    /// Takes over everything that another knows, which was told all that we could say. The tables are shared with it
    /// until one of the two learns something: that is how thousands of nodes of thousands of members fit into one
    /// process.
    pub fn acquaint_like(&mut self, other: &Membership, now: Moment) {
        let me = self.settings.me.id;
        self.peers = other.peers.of_another(other.me(), me, now);
        self.swim.set_size(self.peers.living() + 1);
        let members = self.peers.iter().filter_map(|(_, peer)| peer.as_known());
        self.swim.apply(members.collect(), false, now);
        self.swim.take_outside();
        self.catalogue = other.catalogue.clone();
        self.heard = self.heard.max(now);
        self.swim.take_touched(&mut self.touched);
        self.swim.take();
        self.settle_down(now);
    }

    /// Everybody was told what we have to say, and there is nothing left to do.
    fn settle_down(&mut self, now: Moment) {
        self.rumours = Rumours::default();
        self.effects = VecDeque::new();
        self.touched = Vec::new();
        self.joined = true;
        self.exchange_at = self.exchange_at.max(now + self.backstop(now));
    }

    /// Lets foca look at so few, as it would in a mesh of very many.
    pub fn narrow_view(&mut self, most: usize) {
        self.swim.narrow_view(most);
    }

    /// Speaks another version from now on, and says all that it said anew.
    pub fn speak(&mut self, dialect: Dialect, now: Moment) {
        if dialect != self.catalogue.dialect() {
            self.catalogue.speak(dialect);
            self.offers.say_again();
            self.say(now);
        }
    }

    /// Says something of a kind that nobody here knows, as a later version may. Yields its slot.
    pub fn say_unread(&mut self, kind: u8, body: &[u8]) -> Option<u32> {
        let head = self.offers.claim().ok()?;
        // The kind is the first byte of a record, and a tombstone has no body.
        let mut bytes = encode_record(&head, &Body::Tombstone).ok()?;
        *bytes.first_mut()? = kind;
        bytes.extend_from_slice(body);
        self.catalogue.apply(&bytes).ok()?;
        self.rumours.push(&head, bytes.into(), false);
        Some(head.slot)
    }

    /// Whether all members but this one, and nobody else, are seen alive; `living` is the sum of their [`member_hash`].
    ///
    /// [`member_hash`]: super::member_hash
    pub fn sees_only(&self, living: u64) -> bool {
        self.members_hash() == living && self.peers.suspects().next().is_none()
    }

    /// Forgets what this node said of itself and was not told yet: a member without records.
    pub fn hush(&mut self) {
        self.offers.flush();
        self.catalogue.forget(self.settings.me.id);
        self.rumours = Rumours::default();
    }

    /// What this node says of itself.
    pub fn own_records(&self) -> Vec<Arc<[u8]>> {
        self.records([self.settings.me.id].into_iter())
    }
}
