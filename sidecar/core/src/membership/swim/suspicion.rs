//! Suspicions of our own: for how long they are held, who confirmed them, and how they end.
//!
//! Not here: whom others suspect (foca), and how they are asked (`doubts.rs`).

use std::{cmp::Reverse, time::Duration};

use foca::{State, Timer, TimerToken};
use mesh_proto::{member::Member, message::Standing};

use super::{Swim, TICK};
use crate::moment::Moment;

/// Others wanted to agree with a suspicion before it counts in full, where there are so many.
const CONFIRMATIONS: usize = 3;

/// Where so many others could agree, at least one has to: a suspicion that none of them shares is our own fault.
const WITNESSES_HEEDED: usize = 2;

/// A suspicion that nobody confirms is held for so many times the shortest time (Lifeguard's default).
const SUSPICION_HELD: u32 = 6;

/// A suspicion of ours. It outlives a new identity of our own, and with it foca's token.
#[derive(Clone, Debug)]
pub(super) struct Held {
    about: Standing,
    since: Moment,
    confirmed: Vec<u64>,
}

impl Held {
    fn is_about(&self, member: &Member, incarnation: u16) -> bool {
        (self.about.member, self.about.incarnation) == (*member, incarnation)
    }

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

/// What becomes of a suspicion whose time is over.
pub(super) enum Verdict {
    Down,
    Dropped,
    Later(Moment),
}

impl Swim {
    pub(super) fn verdict(
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
            let held = self.held.get(&member_id.id);
            if held.is_some_and(|held| held.is_about(member_id, *incarnation)) {
                self.held.remove(&member_id.id);
            }
            return Verdict::Dropped;
        }
        if !judge {
            return Verdict::Later(now + self.pace.period);
        }
        let held = self.held.get(&member_id.id);
        let is_lonely = held.is_some_and(|held| held.confirmed.is_empty());
        if is_lonely && witnesses >= WITNESSES_HEEDED {
            return Verdict::Later(now + TICK);
        }
        let time = held.map(|held| held.time(self.pace.suspicion, witnesses.min(CONFIRMATIONS)));
        match held.zip(time) {
            Some((held, time)) if now < held.since + time => {
                Verdict::Later((held.since + time).min(now + TICK))
            }
            _ => Verdict::Down,
        }
    }

    /// A member did not answer a probe of which foca knows nothing.
    pub(super) fn suspect(
        &mut self,
        member: Member,
        incarnation: u16,
        token: TimerToken,
        now: Moment,
    ) {
        let is_there =
            |known: &foca::Member<Member>| *known.id() == member && known.state() != State::Down;
        if !self.members().any(is_there) {
            return;
        }
        let suspected = foca::Member::new(member, incarnation, State::Suspect);
        self.apply(vec![suspected], true, now);
        self.begin_end(member, incarnation, token, now);
    }

    /// Others say that a member is down whom we had for alive, and who is a suspect of ours by now: if it does not refute,
    /// somebody has to end that, and foca's own probe may come round to it much later.
    pub fn suspect_as_told(&mut self, member: Member, incarnation: u16, now: Moment) {
        let Some(token) = self
            .token
            .filter(|_| self.is_still_suspect(&member, incarnation))
        else {
            return;
        };
        self.begin_end(member, incarnation, token, now);
    }

    /// Lets the time of a suspicion begin: what foca does itself for probes of its own.
    fn begin_end(&mut self, member: Member, incarnation: u16, token: TimerToken, now: Moment) {
        let ends = Timer::ChangeSuspectToDown {
            member_id: member,
            incarnation,
            token,
        };
        self.out.timers.push((ends, self.pace.suspicion));
        self.settle(now);
    }

    /// Suspicions of ours that fewer than `wanted` others confirmed.
    pub fn unconfirmed(&self, wanted: usize) -> impl Iterator<Item = Standing> + '_ {
        let open = self.held.values().filter(move |held| {
            held.confirmed.len() < wanted
                && self.is_still_suspect(&held.about.member, held.about.incarnation)
        });
        open.map(|held| held.about)
    }

    /// Another finds a suspect of ours silent too.
    pub fn confirm(&mut self, about: &Standing, by: u64) {
        let Some(held) = self.held.get_mut(&about.member.id) else {
            return;
        };
        let is_same = held.is_about(&about.member, about.incarnation);
        if is_same && held.confirmed.len() < CONFIRMATIONS && !held.confirmed.contains(&by) {
            held.confirmed.push(by);
            self.confirmations += 1;
            // The failed probe was not our fault.
            self.improve();
        }
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

    /// Notes a suspicion of ours. Yields whether a timer is to run: of one suspicion only the first does.
    pub(super) fn hold(&mut self, timer: &Timer<Member>, now: Moment) -> bool {
        let Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            ..
        } = timer
        else {
            return true;
        };
        let held = self.held.get(&member_id.id);
        if held.is_some_and(|held| held.is_about(member_id, *incarnation)) {
            return false;
        }
        let held = Held {
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

    /// Suspicions that began with a probe of ours, since the start.
    pub fn originated(&self) -> u64 {
        self.originated
    }
}
