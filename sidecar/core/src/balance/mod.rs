//! Which endpoint gets the next request: one worker's own picker for one upstream.
//!
//! Not here: who belongs to which tier (`snapshot.rs`), how shares are reckoned (`zone/`), what comes of it
//! (`upstream.rs`). One file a policy beside this one; `column.rs` holds the numbers they read.

pub mod bound;
mod canary;
mod column;
mod costs;
pub mod least_connections;
pub mod least_response_time;
mod portion;
mod power_of_two;
mod random;
mod round_robin;
mod tournament;
pub mod wish;
mod zones;

use std::{sync::Arc, time::Duration};

use rand::{Rng, RngExt};

use crate::{
    endpoint::{Endpoint, Word},
    moment::Moment,
    outlier::Canary,
    session::Session,
    upstream::{Seat, Tier, Upstream},
    zone::{self, TRIP_WINDOW},
};

use column::Column;
use wish::Wish;
use zones::{Current, State};

/// How old a worker's numbers may be. Where 20 endpoints stall now and then, p99 of a simulation was a third less than with
/// 10 ms: a silence under way shows sooner, and so does who is free again.
const REFRESH: Duration = Duration::from_millis(1);

/// Above this many endpoints numbers may be older in proportion, so that refreshing stays about 1 % of a core.
const REFRESH_ENDPOINTS: u32 = 100;

/// Answers that came while this machine stood still are read within so long.
const CATCH_UP: Duration = Duration::from_millis(10);

/// Between two draws of a tier, in parts of the whole: the golden ratio spreads any number of draws most evenly, so that
/// some tens of requests are split as the shares say. Dice would send 50 of 100 requests to a tier of 50 % give or take
/// five, and zones that have to be filled to the brim would run over by chance. (Weyl 1916; Knuth, TAOCP 3, 6.4.)
const TURN: f64 = 0.618_033_988_749_894_9;

/// Numbers that were not read for so long mean that nothing was asked, or that this whole machine stood still.
const STANDSTILL: Duration = Duration::from_millis(TRIP_WINDOW.as_millis() as u64 / 2);

/// What a pick has to respect.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// Ids of endpoints that are not to be asked again.
    pub tried: &'a [u64],
    /// Choose from the tiers after this one if one of them has somebody, else from all.
    pub beyond_tier: Option<usize>,
    /// The request may be repeated elsewhere, so it may find out whether somebody is well again.
    pub idempotent: bool,
    /// Its session, if it has one.
    pub session: Option<Session>,
    /// What it belongs somewhere by, hashed ([`crate::hash::hash_of`]); `None` if it goes by the algorithm.
    pub key: Option<u64>,
    /// Where its caller wants it, before all else.
    pub wish: Option<Wish<'a>>,
}

impl Ask<'_> {
    /// Whether it is a first try and belongs nowhere, as nearly all are.
    #[inline]
    fn is_plain(&self) -> bool {
        self.tried.is_empty()
            && self.key.is_none()
            && self.beyond_tier.is_none()
            && self.wish.is_none()
    }

    /// Whether an endpoint is where its caller wants it.
    fn suits(&self, endpoint: &Endpoint) -> bool {
        wish::suits(self.wish, endpoint)
    }
}

/// Where the one stands that was chosen, in the upstream that the picker follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Its seat.
    pub seat: Seat,
    /// Why it.
    pub kind: PickKind,
}

/// Who was picked.
#[derive(Clone, Debug)]
pub struct Pick {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Index of its tier.
    pub tier: usize,
    /// Why it.
    pub kind: PickKind,
    /// For a canary: how long to wait for its answer head, see [`Tries::as_canary`](crate::retry::Tries::as_canary).
    pub patience: Option<Duration>,
    /// The trial that it is, where the endpoint was sent out: whoever reports what it came to hands this on.
    pub canary: Option<Canary>,
}

/// Why an endpoint was picked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PickKind {
    /// By the policy.
    Usual,
    /// To find out whether it is well again.
    Canary,
    /// Against better knowledge, because nobody else is left or SWIM is not believed.
    Panic,
}

