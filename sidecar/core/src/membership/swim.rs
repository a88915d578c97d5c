//! foca and the guards around it.
//!
//! Not here: records and exchanges. What foca would do wrong alone, and what is done about it:
//! - A suspicion's timer tells a member that it is dead even if it has refuted meanwhile: such timers are dropped.
//! - A deaf member suspects everybody, and Down is final: while nothing is heard, or after our own loop stood still, no
//!   suspicion starts and none ends here. Who is left alone may still condemn peers that refuse connections.
//! - Timers out of order break a probe: they leave one queue, ordered by time and then by foca's own order.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use foca::{
    Codec, Config, Foca, Header, Message, NoCustomBroadcast, Notification, OwnedNotification,
    Runtime, State, Timer,
};
use mesh_proto::{codec::MemberCodec, frame::PAYLOAD_BYTES_MAX, member::Member};
use rand::rngs::StdRng;

use crate::moment::Moment;

/// What foca may put into one datagram: our hash, a question, a suspicion and item heads go beside it.
const FOCA_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 96;

/// Peers told at once.
pub const FANOUT: usize = 3;

/// A member that is down is forgotten after this.
pub const FORGET_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// How hasty the gossip is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// One member is probed per period.
    pub period: Duration,
    /// A direct answer is waited for so long before others are asked to probe.
    pub patience: Duration,
    /// A suspect has at least so long to refute.
    pub suspicion: Duration,
    /// Whoever is left alone waits so long for peers that do not even refuse.
    pub calm: Duration,
}

impl Pace {
    /// A crash is known to all within about 3 s.
    pub const FAST: Pace = Pace {
        period: Duration::from_millis(500),
        patience: Duration::from_millis(200),
        suspicion: Duration::from_secs(2),
        calm: Duration::from_secs(5),
    };

    /// A crash is known to all within about 8 s; half the traffic.
    pub const CALM: Pace = Pace {
        period: Duration::from_secs(1),
        patience: Duration::from_millis(500),
        suspicion: Duration::from_secs(4),
        calm: Duration::from_secs(10),
    };

    /// Silence from everybody for so long means that it is we who are cut off.
    pub fn deaf_after(&self) -> Duration {
        self.period * 3
    }

    fn config(&self, members: usize) -> Config {
        let largest = NonZeroUsize::new(FOCA_BYTES_MAX).expect("a datagram has room");
        Config {
            probe_period: self.period,
            probe_rtt: self.patience,
            num_indirect_probes: NonZeroUsize::new(FANOUT).expect("not zero"),
            max_transmissions: NonZeroU8::new(transmissions(members)).expect("at least 6"),
            suspect_to_down_after: self.suspicion,
            remove_down_after: Some(FORGET_AFTER),
            max_packet_size: largest,
            notify_down_members: true,
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            // The membership's own tick does it, together with the records on their way.
            periodic_gossip: None,
        }
    }
}

/// How often one piece of news is told by each member: grows with the logarithm of their number, as memberlist does it.
pub fn transmissions(members: usize) -> u8 {
    let digits = (members + 1).ilog10() + 1;
    u8::try_from(4 * digits).unwrap_or(u8::MAX).max(6)
}

/// foca with its timers.
pub struct Swim {
    foca: Foca<Member, MemberCodec, StdRng, NoCustomBroadcast>,
    pace: Pace,
    tuned_for: usize,
    timers: BinaryHeap<Reverse<Due>>,
    timer_count: u64,
    probe: Option<Probe>,
    /// Who answered our probe by a datagram, until it is fetched.
    answer: Option<Member>,
    originated: u64,
    /// No suspicion may start or end before this.
    distrust_until: Moment,
    out: Out,
}

impl std::fmt::Debug for Swim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Swim({:?})", self.foca.identity())
    }
}

/// The probe under way.
#[derive(Clone, Copy, Debug)]
struct Probe {
    target: Member,
    number: u8,
    answered: bool,
}

/// Packets to members.
pub type Packets = Vec<(Member, Vec<u8>)>;

/// What foca wants done.
#[derive(Debug, Default)]
pub struct Out {
    packets: Packets,
    news: Vec<OwnedNotification<Member>>,
    timers: Vec<(Timer<Member>, Duration)>,
}

