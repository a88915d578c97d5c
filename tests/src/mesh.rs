//! Hosts that have met: sidecars with one backend each, everyone known to everyone.
//!
//! Not here: one sidecar (`sidecar.rs`). Hosts are loopback addresses; those with real networks are in `netns.rs`.

use examples::backend::Backend;

use crate::{
    PATIENCE,
    sidecar::{Setup, Sidecar, backend_at},
};

/// The port of every backend; each host has its own address.
pub const BACKEND_PORT: u16 = 9001;

/// One host: its sidecar and its backend.
pub struct Host {
    /// Its sidecar.
    pub sidecar: Sidecar,
    /// Its instance of the service `shop`; `None` while killed.
    pub backend: Option<Backend>,
}

/// Starts one host per zone name (they may repeat), each offering `shop`, with `tables` added to each
/// configuration, and waits until everyone can use every instance.
pub async fn shops(zones: &[&str], tables: &str) -> Vec<Host> {
    let mut setups: Vec<Setup> = Vec::new();
    for (number, zone) in zones.iter().enumerate() {
        let setup = Setup::new(&format!("host-{number}"), zone)
            .offering("shop", BACKEND_PORT)
            .with(tables);
        let setup = match setups.first() {
            Some(first) => setup.joining(first),
            None => setup,
        };
        setups.push(setup);
    }
    let mut hosts = Vec::new();
    for setup in setups {
        let backend = backend_at(&setup, BACKEND_PORT, &setup.name).await;
        let sidecar = Sidecar::start(setup);
        hosts.push(Host {
            sidecar,
            backend: Some(backend),
        });
    }
    for host in &mut hosts {
        host.sidecar.until_ready().await;
    }
    for host in &hosts {
        host.sidecar
            .until_usable("shop", zones.len(), PATIENCE)
            .await;
    }
    hosts
}

impl Host {
    /// Cuts its backend off as a crash would.
    pub fn kill_backend(&mut self) {
        self.backend = None;
    }

    /// Starts its backend again.
    pub async fn revive_backend(&mut self) {
        let setup = &self.sidecar.setup;
        self.backend = Some(backend_at(setup, BACKEND_PORT, &setup.name).await);
    }
}
