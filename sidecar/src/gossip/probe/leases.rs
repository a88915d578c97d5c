//! What applications register themselves: how many, how long each lasts, and what stands above it.
//!
//! Not here: how an instance is checked and offered (`../probe.rs`).

use tokio::time::{Duration, Instant};

use super::{Gone, Key, Task, key};
use crate::config::Lease;

/// Instances that may be registered at once: each is a record that the whole mesh keeps.
pub const LEASES_MAX: usize = 256;

/// What a registration came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leased {
    /// It is new.
    New,
    /// It was there and has changed.
    Changed,
    /// It was there as it is.
    Renewed,
}

/// Why a registration was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseRefused {
    /// The configuration offers an instance of this name, and stands above any registration.
    Configured,
    /// There are [`LEASES_MAX`] already.
    Full,
    /// Nobody has registered it.
    Unknown,
}

/// How long a registration lasts.
#[derive(Clone, Copy)]
pub(super) struct Term {
    pub lasts: Duration,
    pub ends: Instant,
}

impl Term {
    pub fn of(lasts: Duration) -> Term {
        let ends = Instant::now() + lasts;
        Term { lasts, ends }
    }
}

impl Task {
    pub(super) async fn lease(
        &mut self,
        lease: Lease,
    ) -> Result<Result<Leased, LeaseRefused>, Gone> {
        let key = key(&lease.service);
        let before = self.leases.contains_key(&key);
        if !before && self.held.contains_key(&key) {
            return Ok(Err(LeaseRefused::Configured));
        }
        if !before && self.leases.len() >= LEASES_MAX {
            return Ok(Err(LeaseRefused::Full));
        }
        self.leases.insert(key.clone(), Term::of(lease.lasts));
        let held = self.held.get(&key);
        let same = held.is_some_and(|held| held.service == lease.service);
        let leased = match (before, same) {
            (_, true) => return Ok(Ok(Leased::Renewed)),
            (true, false) => Leased::Changed,
            (false, false) => Leased::New,
        };
        tracing::info!(service = %key.0, instance = %key.1, lasts = ?lease.lasts, "registered");
        self.hold(key.clone(), lease.service);
        self.offer(&key).await?;
        Ok(Ok(leased))
    }

    pub(super) async fn release(&mut self, key: &Key) -> Result<Result<(), LeaseRefused>, Gone> {
        if self.leases.remove(key).is_none() {
            let configured = self.held.contains_key(key);
            return Ok(Err(if configured {
                LeaseRefused::Configured
            } else {
                LeaseRefused::Unknown
            }));
        }
        tracing::info!(service = %key.0, instance = %key.1, "registration taken back");
        self.withdraw(key.clone()).await?;
        Ok(Ok(()))
    }

    pub(super) async fn end_leases(&mut self) -> Result<(), Gone> {
        let now = Instant::now();
        let over: Vec<Key> = (self.leases.iter())
            .filter(|(_, term)| term.ends <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in over {
            tracing::warn!(service = %key.0, instance = %key.1, "registration not renewed: withdrawn");
            self.leases.remove(&key);
            self.withdraw(key).await?;
        }
        Ok(())
    }
}
