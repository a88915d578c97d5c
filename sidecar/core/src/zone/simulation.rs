//! Three zones whose sidecars hear of one another late: what each rule loses, as flows and not as single requests.
//!
//! Not here: the rules of this project (they are called as they are), single picks (`balance/`), real sockets
//! (`tests/zones` of the workspace).
//!
//! A zone that is asked for more than it can take loses the rest. Sidecars act on figures that are `lag` old. The others'
//! rules are written anew: priority with spill as Envoy documents it, and Envoy's load-aware locality picking
//! (`sim/balance/fleet/locality.rs`).

use std::{collections::VecDeque, time::Duration};

use super::{
    course::Course,
    demand::{Meter, SAMPLE, Word},
    health, spill,
    water::{Figures, Levels},
};
use crate::{
    moment::Moment,
    sim::balance::{fleet::locality::LoadAware, scenario::ZONES},
};

const STEP: Duration = Duration::from_millis(50);
/// Requests per second that a zone takes when all is well.
const CAPACITY: f64 = 1_000.0;
/// Part of it that its own applications usually ask for.
const USUAL: f64 = 0.6;
/// Before anything happens.
const SETTLED_S: f64 = 20.0;
/// And so long it is watched from then on.
const WATCHED_S: f64 = 60.0;

/// What is asked and what can be given, at a time in seconds from the event on.
struct Scenario {
    demand: fn(f64) -> [f64; ZONES],
    /// Capacity that is declared and well, as told to everybody.
    told: fn(f64) -> [f64; ZONES],
    /// Capacity as it really is.
    real: fn(f64) -> [f64; ZONES],
}

/// Zone 0 is suddenly asked for 1.8 times as much, 8 % more than it can take.
const SURGE: Scenario = Scenario {
    demand: |at| [if at < 0.0 { USUAL } else { 1.8 * USUAL }, USUAL, USUAL],
    told: |_| [1.0; ZONES],
    real: |_| [1.0; ZONES],
};

/// Zone 0 was lost and returns cold: a tenth of what it takes, and all of it after 15 s.
const COLD: Scenario = Scenario {
    demand: |_| [USUAL; ZONES],
    told: |at| [if at < 0.0 { 0.0 } else { 1.0 }, 1.0, 1.0],
    real: |at| {
        let warm = (0.1 + 0.9 * at / 15.0).clamp(0.1, 1.0);
        [if at < 0.0 { 0.0 } else { warm }, 1.0, 1.0]
    },
};

/// What all sidecars may know at one time.
#[derive(Clone, Copy, Default)]
struct Known {
    demand: [f64; ZONES],
    capacity: [f64; ZONES],
    utilization: [f64; ZONES],
}

/// Where a zone's sidecars send their requests.
trait Rule {
    fn shares(&mut self, known: &Known, elapsed: Duration) -> [f64; ZONES];
}

struct Waterfill(Course);

impl Waterfill {
    fn new(own: usize) -> Waterfill {
        let levels = Levels::new(ZONES, |from, to| if from == to { 0 } else { 2 });
        Waterfill(Course::new(["a", "b", "c"].into_iter(), own, levels, true))
    }
}

impl Rule for Waterfill {
    fn shares(&mut self, known: &Known, elapsed: Duration) -> [f64; ZONES] {
        let figures: [Figures; ZONES] = std::array::from_fn(|zone| Figures {
            capacity: known.capacity[zone],
            demand: known.demand[zone],
        });
        let shares = self.0.follow(&figures, elapsed);
        std::array::from_fn(|zone| shares[zone])
    }
}

/// Priority with spill: own zone, then all others as one tier. It knows nothing but who is well.
struct Priority {
    own: usize,
}

impl Rule for Priority {
    fn shares(&mut self, known: &Known, _: Duration) -> [f64; ZONES] {
        let well = |capacity: f64| health((capacity * 100.0) as u32, 100);
        let others = (0..ZONES).filter(|zone| *zone != self.own);
        let far: f64 = others.map(|zone| known.capacity[zone]).sum();
        let mut tiers = [0.0; 2];
        spill(
            &[well(known.capacity[self.own]), well(far / 2.0)],
            &mut tiers,
        );
        by_capacity(self.own, tiers, known)
    }
}

