//! May this be tried again? Idempotence, what of the request is left, budget, remaining deadline.
//!
//! Not here: where it goes next (`balance/`), and what is kept for a replay (the sidecar's `proxy/request_body.rs`).

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use rand::{Rng, RngExt};

use crate::{
    moment::Moment,
    outcome::{Outcome, Unreachable},
    policy::{Policy, Retry},
};

/// Distinct endpoints that are tried when none can be connected to; the last of them lies in the next tier.
pub const CONNECT_TRIES_MAX: u32 = 3;

/// Endpoints remembered as tried; a request with more attempts may come back to the first of them.
pub const TRIED_MAX: usize = 8;

/// Seconds of the budget's window.
const WINDOW_SECONDS: usize = 10;

/// The first repeat waits up to this long, each further one up to twice as long.
const BACKOFF_BASE: Duration = Duration::from_millis(25);

/// No repeat waits longer.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// Repeats that one upstream may afford: a share of its requests and a few beside, over 10 s.
#[derive(Debug, Default)]
pub struct Budget {
    /// By second: second << 44 | requests << 20 | repeats.
    seconds: [AtomicU64; WINDOW_SECONDS],
}

impl Budget {
    /// Counts one request of a client, however often it is tried.
    pub fn request(&self, now: Moment) {
        self.add(1, 0, now);
    }

    /// Takes one repeat if there is one left: with it, the repeats of the last 10 s are no more than
    /// `budget_share` of the requests of that time and `budget_per_second` for each second.
    pub fn take(&self, rules: &Retry, now: Moment) -> bool {
        // Taken first and given back if too many, so that two workers cannot both take the last one.
        self.add(0, 1, now);
        let (requests, repeats) = self.tally(now);
        let allowed = f64::from(requests) * rules.budget_share
            + rules.budget_per_second * WINDOW_SECONDS as f64;
        if f64::from(repeats) <= allowed {
            return true;
        }
        let slot = self.slot(now);
        let _ = slot.fetch_update(Relaxed, Relaxed, |packed| {
            let (second, requests, repeats) = unpack(packed);
            let same = second == second_of(now) && repeats > 0;
            same.then(|| pack(second, requests, repeats - 1))
        });
        false
    }

    /// Requests and repeats of the last 10 s.
    pub fn tally(&self, now: Moment) -> (u32, u32) {
        let newest = second_of(now);
        let mut sum = (0, 0);
        for slot in &self.seconds {
            let (second, requests, repeats) = unpack(slot.load(Relaxed));
            if newest.saturating_sub(second) < WINDOW_SECONDS as u64 {
                sum = (sum.0 + requests, sum.1 + repeats);
            }
        }
        sum
    }

    fn add(&self, requests: u32, repeats: u32, now: Moment) {
        let now_second = second_of(now);
        let _ = self.slot(now).fetch_update(Relaxed, Relaxed, |packed| {
            let (second, had, took) = unpack(packed);
            let (had, took) = if second == now_second {
                (had, took)
            } else {
                (0, 0)
            };
            Some(pack(
                now_second,
                (had + requests).min(REQUESTS_MAX),
                (took + repeats).min(REPEATS_MAX),
            ))
        });
    }

    fn slot(&self, now: Moment) -> &AtomicU64 {
        &self.seconds[second_of(now) as usize % WINDOW_SECONDS]
    }
}

const REQUESTS_MAX: u32 = (1 << 24) - 1;
const REPEATS_MAX: u32 = (1 << 20) - 1;

fn pack(second: u64, requests: u32, repeats: u32) -> u64 {
    second << 44 | u64::from(requests) << 20 | u64::from(repeats)
}

fn unpack(packed: u64) -> (u64, u32, u32) {
    (
        packed >> 44,
        (packed >> 20) as u32 & REQUESTS_MAX,
        packed as u32 & REPEATS_MAX,
    )
}

/// Seconds since the start, from 1: an empty slot holds 0. Twenty bits last 12 days, and a slot that is
/// mistaken for a newer one after that only makes the budget smaller for 10 s.
fn second_of(now: Moment) -> u64 {
    (now.as_nanos() / 1_000_000_000 + 1) & 0xf_ffff
}

