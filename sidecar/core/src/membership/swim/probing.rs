//! Whom we probe, the probe under way, and what its outcome says of our own health.
//!
//! Not here: who is near (`near.rs`), and what becomes of a member that did not answer (`suspicion.rs`).
//!
//! foca goes round all members, in an order of its own. Three of four times we probe somebody near instead, in rounds too;
//! foca's timers just run on. Who is near is drawn up so that whatever the zones, each member is probed as often as
//! without zones, and mostly by its neighbours: the shares of the two draws are the same for all of them. A zone that
//! dies as a whole has no neighbours left: while somebody of another zone is suspected, two of the three go there.

use std::time::Duration;

use foca::{Codec, Header, Message, State, Timer, TimerToken};
use mesh_proto::{codec::MemberCodec, member::Member};
use rand::{rngs::StdRng, seq::SliceRandom};

use super::{FANOUT, Packets, Swim, Watch};
use crate::moment::Moment;

/// Probes of near members between two of foca's own draw.
const NEAR_PROBES: u32 = 3;

/// Failures of our own probes beyond which our health gets no worse (Lifeguard's default).
const SCORE_MAX: u32 = 8;

/// Failures that make our probes slower by their whole usual time; at worst they take three times as long.
const SCORE_PER_TIME: u32 = 4;

/// A probe takes at least so many times the patience with its target, so that others' help comes in time.
const PROBE_PATIENCES: f64 = 2.5;

/// Where nobody is nearer than others, that is looked at again after this.
const NEAR_AGAIN: Duration = Duration::from_secs(10);

/// The probe under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub target: Member,
    pub number: u8,
    pub sent: Moment,
    pub answered: bool,
    /// Its outcome has told on our health.
    judged: bool,
    /// The target's incarnation, where the probe is ours and foca knows nothing of it.
    ours: Option<u16>,
    /// Who was asked for help.
    helpers: [Option<Member>; FANOUT],
}

/// The rounds of members that are probed more than others.
#[derive(Debug)]
pub(super) struct Near {
    /// Neighbours not yet probed in this round, by id.
    left: Vec<u64>,
    /// The same of zones that somebody suspected is in.
    alarmed: Vec<u64>,
    /// Near probes since foca's last draw.
    run: u32,
    /// Nobody was near when the last round was drawn up: not again before this.
    rest_until: Moment,
    /// Number of the last one.
    number: u8,
    rng: StdRng,
}

impl Near {
    pub fn new(rng: StdRng) -> Near {
        Near {
            left: Vec::new(),
            alarmed: Vec::new(),
            run: 0,
            rest_until: Moment::START,
            number: 0,
            rng,
        }
    }
}

impl Swim {
    /// The peer under probe has answered by another way.
    pub fn answered(&mut self, peer: &Member, now: Moment) {
        if self.probe.is_some_and(|probe| probe.target.id == peer.id) {
            self.acknowledge(now);
        }
    }

    /// Hands foca the answer to the probe under way, as if it had come in a packet.
    pub(super) fn acknowledge(&mut self, now: Moment) {
        let Some(probe) = self.probe.filter(|probe| !probe.answered) else {
            return;
        };
        if probe.ours.is_none() {
            let Some(incarnation) = self.incarnation_of(|member| *member == probe.target) else {
                return;
            };
            let header = Header {
                src: probe.target,
                src_incarnation: incarnation.1,
                dst: self.me(),
                message: Message::Ack(probe.number),
            };
            let mut packet = Vec::new();
            if MemberCodec.encode_header(&header, &mut packet).is_ok() {
                let _ = self.foca.handle_data(&packet, &mut self.out);
                self.settle(now);
            }
        }
        if let Some(probe) = &mut self.probe {
            probe.answered = true;
        }
    }

    /// A member that is not down, and its incarnation.
    fn incarnation_of(&self, is_wanted: impl Fn(&Member) -> bool) -> Option<(Member, u16)> {
        let mut living = self
            .members()
            .filter(|member| member.state() != State::Down);
        let found = living.find(|member| is_wanted(member.id()))?;
        Some((*found.id(), found.incarnation()))
    }

