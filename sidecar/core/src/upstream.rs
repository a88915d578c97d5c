//! One upstream as a snapshot holds it: its tiers, who is out and why, and what outlives the snapshot.
//!
//! Not here: how it is built (`snapshot.rs`), and who is picked (`balance/`).

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::Rng;

use crate::{
    endpoint::{Endpoint, Report, Word},
    hash::Table,
    mesh::{Demand, Instance},
    moment::Moment,
    outcome::Outcome,
    outlier::{Canary, Company, Ejected},
    policy::Policy,
    retry::Budget,
    session::{Hosts, Sources},
    zone::{History, water::Levels},
};

/// One upstream.
#[derive(Debug)]
pub struct Upstream {
    /// Its checked numbers.
    pub policy: Arc<Policy>,
    /// Who may be called, nearest first. Empty tiers keep their place.
    pub tiers: Vec<Tier>,
    /// Known, but not to be called.
    pub out: Vec<Out>,
    /// What water-filling reckons with; `None` where zones follow another rule.
    pub water: Option<Water>,
    /// SWIM is not believed, because it took away too many at once or all.
    pub panic: bool,
    /// Whose which key is, where requests belong to endpoints by a key.
    pub owners: Option<Owners>,
    /// Whom sessions may stay with, where they do.
    pub hosts: Option<Hosts>,
    /// What is kept while snapshots come and go.
    pub shared: Arc<Shared>,
    /// The generation of the snapshot that it was first part of.
    pub generation: u64,
    /// What it was built from, to tell quickly that nothing changed.
    pub(crate) sources: Vec<Instance>,
    /// See `sources`.
    pub(crate) demands: Vec<Demand>,
}

/// Whose which key is, and where the owners stand.
///
/// Zones do not matter here, so that a key has one owner in the whole mesh; backups own nothing.
#[derive(Clone, Debug)]
pub struct Owners {
    /// Key → number of the owner.
    pub table: Arc<Table>,
    /// Number of the owner → where it stands.
    pub seats: Vec<Seat>,
}

/// Where a member stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    /// Index of its tier.
    pub tier: usize,
    /// Its place among the tier's members.
    pub place: usize,
}

/// Endpoints that are equally near.
#[derive(Clone, Debug)]
pub struct Tier {
    /// `zone`, `region`, `elsewhere`, `backup`, `all`, or a zone of the operator's order.
    pub name: Box<str>,
    /// How near it is, 0 being the nearest. With water-filling every zone is a tier of its own, and several may be
    /// equally near.
    pub level: usize,
    /// The zone that all of its members are in, where that is so by construction; else empty.
    pub zone: Box<str>,
    /// Used only when no other tier has anybody well.
    pub backup: bool,
    /// Who may be called, sorted by identity.
    pub members: Vec<Member>,
    /// How many may be called by anybody: the members, and those of a large tier that are left to other sidecars.
    pub callable: u32,
    /// How many there should be: the largest number of the last 10 minutes less those that left gracefully.
    pub total: u32,
    /// What the workers make of it.
    pub live: Arc<Live>,
    pub(crate) history: History,
    /// Ids of the endpoints that `history` counts.
    pub(crate) counted: BTreeSet<u64>,
}

/// What an upstream's zones offer and are asked for, as far as all sidecars know it.
#[derive(Clone, PartialEq, Debug)]
pub struct Water {
    /// Every zone that has an instance or a caller of the service, and the own one, by name.
    pub zones: Vec<WaterZone>,
    /// Index of the own zone.
    pub own: usize,
    /// Capacities are requests per second; else an instance has none and weights stand for it.
    pub declared: bool,
    /// Who is how near to whom.
    pub levels: Levels,
    /// The mesh is known as a whole: from now on gains enter slowly.
    pub joined: bool,
}

/// One zone of [`Water`].
#[derive(Clone, PartialEq, Debug)]
pub struct WaterZone {
    /// Its name.
    pub name: Box<str>,
    /// What its applications ask for, in requests per second.
    pub demand: f64,
    /// How that is known.
    pub told: Told,
    /// Its tier, if it has any instance.
    pub tier: Option<usize>,
}

/// How a zone's demand is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// By its nodes.
    Fresh,
    /// By its nodes, none of which was heard of since then: what they last said stands.
    Frozen {
        /// Since when.
        since: Moment,
    },
    /// Not any more: so many hosts as it has will ask for as much as hosts elsewhere do.
    Hosts {
        /// Silent since when.
        since: Moment,
    },
}