/// What of the request has left when its attempt fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// Not a byte.
    Nothing,
    /// Something, and it can be sent again whole.
    Replayable,
    /// Something, on an idle connection used again that died before the first byte of an answer; it can be sent
    /// again whole. `body`: some of a body went with it.
    Stale {
        /// Whether any of a body went out.
        body: bool,
    },
    /// Something that was not kept.
    Gone,
}

/// What becomes of the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Give the client what came.
    Answer,
    /// Try once more.
    Again {
        /// After this long.
        after: Duration,
    },
}

/// One request's attempts.
#[derive(Clone, Debug)]
pub struct Tries {
    deadline: Moment,
    per_try: Option<Duration>,
    idempotent: bool,
    already_retry: bool,
    tried: [u64; TRIED_MAX],
    tried_count: usize,
    attempts: u32,
    last_tier: usize,
    beyond_tier: Option<usize>,
    connect_failures: u32,
    stale_used: bool,
    retries: u8,
    /// The attempt under way is a canary, with this much time.
    canary: Option<Duration>,
}

impl Tries {
    /// For one request; `already_retry`: it says that it is a repeat of its caller's.
    pub fn start(policy: &Policy, idempotent: bool, already_retry: bool, now: Moment) -> Tries {
        Tries {
            deadline: now + policy.timeouts.request,
            per_try: policy.retry.per_try,
            idempotent,
            already_retry,
            tried: [0; TRIED_MAX],
            tried_count: 0,
            attempts: 0,
            last_tier: 0,
            beyond_tier: None,
            connect_failures: 0,
            stale_used: false,
            retries: 0,
            canary: None,
        }
    }

    /// When the whole request must be over.
    pub fn deadline(&self) -> Moment {
        self.deadline
    }

    /// Brings the deadline forward, for a caller that gave one itself (`grpc-timeout`); never back.
    pub fn hasten(&mut self, deadline: Moment) {
        self.deadline = self.deadline.min(deadline);
    }

    /// When an attempt that starts at `now` must have its answer head.
    pub fn attempt_deadline(&self, now: Moment) -> Moment {
        let spans = [self.per_try, self.canary];
        let ends = spans.into_iter().flatten().map(|span| now + span);
        ends.fold(self.deadline, Moment::min)
    }

    /// Endpoints not to be asked again.
    pub fn tried(&self) -> &[u64] {
        &self.tried[..self.tried_count.min(TRIED_MAX)]
    }

    /// The next attempt belongs in a tier after this one, if there is any.
    pub fn beyond_tier(&self) -> Option<usize> {
        self.beyond_tier
    }

    /// An attempt starts at this endpoint of this tier.
    pub fn picked(&mut self, endpoint: u64, tier: usize) {
        self.tried[self.tried_count % TRIED_MAX] = endpoint;
        self.tried_count += 1;
        self.attempts += 1;
        self.last_tier = tier;
        self.canary = None;
    }

    /// The attempt that was just picked is a canary with this much time for its answer head.
    ///
    /// Its client must not suffer for what we want to know: if it fails it is made again at once, whatever the
    /// policy says of repeats. To be called only if the request can be sent again whole.
    pub fn as_canary(&mut self, patience: Duration) {
        self.canary = self.idempotent.then_some(patience);
    }

    /// How many attempts were started.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether an attempt is made again whose answer tells that its endpoint failed (some [`Outcome::ServerFault`]), as far
    /// as the policy goes: budget and time left are looked at when it has.
    pub fn repeats_faults(&self, policy: &Policy) -> bool {
        let on = policy.retry.on;
        (on.server_error || on.gateway_error) && self.has_repeats(&policy.retry)
    }

    /// What to do after an attempt that came to `outcome`.
    pub fn verdict(
        &mut self,
        outcome: Outcome,
        sent: Sent,
        budget: &Budget,
        policy: &Policy,
        now: Moment,
        rng: &mut impl Rng,
    ) -> Verdict {
        let Some(after) = self.wait(outcome, sent, budget, policy, now, rng) else {
            return Verdict::Answer;
        };
        if now + after >= self.deadline {
            return Verdict::Answer;
        }
        Verdict::Again { after }
    }

