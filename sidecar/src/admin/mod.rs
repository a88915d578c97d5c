//! The admin API: how this sidecar is, whom it knows, what it would choose and why; and its lifecycle.
//!
//! Not here: what a command does (it goes through a bounded queue to `start.rs`), and the command line that asks
//! (`cli/`). `serve.rs` holds the sockets, `guard.rs` who may ask what, `routes.rs` the paths,
//! `registry.rs` what applications say of themselves, `listing.rs` the rows.

use std::sync::{Arc, atomic::AtomicBool};

use arc_swap::ArcSwap;
use mesh_core::snapshot::Snapshot;
use mesh_proto::record::Health;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    clock::Clock,
    config::{Lease, Loaded},
    gossip::keys::{KeyAnswer, KeyOrder},
    metrics::Exporter,
    proxy::connections::row::{Query, Row},
};

mod gauges;
mod guard;
mod keys;
pub mod listing;
mod registry;
mod routes;
mod serve;
mod words;

#[cfg(test)]
mod tests;

pub use serve::{Serving, StartError, start};

/// Commands waiting for the sidecar; a caller who finds the queue full is told to come back.
pub const COMMANDS_MAX: usize = 64;

/// What the admin API reads, and its way to the sidecar.
#[derive(Clone, Debug)]
pub struct State {
    /// What requests are answered from.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Serving, joined, and not on the way out.
    pub ready: Arc<AtomicBool>,
    /// The one clock.
    pub clock: Clock,
    /// The configuration in force, with the origin of its values.
    pub config: watch::Receiver<Arc<Loaded>>,
    /// The metrics.
    pub metrics: Exporter,
    /// Orders to the sidecar; make it with [`COMMANDS_MAX`].
    pub commands: mpsc::Sender<Command>,
}

/// What the sidecar is asked to do; every command is answered when it is done.
#[derive(Debug)]
pub enum Command {
    /// Takes instances of this host out of service.
    Drain(Target, oneshot::Sender<Answer>),
    /// Puts them back.
    Undrain(Target, oneshot::Sender<Answer>),
    /// Offers an instance that registers itself, or renews it.
    Register(Box<Lease>, oneshot::Sender<Answer>),
    /// Takes back what was registered.
    Deregister(Instance, oneshot::Sender<Answer>),
    /// An instance's own word on how it is.
    Say(Instance, Health, oneshot::Sender<Answer>),
    /// Drains everything, leaves the mesh and ends the process; answered once it has begun.
    Leave(oneshot::Sender<Answer>),
    /// Reads the configuration again: swapped whole, or refused whole.
    Reload(oneshot::Sender<Answer>),
    /// Tells of connections.
    Connections(Box<Query>, oneshot::Sender<Result<Vec<Row>, Refusal>>),
    /// Changes the gossip's key ring, or tells of it.
    Keys(KeyOrder, oneshot::Sender<Result<KeyAnswer, Refusal>>),
}

/// Which instances of this host are meant: all, those of a service, or one.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The service; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Box<str>>,
    /// The instance; all of the service's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Box<str>>,
}

impl Target {
    /// Whether an instance is meant.
    pub fn matches(&self, service: &str, instance: &str) -> bool {
        self.service
            .as_deref()
            .is_none_or(|wanted| wanted == service)
            && self
                .instance
                .as_deref()
                .is_none_or(|wanted| wanted == instance)
    }
}

/// One instance of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance {
    /// Its service.
    pub service: Box<str>,
    /// Its name.
    pub instance: Box<str>,
}

impl std::fmt::Display for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.service, self.instance)
    }
}

/// What was done, in a few words; or why nothing was.
pub type Answer = Result<String, Refusal>;

/// Why a command was not carried out: nothing has changed then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Nothing here is called that; else it is known and cannot be done.
    pub unknown: bool,
    /// What was tried and why it was refused.
    pub message: String,
    /// The next step.
    pub next: String,
}

impl Refusal {
    /// It cannot be done.
    pub fn new(message: impl Into<String>, next: impl Into<String>) -> Refusal {
        Refusal {
            unknown: false,
            message: message.into(),
            next: next.into(),
        }
    }

    /// There is nothing of that name.
    pub fn unknown(message: impl Into<String>, next: impl Into<String>) -> Refusal {
        Refusal {
            unknown: true,
            message: message.into(),
            next: next.into(),
        }
    }
}
