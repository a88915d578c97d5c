//! A story under way: time passes under watch, things are measured.
//!
//! Not here: what happens in each story (`story/*.rs`), and their names (`scenario.rs`).

mod failures;
mod restarts;
mod upgrades;

use std::time::Duration;

use super::{Figure, NODES_WITH_RECORDS_MAX, Report, Scenario, Sim, Watcher, wrong_pairs};
use crate::{membership::Counts, moment::Moment};

const SECOND: Duration = Duration::from_secs(1);

/// A story under way.
struct Story<'a> {
    sim: Sim,
    watcher: Watcher,
    figures: Vec<Figure>,
    progress: &'a mut dyn FnMut(Moment),
}

/// Plays a story. `progress` hears the virtual time about once a virtual second.
pub fn run(
    scenario: Scenario,
    nodes: usize,
    seed: u64,
    progress: &mut dyn FnMut(Moment),
) -> Report {
    let zones = match scenario {
        Scenario::Zones | Scenario::ZoneLost => 3,
        _ => 1,
    };
    let records = nodes <= NODES_WITH_RECORDS_MAX;
    let mut story = Story {
        sim: Sim::handed(seed, nodes, zones, records),
        watcher: Watcher::default(),
        figures: Vec::new(),
        progress,
    };
    story.sim.replay = Some(scenario.replay(nodes, seed));
    let began = story.sim.now;
    story.pass(SECOND * 3);
    story.play(scenario);
    story.end(scenario);
    let Story {
        sim,
        watcher,
        figures,
        ..
    } = story;
    Report {
        scenario,
        nodes,
        seed,
        figures,
        faults: watcher.faults,
        virtual_s: sim.now.since(began).as_secs_f64(),
        events: sim.events,
        trace: sim.trace,
    }
}

impl Story<'_> {
    fn play(&mut self, scenario: Scenario) {
        match scenario {
            Scenario::Idle => self.idle(SECOND * 60),
            Scenario::Hour => self.idle(SECOND * 3_600),
            Scenario::Crash => self.crash(),
            Scenario::Change => self.change(),
            Scenario::Zones => self.zones(),
            Scenario::Loss => {
                self.sim.network.loss = 0.1;
                self.pass(SECOND * 600);
            }
            Scenario::Noise => self.noise(),
            Scenario::OneWay => {
                self.sim.network.cut = |from, to| from % 4 == 0 && to == from + 1;
                self.pass(SECOND * 60);
                self.sim.network.cut = |_, _| false;
            }
            Scenario::Deaf => self.deaf(),
            Scenario::Mute => self.mute(),
            Scenario::ZoneLost => self.zone_lost(),
            Scenario::Stall => self.stall(),
            Scenario::Restart => self.restart(true),
            Scenario::Fresh => self.restart(false),
            Scenario::Moved => self.moved(),
            Scenario::Rolling => self.rolling(),
            Scenario::Mass => self.mass(),
            Scenario::Cloned => self.cloned(),
            Scenario::Clock => self.clock(),
            Scenario::Versions => self.versions(),
            Scenario::Keys => self.keys(),
            Scenario::Partition => self.partition(),
        }
    }

    /// What is asked after every story.
    fn end(&mut self, scenario: Scenario) {
        self.figure(
            "healthy nodes taken for dead",
            self.sim.wronged.len() as f64,
            0.0,
        );
        if matches!(
            scenario,
            Scenario::Hour | Scenario::Idle | Scenario::Loss | Scenario::Crash
        ) {
            let renewals = self.sum(|counts| counts.renewals);
            self.figure("returns from the dead", renewals as f64, 0.0);
        }
        let suspicions = self.sum(|counts| counts.probes_failed);
        self.plain("probes failed", suspicions as f64);
        let wrong = self.wrong_members(SECOND * 60);
        self.figure("members seen wrongly at the end", wrong as f64, 0.0);
    }

    fn figure(&mut self, what: &'static str, value: f64, target: f64) {
        let target = Some(target);
        self.figures.push(Figure {
            what,
            value,
            target,
        });
    }

    fn plain(&mut self, what: &'static str, value: f64) {
        self.figures.push(Figure {
            what,
            value,
            target: None,
        });
    }

    fn sum(&self, count: impl Fn(&Counts) -> u64) -> u64 {
        self.sim
            .alive()
            .map(|(_, machine)| count(&machine.counts))
            .sum()
    }

    fn count(&self) -> usize {
        self.sim.nodes.len()
    }

    /// Lets time pass under watch.
    fn pass(&mut self, span: Duration) {
        let end = self.sim.now + span;
        while self.sim.now < end {
            let step = SECOND.min(end.since(self.sim.now));
            self.sim.run(step);
            self.watcher.look(&self.sim);
            (self.progress)(self.sim.now);
        }
    }

    /// Runs until something holds. Yields the seconds it took, infinite if it never did.
    fn wait(&mut self, within: Duration, mut holds: impl FnMut(&Sim) -> bool) -> f64 {
        let (watcher, progress) = (&mut self.watcher, &mut self.progress);
        let mut look_at = self.sim.now;
        let took = self.sim.run_until(within, |sim| {
            if sim.now >= look_at {
                look_at = sim.now + SECOND;
                watcher.look(sim);
                progress(sim.now);
            }
            holds(sim)
        });
        took.map_or(f64::INFINITY, |took| took.as_secs_f64())
    }

    /// Waits until all see each other as they are; yields how many pairs do not after that time.
    fn wrong_members(&mut self, within: Duration) -> usize {
        self.wait(within, Sim::is_seen_as_it_is);
        wrong_pairs(&self.sim)
    }
}

/// Median and maximum, in seconds.
fn spread(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    match times {
        [] => (f64::INFINITY, f64::INFINITY),
        _ => (times[times.len() / 2], times[times.len() - 1]),
    }
}