    fn wait(
        &mut self,
        outcome: Outcome,
        sent: Sent,
        budget: &Budget,
        policy: &Policy,
        now: Moment,
        rng: &mut impl Rng,
    ) -> Option<Duration> {
        match outcome {
            Outcome::Unreachable(why) if why.at_connect() && sent != Sent::Gone => {
                let free = why == Unreachable::Refused;
                self.elsewhere(free, budget, policy, now)
            }
            Outcome::Unreachable(Unreachable::NotProcessed)
                if sent != Sent::Gone && !self.already_retry =>
            {
                self.elsewhere(false, budget, policy, now)
            }
            Outcome::Unreachable(_) if self.is_free_repeat(sent) => {
                self.stale_used = true;
                // It is the connection that was dead: the endpoint itself may be asked again.
                self.tried_count -= usize::from(self.tried_count > 0);
                Some(Duration::ZERO)
            }
            // Canaries are a hundredth of the requests at most, which is their budget.
            _ if self.canary.take().is_some() && outcome.is_sick() && sent != Sent::Gone => {
                Some(Duration::ZERO)
            }
            _ => self.by_policy(outcome, sent, budget, policy, now, rng),
        }
    }

    /// What provably did nothing is done at once at another endpoint, and the third time in another tier.
    fn elsewhere(
        &mut self,
        free: bool,
        budget: &Budget,
        policy: &Policy,
        now: Moment,
    ) -> Option<Duration> {
        self.connect_failures += 1;
        if self.connect_failures >= CONNECT_TRIES_MAX {
            return None;
        }
        if !free && !budget.take(&policy.retry, now) {
            return None;
        }
        if self.connect_failures + 1 >= CONNECT_TRIES_MAX {
            self.beyond_tier = Some(self.last_tier);
        }
        Some(Duration::ZERO)
    }

    fn is_free_repeat(&self, sent: Sent) -> bool {
        let Sent::Stale { body } = sent else {
            return false;
        };
        !self.stale_used && (self.idempotent || !body)
    }

    fn by_policy(
        &mut self,
        outcome: Outcome,
        sent: Sent,
        budget: &Budget,
        policy: &Policy,
        now: Moment,
        rng: &mut impl Rng,
    ) -> Option<Duration> {
        let rules = &policy.retry;
        let allowed = is_asked_for(outcome, rules) && sent != Sent::Gone && self.has_repeats(rules);
        if !allowed {
            return None;
        }
        let after = backoff(self.retries, rng);
        // A repeat that cannot come in time would be charged for nothing.
        if now + after >= self.deadline || !budget.take(rules, now) {
            return None;
        }
        self.retries += 1;
        if self.retries > 1 {
            self.beyond_tier = Some(self.last_tier);
        }
        Some(after)
    }

    /// Whether the policy grants one more to a request like this.
    fn has_repeats(&self, rules: &Retry) -> bool {
        (self.idempotent || rules.on.non_idempotent)
            && !self.already_retry
            && self.retries < rules.retries
    }
}

fn is_asked_for(outcome: Outcome, rules: &Retry) -> bool {
    let on = rules.on;
    match outcome {
        Outcome::ServerFault { gateway } => on.server_error || (gateway && on.gateway_error),
        Outcome::Unreachable(Unreachable::Broken) => on.gateway_error || on.reset,
        Outcome::Unreachable(_) => on.gateway_error,
        // Full is not sick: a repeat would only add to the load.
        Outcome::Overloaded { .. } | Outcome::Success | Outcome::ClientFault => false,
    }
}

/// Full jitter: anything between nothing and the doubling bound.
fn backoff(retries: u8, rng: &mut impl Rng) -> Duration {
    let most = BACKOFF_BASE
        .saturating_mul(1 << u32::from(retries).min(8))
        .min(BACKOFF_MAX);
    most.mul_f64(rng.random::<f64>())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod story;
