//! What Linkerd's proxy does: peak EWMA and the better of two distinct draws, with or without its breaker.
//!
//! Not here: its queue and fail-fast. Written from the published docs ("Load balancing", "Circuit breaking", 2.16)
//! and the description of Twitter Finagle's peak EWMA: a slower answer counts at once, faster ones by time, and
//! the estimate itself fades towards nothing while nobody asks.

use std::time::Duration;

use rand::{RngExt, rngs::SmallRng};

use crate::moment::Moment;

use super::{Attempt, Ended, Fleet, Scenario, Server, two};

const DECAY: Duration = Duration::from_secs(10);

/// What an endpoint is taken to need before it has answered.
const DEFAULT_RTT: Duration = Duration::from_millis(30);

/// Failures in a row that close an endpoint.
const FAILURES_MAX: u32 = 7;

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
const BACKOFF_JITTER: f64 = 0.5;

#[derive(Clone)]
struct Endpoint {
    here: bool,
    pending: u32,
    estimate: f64,
    updated: Moment,
    in_a_row: u32,
    gate: Gate,
    times: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum Gate {
    Open,
    Shut {
        until: Moment,
    },
    /// One request finds out.
    Probing,
}

pub(super) struct Linkerd {
    clients: Vec<Vec<Endpoint>>,
    breaker: bool,
}

impl Linkerd {
    pub fn new(scenario: &Scenario, breaker: bool) -> Linkerd {
        let endpoints = scenario.backends.iter().map(|backend| Endpoint {
            here: backend.joins.is_zero(),
            pending: 0,
            estimate: DEFAULT_RTT.as_secs_f64(),
            updated: Moment::START,
            in_a_row: 0,
            gate: Gate::Open,
            times: 0,
        });
        Linkerd {
            clients: vec![endpoints.collect(); scenario.clients],
            breaker,
        }
    }
}

impl Endpoint {
    fn is_ready(&self, now: Moment) -> bool {
        let open = match self.gate {
            Gate::Open => true,
            Gate::Shut { until } => now >= until,
            Gate::Probing => false,
        };
        self.here && open
    }

    fn observe(&mut self, rtt: f64, now: Moment) {
        if rtt > self.estimate {
            self.estimate = rtt;
        } else {
            let elapsed = now.since(self.updated).as_secs_f64();
            let kept = (-elapsed / DECAY.as_secs_f64()).exp();
            self.estimate = self.estimate * kept + rtt * (1.0 - kept);
        }
        self.updated = now;
    }

    fn cost(&mut self, now: Moment) -> f64 {
        self.observe(0.0, now);
        self.estimate * f64::from(self.pending + 1)
    }

    fn breaks(&mut self, ended: Ended, now: Moment, dice: &mut SmallRng) {
        if ended == Ended::Well {
            self.in_a_row = 0;
            if self.gate == Gate::Probing {
                (self.gate, self.times) = (Gate::Open, 0);
            }
            return;
        }
        self.in_a_row += 1;
        let probe_failed = self.gate == Gate::Probing;
        if probe_failed || (self.gate == Gate::Open && self.in_a_row >= FAILURES_MAX) {
            let span = BACKOFF_MIN
                .saturating_mul(1 << self.times.min(16))
                .min(BACKOFF_MAX);
            let jitter = 1.0 + dice.random_range(0.0..BACKOFF_JITTER);
            self.times += 1;
            self.gate = Gate::Shut {
                until: now + span.mul_f64(jitter),
            };
        }
    }
}

impl Fleet for Linkerd {
    fn pick(
        &mut self,
        client: usize,
        _: &[Server],
        now: Moment,
        dice: &mut SmallRng,
    ) -> Option<usize> {
        let endpoints = &mut self.clients[client];
        let ready: Vec<usize> = (0..endpoints.len())
            .filter(|i| endpoints[*i].is_ready(now))
            .collect();
        if ready.is_empty() {
            return None;
        }
        let (first, second) = two(ready.len(), dice);
        let (first, second) = (ready[first], ready[second]);
        let place = if endpoints[second].cost(now) < endpoints[first].cost(now) {
            second
        } else {
            first
        };
        let endpoint = &mut endpoints[place];
        if matches!(endpoint.gate, Gate::Shut { .. }) {
            endpoint.gate = Gate::Probing;
        }
        endpoint.pending += 1;
        Some(place)
    }

    fn ended(&mut self, attempt: &Attempt, now: Moment, dice: &mut SmallRng) {
        let endpoint = &mut self.clients[attempt.client][attempt.backend];
        endpoint.pending -= 1;
        endpoint.observe(attempt.latency.as_secs_f64(), now);
        if self.breaker {
            endpoint.breaks(attempt.ended, now, dice);
        }
    }

    fn joined(&mut self, backend: usize, now: Moment) {
        for endpoints in &mut self.clients {
            endpoints[backend].here = true;
            endpoints[backend].updated = now;
        }
    }
}
