//! Requests that belong somewhere: where their session is, or else to the owner of their key, as long as that one is in
//! and not busier than the rest.
//!
//! Not here: whose which key is (`hash/`), and what a cookie means (`session.rs`). It comes before zones and algorithms,
//! so a key has one owner wherever it is asked from; whoever finds nobody here goes by zone and algorithm.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crate::{
    endpoint::Endpoint,
    moment::Moment,
    policy::Sticky,
    session::{Host, Session},
    upstream::{Owners, Upstream},
    zone::TRIP_CANARY_SHARE,
};

use super::{Ask, Choice, Pick, PickKind, Picker, canary_of, kind_of};

/// An owner may always have this many requests in flight: among few, chance alone makes one look busy.
const BUSY_MIN: f64 = 8.0;

/// And this many times its share of those in flight; then the key's next owner helps out (Mirrokni, Thorup and
/// Zadimoghaddam, 2016).
const BUSY_TIMES: f64 = 1.25;

/// Why somebody that a request belongs to is passed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// It was sent out.
    Ejected,
    /// It asked to be left alone for a while.
    Overloaded,
    /// It has as many requests as `limits.per_endpoint.requests` allows; or, for keys alone, has yet to answer since SWIM
    /// took it away.
    Full,
    /// It has more than its share of the requests in flight; called all the same if everybody has.
    Busy,
}

impl Hindrance {
    /// What stands in the way of `endpoint` at `now`, whoever it is for.
    ///
    /// That it has yet to answer since SWIM took it away does not: a key comes home again, but a session that moves is
    /// lost, and SWIM is not believed about its host. What that costs, should the host be dead after all, is the wait for
    /// one attempt.
    pub fn of(upstream: &Upstream, endpoint: &Endpoint, now: Moment) -> Option<Hindrance> {
        let limit = upstream.policy.limits.endpoint_requests;
        if endpoint.is_ejected() {
            Some(Hindrance::Ejected)
        } else if endpoint.full_for(now).is_some() {
            Some(Hindrance::Overloaded)
        } else if limit.is_some_and(|limit| endpoint.in_flight() >= limit) {
            Some(Hindrance::Full)
        } else {
            None
        }
    }