impl Tier {
    /// How many of all that may be called so many of the members stand for.
    pub fn whole(&self, members: u32) -> u32 {
        let all = self.members.len().max(1) as u64;
        let whole = (u64::from(members) * u64::from(self.callable) + all / 2) / all;
        u32::try_from(whole).unwrap_or(u32::MAX)
    }

    /// Whether both stand for the same endpoints in two snapshots.
    pub(crate) fn is_same_as(&self, other: &Tier) -> bool {
        self.name == other.name && self.zone == other.zone
    }
}

/// A tier's figures as the workers last used them, for metrics and explanations.
#[derive(Debug, Default)]
pub struct Live {
    share: AtomicU64,
    tripped: AtomicBool,
}

impl Live {
    /// Share of the requests, 0 to 1, as last used.
    pub fn share(&self) -> f64 {
        f64::from_bits(self.share.load(Relaxed))
    }

    /// Whether half of the tier was found bad within a second and it only gets canaries.
    pub fn is_tripped(&self) -> bool {
        self.tripped.load(Relaxed)
    }

    pub(crate) fn publish(&self, share: f64, tripped: bool) {
        self.share.store(share.to_bits(), Relaxed);
        self.tripped.store(tripped, Relaxed);
    }
}

/// One endpoint that may be called.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who.
    pub endpoint: Arc<Endpoint>,
    /// Its share relative to others: half of the record's while its owner warns, a quarter while suspected.
    pub weight: f64,
    /// What it adds to its zone's capacity: requests per second where all instances declare them, else its weight;
    /// half while its owner warns, and more where it stands for those that are left to other sidecars.
    pub capacity: f64,
    /// What SWIM says of it.
    pub word: Word,
    /// Its check says that it could be better, which has halved its weight.
    pub warns: bool,
}

impl Member {
    /// Whether it counts as well in its tier: neither sent out nor dead silent.
    pub(crate) fn is_well(&self, now: Moment) -> bool {
        !self.endpoint.is_ejected() && !self.endpoint.load().is_silent(now)
    }
}

/// One endpoint that is known and not to be called.
#[derive(Clone, Debug)]
pub struct Out {
    /// Who.
    pub endpoint: Arc<Endpoint>,
    /// Which tier it would be in.
    pub tier: Option<usize>,
    /// Why not.
    pub why: Why,
    /// It could be called until SWIM took its host away.
    pub was_callable: bool,
}

/// Why a known endpoint is not to be called by anybody here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It does not carry the tags that the upstream selects.
    NotSelected,
    /// The operator's order of zones has no place for its zone.
    NotInOrder,
    /// Its node said goodbye.
    Left,
    /// Its node is dead as far as SWIM knows.
    Down,
    /// It is on its way out.
    Draining,
    /// Its owner's check fails.
    Failing,
    /// Its first check has not passed yet.
    Warming,
    /// This caller's own check does not pass.
    CheckNotPassed,
    /// Its tier is large, and it is in the parts of other sidecars.
    NotInSubset,
}

impl Why {
    /// The word that listings use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::NotSelected => "not selected by tags",
            Why::NotInOrder => "zone not in order",
            Why::Left => "left",
            Why::Down => "down",
            Why::Draining => "draining",
            Why::Failing => "failing",
            Why::Warming => "warming",
            Why::CheckNotPassed => "check not passed",
            Why::NotInSubset => "not in this sidecar's subset",
        }
    }
}

/// What an upstream keeps while snapshots come and go.
#[derive(Debug, Default)]
pub struct Shared {
    /// Repeats it may afford.
    pub budget: Budget,
    /// Requests in flight, counted by the proxy against `limits.requests`.
    pub in_flight: AtomicU32,
    /// Requests waiting for a connection, counted by the proxy against `limits.pending`.
    pub pending: AtomicU32,
    /// Where clients were sent by their address.
    pub sources: Sources,
    /// Requests ever made by own applications; the demand of this host is measured by it.
    asked: AtomicU64,
    /// Held while an endpoint may be sent out, so that two workers do not each send out the last but one.
    ejecting: Mutex<()>,
    alarms: Alarms,
}

/// Counts what workers must see before their next refresh: somebody was sent out, came back, or is full.
///
/// Every pick reads it, so it has a cache line of its own beside the counters that every request writes.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Alarms(AtomicU32);

impl Shared {
    /// Requests ever made by own applications.
    pub fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }

    pub(crate) fn ask(&self, requests: u64) {
        self.asked.fetch_add(requests, Relaxed);
    }

    #[inline]
    pub(crate) fn alarms(&self) -> u32 {
        self.alarms.0.load(Relaxed)
    }

    fn alarm(&self) {
        self.alarms.0.fetch_add(1, Relaxed);
    }
}

