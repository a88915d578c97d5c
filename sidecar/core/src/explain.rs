//! What would be decided now and why, in words and numbers, for listings and `explain`.
//!
//! Not here: the decisions themselves; every figure comes from the function that decides with it.

mod account;
mod request;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::Serialize;

use crate::{
    balance::least_response_time::{Factors, is_thick, mean_latency, mean_weight, staleness},
    endpoint::{Endpoint, Word},
    moment::Moment,
    policy::{Balance, Hash, Policy, ZoneMode},
    snapshot::Snapshot,
    upstream::{Member, Out, Owners, Tier, Told, Upstream, Water},
    zone::{
        self,
        water::{Figures, Flows},
    },
};

pub use account::Account;
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

/// One endpoint.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct EndpointView {
    /// Its instance name.
    pub instance: Box<str>,
    /// Its node's name; empty outside the mesh.
    pub node: Box<str>,
    /// Where it is called.
    pub address: SocketAddr,
    /// Its zone.
    pub zone: Box<str>,
    /// How near its tier is, 0 being the nearest; none if it is in no tier.
    pub tier: Option<usize>,
    /// A request could go there now.
    pub usable: bool,
    /// Why not, or what is said against it although it is usable.
    pub why: Option<&'static str>,
    /// This sidecar's requests in flight there.
    pub in_flight: u32,
    /// Smoothed latency of good answers; none before the first.
    pub latency_ms: Option<f64>,
    /// Share of attempts that went well, 0 to 1.
    pub success: f64,
    /// For how much longer it is out; 0 while its canary is awaited, none when it is in.
    pub ejected_for_ms: Option<u64>,
    /// What it adds to its zone's C: requests per second where they are known of every instance, declared or learned, else
    /// its weight; none for whom nobody may call.
    pub capacity: Option<f64>,
    /// What one more request there would cost; none for whom no request may go to.
    pub cost: Option<CostView>,
}

/// The factors of a candidate's cost; those that its policy does not look at are told all the same.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CostView {
    /// Expected latency, drawn towards the mean while idle.
    pub latency_ms: f64,
    /// Requests in flight.
    pub own: u32,
    /// Success share.
    pub success: f64,
    /// Factor of a silence under way.
    pub stall: f64,
    /// Share of the weight granted by the ramp.
    pub ramp: f64,
    /// Weight, with what warning and suspicion leave of it.
    pub weight: f64,
    /// Factor of having been asked more or less than its share lately, 0.7 to 1.3: it sets near ties apart. As the worker
    /// has it that looked last.
    pub evenness: f64,
    /// Factor of not having answered for a while where all others do; 1 with requests in flight, which tell more.
    pub quiet: f64,
    /// What its policy compares, the smallest being called: all of it together for `least_response_time`, (in flight + 1)
    /// by weight for `least_connections`, those in flight for `power_of_two`; none where nothing is compared. Only
    /// comparisons within a tier mean anything.
    pub cost: Option<f64>,
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

/// Everybody an upstream knows, those in tiers first.
pub fn endpoints(upstream: &Upstream, now: Moment) -> Vec<EndpointView> {
    let mut views = Vec::new();
    for tier in &upstream.tiers {
        let inside = tier.members.iter().filter(|m| !m.endpoint.is_ejected());
        let usual = Usual {
            latency: mean_latency(&tier.members),
            weight: mean_weight(&tier.members),
            top_ramp: inside.map(|m| m.endpoint.ramp(now)).fold(0.0, f64::max),
            is_busy: is_busy(tier, now),
        };
        for member in &tier.members {
            views.push(of_member(upstream, member, tier.level, &usual, now));
        }
    }
    let level = |out: &Out| out.tier.map(|at| upstream.tiers[at].level);
    views.extend(upstream.out.iter().map(|out| of_out(out, level(out), now)));
    views
}

/// Whether so much is asked of a tier that each of those who may be called should answer all the time.
fn is_busy(tier: &Tier, now: Moment) -> bool {
    let all = tier.members.iter().map(|m| &m.endpoint);
    let open = all
        .clone()
        .filter(|e| !e.is_ejected() && e.full_for(now).is_none());
    let open = u32::try_from(open.count()).unwrap_or(u32::MAX);
    is_thick(all.map(|endpoint| endpoint.in_flight()).sum(), open)
}