/// One worker's state for one upstream. Picking takes no lock and allocates nothing, but for sessions by address: what
/// all workers know of those stands under one lock, in room that the first of them makes.
#[derive(Debug)]
pub struct Picker {
    salt: u64,
    upstream: Arc<Upstream>,
    columns: Vec<Column>,
    shares: Vec<f64>,
    /// Where in the shares, laid end to end, the last draw of a tier fell; 0 to 1.
    turn: f64,
    current: Current,
    states: Vec<State>,
    trips: Vec<Trip>,
    refreshed: Moment,
    next_refresh: Moment,
    /// The last refresh came after a [`STANDSTILL`].
    is_late: bool,
    /// When the last standstill ended.
    resumed: Moment,
    alarms: u32,
    /// Requests that were asked for and not yet told to the upstream.
    asked: u64,
    /// The tier that every plain request goes to, while nothing has to be looked at before.
    calm: Option<usize>,
    /// Some endpoint wants a canary: the rest of the picks need not look for one.
    wants_canary: bool,
    canary_credit: f64,
    trip_credit: f64,
    trip_canary: Moment,
}

/// Whether a tier is ill as a whole, for this worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trip {
    No,
    Yes { since: Moment },
}

impl Trip {
    fn is_ill(self) -> bool {
        matches!(self, Trip::Yes { .. })
    }

    /// Whether an endpoint of the tier has done its part since; whoever was not asked has not.
    fn is_proven(self, endpoint: &Endpoint) -> bool {
        let Trip::Yes { since } = self else {
            return true;
        };
        let trial = &endpoint.trial;
        trial.bad_since().is_none() && trial.well_at().is_some_and(|at| at > since)
    }
}

impl Drop for Picker {
    fn drop(&mut self) {
        self.tell_asked();
    }
}

impl Picker {
    /// A picker that starts at a random place, so that many fresh sidecars do not all begin with the same endpoint.
    pub fn new(upstream: &Arc<Upstream>, rng: &mut impl Rng) -> Picker {
        let balance = upstream.policy.balance;
        let limit = upstream.policy.limits.endpoint_requests;
        let salt = rng.next_u64();
        let columns = upstream.tiers.iter();
        let columns: Vec<Column> = columns
            .map(|tier| Column::new(balance, limit, &tier.members, None, salt))
            .collect();
        let tiers = columns.len();
        Picker {
            salt,
            upstream: Arc::clone(upstream),
            columns,
            // Not a share at all: the first refresh sets them without a ramp.
            shares: vec![f64::NAN; tiers],
            turn: rng.random(),
            current: Current::new(upstream),
            states: vec![State::default(); tiers],
            trips: vec![Trip::No; tiers],
            refreshed: Moment::START,
            next_refresh: Moment::START,
            is_late: false,
            resumed: Moment::START,
            alarms: 0,
            asked: 0,
            calm: None,
            wants_canary: false,
            canary_credit: 0.0,
            trip_credit: 0.0,
            trip_canary: Moment::START,
        }
    }

    /// Goes on with a newer snapshot's upstream; cheap if nothing changed in it, and nothing at all if it is an
    /// older one, which a request that began before the change still holds.
    ///
    /// Cursors are kept by endpoint, shares and trips by tier name.
    pub fn follow(&mut self, upstream: &Arc<Upstream>, now: Moment) {
        let older = upstream.generation < self.upstream.generation
            && Arc::ptr_eq(&upstream.shared, &self.upstream.shared);
        if older || Arc::ptr_eq(&self.upstream, upstream) {
            return;
        }
        self.tell_asked();
        self.calm = None;
        let old = std::mem::replace(&mut self.upstream, Arc::clone(upstream));
        let same_policy = old.policy.balance == upstream.policy.balance;
        let place = |new: &Tier| old.tiers.iter().position(|tier| tier.is_same_as(new));
        let places: Vec<Option<usize>> = upstream.tiers.iter().map(place).collect();
        let limit = upstream.policy.limits.endpoint_requests;
        let tiers = upstream.tiers.iter().zip(&places);
        self.columns = tiers
            .map(|(tier, place)| {
                let before = place.filter(|_| same_policy).map(|at| &self.columns[at]);
                Column::new(
                    upstream.policy.balance,
                    limit,
                    &tier.members,
                    before,
                    self.salt,
                )
            })
            .collect();
        // Another order of zones is another split: its shares start where they belong.
        let kept = old.tiers.len() == places.len() && places.iter().all(Option::is_some);
        let share = |at: &Option<usize>| match at {
            Some(at) if kept => self.shares[*at],
            _ => f64::NAN,
        };
        self.shares = places.iter().map(share).collect();
        let trip = |at: &Option<usize>| at.map_or(Trip::No, |at| self.trips[at]);
        self.trips = places.iter().map(trip).collect();
        let state = |at: &Option<usize>| at.map_or(State::default(), |at| self.states[at]);
        self.states = places.iter().map(state).collect();
        self.current = self.current.carried(&old, upstream);
        self.next_refresh = now;
    }

