//! The decision for one request as it was made, short enough for a header of its answer.
//!
//! Not here: everything that could be told of it (`explain.rs`, `request.rs`), and who may ask (the sidecar's
//! `proxy/control.rs`).

use std::cmp::Ordering;

use serde::Serialize;

use crate::{
    balance::{Pick, PickKind},
    moment::Moment,
    upstream::Upstream,
};

use super::{Asked, CostView, EndpointView, OwnerView, Step, TierView, WaterView, request};

/// Tiers, zones, candidates and those that are out: so many of each are told, those that matter most.
const TOLD_MAX: usize = 8;

/// Picks that are told: more than a request is ever tried.
const PICKS_MAX: usize = 8;

/// One request's decision.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Account {
    /// The upstream that its route led to.
    pub upstream: Box<str>,
    /// Its algorithm.
    pub balance: &'static str,
    /// SWIM is not believed at the moment.
    pub panic: bool,
    /// Who is asked in turn.
    pub order: Vec<Step>,
    /// The first owners of its key.
    pub owners: Vec<OwnerView>,
    /// Nearest first.
    pub tiers: Vec<TierView>,
    /// What the shares are reckoned from.
    pub water: Option<WaterView>,
    /// Nearest tier first, there the cheapest.
    pub candidates: Vec<Candidate>,
    /// Those that cannot be called, or are spoken against.
    pub out: Vec<Away>,
    /// Candidates and others that are not told for want of room.
    pub more: usize,
    /// Who was called, in this order.
    pub picks: Vec<Picked>,
}

/// One that could be called.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Candidate {
    /// Its instance name.
    pub instance: Box<str>,
    /// How near its tier is.
    pub tier: Option<usize>,
    /// What is said against it although it is usable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'static str>,
    /// What one more request there would cost.
    #[serde(flatten)]
    pub cost: Option<CostView>,
}

/// One that could not.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Away {
    /// Its instance name.
    pub instance: Box<str>,
    /// Why not.
    pub why: &'static str,
    /// Why it was sent out, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected_because: Option<&'static str>,
}

/// One that was called.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Picked {
    /// Its instance name.
    pub instance: Box<str>,
    /// Its zone.
    pub zone: Box<str>,
    /// How near its tier is.
    pub tier: Option<usize>,
    /// `policy`, `canary` or `panic`.
    pub kind: &'static str,
}

impl Account {
    /// What decides about a request at `now`; nobody is picked yet.
    pub fn new(upstream: &Upstream, asked: &Asked<'_>, now: Moment) -> Account {
        let way = request(upstream, asked, now);
        let view = super::upstream(upstream, now);
        let (mut usable, out): (Vec<EndpointView>, Vec<EndpointView>) =
            view.endpoints.into_iter().partition(|e| e.usable);
        let cost = |e: &EndpointView| {
            e.cost
                .as_ref()
                .and_then(|c| c.cost)
                .unwrap_or(f64::INFINITY)
        };
        usable.sort_by(|a, b| match a.tier.cmp(&b.tier) {
            Ordering::Equal => cost(a).total_cmp(&cost(b)),
            nearer => nearer,
        });
        let over = |all: usize| all.saturating_sub(TOLD_MAX);
        let mut account = Account {
            upstream: view.upstream,
            balance: view.balance,
            panic: view.panic,
            order: way.order,
            owners: way.owners,
            tiers: view.tiers,
            water: view.water,
            more: over(usable.len()) + over(out.len()),
            candidates: usable.into_iter().take(TOLD_MAX).map(candidate).collect(),
            out: out.into_iter().take(TOLD_MAX).map(away).collect(),
            picks: Vec::new(),
        };
        account.tiers.truncate(TOLD_MAX);
        if let Some(water) = &mut account.water {
            water.zones.truncate(TOLD_MAX);
        }
        account
    }

