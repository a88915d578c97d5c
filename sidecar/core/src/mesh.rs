//! The mesh as the gossip wing tells it and the snapshot is built from: who is there, what they offer.
//!
//! Not here: how it came to be known (`membership.rs`, `catalogue.rs`) and what this host makes of it (`snapshot.rs`).

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use mesh_proto::record::{DemandRecord, ServiceRecord};

use crate::moment::Moment;

/// Everything known of the mesh at one moment, sorted by node id, then service, then instance.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    /// Every node that is not forgotten, this one first.
    pub nodes: Vec<Arc<Node>>,
    /// Every instance on offer, those of unreachable nodes included: the snapshot says why they are out.
    pub instances: Vec<Instance>,
    /// What the nodes' own applications ask of services, sorted by service, then node id; those of unreachable nodes
    /// included.
    pub demands: Vec<Demand>,
    /// Nothing was heard for 3 probe periods: what is said of others may be stale.
    pub isolated: bool,
    /// At least one full exchange with a peer is done, or there is no seed to join.
    pub joined: bool,
    /// What is to be said of nodes beside their state, by id; few have anything.
    pub remarks: BTreeMap<u64, Remark>,
}

/// What is to be said of a node beside its state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remark {
    /// It is suspected.
    Suspected {
        /// By probes of this node, which nobody answered; else others said so.
        by_us: bool,
        /// What a stream to it came to, if one was tried since.
        stream: Option<Stream>,
    },
    /// Datagrams do not get through to it or back, streams do.
    StreamsOnly {
        /// The first one that was missed.
        since: Moment,
    },
}

/// What a stream to a silent node came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// It was answered.
    Answered,
    /// Its host refused it.
    Refused,
    /// Nothing came back.
    Silent,
}

/// One host of the mesh.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// Its random id.
    pub id: u64,
    /// Its configured name.
    pub name: Box<str>,
    /// Where its gossip is reached.
    pub address: SocketAddr,
    /// Its zone.
    pub zone: Box<str>,
    /// Its region.
    pub region: Box<str>,
    /// How it is.
    pub state: NodeState,
    /// Since when it is so.
    pub since: Moment,
    /// SWIM incarnation last heard.
    pub incarnation: u64,
}

/// How a node is, as SWIM sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum NodeState {
    /// Answers probes.
    Alive,
    /// Did not answer; may still refute.
    Suspect,
    /// Declared dead.
    Down,
    /// Said goodbye.
    Left,
}

/// What one node's own applications ask of one service.
#[derive(Clone, PartialEq, Debug)]
pub struct Demand {
    /// Whose applications.
    pub node: Arc<Node>,
    /// Of which service, and how much.
    pub record: Arc<DemandRecord>,
}

/// One instance of a service on one node.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Whose it is.
    pub node: Arc<Node>,
    /// The node's boot (identity `bump`): a restarted host's instance is a new endpoint.
    pub epoch: u64,
    /// What the owner says of it.
    pub record: Arc<ServiceRecord>,
    /// The record's version, for listings.
    pub version: u64,
}