    /// The endpoint for one more request; `None` if there is nobody that was not tried.
    pub fn pick(&mut self, ask: &Ask<'_>, now: Moment, rng: &mut impl Rng) -> Option<Pick> {
        if let Some(Wish::Instance(name)) = ask.wish {
            return self.forced(name, ask, now);
        }
        let Some(session) = ask.session else {
            let choice = self.choose(ask, now, rng)?;
            return Some(self.picked(choice, now));
        };
        self.take_note(now);
        let pick = match self.stayed(session, ask, now) {
            Some(pick) => {
                self.asked += u64::from(ask.tried.is_empty());
                pick
            }
            None => {
                let choice = self.choose(ask, now, rng)?;
                self.picked(choice, now)
            }
        };
        self.remember(session, &pick, now);
        Some(pick)
    }

    fn picked(&self, Choice { seat, kind }: Choice, now: Moment) -> Pick {
        let endpoint = Arc::clone(&self.upstream.at(seat).endpoint);
        Pick {
            tier: seat.tier,
            kind,
            patience: (kind == PickKind::Canary).then(|| self.patience(seat.tier)),
            canary: canary_of(&endpoint, kind, now),
            endpoint,
        }
    }

    /// Where the endpoint for one more request stands, whatever its session: a pick without a handle on it.
    #[inline]
    pub fn choose(&mut self, ask: &Ask<'_>, now: Moment, rng: &mut impl Rng) -> Option<Choice> {
        self.asked += u64::from(ask.tried.is_empty());
        self.take_note(now);
        if let Some(tier) = self.calm
            && ask.is_plain()
            && let Some(place) = self.columns[tier].pick(&[], rng)
        {
            return Some(Choice {
                seat: Seat { tier, place },
                kind: PickKind::Usual,
            });
        }
        let owner = ask.key.and_then(|key| self.owned(key, ask, now));
        owner.or_else(|| self.free(ask, now, rng))
    }

    /// Reads the shared figures anew if it is time for that.
    #[inline]
    fn take_note(&mut self, now: Moment) {
        if now >= self.next_refresh || self.upstream.shared.alarms() != self.alarms {
            self.refresh(now);
        }
    }

    /// The endpoint for a request that belongs nowhere.
    fn free(&mut self, ask: &Ask<'_>, now: Moment, rng: &mut impl Rng) -> Option<Choice> {
        if self.wants_canary
            && ask.tried.is_empty()
            && let Some(choice) = self.canary(ask, now)
        {
            return Some(choice);
        }
        if ask.wish.is_some() {
            return self.within(ask, rng).or_else(|| self.last_resort(ask, now));
        }
        let first = match ask.beyond_tier {
            Some(tier) => self.beyond(tier, rng),
            None => self.draw_tier(),
        };
        self.search(first, ask, rng)
            .or_else(|| self.last_resort(ask, now))
    }

    /// Tells the upstream how many requests were asked for since it was last told, for the demand of this host. Every
    /// refresh does it; whoever keeps a picker that may rest calls it now and then.
    pub fn tell_asked(&mut self) {
        if self.asked > 0 {
            self.upstream.shared.ask(self.asked);
            self.asked = 0;
        }
    }

    /// Shares of the tiers as used now.
    pub fn shares(&self) -> &[f64] {
        &self.shares
    }

