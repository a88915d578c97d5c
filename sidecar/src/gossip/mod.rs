//! The gossip wing: who is there and what they offer, and telling them what we offer.
//!
//! Not here: any use of what is known (`proxy/`); the two meet in one `Arc<ArcSwap<Snapshot>>`.

use std::sync::Arc;

use mesh_core::mesh::Mesh;
use mesh_proto::record::ServiceRecord;
use tokio::sync::{mpsc, oneshot, watch};

pub mod probe;
pub mod publish;

/// Orders waiting for the gossip task; the caller waits when it is full.
pub const ORDERS_MAX: usize = 64;

/// The way to the gossip task, for whoever steers it (checks, admin, drain).
#[derive(Clone, Debug)]
pub struct Gossip {
    /// Orders to the task.
    pub orders: mpsc::Sender<Order>,
    /// The mesh as it stands; changes are coalesced to one every 20 ms.
    pub mesh: watch::Receiver<Arc<Mesh>>,
}

/// What the gossip task is asked to do.
#[derive(Debug)]
pub enum Order {
    /// Offers an instance, or says anew how it is.
    Offer(ServiceRecord),
    /// Takes an instance back: a tombstone spreads.
    Withdraw {
        /// The service.
        service: Box<str>,
        /// The instance.
        instance: Box<str>,
    },
    /// Says goodbye: tells peers, answers probes for a second, then ends the task.
    Leave {
        /// Told when it is done.
        done: oneshot::Sender<()>,
    },
    /// Replaces the key ring: the first encrypts, all decrypt.
    Keys(Vec<crate::config::GossipKey>),
    /// Replaces the list of seeds.
    Seeds(Vec<Box<str>>),
}
