//! Ways of balancing, each for all clients of a play at once: the real one and what others do.
//!
//! Not here: the play. The others are written anew from what is published of them, with their defaults.

mod envoy;
mod linkerd;
pub mod locality;
mod oracle;
mod prequal;
mod starling;
mod told;

use std::time::Duration;

use rand::{RngExt, rngs::SmallRng};

use crate::{
    moment::Moment,
    policy::{Balance, ZoneMode},
};

use super::{scenario::Scenario, server::Server};

pub use told::Word;

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// A good answer.
    Well,
    /// 500.
    Failed,
    /// No answer within the client's patience.
    TimedOut,
    /// No connection, or one that was cut off.
    Refused,
}

impl Ended {
    /// Whether it came to nothing in less time than work takes.
    pub fn is_quick_error(self) -> bool {
        matches!(self, Ended::Failed | Ended::Refused)
    }
}

/// An attempt that is over.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Who asked.
    pub client: usize,
    /// Whom.
    pub backend: usize,
    /// Requests in flight at the backend when it came, as the backend itself could count them.
    pub ahead: usize,
    /// From the pick to the answer, or to the end of patience.
    pub latency: Duration,
    /// How it ended.
    pub ended: Ended,
}

/// All clients of a play with what each knows. They share nothing but what the way itself shares.
pub trait Fleet {
    /// The backend for one more request of `client`, which begins at once; `None` if it has nobody.
    ///
    /// `servers` is the truth; a way may look only at what its probes or its oracle would see.
    fn pick(
        &mut self,
        client: usize,
        servers: &[Server],
        now: Moment,
        dice: &mut SmallRng,
    ) -> Option<usize>;

    /// An attempt is over.
    fn ended(&mut self, attempt: &Attempt, now: Moment, dice: &mut SmallRng);

    /// A backend appeared, and everybody hears of it.
    fn joined(&mut self, backend: usize, now: Moment);

    /// Everybody hears that a backend fails: from the sidecar beside it, which only Starling has, and where there are zones
    /// Envoy from its control plane.
    fn told_failing(&mut self, _backend: usize, _now: Moment) {}

    /// And that it is back.
    fn told_well(&mut self, _backend: usize, _now: Moment) {}

    /// Time goes by.
    fn tick(&mut self, _now: Moment) {}
}

/// A way of balancing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// This mesh, with one of its policies and its ejection; zones are filled like water.
    Starling(Balance),
    /// The default policy with priority and spill between zones.
    Priority,
    /// The default policy, if servers told with their answers how busy they are: an experiment.
    Told(Word),
    /// Envoy's LEAST_REQUEST with outlier detection; between zones, priority with spill.
    Envoy,
    /// The same with load-aware locality picking between zones.
    EnvoyLoadAware,
    /// Linkerd's peak EWMA, with the breaker or without.
    Linkerd {
        /// Endpoints that fail seven times in a row are closed.
        breaker: bool,
    },
    /// Prequal with error aversion.
    Prequal,
    /// The shortest wait by global truth.
    Oracle,
}

impl Way {
    /// Every way, the default policy first.
    pub const ALL: [Way; 16] = [
        Way::Starling(Balance::LeastResponseTime),
        Way::Envoy,
        Way::Linkerd { breaker: false },
        Way::Linkerd { breaker: true },
        Way::Prequal,
        Way::Oracle,
        Way::Starling(Balance::LeastConnections),
        Way::Starling(Balance::PowerOfTwo),
        Way::Starling(Balance::RoundRobin),
        Way::Starling(Balance::Random),
        Way::Priority,
        Way::EnvoyLoadAware,
        Way::Told(Word::Nothing),
        Way::Told(Word::InFlight),
        Way::Told(Word::Latency),
        Way::Told(Word::Both),
    ];

    /// Those that are compared in a scenario unless somebody asks for others: where there are zones, those that know them.
    pub fn usual(scenario: &Scenario) -> &'static [Way] {
        const ZONED: [Way; 5] = [
            Way::Starling(Balance::LeastResponseTime),
            Way::Priority,
            Way::Envoy,
            Way::EnvoyLoadAware,
            Way::Oracle,
        ];
        if scenario.zones.is_some() {
            &ZONED
        } else {
            &Way::ALL[..6]
        }
    }

    /// What it is called by.
    pub const fn name(self) -> &'static str {
        match self {
            Way::Starling(Balance::LeastResponseTime) => "least_response_time",
            Way::Starling(Balance::LeastConnections) => "least_connections",
            Way::Starling(Balance::PowerOfTwo) => "power_of_two",
            Way::Starling(Balance::RoundRobin) => "round_robin",
            Way::Starling(_) => "random",
            Way::Priority => "priority",
            Way::EnvoyLoadAware => "envoy_load_aware",
            Way::Told(Word::Nothing) => "told_nothing",
            Way::Told(Word::InFlight) => "told_in_flight",
            Way::Told(Word::Latency) => "told_latency",
            Way::Told(Word::Both) => "told_both",
            Way::Envoy => "envoy",
            Way::Linkerd { breaker: false } => "linkerd",
            Way::Linkerd { breaker: true } => "linkerd_breaker",
            Way::Prequal => "prequal",
            Way::Oracle => "oracle",
        }
    }

    /// The way of this name.
    pub fn named(name: &str) -> Option<Way> {
        Way::ALL.into_iter().find(|way| way.name() == name)
    }

    pub(super) fn fleet(self, scenario: &Scenario, dice: &mut SmallRng) -> Box<dyn Fleet> {
        match self {
            Way::Starling(balance) => Box::new(starling::Starling::new(
                scenario,
                balance,
                ZoneMode::Waterfill,
                dice,
            )),
            Way::Priority => Box::new(starling::Starling::new(
                scenario,
                Balance::LeastResponseTime,
                ZoneMode::Priority,
                dice,
            )),
            Way::Told(word) => Box::new(told::Told::new(scenario, word, dice)),
            Way::Envoy => Box::new(envoy::Envoy::new(scenario, false, dice)),
            Way::EnvoyLoadAware => Box::new(envoy::Envoy::new(scenario, true, dice)),
            Way::Linkerd { breaker } => Box::new(linkerd::Linkerd::new(scenario, breaker)),
            Way::Prequal => Box::new(prequal::Prequal::new(scenario)),
            Way::Oracle => Box::new(oracle::Oracle::new(scenario)),
        }
    }
}

/// Two distinct of `count` by chance; twice the same if there is only one.
fn two(count: usize, dice: &mut SmallRng) -> (usize, usize) {
    let first = dice.random_range(0..count);
    if count < 2 {
        return (first, first);
    }
    let second = dice.random_range(0..count - 1);
    (first, second + usize::from(second >= first))
}
