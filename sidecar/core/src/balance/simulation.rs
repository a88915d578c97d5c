//! Many sidecars against backends that misbehave, in virtual time: what a policy does to the traffic as a whole.
//!
//! Not here: single picks (`tests.rs`). Each client has a picker and figures of its own, as separate hosts would.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use rand::{RngExt, rngs::StdRng};

use super::*;
use crate::{
    endpoint::Report,
    outcome::Outcome,
    snapshot::{Member, Upstream},
    staging::{Stage, at, dice},
};

/// What a backend does.
#[derive(Clone, Copy)]
struct Backend {
    /// Requests worked on at once; the rest waits its turn.
    slots: usize,
    /// Mean of an exponential service time, in milliseconds.
    mean_ms: f64,
    /// Answers 500 within 0.2 ms without doing anything.
    fails_fast: bool,
    /// Takes requests and never answers from this second on.
    silent_from: Option<u64>,
}

const USUAL: Backend = Backend {
    slots: 4,
    mean_ms: 10.0,
    fails_fast: false,
    silent_from: None,
};

struct World {
    clients: usize,
    backends: Vec<Backend>,
    requests_per_second: f64,
    seconds: u64,
    /// Seconds at the start that are not counted.
    warm_up: u64,
    balance: Balance,
    ejection: bool,
}

/// What was counted after the warm-up.
#[derive(PartialEq, Debug)]
struct Tally {
    picks: Vec<u64>,
    failed: u64,
    latencies_us: Vec<u64>,
}

impl Tally {
    fn share(&self, backend: usize) -> f64 {
        self.picks[backend] as f64 / self.picks.iter().sum::<u64>() as f64
    }

    fn p99_ms(&self) -> f64 {
        let mut sorted = self.latencies_us.clone();
        sorted.sort_unstable();
        sorted[sorted.len() * 99 / 100] as f64 / 1e3
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives { client: usize },
    Answered { request: usize },
    GaveUp { request: usize },
}

struct Request {
    client: usize,
    backend: usize,
    endpoint: Arc<Endpoint>,
    began: Moment,
    over: bool,
}

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(1);

struct Run {
    world: World,
    rng: StdRng,
    now: Moment,
    events: BinaryHeap<Reverse<(Moment, u64, Event)>>,
    sequence: u64,
    upstreams: Vec<Arc<Upstream>>,
    pickers: Vec<Picker>,
    requests: Vec<Request>,
    busy: Vec<usize>,
    waiting: Vec<std::collections::VecDeque<usize>>,
    tally: Tally,
}

fn simulate(world: World, seed: u64) -> Tally {
    let mut rng = dice(seed);
    let zones = vec!["a1"; world.backends.len()];
    let upstreams: Vec<Arc<Upstream>> = (0..world.clients)
        .map(|_| {
            let mut stage = Stage::with(&zones, |policy| {
                policy.balance = world.balance;
                policy.ejection.consecutive *= u32::from(world.ejection);
            });
            stage.build(at(0))
        })
        .collect();
    let pickers = upstreams.iter().map(|u| Picker::new(u, &mut rng)).collect();
    let backends = world.backends.len();
    let mut run = Run {
        rng,
        now: at(0),
        events: BinaryHeap::new(),
        sequence: 0,
        upstreams,
        pickers,
        requests: Vec::new(),
        busy: vec![0; backends],
        waiting: vec![Default::default(); backends],
        tally: Tally {
            picks: vec![0; backends],
            failed: 0,
            latencies_us: Vec::new(),
        },
        world,
    };
    run.play();
    run.tally
}

impl Run {
    fn play(&mut self) {
        for client in 0..self.world.clients {
            self.arrival(client);
        }
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now > at(self.world.seconds * 1_000) {
                return;
            }
            self.now = now;
            match event {
                Event::Arrives { client } => {
                    self.arrival(client);
                    self.request(client);
                }
                Event::Answered { request } => self.answered(request),
                Event::GaveUp { request } => self.gave_up(request),
            }
        }
    }

