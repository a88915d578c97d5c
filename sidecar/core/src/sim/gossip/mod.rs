//! A mesh in virtual time: many [`Membership`]s on a network that misbehaves by script and seed.
//!
//! Not here: what happens in a story (`story.rs`), what is expected of it (`scenario.rs`), and printing
//! (`starling sim gossip`).
//!
//! A heap of (time, sequence) holds what is to happen; every draw comes from one seed, so the same seed gives the same
//! run, and [`Sim::trace`] proves it.

mod feed;
mod lock;
mod look;
mod network;
mod scenario;
mod story;
mod watch;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_proto::{
    frame::boot,
    member::Member,
    message::Standing,
    record::{Health, InstanceState, ServiceRecord, WireProtocol},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

pub use self::{
    feed::{Fed, feed},
    look::wrong_pairs,
    network::Network,
    scenario::{Figure, NODES_MAX, NODES_WITH_RECORDS_MAX, Report, Scenario},
    story::run,
    watch::Watcher,
};
use self::{
    lock::{Key, Lock},
    network::{Event, Line, Queued},
};
use crate::{
    catalogue::Dialect,
    membership::{CallEnd, CallId, Change, Membership, Notice, Pace, Settings, TICK},
    mesh::NodeState,
    moment::Moment,
};

/// Virtual time from one end of a zone to the other.
pub const LATENCY: Duration = Duration::from_micros(300);

/// Between two looks at whether a condition holds.
pub const STEP: Duration = Duration::from_millis(10);

/// The one cluster.
const CLUSTER: &str = "prod";

/// The network and everybody on it.
pub struct Sim {
    /// The virtual time.
    pub now: Moment,
    /// Everybody ever started, by index.
    pub nodes: Vec<SimNode>,
    /// How the network is.
    pub network: Network,
    /// Hash of everything that happened: equal for equal seeds.
    pub trace: u64,
    /// Things that happened.
    pub events: u64,
    /// When each node was first seen down by another, by the id of whom it is about.
    pub downs: BTreeMap<u64, Vec<Moment>>,
    /// Healthy nodes that another took for dead: when, whom, by whom.
    pub wronged: Vec<(Moment, u64, u64)>,
    /// The command that runs it again, where one does.
    replay: Option<String>,
    /// The keys that a node starts with; none: everything is said in clear.
    keys: Vec<Key>,
    seed: u64,
    rng: StdRng,
    queue: BinaryHeap<Reverse<Queued>>,
    sequence: u64,
    /// Who lives where.
    addresses: BTreeMap<SocketAddr, usize>,
}

/// One node.
pub struct SimNode {
    /// Its gossip; `None` once the process is gone.
    pub machine: Option<Membership>,
    /// As it goes by.
    pub member: Member,
    /// Its zone.
    pub zone: Box<str>,
    /// Hears no datagram.
    pub deaf: bool,
    /// Hears nothing on streams either.
    pub deaf_to_streams: bool,
    /// Does nothing until then.
    pub stalled_until: Moment,
    /// Something was done to it that others may take it for dead for.
    pub excused: bool,
    /// The version it speaks.
    pub dialect: Dialect,
    /// What it seals and opens with, where nothing is said in clear.
    pub lock: Option<Box<Lock>>,
    /// Every change of another node's state that it told of.
    pub told: Vec<(Moment, u64, NodeState)>,
    /// What it had to say besides.
    pub notices: Vec<Notice>,
    /// It said goodbye.
    pub left: bool,
    /// Bytes of datagrams, envelope included.
    pub bytes_sent: usize,
    /// Streams opened to where no node is.
    pub dialled: Vec<(CallId, Vec<u8>)>,
    wake: Moment,
    calls: BTreeMap<CallId, Line>,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sim({} nodes, seed {})", self.nodes.len(), self.seed)
    }
}

impl std::fmt::Debug for SimNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimNode({:?})", self.member)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            match &self.replay {
                Some(command) => eprintln!("run it again: {command}"),
                None => eprintln!("the simulation's seed: {}", self.seed),
            }
        }
    }
}

/// Where a node of this index lives.
pub fn address(index: usize) -> SocketAddr {
    ([10, 0, (index / 250) as u8, (index % 250) as u8], 7946).into()
}

