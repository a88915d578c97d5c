//! foca and the guards around it.
//!
//! Not here: records and exchanges. What foca would do wrong alone, and what is done about it:
//! - A suspicion's timer tells a member that it is dead even if it has refuted meanwhile: such timers are dropped.
//! - A deaf member suspects everybody, and Down is final: while nothing is heard, or after our own loop stood still, no
//!   suspicion starts and none ends here. Who is left alone may still condemn peers that refuse connections.
//! - A suspicion that is ours alone may be our own fault (Lifeguard): it is held up to six times as long, until others
//!   who were asked (`doubts.rs`) found the suspect silent too; and the more of our probes fail, the slower we probe.
//! - Every link is as fast as the next to foca: how long an answer may take follows the distance of the zone.
//! - Timers out of order break a probe: they leave one queue, ordered by time and then by foca's own order.

mod view;

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap},
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use foca::{
    Codec, Config, Foca, Header, Message, NoCustomBroadcast, Notification, OwnedNotification,
    Runtime, State, Timer,
};
use mesh_proto::{codec::MemberCodec, frame::PAYLOAD_BYTES_MAX, member::Member, message::Standing};
use rand::{SeedableRng, rngs::StdRng};

use self::view::View;
use super::TICK;
use crate::moment::Moment;

/// What foca may put into one datagram: our hash, a question, a suspicion and item heads go beside it.
const FOCA_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 96;

/// Peers told at once.
pub const FANOUT: usize = 3;

/// Others wanted to agree with a suspicion before it counts in full, where there are so many.
const CONFIRMATIONS: usize = 3;

/// A suspicion that nobody confirms is held for so many times the shortest time (Lifeguard's default).
const SUSPICION_HELD: u32 = 6;

/// Failures of our own probes beyond which our health gets no worse (Lifeguard's default).
const SCORE_MAX: u32 = 8;

/// Failures that make our probes slower by their whole usual time; at worst they take three times as long.
const SCORE_PER_TIME: u32 = 4;

/// A probe takes at least so many times the patience with its target, so that others' help comes in time.
const PROBE_PATIENCES: f64 = 2.5;

/// Room kept for ids of members; an exchange fills far more for a moment.
const TOUCHED_KEPT: usize = 64;

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
///
/// A node misses news that each tells so often with a probability of e to the minus of it: with memberlist's 4 for 5,
/// one crash in a hundred was heard of late by somebody among 32 nodes.
pub fn transmissions(members: usize) -> u8 {
    let digits = (members + 1).ilog10() + 1;
    u8::try_from(5 * digits).unwrap_or(u8::MAX).max(6)
}

/// foca with its timers.
pub struct Swim {
    foca: Foca<Member, MemberCodec, StdRng, NoCustomBroadcast>,
    view: View,
    pace: Pace,
    /// Members of the whole mesh, ourselves included.
    size: usize,
    tuned_for: usize,
    timers: BinaryHeap<Reverse<Due>>,
    timer_count: u64,
    probe: Option<Probe>,
    originated: u64,
    /// Suspicions of ours whose time runs, by id.
    held: BTreeMap<u64, Held>,
    /// Our own health: probes failed lately, from 0 to [`SCORE_MAX`].
    score: u32,
    /// Whose datagram answered our probe, and after how long, until it is fetched.
    round_trip: Option<(Member, Duration)>,
    /// Members that foca may see otherwise than before.
    touched: Vec<u64>,
    /// Members learned of that foca was not handed.
    outside: Vec<foca::Member<Member>>,
    /// Probes that were answered, by whatever way, since the start.
    pub probes_answered: u64,
    /// Probes that nobody answered, since the start.
    pub probes_failed: u64,
    /// Confirmations of suspicions of ours, since the start.
    pub confirmations: u64,
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
    sent: Moment,
    answered: bool,
    /// Its outcome has told on our health.
    judged: bool,
}

