//! The simulated network: what travels, for how long, and what is lost.
//!
//! Not here: who lives on it (`mod.rs`), and what is seen of it from outside (`look.rs`).

use std::{
    cmp::{Ordering, Reverse},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_proto::{DATAGRAM_BYTES_MAX, frame::PAYLOAD_BYTES_MAX};
use rand::RngExt;

use super::{LATENCY, Sim, SimNode, lock::Halves};
use crate::{
    catalogue::{Dialect, mix},
    membership::{CallEnd, CallId, Effect, Membership, Notice},
    mesh::NodeState,
    moment::Moment,
};

/// An item of a kind that no version knows yet: what a later node may say.
const UNKNOWN_ITEM: [u8; 7] = [200, 0, 4, 1, 2, 3, 4];

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

/// One end of a stream.
pub(super) struct Line {
    /// Who is at the other end.
    pub to: usize,
    /// What the stream is called there.
    pub call: CallId,
    /// Where it is sealed.
    halves: Option<Box<Halves>>,
}

/// Something that is to happen.
#[derive(Clone)]
pub(super) enum Event {
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

/// When it is.
pub(super) struct Queued {
    pub at: Moment,
    pub sequence: u64,
    pub event: Event,
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

impl Sim {
    pub(super) fn after(&mut self, span: Duration, event: Event) {
        self.at(self.now + span, event);
    }

    pub(super) fn at(&mut self, at: Moment, event: Event) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.queue.push(Reverse(Queued {
            at,
            sequence,
            event,
        }));
    }

    pub(super) fn drain(&mut self, index: usize) {
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
            Effect::Frame { call, payload } => self.send_frame(index, call, payload),
            Effect::Hang { call } => {
                if let Some(Line { to, call, .. }) = self.nodes[index].calls.remove(&call) {
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
        if node.dialect == Dialect::Later && payload.len() + UNKNOWN_ITEM.len() <= PAYLOAD_BYTES_MAX
        {
            payload.extend_from_slice(&UNKNOWN_ITEM);
        }
        let sender = node.member.id;
        if let Some(lock) = &mut node.lock {
            payload = lock.seal(&payload);
        }
        let is_lost = self.rng.random_bool(self.network.loss);
        let reached = self.addresses.get(&to).copied();
        let Some(to) = reached.filter(|to| !is_lost && !(self.network.cut)(index, *to)) else {
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
        mut hello: Vec<u8>,
        within: Duration,
    ) {
        let salt = self.salt(from);
        let node = &mut self.nodes[from];
        if node.dialect == Dialect::Later {
            hello.extend_from_slice(&UNKNOWN_ITEM);
        }
        if let Some(lock) = &mut node.lock {
            hello = lock.call(call, salt, &hello);
        }
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

    /// A stream's salt; in clear there is none to draw.
    fn salt(&mut self, of: usize) -> [u8; 32] {
        match self.nodes[of].lock {
            Some(_) => self.rng.random(),
            None => [0; 32],
        }
    }

    fn send_frame(&mut self, index: usize, call: CallId, mut payload: Vec<u8>) {
        let reached = self.nodes[index].calls.get(&call).map(|line| line.to);
        let Some(to) = reached.filter(|to| self.passes(index, *to)) else {
            return;
        };
        if self.nodes[index].dialect == Dialect::Later {
            payload.splice(0..0, UNKNOWN_ITEM);
        }
        let Some(line) = self.nodes[index].calls.get_mut(&call) else {
            return;
        };
        if let Some(halves) = &mut line.halves {
            payload = halves.seal(&payload);
        }
        let call = line.call;
        self.after(self.distance(index, to), Event::Frame { to, call, payload });
    }

    /// Whether streams get from one node to another and back.
    fn passes(&self, from: usize, to: usize) -> bool {
        !self.network.streamless
            && !self.nodes[from].deaf_to_streams
            && !self.nodes[to].deaf_to_streams
            && !(self.network.cut)(from, to)
            && !(self.network.cut)(to, from)
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

    pub(super) fn handle(&mut self, event: Event) {
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
                let node = &mut self.nodes[to];
                if node.deaf {
                    return;
                }
                let Some(lock) = &mut node.lock else {
                    self.with(to, |machine, now| {
                        machine.on_datagram(&payload, sender, now)
                    });
                    return;
                };
                if let Some((payload, sender)) = lock.open(&payload) {
                    self.with(to, |machine, now| {
                        machine.on_datagram(&payload, sender, now)
                    });
                }
            }
            Event::Hello {
                from, call, hello, ..
            } => self.answer(to, from, call, &hello),
            Event::Frame { call, payload, .. } => self.take_frame(to, call, payload),
            Event::End { call, end, .. } => {
                self.nodes[to].calls.remove(&call);
                if let Some(lock) = &mut self.nodes[to].lock {
                    lock.forget(call);
                }
                self.with(to, |machine, now| machine.on_call_end(call, end, now));
            }
            Event::Wake { .. } => {
                self.nodes[to].wake = Moment::from_nanos(u64::MAX);
                self.with(to, |machine, now| machine.on_timer(now));
            }
        }
    }

    fn take_frame(&mut self, to: usize, call: CallId, mut payload: Vec<u8>) {
        let node = &mut self.nodes[to];
        let line = node.calls.get_mut(&call);
        if let Some(halves) = line.and_then(|line| line.halves.as_mut()) {
            let Some(opened) = halves.open(&payload) else {
                if let Some(lock) = &mut node.lock {
                    lock.reject_frame();
                }
                let end = CallEnd::Failed;
                self.after(Duration::ZERO, Event::End { to, call, end });
                return;
            };
            payload = opened;
        }
        self.with(to, |machine, now| {
            machine.on_stream_message(call, &payload, now)
        });
    }

    fn answer(&mut self, to: usize, from: usize, call: CallId, hello: &[u8]) {
        if self.open_stream(to, from, call, hello).is_none() {
            let (to, end) = (from, CallEnd::Closed);
            self.after(LATENCY, Event::End { to, call, end });
        }
    }

    /// Both ends of a stream, if the one who is called can open and likes what it is told.
    fn open_stream(&mut self, to: usize, from: usize, call: CallId, hello: &[u8]) -> Option<()> {
        let (now, salt) = (self.now, self.salt(to));
        let (mut theirs, mut ours) = (None, None);
        let mut said = None;
        if let Some(lock) = &mut self.nodes[to].lock {
            let (hello, preamble, halves) = lock.answer(hello, salt)?;
            theirs = Some(Box::new(halves));
            said = Some(hello);
            let lock = self.nodes[from].lock.as_mut()?;
            ours = Some(Box::new(lock.answered(call, &preamble)?));
        }
        let hello = said.as_deref().unwrap_or(hello);
        let answering = self.nodes[to].machine.as_mut()?.on_call(hello, now)?;
        let line = |to, call, halves| Line { to, call, halves };
        self.nodes[to]
            .calls
            .insert(answering, line(from, call, theirs));
        self.nodes[from]
            .calls
            .insert(call, line(to, answering, ours));
        self.drain(to);
        Some(())
    }
}
