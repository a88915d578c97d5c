//! The stories a simulated mesh goes through, and what each is to come to.
//!
//! Not here: the network they are played on (`mod.rs`). The targets are those that real sidecars are measured against.

use std::time::Duration;

use mesh_proto::record::InstanceState;

use super::{Sim, Watcher, id, service};
use crate::{
    membership::{Change, Counts},
    mesh::NodeState,
    moment::Moment,
};

const SECOND: Duration = Duration::from_secs(1);

/// Beyond this many nodes nobody is told of each other's records: they would take more memory than most machines have.
pub const NODES_WITH_RECORDS_MAX: usize = 1_000;

/// Nodes at most: the bound of every member table.
pub const NODES_MAX: usize = 16_000;

/// A story.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scenario {
    /// Nothing happens for a minute.
    Idle,
    /// Nothing happens for an hour.
    Hour,
    /// Processes die, one after the other.
    Crash,
    /// Records change, one after the other.
    Change,
    /// Three zones 40 ms apart; a crash and a change.
    Zones,
    /// A tenth of all datagrams is lost for ten minutes.
    Loss,
    /// Datagrams are lost, doubled and overtake each other.
    Noise,
    /// Pairs that hear each other in one direction only.
    OneWay,
    /// One node hears no datagram, then nothing at all.
    Deaf,
    /// Four nodes stand still for 16 s at a time.
    Stall,
    /// Nodes die and come back with their disk.
    Restart,
    /// Nodes die and come back without it, at the same address.
    Fresh,
    /// All are restarted, ten a second.
    Rolling,
    /// All are restarted at once.
    Mass,
    /// Two nodes run with one id.
    Cloned,
    /// Clocks jump, at a restart: ten years ahead, then back to 1970.
    Clock,
    /// Half the nodes speak a version that says more.
    Versions,
    /// The key is changed on all nodes, each at a time of its own.
    Keys,
    /// The mesh is cut in halves for a minute.
    Partition,
}

impl Scenario {
    /// All stories, in the order they are listed.
    pub const ALL: [Scenario; 19] = [
        Scenario::Idle,
        Scenario::Hour,
        Scenario::Crash,
        Scenario::Change,
        Scenario::Zones,
        Scenario::Loss,
        Scenario::Noise,
        Scenario::OneWay,
        Scenario::Deaf,
        Scenario::Stall,
        Scenario::Restart,
        Scenario::Fresh,
        Scenario::Rolling,
        Scenario::Mass,
        Scenario::Cloned,
        Scenario::Clock,
        Scenario::Versions,
        Scenario::Keys,
        Scenario::Partition,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Idle => "idle",
            Scenario::Hour => "hour",
            Scenario::Crash => "crash",
            Scenario::Change => "change",
            Scenario::Zones => "zones",
            Scenario::Loss => "loss",
            Scenario::Noise => "noise",
            Scenario::OneWay => "one-way",
            Scenario::Deaf => "deaf",
            Scenario::Stall => "stall",
            Scenario::Restart => "restart",
            Scenario::Fresh => "fresh",
            Scenario::Rolling => "rolling",
            Scenario::Mass => "mass",
            Scenario::Cloned => "cloned",
            Scenario::Clock => "clock",
            Scenario::Versions => "versions",
            Scenario::Keys => "keys",
            Scenario::Partition => "partition",
        }
    }

    /// What happens in it, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Scenario::Idle => "nothing happens for 60 s: bytes and false alarms",
            Scenario::Hour => "nothing happens for an hour: false alarms",
            Scenario::Crash => {
                "processes die one after the other: when does the last survivor know?"
            }
            Scenario::Change => "records change one after the other: when do 99.9 % know, and all?",
            Scenario::Zones => "three zones 40 ms apart; a crash and a change",
            Scenario::Loss => "a tenth of all datagrams is lost for ten minutes",
            Scenario::Noise => "5 % lost, 5 % doubled, all overtaking each other by up to 50 ms",
            Scenario::OneWay => "every fourth node is not heard by its neighbour for a minute",
            Scenario::Deaf => "one node hears no datagram for a minute, then nothing at all",
            Scenario::Stall => "four nodes stand still for 16 s, three times",
            Scenario::Restart => "nodes die and come back with their disk",
            Scenario::Fresh => {
                "nodes come back without their disk, under a new id at the old address"
            }
            Scenario::Rolling => "all are restarted, ten a second",
            Scenario::Mass => "all are restarted at once",
            Scenario::Cloned => "two nodes run with one id, until one is stopped",
            Scenario::Clock => "at a restart a clock jumps ten years ahead, then back to 1970",
            Scenario::Versions => "half the nodes say things that the others do not know",
            Scenario::Keys => "the key is changed while the mesh runs: install, use, remove",
            Scenario::Partition => "the mesh is cut in halves for a minute",
        }
    }
}

