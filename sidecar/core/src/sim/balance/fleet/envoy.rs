//! What Envoy's LEAST_REQUEST does, with outlier detection, both at their defaults.
//!
//! Not here: which zone a request goes to (`locality.rs`), slow start and panic page. Written from Envoy's documentation
//! ("Load balancers: weighted least request", "Outlier detection", v1.31): equal weights take the less busy of two draws
//! WITH replacement; others an earliest-deadline-first queue by weight / (active + 1).

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use rand::{RngExt, rngs::SmallRng};

use crate::moment::Moment;

use super::{
    Attempt, Ended, Fleet, Scenario, Server,
    locality::{LoadAware, Reports, priority},
};
use crate::sim::balance::scenario::ZONES;

/// 5xx in a row that send a host out.
const CONSECUTIVE: u32 = 5;

/// Between two looks at success rates and at who may come back.
const INTERVAL: Duration = Duration::from_secs(10);

/// First time out, multiplied by how often it was out.
const BASE_EJECTION: Duration = Duration::from_secs(30);

const MAX_EJECTION: Duration = Duration::from_secs(300);

/// Share of the hosts that may be out; the first may always go.
const MAX_EJECTED: f64 = 0.1;

/// Hosts with enough requests, and how many are enough, for success rates to be compared.
const SUCCESS_RATE_HOSTS: usize = 5;
const SUCCESS_RATE_REQUESTS: u32 = 100;

/// Standard deviations below the mean.
const SUCCESS_RATE_FACTOR: f64 = 1.9;

#[derive(Clone, Default)]
struct Host {
    here: bool,
    /// Its control plane says that it fails.
    failing: bool,
    active: u32,
    in_a_row: u32,
    good: u32,
    all: u32,
    out_since: Option<Moment>,
    times: u32,
}

struct Client {
    hosts: Vec<Host>,
    next_interval: Moment,
    /// Deadlines by weight, where weights differ.
    turns: BinaryHeap<Reverse<(u64, usize)>>,
    clock: u64,
    zone: usize,
    aware: LoadAware,
    asked: Moment,
}

pub(super) struct Envoy {
    clients: Vec<Client>,
    weights: Vec<f64>,
    even: bool,
    zones: Option<Locality>,
}

/// How a zone is chosen, where there are any; only hosts of equal weight stand in zones.
enum Locality {
    Priority,
    LoadAware(Reports),
}

impl Envoy {
    pub fn new(scenario: &Scenario, load_aware: bool, dice: &mut SmallRng) -> Envoy {
        let backends = &scenario.backends;
        let weights: Vec<f64> = backends.iter().map(|b| f64::from(b.weight)).collect();
        let client = |zone: usize, start: f64| Client {
            hosts: backends
                .iter()
                .map(|backend| Host {
                    here: backend.joins.is_zero(),
                    ..Host::default()
                })
                .collect(),
            next_interval: Moment::START + INTERVAL.mul_f64(start),
            turns: BinaryHeap::new(),
            clock: 0,
            zone,
            // Clients do not reckon at the same moment.
            aware: LoadAware::new(zone, Duration::from_secs(1).mul_f64(start)),
            asked: Moment::START,
        };
        let mut envoy = Envoy {
            clients: (0..scenario.clients)
                .map(|at| client(scenario.zone_of(at), dice.random()))
                .collect(),
            zones: scenario.zones.map(|zones| match load_aware {
                true => Locality::LoadAware(Reports::new(zones.news)),
                false => Locality::Priority,
            }),
            even: weights.windows(2).all(|pair| pair[0] == pair[1]),
            weights,
        };
        if !envoy.even {
            for client in &mut envoy.clients {
                for (i, weight) in envoy.weights.iter().enumerate() {
                    let at = (1e9 * dice.random::<f64>() / weight) as u64;
                    client.turns.push(Reverse((at, i)));
                }
            }
        }
        envoy
    }
}

impl Envoy {
    fn told(&mut self, backend: usize, failing: bool) {
        // Elsewhere it is compared with its outlier detection alone.
        if self.zones.is_some() {
            for client in &mut self.clients {
                client.hosts[backend].failing = failing;
            }
        }
    }
}

impl Client {
    fn is_in(&self, host: usize) -> bool {
        let Host {
            here,
            failing,
            out_since,
            ..
        } = self.hosts[host];
        here && !failing && out_since.is_none()
    }

    /// The less busy of two of those hosts that are in.
    fn by_chance(&self, among: impl Fn(usize) -> bool, dice: &mut SmallRng) -> Option<usize> {
        let inside = (0..self.hosts.len()).filter(|i| self.is_in(*i) && among(*i));
        let inside: Vec<usize> = inside.collect();
        if inside.is_empty() {
            return None;
        }
        let mut draw = || inside[dice.random_range(0..inside.len())];
        let (first, second) = (draw(), draw());
        if self.hosts[second].active < self.hosts[first].active {
            Some(second)
        } else {
            Some(first)
        }
    }