    fn after(&mut self, span: Duration, event: Event) {
        self.sequence += 1;
        let when = self.now + span;
        self.events.push(Reverse((when, self.sequence, event)));
    }

    fn exponential(&mut self, mean: f64) -> Duration {
        Duration::from_secs_f64(-mean * (1.0 - self.rng.random::<f64>()).ln())
    }

    fn arrival(&mut self, client: usize) {
        let mean = self.world.clients as f64 / self.world.requests_per_second;
        let gap = self.exponential(mean);
        self.after(gap, Event::Arrives { client });
    }

    fn counts(&self) -> bool {
        self.now >= at(self.world.warm_up * 1_000)
    }

    fn request(&mut self, client: usize) {
        let ask = Ask {
            idempotent: true,
            ..Ask::default()
        };
        let pick = self.pickers[client].pick(&ask, self.now, &mut self.rng);
        let endpoint = pick.expect("somebody is in").endpoint;
        let is_it = |m: &Member| m.endpoint.id == endpoint.id;
        let place = self.upstreams[client].members().position(is_it);
        let backend = place.expect("the pick is a member");
        endpoint.begin(self.now);
        if self.counts() {
            self.tally.picks[backend] += 1;
        }
        let request = self.requests.len();
        self.requests.push(Request {
            client,
            backend,
            endpoint,
            began: self.now,
            over: false,
        });
        self.after(PATIENCE, Event::GaveUp { request });
        let b = self.world.backends[backend];
        if b.fails_fast {
            self.after(Duration::from_micros(200), Event::Answered { request });
        } else if self.busy[backend] < b.slots {
            self.busy[backend] += 1;
            self.work(request);
        } else {
            self.waiting[backend].push_back(request);
        }
    }

    fn work(&mut self, request: usize) {
        let b = self.world.backends[self.requests[request].backend];
        if b.silent_from
            .is_some_and(|second| self.now >= at(second * 1_000))
        {
            return;
        }
        let span = self.exponential(b.mean_ms / 1e3);
        self.after(span, Event::Answered { request });
    }

    fn answered(&mut self, request: usize) {
        let backend = self.requests[request].backend;
        let fails = self.world.backends[backend].fails_fast;
        if !fails {
            match self.waiting[backend].pop_front() {
                Some(next) => self.work(next),
                None => self.busy[backend] -= 1,
            }
        }
        let outcome = if fails {
            Outcome::ServerFault { gateway: false }
        } else {
            Outcome::Success
        };
        self.end(request, outcome);
    }

    fn gave_up(&mut self, request: usize) {
        let silent = crate::outcome::Unreachable::AnswerTimedOut;
        self.end(request, Outcome::Unreachable(silent));
    }

    fn end(&mut self, request: usize, outcome: Outcome) {
        let Request {
            client,
            ref endpoint,
            began,
            over,
            ..
        } = self.requests[request];
        if over {
            return;
        }
        let latency = self.now.since(began);
        match outcome {
            Outcome::Unreachable(_) => endpoint.gave_up(self.now),
            _ => endpoint.head_came(self.now),
        }
        endpoint.end(self.now);
        let report = Report {
            outcome,
            latency: outcome.is_well().then_some(latency),
            connection: request as u64 + 1,
        };
        self.upstreams[client].report(endpoint, &report, self.now, &mut self.rng);
        if self.counts() {
            self.tally.failed += u64::from(!outcome.is_well());
            self.tally.latencies_us.push(latency.as_micros() as u64);
        }
        self.requests[request].over = true;
    }
}

/// 50 clients and 20 backends at three quarters of what they can take.
fn twenty(balance: Balance) -> World {
    World {
        clients: 50,
        backends: vec![USUAL; 20],
        requests_per_second: 6_000.0,
        seconds: 6,
        warm_up: 2,
        balance,
        ejection: false,
    }
}

#[test]
fn a_backend_that_fails_fast_gets_hardly_any_traffic() {
    let mut world = twenty(Balance::LeastResponseTime);
    world.backends[3].fails_fast = true;
    let tally = simulate(world, 1);
    let share = tally.share(3);
    println!("seed 1: share {share:.5}, failed {}", tally.failed);
    // Without the success factor it would get nearly all.
    assert!(share <= 0.003, "{share}");
}

