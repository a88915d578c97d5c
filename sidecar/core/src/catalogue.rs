//! The merge of all records: any order, any repetition, same result.
//!
//! Not here: who is alive (`membership`), and what a host makes of the records (`snapshot.rs`).
//!
//! An owner's part is ordered by epoch first; within an epoch each slot keeps the record with the higher version, and
//! records at or below the owner's floor are void. What cannot be understood is kept and handed on like the rest.

mod dialect;

use std::{collections::BTreeMap, sync::Arc};

use mesh_proto::{
    codec::{CodecError, decode_record, encode_record},
    message::{BUCKETS, OwnerDigest},
    record::{
        Body, DemandRecord, Head, Health, InstanceState, NODE_SLOT, NodeRecord, ServiceRecord,
    },
};

pub use self::dialect::Dialect;
use crate::table::Table;

/// Owners remembered, dead ones included.
pub const OWNERS_MAX: usize = 16_384;

/// Slots of one owner.
pub const SLOTS_MAX: usize = 4_096;

/// Records of all owners together: about 150 MiB at the very worst.
pub const RECORDS_MAX: usize = 200_000;

/// Everything every node offers, as far as it is known here.
///
/// Copies share what they have in common.
#[derive(Clone, Debug)]
pub struct Catalogue {
    owners: Table<Arc<Owner>>,
    buckets: [u64; BUCKETS],
    records: usize,
    dialect: Dialect,
}

/// One node's part.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The start of the owner that wrote it.
    pub epoch: u64,
    /// What it says of itself, if that came through.
    pub node: Option<Arc<NodeRecord>>,
    floor: u64,
    entries: BTreeMap<u32, Entry>,
    hash: u64,
    /// Dead for so long that it is about to be forgotten: not told to others any more.
    dormant: bool,
}

/// One record.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The owner's count of changes when it wrote this.
    pub version: u64,
    /// As it travels.
    pub bytes: Arc<[u8]>,
    /// As it is understood.
    pub content: Content,
}

/// A record's body, shared.
#[derive(Clone, PartialEq, Debug)]
pub enum Content {
    /// About the owner itself.
    Node(Arc<NodeRecord>),
    /// An instance.
    Service(Arc<ServiceRecord>),
    /// What its applications ask of a service.
    Demand(Arc<DemandRecord>),
    /// Taken back.
    Tombstone,
    /// Of a newer version.
    Unknown,
}

/// What became of a record that was handed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied {
    /// It is news, and was kept.
    News(News),
    /// As new or newer is known already.
    Stale,
    /// A table is full.
    Full,
}

/// A record that was kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct News {
    /// Where it stands.
    pub head: Head,
    /// Somebody is calling it in vain until it is known: failing, draining, gone.
    pub urgent: bool,
}

impl Default for Catalogue {
    fn default() -> Catalogue {
        Catalogue {
            owners: Table::default(),
            buckets: [0; BUCKETS],
            records: 0,
            dialect: Dialect::default(),
        }
    }
}

impl Catalogue {
    /// Merges one encoded record.
    ///
    /// # Errors
    /// `Malformed` if its head cannot be read.
    pub fn apply(&mut self, bytes: &[u8]) -> Result<Applied, CodecError> {
        let (head, body) = decode_record(bytes)?;
        Ok(self.merge(head, self.dialect.read(body), bytes))
    }

    /// Writes a record of our own and yields its bytes.
    ///
    /// # Errors
    /// `TooLong` if it is over the bound of a record.
    pub fn write(&mut self, head: Head, body: Body) -> Result<Arc<[u8]>, CodecError> {
        let mut bytes = encode_record(&head, &body)?;
        self.dialect.write(&body, &mut bytes);
        self.merge(head, self.dialect.read(body), &bytes);
        Ok(bytes.into())
    }

