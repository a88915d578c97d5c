//! A network of machines in virtual time: a heap of (time, sequence), seeded dice, loss, cuts, stalls, deaf nodes.
//!
//! Not here: what is expected of it (`tests.rs`).

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use mesh_proto::{
    member::Member,
    record::{Health, InstanceState, ServiceRecord, WireProtocol},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{CallEnd, CallId, Change, Effect, Membership, Notice, Pace, Settings};
use crate::{catalogue::mix, mesh::NodeState, moment::Moment};

/// Virtual time from one end of the network to the other.
const LATENCY: Duration = Duration::from_micros(300);

pub struct Sim {
    pub now: Moment,
    pub nodes: Vec<SimNode>,
    /// Share of datagrams lost.
    pub loss: f64,
    /// Whether nothing passes from one node to another, by index.
    pub cut: fn(usize, usize) -> bool,
    /// Whether a dead process' host refuses connections (or swallows them).
    pub refuses: bool,
    /// Whether no stream can be opened.
    pub streamless: bool,
    /// Hash of everything that happened.
    pub trace: u64,
    seed: u64,
    rng: StdRng,
    queue: BTreeMap<(Moment, u64), Event>,
    sequence: u64,
}

pub struct SimNode {
    pub machine: Option<Membership>,
    pub member: Member,
    /// Hears no datagram.
    pub deaf: bool,
    pub stalled_until: Moment,
    /// Every change of another node's state that it told of.
    pub told: Vec<(Moment, u64, NodeState)>,
    pub notices: Vec<Notice>,
    pub left: bool,
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
        payload: Vec<u8>,
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

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulation's seed: {}", self.seed);
        }
    }
}

pub fn address(index: usize) -> SocketAddr {
    ([10, 0, (index / 250) as u8, (index % 250) as u8], 7946).into()
}

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

