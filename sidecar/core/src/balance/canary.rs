//! Requests that find out whether somebody is well again, and those for whom nobody is left.
//!
//! Not here: when an endpoint may be tried (`outlier.rs`), and the pick of one that is well (`mod.rs`).

use std::{sync::Arc, time::Duration};

use crate::{
    endpoint::Endpoint,
    moment::Moment,
    policy::Balance,
    upstream::{Seat, Upstream},
    zone::TRIP_CANARY_SHARE,
};

use super::{Ask, Choice, PickKind, Picker, seat};

/// Share of the requests that may go to endpoints whose success share needs mending.
const CANARY_SHARE: f64 = 0.01;

/// An endpoint with a blemished success share that was not asked for this long is asked once.
const CANARY_AFTER: Duration = Duration::from_secs(5);

/// A canary is waited for this many times the mean latency of its tier.
const CANARY_PATIENCE_TIMES: u32 = 5;

/// But at least this long.
const CANARY_PATIENCE_MIN: Duration = Duration::from_secs(1);

/// A tripped tier is asked at least this often while there are requests at all.
const TRIP_CANARY_EVERY: Duration = Duration::from_secs(5);

impl Picker {
    /// A request that finds out whether somebody is well again, if it is time for one.
    pub(super) fn canary(&mut self, ask: &Ask<'_>, now: Moment) -> Option<Choice> {
        let upstream = Arc::clone(&self.upstream);
        self.canary_credit = (self.canary_credit + CANARY_SHARE).min(1.0);
        self.trip_credit = (self.trip_credit + TRIP_CANARY_SHARE).min(1.0);
        let columns = self.columns.iter().enumerate();
        let mut out = columns.flat_map(|(tier, c)| c.out.iter().map(move |at| seat(tier, *at)));
        let returning = out.find(|seat| {
            let endpoint = &upstream.at(*seat).endpoint;
            let trial = &endpoint.trial;
            self.takes_canary(endpoint, ask, now)
                && trial.awaits_canary(ask.idempotent, now)
                && trial.claim_canary(now)
        });
        if let Some(seat) = returning {
            return Some(as_canary(seat));
        }
        if self.trip_canary_is_due(ask, now)
            && let Some(seat) = self.trip_candidate(&upstream, ask, now)
        {
            self.trip_canary_goes(now);
            return Some(as_canary(seat));
        }
        if ask.idempotent
            && self.canary_credit >= 1.0
            && upstream.policy.balance == Balance::LeastResponseTime
        {
            let is_due = |seat: &Seat| {
                let endpoint = &upstream.at(*seat).endpoint;
                let due = now.since(endpoint.load().begun()) >= CANARY_AFTER;
                due && !endpoint.is_waited_for() && self.takes_canary(endpoint, ask, now)
            };
            let columns = self.columns.iter().enumerate();
            let mut blemished =
                columns.flat_map(|(tier, c)| c.blemished.iter().map(move |at| seat(tier, *at)));
            if let Some(seat) = blemished.find(is_due) {
                self.canary_credit = 0.0;
                return Some(as_canary(seat));
            }
        }
        None
    }

    /// Whether a request may go to `endpoint` to find something out: it is where the caller wants it, did not ask to be
    /// left alone, and has fewer requests than it may have.
    pub(super) fn takes_canary(&self, endpoint: &Endpoint, ask: &Ask<'_>, now: Moment) -> bool {
        let limit = self.upstream.policy.limits.endpoint_requests;
        let has_room = limit.is_none_or(|limit| endpoint.in_flight() < limit);
        has_room && endpoint.full_for(now).is_none() && ask.suits(endpoint)
    }

    pub(super) fn trip_canary_is_due(&self, ask: &Ask<'_>, now: Moment) -> bool {
        let silence = now.since(self.trip_canary);
        // Where no request may be repeated, one that may not has to do now and then.
        silence >= TRIP_CANARY_EVERY || (ask.idempotent && self.trip_credit >= 1.0)
    }

    pub(super) fn trip_canary_goes(&mut self, now: Moment) {
        self.trip_credit = 0.0;
        self.trip_canary = now;
    }

    /// How long to wait for the answer head of a canary in `tier`.
    pub(super) fn patience(&self, tier: usize) -> Duration {
        let usual = Duration::from_nanos(self.columns[tier].mean_latency as u64);
        (usual * CANARY_PATIENCE_TIMES).max(CANARY_PATIENCE_MIN)
    }

    /// The endpoint of a tripped tier that has been left alone for longest.
    fn trip_candidate(&self, upstream: &Upstream, ask: &Ask<'_>, now: Moment) -> Option<Seat> {
        let of_ill = upstream.seats().filter(|s| self.trips[s.tier].is_ill());
        let members = of_ill.map(|seat| (seat, &upstream.at(seat).endpoint));
        let longest = members
            .filter(|(seat, e)| !e.is_ejected() && !self.trips[seat.tier].is_proven(e))
            .filter(|(_, e)| !e.is_waited_for() && self.takes_canary(e, ask, now))
            .min_by_key(|(_, e)| e.load().begun());
        longest.map(|(seat, _)| seat)
    }

    /// Nobody is usable: those that are merely new or full, then, if this request has really nobody left, those that
    /// were sent out.
    pub(super) fn last_resort(&mut self, ask: &Ask<'_>, now: Moment) -> Option<Choice> {
        let limit = self.upstream.policy.limits.endpoint_requests;
        let upstream = &*self.upstream;
        let seats = || upstream.seats().map(|seat| (seat, upstream.at(seat)));
        let all = || seats().filter(|(_, m)| ask.suits(&m.endpoint));
        let untried = |endpoint: &Endpoint| !ask.tried.contains(&endpoint.id);
        let below = |endpoint: &Endpoint| limit.is_none_or(|limit| endpoint.in_flight() < limit);
        let spared = all()
            .filter(|(_, m)| !m.endpoint.is_ejected())
            .filter(|(_, m)| untried(&m.endpoint) && below(&m.endpoint))
            .min_by_key(|(seat, m)| {
                let full = m.endpoint.full_for(now).is_some();
                (full, seat.tier, m.endpoint.in_flight())
            });
        if let Some((seat, _)) = spared {
            return Some(self.called(seat));
        }
        // Who is in and has as much as it may get is no reason to ask others; who is in and was tried in vain is.
        if all().any(|(_, m)| !m.endpoint.is_ejected() && untried(&m.endpoint)) {
            return None;
        }
        // One request at a time, and each is a canary: an answer brings the endpoint back.
        let (seat, _) = all()
            .filter(|(_, m)| untried(&m.endpoint) && !m.endpoint.is_waited_for())
            .find(|(_, m)| m.endpoint.trial.claim_canary(now))?;
        let kind = PickKind::Panic;
        Some(Choice { seat, kind })
    }
}

fn as_canary(seat: Seat) -> Choice {
    let kind = PickKind::Canary;
    Choice { seat, kind }
}

#[cfg(test)]
mod tests;
