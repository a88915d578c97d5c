//! Everybody an upstream knows: who could be called and at what cost, who is out and why.
//!
//! Not here: tiers and shares (`explain.rs`). Every figure comes from the function that decides with it.

use std::net::SocketAddr;

use serde::Serialize;

use crate::{
    balance::least_response_time::{
        Factors, crowding, is_thick, mean_latency, mean_weight, staleness,
    },
    endpoint::{Endpoint, Word},
    moment::Moment,
    outlier::Cause,
    policy::Balance,
    upstream::{Member, Out, Tier, Upstream},
};

use super::millis;

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
    /// Why it was sent out; none when it is in.
    pub ejected_because: Option<&'static str>,
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
    /// Factor of having been asked more or less than its share lately, 0.75 to 1.25: it sets near ties apart. As the worker
    /// has it that looked last.
    pub evenness: f64,
    /// Factor of not having answered for a while where all others do; 1 with requests in flight, which tell more.
    pub quiet: f64,
    /// Factor of weighing less than others and having had its part of the requests: what one in flight would make of the
    /// cost; 1 with requests in flight, which do so themselves. As the worker has it that looked last.
    pub sated: f64,
    /// What its policy compares, the smallest being called: all of it together for `least_response_time`, (in flight + 1)
    /// by weight for `least_connections`, those in flight for `power_of_two`; none where nothing is compared. Only
    /// comparisons within a tier mean anything.
    pub cost: Option<f64>,
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
    let sated = if by_time && endpoint.is_sated() && factors.own == 0 {
        crowding(weight.recip() as f32)
    } else {
        1.0
    };
    let (evenness, quiet, sated, own) = (
        f64::from(evenness),
        f64::from(quiet),
        f64::from(sated),
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
        sated,
        cost: match balance {
            Balance::LeastResponseTime => Some(factors.cost() * evenness * quiet * sated),
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
        ejected_because: endpoint.ejected_because().map(Cause::as_str),
        capacity: None,
        cost,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{of_service, upstream as explained},
        *,
    };
    use crate::{
        balance::{Ask, Picker},
        mesh::NodeState,
        outcome::{Outcome, Unreachable},
        staging::{SERVICE, Stage, at, dice, report},
    };

    fn first(upstream: &Upstream) -> &Endpoint {
        let member = upstream.members().next();
        &member.expect("it is there").endpoint
    }

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
        assert_eq!(
            (seen[0].ejected_because, seen[1].ejected_because),
            (Some("gave no answer, several times in a row"), None)
        );
        let cost = seen[2].cost.as_ref().unwrap();
        assert_eq!((cost.weight, cost.own, cost.stall), (25.0, 0, 1.0));
        let view = explained(&upstream, at(10));
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
        assert!((cost(2).evenness - 1.25).abs() < 0.01, "{:?}", cost(2));
        assert!((cost(0).evenness - 0.75).abs() < 0.01, "{:?}", cost(0));
        assert!(cost(0).cost < cost(2).cost);
        assert_ne!(next.endpoint.id, c);
        for (balance, want) in [
            (Balance::LeastConnections, Some(2.0)),
            (Balance::PowerOfTwo, Some(1.0)),
            (Balance::Random, None),
        ] {
            let upstream = Stage::with(&["a1"; 2], |policy| policy.balance = balance).build(at(0));
            first(&upstream).begin(at(0));
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
        first(&upstream).begin(at(0));
        first(&upstream).end(at(0));
        let seen = endpoints(&upstream, at(60));
        let quiet = |i: usize| {
            seen[i]
                .cost
                .as_ref()
                .map(|cost| (cost.quiet * 100.0).round())
        };
        let (doubted, usual) = (Some(135.0), Some(100.0));
        assert_eq!([0, 1, 2].map(quiet), [doubted, usual, usual]);
    }
}
