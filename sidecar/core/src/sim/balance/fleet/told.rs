//! An experiment: least response time that hears with every answer how busy its server is.
//!
//! Not here: the real policy, and any such word on the wire. What came of it stands in `deploy/simulation.md`.
//!
//! The word is better than a real one could be: it is made when the answer arrives, not when it leaves. It holds the
//! requests in flight of all clients, the smoothed latency of the answers to all of them, or both.

use rand::{RngExt, rngs::SmallRng};

use crate::{
    balance::least_response_time::{
        Factors, evenness, is_thick, mean_latency, staleness, use_kept,
    },
    moment::Moment,
    policy::{Balance, ZoneMode},
};

use super::{Attempt, Ended, Fleet, Scenario, Server, starling::Starling};

/// What a word is worth is halved in this time, in seconds: some service times, as long as a queue lasts.
const WORTH_S: f64 = 0.05;

/// How fast a server forgets latencies, in seconds.
const LATENCY_TAU_S: f64 = 0.5;

/// What servers tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// Nothing: the same picks as with the others, made from what a client sees itself.
    Nothing,
    /// Requests in flight.
    InFlight,
    /// Smoothed latency.
    Latency,
    /// Both.
    Both,
}

/// One server as it would tell of itself.
#[derive(Clone, Copy, Default)]
struct Truth {
    in_flight: u32,
    latency: f64,
    at: Moment,
}

/// What one client knows of its servers.
#[derive(Clone, Default)]
struct Client {
    heard: Vec<Option<Truth>>,
    used: Vec<f32>,
    picked: Moment,
}

pub(super) struct Told {
    real: Starling,
    word: Word,
    truth: Vec<Truth>,
    clients: Vec<Client>,
}

impl Told {
    pub fn new(scenario: &Scenario, word: Word, dice: &mut SmallRng) -> Told {
        let backends = scenario.backends.len();
        let client = Client {
            heard: vec![None; backends],
            used: vec![0.0; backends],
            picked: Moment::START,
        };
        Told {
            real: Starling::new(
                scenario,
                Balance::LeastResponseTime,
                ZoneMode::Waterfill,
                dice,
            ),
            word,
            truth: vec![Truth::default(); backends],
            clients: vec![client; scenario.clients],
        }
    }

    /// The cheapest of all that are in.
    fn cheapest(&self, client: usize, now: Moment, dice: &mut SmallRng) -> Option<usize> {
        let upstream = self.real.upstream(client);
        let members: Vec<_> = upstream
            .members()
            .filter(|m| !m.endpoint.is_ejected())
            .collect();
        let all: Vec<_> = upstream.members().cloned().collect();
        let mean = mean_latency(&all);
        let busy = members.iter().map(|m| m.endpoint.in_flight()).sum();
        let is_thick = is_thick(busy, members.len() as u32);
        let Client { heard, used, .. } = &self.clients[client];
        let place = |i: usize| members[i].endpoint.key.node as usize - 1;
        let heard = |i: usize| heard[place(i)].map(|truth| (truth, worth(truth, now)));
        let known = (0..members.len()).filter_map(heard);
        let (sum, count) = known.fold((0.0, 0.0), |(sum, count), (truth, _)| {
            (sum + f64::from(truth.in_flight), count + 1.0)
        });
        let usual = if count > 0.0 { sum / count } else { 0.0 };
        let fair: f32 = members
            .iter()
            .enumerate()
            .map(|(i, _)| used[place(i)])
            .sum::<f32>()
            / members.len().max(1) as f32;
        let start = dice.random_range(0..members.len().max(1));
        let cost = |i: usize| {
            let endpoint = &members[i].endpoint;
            let mut factors = Factors::of(endpoint, 1.0, 1.0, mean, now);
            let heard = heard(i);
            if let (Word::Latency | Word::Both, Some((truth, _))) = (self.word, heard) {
                factors.latency = truth.latency;
            }
            let mut cost = factors.cost();
            if fair > 0.0 {
                cost *= f64::from(evenness(used[place(i)] / fair));
            }
            if is_thick && factors.own == 0 {
                cost *= f64::from(staleness(endpoint, now));
            }
            if let (Word::InFlight | Word::Both, Some((truth, worth))) = (self.word, heard) {
                let expected = usual + (f64::from(truth.in_flight) - usual) * worth;
                cost *= (expected + 1.0) / (usual + 1.0);
            }
            cost
        };
        let places = (start..members.len()).chain(0..start.min(members.len()));
        let costs = places.map(|i| (i, cost(i)));
        let best = costs.min_by(|a, b| a.1.total_cmp(&b.1));
        best.map(|(i, _)| place(i))
    }
}

/// How much of what was heard still holds.
fn worth(truth: Truth, now: Moment) -> f64 {
    0.5_f64.powf(now.since(truth.at).as_secs_f64() / WORTH_S)
}

impl Fleet for Told {
    fn pick(
        &mut self,
        client: usize,
        servers: &[Server],
        now: Moment,
        dice: &mut SmallRng,
    ) -> Option<usize> {
        let kept = use_kept(now.since(self.clients[client].picked));
        self.clients[client].picked = now;
        self.clients[client]
            .used
            .iter_mut()
            .for_each(|used| *used *= kept);
        let backend = match self.cheapest(client, now, dice) {
            Some(backend) => {
                self.real.begin(client, backend, now);
                backend
            }
            None => self.real.pick(client, servers, now, dice)?,
        };
        self.clients[client].used[backend] += 1.0;
        self.truth[backend].in_flight += 1;
        Some(backend)
    }

    fn ended(&mut self, attempt: &Attempt, now: Moment, dice: &mut SmallRng) {
        let truth = &mut self.truth[attempt.backend];
        truth.in_flight = truth.in_flight.saturating_sub(1);
        if attempt.ended == Ended::Well {
            let latency = attempt.latency.as_nanos() as f64;
            let kept = (-now.since(truth.at).as_secs_f64() / LATENCY_TAU_S).exp();
            // About as many answers as fall into the time that is remembered.
            let share = if truth.latency > 0.0 {
                (1.0 - kept).max(0.005)
            } else {
                1.0
            };
            truth.latency += (latency - truth.latency) * share;
            truth.at = now;
            self.clients[attempt.client].heard[attempt.backend] = Some(*truth);
        }
        self.real.ended(attempt, now, dice);
    }

    fn joined(&mut self, backend: usize, now: Moment) {
        self.real.joined(backend, now);
    }

    fn told_failing(&mut self, backend: usize, now: Moment) {
        self.real.told_failing(backend, now);
    }

    fn told_well(&mut self, backend: usize, now: Moment) {
        self.real.told_well(backend, now);
    }

    fn tick(&mut self, now: Moment) {
        self.real.tick(now);
    }
}
