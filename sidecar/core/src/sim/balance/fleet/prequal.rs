//! What Prequal does, in its asynchronous form, with an aversion to errors.
//!
//! Not here: the probes' way (they take a round trip and no worker). Written from Wydrowski et al., "Load is not
//! what you should balance: Introducing Prequal" (NSDI 2024): a pool of 16 probes per client, 3 new ones per
//! request, hot-cold by the 0.84 quantile of requests in flight, one probe removed per request, oldest and worst in
//! turn. The paper names error aversion without a formula: here a backend whose recent success share is below 90 %
//! is hot, and hotter the lower it is.

use std::collections::VecDeque;

use rand::{RngExt, rngs::SmallRng};

use crate::moment::Moment;

use super::{Attempt, Ended, Fleet, Scenario, Server};
use crate::sim::balance::ROUND_TRIP;

const POOL: usize = 16;
const PROBES_PER_REQUEST: usize = 3;
const PROBE_AGE_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// Below this quantile of requests in flight a backend is cold: 2^-0.25.
const HOT_QUANTILE: f64 = 0.84;

/// Fewer probes than this choose by chance.
const POOL_MIN: usize = 2;

/// Recent counts of requests in flight that the quantile is taken of.
const COUNTS: usize = 128;

/// Counts of requests in flight that a backend keeps latencies of; more are taken for this many.
const LEVELS: usize = 64;

/// Recent latencies that it keeps of each count, and that a probe's answer is the median of.
const LATENCIES: usize = 15;

const SUCCESS_STEP: f64 = 0.1;
const SUCCESS_FLOOR: f64 = 0.9;

#[derive(Clone, Copy)]
struct Probe {
    backend: usize,
    in_flight: f64,
    latency: f64,
    arrives: Moment,
    uses_left: u32,
}

#[derive(Clone)]
struct Client {
    pool: Vec<Probe>,
    counts: VecDeque<f64>,
    success: Vec<f64>,
    removes_oldest: bool,
}

pub(super) struct Prequal {
    clients: Vec<Client>,
    /// What each backend knows: the last latencies in seconds, by requests in flight when they began.
    seen: Vec<Vec<VecDeque<f64>>>,
    here: Vec<bool>,
    /// How often one probe may be used: (1 + δ) / ((1 − m/n)·r_probe − r_remove), δ = 1, at least once.
    uses: u32,
}

impl Prequal {
    pub fn new(scenario: &Scenario) -> Prequal {
        let count = scenario.backends.len();
        let fresh = (1.0 - POOL as f64 / count as f64) * PROBES_PER_REQUEST as f64 - 1.0;
        let uses = if fresh > 0.0 {
            (2.0 / fresh).ceil()
        } else {
            4.0
        };
        let client = Client {
            pool: Vec::new(),
            counts: VecDeque::new(),
            success: vec![1.0; count],
            removes_oldest: true,
        };
        Prequal {
            clients: vec![client; scenario.clients],
            seen: vec![vec![VecDeque::new(); LEVELS]; count],
            here: scenario
                .backends
                .iter()
                .map(|b| b.joins.is_zero())
                .collect(),
            uses: uses.min(4.0) as u32,
        }
    }

    /// The median of the latencies seen at about as many requests in flight as now.
    fn estimate(&self, server: &Server, backend: usize) -> f64 {
        let now = server.in_flight().min(LEVELS - 1);
        let levels = &self.seen[backend];
        let near = (0..LEVELS).find_map(|off| {
            let below = now.checked_sub(off).map(|level| &levels[level]);
            let above = levels.get(now + off);
            let known = |level: &&VecDeque<f64>| !level.is_empty();
            below.filter(known).or(above.filter(known))
        });
        let mut latencies: Vec<f64> =
            near.map_or(Vec::new(), |level| level.iter().copied().collect());
        latencies.sort_by(f64::total_cmp);
        latencies.get(latencies.len() / 2).copied().unwrap_or(0.0)
    }

    fn draw(&self, dice: &mut SmallRng) -> Option<usize> {
        let here: Vec<usize> = (0..self.here.len()).filter(|i| self.here[*i]).collect();
        (!here.is_empty()).then(|| here[dice.random_range(0..here.len())])
    }
}

