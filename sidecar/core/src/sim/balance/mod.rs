//! Many clients, some backends, one way of balancing: what it does to the traffic as a whole.
//!
//! Not here: the ways of balancing (`fleet/`), the backends (`server.rs`), what is played (`scenario.rs`), and what
//! is made of the numbers (`tally.rs`, `verdict.rs`). Arrivals and service times depend on the seed alone, so every
//! way of balancing gets the same load.

pub mod fleet;
pub mod scenario;
pub mod server;
pub mod tally;
pub mod verdict;

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

use crate::moment::Moment;

use fleet::{Ended, Fleet, Way};
use scenario::{Fault, Scenario};
use server::Server;
use tally::{Sample, Tally};

/// How long a client waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Between a client and a backend and back, where there are no zones.
pub const ROUND_TRIP: Duration = Duration::from_micros(500);

/// What a backend that fails takes to say so, beside the way.
const FAILS_WITHIN: Duration = Duration::from_micros(100);

/// Fleets hear the time at least this often.
const TICK: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    Arrives {
        client: usize,
    },
    /// A worker of its backend is free again.
    Worked {
        request: usize,
    },
    Answered {
        request: usize,
    },
    GaveUp {
        request: usize,
    },
    Joins {
        backend: usize,
    },
    /// The sidecar beside it has found out and told.
    ToldFailing {
        backend: usize,
    },
    ToldWell {
        backend: usize,
    },
    Tick,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    client: usize,
    backend: usize,
    began: Moment,
    /// Requests in flight at its backend when it came.
    ahead: usize,
    /// Service time in means of its backend.
    work: f64,
    fails: Option<Ended>,
    over: bool,
}

struct Run<'a> {
    scenario: &'a Scenario,
    fleet: Box<dyn Fleet>,
    servers: Vec<Server>,
    /// Arrivals and service times; the fleet's dice are others, so that it cannot change the load.
    load: SmallRng,
    dice: SmallRng,
    now: Moment,
    events: BinaryHeap<Reverse<(Moment, u64, Event)>>,
    sequence: u64,
    requests: Vec<Request>,
    tally: Tally,
}

/// Plays `scenario` with one way of balancing. The same seed gives the same figures.
pub fn play(scenario: &Scenario, way: Way, seed: u64) -> Tally {
    let mut dice = SmallRng::seed_from_u64(seed ^ 0x5eed);
    let mut world = SmallRng::seed_from_u64(seed.wrapping_add(0x_0b0e));
    let end = Moment::START + scenario.span;
    let servers: Vec<Server> = scenario
        .backends
        .iter()
        .map(|backend| Server::new(backend.clone(), end, &mut world))
        .collect();
    let run = Run {
        fleet: way.fleet(scenario, &mut dice),
        load: SmallRng::seed_from_u64(seed),
        dice,
        now: Moment::START,
        events: BinaryHeap::new(),
        sequence: 0,
        requests: Vec::new(),
        tally: Tally::new(scenario),
        servers,
        scenario,
    };
    run.play()
}