impl Upstream {
    /// The member at a seat.
    #[inline]
    pub fn at(&self, seat: Seat) -> &Member {
        &self.tiers[seat.tier].members[seat.place]
    }

    /// Where they stand who may be called, nearest tier first.
    pub fn seats(&self) -> impl Iterator<Item = Seat> {
        let tiers = self.tiers.iter().enumerate();
        tiers.flat_map(|(tier, t)| (0..t.members.len()).map(move |place| Seat { tier, place }))
    }

    /// Everybody who may be called, nearest tier first.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.tiers.iter().flat_map(|tier| &tier.members)
    }

    /// Whether somebody is in, but everybody who is has as many requests as `limits.endpoint_requests` allows: no
    /// pick, because of a limit and not for want of endpoints.
    pub fn is_full(&self) -> bool {
        let Some(limit) = self.policy.limits.endpoint_requests else {
            return false;
        };
        let mut inside = self
            .members()
            .filter(|m| !m.endpoint.is_ejected())
            .peekable();
        inside.peek().is_some() && inside.all(|m| m.endpoint.in_flight() >= limit)
    }

    /// Takes an attempt's outcome into account. `Some` when it sent the endpoint out.
    ///
    /// Call it once for every attempt, when it is over. An attempt whose client went away is told to
    /// [`Upstream::cancelled`] instead, and one that found its idle connection dead is told to nobody.
    pub fn report(
        &self,
        endpoint: &Endpoint,
        report: &Report,
        now: Moment,
        rng: &mut impl Rng,
    ) -> Option<Ejected> {
        match report.outcome {
            Outcome::Success | Outcome::ClientFault => {
                let may_lower = report.outcome == Outcome::Success;
                endpoint.load.went_well(report.latency, may_lower, now);
                self.went_well(endpoint, report.canary, now);
                None
            }
            Outcome::Overloaded { retry_after } => {
                // One that goes on refusing is no news: overload must not make every pick look at everybody.
                if endpoint.trial.park(retry_after, now) {
                    self.shared.alarm();
                }
                // Full is not sick: an endpoint that comes back and is full has come back.
                self.went_well(endpoint, report.canary, now);
                None
            }
            Outcome::ServerFault { .. } | Outcome::Unreachable(_) => {
                endpoint.load.went_wrong();
                let lock = &self.shared.ejecting;
                let _one_at_a_time = lock.lock().unwrap_or_else(PoisonError::into_inner);
                let rules = &self.policy.ejection;
                let word = endpoint.word();
                let company = || self.company(endpoint);
                let ejected = endpoint
                    .trial
                    .went_wrong(report, word, rules, now, rng, company);
                if ejected.is_some() {
                    self.shared.alarm();
                }
                ejected
            }
        }
    }

    /// The client went away `elapsed` after the attempt, its `canary` or none, began and before its answer head: no
    /// verdict on the endpoint, but its latency is at least that.
    pub fn cancelled(
        &self,
        endpoint: &Endpoint,
        canary: Option<Canary>,
        elapsed: Duration,
        now: Moment,
    ) {
        endpoint.load.at_least(elapsed, now);
        if let Some(canary) = canary {
            endpoint.trial.release(canary);
        }
    }

    /// A connection to an endpoint that was to carry no request was refused.
    pub fn refused(&self, endpoint: &Endpoint, now: Moment, rng: &mut impl Rng) {
        let lock = &self.shared.ejecting;
        let _one_at_a_time = lock.lock().unwrap_or_else(PoisonError::into_inner);
        endpoint.trial.refused(&self.policy.ejection, now, rng);
    }

    /// Whether one of those not in `tried` was sent out and its canary is under way: a request that found nobody may
    /// do so soon.
    pub fn awaits_verdict(&self, tried: &[u64], now: Moment) -> bool {
        let mut untried = self.members().map(|m| &m.endpoint);
        untried.any(|endpoint| endpoint.trial.is_on_trial(now) && !tried.contains(&endpoint.id))
    }

    fn went_well(&self, endpoint: &Endpoint, canary: Option<Canary>, now: Moment) {
        if endpoint.trial.went_well(canary, now) {
            endpoint.load.forgive();
            self.shared.alarm();
        }
    }

    fn company(&self, endpoint: &Endpoint) -> Company {
        let mut company = Company::default();
        for member in self.members() {
            company.all += 1;
            company.ejected += usize::from(member.endpoint.trial.counts_as_ejected());
            let other = member.endpoint.id != endpoint.id;
            company.others_in += usize::from(other && !member.endpoint.trial.is_out());
        }
        company
    }
}
