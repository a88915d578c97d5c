//! The probe under way, and what its outcome says of our own health.
//!
//! Not here: what becomes of a member that did not answer (`suspicion.rs`).

use std::time::Duration;

use foca::{Codec, Header, Message, State, Timer};
use mesh_proto::{codec::MemberCodec, member::Member};

use super::{Swim, Watch};
use crate::moment::Moment;

/// Failures of our own probes beyond which our health gets no worse (Lifeguard's default).
const SCORE_MAX: u32 = 8;

/// Failures that make our probes slower by their whole usual time; at worst they take three times as long.
const SCORE_PER_TIME: u32 = 4;

/// A probe takes at least so many times the patience with its target, so that others' help comes in time.
const PROBE_PATIENCES: f64 = 2.5;

/// The probe under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub target: Member,
    pub number: u8,
    pub sent: Moment,
    pub answered: bool,
    /// Its outcome has told on our health.
    judged: bool,
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
        let known = (self.members())
            .find(|member| *member.id() == probe.target && member.state() != State::Down);
        let Some(incarnation) = known.map(foca::Member::incarnation) else {
            return;
        };
        let header = Header {
            src: probe.target,
            src_incarnation: incarnation,
            dst: self.me(),
            message: Message::Ack(probe.number),
        };
        let mut packet = Vec::new();
        if MemberCodec.encode_header(&header, &mut packet).is_ok() {
            let _ = self.foca.handle_data(&packet, &mut self.out);
            self.settle(now);
        }
        if let Some(probe) = &mut self.probe {
            probe.answered = true;
        }
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
        self.probe = Some(Probe {
            target,
            number,
            sent: now,
            answered: false,
            judged: false,
        });
        let slowness = 1.0 + f64::from(self.score) / f64::from(SCORE_PER_TIME);
        let patience = (watch.patience)(&target);
        let period = self.pace.period.max(patience.mul_f64(PROBE_PATIENCES));
        for (timer, after) in &mut self.out.timers {
            match timer {
                Timer::SendIndirectProbe { .. } => *after = patience.mul_f64(slowness),
                Timer::ProbeRandomMember(_) => *after = period.mul_f64(slowness),
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
