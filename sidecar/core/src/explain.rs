//! What would be decided now and why, in words and numbers, for listings and `explain`.
//!
//! Not here: the decisions themselves; every figure comes from the function that decides with it.

mod account;
mod endpoints;
mod request;

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use crate::{
    moment::Moment,
    policy::{Balance, Hash, Policy, ZoneMode},
    snapshot::Snapshot,
    upstream::{Owners, Tier, Told, Upstream, Water},
    zone::{
        self,
        water::{Figures, Flows},
    },
};

pub use account::Account;
pub use endpoints::{CostView, EndpointView, endpoints};
pub use request::{Asked, OwnerView, RequestView, Step, request};

/// One upstream's decisions at one moment.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct UpstreamView {
    /// Its name.
    pub upstream: Box<str>,
    /// The mesh service it calls, if any.
    pub service: Option<Box<str>>,
    /// Its policy, as the configuration spells it.
    pub balance: &'static str,
    /// `waterfill`, `priority` or `ignore`, as it is in effect.
    pub zones: &'static str,
    /// By what requests belong to endpoints, if by anything.
    pub hash: Option<HashView>,
    /// SWIM is not believed at the moment.
    pub panic: bool,
    /// Requests and repeats of the last 10 s.
    pub requests_10s: u32,
    /// See `requests_10s`.
    pub retries_10s: u32,
    /// Nearest first.
    pub tiers: Vec<TierView>,
    /// What the shares are reckoned from; none where zones do not follow water-filling.
    pub water: Option<WaterView>,
    /// Everybody known: those that may be called first, by tier.
    pub endpoints: Vec<EndpointView>,
}

/// What water-filling reckons with, and what it comes to for this host.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct WaterView {
    /// `requests per second` where every instance has a capacity, declared or learned, else `weights`.
    pub capacity_unit: &'static str,
    /// Demand of all zones over capacity of all, ΣD/ΣC; none without any capacity.
    pub load: Option<f64>,
    /// T: demand that a zone takes per unit of its capacity before it hands on.
    pub target: f64,
    /// ΣD/ΣC is over 0.9: nothing more is spilled, servers shed what is too much.
    pub overload: bool,
    /// x: the share of this host's requests that is to stay with its nearest level.
    pub local: f64,
    /// By name.
    pub zones: Vec<WaterZoneView>,
}

/// One zone's figures.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct WaterZoneView {
    /// Its name.
    pub zone: Box<str>,
    /// This host stands in it.
    pub own: bool,
    /// Its level seen from here, 0 the nearest; none if it has no instance, or no place in the order.
    pub tier: Option<usize>,
    /// C: capacity of its endpoints that are well for this sidecar.
    pub capacity: f64,
    /// T·C: demand it takes before it hands on.
    pub filled: f64,
    /// D: requests per second that its own applications ask for, as its sidecars tell.
    pub demand: f64,
    /// `fresh`, `frozen` (silent: its last figures stand) or `hosts` (silent for long: reckoned by its hosts).
    pub told: &'static str,
    /// For how long nothing was heard from it, where that matters.
    pub silent_ms: Option<u64>,
    /// Half of its endpoints were found bad within a second: its capacity counts as zero here.
    pub tripped: bool,
    /// x: the share of its own demand that it keeps at its nearest level.
    pub local: f64,
    /// Share of this host's requests that is to go there.
    pub target: f64,
    /// Share of this host's requests that goes there now; losses are followed at once, gains slowly.
    pub share: f64,
}

/// By what requests belong to endpoints.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct HashView {
    /// What of a request is its key, as the configuration spells it.
    pub key: String,
    /// The table with the version of its functions: sidecars that show the same agree.
    pub table: &'static str,
    /// Endpoints that own keys.
    pub owners: usize,
    /// Lookups are one read; until then they are worked out, with the same result.
    pub built: bool,
}

