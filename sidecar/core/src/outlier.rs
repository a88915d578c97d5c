//! When an endpoint is sent out, for how long, how it comes back, and when the cap forbids it.
//!
//! Not here: how what speaks against it is kept (`outlier/evidence.rs`), which of the others are asked meanwhile
//! (`balance/`), and what makes a whole tier ill (`zone/`).

mod evidence;

use std::{
    num::NonZeroU64,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::{Rng, RngExt};

use crate::{
    endpoint::{RAMP, Report, Word, ramp_until},
    moment::Moment,
    outcome::{Outcome, Unreachable},
    policy::Ejection,
};

use evidence::{Run, WINDOW_SECONDS, Window};

/// Fewest outcomes in the window that are enough to judge.
const SAMPLES_MIN: u32 = 10;

/// Times out are spread by this share either way, so that many sidecars do not come back at once.
const JITTER: f64 = 0.2;

/// An endpoint that stayed in for this long is punished one step less the next time.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// A canary that was never reported (its client went away) is joined by another after this time; whichever answers first
/// is the verdict.
const CANARY_LOST: Duration = Duration::from_secs(15);

/// When there is nothing but non-idempotent traffic, one of those requests becomes the canary after this time.
const ANY_CANARY_AFTER: Duration = Duration::from_secs(5);

/// Longest time out of one that refuses connections: asking it again costs nothing, for its kernel says no at once and
/// before a byte was sent.
const GONE_MAX: Duration = Duration::from_secs(4);

/// Least time an endpoint that said it is full is left alone: refusing is quick, and would look like speed.
const FULL_MIN: Duration = Duration::from_millis(250);

/// What is known against one endpoint. Success without a preceding failure takes no lock.
#[derive(Debug)]
pub(crate) struct Trial {
    /// Nanoseconds until which it is out; 0 = in.
    out_until: AtomicU64,
    /// Its [`Canary`]; 0 = none.
    canary: AtomicU64,
    /// When its ramp back to a full share ends; 0 = no ramp.
    ramp_end: AtomicU64,
    /// Until when it is full; 0 = it is not.
    full_until: AtomicU64,
    /// When it was last found bad, for the zone trip; 0 = well since.
    bad: AtomicU64,
    /// When it last did its part; 0 = never.
    well: AtomicU64,
    /// Whether `file` holds anything that a success has to clear.
    troubled: AtomicBool,
    /// Whether it is out because nobody is there (it refuses connections, or its host is dead), which uses up no
    /// allowance.
    absent: AtomicBool,
    /// The [`Cause`] it was last sent out for.
    cause: AtomicU8,
    window: Window,
    times: AtomicU32,
    file: Mutex<File>,
}

#[derive(Debug, Default)]
struct File {
    /// Failures that the endpoint answered, in a row.
    answered: Run,
    /// Failures to get an answer, in a row.
    local: Run,
    /// The failures of the window.
    window: Run,
    /// Times in a row that it was sent out for refusing connections.
    gone_times: u32,
    /// Since when it is back in.
    returned: Moment,
}

/// The one request that finds out whether an endpoint that was sent out is well again. What it comes to is the verdict;
/// what comes of requests that went before it is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Canary(NonZeroU64);

/// That an endpoint was sent out, for metric and log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ejected {
    /// For how long.
    pub duration: Duration,
    /// The how-manieth time in a row, from 1; those for refusing connections are counted apart.
    pub times: u32,
    /// Why.
    pub cause: Cause,
    /// It refused a connection: nobody is there.
    pub gone: bool,
}

/// Why an endpoint was sent out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Cause {
    /// Too many failures that it answered, in a row.
    Answers = 0,
    /// Too many attempts without an answer, in a row.
    Silence = 1,
    /// Too small a share of successes.
    SuccessShare = 2,
    /// SWIM doubted its host, and it could not be connected to.
    Confirmed = 3,
    /// Its canary failed.
    Canary = 4,
}

impl Cause {
    /// The words that listings and the log use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Answers => "answered with errors, several in a row",
            Cause::Silence => "gave no answer, several times in a row",
            Cause::SuccessShare => "too small a share of successes",
            Cause::Confirmed => "its host was doubted and it could not be connected to",
            Cause::Canary => "failed again when one request tried it",
        }
    }

    fn of(number: u8) -> Cause {
        match number {
            1 => Cause::Silence,
            2 => Cause::SuccessShare,
            3 => Cause::Confirmed,
            4 => Cause::Canary,
            _ => Cause::Answers,
        }
    }
}

