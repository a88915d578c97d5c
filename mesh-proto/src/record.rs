//! What a node offers and asks for (node, service and demand records, tombstones) and which of two records is newer.
//!
//! Not here: how records are stored and spread (`mesh-core`), and their bytes (`codec.rs`).

use std::{collections::BTreeMap, net::SocketAddr};

use crate::frame::KeyId;

/// The slot of a node's own record; its services come after it.
pub const NODE_SLOT: u32 = 0;

/// What orders two records of one slot, and all that a node must understand of a record to relay it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Head {
    /// The node whose record it is, and its only writer.
    pub owner: u64,
    /// The owner's start (its `bump` then): a higher epoch replaces everything of a lower one.
    pub epoch: u64,
    /// The owner's place for this record; see [`NODE_SLOT`].
    pub slot: u32,
    /// Counts the owner's changes within the epoch, over all slots; the higher one wins its slot.
    pub version: u64,
}

/// What a record says.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// Who the owner is.
    Node(NodeRecord),
    /// One instance it offers.
    Service(ServiceRecord),
    /// What its own applications ask of one service.
    Demand(DemandRecord),
    /// The slot was taken back.
    Tombstone,
    /// Written by a newer version: kept and relayed, not understood.
    Unknown,
}

/// A node about itself.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeRecord {
    /// Its configured name.
    pub name: Box<str>,
    /// Its zone.
    pub zone: Box<str>,
    /// Its region.
    pub region: Box<str>,
    /// The highest wire version it speaks.
    pub wire_version: u8,
    /// It said goodbye: whatever SWIM thinks, it is not coming back in this epoch.
    pub left: bool,
    /// Records of this owner and epoch at or below this version are void.
    ///
    /// Raised when tombstones are old enough to be dropped; living records are written anew above it first.
    pub floor: u64,
    /// The gossip keys it holds, the one it seals with first; none in clear, and none told by the first nodes.
    pub keys: Box<[KeyId]>,
}

/// How much a node's own applications ask of one service. No record, or one of 0, means next to nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DemandRecord {
    /// The service's name.
    pub service: Box<str>,
    /// Requests (connections, where bytes are relayed) per second, smoothed and rounded by the owner.
    pub per_second: u32,
}

/// One instance of a service, written by its owner alone.
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceRecord {
    /// The service's name: what callers ask for.
    pub service: Box<str>,
    /// The instance's name, unique within its node and service.
    pub instance: Box<str>,
    /// Where it is called.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: WireProtocol,
    /// Share relative to others; 100 is usual, 0 never occurs.
    pub weight: u16,
    /// What the owner's checks say.
    pub health: Health,
    /// Where it is in its life.
    pub state: InstanceState,
    /// When it started, Unix time in milliseconds.
    pub started_at_ms: u64,
    /// Requests per second it can take, if declared, or learned by its owner.
    pub capacity: Option<u32>,
    /// Free words to select by.
    pub tags: BTreeMap<Box<str>, Box<str>>,
}

/// What an instance speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireProtocol {
    /// HTTP/1.1 (and h2c where the caller is told so).
    Http,
    /// HTTP/2 by prior knowledge.
    Grpc,
    /// Any bytes.
    Tcp,
    /// Datagrams.
    Udp,
    /// TLS that nobody on the way ends.
    Tls,
}

impl WireProtocol {
    /// Whether it knows requests, so that it can be called by authority.
    pub const fn is_http(self) -> bool {
        matches!(self, WireProtocol::Http | WireProtocol::Grpc)
    }
}

/// What the owner's checks say of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Well.
    Passing,
    /// Half weight.
    Warning,
    /// Not to be called.
    Failing,
}

/// Where an instance is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InstanceState {
    /// Its first check has not passed yet: not offered to anyone.
    Warming,
    /// Offered.
    Up,
    /// On its way out: no new calls.
    Draining,
}