/// One tier's share and what it comes from.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TierView {
    /// How near it is, 0 being the nearest; with water-filling, zones that are equally near are tiers of their own.
    pub tier: usize,
    /// Its name.
    pub name: Box<str>,
    /// The zone it stands for; empty where it may hold several.
    pub zone: Box<str>,
    /// Share of the requests as last used, 0 to 1.
    pub share: f64,
    /// Share it is on its way to.
    pub target: f64,
    /// Endpoints in it that this sidecar calls.
    pub members: usize,
    /// Endpoints in it that may be called: more than `members` where other sidecars call the rest.
    pub callable: u32,
    /// Of those, how many are neither sent out nor silent, as far as the members tell.
    pub well: u32,
    /// Endpoints it should have.
    pub total: u32,
    /// What `well` of `total` carries of the whole load, 0 to 1.
    pub health: f64,
    /// Half of it was found bad within a second: it only gets canaries.
    pub tripped: bool,
    /// It is used only when no other tier has anybody.
    pub backup: bool,
}

fn algorithm(policy: &Policy) -> &'static str {
    match policy.balance {
        Balance::LeastResponseTime => "least_response_time",
        Balance::RoundRobin => "round_robin",
        Balance::LeastConnections => "least_connections",
        Balance::PowerOfTwo => "power_of_two",
        Balance::Random => "random",
    }
}

fn zone_mode(policy: &Policy) -> &'static str {
    match policy.zone_mode() {
        ZoneMode::Waterfill => "waterfill",
        ZoneMode::Priority => "priority",
        ZoneMode::Ignore => "ignore",
    }
}

fn hash((owners, hash): (&Owners, &Hash)) -> HashView {
    HashView {
        key: hash.key.to_string(),
        table: hash.table.name(),
        owners: owners.table.owners().len(),
        built: owners.table.is_built(),
    }
}

/// Everything about one upstream.
pub fn upstream(upstream: &Upstream, now: Moment) -> UpstreamView {
    let policy = &upstream.policy;
    let (requests_10s, retries_10s) = upstream.shared.budget.tally(now);
    UpstreamView {
        upstream: policy.name.clone(),
        service: policy.service.clone(),
        balance: match policy.hash {
            Some(_) => "consistent_hash",
            None => algorithm(policy),
        },
        zones: zone_mode(policy),
        hash: upstream.owners.as_ref().zip(policy.hash.as_ref()).map(hash),
        panic: upstream.panic,
        requests_10s,
        retries_10s,
        tiers: tiers(upstream, now),
        water: water(upstream, now),
        endpoints: endpoints(upstream, now),
    }
}

/// The endpoints of a service by the upstream that callers reach by this name, else by the first that calls the
/// service of this name; `None` if there is neither.
pub fn of_service(snapshot: &Snapshot, service: &str, now: Moment) -> Option<Vec<EndpointView>> {
    let calls = |u: &&Arc<Upstream>| u.policy.service.as_deref() == Some(service);
    let found = snapshot.upstream(service);
    let found = found.or_else(|| snapshot.upstreams().find(calls))?;
    Some(endpoints(found, now))
}

/// The tiers of an upstream with their shares.
pub fn tiers(upstream: &Upstream, now: Moment) -> Vec<TierView> {
    let targets = match flows(upstream, now) {
        Some((water, _, flows)) => of_zones(upstream, water, flows.of(water.own)),
        None => spilled(upstream, now),
    };
    let used = upstream.tiers.iter().any(|tier| tier.live.share() > 0.0);
    let tiers = upstream.tiers.iter().zip(targets);
    tiers
        .map(|(tier, target)| TierView {
            tier: tier.level,
            name: tier.name.clone(),
            zone: tier.zone.clone(),
            share: if used { tier.live.share() } else { target },
            target,
            members: tier.members.len(),
            callable: tier.callable,
            well: well(tier, now),
            total: tier.total,
            health: zone::health(well(tier, now), tier.total),
            tripped: tier.live.is_tripped(),
            backup: tier.backup,
        })
        .collect()
}