/// What the rest of the service allows; asked only when an endpoint is about to be sent out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Company {
    /// Endpoints of the service, this one included.
    pub all: usize,
    /// Of those, out for anything but being absent.
    pub ejected: usize,
    /// Others that are in.
    pub others_in: usize,
}

impl Company {
    /// Whether one more may go; whoever is absent goes without using up the allowance.
    fn allows(self, absent: bool, max_ejected: f64) -> bool {
        if self.others_in == 0 {
            return false;
        }
        // At least one where there are two or more; `others_in` has seen to the two.
        let allowance = ((self.all as f64 * max_ejected).floor() as usize).max(1);
        absent || self.ejected < allowance
    }
}

impl Trial {
    pub(crate) fn new() -> Trial {
        Trial {
            out_until: AtomicU64::new(0),
            canary: AtomicU64::new(0),
            ramp_end: AtomicU64::new(0),
            full_until: AtomicU64::new(0),
            bad: AtomicU64::new(0),
            well: AtomicU64::new(0),
            troubled: AtomicBool::new(false),
            absent: AtomicBool::new(false),
            cause: AtomicU8::new(Cause::Answers as u8),
            window: Window::default(),
            times: AtomicU32::new(0),
            file: Mutex::default(),
        }
    }

    pub(crate) fn is_out(&self) -> bool {
        self.out_until.load(Relaxed) != 0
    }

    /// Whether it is out and uses up the allowance.
    pub(crate) fn counts_as_ejected(&self) -> bool {
        self.is_out() && !self.absent.load(Relaxed)
    }

    pub(crate) fn out_for(&self, now: Moment) -> Option<Duration> {
        match self.out_until.load(Relaxed) {
            0 => None,
            until => Some(Moment::from_nanos(until).since(now)),
        }
    }