fn by_capacity(own: usize, tiers: [f64; 2], known: &Known) -> [f64; ZONES] {
    let others = (0..ZONES).filter(|zone| *zone != own);
    let far: f64 = others.map(|zone| known.capacity[zone]).sum();
    std::array::from_fn(|zone| match zone == own {
        true => tiers[0],
        false => tiers[1] * known.capacity[zone] / far.max(1e-9),
    })
}

impl Rule for LoadAware {
    fn shares(&mut self, known: &Known, elapsed: Duration) -> [f64; ZONES] {
        self.follow(&known.capacity, &known.utilization, elapsed)
    }
}

/// Envoy's load-aware locality picking; the three do not reckon at the same moment.
fn load_aware(own: usize) -> LoadAware {
    LoadAware::new(own, Duration::from_millis(300 * own as u64))
}

/// What this project does not do: steer the own share by how busy zones are.
struct Feedback {
    own: usize,
    local: f64,
}

impl Rule for Feedback {
    fn shares(&mut self, known: &Known, elapsed: Duration) -> [f64; ZONES] {
        let others = (0..ZONES).filter(|zone| *zone != self.own);
        let far = others.map(|zone| known.utilization[zone]).sum::<f64>() / 2.0;
        let off = far - known.utilization[self.own];
        self.local = (self.local + 2.0 * off * elapsed.as_secs_f64()).clamp(0.0, 1.0);
        by_capacity(self.own, [self.local, 1.0 - self.local], known)
    }
}

/// What the sidecars tell of demand: measured, smoothed and rounded as they do it.
struct Told {
    meters: [Meter; ZONES],
    counts: [f64; ZONES],
    figures: [f64; ZONES],
    sampled: Duration,
}

impl Told {
    fn new() -> Told {
        Told {
            meters: Default::default(),
            counts: [0.0; ZONES],
            figures: [0.0; ZONES],
            sampled: SAMPLE,
        }
    }

    fn hear(&mut self, demand: [f64; ZONES], clock: Duration) -> [f64; ZONES] {
        for (zone, count) in self.counts.iter_mut().enumerate() {
            *count += demand[zone] * CAPACITY * STEP.as_secs_f64();
        }
        if clock >= self.sampled {
            self.sampled += SAMPLE;
            for zone in 0..ZONES {
                let count = [("s", self.counts[zone] as u64)];
                for word in self.meters[zone].sample(count.into_iter(), Moment::START + clock) {
                    if let Word::Tell { per_second, .. } = word {
                        self.figures[zone] = f64::from(per_second) / CAPACITY;
                    }
                }
            }
        }
        self.figures
    }
}