/// The service a node of this index offers.
pub fn service(index: usize, state: InstanceState) -> ServiceRecord {
    ServiceRecord {
        service: "web".into(),
        instance: format!("web-{index}").into(),
        address: ([10, 1, (index / 250) as u8, (index % 250) as u8], 80).into(),
        protocol: WireProtocol::Http,
        weight: 100,
        health: Health::Passing,
        state,
        started_at_ms: 1,
        capacity: None,
        tags: BTreeMap::new(),
    }
}

/// The id of a node of this index that kept its disk.
pub fn id(index: usize) -> u64 {
    1_000 + index as u64
}

impl Sim {
    /// An empty network.
    pub fn new(seed: u64) -> Sim {
        Sim {
            now: Moment::from_millis(1_000),
            nodes: Vec::new(),
            network: Network::default(),
            trace: 0,
            events: 0,
            downs: BTreeMap::new(),
            wronged: Vec::new(),
            replay: None,
            keys: Vec::new(),
            seed,
            rng: StdRng::seed_from_u64(seed),
            queue: BinaryHeap::new(),
            sequence: 0,
            addresses: BTreeMap::new(),
        }
    }

    /// `count` nodes that all join the first, each with one service; started within one probe period.
    pub fn started(seed: u64, count: usize) -> Sim {
        let mut sim = Sim::new(seed);
        for index in 0..count {
            sim.start(index, 1);
            sim.run(Duration::from_micros(500_000 / count as u64));
        }
        sim
    }

    /// A mesh of `count` in `zones` zones whose nodes were handed each other's names, so that it need not find together;
    /// with `records` also what each offers.
    pub fn handed(seed: u64, count: usize, zones: usize, records: bool) -> Sim {
        let mut sim = Sim::new(seed);
        for index in 0..count {
            let zone = zone_of(index, zones);
            sim.place(index, id(index), 1, &zone);
            if !records {
                sim.with(index, |machine, _| machine.hush());
            }
            // Nobody probes in step with another.
            sim.now = sim.now + Duration::from_micros(500_000 / count as u64);
        }
        let standings: Vec<Standing> = (sim.nodes.iter())
            .map(|node| Standing {
                member: node.member,
                incarnation: 0,
                state: foca::State::Alive,
                down_for_s: 0,
            })
            .collect();
        let own = sim.nodes.iter().filter_map(|node| node.machine.as_ref());
        let told: Vec<Arc<[u8]>> = own.flat_map(Membership::own_records).collect();
        let (first, others) = sim.nodes.split_at_mut(1);
        if let Some(first) = first[0].machine.as_mut() {
            first.acquaint(&standings, &told, Moment::from_millis(1_000));
            let machines = others.iter_mut().filter_map(|node| node.machine.as_mut());
            for (index, machine) in (1..).zip(machines) {
                let at = Moment::from_millis(1_000)
                    + Duration::from_micros(index * 500_000 / count as u64);
                machine.acquaint_like(first, at);
            }
        }
        for index in 0..count {
            sim.drain(index);
        }
        for node in &mut sim.nodes {
            node.told.clear();
        }
        sim
    }

    /// Starts a node of this index with its disk: the same id, and this bump.
    pub fn start(&mut self, index: usize, bump: u64) {
        self.start_as(index, id(index), bump);
    }

    /// Starts a node at an index' address under any id, as after a lost disk, and joins it.
    pub fn start_as(&mut self, index: usize, id: u64, bump: u64) {
        let zone = (self.nodes.get(index)).map_or_else(|| "a".into(), |node| node.zone.clone());
        self.place(index, id, bump, &zone);
        self.join(index);
    }

    /// Starts a node with its disk at the address where another one lived.
    pub fn start_at(&mut self, index: usize, home: usize, bump: u64) {
        let zone = self.nodes[index].zone.clone();
        self.place_at(index, id(index), bump, &zone, address(home));
        self.join(index);
    }

    fn join(&mut self, index: usize) {
        let seed = usize::from(index == 0);
        self.with(index, |machine, now| machine.join(address(seed), now));
    }

    /// Puts a node on the network that joins nobody.
    pub fn place(&mut self, index: usize, id: u64, bump: u64, zone: &str) {
        self.place_at(index, id, bump, zone, address(index));
    }

