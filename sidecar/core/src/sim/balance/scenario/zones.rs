//! Three zones with a network between them and news that is old by the time it is heard.
//!
//! Not here: what all scenarios have in common (`list.rs`), and the same as flows and not as single requests
//! (`zone/simulation.rs` of this crate), which has the figures of the design.

use std::time::Duration;

use super::{
    Cold, Fault, Scenario, Targets,
    list::{SECOND, USUAL, alike, scenario},
};
use crate::moment::Moment;

/// Zones of a scenario that has any; clients and backends stand in them in turn.
pub const ZONES: usize = 3;

/// Backends of each.
const BACKENDS: usize = 4;

/// Clients of each.
const CLIENTS: usize = 10;

/// When something happens.
const EVENT: Duration = Duration::from_secs(20);

/// How long a zone is lost.
const LOST: Duration = Duration::from_secs(20);

/// Until SWIM has declared a lost host dead, before that is told to anybody.
const DETECTED: Duration = Duration::from_secs(3);

/// What a zone gets from a network and from gossip.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Zones {
    /// Between two hosts of one zone and back.
    pub within: Duration,
    /// Between hosts of two zones and back.
    pub across: Duration,
    /// How old what gossip tells is when it is heard.
    pub news: Duration,
    /// How much more the clients of the first zone ask for from 20 s on; 1: as ever.
    pub surge: f64,
}

impl Zones {
    pub(super) fn asks(self, zone: usize, now: Moment) -> f64 {
        if zone == 0 && now >= Moment::START + EVENT {
            self.surge
        } else {
            1.0
        }
    }
}

/// Scenarios with zones.
pub(super) fn all() -> Vec<Scenario> {
    let (soon, late) = (Duration::from_millis(500), 2 * SECOND);
    vec![
        Scenario {
            targets: errors(0.0011),
            ..zoned(
                "zones_surge",
                "three zones at 60 %; one is asked for 1.8x as much from 20 s on; news 0.5 s old",
                soon,
                1.8,
            )
        },
        Scenario {
            targets: errors(0.0032),
            ..zoned("zones_surge_late", "the same with news 2 s old", late, 1.8)
        },
        lost(
            "zones_lost",
            "three zones at 60 %; one is gone from 20 to 40 s and returns 10x slower; news 0.5 s old",
            soon,
        ),
        lost("zones_lost_late", "the same with news 2 s old", late),
    ]
}

fn errors(most: f64) -> Targets {
    Targets {
        errors: Some(most),
        // It sends each request to the shortest queue of all zones, whatever the way there costs anybody.
        to_oracle: None,
        ..USUAL
    }
}

fn zoned(name: &'static str, about: &'static str, news: Duration, surge: f64) -> Scenario {
    Scenario {
        clients: ZONES * CLIENTS,
        span: 60 * SECOND,
        zones: Some(Zones {
            within: Duration::from_micros(400),
            across: 5 * Duration::from_millis(1),
            news,
            surge,
        }),
        ..scenario(name, about, 0.6, alike(ZONES * BACKENDS))
    }
}

/// One zone's backends refuse everybody for a while and return cold; their clients go on asking.
fn lost(name: &'static str, about: &'static str, news: Duration) -> Scenario {
    let mut scenario = Scenario {
        targets: errors(0.001),
        span: 80 * SECOND,
        ..zoned(name, about, news, 1.0)
    };
    let until = EVENT + LOST;
    for backend in scenario.backends.iter_mut().step_by(ZONES) {
        backend.fault = Fault::Gone { from: EVENT, until };
        backend.told = Some(EVENT + DETECTED + news);
        backend.told_well = Some(until + news);
        backend.cold = Some(Cold {
            factor: 10.0,
            lasting: 15 * SECOND,
        });
    }
    scenario
}
