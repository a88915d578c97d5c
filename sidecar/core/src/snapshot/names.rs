//! What names an upstream's endpoints across the mesh, restarts and moves; who owns keys and hosts sessions by it.
//!
//! Not here: how keys are dealt out (`hash/`), and what a session's cookie says (`session.rs`).

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use crate::{
    endpoint::Endpoint,
    hash::{Owner, Table, seed_of},
    policy::{HashTable, Policy, Sticky},
    session::{Guest, Hosts},
    upstream::{Owners, Seat},
};

use super::Inputs;

/// A member that may own keys.
pub(super) struct Claim<'a> {
    pub endpoint: &'a Arc<Endpoint>,
    /// Its weight as its owner tells it: what this host alone suspects must not move keys.
    pub weight: f64,
    pub seat: Seat,
}

/// The owners among `claims`, their table taken over from `previous` as far as it is still true.
pub(super) fn owners(
    policy: &Policy,
    kind: HashTable,
    claims: &[Claim<'_>],
    previous: Option<&Owners>,
) -> Owners {
    let names = Names::of(policy, claims.iter().map(|claim| claim.endpoint));
    let owner = |claim: &Claim<'_>| Owner {
        seed: names.name(claim.endpoint).1,
        weight: claim.weight,
    };
    let mut pairs: Vec<(Owner, Seat)> = claims.iter().map(|c| (owner(c), c.seat)).collect();
    pairs.sort_by(|(a, _), (b, _)| a.seed.cmp(&b.seed).then(a.weight.total_cmp(&b.weight)));
    let (owners, seats) = pairs.into_iter().unzip();
    Owners {
        table: Table::new(kind, owners, previous.map(|owners| &owners.table)),
        seats,
    }
}

/// One that sessions may stay with: its tier, and whether it is draining.
pub(super) type Stay<'a> = (&'a Arc<Endpoint>, usize, bool);

/// The hosts of sessions among `stays`.
pub(super) fn hosts(
    policy: &Policy,
    sticky: &Sticky,
    inputs: &Inputs<'_>,
    stays: &[Stay<'_>],
    previous: Option<&Hosts>,
) -> Hosts {
    let names = Names::of(policy, stays.iter().map(|(endpoint, ..)| *endpoint));
    let guests = stays.iter().map(|(endpoint, tier, draining)| Guest {
        endpoint,
        tier: *tier,
        draining: *draining,
        name: names.name(endpoint),
    });
    let cookies = matches!(sticky, Sticky::Cookie { .. });
    Hosts::new(guests.collect(), inputs.session_keys, cookies, previous)
}

/// Service, node and instance name an endpoint, and its address only where that is not enough.
pub(super) struct Names<'a> {
    service: &'a str,
    /// The address of each name; `None` where there are several.
    addresses: BTreeMap<(&'a str, &'a str), Option<SocketAddr>>,
}

impl<'a> Names<'a> {
    pub fn of(policy: &'a Policy, endpoints: impl Iterator<Item = &'a Arc<Endpoint>>) -> Names<'a> {
        let mut addresses: BTreeMap<(&str, &str), Option<SocketAddr>> = BTreeMap::new();
        for endpoint in endpoints {
            let name = (&*endpoint.node_name, &*endpoint.key.instance);
            let address = Some(endpoint.key.address);
            let known = addresses.entry(name).or_insert(address);
            if *known != address {
                *known = None;
            }
        }
        Names {
            service: policy.service.as_deref().unwrap_or(&policy.name),
            addresses,
        }
    }

    /// The parts of an endpoint's name, and them hashed.
    pub fn name(&self, endpoint: &Endpoint) -> (Vec<Box<[u8]>>, u64) {
        let instance = &*endpoint.key.instance;
        let name = (&*endpoint.node_name, instance);
        let address = endpoint.key.address.to_string();
        let is_shared = self.addresses.get(&name).is_some_and(Option::is_none);
        let parts: &[&str] = match () {
            // Outside the mesh the place may be written in many ways, and a name may have several addresses.
            () if endpoint.key.node == 0 => &[self.service, &address],
            () if is_shared => &[self.service, &endpoint.node_name, instance, &address],
            () => &[self.service, &endpoint.node_name, instance],
        };
        let bytes: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
        let seed = seed_of(&bytes);
        (bytes.into_iter().map(Box::from).collect(), seed)
    }
}
