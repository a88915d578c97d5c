//! The default policy: the smallest expected cost of one more request, by all that this sidecar has seen itself.
//!
//! Not here: the scan (`column.rs`) and the smoothing (`load.rs`). A client that sees only its own traffic has to
//! use all it sees; a failing endpoint must not look fast, nor a silent one idle.

use std::time::Duration;

use crate::{endpoint::Endpoint, moment::Moment, upstream::Member};

/// Above a thousand endpoints, this many are looked at.
pub(super) const BLOCK: usize = 64;

/// How much one own request in flight says. It is a sign that others sent theirs too, but an endpoint works on several at
/// once: with 2, of ten endpoints the fastest, one request in flight there, came after one four times slower, and four
/// callers had 5 to 15 % more at p99 at half and at three quarters of the load. With many callers both do alike.
const KAPPA: f32 = 0.5;

/// Success shares below this are all the same: hopeless.
const SUCCESS_FLOOR: f64 = 0.01;

/// A silence shorter than this is no stall, however fast the endpoint is. Where connections are balanced, what is waited
/// for is the connection alone, and one that is not made is a stall like any other: tunnels count as in flight, so that an
/// endpoint whose host has gone, with none of them, would look idle until connecting times out. (The design takes a stall
/// for 1 there.)
const STALL_MIN: Duration = Duration::from_millis(10);

/// A silence this many times the usual latency is a stall.
const STALL_TIMES: f64 = 3.0;

/// An endpoint without anything in flight may have stalled unseen if its last good answer is older than this many times
/// its usual latency. With 20 ms of work, stalls of 300 ms and four callers, twice is where p99 was least.
const QUIET_TIMES: f64 = 2.0;

/// What that makes of its cost: more than evenness and chance do, less than one request in flight, which is sure.
const QUIET_FACTOR: f32 = 1.35;

/// Requests in flight for each endpoint from which on silence says anything: where fewer come, all are quiet.
const THICK: f32 = 0.3;

/// The most a stall multiplies the cost by.
const STALL_MAX: f64 = 1e4;

/// A new endpoint is taken to be a little better than the others, so that it is tried.
const NEW_SHARE_OF_MEAN: f64 = 0.9;

/// The latency to expect where nobody has answered yet, in nanoseconds; only ratios matter then.
const UNKNOWN_NS: f64 = 1e6;

/// Costs that differ by less than about this share either way are taken for the same: among them goes first who was
/// asked less than its share. Smoothed latencies of equal endpoints differ by as much (24 answers spread exponentially
/// have a standard error of 20 %), and the smallest of them would win every time while nothing is in flight. More evens
/// out more and listens less to small differences: 0.3 costs 1 to 10 % of p99 where all are alike, stalling or not; less
/// finds out later whose speed has changed.
const TIE_SHARE: f32 = 0.25;

/// How long it is remembered who was asked. Long against [`super::REFRESH`] and the time a queue lasts: picking by chance
/// among near ties anew each time cost 12 to 20 % of p99 at 90 % load, as it threw away what queues had just told.
const USE_TAU: Duration = Duration::from_secs(10);

/// What makes up an endpoint's cost.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Factors {
    /// Expected latency of a good answer, in nanoseconds.
    pub latency: f64,
    /// Requests in flight from this sidecar.
    pub own: u32,
    /// Share of attempts that went well.
    pub success: f64,
    /// How much a silence under way makes of the cost, 1 to 10,000.
    pub stall: f64,
    /// Share of the weight that the ramp grants, 0.1 to 1.
    pub ramp: f64,
    /// Weight as a multiple of the mean.
    pub weight: f64,
}

