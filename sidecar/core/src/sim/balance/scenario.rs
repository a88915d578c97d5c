//! What is played: how many clients, which backends, what load, and what has to come of it.
//!
//! Not here: the play. Scenarios whose name ends in `held_back` were never used to choose a parameter.

mod list;
mod zones;

use std::time::Duration;

use rand::{Rng, RngExt};

use crate::moment::Moment;

pub use list::{all, named};
pub use zones::{ZONES, Zones};

/// One play.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it is called by.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// Independent sidecars.
    pub clients: usize,
    /// Who works.
    pub backends: Vec<Backend>,
    /// Share of the backends' true capacity that arrives.
    pub load: f64,
    /// Whether this mesh sends out who fails; without, the cost alone has to keep away from it.
    pub ejection: bool,
    /// Where clients and backends stand and how old their news is; `None`: all are in one place.
    pub zones: Option<Zones>,
    /// How service times spread around their mean.
    pub work: Work,
    /// Until when requests arrive.
    pub span: Duration,
    /// The time at the start that is not counted.
    pub warm_up: Duration,
    /// What has to come of it.
    pub targets: Targets,
}

/// Figures a scenario asks of the default policy.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// Most p99 as a multiple of that of Envoy's way.
    pub to_envoy: f64,
    /// Most p99 as a multiple of that of the oracle.
    pub to_oracle: Option<f64>,
    /// Where `to_oracle` was never reached: what was, and 15 % more, so that it does not get worse unnoticed.
    pub to_oracle_guard: Option<f64>,
    /// Most share of the requests that all bad backends together get.
    pub bad_share: Option<f64>,
    /// Most share of the requests that come to nothing.
    pub errors: Option<f64>,
}

/// One backend.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Requests worked on at once.
    pub workers: usize,
    /// Mean service time.
    pub mean: Duration,
    /// Share relative to others, as configured.
    pub weight: u16,
    /// Whether its share of the requests is of interest: it is slow or fails.
    pub bad: bool,
    /// Whether it fails.
    pub fault: Fault,
    /// When it stands still.
    pub stalls: Option<Stalls>,
    /// When its speed changes.
    pub flip: Option<Flip>,
    /// When it appears; zero: it was always there.
    pub joins: Duration,
    /// How slow it is at first.
    pub cold: Option<Cold>,
    /// When the sidecar beside it tells everybody that it fails.
    pub told: Option<Duration>,
    /// When it tells that it is well again.
    pub told_well: Option<Duration>,
}

/// How a backend fails.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fault {
    /// Not at all.
    None,
    /// This share of its requests is answered 500 at once, without a worker.
    FailsFast {
        /// 0 to 1.
        share: f64,
    },
    /// From this time on it takes requests and never answers.
    Silent {
        /// Since the start.
        from: Duration,
    },
    /// Its host refuses every connection for a while, and whoever waits for an answer is cut off.
    Gone {
        /// Since the start.
        from: Duration,
        /// It listens again from then on.
        until: Duration,
    },
}

impl Fault {
    /// Whether its host refuses connections at `now`.
    pub fn refuses(self, now: Moment) -> bool {
        let at = now.since(Moment::START);
        matches!(self, Fault::Gone { from, until } if (from..until).contains(&at))
    }
}

/// Standing still now and then, as a garbage collector makes a server do.
#[derive(Clone, Copy, Debug)]
pub struct Stalls {
    /// Mean time between two.
    pub every: Duration,
    /// How long each lasts.
    pub lasting: Duration,
}

/// A speed that changes back and forth.
#[derive(Clone, Copy, Debug)]
pub struct Flip {
    /// How long each speed lasts.
    pub every: Duration,
    /// Service times in every second period, as a multiple.
    pub factor: f64,
}

/// Service times right after joining or returning.
#[derive(Clone, Copy, Debug)]
pub struct Cold {
    /// As a multiple, at first.
    pub factor: f64,
    /// Until it is as fast as it will be.
    pub lasting: Duration,
}

/// The spread of service times; the mean is always 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Work {
    /// Exponential.
    Exponential,
    /// Log-normal with this sigma: 1 has a coefficient of variation of 1.3 and a heavier tail.
    LogNormal(f64),
}

impl Work {
    pub(super) fn draw(self, rng: &mut impl Rng) -> f64 {
        match self {
            Work::Exponential => super::exponential(rng),
            Work::LogNormal(sigma) => {
                // Box and Muller, 1958.
                let radius = (2.0 * super::exponential(rng)).sqrt();
                let normal = radius * (std::f64::consts::TAU * rng.random::<f64>()).cos();
                (sigma * normal - sigma * sigma / 2.0).exp()
            }
        }
    }
}

impl Scenario {
    /// What arrives in all.
    pub fn requests_per_second(&self) -> f64 {
        self.load * self.backends.iter().map(Backend::capacity).sum::<f64>()
    }

    /// The zone that a client or a backend of this number stands in.
    pub fn zone_of(&self, place: usize) -> usize {
        self.zones.map_or(0, |_| place % ZONES)
    }

    /// Between a client and a backend and back.
    pub fn round_trip(&self, client: usize, backend: usize) -> Duration {
        match self.zones {
            None => super::ROUND_TRIP,
            Some(zones) if client % ZONES == backend % ZONES => zones.within,
            Some(zones) => zones.across,
        }
    }

    /// How much more than usual a client asks for.
    pub(super) fn asks(&self, client: usize, now: Moment) -> f64 {
        self.zones
            .map_or(1.0, |zones| zones.asks(client % ZONES, now))
    }

    /// Whether it was kept from the choice of parameters.
    pub fn is_held_back(&self) -> bool {
        self.name.ends_with("held_back")
    }
}

impl Backend {
    /// What it can work off, in requests per second on average over a long time; 0 if it always fails, and as if it were
    /// always there if it is gone for a while.
    pub fn capacity(&self) -> f64 {
        let stays = matches!(self.fault, Fault::None | Fault::Gone { .. });
        if !stays || !self.joins.is_zero() {
            return 0.0;
        }
        let moving = self.stalls.map_or(1.0, |stall| {
            stall.every.as_secs_f64() / (stall.every + stall.lasting).as_secs_f64()
        });
        // Half of the time it is as fast as the flip makes it.
        let speed = self
            .flip
            .map_or(1.0, |flip| 0.5 * (1.0 + flip.factor.recip()));
        moving * speed * self.workers as f64 / self.mean.as_secs_f64()
    }

    /// When it came last: joined, or returned.
    pub(super) fn came(&self, now: Moment) -> Moment {
        match self.fault {
            Fault::Gone { until, .. } if now >= Moment::START + until => Moment::START + until,
            _ => Moment::START + self.joins,
        }
    }
}
