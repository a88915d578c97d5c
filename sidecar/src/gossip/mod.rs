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

/// Starts without peers: until the gossip task lands, a sidecar knows only what it offers itself.
///
/// # Errors
/// None yet.
pub async fn start(
    config: &crate::config::Config,
    clock: crate::clock::Clock,
) -> Result<(Gossip, tokio::task::JoinHandle<()>), std::io::Error> {
    let (orders, inbox) = mpsc::channel(ORDERS_MAX);
    let node = Arc::new(mesh_core::mesh::Node {
        id: 1,
        name: config.node.id.clone(),
        address: config.gossip.advertise,
        zone: config.node.zone.clone(),
        region: config.node.region.clone(),
        state: mesh_core::mesh::NodeState::Alive,
        since: clock.now(),
        incarnation: 0,
    });
    let mesh = Mesh {
        nodes: vec![Arc::clone(&node)],
        joined: true,
        ..Mesh::default()
    };
    let (sender, mesh) = watch::channel(Arc::new(mesh));
    let task = tokio::spawn(alone(node, inbox, sender));
    Ok((Gossip { orders, mesh }, task))
}

async fn alone(
    node: Arc<mesh_core::mesh::Node>,
    mut inbox: mpsc::Receiver<Order>,
    mesh: watch::Sender<Arc<Mesh>>,
) {
    while let Some(order) = inbox.recv().await {
        let mut next = Mesh::clone(&mesh.borrow());
        match order {
            Order::Offer(record) => {
                next.instances
                    .retain(|known| known.record.instance != record.instance);
                let node = Arc::clone(&node);
                next.instances.push(mesh_core::mesh::Instance {
                    node,
                    epoch: 1,
                    record: Arc::new(record),
                    version: 1,
                });
            }
            Order::Withdraw { instance, .. } => {
                next.instances
                    .retain(|known| known.record.instance != instance);
            }
            Order::Leave { done } => {
                let _ = done.send(());
                return;
            }
            Order::Keys(_) | Order::Seeds(_) => {}
        }
        mesh.send_replace(Arc::new(next));
    }
}