impl Factors {
    /// The factors of `endpoint`, where `mean` is the mean latency of its tier in nanoseconds and `weight` a multiple of
    /// its mean weight.
    pub fn of(endpoint: &Endpoint, weight: f64, ramp: f64, mean: f64, now: Moment) -> Factors {
        let load = endpoint.load();
        let known = load.expected_latency(mean, now);
        let latency = known.unwrap_or(mean * NEW_SHARE_OF_MEAN).max(1.0);
        let patience = (STALL_TIMES * latency).max(STALL_MIN.as_nanos() as f64);
        let silence = load.silence(now).as_nanos() as f64;
        let stall = if silence > patience {
            (silence / patience).powi(2).min(STALL_MAX)
        } else {
            1.0
        };
        Factors {
            latency,
            own: load.in_flight(),
            success: f64::from(load.success()),
            stall,
            ramp,
            weight,
        }
    }

    /// The cost while nothing is in flight. The weight has no part in it: a backend of twice the capacity is no quicker
    /// when both are idle, and if it were cheaper it would get all requests then. Among equals they go by weight
    /// (`evenness`), and one that is quicker gets no more than its part (`portion.rs`).
    pub fn at_rest(&self) -> f64 {
        let success = self.success.max(SUCCESS_FLOOR);
        self.latency * self.stall / (self.ramp * success * success)
    }

    /// What failures, a silence under way and youth leave of it; 1 is all.
    pub fn soundness(&self) -> f64 {
        self.latency / self.at_rest()
    }

    /// The cost of one more request, but for what sets near ties apart.
    pub fn cost(&self) -> f64 {
        let share = f64::from(self.own) / self.weight;
        self.at_rest() * f64::from(crowding(share as f32))
    }
}

/// What requests in flight make of the cost: (1 + κ·own)^1.5, where `own` is divided by the weight.
#[inline]
pub(crate) fn crowding(own: f32) -> f32 {
    let crowd = 1.0 + KAPPA * own;
    crowd * crowd.sqrt()
}

/// What is left of the count of picks after `span`.
pub(crate) fn use_kept(span: Duration) -> f32 {
    (-span.as_secs_f32() / USE_TAU.as_secs_f32()).exp()
}

/// What having been asked `share` times its share makes of the cost.
pub(crate) fn evenness(share: f32) -> f32 {
    1.0 + TIE_SHARE * (share - 1.0).min(1.0)
}

/// Whether so many requests in flight to so many endpoints make every one of them answer often.
pub(crate) fn is_thick(busy: u32, endpoints: u32) -> bool {
    busy as f32 >= THICK * endpoints as f32
}

/// So long an endpoint that went quiet comes last without being asked.
const DOUBT_MAX: Duration = Duration::from_secs(1);

/// What the time since the last good answer makes of the cost of an endpoint at rest.
pub(crate) fn staleness(endpoint: &Endpoint, now: Moment) -> f32 {
    let Some(latency) = endpoint.load().latency() else {
        return 1.0;
    };
    let quiet = (QUIET_TIMES * latency).max(STALL_MIN.as_nanos() as f64);
    let answered = endpoint.trial.well_at();
    match answered {
        // A doubt that keeps everybody away would never be lifted: one request a while settles it.
        _ if now.since(endpoint.load().begun()) >= DOUBT_MAX => 1.0,
        Some(at) if now.since(at).as_nanos() as f64 > quiet => QUIET_FACTOR,
        _ => 1.0,
    }
}

/// Mean weight of the members that are in; 1 where nobody is.
pub fn mean_weight(members: &[Member]) -> f64 {
    let inside = members.iter().filter(|m| !m.endpoint.is_ejected());
    let (sum, count) = inside.fold((0.0, 0.0), |(sum, count), member| {
        (sum + member.weight, count + 1.0)
    });
    if count > 0.0 { sum / count } else { 1.0 }
}

/// Mean latency in nanoseconds of the members that have answered and are in.
pub fn mean_latency(members: &[Member]) -> f64 {
    let inside = members.iter().filter(|m| !m.endpoint.is_ejected());
    let (sum, count) = inside
        .filter_map(|m| m.endpoint.load().latency())
        .fold((0.0, 0.0), |(sum, count), latency| {
            (sum + latency, count + 1.0)
        });
    if count > 0.0 { sum / count } else { UNKNOWN_NS }
}

#[cfg(test)]
mod tests;
