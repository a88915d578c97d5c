//! Waiting for the one request that finds out whether anybody is well again, where nobody else is left to ask.
//!
//! Not here: who may be that request (`mesh_core::balance`) and when that is (`mesh_core::outlier`).

use std::{sync::Arc, time::Duration};

use mesh_core::{moment::Moment, snapshot::Upstream};
use tokio::time::timeout_at;

use super::worker::{Admission, Worker};

/// Longest wait for the verdict on others: as long as a canary is given at least for its answer.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The wait of one request, or one connection; ends with it.
#[derive(Default)]
pub struct Standby {
    /// Until when; `None` before it has waited.
    until: Option<Moment>,
    /// Its place among those that `limits.pending` lets wait, while it waits.
    place: Option<Admission>,
}

impl Standby {
    /// Waits for a verdict, which may be on somebody who is not in `tried`, at most until `deadline`. False when there
    /// is none to wait for, too many wait already, or it took too long.
    pub async fn a_verdict(
        &mut self,
        worker: &Worker,
        upstream: &Arc<Upstream>,
        tried: &[u64],
        deadline: Moment,
    ) -> bool {
        // Any worker may come to it; told of before looking, so that nothing is missed between the two.
        let told = worker.common.verdicts.notified();
        let now = worker.clock.now();
        if !upstream.awaits_verdict(tried, now) {
            return false;
        }
        let until = *self.until.get_or_insert(deadline.min(now + WAIT_MAX));
        if self.place.is_none() {
            self.place = Admission::pending(upstream);
        }
        if self.place.is_none() {
            return false;
        }
        timeout_at(worker.clock.instant(until), told).await.is_ok()
    }

    /// Somebody was found: its place is free for who waits for a connection.
    pub fn leave(&mut self) {
        self.place = None;
    }
}