    /// Takes what a packet says as the answer to the probe under way, if it is.
    pub(super) fn take_answer(&mut self, header: &Header<Member>, now: Moment) {
        let Some(probe) = self.probe.as_mut().filter(|probe| !probe.answered) else {
            return;
        };
        match header.message {
            Message::Ack(number) if number == probe.number && header.src == probe.target => {
                self.round_trip = Some((probe.target, now.since(probe.sent)));
                probe.answered = true;
            }
            Message::ForwardedAck {
                origin,
                probe_number,
            } if (probe_number, origin) == (probe.number, probe.target)
                && probe.helpers.contains(&Some(header.src)) =>
            {
                self.acknowledge(now);
            }
            _ => {}
        }
    }

    /// A packet of ours to a member; foca fills in who we are.
    fn word(&mut self, to: Member, message: Message<Member>) -> Option<Vec<u8>> {
        // Of all that foca says when it is told to, an announcement is a header and no more.
        let mut out = super::Out::default();
        self.foca.announce(to, &mut out).ok()?;
        let (_, announcement) = out.packets.pop()?;
        let header = MemberCodec.decode_header(&announcement[..]).ok()?;
        let mut packet = Vec::new();
        let header = Header { message, ..header };
        MemberCodec.encode_header(&header, &mut packet).ok()?;
        Some(packet)
    }

    fn say(&mut self, to: Member, message: Message<Member>) {
        let packet = self.word(to, message);
        self.out.packets.extend(packet.map(|packet| (to, packet)));
    }

    /// Asks a member for a sign that it hears us.
    pub fn ping(&mut self, member: Member) -> Packets {
        let packet = self.word(member, Message::Ping(self.near.number));
        packet.map(|packet| (member, packet)).into_iter().collect()
    }

    /// Asks others to probe the silent member under probe.
    pub fn seek_help(&mut self, silent: &Member, helpers: &[Member]) {
        let is_open = |probe: &Probe| !probe.answered && probe.target == *silent;
        let Some(number) = self.probe.filter(is_open).map(|probe| probe.number) else {
            return;
        };
        let (target, probe_number) = (*silent, number);
        for (place, helper) in helpers.iter().take(FANOUT).enumerate() {
            if let Some(probe) = &mut self.probe {
                probe.helpers[place] = Some(*helper);
            }
            let message = Message::PingReq {
                target,
                probe_number,
            };
            self.say(*helper, message);
        }
    }

    /// Ends the probe under way, and probes a near member if it is time for one. Yields `false` where foca is to go on:
    /// it has to judge its own probe, or to draw.
    pub(super) fn probe_near(&mut self, token: TimerToken, watch: &Watch<'_>, now: Moment) -> bool {
        if self.token != Some(token) {
            return false;
        }
        let failed = self.probe.filter(|probe| !probe.answered);
        match failed.map(|probe| (probe.target, probe.ours)) {
            Some((_, None)) => return false,
            Some((target, Some(incarnation))) => self.suspect(target, incarnation, token, now),
            None => {}
        }
        if self.near.run >= NEAR_PROBES {
            return false;
        }
        let Some((target, incarnation)) = self.next_near(watch, now) else {
            return false;
        };
        self.near.run += 1;
        self.probes_near += 1;
        self.near.number = self.near.number.wrapping_add(1);
        self.say(target, Message::Ping(self.near.number));
        let (patience, period) = self.times(&target, watch);
        let asked_after = Timer::SendIndirectProbe {
            probed_id: target,
            token,
        };
        self.out.timers.push((asked_after, patience));
        (self.out.timers).push((Timer::ProbeRandomMember(token), period));
        self.set_probe(target, self.near.number, Some(incarnation), now);
        self.settle(now);
        true
    }

