//! The shortest wait by global truth: a bound that nobody can reach who has to guess.
//!
//! Not here: the truth (`server.rs`). It knows every queue, the speeds as they are now and who
//! fails; of a stall it sees what the queue shows.

use rand::rngs::SmallRng;

use crate::moment::Moment;

use super::{Attempt, Fleet, Scenario, Server};
use crate::sim::balance::scenario::Fault;

pub(super) struct Oracle {
    scenario: Scenario,
}

impl Oracle {
    pub fn new(scenario: &Scenario) -> Oracle {
        let scenario = scenario.clone();
        Oracle { scenario }
    }
}

impl Fleet for Oracle {
    fn pick(
        &mut self,
        client: usize,
        servers: &[Server],
        now: Moment,
        _: &mut SmallRng,
    ) -> Option<usize> {
        let there = servers.iter().enumerate().filter(|(_, server)| {
            let well = match server.backend.fault {
                Fault::None => true,
                Fault::FailsFast { .. } => false,
                Fault::Silent { from } => now < Moment::START + from,
                fault @ Fault::Gone { .. } => !fault.refuses(now),
            };
            well && Moment::START + server.backend.joins <= now
        });
        let best = there.min_by_key(|(place, server)| {
            let way = self.scenario.round_trip(client, *place);
            (server.true_wait(now) + way, server.in_flight())
        });
        best.map(|(place, _)| place)
    }

    fn ended(&mut self, _: &Attempt, _: Moment, _: &mut SmallRng) {}

    fn joined(&mut self, _: usize, _: Moment) {}
}
