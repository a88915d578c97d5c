//! Names of first friends → addresses, again and again.
//!
//! Not here: the joining itself (`mesh_core::membership`), which passes over addresses it knows already.

use std::{net::SocketAddr, time::Duration};

use rand::seq::SliceRandom;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

/// Lists of addresses waiting for the gossip task.
pub const FOUND_MAX: usize = 4;

/// Addresses tried at once.
const ADDRESSES_MAX: usize = 256;

/// The first retry; it doubles up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LAST: Duration = Duration::from_secs(30);

/// With company, one seed is still tried this often, so that two meshes that lost each other merge.
const ISLAND_CHECK: Duration = Duration::from_secs(60);

const LOOKUP_TIME: Duration = Duration::from_secs(5);

/// Addresses to join.
#[derive(Debug)]
pub struct Found {
    /// What the names of seeds resolved to.
    pub seeds: Vec<SocketAddr>,
    /// Whom we knew before the restart.
    pub known: Vec<SocketAddr>,
}

/// Tells the gossip task addresses to join, for ever.
pub struct Seeker {
    /// `host:port` each.
    pub names: watch::Receiver<Vec<Box<str>>>,
    /// Whether somebody else is there.
    pub company: watch::Receiver<bool>,
    /// Where addresses go.
    pub found: mpsc::Sender<Found>,
    /// Whom we knew before the restart.
    pub known: Vec<SocketAddr>,
}

impl Seeker {
    /// Runs until the gossip task is gone.
    pub async fn run(mut self) {
        let mut pause = RETRY_FIRST;
        let mut turn = 0;
        loop {
            let has_company = *self.company.borrow_and_update();
            let names = self.names.borrow_and_update().clone();
            let found = if has_company {
                pause = RETRY_FIRST;
                let one = names.len().checked_sub(1).map(|last| turn % (last + 1));
                let seeds = match one {
                    Some(at) => resolve(&names[at..=at]).await,
                    None => Vec::new(),
                };
                Found {
                    seeds,
                    known: Vec::new(),
                }
            } else {
                Found {
                    seeds: resolve(&names).await,
                    known: self.known.clone(),
                }
            };
            turn += 1;
            let is_empty = found.seeds.is_empty() && found.known.is_empty();
            if !is_empty && self.found.send(found).await.is_err() {
                return;
            }
            let wait = if has_company { ISLAND_CHECK } else { pause };
            tokio::select! {
                () = sleep(wait.mul_f64(rand::random_range(0.9..1.1))) => {
                    pause = (pause * 2).min(RETRY_LAST);
                }
                changed = self.company.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Left alone, we start over at once but not in step with everybody else.
                    pause = RETRY_FIRST;
                }
                changed = self.names.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    pause = RETRY_FIRST;
                }
                () = self.found.closed() => return,
            }
        }
    }
}

/// All addresses of all names, asked in parallel; names that do not resolve are skipped.
async fn resolve(names: &[Box<str>]) -> Vec<SocketAddr> {
    let mut lookups = tokio::task::JoinSet::new();
    for name in names {
        let name = name.clone();
        lookups.spawn(async move {
            match timeout(LOOKUP_TIME, tokio::net::lookup_host(&*name)).await {
                Ok(Ok(addresses)) => addresses.collect(),
                Ok(Err(error)) => {
                    warn!(seed = %name, %error, "the name of a gossip seed does not resolve; it is tried again");
                    Vec::new()
                }
                Err(_) => {
                    warn!(seed = %name, "the name of a gossip seed is not answered; it is tried again");
                    Vec::new()
                }
            }
        });
    }
    let mut addresses: Vec<SocketAddr> = lookups.join_all().await.into_iter().flatten().collect();
    addresses.sort();
    addresses.dedup();
    // Not always the same ones, or what is cut off below would never be tried.
    addresses.shuffle(&mut rand::rng());
    if addresses.len() > ADDRESSES_MAX {
        debug!(
            found = addresses.len(),
            "more gossip seeds than are tried at once"
        );
        addresses.truncate(ADDRESSES_MAX);
    }
    addresses
}