/// What an upstream's shares are reckoned from, where that is water-filling.
pub fn water(upstream: &Upstream, now: Moment) -> Option<WaterView> {
    let (water, figures, flows) = flows(upstream, now)?;
    let fill = zone::water::target(&figures, water.declared);
    let tiers = tiers(upstream, now);
    let zones = water.zones.iter().zip(&figures).enumerate();
    let zones = zones.map(|(at, (zone, figures))| {
        let tier = zone.tier.map(|tier| &tiers[tier]);
        let (told, since) = match zone.told {
            Told::Fresh => ("fresh", None),
            Told::Frozen { since } => ("frozen", Some(since)),
            Told::Hosts { since } => ("hosts", Some(since)),
        };
        WaterZoneView {
            zone: zone.name.clone(),
            own: at == water.own,
            tier: tier.map(|tier| tier.tier),
            capacity: figures.capacity,
            filled: figures.capacity * fill.target,
            demand: figures.demand,
            told,
            silent_ms: since.map(|since| millis(now.since(since))),
            tripped: tier.is_some_and(|tier| tier.tripped),
            local: flows.nearest(at, &water.levels),
            target: flows.of(water.own)[at],
            share: tier.map_or(0.0, |tier| tier.share),
        }
    });
    Some(WaterView {
        capacity_unit: if water.declared {
            "requests per second"
        } else {
            "weights"
        },
        load: fill.load.is_finite().then_some(fill.load),
        target: fill.target,
        overload: fill.overload,
        local: flows.nearest(water.own, &water.levels),
        zones: zones.collect(),
    })
}

/// How many of a tier are well, as far as its members tell.
fn well(tier: &Tier, now: Moment) -> u32 {
    let well = tier.members.iter().filter(|m| m.is_well(now));
    tier.whole(u32::try_from(well.count()).unwrap_or(u32::MAX))
}

/// Where priority with spill wants the shares.
fn spilled(upstream: &Upstream, now: Moment) -> Vec<f64> {
    let health = |tier: &Tier| match tier.live.is_tripped() {
        true => 0.0,
        false => zone::health(well(tier, now), tier.total),
    };
    let mut healths: Vec<f64> = upstream.tiers.iter().map(health).collect();
    zone::spare_backups(&upstream.tiers, &mut healths);
    let mut targets = vec![0.0; healths.len()];
    zone::spill(&healths, &mut targets);
    targets
}

/// Where water-filling wants the shares of all zones, and from which figures.
fn flows(upstream: &Upstream, now: Moment) -> Option<(&Water, Vec<Figures>, Flows)> {
    let water = upstream.water.as_ref()?;
    let capacity = |tier: &Tier| match tier.live.is_tripped() {
        true => 0.0,
        false => {
            let well = tier.members.iter().filter(|m| m.is_well(now));
            // The sum of nothing would be a negative zero.
            well.map(|member| member.capacity)
                .fold(0.0, |sum, capacity| sum + capacity)
        }
    };
    let zones = water.zones.iter();
    let figures: Vec<Figures> = zones
        .map(|zone| Figures {
            capacity: zone.tier.map_or(0.0, |at| capacity(&upstream.tiers[at])),
            demand: zone.demand,
        })
        .collect();
    let mut flows = Flows::new(figures.len());
    let fill = zone::water::target(&figures, water.declared);
    flows.fill(&figures, &water.levels, fill, &vec![1.0; figures.len()]);
    Some((water, figures, flows))
}

/// Shares by tier from shares by zone; a backup takes over where nobody else has anything.
fn of_zones(upstream: &Upstream, water: &Water, flows: &[f64]) -> Vec<f64> {
    let mut targets = vec![0.0; upstream.tiers.len()];
    for (zone, share) in water.zones.iter().zip(flows) {
        if let Some(tier) = zone.tier {
            targets[tier] = *share;
        }
    }
    if let (Some(target), Some(tier)) = (targets.last_mut(), upstream.tiers.last())
        && tier.backup
        && flows.iter().all(|share| *share <= 0.0)
    {
        *target = 1.0;
    }
    targets
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