    /// The next of a round that is not down; a new round begins where none is left. `None` where nobody is near.
    fn next_near(&mut self, watch: &Watch<'_>, now: Moment) -> Option<(Member, u16)> {
        let near = &mut self.near;
        if near.left.is_empty() && now >= near.rest_until {
            near.left = (watch.near)();
            near.left.shuffle(&mut near.rng);
            if near.left.is_empty() {
                near.rest_until = now + NEAR_AGAIN;
            }
        }
        if near.left.is_empty() {
            return None;
        }
        if !watch.is_alarmed {
            near.alarmed.clear();
        } else if near.run.is_multiple_of(2) {
            if near.alarmed.is_empty() {
                near.alarmed = (watch.alarmed)();
                near.alarmed.shuffle(&mut near.rng);
            }
            let alarmed = std::mem::take(&mut near.alarmed);
            let (found, rest) = self.last_living(alarmed);
            self.near.alarmed = rest;
            if found.is_some() {
                return found;
            }
        }
        let left = std::mem::take(&mut self.near.left);
        let (found, rest) = self.last_living(left);
        self.near.left = rest;
        found
    }

    /// The last of some that is not down, and those before it.
    fn last_living(&self, mut ids: Vec<u64>) -> (Option<(Member, u16)>, Vec<u64>) {
        while let Some(id) = ids.pop() {
            let found = self.incarnation_of(|member| member.id == id);
            if found.is_some() {
                return (found, ids);
            }
        }
        (None, ids)
    }

    fn set_probe(&mut self, target: Member, number: u8, ours: Option<u16>, sent: Moment) {
        self.probe = Some(Probe {
            target,
            number,
            sent,
            answered: false,
            judged: false,
            ours,
            helpers: [None; FANOUT],
        });
    }

    /// How long the direct answer of a member is waited for, and the whole probe takes.
    fn times(&self, target: &Member, watch: &Watch<'_>) -> (Duration, Duration) {
        let slowness = 1.0 + f64::from(self.score) / f64::from(SCORE_PER_TIME);
        let patience = (watch.patience)(target);
        let period = self.pace.period.max(patience.mul_f64(PROBE_PATIENCES));
        (patience.mul_f64(slowness), period.mul_f64(slowness))
    }

    /// What the outcome of the probe under way says of our own health.
    pub(super) fn judge_probe(&mut self) {
        let Some(probe) = self.probe.as_mut().filter(|probe| !probe.judged) else {
            return;
        };
        probe.judged = true;
        if probe.answered {
            self.probes_answered += 1;
            self.improve();
        } else {
            self.touched.push(probe.target.id);
            self.probes_failed += 1;
            self.worsen();
        }
    }

    /// Notes the probe that foca began, and gives it the time its target needs.
    pub(super) fn begin_probe(&mut self, watch: &Watch<'_>, now: Moment) {
        let begun = self.out.packets.iter().find_map(|(to, packet)| {
            let header = MemberCodec.decode_header(&packet[..]).ok()?;
            match header.message {
                Message::Ping(number) => Some((*to, number)),
                _ => None,
            }
        });
        let Some((target, number)) = begun else {
            return;
        };
        self.near.run = 0;
        self.set_probe(target, number, None, now);
        let (patience, period) = self.times(&target, watch);
        for (timer, after) in &mut self.out.timers {
            match timer {
                Timer::SendIndirectProbe { .. } => *after = patience,
                Timer::ProbeRandomMember(_) => *after = period,
                _ => {}
            }
        }
    }

    /// From 0, well, to [`SCORE_MAX`].
    pub fn score(&self) -> u32 {
        self.score
    }

    /// Something says that we are slow or badly connected ourselves.
    pub fn worsen(&mut self) {
        self.score = (self.score + 1).min(SCORE_MAX);
    }

    pub(super) fn improve(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    /// How long the last direct answer to a probe took, and whose it was.
    pub fn take_round_trip(&mut self) -> Option<(Member, Duration)> {
        self.round_trip.take()
    }
}
