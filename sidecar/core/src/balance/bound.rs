//! Requests that belong somewhere: to the owner of their key, as long as it is in and not busier than the rest.
//!
//! Not here: whose which key is (`hash/`). It comes before zones and algorithms, so a key has one owner wherever it
//! is asked from; whoever finds nobody here goes by zone and algorithm.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use crate::{
    moment::Moment,
    upstream::{Owners, Seat, Upstream},
    zone::TRIP_CANARY_SHARE,
};

use super::{Ask, Pick, Picker, Trip};

/// An owner may always have this many requests in flight: among few, chance alone makes one look busy.
const BUSY_MIN: f64 = 8.0;

/// And this many times its share of those in flight; then the key's next owner helps out (Mirrokni, Thorup and
/// Zadimoghaddam, 2016).
const BUSY_TIMES: f64 = 1.25;

/// Why a key's owner is passed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// It was sent out.
    Ejected,
    /// It asked to be left alone for a while.
    Overloaded,
    /// It has as many requests as `limits.per_endpoint.requests` allows.
    Full,
    /// It has more than its share of the requests in flight; called all the same if everybody has.
    Busy,
}

impl Hindrance {
    /// What stands in the way of owner number `owner` at `now`.
    pub fn of(
        upstream: &Upstream,
        owners: &Owners,
        owner: usize,
        now: Moment,
    ) -> Option<Hindrance> {
        let endpoint = &upstream.at(owners.seats[owner]).endpoint;
        let in_flight = endpoint.in_flight();
        let limit = upstream.policy.limits.endpoint_requests;
        if endpoint.is_ejected() {
            Some(Hindrance::Ejected)
        } else if endpoint.full_for(now).is_some() {
            Some(Hindrance::Overloaded)
        } else if limit.is_some_and(|limit| in_flight >= limit) {
            Some(Hindrance::Full)
        } else if f64::from(in_flight) >= BUSY_MIN
            && in_flight >= busy_from(upstream, owners, owner)
        {
            Some(Hindrance::Busy)
        } else {
            None
        }
    }

    /// The word that listings use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Hindrance::Ejected => "ejected",
            Hindrance::Overloaded => "overloaded",
            Hindrance::Full => "at its limit",
            Hindrance::Busy => "busier than its share",
        }
    }
}

/// Requests in flight from which on owner number `owner` is busy.
pub fn busy_from(upstream: &Upstream, owners: &Owners, owner: usize) -> u32 {
    let in_flight = upstream.shared.in_flight.load(Relaxed);
    let most = BUSY_TIMES * owners.table.share(owner) * f64::from(in_flight);
    most.max(BUSY_MIN).ceil() as u32
}

impl Picker {
    /// The endpoint that the request belongs to; `None` if it belongs nowhere, or nobody it could belong to is in.
    pub(super) fn bound(&mut self, ask: &Ask<'_>, now: Moment) -> Option<Pick> {
        let key = ask.key?;
        if self.wants_canary
            && ask.tried.is_empty()
            && let Some(pick) = self.own_canary(key, ask, now)
        {
            return Some(pick);
        }
        let upstream = &*self.upstream;
        let owners = upstream.owners.as_ref()?;
        let seat = |owner: usize| owners.seats[owner];
        let open = |owner: usize, busy_too: bool| {
            let untried = !ask.tried.contains(&upstream.at(seat(owner)).endpoint.id);
            let hindrance = Hindrance::of(upstream, owners, owner, now);
            let fits = hindrance.is_none() || (busy_too && hindrance == Some(Hindrance::Busy));
            untried && fits && self.trips[seat(owner).tier] == Trip::No
        };
        // Whoever was tried in vain may have lost its whole zone: its keys' next owner there is no help.
        let far = |owner: usize| ask.beyond_tier.is_none_or(|tier| seat(owner).tier != tier);
        let found = owners
            .table
            .find(key, |owner| open(owner, false) && far(owner));
        let found = found.or_else(|| owners.table.find(key, |owner| open(owner, true)));
        Some(self.usual(seat(found?)))
    }

    /// Only its own keys find out whether an owner is well again: nobody else's need to move for that.
    fn own_canary(&mut self, key: u64, ask: &Ask<'_>, now: Moment) -> Option<Pick> {
        let upstream: Arc<Upstream> = Arc::clone(&self.upstream);
        let owners = upstream.owners.as_ref()?;
        let seat: Seat = owners.seats[owners.table.owner(key)?];
        let endpoint = &upstream.at(seat).endpoint;
        let trial = &endpoint.trial;
        if trial.awaits_canary(ask.idempotent, now) && trial.claim_canary(now) {
            return Some(self.as_canary(endpoint, seat.tier));
        }
        if self.trips[seat.tier] == Trip::Yes {
            self.trip_credit = (self.trip_credit + TRIP_CANARY_SHARE).min(1.0);
            let is_bad = !endpoint.is_ejected() && trial.bad_since().is_some();
            if is_bad && endpoint.in_flight() == 0 && self.trip_canary_is_due(ask, now) {
                self.trip_canary_goes(now);
                return Some(self.as_canary(endpoint, seat.tier));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