impl Runtime<Member> for &mut Out {
    fn notify(&mut self, notification: Notification<'_, Member>) {
        self.news.push(notification.to_owned());
    }

    fn send_to(&mut self, to: Member, data: &[u8]) {
        self.packets.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Member>, after: Duration) {
        self.timers.push((event, after));
    }
}

#[derive(Debug)]
struct Due {
    at: Moment,
    timer: Timer<Member>,
    count: u64,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        (self.at.cmp(&other.at))
            .then(self.timer.cmp(&other.timer))
            .then(self.count.cmp(&other.count))
    }
}

/// Whether suspicions may start and end here at this time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// We hear others, or all evidence is in.
    Judge,
    /// We may be the one who is cut off.
    Withhold,
}

impl Swim {
    /// A member that knows nobody yet.
    pub fn new(me: Member, pace: Pace, rng: StdRng) -> Swim {
        Swim {
            foca: Foca::new(me, pace.config(1), rng, MemberCodec),
            pace,
            tuned_for: 1,
            timers: BinaryHeap::new(),
            timer_count: 0,
            probe: None,
            answer: None,
            originated: 0,
            distrust_until: Moment::START,
            out: Out::default(),
        }
    }

    /// Who we are at present.
    pub fn me(&self) -> Member {
        *self.foca.identity()
    }

    /// Members that are alive or suspected, ourselves left out.
    pub fn active(&self) -> usize {
        self.foca.num_members()
    }

    /// Everybody ever heard of and not forgotten, with incarnation and state.
    pub fn members(&self) -> impl Iterator<Item = &foca::Member<Member>> {
        let me = self.me().id;
        self.foca
            .iter_membership_state()
            .filter(move |member| member.id().id != me)
    }

    /// Whether a packet may say something of members that is not known yet: it does not if it comes from a living
    /// member in its known incarnation and carries no updates, as nearly all do.
    pub fn is_telling(&self, packet: &[u8], known: impl Fn(&Member, u16) -> bool) -> bool {
        let mut rest = packet;
        let Ok(header) = MemberCodec.decode_header(&mut rest) else {
            return true;
        };
        let has_updates = rest.first_chunk().is_some_and(|count| *count != [0, 0]);
        has_updates
            || header.message == Message::TurnUndead
            || !known(&header.src, header.src_incarnation)
    }

    /// Reads a packet. A packet that cannot be read changes nothing.
    pub fn on_packet(&mut self, packet: &[u8], now: Moment) -> Result<(), foca::Error> {
        if let (Some(probe), Ok(header)) = (&mut self.probe, MemberCodec.decode_header(packet)) {
            let answered = matches!(header.message, Message::Ack(number) if number == probe.number)
                && header.src == probe.target;
            probe.answered |= answered;
            self.answer = self.answer.or(answered.then_some(header.src));
        }
        let done = self.foca.handle_data(packet, &mut self.out);
        self.settle(now);
        done
    }

    /// Takes in what others know of members, by exchange.
    pub fn apply(&mut self, members: Vec<foca::Member<Member>>, spread: bool, now: Moment) {
        // The only error is one of encoding, and our own codec has room for every member.
        let _ = self
            .foca
            .apply_many(members.into_iter(), spread, &mut self.out);
        self.settle(now);
    }

    /// Comes back under another identity.
    pub fn become_again(&mut self, bump: u64, now: Moment) {
        let me = Member { bump, ..self.me() };
        if self.foca.change_identity(me, &mut self.out).is_ok() {
            self.out.news.push(OwnedNotification::Rejoin(me));
        }
        self.settle(now);
    }

    /// Tells a few members what is new of members, if anything is.
    pub fn gossip(&mut self, now: Moment) {
        if self.foca.updates_backlog() > 0 {
            let _ = self.foca.gossip(&mut self.out);
            self.settle(now);
        }
    }

    /// Declares ourselves gone; from here on no packet may be handed in.
    pub fn leave(&mut self, now: Moment) {
        let _ = self.foca.leave_cluster(&mut self.out);
        self.settle(now);
    }