    /// Takes down who was called.
    pub fn picked(&mut self, upstream: &Upstream, pick: &Pick) {
        if self.picks.len() == PICKS_MAX {
            return;
        }
        self.picks.push(Picked {
            instance: pick.endpoint.key.instance.clone(),
            zone: pick.endpoint.zone.clone(),
            tier: upstream.tiers.get(pick.tier).map(|tier| tier.level),
            kind: match pick.kind {
                PickKind::Usual => "policy",
                PickKind::Canary => "canary",
                PickKind::Panic => "panic",
            },
        });
    }

    /// Leaves out what matters least of it; false when there is nothing left to leave out.
    pub fn shorten(&mut self) -> bool {
        let longest = self.candidates.len().max(self.out.len());
        if longest > 1 {
            let keep = longest / 2;
            self.more += self.candidates.len().saturating_sub(keep);
            self.more += self.out.len().saturating_sub(keep);
            self.candidates.truncate(keep);
            self.out.truncate(keep);
            return true;
        }
        if self.tiers.len() > 1 {
            self.tiers.truncate(1);
            return true;
        }
        self.water.take().is_some()
    }
}

fn candidate(view: EndpointView) -> Candidate {
    Candidate {
        instance: view.instance,
        tier: view.tier,
        why: view.why,
        cost: view.cost.map(rounded),
    }
}

/// Three digits after the point say all that a reader needs, and more would fill the header.
fn rounded(cost: CostView) -> CostView {
    let round = |x: f64| (x * 1e3).round() / 1e3;
    CostView {
        latency_ms: round(cost.latency_ms),
        success: round(cost.success),
        stall: round(cost.stall),
        ramp: round(cost.ramp),
        weight: round(cost.weight),
        evenness: round(cost.evenness),
        quiet: round(cost.quiet),
        sated: round(cost.sated),
        cost: cost.cost.map(round),
        ..cost
    }
}

fn away(view: EndpointView) -> Away {
    Away {
        instance: view.instance,
        why: view.why.unwrap_or("not usable"),
        ejected_because: view.ejected_because,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        balance::{Ask, Picker},
        outcome::{Outcome, Unreachable},
        staging::{Stage, at, dice, report},
    };

    #[test]
    fn an_account_tells_the_cheapest_first_and_who_is_out_and_who_was_called() {
        let upstream = Stage::by_priority(&["a1", "a1", "a1", "b1"]).build(at(0));
        for n in 0..5 {
            let refused = Outcome::Unreachable(Unreachable::Refused);
            report(&upstream, 0, refused, 0, at(n));
        }
        let busy = upstream.members().nth(1).expect("a member");
        busy.endpoint.begin(at(5));
        let mut account = Account::new(&upstream, &Asked::default(), at(6));
        let names: Vec<&str> = account.candidates.iter().map(|c| &*c.instance).collect();
        let name = |i: usize| {
            &*upstream
                .members()
                .nth(i)
                .expect("a member")
                .endpoint
                .key
                .instance
        };
        assert_eq!(names, [name(2), name(1), name(3)]);
        assert_eq!(account.out.len(), 1);
        let away = &account.out[0];
        assert_eq!((&*away.instance, away.why), (name(0), "ejected"));
        assert_eq!(
            away.ejected_because,
            Some("gave no answer, several times in a row")
        );
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        let ask = Ask {
            tried: &[],
            ..Ask::default()
        };
        let pick = picker.pick(&ask, at(6), &mut rng).expect("two are in");
        account.picked(&upstream, &pick);
        assert_eq!(*account.picks[0].instance, *pick.endpoint.key.instance);
        assert_eq!(account.picks[0].kind, "policy");
    }

    #[test]
    fn an_account_of_many_is_bounded_and_says_how_many_it_leaves_out() {
        let upstream = Stage::new(&["a1"; 50]).build(at(0));
        let mut account = Account::new(&upstream, &Asked::default(), at(1));
        assert_eq!((account.candidates.len(), account.more), (8, 42));
        while account.shorten() {}
        assert_eq!((account.candidates.len(), account.more), (1, 49));
        assert_eq!((account.tiers.len(), account.water.is_none()), (1, true));
    }
}