impl Run<'_> {
    fn play(mut self) -> Tally {
        for client in 0..self.scenario.clients {
            self.arrival(client);
        }
        for backend in 0..self.servers.len() {
            let joins = self.servers[backend].backend.joins;
            if !joins.is_zero() {
                self.after(joins, Event::Joins { backend });
            }
            if let Some(told) = self.servers[backend].backend.told {
                self.after(told, Event::ToldFailing { backend });
            }
            if let Some(told) = self.servers[backend].backend.told_well {
                self.after(told, Event::ToldWell { backend });
            }
        }
        self.after(TICK, Event::Tick);
        let end = Moment::START + self.scenario.span;
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            self.now = now;
            match event {
                // What arrived before the end is waited for; nothing arrives after it.
                Event::Arrives { client } if now < end => {
                    self.arrival(client);
                    self.request(client);
                }
                Event::Tick if now < end => {
                    self.fleet.tick(now);
                    self.after(TICK, Event::Tick);
                }
                Event::Arrives { .. } | Event::Tick => {}
                Event::Worked { request } => self.worked(request),
                Event::Answered { request } => self.answered(request),
                Event::GaveUp { request } => self.end(request, Ended::TimedOut),
                Event::Joins { backend } => self.fleet.joined(backend, now),
                Event::ToldFailing { backend } => self.fleet.told_failing(backend, now),
                Event::ToldWell { backend } => self.fleet.told_well(backend, now),
            }
        }
        self.tally
    }

    fn after(&mut self, span: Duration, event: Event) {
        self.at(self.now + span, event);
    }

    fn at(&mut self, when: Moment, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((when, self.sequence, event)));
    }

    fn arrival(&mut self, client: usize) {
        let mean = self.scenario.clients as f64 / self.scenario.requests_per_second();
        let mean = mean / self.scenario.asks(client, self.now);
        let gap = Duration::from_secs_f64(mean * exponential(&mut self.load));
        self.after(gap, Event::Arrives { client });
    }

    fn request(&mut self, client: usize) {
        let (work, luck) = (
            self.scenario.work.draw(&mut self.load),
            self.load.random::<f64>(),
        );
        let picked = self
            .fleet
            .pick(client, &self.servers, self.now, &mut self.dice);
        let Some(backend) = picked else {
            self.tally.refused(self.now);
            return;
        };
        let fault = self.servers[backend].backend.fault;
        let fails = match fault {
            Fault::FailsFast { share } => (luck < share).then_some(Ended::Failed),
            Fault::Gone { .. } => fault.refuses(self.now).then_some(Ended::Refused),
            Fault::None | Fault::Silent { .. } => None,
        };
        let request = self.requests.len();
        self.requests.push(Request {
            client,
            backend,
            began: self.now,
            ahead: self.servers[backend].in_flight(),
            work,
            fails,
            over: false,
        });
        self.after(PATIENCE, Event::GaveUp { request });
        if fails.is_some() {
            let round_trip = self.scenario.round_trip(client, backend);
            self.after(round_trip + FAILS_WITHIN, Event::Answered { request });
        } else if self.servers[backend].takes(request) {
            self.work(request);
        }
    }

    fn work(&mut self, request: usize) {
        let Request { backend, work, .. } = self.requests[request];
        if let Fault::Silent { from } = self.servers[backend].backend.fault
            && self.now >= Moment::START + from
        {
            return;
        }
        let done = self.servers[backend].done_at(self.now, work);
        self.at(done, Event::Worked { request });
    }

    fn worked(&mut self, request: usize) {
        let Request {
            client, backend, ..
        } = self.requests[request];
        if self.servers[backend].backend.fault.refuses(self.now) {
            self.requests[request].fails = Some(Ended::Refused);
        }
        let round_trip = self.scenario.round_trip(client, backend);
        self.after(round_trip, Event::Answered { request });
        while let Some(next) = self.servers[backend].next() {
            // A server sees that a client went away before it starts to work for it.
            if !self.requests[next].over {
                self.work(next);
                return;
            }
        }
    }

    fn answered(&mut self, request: usize) {
        let ended = self.requests[request].fails.unwrap_or(Ended::Well);
        self.end(request, ended);
    }

    fn end(&mut self, request: usize, ended: Ended) {
        let Request {
            client,
            backend,
            began,
            ahead,
            over,
            ..
        } = self.requests[request];
        if over {
            return;
        }
        self.requests[request].over = true;
        let latency = self.now.since(began);
        self.fleet.ended(
            &fleet::Attempt {
                client,
                backend,
                ahead,
                latency,
                ended,
            },
            self.now,
            &mut self.dice,
        );
        self.tally.count(Sample {
            began,
            latency,
            client,
            backend,
            ended,
        });
    }
}

/// One draw of an exponential distribution with mean 1.
fn exponential(rng: &mut impl Rng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

#[cfg(test)]
mod tests;
