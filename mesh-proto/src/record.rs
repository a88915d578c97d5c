//! What a node offers (node and service records, tombstones) and which of two records is newer.
//!
//! Not here: how records are stored and spread (`mesh-core`), and their bytes (`codec.rs`).

use std::{collections::BTreeMap, net::SocketAddr};

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
    /// Requests per second it can take, if declared.
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
