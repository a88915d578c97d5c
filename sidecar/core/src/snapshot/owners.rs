//! Whose which key is: names, weights and seats of an upstream's members.
//!
//! Not here: how keys are dealt out (`hash/`).

use std::collections::BTreeMap;

use crate::{
    endpoint::Endpoint,
    hash::{Owner, Table, seed_of},
    policy::{HashTable, Policy},
    upstream::{Owners, Seat},
};

/// A member that may own keys.
pub(super) struct Claim<'a> {
    pub endpoint: &'a Endpoint,
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
        seed: names.seed(claim.endpoint),
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

/// What names endpoints across the mesh, restarts and moves: service, node and instance, and the address only where
/// that is not enough.
struct Names<'a> {
    service: &'a str,
    counts: BTreeMap<(&'a str, &'a str), usize>,
}

impl<'a> Names<'a> {
    fn of(policy: &'a Policy, endpoints: impl Iterator<Item = &'a Endpoint>) -> Names<'a> {
        let mut counts = BTreeMap::new();
        for endpoint in endpoints {
            let name = (&*endpoint.node_name, &*endpoint.key.instance);
            *counts.entry(name).or_default() += 1;
        }
        Names {
            service: policy.service.as_deref().unwrap_or(&policy.name),
            counts,
        }
    }

    fn seed(&self, endpoint: &Endpoint) -> u64 {
        let (service, node) = (self.service.as_bytes(), endpoint.node_name.as_bytes());
        let instance = &*endpoint.key.instance;
        let address = || endpoint.key.address.to_string();
        // Outside the mesh the place may be written in many ways, and a name may have several addresses.
        if endpoint.key.node == 0 {
            return seed_of(&[service, address().as_bytes()]);
        }
        let name = (&*endpoint.node_name, instance);
        if self.counts.get(&name).is_some_and(|count| *count > 1) {
            let address = address();
            return seed_of(&[service, node, instance.as_bytes(), address.as_bytes()]);
        }
        seed_of(&[service, node, instance.as_bytes()])
    }
}