/// Part of all work that is lost from the event on, and the most that zone 0's own share moved within a second of the
/// last third, when everything should be quiet.
fn lost<R: Rule>(scenario: &Scenario, lag: f64, rule: impl Fn(usize) -> R) -> (f64, f64) {
    let mut rules: [R; ZONES] = std::array::from_fn(rule);
    let mut past: VecDeque<Known> = VecDeque::new();
    let mut told = Told::new();
    let mut utilization = [0.0; ZONES];
    let (mut lost, mut all) = (0.0, 0.0);
    let (mut quiet, mut unrest) = (VecDeque::new(), 0.0_f64);
    let steps = ((SETTLED_S + WATCHED_S) / STEP.as_secs_f64()) as u32;
    for step in 0..steps {
        let clock = STEP * step;
        let at = clock.as_secs_f64() - SETTLED_S;
        let demand = (scenario.demand)(at);
        past.push_back(Known {
            demand: told.hear(demand, clock),
            capacity: (scenario.told)(at),
            utilization,
        });
        if past.len() as f64 * STEP.as_secs_f64() > lag {
            past.pop_front();
        }
        let known = past.front().copied().unwrap_or_default();
        let shares: [[f64; ZONES]; ZONES] =
            std::array::from_fn(|zone| rules[zone].shares(&known, STEP));
        let real = (scenario.real)(at);
        for zone in 0..ZONES {
            let load: f64 = (0..ZONES)
                .map(|from| shares[from][zone] * demand[from])
                .sum();
            utilization[zone] = if real[zone] > 0.0 {
                load / real[zone]
            } else {
                0.0
            };
            if at >= 0.0 {
                lost += (load - real[zone]).max(0.0);
            }
        }
        all += if at >= 0.0 { demand.iter().sum() } else { 0.0 };
        if at > WATCHED_S * 2.0 / 3.0 {
            quiet.push_back(shares[0][0]);
            if quiet.len() as f64 * STEP.as_secs_f64() > 1.0 {
                let before: f64 = quiet.pop_front().unwrap_or_default();
                unrest = unrest.max((shares[0][0] - before).abs());
            }
        }
    }
    (lost / all, unrest)
}

#[test]
fn water_filling_loses_least_when_a_zone_is_asked_for_too_much() {
    for lag in [0.5, 2.0] {
        let (water, unrest) = lost(&SURGE, lag, Waterfill::new);
        let (priority, _) = lost(&SURGE, lag, |own| Priority { own });
        let (aware, aware_unrest) = lost(&SURGE, lag, load_aware);
        let (feedback, feedback_unrest) = lost(&SURGE, lag, |own| Feedback { own, local: 1.0 });
        println!(
            "surge, {lag} s old: water {:.2} %, priority {:.2} %, load-aware {:.2} %, feedback {:.2} %; unrest {unrest:.3} {aware_unrest:.3} {feedback_unrest:.3}",
            water * 100.0,
            priority * 100.0,
            aware * 100.0,
            feedback * 100.0
        );
        assert!(water < if lag < 1.0 { 0.00115 } else { 0.0032 }, "{water}");
        assert!((priority - 0.035).abs() < 0.001, "{priority}");
        assert!(water < aware);
        assert!(unrest < 0.001, "{unrest}");
    }
}

#[test]
fn a_zone_that_returns_cold_is_not_flooded() {
    for lag in [0.5, 2.0] {
        let (water, unrest) = lost(&COLD, lag, Waterfill::new);
        let (priority, _) = lost(&COLD, lag, |own| Priority { own });
        let (aware, aware_unrest) = lost(&COLD, lag, load_aware);
        println!(
            "cold, {lag} s old: water {:.2} %, priority {:.2} %, load-aware {:.2} %; unrest {unrest:.3} {aware_unrest:.3}",
            water * 100.0,
            priority * 100.0,
            aware * 100.0
        );
        assert!(water < 1e-6, "{water}");
        assert!(priority > 0.01 && aware > 0.015, "{priority} {aware}");
        assert!(unrest < 0.001, "{unrest}");
    }
}

#[test]
fn steering_by_utilization_loses_and_never_comes_to_rest() {
    // The negative case: figures that our own choice has an effect on come back late, and the loop swings.
    for (lag, least) in [(0.5, 0.07), (2.0, 0.13)] {
        let (water, _) = lost(&SURGE, lag, Waterfill::new);
        let (feedback, unrest) = lost(&SURGE, lag, |own| Feedback { own, local: 1.0 });
        println!(
            "feedback, {lag} s old: {:.2} %, water {:.2} %, unrest {unrest:.3}",
            feedback * 100.0,
            water * 100.0
        );
        assert!(feedback > least, "{feedback}");
        assert!(feedback > 40.0 * water, "{feedback} {water}");
        assert!(unrest > 0.1, "{unrest}");
    }
}

/// What the sidecars beside a zone's instances see of it: processors that are all used when it is full, or workers that
/// are, and requests that queue for either.
struct Watched {
    learner: super::capacity::Learner,
    answers: f64,
    processors: f64,
}