/// A suspicion of ours.
#[derive(Clone, Debug)]
struct Held {
    timer: Timer<Member>,
    about: Standing,
    since: Moment,
    confirmed: Vec<u64>,
}

impl Held {
    /// For how long it is held: Lifeguard's curve, from [`SUSPICION_HELD`] times down to once with every confirmation.
    fn time(&self, shortest: Duration, wanted: usize) -> Duration {
        let confirmed = self.confirmed.len();
        if confirmed >= wanted {
            return shortest;
        }
        let share = (confirmed as f64 + 1.0).ln() / (wanted as f64 + 1.0).ln();
        let longest = shortest * SUSPICION_HELD;
        longest - (longest - shortest).mul_f64(share)
    }
}

/// What a turn of the timers goes by.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Whether suspicions may start and end.
    pub trust: Trust,
    /// Others that could agree with a suspicion.
    pub witnesses: usize,
    /// How long an answer of a member may take.
    pub patience: &'a dyn Fn(&Member) -> Duration,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({:?}, {} witnesses)", self.trust, self.witnesses)
    }
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

/// What becomes of a suspicion whose time is over.
enum Verdict {
    Down,
    Dropped,
    Later(Moment),
}

impl Swim {
    /// A member that knows nobody yet.
    pub fn new(me: Member, pace: Pace, mut rng: StdRng) -> Swim {
        Swim {
            view: View::new(StdRng::from_rng(&mut rng)),
            foca: Foca::new(me, pace.config(1), rng, MemberCodec),
            pace,
            size: 1,
            tuned_for: 1,
            timers: BinaryHeap::new(),
            timer_count: 0,
            probe: None,
            originated: 0,
            held: BTreeMap::new(),
            score: 0,
            round_trip: None,
            touched: Vec::new(),
            outside: Vec::new(),
            probes_answered: 0,
            probes_failed: 0,
            confirmations: 0,
            distrust_until: Moment::START,
            out: Out::default(),
        }
    }

    /// Who we are at present.
    pub fn me(&self) -> Member {
        *self.foca.identity()
    }

    /// Members of the whole mesh that are alive or suspected, ourselves included, as far as was told here.
    pub fn size(&self) -> usize {
        self.size.max(self.foca.num_members() + 1)
    }

    /// Tells how many there are.
    pub fn set_size(&mut self, size: usize) {
        self.size = size;
    }

    /// Members that foca looks at and that are alive or suspected, ourselves left out.
    pub fn active(&self) -> usize {
        self.foca.num_members()
    }

    /// Everybody that foca looks at and has not forgotten, with incarnation and state.
    pub fn members(&self) -> impl Iterator<Item = &foca::Member<Member>> {
        let me = self.me().id;
        self.foca
            .iter_membership_state()
            .filter(move |member| member.id().id != me)
    }

    /// Those of some ids, which must be sorted; in order of id.
    pub fn members_of(&self, ids: &[u64]) -> Vec<&foca::Member<Member>> {
        let all = self.foca.iter_membership_state();
        let known = all.filter(|member| ids.binary_search(&member.id().id).is_ok());
        let mut known: Vec<_> = known.take(ids.len()).collect();
        known.sort_unstable_by_key(|member| member.id().id);
        known
    }

    /// Reads a packet. A packet that cannot be read changes nothing.
    pub fn on_packet(
        &mut self,
        header: &Header<Member>,
        packet: &[u8],
        now: Moment,
    ) -> Result<(), foca::Error> {
        if let Some(probe) = self.probe.as_mut().filter(|probe| !probe.answered) {
            probe.answered = match header.message {
                Message::Ack(number) if number == probe.number && header.src == probe.target => {
                    self.round_trip = Some((probe.target, now.since(probe.sent)));
                    true
                }
                Message::ForwardedAck {
                    origin,
                    probe_number,
                } => probe_number == probe.number && origin == probe.target,
                _ => false,
            };
        }
        let done = self.foca.handle_data(packet, &mut self.out);
        self.settle(now);
        done
    }

