//! Counts of requests → this host's demand records, twice a second.
//!
//! Not here: what is worth telling (`mesh_core::zone::demand`) and how it travels (`agent.rs`).

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use mesh_core::{
    snapshot::Snapshot,
    zone::demand::{Meter, SAMPLE, Word},
};
use mesh_proto::record::DemandRecord;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::Order;
use crate::clock::Clock;

/// Measures and tells until the gossip task is gone.
pub async fn run(snapshot: Arc<ArcSwap<Snapshot>>, orders: mpsc::Sender<Order>, clock: Clock) {
    let mut meter = Meter::default();
    let mut tick = interval(SAMPLE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let words = {
            let snapshot = snapshot.load();
            let counts = counts(&snapshot);
            meter.sample(counts.into_iter(), clock.now())
        };
        for word in words {
            let order = match word {
                Word::Tell {
                    service,
                    per_second,
                } => Order::Demand(DemandRecord {
                    service,
                    per_second,
                }),
                Word::Forget { service } => Order::NoDemand { service },
            };
            if orders.send(order).await.is_err() {
                return;
            }
        }
    }
}

/// Requests ever made, by service; several upstreams may call the same one.
fn counts(snapshot: &Snapshot) -> BTreeMap<&str, u64> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for upstream in snapshot.upstreams() {
        if let Some(service) = upstream.policy.service.as_deref() {
            *counts.entry(service).or_default() += upstream.shared.asked();
        }
    }
    counts
}
