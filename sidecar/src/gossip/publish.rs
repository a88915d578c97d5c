//! Mesh, configuration and resolved names → snapshot, at most every 20 ms, swapped whole.
//!
//! Not here: how a snapshot is built (`mesh_core::snapshot`) and who reads it (`proxy/`).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mesh_core::{
    mesh::Mesh,
    moment::Moment,
    policy::Policy,
    snapshot::{Inputs, Snapshot},
};
use metrics::gauge;
use tokio::{sync::watch, time::sleep};

use crate::{caller_checks::NotPassing, clock::Clock, config::Loaded, resolve::Resolved};

/// Changes that come within this time of each other make one snapshot.
const COALESCE: Duration = Duration::from_millis(20);

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
    /// Fixed endpoints whose check from here does not pass.
    pub failing: watch::Receiver<Arc<NotPassing>>,
}

impl Publisher {
    /// Publishes a first snapshot at once and another after every change, until a source is gone.
    pub async fn run(mut self) {
        loop {
            let stale_at = self.publish();
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
            changed = self.failing.changed() => changed,
            () = stale => Ok(()),
        }
    }

    /// Builds and stores a snapshot; yields when it will be out of date even if nothing changes.
    pub fn publish(&mut self) -> Option<Moment> {
        let loaded = Arc::clone(&self.config.borrow_and_update());
        let config = &loaded.config;
        let mesh = Arc::clone(&self.mesh.borrow_and_update());
        let resolved = Arc::clone(&self.resolved.borrow_and_update());
        let failing: Arc<BTreeSet<_>> = Arc::clone(&self.failing.borrow_and_update());
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
            failing: &failing,
            unix_ms: self.clock.unix_ms(),
        };
        let next = Snapshot::build(&inputs, &self.snapshot.load(), self.clock.now());
        gauge!("starling_snapshot_generation").set(next.generation as f64);
        let stale_at = next.stale_at;
        self.snapshot.store(Arc::new(next));
        stale_at
    }
}