    /// The peer under probe has answered by another way.
    pub fn answered(&mut self, peer: &Member, now: Moment) {
        if self.probe.is_some_and(|probe| probe.target.id == peer.id) {
            self.acknowledge(now);
        }
    }

    /// Hands foca the answer to the probe under way, as if it had come in a packet.
    fn acknowledge(&mut self, now: Moment) {
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

    /// When the next timer is due.
    pub fn next_timer(&self) -> Option<Moment> {
        self.timers.peek().map(|Reverse(due)| due.at)
    }

    /// Handles every timer that is due, in order. Yields members whose direct probe went unanswered for too long.
    ///
    /// Whatever the sockets hold must have been handed in before.
    pub fn on_timer(&mut self, trust: Trust, now: Moment) -> Vec<Member> {
        let mut silent = Vec::new();
        while let Some(due) = self.pop_due(now) {
            if now.since(due.at) > self.pace.period {
                // We stood still: whatever seems unanswered since may have been answered.
                self.distrust_until = now + self.pace.period * 2;
            }
            let judge = trust == Trust::Judge && now >= self.distrust_until;
            match &due.timer {
                Timer::ProbeRandomMember(_) if !judge => self.acknowledge(now),
                Timer::ChangeSuspectToDown {
                    member_id,
                    incarnation,
                    ..
                } => {
                    if !self.is_still_suspect(member_id, *incarnation) {
                        continue;
                    }
                    if !judge {
                        self.schedule(due.timer, now + self.pace.period);
                        continue;
                    }
                }
                Timer::SendIndirectProbe { probed_id, .. } => {
                    let probe = self
                        .probe
                        .filter(|probe| probe.target == *probed_id && !probe.answered);
                    silent.extend(probe.map(|probe| probe.target));
                }
                _ => {}
            }
            let _ = self.foca.handle_timer(due.timer, &mut self.out);
            self.settle(now);
        }
        silent
    }

    /// Hearing is back after a silence: suspects get their whole time again.
    pub fn hear_again(&mut self, now: Moment) {
        self.distrust_until = self.distrust_until.max(now + self.pace.period * 2);
        let due: Vec<_> = std::mem::take(&mut self.timers).into_vec();
        for Reverse(mut due) in due {
            if matches!(due.timer, Timer::ChangeSuspectToDown { .. }) {
                due.at = due.at.max(now + self.pace.suspicion);
            }
            self.timers.push(Reverse(due));
        }
    }

    /// Who answered our probe by a datagram since this was last asked.
    pub fn take_answer(&mut self) -> Option<Member> {
        self.answer.take()
    }

    /// Suspicions that began with a probe of ours, since the start.
    pub fn originated(&self) -> u64 {
        self.originated
    }

    /// Whether a suspicion of a member is our own: only whose probe failed holds its timer.
    pub fn holds(&self, suspect: &Member) -> bool {
        self.timers.iter().any(|Reverse(due)| {
            matches!(&due.timer, Timer::ChangeSuspectToDown { member_id, .. } if member_id == suspect)
        })
    }

    fn is_still_suspect(&self, id: &Member, incarnation: u16) -> bool {
        self.members().any(|member| {
            member.id() == id
                && member.state() == State::Suspect
                && member.incarnation() == incarnation
        })
    }

    fn pop_due(&mut self, now: Moment) -> Option<Due> {
        if self.next_timer()? > now {
            return None;
        }
        self.timers.pop().map(|Reverse(due)| due)
    }

    fn schedule(&mut self, timer: Timer<Member>, at: Moment) {
        self.timer_count += 1;
        self.timers.push(Reverse(Due {
            at,
            timer,
            count: self.timer_count,
        }));
    }

    /// What came out since the last call.
    pub fn take(&mut self) -> (Packets, Vec<OwnedNotification<Member>>) {
        (
            std::mem::take(&mut self.out.packets),
            std::mem::take(&mut self.out.news),
        )
    }

    /// After every call of foca: its timers into our queue, the probe under way noted, its numbers fitted to the mesh.
    fn settle(&mut self, now: Moment) {
        for (timer, after) in std::mem::take(&mut self.out.timers) {
            self.originated += u64::from(matches!(timer, Timer::ChangeSuspectToDown { .. }));
            self.schedule(timer, now + after);
        }
        for (to, packet) in &self.out.packets {
            if let Ok(Header {
                message: Message::Ping(number),
                ..
            }) = MemberCodec.decode_header(&packet[..])
            {
                let is_new = self
                    .probe
                    .is_none_or(|probe| (probe.target, probe.number) != (*to, number));
                if is_new {
                    self.probe = Some(Probe {
                        target: *to,
                        number,
                        answered: false,
                    });
                }
            }
        }
        let members = self.foca.num_members() + 1;
        if transmissions(members) != transmissions(self.tuned_for) {
            self.tuned_for = members;
            // Only the number of transmissions changes, which foca allows at any time.
            let _ = self.foca.set_config(self.pace.config(members));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const NOW: Moment = Moment::from_millis(1_000);

    fn member(id: u64) -> Member {
        Member {
            id,
            address: ([10, 0, 0, id as u8], 7946).into(),
            bump: 1,
        }
    }

    fn swim() -> Swim {
        Swim::new(member(1), Pace::FAST, StdRng::seed_from_u64(1))
    }

    fn suspicion_ends(incarnation: u16) -> Timer<Member> {
        Timer::ChangeSuspectToDown {
            member_id: member(2),
            incarnation,
            token: 0,
        }
    }

    #[test]
    fn a_suspect_that_refuted_is_not_told_that_it_is_dead() {
        let mut swim = swim();
        swim.apply(
            vec![foca::Member::new(member(2), 0, State::Suspect)],
            false,
            NOW,
        );
        swim.schedule(suspicion_ends(0), NOW);
        swim.apply(
            vec![foca::Member::new(member(2), 1, State::Alive)],
            false,
            NOW,
        );
        swim.take();
        swim.on_timer(Trust::Judge, NOW);
        let (packets, news) = swim.take();
        assert!(packets.is_empty() && news.is_empty());
        assert_eq!(swim.active(), 1);
    }

    #[test]
    fn a_suspect_that_stays_silent_is_declared_down_unless_we_hear_nothing() {
        for (trust, active) in [(Trust::Judge, 0), (Trust::Withhold, 1)] {
            let mut swim = swim();
            swim.apply(
                vec![foca::Member::new(member(2), 0, State::Suspect)],
                false,
                NOW,
            );
            swim.schedule(suspicion_ends(0), NOW);
            swim.on_timer(trust, NOW);
            assert_eq!(swim.active(), active);
        }
    }

    #[test]
    fn nobody_is_judged_right_after_our_own_loop_stood_still() {
        let mut swim = swim();
        swim.apply(
            vec![foca::Member::new(member(2), 0, State::Suspect)],
            false,
            NOW,
        );
        swim.schedule(suspicion_ends(0), NOW);
        let late = NOW + Pace::FAST.period * 3;
        swim.on_timer(Trust::Judge, late);
        assert_eq!(swim.active(), 1);
        while let Some(at) = swim.next_timer().filter(|_| swim.active() > 0) {
            assert!(at <= late + Pace::FAST.suspicion);
            swim.on_timer(Trust::Judge, at);
        }
        assert_eq!(swim.active(), 0);
    }

    #[test]
    fn timers_leave_by_time_and_then_by_focas_own_order() {
        let mut swim = swim();
        let later = NOW + Duration::from_millis(1);
        swim.schedule(Timer::ProbeRandomMember(7), later);
        swim.schedule(suspicion_ends(0), NOW);
        swim.schedule(Timer::ProbeRandomMember(7), NOW);
        let indirect = Timer::SendIndirectProbe {
            probed_id: member(2),
            token: 7,
        };
        swim.schedule(indirect.clone(), NOW);
        let order: Vec<_> =
            std::iter::from_fn(|| swim.pop_due(later).map(|due| (due.at, due.timer))).collect();
        let wanted = [
            (NOW, indirect),
            (NOW, Timer::ProbeRandomMember(7)),
            (NOW, suspicion_ends(0)),
            (later, Timer::ProbeRandomMember(7)),
        ];
        assert_eq!(order, wanted);
    }
}