impl Sim {
    pub fn new(seed: u64) -> Sim {
        Sim {
            now: Moment::from_millis(1_000),
            nodes: Vec::new(),
            loss: 0.0,
            cut: |_, _| false,
            refuses: true,
            streamless: false,
            trace: 0,
            seed,
            rng: StdRng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            sequence: 0,
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

    /// A mesh of `count` that has found together.
    pub fn settled(seed: u64, count: usize) -> Sim {
        let mut sim = Sim::started(seed, count);
        sim.until(Duration::from_secs(10), "all know all", Sim::is_whole);
        let rest = sim.rng.random_range(1_000..4_000);
        sim.run(Duration::from_millis(rest));
        sim
    }

    pub fn start(&mut self, index: usize, bump: u64) {
        let member = Member {
            id: 1_000 + index as u64,
            address: address(index),
            bump,
        };
        let settings = Settings {
            me: member,
            cluster: "prod".into(),
            name: format!("node-{index}").into(),
            zone: "a".into(),
            region: "r".into(),
            pace: Pace::FAST,
            has_seeds: index > 0,
        };
        let mut machine = Membership::new(settings, &mut self.rng, self.now);
        machine.on_local_change(Change::Offer(service(index, InstanceState::Up)), self.now);
        let node = SimNode {
            machine: Some(machine),
            member,
            deaf: false,
            stalled_until: Moment::START,
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
        let seed = if index == 0 { 1 } else { 0 };
        self.with(index, |machine, now| machine.join(address(seed), now));
    }

    /// Ends a process without a word.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].machine = None;
        for (_, (other, call)) in std::mem::take(&mut self.nodes[index].calls) {
            let end = CallEnd::Closed;
            self.after(
                LATENCY,
                Event::End {
                    to: other,
                    call,
                    end,
                },
            );
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

    pub fn change(&mut self, index: usize, change: Change) {
        self.with(index, |machine, now| machine.on_local_change(change, now));
    }

    fn after(&mut self, span: Duration, event: Event) {
        self.at(self.now + span, event);
    }

    fn at(&mut self, at: Moment, event: Event) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    fn index_of(&self, at: SocketAddr) -> Option<usize> {
        self.nodes.iter().position(|node| node.member.address == at)
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
        let now = self.now;
        let sender = self.nodes[index].member.id;
        match effect {
            Effect::Send { to, payload } => {
                self.nodes[index].bytes_sent += payload.len() + mesh_proto::DATAGRAM_BYTES_MAX
                    - mesh_proto::frame::PAYLOAD_BYTES_MAX;
                let lost = self.rng.random_bool(self.loss);
                if let Some(to) = self
                    .index_of(to)
                    .filter(|to| !lost && !(self.cut)(index, *to))
                {
                    let latency = LATENCY.mul_f64(self.rng.random_range(0.5..2.0));
                    self.after(
                        latency,
                        Event::Datagram {
                            to,
                            sender,
                            payload,
                        },
                    );
                }
            }
            Effect::Dial {
                call,
                to,
                hello,
                within,
            } => match self.index_of(to) {
                Some(to) if self.passes(index, to) && self.nodes[to].machine.is_some() => {
                    self.after(
                        LATENCY * 2,
                        Event::Hello {
                            to,
                            from: index,
                            call,
                            hello,
                        },
                    );
                }
                Some(to) if self.passes(index, to) && self.refuses => {
                    let end = CallEnd::Refused;
                    self.after(
                        LATENCY * 2,
                        Event::End {
                            to: index,
                            call,
                            end,
                        },
                    );
                }
                found => {
                    if found.is_none() {
                        self.nodes[index].dialled.push((call, hello));
                    }
                    let end = CallEnd::Failed;
                    self.after(
                        within,
                        Event::End {
                            to: index,
                            call,
                            end,
                        },
                    );
                }
            },
            Effect::Frame { call, payload } => {
                let other = self.nodes[index].calls.get(&call).copied();
                if let Some((to, call)) = other.filter(|(to, _)| !(self.cut)(index, *to)) {
                    self.after(LATENCY, Event::Frame { to, call, payload });
                }
            }
            Effect::Hang { call } => {
                if let Some((to, call)) = self.nodes[index].calls.remove(&call) {
                    let end = CallEnd::Closed;
                    self.after(LATENCY, Event::End { to, call, end });
                }
            }
            Effect::Bump(bump) => self.nodes[index].member.bump = bump,
            Effect::Notice(Notice::State { id, state }) => {
                self.nodes[index].told.push((now, id, state))
            }
            Effect::Notice(notice) => self.nodes[index].notices.push(notice),
            Effect::Left => {
                self.nodes[index].left = true;
                self.kill(index);
            }
        }
    }

    /// Whether a stream gets from one node to another.
    fn passes(&self, from: usize, to: usize) -> bool {
        !self.streamless && !(self.cut)(from, to)
    }

    fn handle(&mut self, event: Event) {
        let (kind, to) = match &event {
            Event::Datagram { to, payload, .. } => (payload.len() as u64, *to),
            Event::Hello { to, .. } => (1, *to),
            Event::Frame { to, payload, .. } => (2 + payload.len() as u64, *to),
            Event::End { to, .. } => (3, *to),
            Event::Wake { to } => (4, *to),
        };
        self.trace = mix(self.trace ^ mix(self.now.as_nanos() ^ mix(kind ^ (to as u64) << 32)));
        let until = self.nodes[to].stalled_until;
        if self.now < until {
            // What came meanwhile waits in the sockets, which are drained before the timers.
            let at = if matches!(event, Event::Wake { .. }) {
                until + Duration::from_nanos(1)
            } else {
                until
            };
            self.at(at, event);
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
            } => {
                let now = self.now;
                let accepted = self.nodes[to]
                    .machine
                    .as_mut()
                    .and_then(|machine| machine.on_call(&hello, now));
                match accepted {
                    Some(answering) => {
                        self.nodes[to].calls.insert(answering, (from, call));
                        self.nodes[from].calls.insert(call, (to, answering));
                        self.drain(to);
                    }
                    None => {
                        let end = CallEnd::Closed;
                        self.after(
                            LATENCY,
                            Event::End {
                                to: from,
                                call,
                                end,
                            },
                        );
                    }
                }
            }
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

    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > end {
                self.at(at, event);
                break;
            }
            self.now = at;
            self.handle(event);
        }
        self.now = end;
    }

    /// Runs until the condition holds, in steps of 10 ms. Yields the time it took.
    pub fn until(
        &mut self,
        within: Duration,
        what: &str,
        mut holds: impl FnMut(&Sim) -> bool,
    ) -> Duration {
        let start = self.now;
        while !holds(self) {
            let took = self.now.since(start);
            if took >= within {
                for (index, machine) in self.alive() {
                    let peers: Vec<_> = machine
                        .peers()
                        .map(|(member, state)| (member.id, state))
                        .collect();
                    eprintln!("node {index}: {:x} {peers:?}", machine.hash());
                }
                panic!("{what}: not within {within:?} (seed {})", self.seed);
            }
            self.run(Duration::from_millis(10));
        }
        self.now.since(start)
    }

    pub fn alive(&self) -> impl Iterator<Item = (usize, &Membership)> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| Some((index, node.machine.as_ref()?)))
    }

    /// Every living node sees every living node alive and knows the same services.
    pub fn is_whole(&self) -> bool {
        let count = self.alive().count();
        let mut hashes = self.alive().map(|(_, machine)| machine.hash());
        let first = hashes.next();
        hashes.all(|hash| Some(hash) == first)
            && self.alive().all(|(_, machine)| {
                let living = machine
                    .peers()
                    .filter(|(_, state)| *state == NodeState::Alive);
                living.count() == count - 1
            })
    }

    /// How one node sees another.
    pub fn view(&self, of: usize, by: usize) -> Option<NodeState> {
        let id = self.nodes[of].member.id;
        let machine = self.nodes[by].machine.as_ref()?;
        machine
            .peers()
            .find(|(member, _)| member.id == id)
            .map(|(_, state)| state)
    }

    /// Whether every living node but itself sees a node so.
    pub fn all_see(&self, of: usize, state: NodeState) -> bool {
        self.alive()
            .filter(|(by, _)| *by != of)
            .all(|(by, _)| self.view(of, by) == Some(state))
    }

    /// How often a living node was declared down by another.
    pub fn wronged(&self) -> usize {
        let living: Vec<u64> = self
            .alive()
            .map(|(index, _)| self.nodes[index].member.id)
            .collect();
        let told = self.nodes.iter().flat_map(|node| &node.told);
        told.filter(|(_, id, state)| *state == NodeState::Down && living.contains(id))
            .count()
    }
}