    /// The version of the records that is written and read.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Writes and reads another one from now on.
    pub fn speak(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// Whether a record is known already, or something newer: then merging it changes nothing.
    pub fn is_stale(&self, head: &Head, bytes: &[u8]) -> bool {
        self.owners
            .get(head.owner)
            .is_some_and(|owner| owner.is_stale(head, bytes))
    }

    fn merge(&mut self, head: Head, body: Body, bytes: &[u8]) -> Applied {
        let held = self.owners.get(head.owner);
        if held.is_none() && self.owners.len() >= OWNERS_MAX {
            return Applied::Full;
        }
        if held.is_some_and(|held| held.is_stale(&head, bytes)) {
            return Applied::Stale;
        }
        if held.is_none() {
            let new = Arc::new(Owner::new(head.epoch));
            self.owners.insert(head.owner, new);
        }
        let Some(owner) = self.owners.get_mut(head.owner) else {
            return Applied::Stale;
        };
        let owner = Arc::make_mut(owner);
        let hash_before = owner.told_hash();
        if head.epoch > owner.epoch {
            self.records -= owner.entries.len();
            let dormant = owner.dormant;
            *owner = Owner::new(head.epoch);
            owner.dormant = dormant;
        }
        let records_before = owner.entries.len();
        let room = self.records < RECORDS_MAX;
        let applied = owner.merge(head, body, bytes, room);
        self.records = self.records - records_before + owner.entries.len();
        let change = owner.told_hash().wrapping_sub(hash_before);
        let bucket = &mut self.buckets[bucket(head.owner)];
        *bucket = bucket.wrapping_add(change);
        applied
    }

    /// One hash of everything told to others; equal where the catalogues are.
    pub fn hash(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, bucket| mix(sum ^ bucket))
    }

    /// The hash of each group of owners.
    pub fn buckets(&self) -> [u64; BUCKETS] {
        self.buckets
    }

    /// The owners told to others in the buckets of a bit set.
    pub fn digests(&self, set: u64) -> impl Iterator<Item = OwnerDigest> + '_ {
        let told = self
            .owners
            .iter()
            .filter(move |(id, owner)| !owner.dormant && set & (1 << bucket(*id)) != 0);
        told.map(|(id, owner)| OwnerDigest {
            id,
            epoch: owner.epoch,
            hash: owner.hash,
        })
    }

    /// One owner's digest, if it is told to others.
    pub fn digest(&self, id: u64) -> Option<OwnerDigest> {
        let owner = self.owners.get(id).filter(|owner| !owner.dormant)?;
        Some(OwnerDigest {
            id,
            epoch: owner.epoch,
            hash: owner.hash,
        })
    }

    /// All owners, by id.
    pub fn owners(&self) -> impl Iterator<Item = (u64, &Owner)> {
        self.owners.iter().map(|(id, owner)| (id, &**owner))
    }

    /// One owner's part.
    pub fn owner(&self, id: u64) -> Option<&Owner> {
        self.owners.get(id).map(|owner| &**owner)
    }

    /// Tells an owner to others no more (or again). What was told before stays known to them.
    pub fn set_dormant(&mut self, id: u64, dormant: bool) {
        if (self.owners.get(id)).is_none_or(|owner| owner.dormant == dormant) {
            return;
        }
        if let Some(owner) = self.owners.get_mut(id) {
            let owner = Arc::make_mut(owner);
            let before = owner.told_hash();
            owner.dormant = dormant;
            let change = owner.told_hash().wrapping_sub(before);
            let bucket = &mut self.buckets[bucket(id)];
            *bucket = bucket.wrapping_add(change);
        }
    }

    /// Forgets an owner.
    pub fn forget(&mut self, id: u64) {
        self.set_dormant(id, true);
        if let Some(owner) = self.owners.remove(id) {
            self.records -= owner.entries.len();
        }
    }

    /// Records held, tombstones included.
    pub fn len(&self) -> usize {
        self.records
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }
}