    /// How long the last direct answer to a probe took, and whose it was.
    pub fn take_round_trip(&mut self) -> Option<(Member, Duration)> {
        self.round_trip.take()
    }

    /// Adds the ids that foca may see otherwise than before.
    pub fn take_touched(&mut self, ids: &mut Vec<u64>) {
        ids.append(&mut self.touched);
        self.touched.shrink_to(TOUCHED_KEPT);
    }

    /// Takes over the members that foca was not handed: it is told nothing of them until they have to do with us.
    pub fn take_outside(&mut self) -> Vec<foca::Member<Member>> {
        std::mem::take(&mut self.outside)
    }

    /// Takes in what others know of members, by exchange.
    pub fn apply(&mut self, members: Vec<foca::Member<Member>>, spread: bool, now: Moment) {
        // foca has to look at whatever it is to spread.
        let (members, mut outside) = if spread {
            (members, Vec::new())
        } else {
            self.choose(members)
        };
        self.outside.append(&mut outside);
        let ids = members.iter().map(|member| member.id().id);
        self.touched.extend(ids);
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
    pub fn on_timer(&mut self, watch: &Watch<'_>, now: Moment) -> Vec<Member> {
        let mut silent = Vec::new();
        let mut was_late = false;
        while let Some(due) = self.pop_due(now) {
            if now.since(due.at) > self.pace.period {
                // We stood still: whatever seems unanswered since may have been answered.
                self.distrust_until = now + self.pace.period * 2;
                if !std::mem::replace(&mut was_late, true) {
                    self.worsen();
                }
            }
            let judge = watch.trust == Trust::Judge && self.is_awake(now);
            match &due.timer {
                Timer::ProbeRandomMember(_) if !judge => self.acknowledge(now),
                Timer::ProbeRandomMember(_) => self.judge_probe(),
                Timer::ChangeSuspectToDown { member_id, .. } => {
                    let id = member_id.id;
                    match self.verdict(&due.timer, judge, watch.witnesses, now) {
                        Verdict::Down => {
                            self.held.remove(&id);
                            self.touched.push(id);
                        }
                        Verdict::Dropped => continue,
                        Verdict::Later(at) => {
                            self.schedule(due.timer, at);
                            continue;
                        }
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
            let is_probe = matches!(due.timer, Timer::ProbeRandomMember(_));
            let _ = self.foca.handle_timer(due.timer, &mut self.out);
            if is_probe {
                self.begin_probe(watch, now);
            }
            self.settle(now);
        }
        silent
    }

    /// What the outcome of the probe under way says of our own health.
    fn judge_probe(&mut self) {
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
    fn begin_probe(&mut self, watch: &Watch<'_>, now: Moment) {
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

    fn verdict(
        &mut self,
        timer: &Timer<Member>,
        judge: bool,
        witnesses: usize,
        now: Moment,
    ) -> Verdict {
        let Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            ..
        } = timer
        else {
            return Verdict::Dropped;
        };
        if !self.is_still_suspect(member_id, *incarnation) {
            if (self.held.get(&member_id.id)).is_some_and(|held| held.timer == *timer) {
                self.held.remove(&member_id.id);
            }
            return Verdict::Dropped;
        }
        if !judge {
            return Verdict::Later(now + self.pace.period);
        }
        let held = self.held.get(&member_id.id);
        let time = held.map(|held| held.time(self.pace.suspicion, witnesses.min(CONFIRMATIONS)));
        match held.zip(time) {
            Some((held, time)) if now < held.since + time => {
                Verdict::Later((held.since + time).min(now + TICK))
            }
            _ => Verdict::Down,
        }
    }

    /// Suspicions of ours that fewer than `wanted` others confirmed.
    pub fn unconfirmed(&self, wanted: usize) -> impl Iterator<Item = Standing> + '_ {
        let open = self.held.values().filter(move |held| {
            held.confirmed.len() < wanted
                && self.is_still_suspect(&held.about.member, held.about.incarnation)
        });
        open.map(|held| held.about)
    }

    /// Whether our own loop ran without a gap lately: what seems unanswered then is.
    pub fn is_awake(&self, now: Moment) -> bool {
        now >= self.distrust_until
    }

    /// Another finds a suspect of ours silent too.
    pub fn confirm(&mut self, about: &Standing, by: u64) {
        let Some(held) = self.held.get_mut(&about.member.id) else {
            return;
        };
        let is_same =
            (held.about.member, held.about.incarnation) == (about.member, about.incarnation);
        if is_same && held.confirmed.len() < CONFIRMATIONS && !held.confirmed.contains(&by) {
            held.confirmed.push(by);
            self.confirmations += 1;
            // The failed probe was not our fault.
            self.improve();
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

    fn improve(&mut self) {
        self.score = self.score.saturating_sub(1);
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
        for held in self.held.values_mut() {
            held.since = now;
            held.confirmed.clear();
        }
    }

    /// Suspicions that began with a probe of ours, since the start.
    pub fn originated(&self) -> u64 {
        self.originated
    }

    /// Whether a suspicion of a member is our own: only whose probe failed holds its timer.
    pub fn holds(&self, suspect: &Member) -> bool {
        let held = self.held.get(&suspect.id);
        held.is_some_and(|held| held.about.member == *suspect)
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

    /// After every call of foca: its timers into our queue, its news noted, its numbers fitted to the mesh.
    fn settle(&mut self, now: Moment) {
        for (timer, after) in std::mem::take(&mut self.out.timers) {
            if self.hold(&timer, now) {
                self.schedule(timer, now + after);
            }
        }
        for at in 0..self.out.news.len() {
            match &self.out.news[at] {
                OwnedNotification::MemberUp(member) => {
                    let id = member.id;
                    self.touched.push(id);
                    self.greet(id);
                }
                OwnedNotification::MemberDown(member) => self.touched.push(member.id),
                OwnedNotification::Rename(_, member) => self.touched.push(member.id),
                _ => {}
            }
        }
        let members = self.size();
        if transmissions(members) != transmissions(self.tuned_for) {
            self.tuned_for = members;
            // Only the number of transmissions changes, which foca allows at any time.
            let _ = self.foca.set_config(self.pace.config(members));
        }
    }

    /// Notes a suspicion of ours. Yields whether a timer is to run: of one suspicion only the first does.
    fn hold(&mut self, timer: &Timer<Member>, now: Moment) -> bool {
        let Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            ..
        } = timer
        else {
            return true;
        };
        let held = self.held.get(&member_id.id);
        if held.is_some_and(|held| held.timer == *timer) {
            return false;
        }
        let held = Held {
            timer: timer.clone(),
            about: Standing {
                member: *member_id,
                incarnation: *incarnation,
                state: State::Suspect,
                down_for_s: 0,
            },
            since: now,
            confirmed: Vec::new(),
        };
        self.held.insert(member_id.id, held);
        self.originated += 1;
        true
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

    fn on_timer(swim: &mut Swim, trust: Trust, now: Moment) {
        let watch = Watch {
            trust,
            witnesses: 0,
            patience: &|_| Pace::FAST.patience,
        };
        swim.on_timer(&watch, now);
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
        on_timer(&mut swim, Trust::Judge, NOW);
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
            on_timer(&mut swim, trust, NOW);
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
        on_timer(&mut swim, Trust::Judge, late);
        assert_eq!(swim.active(), 1);
        while let Some(at) = swim.next_timer().filter(|_| swim.active() > 0) {
            assert!(at <= late + Pace::FAST.suspicion);
            on_timer(&mut swim, Trust::Judge, at);
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