#[test]
fn with_ejection_it_gets_even_less() {
    let mut world = twenty(Balance::LeastResponseTime);
    world.backends[3].fails_fast = true;
    world.ejection = true;
    let share = simulate(world, 2).share(3);
    println!("seed 2: share {share:.5}");
    assert!(share <= 0.003, "{share}");
}

#[test]
fn a_slow_backend_does_not_show_in_the_p99() {
    let mut world = twenty(Balance::LeastResponseTime);
    world.backends[7].mean_ms = 100.0;
    let tally = simulate(world, 3);
    let slow = tally.share(7);
    println!("seed 3: share {slow:.5}, p99 {} ms", tally.p99_ms());
    assert!(slow <= 0.012, "{slow}");
}

#[test]
fn a_backend_that_falls_silent_is_left_within_moments() {
    let mut world = twenty(Balance::LeastResponseTime);
    world.backends[5].silent_from = Some(3);
    let tally = simulate(world, 4);
    println!("seed 4: failed {}", tally.failed);
    // 6,000 requests/s: without the stall factor 300 a second would be lost until ejection.
    assert!(tally.failed <= 1_500, "{}", tally.failed);
}

#[test]
fn all_alike_share_alike() {
    for balance in [Balance::LeastResponseTime, Balance::LeastConnections] {
        let tally = simulate(twenty(balance), 5);
        let shares: Vec<f64> = (0..20).map(|b| tally.share(b)).collect();
        println!("seed 5: {balance:?} p99 {} ms", tally.p99_ms());
        assert!(
            shares.iter().all(|s| (0.04..0.06).contains(s)),
            "{balance:?} {shares:?}"
        );
        assert_eq!(tally.failed, 0);
    }
}

/// p99 of least response time as a share of that of the better of two draws, ejection on for both: what Envoy
/// does by default.
fn p99_ratio(world: impl Fn(Balance) -> World, seed: u64) -> f64 {
    let p99 = |balance| {
        let mut world = world(balance);
        world.ejection = true;
        let tally = simulate(world, seed);
        println!(
            "seed {seed}: {balance:?} p99 {} ms, failed {}",
            tally.p99_ms(),
            tally.failed
        );
        tally.p99_ms()
    };
    p99(Balance::LeastResponseTime) / p99(Balance::PowerOfTwo)
}

/// Backends of four speeds.
fn uneven(balance: Balance, load: f64) -> World {
    let mut world = twenty(balance);
    for (i, backend) in world.backends.iter_mut().enumerate() {
        backend.mean_ms = [5.0, 8.0, 12.0, 20.0][i % 4];
    }
    let capacity = |b: &Backend| b.slots as f64 * 1e3 / b.mean_ms;
    world.requests_per_second = load * world.backends.iter().map(capacity).sum::<f64>();
    world
}

#[test]
fn the_default_policy_beats_two_draws_where_backends_differ() {
    let ratio = p99_ratio(|balance| uneven(balance, 0.9), 10);
    println!("uneven at 90 %: {ratio:.2}");
    assert!(ratio <= 0.55, "{ratio}");
    let ratio = p99_ratio(
        |balance| {
            let mut world = uneven(balance, 0.75);
            world.backends[0].mean_ms *= 10.0;
            world.backends[1].fails_fast = true;
            world
        },
        11,
    );
    println!("uneven, one slow, one failing: {ratio:.2}");
    assert!(ratio <= 0.55, "{ratio}");
    let ratio = p99_ratio(twenty, 12);
    println!("all alike: {ratio:.2}");
    assert!(ratio <= 1.0, "{ratio}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let world = || World {
        clients: 5,
        seconds: 3,
        warm_up: 0,
        requests_per_second: 2_000.0,
        ejection: true,
        ..twenty(Balance::LeastResponseTime)
    };
    assert_eq!(simulate(world(), 6), simulate(world(), 6));
}
