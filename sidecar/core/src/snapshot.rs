//! The frozen view a request reads, built from mesh, policies and the snapshot before.
//!
//! Not here: what an upstream can do (`upstream.rs`), how shares move (`zone/`), who stores the snapshot (the
//! sidecar's `gossip/publish.rs`).

mod builder;
mod disbelief;
mod layout;
mod names;
mod subset;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_proto::{record::Health, session::SessionKeys};

use crate::{
    mesh::{Demand, Instance, Mesh},
    moment::Moment,
    policy::{Place, Policy},
};

use builder::Builder;

pub use crate::upstream::{
    Live, Member, Out, Owners, Seat, Shared, Tier, Told, Upstream, Water, Why,
};
pub use builder::region_by_name;

/// Between two looks at those that are kept although SWIM says they are dead.
const RECONSIDERED_AFTER: Duration = Duration::from_secs(1);

/// Everything a request may need to know, frozen.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts the snapshots from 1; 0 is the empty one.
    pub generation: u64,
    /// What it was built from, for listings.
    pub mesh: Arc<Mesh>,
    /// When a snapshot of the same inputs would differ, if ever: build again then.
    pub stale_at: Option<Moment>,
    upstreams: BTreeMap<Box<str>, Arc<Upstream>>,
    /// Own zone and region it was built for.
    place: (Box<str>, Box<str>),
    /// Since when nothing is heard of others.
    deaf_since: Option<Moment>,
}

/// What a snapshot is built from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Who is there and what they offer.
    pub mesh: &'a Arc<Mesh>,
    /// The upstream tables.
    pub policies: &'a [Arc<Policy>],
    /// Services without a table may be called.
    pub undeclared: bool,
    /// This host's zone.
    pub own_zone: &'a str,
    /// This host's region.
    pub own_region: &'a str,
    /// This node's name: it decides which part of a large tier is called from here.
    pub own_name: &'a str,
    /// What names in `endpoints` resolved to.
    pub resolved: &'a BTreeMap<Place, Vec<SocketAddr>>,
    /// Fixed endpoints, by upstream, whose check from here warns, fails, or has not passed yet.
    pub not_passing: &'a BTreeMap<(Box<str>, SocketAddr), Health>,
    /// What cookies of sessions are made with.
    pub session_keys: &'a Arc<SessionKeys>,
    /// Wall time in Unix milliseconds, for the age of endpoints.
    pub unix_ms: u64,
}

impl Snapshot {
    /// Nothing known, nothing callable.
    pub fn empty() -> Snapshot {
        Snapshot {
            generation: 0,
            mesh: Arc::default(),
            stale_at: None,
            upstreams: BTreeMap::new(),
            place: Default::default(),
            deaf_since: None,
        }
    }

    /// The upstream of this name.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.get(name)
    }

    /// All upstreams by name.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.values()
    }

    /// The next snapshot. Endpoints keep their `Arc` by identity, and an upstream in which nothing changed keeps
    /// its own.
    pub fn build(inputs: &Inputs<'_>, previous: &Snapshot, now: Moment) -> Snapshot {
        let mut by_service: BTreeMap<&str, Vec<&Instance>> = BTreeMap::new();
        for instance in &inputs.mesh.instances {
            let service = &*instance.record.service;
            by_service.entry(service).or_default().push(instance);
        }
        let mut policies: BTreeMap<&str, Arc<Policy>> = BTreeMap::new();
        for policy in inputs.policies {
            policies.insert(&policy.name, Arc::clone(policy));
        }
        let mut undeclared: BTreeSet<&str> = BTreeSet::new();
        if inputs.undeclared {
            for (service, instances) in &by_service {
                let spoken = |i: &&Instance| i.record.protocol.is_http();
                if instances.iter().any(spoken) && !policies.contains_key(service) {
                    undeclared.insert(service);
                    let wanted = Policy::of_service(service);
                    let kept = previous.upstream(service).map(|u| &u.policy);
                    let kept = kept.filter(|policy| ***policy == wanted).cloned();
                    policies.insert(service, kept.unwrap_or_else(|| Arc::new(wanted)));
                }
            }
        }
        let deaf_since = inputs
            .mesh
            .isolated
            .then(|| previous.deaf_since.unwrap_or(now));
        let generation = previous.generation + 1;
        let place = (inputs.own_zone.into(), inputs.own_region.into());
        let mut upstreams = BTreeMap::new();
        for (name, policy) in policies {
            let service = policy.service.as_deref();
            let instances = service
                .and_then(|s| by_service.get(s))
                .map_or(&[][..], Vec::as_slice);
            let builder = Builder {
                inputs,
                policy: &policy,
                instances,
                demands: service.map_or(&[][..], |service| demands_for(inputs.mesh, service)),
                deaf_since,
                only_http: undeclared.contains(name),
                generation,
                previous: previous.upstream(name),
                now,
            };
            let kept = builder.unchanged().filter(|_| place == previous.place);
            let upstream = kept.unwrap_or_else(|| builder.upstream());
            upstreams.insert(Box::from(name), upstream);
        }
        let tiers = upstreams.values().flat_map(|u: &Arc<Upstream>| &u.tiers);
        let histories = tiers.filter_map(|tier| tier.history.changes_at());
        let waters = upstreams.values().filter_map(|u| u.water.as_ref());
        let waters = waters.filter_map(|water| water.changes_at(deaf_since, now));
        // What is kept against SWIM's word is kept for what it does.
        let kept = upstreams.values().any(|upstream| upstream.panic);
        let doubts = kept.then(|| now + RECONSIDERED_AFTER);
        let is_watered = upstreams.values().any(|upstream| upstream.water.is_some());
        let silences = is_watered.then(|| layout::silences(&inputs.mesh.nodes, now));
        let silences = silences.into_iter().flatten();
        let all = histories.chain(waters).chain(doubts).chain(silences);
        let stale_at = all.min();
        Snapshot {
            generation,
            mesh: Arc::clone(inputs.mesh),
            stale_at,
            upstreams,
            place,
            deaf_since,
        }
    }
}

/// What all nodes ask of one service; the mesh lists demands by service.
fn demands_for<'a>(mesh: &'a Mesh, service: &str) -> &'a [Demand] {
    let from = mesh
        .demands
        .partition_point(|d| *d.record.service < *service);
    let rest = &mesh.demands[from..];
    &rest[..rest.partition_point(|d| *d.record.service == *service)]
}

#[cfg(test)]
mod tests;
