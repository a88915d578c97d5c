//! Smoothed latency, requests in flight and success share of one endpoint, shared by all workers as atomics.
//!
//! Not here: what is made of the figures (`balance/`, `outlier.rs`).

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::moment::Moment;

/// How fast old latencies are forgotten.
const LATENCY_TAU: Duration = Duration::from_secs(2);

/// How fast an endpoint without traffic is taken to be like the others again.
const REGRESSION_TAU: Duration = Duration::from_secs(5);

/// A sample counts for at most this many times the current value, so that one pause is not taken for slowness.
const SAMPLE_CLIP: f64 = 4.0;

/// The weight of one outcome in the success share: ten outcomes turn it around, one does not.
const SUCCESS_STEP: f32 = 0.1;

/// From here on the success share counts as whole; an average alone would come near 1 and never reach it.
const SUCCESS_WHOLE: f32 = 0.995;

/// No endpoint is taken for dead before it was silent for this long. What was sent in that time waits for as long as an
/// attempt may, usually a second more, and a silent zone is to be left for good within two.
const SILENT_MIN: Duration = Duration::from_millis(800);

/// Nor before it was silent for this many times its usual latency.
const SILENT_TIMES: f64 = 20.0;

/// Nor while fewer attempts wait or have given up: one may be a slow question.
const SILENT_ATTEMPTS_MIN: u32 = 2;

/// Attempts that gave up before a rest of this long say nothing of what comes after it.
const SILENCE_FORGOTTEN: Duration = Duration::from_secs(5);

/// The live figures of one endpoint. Every method may be called by every worker at any time.
#[derive(Debug)]
pub struct Load {
    latency: AtomicU64,
    sampled: AtomicU64,
    success: AtomicU32,
    in_flight: AtomicU32,
    waiting: AtomicU32,
    /// Attempts that gave up since the last answer head.
    unanswered: AtomicU32,
    quiet_since: AtomicU64,
    begun: AtomicU64,
    answered: AtomicBool,
    /// See [`Load::allowance`]; 0 = as many as one likes.
    allowance: AtomicU32,
}

impl Load {
    pub(crate) fn new() -> Load {
        Load {
            latency: AtomicU64::new(0),
            sampled: AtomicU64::new(0),
            success: AtomicU32::new(1_f32.to_bits()),
            in_flight: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            unanswered: AtomicU32::new(0),
            quiet_since: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            allowance: AtomicU32::new(0),
        }
    }

    pub(crate) fn begin(&self, now: Moment) {
        self.in_flight.fetch_add(1, Relaxed);
        let before = self.begun.swap(now.as_nanos(), Relaxed);
        // Attempts that gave up without an answer belong to the same silence, unless it was left alone since.
        let rested = now.since(Moment::from_nanos(before)) >= SILENCE_FORGOTTEN;
        if self.waiting.load(Relaxed) == 0 && (rested || self.unanswered.load(Relaxed) == 0) {
            // Before it counts as waiting, or another worker would see a silence as long as the rest before it.
            self.break_silence(now);
        }
        self.waiting.fetch_add(1, Relaxed);
    }

    pub(crate) fn head_came(&self, now: Moment) {
        decrement(&self.waiting);
        self.break_silence(now);
    }

    pub(crate) fn gave_up(&self) {
        self.unanswered.fetch_add(1, Relaxed);
        decrement(&self.waiting);
    }

    fn break_silence(&self, now: Moment) {
        self.quiet_since.store(now.as_nanos(), Relaxed);
        self.unanswered.store(0, Relaxed);
    }

    pub(crate) fn end(&self) {
        decrement(&self.in_flight);
        if self.allowance.load(Relaxed) != 0 {
            // 0, if it has answered in between, stays the least.
            let most = self.in_flight().saturating_add(1);
            self.allowance.fetch_min(most, Relaxed);
        }
    }

    /// Requests begun and not ended, by all workers.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// When an attempt last began.
    pub fn begun(&self) -> Moment {
        Moment::from_nanos(self.begun.load(Relaxed))
    }