    fn place_at(&mut self, index: usize, id: u64, bump: u64, zone: &str, address: SocketAddr) {
        let member = Member { id, address, bump };
        let settings = Settings {
            me: member,
            cluster: CLUSTER.into(),
            name: format!("node-{index}").into(),
            zone: zone.into(),
            region: "r".into(),
            pace: Pace::FAST,
            has_seeds: index > 0,
        };
        let mut machine = Membership::new(settings, &mut self.rng, self.now);
        // A tick later, so that it is said at once.
        let offer = Change::Offer(service(index, InstanceState::Up));
        machine.on_local_change(offer, self.now + TICK);
        let lock = self.new_lock(&member);
        let old = self.nodes.get(index);
        let dialect = old.map_or(Dialect::Ours, |old| old.dialect);
        machine.speak(dialect, self.now);
        let node = SimNode {
            machine: Some(machine),
            member,
            zone: zone.into(),
            deaf: false,
            deaf_to_streams: false,
            stalled_until: Moment::START,
            excused: old.is_some_and(|old| old.excused),
            dialect,
            lock,
            told: Vec::new(),
            notices: Vec::new(),
            left: false,
            bytes_sent: 0,
            dialled: Vec::new(),
            wake: Moment::from_nanos(u64::MAX),
            calls: BTreeMap::new(),
        };
        if index < self.nodes.len() {
            self.nodes[index] = node;
        } else {
            self.nodes.push(node);
        }
        self.addresses.insert(member.address, index);
    }

    fn new_lock(&mut self, member: &Member) -> Option<Box<Lock>> {
        if self.keys.is_empty() {
            return None;
        }
        let boot = boot(member.bump, self.rng.random());
        let lock = Lock::new(&self.keys, CLUSTER, member.id, boot);
        Some(Box::new(lock))
    }

    /// From now on nothing is said in clear any more.
    pub fn lock_all(&mut self, keys: &[Key]) {
        self.keys = keys.to_vec();
        for index in 0..self.nodes.len() {
            let member = self.nodes[index].member;
            self.nodes[index].lock = self.new_lock(&member);
        }
    }

    /// The keys that nodes start with from now on.
    pub fn set_keys(&mut self, keys: &[Key]) {
        self.keys = keys.to_vec();
    }

    /// Lets a node speak another version from now on.
    pub fn speak(&mut self, index: usize, dialect: Dialect) {
        self.nodes[index].dialect = dialect;
        self.with(index, |machine, now| machine.speak(dialect, now));
    }

    /// Ends a process without a word.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].machine = None;
        for (_, Line { to, call, .. }) in std::mem::take(&mut self.nodes[index].calls) {
            let end = CallEnd::Closed;
            self.after(LATENCY, Event::End { to, call, end });
        }
    }

    /// Calls a machine and carries out what it wants.
    pub fn with<T>(
        &mut self,
        index: usize,
        act: impl FnOnce(&mut Membership, Moment) -> T,
    ) -> Option<T> {
        let now = self.now;
        let result = act(self.nodes[index].machine.as_mut()?, now);
        self.drain(index);
        Some(result)
    }

    /// Changes something of a node.
    pub fn change(&mut self, index: usize, change: Change) {
        self.with(index, |machine, now| machine.on_local_change(change, now));
    }

    /// A draw from the seed, below `bound`.
    pub fn draw(&mut self, bound: usize) -> usize {
        self.rng.random_range(0..bound)
    }

    /// Lets time pass.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self
            .queue
            .peek()
            .is_some_and(|Reverse(next)| next.at <= end)
        {
            let Some(Reverse(next)) = self.queue.pop() else {
                break;
            };
            self.now = next.at;
            self.handle(next.event);
        }
        self.now = end;
    }

    /// Runs until the condition holds, looking every [`STEP`]. Yields the time it took, `None` if it was too long.
    pub fn run_until(
        &mut self,
        within: Duration,
        mut holds: impl FnMut(&Sim) -> bool,
    ) -> Option<Duration> {
        let start = self.now;
        while !holds(self) {
            if self.now.since(start) >= within {
                return None;
            }
            self.run(STEP);
        }
        Some(self.now.since(start))
    }
}

/// The zone of a node, where there are several.
fn zone_of(index: usize, zones: usize) -> String {
    char::from(b'a' + u8::try_from(index % zones.clamp(1, 26)).unwrap_or(0)).to_string()
}

#[cfg(test)]
mod tests;