/// One thing measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Figure {
    /// What.
    pub what: &'static str,
    /// How much: seconds, bytes or a count, as `what` says.
    pub value: f64,
    /// At most so much, where there is a target.
    pub target: Option<f64>,
}

impl Figure {
    /// Whether it meets its target.
    pub fn holds(&self) -> bool {
        self.target.is_none_or(|target| self.value <= target)
    }
}

/// What a story came to.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// The story.
    pub scenario: Scenario,
    /// Nodes in it.
    pub nodes: usize,
    /// The seed that runs it again.
    pub seed: u64,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// What must hold always and did not.
    pub faults: Vec<String>,
    /// Virtual time that passed, in seconds.
    pub virtual_s: f64,
    /// Things that happened.
    pub events: u64,
    /// Hash of them all.
    pub trace: u64,
}

impl Report {
    /// Whether every target is met and nothing was found wrong.
    pub fn holds(&self) -> bool {
        self.faults.is_empty() && self.figures.iter().all(Figure::holds)
    }
}

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
    let zones = if scenario == Scenario::Zones { 3 } else { 1 };
    let records = nodes <= NODES_WITH_RECORDS_MAX;
    let mut story = Story {
        sim: Sim::handed(seed, nodes, zones, records),
        watcher: Watcher::default(),
        figures: Vec::new(),
        progress,
    };
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
            Scenario::Stall => self.stall(),
            Scenario::Restart => self.restart(true),
            Scenario::Fresh => self.restart(false),
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
        self.wait(within, |sim| wrong_pairs(sim) == 0);
        wrong_pairs(&self.sim)
    }

    // ---- the stories ----

    fn idle(&mut self, span: Duration) {
        let before = self.sim.bytes_sent();
        self.pass(span);
        let bytes = (self.sim.bytes_sent() - before) as f64;
        let each = bytes / self.count() as f64 / span.as_secs_f64();
        self.figure("bytes sent per node and second", each, 600.0);
    }

    /// Kills some nodes, each at a moment of its own.
    fn crash(&mut self) {
        let count = self.count();
        let (times, most) = match count {
            0..200 => (12, (3.5, 5.5)),
            200..2_000 => (12, (4.0, 6.0)),
            2_000..7_000 => (6, (4.5, 7.0)),
            _ => (4, (5.0, 8.0)),
        };
        let mut took = Vec::new();
        for victim in self.victims(times) {
            let pause = Duration::from_millis(self.sim.draw(1_000) as u64);
            self.pass(pause);
            self.sim.network.refuses = victim % 2 == 0;
            took.push(self.kill_and_wait(victim));
        }
        let (median, worst) = spread(&mut took);
        self.figure("crash → last survivor, median s", median, most.0);
        self.figure("crash → last survivor, worst s", worst, most.1);
    }

    fn kill_and_wait(&mut self, victim: usize) -> f64 {
        let died = self.sim.now;
        let dead = self.sim.nodes[victim].member.id;
        self.sim.downs.remove(&dead);
        self.sim.kill(victim);
        let survivors = self.sim.alive().count();
        self.wait(SECOND * 30, |sim| {
            sim.downs
                .get(&dead)
                .is_some_and(|told| told.len() >= survivors)
        });
        let told = self.sim.downs.get(&dead);
        let last = told
            .filter(|told| told.len() >= survivors)
            .and_then(|told| told.last());
        last.map_or(f64::INFINITY, |last| last.since(died).as_secs_f64())
    }

    /// Some distinct nodes, the first left out.
    fn victims(&mut self, times: usize) -> Vec<usize> {
        let count = self.count();
        let mut victims = Vec::new();
        while victims.len() < times.min(count / 3) {
            let drawn = 1 + self.sim.draw(count - 1);
            if !victims.contains(&drawn) {
                victims.push(drawn);
            }
        }
        victims
    }

    fn change(&mut self) {
        let most = match self.count() {
            0..200 => 0.6,
            200..2_000 => 0.8,
            2_000..7_000 => 1.2,
            _ => 1.5,
        };
        let (mut nearly, mut all) = (Vec::new(), Vec::new());
        for writer in self.victims(if self.count() < 2_000 { 12 } else { 5 }) {
            let pause = Duration::from_millis(500 + self.sim.draw(1_000) as u64);
            self.pass(pause);
            let took = self.change_and_wait(writer);
            nearly.push(took.0);
            all.push(took.1);
        }
        let ((median, worst), (_, last)) = (spread(&mut nearly), spread(&mut all));
        self.figure("change → 99.9 % of nodes, median s", median, most);
        self.plain("change → 99.9 % of nodes, worst s", worst);
        self.figure("change → all nodes, worst s", last, 5.0);
    }

    fn change_and_wait(&mut self, writer: usize) -> (f64, f64) {
        let owner = self.sim.nodes[writer].member.id;
        let change = Change::Offer(service(writer, InstanceState::Draining));
        let began = self.sim.now;
        self.sim.change(writer, change);
        let own = self.sim.nodes[writer].machine.as_ref();
        let Some(new) = own.and_then(|machine| machine.version_of(owner)) else {
            return (f64::INFINITY, f64::INFINITY);
        };
        let knowing = |sim: &Sim| {
            let knows = sim
                .alive()
                .filter(|(_, machine)| machine.version_of(owner) >= Some(new));
            knows.count()
        };
        let most = (self.count() * 999)
            .div_ceil(1_000)
            .min(self.sim.alive().count());
        let nearly = self.wait(SECOND * 10, |sim| knowing(sim) >= most);
        let living = self.sim.alive().count();
        let all = self.wait(SECOND * 10, |sim| knowing(sim) >= living);
        debug_assert!(self.sim.now >= began);
        (nearly, nearly + all)
    }

    fn zones(&mut self) {
        self.sim.network.across = Duration::from_millis(40);
        self.idle(SECOND * 30);
        let changed = self.change_and_wait(1);
        self.figure("change → all nodes, s", changed.1, 5.0);
        let took = self.kill_and_wait(2);
        self.figure(
            "crash → last survivor, s",
            took,
            if self.count() < 200 { 5.5 } else { 6.0 },
        );
    }

    fn noise(&mut self) {
        self.sim.network.loss = 0.05;
        self.sim.network.twice = 0.05;
        self.sim.network.jitter = Duration::from_millis(50);
        self.pass(SECOND * 60);
        let changed = self.change_and_wait(1);
        self.figure("change → all nodes, s", changed.1, 5.0);
    }

    fn deaf(&mut self) {
        // Others may take it for dead; it must take nobody for dead.
        self.sim.nodes[1].deaf = true;
        self.pass(SECOND * 60);
        let wronged = self.taken_by(1);
        self.figure(
            "healthy nodes the deaf one took for dead",
            wronged as f64,
            0.0,
        );
        self.sim.nodes[1].deaf_to_streams = true;
        self.sim.nodes[1].excused = true;
        self.pass(SECOND * 60);
        let wronged = self.taken_by(1);
        self.figure("the same, deaf to streams too", wronged as f64, 0.0);
        self.sim.nodes[1].deaf = false;
        self.sim.nodes[1].deaf_to_streams = false;
        let whole = self.wait(SECOND * 30, Sim::is_whole);
        self.figure("hearing again → whole, s", whole, 12.0);
    }

    fn taken_by(&self, index: usize) -> usize {
        let told = self.sim.nodes[index].told.iter();
        told.filter(|(_, _, state)| *state == NodeState::Down)
            .count()
    }

    fn stall(&mut self) {
        let sleepers: Vec<usize> = (1..5).filter(|index| *index < self.count()).collect();
        for index in &sleepers {
            // They may be taken for dead while they sleep; those they take for dead are counted below.
            self.sim.nodes[*index].excused = true;
        }
        for _ in 0..3 {
            for index in &sleepers {
                self.sim.nodes[*index].stalled_until = self.sim.now + SECOND * 16;
            }
            self.pass(SECOND * 32);
        }
        let is_healthy = |told: u64| !sleepers.iter().any(|index| id(*index) == told);
        let told = sleepers
            .iter()
            .flat_map(|index| &self.sim.nodes[*index].told);
        let wronged =
            told.filter(|(_, about, state)| *state == NodeState::Down && is_healthy(*about));
        let wronged = wronged.count();
        self.figure(
            "healthy nodes taken for dead by sleepers",
            wronged as f64,
            0.0,
        );
    }

    fn restart(&mut self, with_disk: bool) {
        for (round, victim) in self.victims(6).into_iter().enumerate() {
            self.sim.nodes[victim].excused = true;
            self.sim.kill(victim);
            // At once, within a suspicion, and after it.
            self.pass(Duration::from_millis([50, 1_000, 8_000][round % 3]));
            if with_disk {
                self.sim.start(victim, 1_000 + round as u64);
            } else {
                let fresh = 1_000_000 + victim as u64;
                self.sim.start_as(victim, fresh, 1_000);
            }
            let back = self.wait(SECOND * 20, |sim| {
                let id = sim.nodes[victim].member.id;
                let mut others = sim.alive().filter(|(by, _)| *by != victim);
                others.all(|(_, machine)| machine.state_of(id) == Some(NodeState::Alive))
            });
            self.figure("back → known to all, s", back, 5.0);
        }
    }

    fn rolling(&mut self) {
        let began = self.sim.now;
        for index in 0..self.count() {
            self.sim.nodes[index].excused = true;
            self.sim.kill(index);
            let pause = Duration::from_millis(100);
            self.sim.run(pause);
            self.sim.start(index, 1_000);
            if index % 10 == 9 {
                self.watcher.look(&self.sim);
                (self.progress)(self.sim.now);
            }
        }
        let span = self.sim.now.since(began).as_secs_f64();
        self.plain("all restarted in, s", span);
        self.after_restarts();
    }

    fn mass(&mut self) {
        for index in 0..self.count() {
            self.sim.nodes[index].excused = true;
            self.sim.kill(index);
        }
        self.sim.run(SECOND);
        // Machines come back one after the other, within two seconds.
        let pause = Duration::from_micros(2_000_000 / self.count() as u64);
        for index in 0..self.count() {
            self.sim.start(index, 1_000);
            self.sim.run(pause);
        }
        self.after_restarts();
    }

    fn after_restarts(&mut self) {
        for node in &mut self.sim.nodes {
            node.excused = false;
        }
        let whole = self.wait(SECOND * 30, |sim| wrong_pairs(sim) == 0);
        self.plain("last start → all see all, s", whole);
        let left = 30.0 - whole.min(30.0);
        self.pass(Duration::from_secs_f64(left));
        let wrong = wrong_pairs(&self.sim);
        self.figure("members seen wrongly 30 s after", wrong as f64, 0.0);
    }

    fn cloned(&mut self) {
        let count = self.count();
        self.sim.nodes[1].excused = true;
        self.sim.place(count, id(1), 2, "a");
        self.sim.nodes[count].excused = true;
        self.sim
            .with(count, |machine, now| machine.join(super::address(0), now));
        self.pass(SECOND * 30);
        let renewals = self.sum(|counts| counts.renewals);
        self.figure("quarrels of the two in 30 s", renewals as f64, 600.0);
        self.sim.kill(count);
        let survivor = self.wait(SECOND * 30, |sim| sim.all_see(1, NodeState::Alive));
        self.figure(
            "one is stopped → the other is seen by all, s",
            survivor,
            20.0,
        );
    }

    fn clock(&mut self) {
        let years = 365 * 24 * 3_600 * 1_000;
        let victim = 1;
        self.sim.nodes[victim].excused = true;
        for bump in [10 * years, 1_000] {
            self.sim.kill(victim);
            self.pass(SECOND);
            self.sim.start(victim, bump);
            let back = self.wait(SECOND * 20, |sim| sim.all_see(1, NodeState::Alive));
            self.figure("back → known to all, s", back, 10.0);
        }
        // A node that claims the end of time is believed by nobody, and harms nobody.
        let count = self.count();
        self.sim.place(count, id(count), u64::MAX - 1, "a");
        self.sim.nodes[count].excused = true;
        self.sim
            .with(count, |machine, now| machine.join(super::address(0), now));
        self.pass(SECOND * 10);
        let believed = self.sim.alive().filter(|(by, _)| *by != count);
        let believed = believed.filter(|(_, machine)| machine.state_of(id(count)).is_some());
        let believed = believed.count();
        self.figure(
            "nodes that believe in the end of time",
            believed as f64,
            0.0,
        );
        self.sim.kill(count);
    }

    fn versions(&mut self) {
        for index in (0..self.count()).step_by(2) {
            self.sim.nodes[index].newer = true;
        }
        self.idle(SECOND * 30);
        let changed = self.change_and_wait(1);
        self.figure("change → all nodes, s", changed.1, 5.0);
        let took = self.kill_and_wait(2);
        self.figure(
            "crash → last survivor, s",
            took,
            if self.count() < 200 { 5.5 } else { 6.0 },
        );
    }

    fn keys(&mut self) {
        // Each step reaches every node within 20 s, each at a moment of its own; the next begins when all have it.
        let install = |node: &mut super::SimNode| node.opens |= 2;
        let take = |node: &mut super::SimNode| node.seals = 1;
        let remove = |node: &mut super::SimNode| node.opens = 2;
        let steps: [&dyn Fn(&mut super::SimNode); 3] = [&install, &take, &remove];
        let span = SECOND * 20;
        for step in steps {
            let mut order: Vec<usize> = (0..self.count()).collect();
            let pause = span / u32::try_from(order.len()).unwrap_or(u32::MAX);
            while !order.is_empty() {
                let drawn = self.sim.draw(order.len());
                let index = order.swap_remove(drawn);
                step(&mut self.sim.nodes[index]);
                self.sim.run(pause);
            }
            self.watcher.look(&self.sim);
        }
        let changed = self.change_and_wait(1);
        self.figure("change → all nodes, s", changed.1, 5.0);
    }

    fn partition(&mut self) {
        for node in &mut self.sim.nodes {
            node.excused = true;
        }
        self.sim.network.cut = |from, to| from % 2 != to % 2;
        self.pass(SECOND * 60);
        let parted = self.sim.view(1, 0) == Some(NodeState::Down);
        self.figure(
            "halves that see each other while cut",
            f64::from(!parted),
            0.0,
        );
        self.sim.network.cut = |_, _| false;
        let whole = self.wait(SECOND * 90, Sim::is_whole);
        let most = if self.count() < 200 { 12.0 } else { 30.0 };
        self.figure("cut over → whole, s", whole, most);
    }
}

/// Pairs of living nodes of which one does not see the other as alive, and members seen alive that are not there.
pub fn wrong_pairs(sim: &Sim) -> usize {
    let mut living: Vec<u64> = sim
        .alive()
        .map(|(index, _)| sim.nodes[index].member.id)
        .collect();
    living.sort_unstable();
    living.dedup();
    let wrong = sim.alive().map(|(index, machine)| {
        let me = sim.nodes[index].member.id;
        let (mut right, mut wrong) = (0, 0);
        for (member, state) in machine.peers() {
            let is_living = living.binary_search(&member.id).is_ok();
            match (is_living, state) {
                (true, NodeState::Alive) if member.id != me => right += 1,
                (false, NodeState::Alive | NodeState::Suspect) => wrong += 1,
                _ => {}
            }
        }
        wrong + (living.len() - 1).saturating_sub(right)
    });
    wrong.sum()
}

/// Median and maximum, in seconds.
fn spread(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    match times {
        [] => (f64::INFINITY, f64::INFINITY),
        _ => (times[times.len() / 2], times[times.len() - 1]),
    }
}