/// What a tier's members are compared with.
struct Usual {
    latency: f64,
    weight: f64,
    top_ramp: f64,
    is_busy: bool,
}

fn of_member(
    upstream: &Upstream,
    member: &Member,
    tier: usize,
    usual: &Usual,
    now: Moment,
) -> EndpointView {
    let endpoint = &member.endpoint;
    let limit = upstream.policy.limits.endpoint_requests;
    let (usable, why) = match member.word {
        _ if endpoint.is_ejected() => (false, Some("ejected")),
        _ if endpoint.full_for(now).is_some() => (false, Some("overloaded")),
        _ if limit.is_some_and(|limit| endpoint.in_flight() >= limit) => {
            (false, Some("at its limit"))
        }
        _ if !member.is_well(now) => (true, Some("silent")),
        Word::Suspect => (true, Some("suspect")),
        Word::Vanished => (true, Some("panic: down, not believed")),
        Word::Sure if member.warns => (true, Some("warning")),
        Word::Sure => (true, None),
    };
    let cost = usable.then(|| cost(upstream.policy.balance, member, usual, now));
    EndpointView {
        capacity: Some(member.capacity),
        ..view(endpoint, Some(tier), usable, why, cost, now)
    }
}

fn cost(balance: Balance, member: &Member, usual: &Usual, now: Moment) -> CostView {
    let endpoint = &member.endpoint;
    let ramp = endpoint.ramp(now) / usual.top_ramp;
    let weight = member.weight / usual.weight;
    let factors = Factors::of(endpoint, weight, ramp, usual.latency, now);
    let by_time = balance == Balance::LeastResponseTime;
    let evenness = if by_time { endpoint.evenness() } else { 1.0 };
    let quiet = if by_time && usual.is_busy && factors.own == 0 {
        staleness(endpoint, now)
    } else {
        1.0
    };
    let (evenness, quiet, own) = (
        f64::from(evenness),
        f64::from(quiet),
        f64::from(factors.own),
    );
    CostView {
        latency_ms: factors.latency / 1e6,
        own: factors.own,
        success: factors.success,
        stall: factors.stall,
        ramp: factors.ramp,
        weight: member.weight,
        evenness,
        quiet,
        cost: match balance {
            Balance::LeastResponseTime => Some(factors.cost() * evenness * quiet),
            Balance::LeastConnections => Some((own + 1.0) / (weight * ramp)),
            Balance::PowerOfTwo => Some(own),
            Balance::RoundRobin | Balance::Random => None,
        },
    }
}

fn of_out(out: &Out, tier: Option<usize>, now: Moment) -> EndpointView {
    view(
        &out.endpoint,
        tier,
        false,
        Some(out.why.as_str()),
        None,
        now,
    )
}

