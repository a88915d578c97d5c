//! What would be decided now and why, in words and numbers, for listings and `explain`.
//!
//! Not here: the decisions themselves; every figure comes from the function that decides with it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::Serialize;

use crate::{
    balance::least_response_time::{Factors, mean_latency},
    endpoint::{Endpoint, Word},
    moment::Moment,
    policy::{Balance, ZoneMode},
    snapshot::Snapshot,
    upstream::{Member, Out, Tier, Upstream},
    zone,
};

/// One upstream's decisions at one moment.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct UpstreamView {
    /// Its name.
    pub upstream: Box<str>,
    /// The mesh service it calls, if any.
    pub service: Option<Box<str>>,
    /// Its policy, as the configuration spells it.
    pub balance: &'static str,
    /// `priority` or `ignore`.
    pub zones: &'static str,
    /// SWIM is not believed at the moment.
    pub panic: bool,
    /// Requests and repeats of the last 10 s.
    pub requests_10s: u32,
    /// See `requests_10s`.
    pub retries_10s: u32,
    /// Nearest first.
    pub tiers: Vec<TierView>,
    /// Everybody known: those that may be called first, by tier.
    pub endpoints: Vec<EndpointView>,
}

/// One tier's share and what it comes from.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TierView {
    /// Its index.
    pub tier: usize,
    /// Its name.
    pub name: Box<str>,
    /// Share of the requests as last used, 0 to 1.
    pub share: f64,
    /// Share it is on its way to.
    pub target: f64,
    /// Endpoints in it that are neither sent out nor silent.
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
    /// Index of its tier; none if it is in no tier.
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
    /// What one more request there would cost; none for whom no request may go to.
    pub cost: Option<CostView>,
}

/// The factors of `least_response_time`; other policies use only some of them.
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
    /// All of it together; only comparisons within a tier mean anything.
    pub cost: f64,
}

/// Everything about one upstream.
pub fn upstream(upstream: &Upstream, now: Moment) -> UpstreamView {
    let policy = &upstream.policy;
    let (requests_10s, retries_10s) = upstream.shared.budget.tally(now);
    UpstreamView {
        upstream: policy.name.clone(),
        service: policy.service.clone(),
        balance: match policy.balance {
            Balance::LeastResponseTime => "least_response_time",
            Balance::RoundRobin => "round_robin",
            Balance::LeastConnections => "least_connections",
            Balance::PowerOfTwo => "power_of_two",
            Balance::Random => "random",
        },
        zones: match policy.zones.mode {
            ZoneMode::Priority => "priority",
            ZoneMode::Ignore => "ignore",
        },
        panic: upstream.panic,
        requests_10s,
        retries_10s,
        tiers: tiers(upstream, now),
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
    let well = |tier: &Tier| {
        let well = tier.members.iter().filter(|m| m.is_well(now));
        u32::try_from(well.count()).unwrap_or(u32::MAX)
    };
    let health = |tier: &Tier| zone::health(well(tier), tier.total);
    let mut healths: Vec<f64> = upstream.tiers.iter().map(health).collect();
    for (health, tier) in healths.iter_mut().zip(&upstream.tiers) {
        if tier.live.is_tripped() {
            *health = 0.0;
        }
    }
    zone::spare_backups(&upstream.tiers, &mut healths);
    let mut targets = vec![0.0; healths.len()];
    zone::spill(&healths, &mut targets);
    let used = upstream.tiers.iter().any(|tier| tier.live.share() > 0.0);
    let tiers = upstream.tiers.iter().zip(targets).enumerate();
    tiers
        .map(|(i, (tier, target))| TierView {
            tier: i,
            name: tier.name.clone(),
            share: if used { tier.live.share() } else { target },
            target,
            well: well(tier),
            total: tier.total,
            health: health(tier),
            tripped: tier.live.is_tripped(),
            backup: tier.backup,
        })
        .collect()
}

/// Everybody an upstream knows, those in tiers first.
pub fn endpoints(upstream: &Upstream, now: Moment) -> Vec<EndpointView> {
    let mut views = Vec::new();
    for (i, tier) in upstream.tiers.iter().enumerate() {
        let mean = mean_latency(&tier.members);
        let inside = tier.members.iter().filter(|m| !m.endpoint.is_ejected());
        let top_ramp = inside.map(|m| m.endpoint.ramp(now)).fold(0.0, f64::max);
        for member in &tier.members {
            views.push(of_member(member, i, mean, top_ramp, now));
        }
    }
    views.extend(upstream.out.iter().map(|out| of_out(out, now)));
    views
}

fn of_member(member: &Member, tier: usize, mean: f64, top_ramp: f64, now: Moment) -> EndpointView {
    let endpoint = &member.endpoint;
    let (usable, why) = match member.word {
        _ if endpoint.is_ejected() => (false, Some("ejected")),
        _ if endpoint.full_for(now).is_some() => (false, Some("overloaded")),
        _ if !member.is_well(now) => (true, Some("silent")),
        Word::Suspect => (true, Some("suspect")),
        Word::Vanished => (true, Some("panic: down, not believed")),
        Word::Sure => (true, None),
    };
    let cost = usable.then(|| {
        let ramp = endpoint.ramp(now) / top_ramp;
        let factors = Factors::of(endpoint, member.weight, ramp, mean, now);
        CostView {
            latency_ms: factors.latency / 1e6,
            own: factors.own,
            success: factors.success,
            stall: factors.stall,
            ramp: factors.ramp,
            weight: factors.weight,
            cost: factors.cost(),
        }
    });
    view(endpoint, Some(tier), usable, why, cost, now)
}

fn of_out(out: &Out, now: Moment) -> EndpointView {
    view(
        &out.endpoint,
        out.tier,
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
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
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
        cost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mesh::NodeState,
        outcome::{Outcome, Unreachable},
        staging::{SERVICE, Stage, at, report},
    };

    #[test]
    fn everybody_known_is_told_with_standing_cost_and_share() {
        let mut stage = Stage::new(&["a1", "a1", "a1", "b1", "b1"]);
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
}