    /// Whether an attempt waits for its answer head.
    #[inline]
    pub fn is_waited_for(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Whether it ever gave a well answer, or began one that is not over.
    pub fn answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    /// Share of attempts that went well, 0 to 1, recent ones counting most. Time alone never mends it.
    pub fn success(&self) -> f32 {
        f32::from_bits(self.success.load(Relaxed))
    }

    /// Smoothed latency of good answers in nanoseconds; `None` before the first.
    pub fn latency(&self) -> Option<f64> {
        let (mean, weight) = unpack(self.latency.load(Relaxed));
        (weight > 0.0).then_some(f64::from(mean))
    }

    /// The latency to expect at `now`, in nanoseconds: what was seen, drawn towards `mean` (that of all endpoints)
    /// while nothing is asked of this one.
    pub fn expected_latency(&self, mean: f64, now: Moment) -> Option<f64> {
        let seen = self.latency()?;
        let idle = now.since(Moment::from_nanos(self.sampled.load(Relaxed)));
        // An attempt under way is traffic; what its silence means is for the stall factor to say.
        if self.waiting.load(Relaxed) > 0 || idle < REGRESSION_TAU / 50 {
            return Some(seen);
        }
        Some(mean + (seen - mean) * decay(idle, REGRESSION_TAU))
    }

    /// How long no answer head has come back although attempts were made; zero when none waits now.
    pub fn silence(&self, now: Moment) -> Duration {
        if self.waiting.load(Relaxed) == 0 {
            return Duration::ZERO;
        }
        now.since(Moment::from_nanos(self.quiet_since.load(Relaxed)))
    }

    /// Whether several attempts wait or gave up and nothing has come back for so long that the endpoint, or the way to it,
    /// must be dead: nearly a second, and twenty times what it usually takes.
    pub fn is_silent(&self, now: Moment) -> bool {
        let silence = self.silence(now);
        silence >= SILENT_MIN
            && self.waiting.load(Relaxed) + self.unanswered.load(Relaxed) >= SILENT_ATTEMPTS_MIN
            && self
                .latency()
                .is_some_and(|usual| nanos(silence) > usual * SILENT_TIMES)
    }

    /// A good answer whose head took `latency`. One that is the caller's own fault may raise the figure but not
    /// lower it: refusing is quicker than working.
    pub(crate) fn went_well(&self, latency: Option<Duration>, may_lower: bool, now: Moment) {
        self.answers();
        self.count_success(true);
        match latency {
            Some(latency) if may_lower => self.sample(latency, now),
            Some(latency) => self.at_least(latency, now),
            None => {}
        }
    }

    pub(crate) fn answers(&self) {
        self.answered.store(true, Relaxed);
        if self.allowance.load(Relaxed) != 0 {
            self.allowance.store(0, Relaxed);
        }
    }

    /// Most requests in flight until it answers: those that were there when it was doubted and are not over, and one more.
    /// `None` if nothing is doubted.
    pub fn allowance(&self) -> Option<u32> {
        match self.allowance.load(Relaxed) {
            0 => None,
            most => Some(most),
        }
    }

    /// Whether it is there at all has become doubtful, or is no more.
    pub(crate) fn doubt(&self, doubtful: bool) {
        let most = if doubtful {
            self.in_flight().saturating_add(1)
        } else {
            0
        };
        self.allowance.store(most, Relaxed);
    }

    pub(crate) fn went_wrong(&self) {
        self.count_success(false);
    }

    /// An attempt ended before its answer after `elapsed`: the latency is at least that.
    pub(crate) fn at_least(&self, elapsed: Duration, now: Moment) {
        if self.latency().is_some_and(|seen| nanos(elapsed) > seen) {
            self.sample(elapsed, now);
        }
    }

    /// Forgets past failures: the endpoint has proved itself and is let back in by a ramp instead.
    pub(crate) fn forgive(&self) {
        self.success.store(1_f32.to_bits(), Relaxed);
    }

    fn sample(&self, latency: Duration, now: Moment) {
        // Each caller takes its own slice of time off, so that two at once do not both forget the same second.
        let before = self.sampled.fetch_max(now.as_nanos(), Relaxed);
        let kept = decay(now.since(Moment::from_nanos(before)), LATENCY_TAU);
        let _ = self.latency.fetch_update(Relaxed, Relaxed, |packed| {
            let (mean, weight) = unpack(packed);
            let (mean, weight) = (f64::from(mean), f64::from(weight));
            let mut sample = nanos(latency);
            if weight > 0.0 {
                sample = sample.min(mean * SAMPLE_CLIP);
            }
            let weight = weight * kept + 1.0;
            Some(pack(mean + (sample - mean) / weight, weight))
        });
    }

    fn count_success(&self, well: bool) {
        // The usual case writes nothing: a whole success share stays whole.
        if well && self.success() >= 1.0 {
            return;
        }
        let _ = self.success.fetch_update(Relaxed, Relaxed, |bits| {
            let share = f32::from_bits(bits);
            let target = if well { 1.0 } else { 0.0 };
            let next = share + (target - share) * SUCCESS_STEP;
            let next = if next >= SUCCESS_WHOLE { 1.0 } else { next };
            Some(next.to_bits())
        });
    }
}

fn decrement(count: &AtomicU32) {
    // A report too many must not wrap to four thousand million requests in flight.
    let _ = count.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
}

fn nanos(span: Duration) -> f64 {
    span.as_nanos() as f64
}

/// What is left after `span` of something that fades with time constant `tau`.
fn decay(span: Duration, tau: Duration) -> f64 {
    (-span.as_secs_f64() / tau.as_secs_f64()).exp()
}

/// Mean and weight share one word, so that they change together without a lock.
fn pack(mean: f64, weight: f64) -> u64 {
    u64::from((mean as f32).to_bits()) << 32 | u64::from((weight as f32).to_bits())
}

fn unpack(packed: u64) -> (f32, f32) {
    (
        f32::from_bits((packed >> 32) as u32),
        f32::from_bits(packed as u32),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    #[test]
    fn latency_follows_the_samples_and_one_pause_counts_at_most_fourfold() {
        let load = Load::new();
        assert_eq!(load.latency(), None);
        for i in 0..100 {
            load.went_well(Some(10 * MS), true, at(i * 10));
        }
        assert!((load.latency().unwrap() - 10e6).abs() < 1e4);
        load.went_well(Some(10_000 * MS), true, at(1_000));
        assert!(load.latency().unwrap() < 11e6);
        for i in 0..1_000 {
            load.went_well(Some(30 * MS), true, at(1_000 + i * 10));
        }
        assert!((load.latency().unwrap() - 30e6).abs() < 1e6);
    }

    #[test]
    fn failures_and_quick_refusals_never_lower_the_latency() {
        let load = Load::new();
        load.went_well(Some(10 * MS), true, at(0));
        for i in 1..100 {
            load.went_wrong();
            load.went_well(Some(MS / 10), false, at(i));
            load.at_least(MS, at(i));
        }
        assert_eq!(load.latency(), Some(10e6));
        load.at_least(40 * MS, at(200));
        assert!(load.latency().unwrap() > 10e6);
    }

    #[test]
    fn an_idle_endpoint_is_taken_to_be_like_the_others_again() {
        let load = Load::new();
        load.went_well(Some(100 * MS), true, at(0));
        let after = |secs: u64| load.expected_latency(10e6, at(secs * 1_000)).unwrap();
        assert_eq!(after(0), 100e6);
        assert!((after(5) - (10e6 + 90e6 / std::f64::consts::E)).abs() < 1e4);
        assert!(after(60) < 10.1e6);
    }

    #[test]
    fn the_success_share_is_mended_by_successes_and_not_by_time() {
        let load = Load::new();
        for _ in 0..50 {
            load.went_wrong();
        }
        assert!(load.success() < 0.01);
        for _ in 0..60 {
            load.went_well(None, true, at(1));
        }
        assert_eq!(load.success(), 1.0);
    }

    #[test]
    fn silence_is_the_time_since_the_last_head_while_somebody_waits() {
        let load = Load::new();
        load.begin(at(100));
        load.begin(at(150));
        assert_eq!(load.silence(at(200)), 100 * MS);
        load.head_came(at(220));
        assert_eq!(load.silence(at(250)), 30 * MS);
        load.gave_up();
        assert_eq!(load.silence(at(900)), Duration::ZERO);
        load.begin(at(900));
        assert_eq!(
            load.silence(at(920)),
            700 * MS,
            "nothing has come since 220"
        );
        load.gave_up();
        load.begin(at(6_000));
        assert_eq!(load.silence(at(6_001)), MS, "left alone in between");
        (0..5).for_each(|_| load.end());
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn the_place_of_a_request_that_was_in_flight_when_its_endpoint_was_doubted_is_not_given_away() {
        let load = Load::new();
        (0..50).for_each(|_| load.begin(at(0)));
        load.doubt(true);
        assert_eq!(load.allowance(), Some(51));
        for left in (0..50).rev() {
            load.gave_up();
            load.end();
            assert_eq!(load.allowance(), Some(left + 1));
        }
        load.begin(at(1));
        assert_eq!(load.allowance(), Some(1));
        load.answers();
        load.end();
        assert_eq!(load.allowance(), None, "it has answered");
    }
}