impl Client {
    /// Hot backends rank by requests in flight, after all cold ones, which rank by latency.
    fn rank(&self, probe: &Probe, hot_from: f64) -> (bool, f64) {
        let success = self.success[probe.backend];
        if success < SUCCESS_FLOOR {
            return (true, probe.in_flight + 1e3 / success.max(1e-3));
        }
        let hot = probe.in_flight > hot_from;
        (hot, if hot { probe.in_flight } else { probe.latency })
    }

    fn hot_from(&self) -> f64 {
        let mut counts: Vec<f64> = self.counts.iter().copied().collect();
        counts.sort_by(f64::total_cmp);
        let place = (counts.len() as f64 * HOT_QUANTILE) as usize;
        counts.get(place).copied().unwrap_or(f64::INFINITY)
    }

    fn best(&mut self, now: Moment) -> Option<usize> {
        self.pool.retain(|p| now.since(p.arrives) < PROBE_AGE_MAX);
        let ready: Vec<usize> = (0..self.pool.len())
            .filter(|i| self.pool[*i].arrives <= now)
            .collect();
        if ready.len() < POOL_MIN {
            return None;
        }
        let hot_from = self.hot_from();
        let rank = |i: &usize| self.rank(&self.pool[*i], hot_from);
        let order = |a: &(bool, f64), b: &(bool, f64)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1));
        let best = ready
            .iter()
            .copied()
            .min_by(|a, b| order(&rank(a), &rank(b)))?;
        let worst = ready
            .iter()
            .copied()
            .max_by(|a, b| order(&rank(a), &rank(b)))?;
        let backend = self.pool[best].backend;
        let probe = &mut self.pool[best];
        // The request that goes there now is one more in flight.
        probe.in_flight += 1.0;
        probe.uses_left -= 1;
        let spent = probe.uses_left == 0;
        let oldest = (0..self.pool.len()).min_by_key(|i| self.pool[*i].arrives)?;
        let removed = if self.removes_oldest { oldest } else { worst };
        self.removes_oldest = !self.removes_oldest;
        let mut gone = [spent.then_some(best), Some(removed)];
        gone.sort_unstable_by(|a, b| b.cmp(a));
        if gone[0] == gone[1] {
            gone[1] = None;
        }
        for place in gone.into_iter().flatten() {
            self.pool.swap_remove(place);
        }
        Some(backend)
    }
}

impl Fleet for Prequal {
    fn pick(
        &mut self,
        client: usize,
        servers: &[Server],
        now: Moment,
        dice: &mut SmallRng,
    ) -> Option<usize> {
        let best = self.clients[client].best(now);
        let picked = best.or_else(|| self.draw(dice))?;
        for _ in 0..PROBES_PER_REQUEST {
            let backend = self.draw(dice)?;
            let in_flight = servers[backend].in_flight() as f64;
            let probe = Probe {
                backend,
                in_flight,
                latency: self.estimate(&servers[backend], backend),
                arrives: now + ROUND_TRIP,
                uses_left: self.uses,
            };
            let client = &mut self.clients[client];
            if client.pool.len() >= POOL {
                let oldest = (0..POOL).min_by_key(|i| client.pool[*i].arrives);
                client.pool.swap_remove(oldest.unwrap_or(0));
            }
            client.pool.push(probe);
            client.counts.push_back(in_flight);
            if client.counts.len() > COUNTS {
                client.counts.pop_front();
            }
        }
        Some(picked)
    }

    fn ended(&mut self, attempt: &Attempt, _: Moment, _: &mut SmallRng) {
        let success = &mut self.clients[attempt.client].success[attempt.backend];
        let target = f64::from(u8::from(attempt.ended == Ended::Well));
        *success += (target - *success) * SUCCESS_STEP;
        if attempt.ended != Ended::TimedOut {
            let level = attempt.ahead.min(LEVELS - 1);
            let seen = &mut self.seen[attempt.backend][level];
            seen.push_back(attempt.latency.as_secs_f64());
            if seen.len() > LATENCIES {
                seen.pop_front();
            }
        }
    }

    fn joined(&mut self, backend: usize, _: Moment) {
        self.here[backend] = true;
    }
}
