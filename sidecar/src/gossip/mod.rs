//! The gossip wing: who is there and what they offer, and telling them what we offer.
//!
//! Not here: any use of what is known (`proxy/`); the two meet in one `Arc<ArcSwap<Snapshot>>`.

use std::{io, net::SocketAddr, sync::Arc};

use mesh_core::mesh::Mesh;
use mesh_proto::{
    record::{DemandRecord, ServiceRecord},
    session::SessionKeys,
};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

pub use self::counters::Counters;
use self::{
    keys::{KeyAnswer, KeyFault, KeyOrder},
    state::{State, StateError},
};
use crate::{
    clock::Clock,
    config::{self, Config},
};

mod agent;
pub mod capacity;
mod counters;
pub mod demand;
pub mod keys;
pub mod probe;
pub mod publish;
mod seeds;
mod state;
mod stream;
mod told;

/// Orders waiting for the gossip task; the caller waits when it is full.
pub const ORDERS_MAX: usize = 64;

/// Free ports tried before giving up where port 0 is asked for.
const FREE_PORT_TRIES: u32 = 16;

/// Asked of the system for datagrams that come during a stall.
const RECEIVE_BYTES: usize = 1024 * 1024;

/// The way to the gossip task, for whoever steers it (checks, admin, drain).
#[derive(Clone, Debug)]
pub struct Gossip {
    /// Orders to the task.
    pub orders: mpsc::Sender<Order>,
    /// The mesh as it stands; changes are coalesced to one every 20 ms.
    pub mesh: watch::Receiver<Arc<Mesh>>,
    /// What cookies of sessions are made with: it follows from the keys in force.
    pub session_keys: watch::Receiver<Arc<SessionKeys>>,
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
    /// Says what our applications ask of a service.
    Demand(DemandRecord),
    /// Takes that back.
    NoDemand {
        /// The service.
        service: Box<str>,
    },
    /// Says goodbye: tells peers, answers probes for a second, then ends the task.
    Leave {
        /// Told when it is done.
        done: oneshot::Sender<()>,
    },
    /// Takes over the configuration's keys: the first encrypts, all decrypt.
    Keys(Vec<config::GossipKey>),
    /// Changes the key ring, or tells of it.
    Key {
        /// What is ordered.
        order: KeyOrder,
        /// Told what was done, or why not.
        done: oneshot::Sender<Result<KeyAnswer, KeyFault>>,
    },
    /// Replaces the list of seeds.
    Seeds(Vec<Box<str>>),
}

/// The gossip's two sockets, on one port.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
    /// Where they are bound.
    pub address: SocketAddr,
}

/// A gossip task that runs, and what only tests and reports want of it.
#[derive(Debug)]
pub struct Started {
    /// The way to it.
    pub gossip: Gossip,
    /// The task.
    pub task: JoinHandle<()>,
    /// What it counts.
    pub counters: Arc<Counters>,
}

/// Why the gossip cannot start.
#[derive(Debug)]
pub enum StartError {
    /// The port is not to be had.
    Bind {
        /// UDP or TCP.
        protocol: &'static str,
        /// Which.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The state directory cannot be used.
    State(StateError),
    /// Others could speak to us, and nothing tells friends from strangers.
    NoKey {
        /// Where it would have been bound.
        bind: SocketAddr,
    },
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Bind {
                protocol,
                address,
                error,
            } => write!(
                f,
                "the gossip cannot bind {protocol} {address}: {error}; stop whoever holds the port (ss -lntup shows it), or choose another gossip.bind"
            ),
            StartError::State(StateError { path, error })
                if error.kind() == io::ErrorKind::WouldBlock =>
            {
                write!(
                    f,
                    "another sidecar uses the state directory: it holds {}; stop it (`fuser {0}` shows it), or give each sidecar its own node.state_dir",
                    path.display()
                )
            }
            StartError::State(StateError { path, error }) => write!(
                f,
                "the node's state cannot be kept in {}: {error}; make node.state_dir writable, or drop it and forget on restart",
                path.display()
            ),
            StartError::NoKey { bind } => write!(
                f,
                "gossip.bind = {bind} is off loopback and there is no key; make one with `starling key new` and set gossip.key to its file on every host"
            ),
        }
    }
}

impl std::error::Error for StartError {}

impl Sockets {
    /// Binds UDP and TCP to one port; port 0 takes a free one.
    ///
    /// # Errors
    /// `Bind` names the address.
    pub async fn bind(address: SocketAddr) -> Result<Sockets, StartError> {
        let fault = |protocol| {
            move |error| StartError::Bind {
                protocol,
                address,
                error,
            }
        };
        let mut tries_left = if address.port() == 0 {
            FREE_PORT_TRIES
        } else {
            1
        };
        loop {
            let tcp = TcpListener::bind(address).await.map_err(fault("TCP"))?;
            let bound = tcp.local_addr().map_err(fault("TCP"))?;
            tries_left -= 1;
            match UdpSocket::bind(bound).await {
                Ok(udp) => {
                    // What comes during a stall waits here; the system may grant less.
                    let _ = SockRef::from(&udp).set_recv_buffer_size(RECEIVE_BYTES);
                    return Ok(Sockets {
                        udp,
                        tcp,
                        address: bound,
                    });
                }
                // A port free for TCP may be taken for UDP: another one, then.
                Err(_) if tries_left > 0 => {}
                Err(error) => return Err(fault("UDP")(error)),
            }
        }
    }
}

/// Binds, then starts the gossip task on the current runtime.
///
/// # Errors
/// A taken port, an unusable state directory, no key off loopback: each with its next step.
pub async fn start(config: &Config, clock: Clock) -> Result<(Gossip, JoinHandle<()>), StartError> {
    let sockets = Sockets::bind(config.gossip.bind).await?;
    let started = start_on(sockets, &config.node, &config.gossip, clock)?;
    Ok((started.gossip, started.task))
}

/// Starts the gossip task on sockets that are bound already.
///
/// # Errors
/// As [`start`], without the ports.
pub fn start_on(
    sockets: Sockets,
    node: &config::Node,
    gossip: &config::Gossip,
    clock: Clock,
) -> Result<Started, StartError> {
    if gossip.keys.is_empty() && !sockets.address.ip().is_loopback() {
        return Err(StartError::NoKey {
            bind: sockets.address,
        });
    }
    let state =
        State::open(node.state_dir.as_deref(), clock.unix_ms()).map_err(StartError::State)?;
    let (agent, handles, counters) = agent::Agent::new(sockets, node, gossip, state, clock);
    let task = tokio::spawn(agent.run());
    Ok(Started {
        gossip: handles,
        task,
        counters,
    })
}

#[cfg(test)]
mod tests;