    /// Why it is out; `None` when it is in.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.is_out().then(|| Cause::of(self.cause.load(Relaxed)))
    }

    pub(crate) fn full_for(&self, now: Moment) -> Option<Duration> {
        let left = Moment::from_nanos(self.full_until.load(Relaxed)).since(now);
        (!left.is_zero()).then_some(left)
    }

    pub(crate) fn ramp(&self, now: Moment) -> f64 {
        ramp_until(Moment::from_nanos(self.ramp_end.load(Relaxed)), now)
    }

    /// When it was last found bad without having been well since.
    pub(crate) fn bad_since(&self) -> Option<Moment> {
        match self.bad.load(Relaxed) {
            0 => None,
            at => Some(Moment::from_nanos(at)),
        }
    }

    /// When it last did its part, if ever.
    pub(crate) fn well_at(&self) -> Option<Moment> {
        match self.well.load(Relaxed) {
            0 => None,
            at => Some(Moment::from_nanos(at)),
        }
    }

    /// It does not answer at all, which no attempt has come to yet.
    pub(crate) fn fell_silent(&self, now: Moment) {
        self.bad.store(stamp(now), Relaxed);
    }

    /// Whether one request may find out if the endpoint is well again.
    pub(crate) fn awaits_canary(&self, idempotent: bool, now: Moment) -> bool {
        let until = self.out_until.load(Relaxed);
        if until == 0 {
            return false;
        }
        let over = now.since(Moment::from_nanos(until));
        let ready = now.as_nanos() >= until && (idempotent || over >= ANY_CANARY_AFTER);
        ready && self.canary_is_free(now)
    }

    /// Takes the one place of the canary; false if another worker was quicker.
    pub(crate) fn claim_canary(&self, now: Moment) -> bool {
        let seen = self.canary.load(Relaxed);
        self.canary_is_free(now)
            && self
                .canary
                .compare_exchange(seen, stamp(now), Relaxed, Relaxed)
                .is_ok()
    }

    fn canary_is_free(&self, now: Moment) -> bool {
        let sent = self.canary.load(Relaxed);
        sent == 0 || now.since(Moment::from_nanos(sent)) > CANARY_LOST
    }

    /// Whether its canary is under way.
    pub(crate) fn is_on_trial(&self, now: Moment) -> bool {
        self.is_out() && !self.canary_is_free(now)
    }

    /// Its canary, if that was claimed at `now`.
    pub(crate) fn canary_of(&self, now: Moment) -> Option<Canary> {
        self.canary_under_way()
            .filter(|canary| canary.0.get() == stamp(now))
    }

    /// Its canary, if one was claimed and has not come to anything yet.
    pub(crate) fn canary_under_way(&self) -> Option<Canary> {
        NonZeroU64::new(self.canary.load(Relaxed)).map(Canary)
    }

    /// Takes the canary's place away from `canary`; false if it has not got it.
    pub(crate) fn release(&self, canary: Canary) -> bool {
        let canary = canary.0.get();
        let released = self.canary.compare_exchange(canary, 0, Relaxed, Relaxed);
        released.is_ok()
    }

    /// Whether what came of `canary` is the verdict; takes its place away from it. One that was slow counts although
    /// another was sent in its stead, or an endpoint whose answers all take longer than [`CANARY_LOST`] never came back:
    /// all that matters is that it was sent after the time out was over.
    fn is_verdict(&self, canary: Canary) -> bool {
        let until = self.out_until.load(Relaxed);
        self.release(canary) || (until != 0 && canary.0.get() >= until)
    }

    /// Its owner says it is well again: the canary may go at once.
    pub(crate) fn reconsider(&self, now: Moment) {
        let _ = self.out_until.fetch_update(Relaxed, Relaxed, |until| {
            (until > stamp(now)).then_some(stamp(now))
        });
    }

    /// It said that it is full. True when that is news.
    pub(crate) fn park(&self, retry_after: Duration, now: Moment) -> bool {
        let until = now + retry_after.max(FULL_MIN);
        let before = self.full_until.fetch_max(until.as_nanos(), Relaxed);
        before <= now.as_nanos()
    }

    /// It did its part, in an attempt that was its `canary` or none. True when this brought it back in.
    pub(crate) fn went_well(&self, canary: Option<Canary>, now: Moment) -> bool {
        self.window.count(true, now);
        self.well.store(stamp(now), Relaxed);
        if self.bad.load(Relaxed) != 0 {
            self.bad.store(0, Relaxed);
        }
        if self.is_out()
            && let Some(canary) = canary
        {
            // Under the lock, or the failure of another canary could send it out again in between.
            let mut file = self.file();
            if self.is_verdict(canary) {
                self.comes_back(&mut file, now);
                return true;
            }
        }
        if self.troubled.load(Relaxed) {
            let mut file = self.file();
            file.answered = Run::default();
            file.local = Run::default();
            self.troubled.store(false, Relaxed);
        }
        false
    }

    fn comes_back(&self, file: &mut File, now: Moment) {
        *file = File {
            returned: now,
            ..File::default()
        };
        self.troubled.store(false, Relaxed);
        self.window.clear();
        self.ramp_end.store((now + RAMP).as_nanos(), Relaxed);
        self.absent.store(false, Relaxed);
        self.out_until.store(0, Relaxed);
        // A newer canary may be under way still, or have been claimed just now: nobody waits for it any more.
        self.canary.store(0, Relaxed);
    }

    /// It failed. `Some` when that sends it out; `company` is asked only if it comes to that.
    pub(crate) fn went_wrong(
        &self,
        report: &Report,
        word: Word,
        rules: &Ejection,
        now: Moment,
        rng: &mut impl Rng,
        company: impl FnOnce() -> Company,
    ) -> Option<Ejected> {
        self.window.count(false, now);
        let mut file = self.file();
        self.troubled.store(true, Relaxed);
        let local = matches!(report.outcome, Outcome::Unreachable(_));
        let run = if local {
            &mut file.local
        } else {
            &mut file.answered
        };
        run.add(report, now);
        let run = *run;
        if now.since(file.window.first) > Duration::from_secs(WINDOW_SECONDS as u64) {
            file.window = Run::default();
        }
        file.window.add(report, now);
        let at_connect = at_connect(report.outcome);
        // That one which is out is still ill says nothing new of its zone.
        if !self.is_out() && (at_connect || (local && run.count >= 2)) {
            self.bad.store(stamp(now), Relaxed);
        }
        if rules.consecutive == 0 {
            return None;
        }
        let gone = report.outcome == Outcome::Unreachable(Unreachable::Refused);
        let until = self.out_until.load(Relaxed);
        if until != 0 {
            // Attempts that were under way when it went are no news, nor is one sent before its time because nobody
            // else was left; its canary is.
            let is_canary = report.canary.is_some_and(|canary| self.is_verdict(canary));
            if is_canary && now.as_nanos() >= until {
                return Some(self.send_out(&mut file, gone, Cause::Canary, rules, now, rng));
            }
            if gone {
                self.turns_out_gone(&mut file, rules, now, rng);
            }
            return None;
        }
        let cause = self.verdict(&file, run, local, word, at_connect, rules, now)?;
        if !company().allows(gone || cause == Cause::Confirmed, rules.max_ejected) {
            return None;
        }
        Some(self.send_out(&mut file, gone, cause, rules, now, rng))
    }

    /// A connection that was to carry no request was refused.
    pub(crate) fn refused(&self, rules: &Ejection, now: Moment, rng: &mut impl Rng) {
        if self.is_out() {
            self.turns_out_gone(&mut self.file(), rules, now, rng);
        }
    }

    /// What it was sent out for was its end and no illness: that uses up no allowance, and is forgotten when it is back.
    fn turns_out_gone(&self, file: &mut File, rules: &Ejection, now: Moment, rng: &mut impl Rng) {
        if self.absent.swap(true, Relaxed) {
            return;
        }
        let times = self.times.load(Relaxed);
        self.times.store(times.saturating_sub(1), Relaxed);
        file.gone_times = 1;
        let until = now + jittered(gone_span(1, rules), rng);
        self.out_until.fetch_min(stamp(until), Relaxed);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "all of one judgement's evidence, used once"
    )]
    fn verdict(
        &self,
        file: &File,
        run: Run,
        local: bool,
        word: Word,
        at_connect: bool,
        rules: &Ejection,
        now: Moment,
    ) -> Option<Cause> {
        if word != Word::Sure && at_connect {
            return Some(Cause::Confirmed);
        }
        if run.count >= rules.consecutive && run.apart {
            return Some(if local {
                Cause::Silence
            } else {
                Cause::Answers
            });
        }
        let (good, bad) = self.window.tally(now);
        let enough = good + bad >= SAMPLES_MIN && file.window.apart;
        let share = f64::from(good) / f64::from((good + bad).max(1));
        (enough && share < rules.success_below).then_some(Cause::SuccessShare)
    }

    fn send_out(
        &self,
        file: &mut File,
        gone: bool,
        cause: Cause,
        rules: &Ejection,
        now: Moment,
        rng: &mut impl Rng,
    ) -> Ejected {
        let (span, times) = if gone {
            file.gone_times = file.gone_times.saturating_add(1);
            (gone_span(file.gone_times, rules), file.gone_times)
        } else {
            file.gone_times = 0;
            let before = self.times_before(file, cause, now);
            self.times.store(before.saturating_add(1), Relaxed);
            (doubled(rules.base, before, rules.max), before + 1)
        };
        let duration = jittered(span, rng);
        if cause != Cause::Canary {
            let absent = gone || cause == Cause::Confirmed;
            self.absent.store(absent, Relaxed);
            self.bad.store(stamp(now), Relaxed);
        } else if gone {
            // A sick one that is gone by now frees its place; one that is back and sick does not take another's.
            self.absent.store(true, Relaxed);
        }
        self.canary.store(0, Relaxed);
        self.cause.store(cause as u8, Relaxed);
        self.out_until.store(stamp(now + duration), Relaxed);
        Ejected {
            duration,
            times,
            cause,
            gone,
        }
    }

    /// How often it was sent out before, less what its good conduct since has made up for.
    fn times_before(&self, file: &File, cause: Cause, now: Moment) -> u32 {
        let times = self.times.load(Relaxed);
        if cause == Cause::Canary {
            return times;
        }
        let in_for = now.since(file.returned).as_secs() / FORGIVEN_AFTER.as_secs();
        times.saturating_sub(u32::try_from(in_for).unwrap_or(u32::MAX))
    }

    fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long one stays out that refused connections for the `times`th time in a row.
fn gone_span(times: u32, rules: &Ejection) -> Duration {
    let most = GONE_MAX.max(rules.base).min(rules.max);
    doubled(rules.base, times.saturating_sub(1), most)
}

fn doubled(base: Duration, times: u32, most: Duration) -> Duration {
    base.saturating_mul(1 << times.min(16)).min(most)
}

fn jittered(span: Duration, rng: &mut impl Rng) -> Duration {
    span.mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER))
}

fn at_connect(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Unreachable(why) if why.at_connect())
}

/// A moment where 0 stands for "none".
fn stamp(moment: Moment) -> u64 {
    moment.as_nanos().max(1)
}

#[cfg(test)]
mod tests;
