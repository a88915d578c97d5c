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
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::told;
use crate::{caller_checks::NotPassing, clock::Clock, config::Loaded, resolve::Resolved};

/// Changes that come within this time of each other make one snapshot.
const COALESCE: Duration = Duration::from_millis(20);

/// The longest a snapshot waits for hash tables that answer before they are built; a few hundred endpoints take less.
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
        let mut building = None;
        loop {
            let stale_at = self.publish(&mut building).await;
            if self.changed(stale_at, &mut building).await.is_err() {
                return;
            }
            sleep(COALESCE).await;
        }
    }

    async fn changed(
        &mut self,
        stale_at: Option<Moment>,
        building: &mut Building,
    ) -> Result<(), watch::error::RecvError> {
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
            // What came meanwhile is built next.
            () = built(building) => Ok(()),
        }
    }

    /// Builds and stores a snapshot; yields when it will be out of date even if nothing changes.
    async fn publish(&mut self, building: &mut Building) -> Option<Moment> {
        let next = self.next();
        gauge!("starling_snapshot_generation").set(next.generation as f64);
        let stale_at = next.stale_at;
        build_tables(&next, building).await;
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
            own_name: &config.node.id,
            resolved: &resolved,
            not_passing: &not_passing,
            session_keys: &session_keys,
            unix_ms: self.clock.unix_ms(),
        };
        Snapshot::build(&inputs, &self.snapshot.load(), self.clock.now())
    }
}

/// The one thread that builds tables of snapshots in use, if there is one.
type Building = Option<JoinHandle<()>>;

/// Builds what hash tables the snapshot has anew, on another thread: the gossip must not wait for that.
///
/// Tables that cannot answer before are waited for however long they take, or a worker would build them.
async fn build_tables(snapshot: &Snapshot, building: &mut Building) {
    let upstreams = snapshot.upstreams().filter_map(|u| u.owners.as_ref());
    let tables = upstreams.map(|owners| Arc::clone(&owners.table));
    let unbuilt = tables.filter(|table| !table.is_built());
    let (may_wait, needed): (Vec<_>, Vec<_>) = unbuilt.partition(|table| table.answers_unbuilt());
    if !needed.is_empty() {
        // It ends early only if building panics, or with the runtime; a worker then finds the same.
        let _ = build(needed).await;
    }
    // Changes come faster than large tables are built: one thread at a time, or they would pile up.
    if building.is_none() && !may_wait.is_empty() {
        *building = Some(build(may_wait));
        // The rest is built while the snapshot is in use already: until then a lookup costs more, and says the same.
        let _ = tokio::time::timeout(TABLES_TIME, built(building)).await;
    }
}

fn build(tables: Vec<Arc<Table>>) -> JoinHandle<()> {
    tokio::task::spawn_blocking(move || tables.iter().for_each(|table| table.build()))
}

/// Waits for the thread that builds, and for ever if there is none.
async fn built(building: &mut Building) {
    match building {
        Some(thread) => {
            let _ = thread.await;
            *building = None;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{
        mesh::Mesh,
        policy::{FixedEndpoint, Hash, HashKey, HashTable, Place, Weight},
    };

    use super::*;

    fn snapshot(kind: HashTable, count: u8) -> Snapshot {
        let mut policy = Policy::of_service("web");
        policy.service = None;
        policy.hash = Some(Hash {
            key: HashKey::Header("x-user".into()),
            table: kind,
            ..Hash::by(HashKey::Path)
        });
        let fixed = |last| FixedEndpoint {
            place: Place::Address(([127, 0, 0, last], 80).into()),
            zone: None,
            weight: Weight::DEFAULT,
            backup: false,
        };
        policy.endpoints = (1..=count).map(fixed).collect();
        let inputs = Inputs {
            mesh: &Arc::new(Mesh::default()),
            policies: &[Arc::new(policy)],
            undeclared: true,
            own_zone: "a",
            own_region: "a",
            own_name: "n",
            resolved: &Default::default(),
            not_passing: &Default::default(),
            session_keys: &Arc::default(),
            unix_ms: 0,
        };
        Snapshot::build(&inputs, &Snapshot::empty(), Moment::START)
    }

    fn is_built(snapshot: &Snapshot) -> bool {
        let owners = snapshot.upstreams().filter_map(|u| u.owners.as_ref());
        owners.into_iter().all(|owners| owners.table.is_built())
    }

    #[tokio::test(start_paused = true)]
    async fn only_tables_that_answer_unbuilt_are_published_while_another_is_built() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let slow = tokio::task::spawn_blocking(move || {
            let _ = held.recv();
        });
        let mut building = Some(slow);
        let rendezvous = snapshot(HashTable::Rendezvous, 3);
        build_tables(&rendezvous, &mut building).await;
        assert!(!is_built(&rendezvous), "one at a time");
        for kind in [HashTable::Ring, HashTable::Maglev] {
            let next = snapshot(kind, 3);
            build_tables(&next, &mut building).await;
            assert!(is_built(&next), "{kind:?}");
        }
        drop(release);
        built(&mut building).await;
        build_tables(&rendezvous, &mut building).await;
        // Paused time may be over before the thread is done.
        if building.is_some() {
            built(&mut building).await;
        }
        assert!(is_built(&rendezvous));
    }
}