fn view(
    endpoint: &Endpoint,
    tier: Option<usize>,
    usable: bool,
    why: Option<&'static str>,
    cost: Option<CostView>,
    now: Moment,
) -> EndpointView {
    EndpointView {
        instance: endpoint.key.instance.clone(),
        node: endpoint.node_name.clone(),
        address: endpoint.key.address,
        zone: endpoint.zone.clone(),
        tier,
        usable,
        why,
        in_flight: endpoint.in_flight(),
        latency_ms: endpoint.load().latency().map(|nanos| nanos / 1e6),
        success: f64::from(endpoint.load().success()),
        ejected_for_ms: endpoint.ejected_for(now).map(millis),
        capacity: None,
        cost,
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        balance::{Ask, Picker},
        mesh::NodeState,
        outcome::{Outcome, Unreachable},
        staging::{SERVICE, Stage, at, dice, report},
    };

    #[test]
    fn everybody_known_is_told_with_standing_cost_and_share() {
        let mut stage = Stage::by_priority(&["a1", "a1", "a1", "b1", "b1"]);
        stage.state(2, NodeState::Suspect, at(0));
        stage.state(4, NodeState::Left, at(0));
        let upstream = stage.build(at(0));
        for i in 0..5 {
            report(
                &upstream,
                0,
                Outcome::Unreachable(Unreachable::Refused),
                0,
                at(i),
            );
        }
        let full = Outcome::Overloaded {
            retry_after: Duration::from_secs(1),
        };
        report(&upstream, 1, full, 1, at(5));
        let seen = of_service(&stage.snapshot, SERVICE, at(10)).unwrap();
        let why: Vec<_> = seen.iter().map(|e| (e.tier, e.usable, e.why)).collect();
        assert_eq!(
            why,
            [
                (Some(0), false, Some("ejected")),
                (Some(0), false, Some("overloaded")),
                (Some(0), true, Some("suspect")),
                (Some(2), true, None),
                (Some(2), false, Some("left")),
            ]
        );
        assert!(seen[0].ejected_for_ms.is_some_and(|ms| ms > 700));
        let cost = seen[2].cost.as_ref().unwrap();
        assert_eq!((cost.weight, cost.own, cost.stall), (25.0, 0, 1.0));
        let view = super::upstream(&upstream, at(10));
        assert_eq!((view.tiers[0].well, view.tiers[0].total), (2, 3));
        assert!((view.tiers[0].target - 1.4 * 2.0 / 3.0).abs() < 1e-9);
        assert!(of_service(&stage.snapshot, "nobody", at(10)).is_none());
    }

    #[test]
    fn a_candidates_cost_is_what_its_policy_compares() {
        let upstream = Stage::new(&["a1"; 3]).build(at(0));
        for i in 0..3 {
            report(&upstream, i, Outcome::Success, 1, at(0));
        }
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        // Two of three are out of reach: the third is asked more than its share, and it shows.
        let [a, b, c] =
            [0, 1, 2].map(|i| upstream.members().nth(i).expect("it is there").endpoint.id);
        let ask = Ask {
            tried: &[a, b],
            ..Ask::default()
        };
        for _ in 0..20 {
            let pick = picker.pick(&ask, at(1), &mut rng).expect("one is left");
            assert_eq!(pick.endpoint.id, c);
        }
        let next = picker
            .pick(&Ask::default(), at(20), &mut rng)
            .expect("all are in");
        let seen = endpoints(&upstream, at(20));
        let cost = |i: usize| seen[i].cost.as_ref().expect("it is usable");
        assert!((cost(2).evenness - 1.3).abs() < 0.01, "{:?}", cost(2));
        assert!((cost(0).evenness - 0.7).abs() < 0.01, "{:?}", cost(0));
        assert!(cost(0).cost < cost(2).cost);
        assert_ne!(next.endpoint.id, c);
        for (balance, want) in [
            (Balance::LeastConnections, Some(2.0)),
            (Balance::PowerOfTwo, Some(1.0)),
            (Balance::Random, None),
        ] {
            let upstream = Stage::with(&["a1"; 2], |policy| policy.balance = balance).build(at(0));
            upstream
                .members()
                .next()
                .expect("it is there")
                .endpoint
                .begin(at(0));
            let seen = endpoints(&upstream, at(1));
            let cost = seen[0].cost.as_ref().map(|factors| factors.cost);
            assert_eq!(cost, Some(want), "{balance:?}");
        }
    }

    #[test]
    fn whoever_is_quiet_while_the_others_answer_is_told_so() {
        let upstream = Stage::new(&["a1"; 3]).build(at(0));
        for i in 0..3 {
            report(&upstream, i, Outcome::Success, 1, at(0));
        }
        for member in upstream.members().skip(1) {
            member.endpoint.begin(at(50));
        }
        upstream
            .members()
            .next()
            .expect("it is there")
            .endpoint
            .begin(at(0));
        upstream
            .members()
            .next()
            .expect("it is there")
            .endpoint
            .end(at(0));
        let seen = endpoints(&upstream, at(60));
        let quiet = |i: usize| seen[i].cost.as_ref().map(|cost| cost.quiet);
        assert_eq!([0, 1, 2].map(quiet), [Some(2.5), Some(1.0), Some(1.0)]);
    }
}