impl Owner {
    fn new(epoch: u64) -> Owner {
        Owner {
            epoch,
            node: None,
            floor: 0,
            entries: BTreeMap::new(),
            hash: 0,
            dormant: false,
        }
    }

    /// All records by slot, tombstones included.
    pub fn entries(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.entries.iter().map(|(slot, entry)| (*slot, entry))
    }

    /// The highest version held.
    pub fn version_max(&self) -> u64 {
        let held = self.entries.values().map(|entry| entry.version).max();
        held.unwrap_or(0).max(self.floor)
    }

    fn told_hash(&self) -> u64 {
        if self.dormant { 0 } else { self.hash }
    }

    fn is_stale(&self, head: &Head, bytes: &[u8]) -> bool {
        if head.epoch != self.epoch {
            return head.epoch < self.epoch;
        }
        // No owner writes one version twice; should it happen, the bytes decide, so that all keep the same one.
        let is_held = |held: &Entry| (held.version, &*held.bytes) >= (head.version, bytes);
        head.version <= self.floor || self.entries.get(&head.slot).is_some_and(is_held)
    }

    fn merge(&mut self, head: Head, body: Body, bytes: &[u8], room: bool) -> Applied {
        if self.is_stale(&head, bytes) {
            return Applied::Stale;
        }
        match self.entries.get(&head.slot) {
            None if !room || self.entries.len() >= SLOTS_MAX => return Applied::Full,
            _ => {}
        }
        let urgent = is_urgent(&body);
        let content = match body {
            Body::Node(node) => Content::Node(Arc::new(node)),
            Body::Service(service) => Content::Service(Arc::new(service)),
            Body::Demand(demand) => Content::Demand(Arc::new(demand)),
            Body::Tombstone => Content::Tombstone,
            Body::Unknown => Content::Unknown,
        };
        if let (NODE_SLOT, Content::Node(node)) = (head.slot, &content) {
            self.node = Some(node.clone());
            self.raise_floor(head, node.floor);
        }
        let entry = Entry {
            version: head.version,
            bytes: bytes.into(),
            content,
        };
        self.hash = self.hash.wrapping_add(entry_hash(&head, bytes));
        if let Some(old) = self.entries.insert(head.slot, entry) {
            self.unhash(head.owner, head.slot, &old);
        }
        Applied::News(News { head, urgent })
    }

    /// A node record never voids itself, so its floor counts only below its own version.
    fn raise_floor(&mut self, head: Head, floor: u64) {
        self.floor = self.floor.max(floor.min(head.version.saturating_sub(1)));
        let void: Vec<u32> = (self.entries.iter())
            .filter(|(_, entry)| entry.version <= self.floor)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in void {
            if let Some(old) = self.entries.remove(&slot) {
                self.unhash(head.owner, slot, &old);
            }
        }
    }

    fn unhash(&mut self, id: u64, slot: u32, old: &Entry) {
        let head = Head {
            owner: id,
            epoch: self.epoch,
            slot,
            version: old.version,
        };
        self.hash = self.hash.wrapping_sub(entry_hash(&head, &old.bytes));
    }
}

/// Whether somebody calls in vain until this is known: failing, draining, gone.
pub fn is_urgent(body: &Body) -> bool {
    match body {
        Body::Tombstone => true,
        Body::Node(node) => node.left,
        Body::Service(service) => {
            service.health == Health::Failing || service.state == InstanceState::Draining
        }
        Body::Demand(_) | Body::Unknown => false,
    }
}

fn bucket(owner: u64) -> usize {
    (mix(owner) % BUCKETS as u64) as usize
}

fn entry_hash(head: &Head, bytes: &[u8]) -> u64 {
    // FNV-1a over the bytes, which hold the whole head too.
    let start = 0xcbf2_9ce4_8422_2325 ^ head.version;
    mix((bytes.iter()).fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}

/// Stafford's variant 13 of the 64-bit finalizer of MurmurHash3, as in SplitMix64: every bit moves every other.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
