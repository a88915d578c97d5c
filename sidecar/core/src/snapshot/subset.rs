//! Whom of a large tier this sidecar calls: a part of its own, so that nobody holds connections to everybody.
//!
//! Not here: who may be called at all (`builder.rs`).
//!
//! Every endpoint draws a lot for every sidecar, and the best lots of a tier are called (rendezvous: Thaler and
//! Ravishankar, 1998). A sidecar keeps its part over restarts of its own and of others; one that comes or goes changes at
//! most one place in it. Each endpoint is called by about the same number of sidecars, give or take what chance does to
//! independent draws.

use std::cmp::Reverse;

use crate::{hash::seed_of, upstream::Why};

use super::{
    builder::{Builder, Candidate},
    names::Names,
};

/// What may be called in one tier, those that are left to other sidecars among them.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Whole {
    /// How many.
    pub count: u32,
    /// Their capacity.
    pub capacity: f64,
}

impl Builder<'_> {
    /// Leaves what is beyond this sidecar's part of each of so many tiers to others, and tells of each tier what it was
    /// before. Whoever is kept stands for the capacity of the rest.
    pub(super) fn narrow(&self, candidates: &mut [Candidate], tiers: usize) -> Vec<Whole> {
        let mut callable: Vec<Vec<usize>> = vec![Vec::new(); tiers];
        for (at, candidate) in candidates.iter().enumerate() {
            if let (Ok(_), Some(tier)) = (candidate.standing, candidate.tier) {
                callable[tier].push(at);
            }
        }
        let most = self.policy.subset_max();
        let mut wholes = Vec::with_capacity(tiers);
        for mut members in callable {
            let capacity = |members: &[usize], all: &[Candidate]| -> f64 {
                members.iter().map(|at| all[*at].capacity).sum()
            };
            let whole = Whole {
                count: u32::try_from(members.len()).unwrap_or(u32::MAX),
                capacity: capacity(&members, candidates),
            };
            wholes.push(whole);
            if members.len() <= most {
                continue;
            }
            self.by_lot(&mut members, candidates);
            let left = members.split_off(most);
            let part = capacity(&members, candidates);
            for at in members.into_iter().filter(|_| part > 0.0) {
                candidates[at].capacity *= whole.capacity / part;
            }
            for at in left {
                candidates[at].standing = Err(Why::NotInSubset);
            }
        }
        wholes
    }

    /// The best lots first.
    fn by_lot(&self, members: &mut [usize], candidates: &[Candidate]) {
        let endpoints = members.iter().map(|at| &candidates[*at].endpoint);
        let names = Names::of(self.policy, endpoints);
        let own = self.inputs.own_name.as_bytes();
        members.sort_by_cached_key(|at| {
            let endpoint = &candidates[*at].endpoint;
            let seed = names.name(endpoint).1;
            // Two of one name and one lot are told apart by what else they are.
            (
                Reverse(seed_of(&[own, &seed.to_le_bytes()])),
                endpoint.key.clone(),
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        sync::Arc,
    };

    use mesh_proto::record::Health;

    use crate::{
        mesh::NodeState,
        policy::{Hash, HashKey, Sticky, ZoneMode},
        snapshot::Snapshot,
        staging::{Stage, at},
        upstream::Upstream,
        zone,
    };

    fn stage(zones: &[&str], subset: u32) -> Stage {
        Stage::with(zones, |policy| policy.subset = Some(subset))
    }

    fn part(upstream: &Upstream, tier: usize) -> BTreeSet<Box<str>> {
        let members = upstream.tiers[tier].members.iter();
        members.map(|m| m.endpoint.key.instance.clone()).collect()
    }

    #[test]
    fn a_large_tier_is_called_in_part_and_every_tier_is_called() {
        let mut zones = vec!["a1"; 300];
        zones.extend(["a2"; 20]);
        zones.extend(["b1"; 3]);
        let mut stage = stage(&zones, 256);
        let upstream = stage.build(at(0));
        let sizes: Vec<usize> = upstream.tiers.iter().map(|t| t.members.len()).collect();
        assert_eq!(sizes, [256, 20, 3]);
        let out: BTreeSet<&str> = upstream.out.iter().map(|o| o.why.as_str()).collect();
        assert_eq!((upstream.out.len(), out.len()), (44, 1));
        assert_eq!(upstream.tiers[0].callable, 300);
        // Zones are filled by what is there, not by what this sidecar calls of it.
        let capacity: f64 = upstream.tiers[0].members.iter().map(|m| m.capacity).sum();
        assert!((capacity - 30_000.0).abs() < 1e-6, "{capacity}");
    }

    #[test]
    fn every_endpoint_has_callers_and_sidecars_call_different_ones() {
        let mut stage = stage(&["a1"; 400], 40);
        let mut callers: BTreeMap<Box<str>, u32> = BTreeMap::new();
        let mut parts = BTreeSet::new();
        for sidecar in 0..200 {
            stage.own_name = format!("host-{sidecar}");
            stage.snapshot = Snapshot::empty();
            let part = part(&stage.build(at(0)), 0);
            for instance in &part {
                *callers.entry(instance.clone()).or_default() += 1;
            }
            parts.insert(part);
        }
        assert_eq!((callers.len(), parts.len()), (400, 200));
        // Twenty each, with a standard deviation of 4.2 by chance.
        let usual = 4..=36;
        assert!(
            callers.values().all(|count| usual.contains(count)),
            "{callers:?}"
        );
    }

    #[test]
    fn one_that_goes_is_replaced_by_one_and_a_restart_changes_nothing() {
        let mut stage = stage(&["a1"; 100], 16);
        let first = part(&stage.build(at(0)), 0);
        let name = |i: usize| format!("shop-{i}").into_boxed_str();
        let inside = (0..100)
            .find(|i| first.contains(&name(*i)))
            .expect("some are");
        stage.record(inside, |record| record.health = Health::Failing);
        let without = part(&stage.build(at(10)), 0);
        assert_eq!(
            (without.len(), first.intersection(&without).count()),
            (16, 15)
        );
        stage.record(inside, |record| record.health = Health::Passing);
        assert_eq!(part(&stage.build(at(20)), 0), first);
        // Every host is started anew, at another address.
        for i in 0..100 {
            stage.instances[i].epoch = 2;
            let address = ([10, 7, 7, i as u8], 9).into();
            stage.record(i, |record| record.address = address);
        }
        assert_eq!(part(&stage.build(at(30)), 0), first);
    }

    #[test]
    fn a_loss_outside_the_part_counts_for_the_health_of_the_tier() {
        let mut zones = vec!["a1"; 64];
        zones.push("b1");
        let mut stage = stage(&zones, 16);
        Arc::make_mut(&mut stage.policies[0]).zones.mode = ZoneMode::Priority;
        stage.build(at(0));
        for i in 0..32 {
            stage.state(i, NodeState::Down, at(100));
            stage.build(at(6_000 + 6_000 * i as u64));
        }
        let upstream = stage.upstream();
        let tier = &upstream.tiers[0];
        assert_eq!(
            (tier.members.len(), tier.callable, tier.total),
            (16, 32, 64)
        );
        assert_eq!(zone::health(tier.whole(16), tier.total), 0.7);
    }

    #[test]
    fn keys_and_sessions_reach_everybody() {
        let mut hashing = Stage::with(&["a1"; 50], |policy| {
            policy.subset = Some(16);
            policy.hash = Some(Hash::by(HashKey::Path));
        });
        assert_eq!(hashing.build(at(0)).members().count(), 50);
        let mut sticky = stage(&["a1"; 50], 16);
        Arc::make_mut(&mut sticky.policies[0]).sticky = Some(Sticky::Cookie {
            name: "starling".into(),
            ttl: None,
        });
        let upstream = sticky.build(at(0));
        assert_eq!(upstream.members().count(), 16);
        let hosts = upstream.hosts.as_ref().expect("it is sticky");
        let left = &upstream.out[0].endpoint;
        let host = hosts
            .by_id(left.id)
            .expect("another sidecar may have sent it there");
        assert!(!host.draining);
    }
}
