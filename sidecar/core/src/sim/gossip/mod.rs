//! A mesh in virtual time: many [`Membership`]s on a network that misbehaves by script and seed.
//!
//! Not here: what happens in a story, and what is expected of it (`scenario.rs`), and printing (`starling sim gossip`).
//!
//! A heap of (time, sequence) holds what is to happen; every draw comes from one seed, so the same seed gives the same
//! run, and [`Sim::trace`] proves it.

mod feed;
mod scenario;
mod watch;

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_proto::{
    DATAGRAM_BYTES_MAX,
    frame::PAYLOAD_BYTES_MAX,
    member::Member,
    message::Standing,
    record::{Health, InstanceState, ServiceRecord, WireProtocol},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

pub use self::{
    feed::{Fed, feed},
    scenario::{Figure, NODES_MAX, NODES_WITH_RECORDS_MAX, Report, Scenario, run},
    watch::Watcher,
};
use crate::{
    catalogue::mix,
    membership::{CallEnd, CallId, Change, Effect, Membership, Notice, Pace, Settings, TICK},
    mesh::NodeState,
    moment::Moment,
};

/// Virtual time from one end of a zone to the other.
pub const LATENCY: Duration = Duration::from_micros(300);

/// Between two looks at whether a condition holds.
pub const STEP: Duration = Duration::from_millis(10);

/// An item of a kind that no version knows yet: what a newer node may say.
const UNKNOWN_ITEM: [u8; 7] = [200, 0, 4, 1, 2, 3, 4];

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
    seed: u64,
    rng: StdRng,
    queue: BinaryHeap<Reverse<Queued>>,
    sequence: u64,
    /// Who lives where.
    addresses: BTreeMap<SocketAddr, usize>,
}

/// How the network misbehaves.
#[derive(Clone, Debug)]
pub struct Network {
    /// Share of datagrams lost.
    pub loss: f64,
    /// Share of datagrams that come twice.
    pub twice: f64,
    /// Datagrams take up to this much longer, so that they overtake each other.
    pub jitter: Duration,
    /// One way between zones.
    pub across: Duration,
    /// Whether nothing passes from one node to another, by index.
    pub cut: fn(usize, usize) -> bool,
    /// Whether a dead process' host refuses connections (or swallows them).
    pub refuses: bool,
    /// Whether no stream can be opened.
    pub streamless: bool,
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
    /// Speaks a version that knows more.
    pub newer: bool,
    /// The key it seals with, and those it can open, as a bit set.
    pub seals: u8,
    /// See `seals`.
    pub opens: u8,
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
    calls: BTreeMap<CallId, (usize, CallId)>,
}

#[derive(Clone)]
enum Event {
    Datagram {
        to: usize,
        sender: u64,
        payload: Arc<[u8]>,
    },
    Hello {
        to: usize,
        from: usize,
        call: CallId,
        hello: Vec<u8>,
    },
    Frame {
        to: usize,
        call: CallId,
        payload: Vec<u8>,
    },
    End {
        to: usize,
        call: CallId,
        end: CallEnd,
    },
    Wake {
        to: usize,
    },
}

struct Queued {
    at: Moment,
    sequence: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
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
            eprintln!("the simulation's seed: {}", self.seed);
        }
    }
}