    /// The same in the own zone or in all others together, as priority with spill has it.
    fn by_priority(&self, dice: &mut SmallRng) -> Option<usize> {
        let is_own = |host: usize| host % ZONES == self.zone;
        let count = |own: bool| {
            let hosts = (0..self.hosts.len()).filter(|i| self.hosts[*i].here && is_own(*i) == own);
            let well = hosts.clone().filter(|i| self.is_in(*i)).count();
            (well as u32, hosts.count() as u32)
        };
        let [own, _] = priority(count(true), count(false));
        let own = dice.random::<f64>() < own;
        self.by_chance(|host| is_own(host) == own, dice)
    }

    /// The same in a zone that load-aware picking has chosen.
    fn by_load(&mut self, busy: &[f64; ZONES], now: Moment, dice: &mut SmallRng) -> Option<usize> {
        let well = |zone: usize| {
            let hosts = (zone..self.hosts.len()).step_by(ZONES);
            hosts.filter(|i| self.is_in(*i)).count() as f64
        };
        let capacity = std::array::from_fn(well);
        let shares = self.aware.follow(&capacity, busy, now.since(self.asked));
        self.asked = now;
        let mut at = dice.random::<f64>();
        let drawn = shares.iter().position(|share| {
            at -= share;
            at < 0.0
        });
        self.by_chance(|host| drawn.is_none_or(|zone| host % ZONES == zone), dice)
    }

    fn by_turn(&mut self, weights: &[f64]) -> Option<usize> {
        for _ in 0..2 * self.turns.len() {
            let Reverse((at, host)) = self.turns.pop()?;
            self.clock = self.clock.max(at);
            let weight = weights[host] / f64::from(self.hosts[host].active + 1);
            let next = self.clock + (1e9 / weight) as u64;
            self.turns.push(Reverse((next, host)));
            if self.is_in(host) {
                return Some(host);
            }
        }
        None
    }

    fn eject(&mut self, host: usize, now: Moment) {
        let all = self.hosts.iter().filter(|h| h.here).count();
        let out = self.hosts.iter().filter(|h| h.out_since.is_some()).count();
        if self.is_in(host) && (out == 0 || ((out + 1) as f64) <= all as f64 * MAX_EJECTED) {
            self.hosts[host].out_since = Some(now);
            self.hosts[host].times += 1;
        }
    }

    fn interval(&mut self, now: Moment) {
        for host in &mut self.hosts {
            match host.out_since {
                Some(since) => {
                    let span = (BASE_EJECTION * host.times).min(MAX_EJECTION);
                    if now.since(since) >= span {
                        host.out_since = None;
                        host.in_a_row = 0;
                    }
                }
                None => host.times = host.times.saturating_sub(1),
            }
        }
        let enough = |h: &Host| h.all >= SUCCESS_RATE_REQUESTS;
        let rate = |h: &Host| f64::from(h.good) / f64::from(h.all);
        let rates: Vec<f64> = self.hosts.iter().filter(|h| enough(h)).map(rate).collect();
        if rates.len() >= SUCCESS_RATE_HOSTS {
            let count = rates.len() as f64;
            let mean = rates.iter().sum::<f64>() / count;
            let variance = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / count;
            let least = mean - SUCCESS_RATE_FACTOR * variance.sqrt();
            for host in 0..self.hosts.len() {
                if enough(&self.hosts[host]) && rate(&self.hosts[host]) < least {
                    self.eject(host, now);
                }
            }
        }
        for host in &mut self.hosts {
            (host.good, host.all) = (0, 0);
        }
    }
}

impl Fleet for Envoy {
    fn pick(
        &mut self,
        client: usize,
        servers: &[Server],
        now: Moment,
        dice: &mut SmallRng,
    ) -> Option<usize> {
        let client = &mut self.clients[client];
        while now >= client.next_interval {
            client.interval(now);
            client.next_interval = client.next_interval + INTERVAL;
        }
        let host = match &mut self.zones {
            Some(Locality::Priority) => client.by_priority(dice),
            Some(Locality::LoadAware(reports)) => {
                let busy = reports.heard(servers, now);
                client.by_load(&busy, now, dice)
            }
            None if self.even => client.by_chance(|_| true, dice),
            None => client.by_turn(&self.weights),
        }
        // A zone that has just lost its last host in this client's eyes.
        .or_else(|| client.by_chance(|_| true, dice))?;
        client.hosts[host].active += 1;
        Some(host)
    }

    fn ended(&mut self, attempt: &Attempt, now: Moment, _: &mut SmallRng) {
        let client = &mut self.clients[attempt.client];
        let host = &mut client.hosts[attempt.backend];
        host.active -= 1;
        host.all += 1;
        if attempt.ended == Ended::Well {
            host.good += 1;
            host.in_a_row = 0;
            return;
        }
        // A timeout counts as 504 unless local failures are split off.
        host.in_a_row += 1;
        if host.in_a_row >= CONSECUTIVE {
            host.in_a_row = 0;
            client.eject(attempt.backend, now);
        }
    }

    fn joined(&mut self, backend: usize, _: Moment) {
        for client in &mut self.clients {
            client.hosts[backend].here = true;
        }
    }

    fn told_failing(&mut self, backend: usize, _: Moment) {
        self.told(backend, true);
    }

    fn told_well(&mut self, backend: usize, _: Moment) {
        self.told(backend, false);
    }
}