    /// What stands in the way of owner number `owner` at `now`.
    pub fn of_owner(
        upstream: &Upstream,
        owners: &Owners,
        owner: usize,
        now: Moment,
    ) -> Option<Hindrance> {
        let endpoint = &upstream.at(owners.seats[owner]).endpoint;
        let is_busy = || {
            let in_flight = endpoint.in_flight();
            f64::from(in_flight) >= BUSY_MIN && in_flight >= busy_from(upstream, owners, owner)
        };
        let is_unproven = endpoint
            .load()
            .allowance()
            .is_some_and(|most| endpoint.in_flight() >= most);
        Hindrance::of(upstream, endpoint, now)
            .or_else(|| is_unproven.then_some(Hindrance::Full))
            .or_else(|| is_busy().then_some(Hindrance::Busy))
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
    /// Notes where a client without a cookie was sent: for good, or until whoever hosts it is back. Those who belong
    /// there are who finds out when that is, so they must not all forget it.
    pub(super) fn remember(&self, session: Session, pick: &Pick, now: Moment) {
        if let Session::Source(source) = session
            && let Some(hosts) = &self.upstream.hosts
            && let Some(host) = hosts.by_id(pick.endpoint.id)
        {
            let sources = &self.upstream.shared.sources;
            let home = seen_host(&self.upstream, session, now);
            if home.is_some_and(|home| home.seed != host.seed && self.is_away(home)) {
                sources.lodge(source, host.seed);
            } else {
                sources.remember(source, host.seed, now);
            }
        }
    }

    /// Whether a host was sent out or its zone is lost, so that it comes back if it can.
    fn is_away(&self, host: &Host) -> bool {
        !host.draining && (host.endpoint.is_ejected() || self.trips[host.tier].is_ill())
    }

    /// Where the request's session is, if it can stay there.
    pub(super) fn stayed(&mut self, session: Session, ask: &Ask<'_>, now: Moment) -> Option<Pick> {
        let upstream = Arc::clone(&self.upstream);
        let host = host_of(&upstream, session, now).filter(|host| ask.suits(&host.endpoint))?;
        let at_host = |host: &Host, kind: PickKind, patience: Option<Duration>| Pick {
            endpoint: Arc::clone(&host.endpoint),
            tier: host.tier,
            kind,
            patience,
            canary: canary_of(&host.endpoint, kind, now),
        };
        if self.is_own_canary(&host.endpoint, host.tier, ask, now) {
            let patience = self.patience(host.tier);
            return Some(at_host(host, PickKind::Canary, Some(patience)));
        }
        let takes = |host: &&Host| {
            let is_untried = !ask.tried.contains(&host.endpoint.id) && ask.suits(&host.endpoint);
            let is_lost = !host.draining && self.trips[host.tier].is_ill();
            is_untried && !is_lost && Hindrance::of(&upstream, &host.endpoint, now).is_none()
        };
        let found = if takes(&host) {
            Some(host)
        } else if self.is_away(host) {
            lodging_of(&upstream, session).filter(takes)
        } else {
            None
        };
        found.map(|host| at_host(host, kind_of(&host.endpoint), None))
    }

    /// Where the first owner of the request's key stands that can take it.
    pub(super) fn owned(&mut self, key: u64, ask: &Ask<'_>, now: Moment) -> Option<Choice> {
        if self.wants_canary && ask.tried.is_empty() {
            let upstream = Arc::clone(&self.upstream);
            let owners = upstream.owners.as_ref()?;
            let seat = owners.seats[owners.table.owner(key)?];
            let owner = &upstream.at(seat).endpoint;
            if ask.suits(owner) && self.is_own_canary(owner, seat.tier, ask, now) {
                let kind = PickKind::Canary;
                return Some(Choice { seat, kind });
            }
        }
        let upstream = &*self.upstream;
        let owners = upstream.owners.as_ref()?;
        let seat = |owner: usize| owners.seats[owner];
        let open = |owner: usize, busy_too: bool| {
            let endpoint = &upstream.at(seat(owner)).endpoint;
            let untried = !ask.tried.contains(&endpoint.id) && ask.suits(endpoint);
            let hindrance = Hindrance::of_owner(upstream, owners, owner, now);
            let fits = hindrance.is_none() || (busy_too && hindrance == Some(Hindrance::Busy));
            untried && fits && !self.trips[seat(owner).tier].is_ill()
        };
        // Whoever was tried in vain may have lost its whole zone: its keys' next owner there is no help.
        let far = |owner: usize| ask.beyond_tier.is_none_or(|tier| seat(owner).tier != tier);
        let found = owners
            .table
            .find(key, |owner| open(owner, false) && far(owner));
        let found = found.or_else(|| owners.table.find(key, |owner| open(owner, true)));
        Some(self.called(seat(found?)))
    }

    /// Whether this request finds out whether the endpoint that it belongs to is well again: nobody else needs to move
    /// for that.
    fn is_own_canary(
        &mut self,
        endpoint: &Endpoint,
        tier: usize,
        ask: &Ask<'_>,
        now: Moment,
    ) -> bool {
        let trial = &endpoint.trial;
        if !ask.tried.is_empty() || !self.takes_canary(endpoint, ask, now) {
            return false;
        }
        if trial.awaits_canary(ask.idempotent, now) && trial.claim_canary(now) {
            return true;
        }
        if self.trips[tier].is_ill() {
            self.trip_credit = (self.trip_credit + TRIP_CANARY_SHARE).min(1.0);
            let is_bad = !endpoint.is_ejected() && !self.trips[tier].is_proven(endpoint);
            if is_bad && !endpoint.is_waited_for() && self.trip_canary_is_due(ask, now) {
                self.trip_canary_goes(now);
                return true;
            }
        }
        false
    }
}

/// Where a session is, if that is still there; its client is seen now.
fn host_of(upstream: &Upstream, session: Session, now: Moment) -> Option<&Host> {
    if let (Session::Source(source), Some(Sticky::SourceIp { ttl })) =
        (session, &upstream.policy.sticky)
    {
        let seed = upstream.shared.sources.find(source, *ttl, now)?;
        return upstream.hosts.as_ref()?.by_seed(seed);
    }
    seen_host(upstream, session, now)
}

/// Where a client without a cookie goes while whoever hosts it is away.
pub fn lodging_of(upstream: &Upstream, session: Session) -> Option<&Host> {
    let Session::Source(source) = session else {
        return None;
    };
    let seed = upstream.shared.sources.meanwhile(source)?;
    upstream.hosts.as_ref()?.by_seed(seed)
}

/// Where a session is, if that is still there, for whoever only looks.
pub fn seen_host(upstream: &Upstream, session: Session, now: Moment) -> Option<&Host> {
    let hosts = upstream.hosts.as_ref()?;
    match (session, upstream.policy.sticky.as_ref()?) {
        (Session::Token(token), Sticky::Cookie { .. }) => hosts.by_token(token),
        (Session::Source(source), Sticky::SourceIp { ttl }) => {
            hosts.by_seed(upstream.shared.sources.peek(source, *ttl, now)?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod affinity;

#[cfg(test)]
mod tests;