impl Default for Network {
    fn default() -> Network {
        Network {
            loss: 0.0,
            twice: 0.0,
            jitter: Duration::ZERO,
            across: LATENCY,
            cut: |_, _| false,
            refuses: true,
            streamless: false,
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
        let seed = usize::from(index == 0);
        self.with(index, |machine, now| machine.join(address(seed), now));
    }

    /// Puts a node on the network that joins nobody.
    pub fn place(&mut self, index: usize, id: u64, bump: u64, zone: &str) {
        let member = Member {
            id,
            address: address(index),
            bump,
        };
        let settings = Settings {
            me: member,
            cluster: "prod".into(),
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
        let old = self.nodes.get(index);
        let node = SimNode {
            machine: Some(machine),
            member,
            zone: zone.into(),
            deaf: false,
            deaf_to_streams: false,
            stalled_until: Moment::START,
            excused: old.is_some_and(|old| old.excused),
            newer: old.is_some_and(|old| old.newer),
            seals: 0,
            opens: 1,
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

    /// Ends a process without a word.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].machine = None;
        for (_, (to, call)) in std::mem::take(&mut self.nodes[index].calls) {
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

    fn after(&mut self, span: Duration, event: Event) {
        self.at(self.now + span, event);
    }

    fn at(&mut self, at: Moment, event: Event) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.queue.push(Reverse(Queued {
            at,
            sequence,
            event,
        }));
    }

    fn drain(&mut self, index: usize) {
        while let Some(effect) = self.nodes[index]
            .machine
            .as_mut()
            .and_then(Membership::poll)
        {
            self.carry_out(index, effect);
        }
        let Some(machine) = &self.nodes[index].machine else {
            return;
        };
        let wake = machine.next_timer().max(self.now);
        if wake < self.nodes[index].wake {
            self.nodes[index].wake = wake;
            self.at(wake, Event::Wake { to: index });
        }
    }

    fn carry_out(&mut self, index: usize, effect: Effect) {
        match effect {
            Effect::Send { to, payload } => self.send(index, to, payload),
            Effect::Dial {
                call,
                to,
                hello,
                within,
            } => self.dial(index, call, to, hello, within),
            Effect::Frame { call, payload } => {
                let other = self.nodes[index].calls.get(&call).copied();
                if let Some((to, call)) = other.filter(|(to, _)| self.passes(index, *to)) {
                    self.after(self.distance(index, to), Event::Frame { to, call, payload });
                }
            }
            Effect::Hang { call } => {
                if let Some((to, call)) = self.nodes[index].calls.remove(&call) {
                    let end = CallEnd::Closed;
                    self.after(self.distance(index, to), Event::End { to, call, end });
                }
            }
            Effect::Bump(bump) => self.nodes[index].member.bump = bump,
            Effect::Notice(Notice::State { id, state }) => self.note(index, id, state),
            Effect::Notice(notice) => self.nodes[index].notices.push(notice),
            Effect::Left => {
                self.nodes[index].left = true;
                self.kill(index);
            }
        }
    }

    fn send(&mut self, index: usize, to: SocketAddr, mut payload: Vec<u8>) {
        let node = &mut self.nodes[index];
        node.bytes_sent += payload.len() + DATAGRAM_BYTES_MAX - PAYLOAD_BYTES_MAX;
        if node.newer && payload.len() + UNKNOWN_ITEM.len() <= PAYLOAD_BYTES_MAX {
            payload.extend_from_slice(&UNKNOWN_ITEM);
        }
        let sender = node.member.id;
        let is_lost = self.rng.random_bool(self.network.loss);
        let reached = self.addresses.get(&to).copied();
        let Some(to) = reached.filter(|to| !is_lost && self.opens(index, *to)) else {
            return;
        };
        let payload: Arc<[u8]> = payload.into();
        let copies = 1 + usize::from(self.rng.random_bool(self.network.twice));
        for _ in 0..copies {
            let late = self.network.jitter.mul_f64(self.rng.random_range(0.0..1.0));
            let latency = self
                .distance(index, to)
                .mul_f64(self.rng.random_range(0.5..2.0));
            let payload = payload.clone();
            self.after(
                latency + late,
                Event::Datagram {
                    to,
                    sender,
                    payload,
                },
            );
        }
    }

    fn dial(
        &mut self,
        from: usize,
        call: CallId,
        to: SocketAddr,
        hello: Vec<u8>,
        within: Duration,
    ) {
        let reached = self.addresses.get(&to).copied();
        let there = reached.filter(|to| self.passes(from, *to));
        let (after, event) = match there {
            Some(to) if self.nodes[to].machine.is_some() => (
                self.distance(from, to) * 2,
                Event::Hello {
                    to,
                    from,
                    call,
                    hello,
                },
            ),
            Some(at) if self.network.refuses => {
                let (to, end) = (from, CallEnd::Refused);
                (self.distance(from, at) * 2, Event::End { to, call, end })
            }
            _ => {
                if reached.is_none() {
                    self.nodes[from].dialled.push((call, hello));
                }
                let (to, end) = (from, CallEnd::Failed);
                (within, Event::End { to, call, end })
            }
        };
        self.after(after, event);
    }

    /// Whether a datagram gets from one node to another, and is understood there.
    fn opens(&self, from: usize, to: usize) -> bool {
        !(self.network.cut)(from, to) && self.nodes[to].opens & (1 << self.nodes[from].seals) != 0
    }

    /// Whether streams get from one node to another and back.
    fn passes(&self, from: usize, to: usize) -> bool {
        !self.network.streamless
            && !self.nodes[from].deaf_to_streams
            && !self.nodes[to].deaf_to_streams
            && self.opens(from, to)
            && self.opens(to, from)
    }

    fn distance(&self, from: usize, to: usize) -> Duration {
        if self.nodes[from].zone == self.nodes[to].zone {
            LATENCY
        } else {
            self.network.across
        }
    }

    fn note(&mut self, by: usize, id: u64, state: NodeState) {
        let now = self.now;
        self.nodes[by].told.push((now, id, state));
        if state != NodeState::Down {
            return;
        }
        self.downs.entry(id).or_default().push(now);
        let index = (id as usize).wrapping_sub(1_000);
        let about = self.nodes.get(index).filter(|node| node.member.id == id);
        let is_healthy = |node: &SimNode| node.machine.is_some() && !node.excused;
        if !self.nodes[by].excused && about.is_some_and(is_healthy) {
            self.wronged.push((now, id, self.nodes[by].member.id));
        }
    }

    fn handle(&mut self, event: Event) {
        let (kind, to) = match &event {
            Event::Datagram { to, payload, .. } => (payload.len() as u64, *to),
            Event::Hello { to, .. } => (1, *to),
            Event::Frame { to, payload, .. } => (2 + payload.len() as u64, *to),
            Event::End { to, .. } => (3, *to),
            Event::Wake { to } => (4, *to),
        };
        self.events += 1;
        self.trace = mix(self.trace ^ mix(self.now.as_nanos() ^ mix(kind ^ ((to as u64) << 32))));
        let until = self.nodes[to].stalled_until;
        if self.now < until {
            // What came meanwhile waits in the sockets, which are drained before the timers.
            let is_wake = matches!(event, Event::Wake { .. });
            self.at(until + Duration::from_nanos(is_wake.into()), event);
            return;
        }
        match event {
            Event::Datagram {
                payload, sender, ..
            } => {
                if !self.nodes[to].deaf {
                    self.with(to, |machine, now| {
                        machine.on_datagram(&payload, sender, now)
                    });
                }
            }
            Event::Hello {
                from, call, hello, ..
            } => self.answer(to, from, call, &hello),
            Event::Frame { call, payload, .. } => {
                self.with(to, |machine, now| {
                    machine.on_stream_message(call, &payload, now)
                });
            }
            Event::End { call, end, .. } => {
                self.nodes[to].calls.remove(&call);
                self.with(to, |machine, now| machine.on_call_end(call, end, now));
            }
            Event::Wake { .. } => {
                self.nodes[to].wake = Moment::from_nanos(u64::MAX);
                self.with(to, |machine, now| machine.on_timer(now));
            }
        }
    }

    fn answer(&mut self, to: usize, from: usize, call: CallId, hello: &[u8]) {
        let now = self.now;
        let machine = self.nodes[to].machine.as_mut();
        match machine.and_then(|machine| machine.on_call(hello, now)) {
            Some(answering) => {
                self.nodes[to].calls.insert(answering, (from, call));
                self.nodes[from].calls.insert(call, (to, answering));
                self.drain(to);
            }
            None => {
                let (to, end) = (from, CallEnd::Closed);
                self.after(LATENCY, Event::End { to, call, end });
            }
        }
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

    /// Those whose process runs, by index.
    pub fn alive(&self) -> impl Iterator<Item = (usize, &Membership)> {
        let all = self.nodes.iter().enumerate();
        all.filter_map(|(index, node)| Some((index, node.machine.as_ref()?)))
    }

    /// Every living node sees every living node alive and knows the same services.
    pub fn is_whole(&self) -> bool {
        let count = self.alive().count();
        let mut hashes = self.alive().map(|(_, machine)| machine.hash());
        let first = hashes.next();
        hashes.all(|hash| Some(hash) == first)
            && self.alive().all(|(_, machine)| {
                let mut peers = machine.peers();
                let well = peers.by_ref();
                let well = well.filter(|(_, state)| *state == NodeState::Alive);
                well.count() == count - 1
            })
    }

    /// How one node sees another.
    pub fn view(&self, of: usize, by: usize) -> Option<NodeState> {
        let machine = self.nodes[by].machine.as_ref()?;
        machine.state_of(self.nodes[of].member.id)
    }

    /// Whether every living node but itself sees a node so.
    pub fn all_see(&self, of: usize, state: NodeState) -> bool {
        let mut others = self.alive().filter(|(by, _)| *by != of);
        others.all(|(by, _)| self.view(of, by) == Some(state))
    }

    /// How often a node that lives now was declared down by another.
    pub fn wronged(&self) -> usize {
        let living: Vec<u64> = (self.alive())
            .map(|(index, _)| self.nodes[index].member.id)
            .collect();
        let told = self.nodes.iter().flat_map(|node| &node.told);
        told.filter(|(_, id, state)| *state == NodeState::Down && living.contains(id))
            .count()
    }

    /// Bytes of all datagrams sent.
    pub fn bytes_sent(&self) -> usize {
        self.nodes.iter().map(|node| node.bytes_sent).sum()
    }
}

/// The zone of a node, where there are several.
fn zone_of(index: usize, zones: usize) -> String {
    char::from(b'a' + u8::try_from(index % zones.clamp(1, 26)).unwrap_or(0)).to_string()
}

#[cfg(test)]
mod tests;
