//! foca and the guards around it.
//!
//! Not here: records and exchanges. What foca would do wrong alone, and what is done about it:
//! - A suspicion's timer tells a member that it is dead even if it has refuted meanwhile: such timers are dropped.
//! - A deaf member suspects everybody, and Down is final: while nothing is heard, or after our own loop stood still, no
//!   suspicion starts and none ends here. Who is left alone may still condemn peers that refuse connections.
//! - A suspicion that is ours alone may be our own fault (Lifeguard): it is held up to six times as long, until others
//!   who were asked (`doubts.rs`) found the suspect silent too, and ends in no Down while of several others not one
//!   agrees; and the more of our probes fail, the slower we probe.
//! - Every link is as fast as the next to foca: how long an answer may take follows the distance of the zone.
//! - foca draws whom to probe, and who is to help, evenly: most probes go to our own zone instead, and those near the
//!   one that is silent are asked first (`probing.rs`, `near.rs`). One probe in four stays foca's own draw.
//! - Timers out of order break a probe: they leave one queue, ordered by time and then by foca's own order.

mod pace;
mod probing;
mod queue;
mod suspicion;
mod view;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use foca::{
    Foca, Header, NoCustomBroadcast, Notification, OwnedNotification, Runtime, Timer, TimerToken,
};
use mesh_proto::{codec::MemberCodec, member::Member};
use rand::{Rng, SeedableRng, rngs::StdRng};

pub use self::pace::{Pace, transmissions};
use self::{
    probing::{Near, Probe},
    queue::Due,
    suspicion::{Held, Verdict},
    view::View,
};
use super::TICK;
use crate::moment::Moment;

/// Peers told at once.
pub const FANOUT: usize = 3;

/// Room kept for ids of members; an exchange fills far more for a moment.
const TOUCHED_KEPT: usize = 64;

/// A member that is down is forgotten after this.
pub const FORGET_AFTER: Duration = Duration::from_secs(24 * 3_600);

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
    near: Near,
    /// Tells foca's timers of now from those of an earlier life.
    token: Option<TimerToken>,
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
    /// Probes of near members, since the start.
    pub probes_near: u64,
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

/// What a turn of the timers goes by.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Whether suspicions may start and end.
    pub trust: Trust,
    /// Others that could agree with a suspicion.
    pub witnesses: usize,
    /// How long an answer of a member may take.
    pub patience: &'a dyn Fn(&Member) -> Duration,
    /// Whom we look after more than others, by id; none where nobody is nearer than others.
    pub near: &'a dyn Fn() -> Vec<u64>,
    /// Whether somebody of another zone is suspected.
    pub is_alarmed: bool,
    /// Those in such zones who are not suspected, by id.
    pub alarmed: &'a dyn Fn() -> Vec<u64>,
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
    pub fn new(me: Member, pace: Pace, mut rng: StdRng) -> Swim {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        Swim {
            // The two draw alike, and for nothing that has to do with each other.
            view: View::new(StdRng::from_seed(seed)),
            near: Near::new(StdRng::from_seed(seed)),
            token: None,
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
            probes_near: 0,
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
        self.take_answer(header, now);
        let done = self.foca.handle_data(packet, &mut self.out);
        self.settle(now);
        done
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

    /// Handles every timer that is due, in order. Yields members whose direct probe went unanswered for too long: others
    /// are to be asked for help ([`Swim::seek_help`]).
    ///
    /// Whatever the sockets hold must have been handed in before.
    pub fn on_timer(&mut self, watch: &Watch<'_>, now: Moment) -> Vec<Member> {
        let mut silent = Vec::new();
        let mut was_late = false;
        while let Some(mut due) = self.pop_due(now) {
            if now.since(due.at) > self.pace.period {
                // We stood still: whatever seems unanswered since may have been answered.
                self.distrust_until = now + self.pace.period * 2;
                if !std::mem::replace(&mut was_late, true) {
                    self.worsen();
                }
            }
            let judge = watch.trust == Trust::Judge && self.is_awake(now);
            match &mut due.timer {
                Timer::ProbeRandomMember(token) => {
                    let token = *token;
                    if judge {
                        self.judge_probe();
                    } else {
                        self.acknowledge(now);
                    }
                    if self.probe_near(token, watch, now) {
                        continue;
                    }
                }
                Timer::ChangeSuspectToDown {
                    member_id, token, ..
                } => {
                    let id = member_id.id;
                    // foca heeds none of an identity that we had before.
                    *token = self.token.unwrap_or(*token);
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
            let is_help = matches!(due.timer, Timer::SendIndirectProbe { .. });
            let said = self.out.packets.len();
            let _ = self.foca.handle_timer(due.timer, &mut self.out);
            if is_probe {
                self.begin_probe(watch, now);
            }
            if is_help {
                // Whom foca would ask was drawn evenly; whoever called us knows better ones (`seek_help`).
                self.out.packets.truncate(said);
            }
            self.settle(now);
        }
        silent
    }

    /// Whether our own loop ran without a gap lately: what seems unanswered then is.
    pub fn is_awake(&self, now: Moment) -> bool {
        now >= self.distrust_until
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
            if let Timer::ProbeRandomMember(token) = timer {
                self.token = Some(token);
            }
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
}

#[cfg(test)]
mod tests {
    use foca::State;

    use super::*;

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
            near: &Vec::new,
            is_alarmed: false,
            alarmed: &Vec::new,
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
    fn a_suspicion_outlives_a_new_identity_of_ours_and_ends_in_its_own_time() {
        let mut swim = swim();
        swim.apply(
            vec![foca::Member::new(member(2), 0, State::Alive)],
            false,
            NOW,
        );
        let token = swim.token.expect("it probes");
        swim.suspect(member(2), 0, token, NOW);
        swim.become_again(2, NOW + Pace::FAST.period);
        let ends = NOW + Pace::FAST.suspicion;
        while let Some(at) = swim.next_timer().filter(|_| swim.active() > 0) {
            assert!(at <= ends, "still suspected after {:?}", at.since(NOW));
            on_timer(&mut swim, Trust::Judge, at);
        }
        assert_eq!(swim.originated(), 1);
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