    fn search(&mut self, first: usize, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<Choice> {
        let tiers = self.columns.len();
        // Nearest first from where the draw fell, ill tiers after well ones, backups last of all.
        let backup_from = tiers - usize::from(self.has_backup());
        let order = |i: usize| {
            if i < backup_from {
                (first + i) % backup_from
            } else {
                i
            }
        };
        let first_is_backup = first >= backup_from && first < tiers && ask.beyond_tier.is_none();
        // Nearly always it ends here.
        if (first < backup_from || first_is_backup)
            && !self.trips[first].is_ill()
            && let Some(choice) = self.in_tier(first, ask, rng)
        {
            return Some(choice);
        }
        for ill in [false, true] {
            if first_is_backup && let Some(choice) = self.in_tier(first, ask, rng) {
                return Some(choice);
            }
            for tier in (0..tiers).map(order) {
                if self.trips[tier].is_ill() == ill
                    && let Some(choice) = self.in_tier(tier, ask, rng)
                {
                    return Some(choice);
                }
            }
        }
        None
    }

    fn in_tier(&mut self, tier: usize, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<Choice> {
        let place = self.columns[tier].pick(ask.tried, rng)?;
        Some(self.called(Seat { tier, place }))
    }

    /// The endpoint for a request that is wanted in one zone, nearest tier first, ill tiers after well ones.
    fn within(&mut self, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<Choice> {
        for ill in [false, true] {
            for tier in 0..self.columns.len() {
                if self.trips[tier].is_ill() == ill
                    && let Some(place) = self.columns[tier].pick_among(ask, rng)
                {
                    return Some(self.called(Seat { tier, place }));
                }
            }
        }
        None
    }

    fn called(&self, seat: Seat) -> Choice {
        let kind = kind_of(&self.upstream.at(seat).endpoint);
        Choice { seat, kind }
    }

    fn draw_tier(&mut self) -> usize {
        if self.shares.first().is_none_or(|share| *share >= 1.0) {
            return 0;
        }
        self.turn = (self.turn + TURN).fract();
        let mut at = self.turn;
        for (tier, share) in self.shares.iter().enumerate() {
            if at < *share {
                return tier;
            }
            at -= share;
        }
        0
    }

    /// One of the nearest tiers after `tier` that have anybody, by their capacity: the first by name would get all
    /// repeats of a lost zone.
    fn beyond(&self, tier: usize, rng: &mut impl Rng) -> usize {
        let tiers = self.upstream.tiers.iter().zip(&self.states).enumerate();
        let rest = tiers.filter(|(i, (t, state))| *i > tier && !t.backup && state.capacity > 0.0);
        let Some(level) = rest.clone().map(|(_, (t, _))| t.level).min() else {
            return tier + 1;
        };
        let equal = rest.filter(|(_, (t, _))| t.level == level);
        let all: f64 = equal.clone().map(|(_, (_, state))| state.capacity).sum();
        let mut at = rng.random::<f64>() * all;
        let mut chosen = tier + 1;
        for (i, (_, state)) in equal {
            chosen = i;
            at -= state.capacity;
            if at < 0.0 {
                break;
            }
        }
        chosen
    }

    #[inline]
    fn has_backup(&self) -> bool {
        self.upstream.tiers.last().is_some_and(|tier| tier.backup)
    }

    #[cold]
    #[inline(never)]
    fn refresh(&mut self, now: Moment) {
        self.tell_asked();
        self.alarms = self.upstream.shared.alarms();
        let upstream = Arc::clone(&self.upstream);
        let may_be_silent = !self.stood_still(now);
        let mut endpoints = 0;
        self.wants_canary = false;
        for (column, tier) in self.columns.iter_mut().zip(&upstream.tiers) {
            column.refresh(&tier.members, may_be_silent, now);
            endpoints += tier.members.len();
            self.wants_canary |= !column.out.is_empty() || !column.blemished.is_empty();
        }
        let recovered = self.judge_tiers(&upstream.tiers, may_be_silent, now);
        self.wants_canary |= self.trips.iter().any(|trip| trip.is_ill());
        // A tier earns nothing for the time it was not well, however long nobody looked.
        let most = if recovered { REFRESH } else { Duration::MAX };
        let elapsed = now.since(self.refreshed).min(most);
        self.current
            .follow(&upstream, &self.states, &mut self.shares, elapsed);
        for ((tier, share), trip) in upstream.tiers.iter().zip(&self.shares).zip(&self.trips) {
            tier.live.publish(*share, trip.is_ill());
        }
        let all_to_first = self.shares.first().is_some_and(|share| *share >= 1.0);
        let is_calm =
            all_to_first && !self.trips[0].is_ill() && !self.wants_canary && !upstream.panic;
        self.calm = is_calm.then_some(0);
        self.refreshed = now;
        let scale = u32::try_from(endpoints).unwrap_or(u32::MAX) / REFRESH_ENDPOINTS;
        self.next_refresh = now + REFRESH * scale.max(1);
    }

    /// Whether this machine may have stood still until just now: then answers wait to be read, and everybody who is busy
    /// looks silent.
    fn stood_still(&mut self, now: Moment) -> bool {
        let was_late = self.is_late;
        self.is_late = now.since(self.refreshed) > STANDSTILL;
        // Late again and again is how few requests look, and those have to find out who is silent too.
        if self.is_late && !was_late {
            self.resumed = now;
        }
        now.since(self.resumed) < CATCH_UP
    }

    /// Which tiers are ill as a whole, and how well each is. True if one is better than before.
    fn judge_tiers(&mut self, tiers: &[Tier], may_be_silent: bool, now: Moment) -> bool {
        let mut recovered = false;
        for (i, tier) in tiers.iter().enumerate() {
            let others = self.columns.iter().enumerate();
            let elsewhere = others.filter(|(j, _)| *j != i).any(|(_, c)| c.usable > 0);
            self.trips[i] = judge(self.trips[i], tier, elsewhere, may_be_silent, now);
        }
        for (i, tier) in tiers.iter().enumerate() {
            let column = &self.columns[i];
            let state = match self.trips[i] {
                Trip::Yes { .. } => State::default(),
                Trip::No => State {
                    health: zone::health(tier.whole(column.well), tier.total),
                    capacity: column.capacity,
                },
            };
            let before = std::mem::replace(&mut self.states[i], state);
            recovered |= state.health > before.health || state.capacity > before.capacity;
        }
        recovered
    }
}

fn seat(tier: usize, place: usize) -> Seat {
    Seat { tier, place }
}

/// What a pick of an endpoint by policy is called.
fn kind_of(endpoint: &Endpoint) -> PickKind {
    match endpoint.word() {
        Word::Vanished => PickKind::Panic,
        Word::Sure | Word::Suspect => PickKind::Usual,
    }
}

/// The trial of a pick that was just made, if it is one.
fn canary_of(endpoint: &Endpoint, kind: PickKind, now: Moment) -> Option<Canary> {
    match kind {
        PickKind::Usual => None,
        PickKind::Canary | PickKind::Panic => endpoint.trial.canary_of(now),
    }
}

fn judge(trip: Trip, tier: &Tier, elsewhere: bool, may_be_silent: bool, now: Moment) -> Trip {
    let all = tier.members.len();
    // Attempts that hang come to nothing for as long as a request may take; that is too late for a zone.
    for member in &tier.members {
        if may_be_silent && member.endpoint.load().is_silent(now) {
            member.endpoint.trial.fell_silent(now);
        }
    }
    let members = || tier.members.iter().map(|m| &m.endpoint);
    match trip {
        Trip::No => {
            let bad = members().filter_map(|endpoint| endpoint.trial.bad_since());
            let recent = bad.filter(|at| now.since(*at) <= TRIP_WINDOW).count();
            if elsewhere && zone::trips(recent, all) {
                Trip::Yes { since: now }
            } else {
                Trip::No
            }
        }
        // It ends when more than half of the tier has proved well, or when each has either done so or was sent out:
        // from then on the share of those that are well is known without it.
        Trip::Yes { .. } => {
            let proven = members().filter(|e| trip.is_proven(e)).count();
            let mut doubtful = members().filter(|e| !e.is_ejected() && !trip.is_proven(e));
            if proven * 2 <= all && doubtful.next().is_some() {
                trip
            } else {
                Trip::No
            }
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod traps;

#[cfg(test)]
mod weights;
