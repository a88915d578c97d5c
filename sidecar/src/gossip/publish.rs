//! Mesh, configuration and resolved names → snapshot, at most every 20 ms, swapped whole.
//!
//! Not here: how a snapshot is built (`mesh_core::snapshot`) and who reads it (`proxy/`).

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mesh_core::{
    hash::Table,
    mesh::Mesh,
    moment::Moment,
    policy::Policy,
    snapshot::{Inputs, Snapshot},
};
use mesh_proto::session::SessionKeys;
use metrics::gauge;
use tokio::{sync::watch, time::sleep};

use super::told;
use crate::{caller_checks::NotPassing, clock::Clock, config::Loaded, resolve::Resolved};

/// Changes that come within this time of each other make one snapshot.
const COALESCE: Duration = Duration::from_millis(20);

/// The longest a snapshot waits for its hash tables; a few hundred endpoints take less.
const TABLES_TIME: Duration = Duration::from_millis(100);

/// What the snapshot is built from, as it changes.
pub struct Publisher {
    /// The value the two wings meet in.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The one clock.
    pub clock: Clock,
    /// Who is there and what they offer.
    pub mesh: watch::Receiver<Arc<Mesh>>,
    /// The configuration in force.
    pub config: watch::Receiver<Arc<Loaded>>,
    /// What names of fixed endpoints resolved to.
    pub resolved: watch::Receiver<Arc<Resolved>>,
    /// Fixed endpoints whose check from here says anything but that they are well.
    pub not_passing: watch::Receiver<Arc<NotPassing>>,
    /// What cookies of sessions are made with.
    pub session_keys: watch::Receiver<Arc<SessionKeys>>,
}

impl Publisher {
    /// Publishes a first snapshot at once and another after every change, until a source is gone.
    pub async fn run(mut self) {
        loop {
            let stale_at = self.publish().await;
            if self.changed(stale_at).await.is_err() {
                return;
            }
            sleep(COALESCE).await;
        }
    }

    async fn changed(&mut self, stale_at: Option<Moment>) -> Result<(), watch::error::RecvError> {
        let stale = async {
            match stale_at {
                Some(moment) => tokio::time::sleep_until(self.clock.instant(moment)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.mesh.changed() => changed,
            changed = self.config.changed() => changed,
            changed = self.resolved.changed() => changed,
            changed = self.not_passing.changed() => changed,
            changed = self.session_keys.changed() => changed,
            () = stale => Ok(()),
        }
    }

    /// Builds and stores a snapshot; yields when it will be out of date even if nothing changes.
    pub async fn publish(&mut self) -> Option<Moment> {
        let next = self.next();
        gauge!("starling_snapshot_generation").set(next.generation as f64);
        let stale_at = next.stale_at;
        build_tables(&next).await;
        let next = Arc::new(next);
        let old = self.snapshot.swap(Arc::clone(&next));
        told::tell(&old.mesh, &next.mesh);
        stale_at
    }

    fn next(&mut self) -> Snapshot {
        let loaded = Arc::clone(&self.config.borrow_and_update());
        let config = &loaded.config;
        let mesh = Arc::clone(&self.mesh.borrow_and_update());
        let resolved = Arc::clone(&self.resolved.borrow_and_update());
        let not_passing = Arc::clone(&self.not_passing.borrow_and_update());
        let session_keys = Arc::clone(&self.session_keys.borrow_and_update());
        let policies: Vec<Arc<Policy>> = config
            .upstreams
            .iter()
            .map(|upstream| Arc::clone(&upstream.policy))
            .collect();
        let inputs = Inputs {
            mesh: &mesh,
            policies: &policies,
            undeclared: config.outbound.undeclared,
            own_zone: &config.node.zone,
            own_region: &config.node.region,
            resolved: &resolved,
            not_passing: &not_passing,
            session_keys: &session_keys,
            unix_ms: self.clock.unix_ms(),
        };
        Snapshot::build(&inputs, &self.snapshot.load(), self.clock.now())
    }
}

/// Builds what hash tables the snapshot has anew, on another thread: the gossip must not wait for that.
async fn build_tables(snapshot: &Snapshot) {
    let upstreams = snapshot.upstreams().filter_map(|u| u.owners.as_ref());
    let tables = upstreams.map(|owners| Arc::clone(&owners.table));
    let unbuilt: Vec<Arc<Table>> = tables.filter(|table| !table.is_built()).collect();
    if unbuilt.is_empty() {
        return;
    }
    let building = tokio::task::spawn_blocking(move || unbuilt.iter().for_each(|t| t.build()));
    // The rest is built while the snapshot is in use already: until then a lookup costs more, and says the same.
    let _ = tokio::time::timeout(TABLES_TIME, building).await;
}