impl Watched {
    const WORK_S: f64 = 0.010;

    fn look(&mut self, load: f64, real: f64, elapsed: f64, now: Moment) -> Option<u32> {
        self.answers += load.min(real) * elapsed;
        let used = (load / real).min(1.0);
        let queue = 1.0 / (1.0 - used.min(0.98));
        let word = self.learner.sample(
            &super::capacity::Seen {
                answers: self.answers as u64,
                latency: Some(Self::WORK_S * queue),
                busy: used * self.processors,
            },
            now,
        )?;
        match word {
            super::capacity::Word::Tell(capacity) => Some(capacity),
            super::capacity::Word::Forget => panic!("{load} of {real} is no small load"),
        }
    }
}

/// Ten minutes with capacities that are learned, zone 0 asked for `surge` times its usual demand from the third on: the
/// most that zone 0's share moved in the last three minutes, work lost in those, and the capacities at the end.
fn learned(processors: f64, surge: f64) -> (f64, f64, [f64; ZONES]) {
    let mut rules: [Waterfill; ZONES] = std::array::from_fn(Waterfill::new);
    let mut watched: [Watched; ZONES] = std::array::from_fn(|_| Watched {
        learner: super::capacity::Learner::new(0, Moment::START),
        answers: 0.0,
        processors,
    });
    let mut known = Known {
        capacity: [1.0; ZONES],
        ..Known::default()
    };
    let mut past: VecDeque<Known> = VecDeque::new();
    let mut told = Told::new();
    let (mut lost, mut all) = (0.0, 0.0);
    let (mut least, mut most) = (1.0_f64, 0.0_f64);
    for step in 0..(600.0 / STEP.as_secs_f64()) as u32 {
        let clock = STEP * step;
        let minute = clock.as_secs_f64() / 60.0;
        let asked = if minute < 3.0 { USUAL } else { surge * USUAL };
        let demand = [asked, USUAL, USUAL];
        known.demand = told.hear(demand, clock);
        past.push_back(known);
        if past.len() as f64 * STEP.as_secs_f64() > 2.0 {
            past.pop_front();
        }
        let heard = past.front().copied().unwrap_or_default();
        let shares: [[f64; ZONES]; ZONES] =
            std::array::from_fn(|zone| rules[zone].shares(&heard, STEP));
        for zone in 0..ZONES {
            let flows = (0..ZONES).map(|from| shares[from][zone] * demand[from]);
            let load = flows.sum::<f64>();
            if step % 20 == 19 {
                let now = Moment::START + clock;
                let seen = watched[zone].look(load * CAPACITY, CAPACITY, 1.0, now);
                if let Some(capacity) = seen {
                    known.capacity[zone] = f64::from(capacity) / CAPACITY;
                }
            }
            if minute > 7.0 {
                lost += (load - 1.0).max(0.0);
            }
        }
        if minute > 7.0 {
            all += demand.iter().sum::<f64>();
            (least, most) = (least.min(shares[0][0]), most.max(shares[0][0]));
        }
    }
    (most - least, lost / all, known.capacity)
}

#[test]
fn learned_capacities_come_to_rest_and_lose_nothing() {
    for (processors, near) in [(1.0, 0.08), (0.2, 0.35)] {
        for surge in [1.0, 1.4, 1.8, 2.2] {
            let (unrest, lost, capacity) = learned(processors, surge);
            println!(
                "{processors} of the processors, {surge} times: unrest {unrest:.3}, lost {:.2} %, {capacity:?}",
                lost * 100.0
            );
            assert!(unrest < 0.05, "{unrest}");
            assert!(lost < 1e-3, "{lost}");
            // Where processors are not the limit, a zone that never queued is only known to be no smaller.
            let off = capacity.map(|known| f64::abs(known - 1.0));
            assert!(
                processors < 1.0 || off.iter().all(|off| *off < near),
                "{capacity:?}"
            );
        }
    }
}
