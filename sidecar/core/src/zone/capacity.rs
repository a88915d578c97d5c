//! What an instance can take, learned where its own sidecar stands in the path: throughput over utilisation, slowly.
//!
//! Not here: counting answers and reading how busy the host is (the shell's `gossip/capacity.rs`), and what is made of
//! capacities (`water.rs`).
//!
//! Capacity moves shares, shares move throughput and utilisation, and these make the capacity. What keeps that loop at
//! rest: throughput and utilisation rise and fall together, so their ratio hardly depends on the share; it is averaged
//! over a minute, thirty times as long as shares take to follow; it is told in steps of 10 %, seldom, and each word
//! changes it by a quarter at most. Utilisation by itself never moves a share.

use std::time::Duration;

use crate::moment::Moment;

/// How often throughput and utilisation should be looked at.
pub const SAMPLE: Duration = Duration::from_secs(1);

/// How fast old samples are forgotten.
const TAU: Duration = Duration::from_secs(60);

/// Nothing is told before so many seconds of work were seen.
const WATCHED_MIN_S: f64 = 20.0;

/// A host less busy than this says little of what it could do: most of it is other work.
const UTILIZATION_MIN: f64 = 0.10;

/// Nor do fewer requests per second, once anything is known: whoever is hardly asked would seem to be able to do little,
/// and be asked even less.
const RATE_MIN: f64 = 1.0;

/// Fewest requests that a first word stands on. One instance of which nothing is known makes weights stand for the
/// capacity of all, so a rough figure is better.
const FIRST_MIN: f64 = 10.0;

/// A figure that stands on fewer requests than this is weak: the applications had hardly begun, or somebody else kept the
/// host busy.
const FIRM_MIN: f64 = 200.0;

/// A weak figure of which nothing more is learned for so long is taken back. One that is far too low keeps the requests
/// away that would correct it; without it weights stand for the capacity of all, and bring requests.
const WEAK_FOR: Duration = Duration::from_secs(300);

/// Requests queue when they take this many times what they do at rest; less is the scatter of their kinds.
const QUEUED_TIMES: f64 = 2.0;

/// How fast the latency at rest is taken to have grown, when nothing comes near it any more. Applications change, but a
/// queue may last for hours, and must not come to look like rest.
const REST_TAU: Duration = Duration::from_secs(24 * 3_600);

/// Figures are rounded to powers of this.
const ROUNDING: f64 = 1.10;

/// A figure is told anew when it is off by more than this part of it: one and a half steps, so that it does not waver
/// between two.
const CHANGE: f64 = 0.15;

/// Between two words.
const TOLD_APART: Duration = Duration::from_secs(30);

/// A word changes a figure by at most this factor.
const STEP_MAX: f64 = 1.25;

/// The largest capacity that is believed, in requests per second.
pub const CAPACITY_MAX: u32 = 10_000_000;

/// News of an instance's capacity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// So many requests per second.
    Tell(u32),
    /// It is as if nothing had been learned.
    Forget,
}

/// What was seen since the last look.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Answers ever given; a smaller number than before counts as none.
    pub answers: u64,
    /// Smoothed time of an answer's head in seconds; `None` before the first.
    pub latency: Option<f64>,
    /// Share of the host's processors, or of what the application may use of them, that was busy, 0 to 1.
    pub busy: f64,
}

/// Learns the capacity of one instance.
#[derive(Clone, Debug)]
pub struct Learner {
    answers: u64,
    sampled: Moment,
    /// Answers, utilised seconds and seconds, all forgotten at the same pace.
    done: f64,
    used: f64,
    watched: f64,
    /// Latency when nothing queues.
    rest: Option<f64>,
    told: Option<(u32, Moment)>,
    /// What is told stands on at least [`FIRM_MIN`] requests.
    is_firm: bool,
    /// When something was last learned.
    learned: Moment,
}

impl Learner {
    /// Knows nothing; counts from `answers` on.
    pub fn new(answers: u64, now: Moment) -> Learner {
        Learner {
            answers,
            sampled: now,
            done: 0.0,
            used: 0.0,
            watched: 0.0,
            rest: None,
            told: None,
            is_firm: false,
            learned: now,
        }
    }

    /// Takes in one more look, and yields what is news.
    pub fn sample(&mut self, seen: &Seen, now: Moment) -> Option<Word> {
        let elapsed = now.since(self.sampled);
        let seconds = elapsed.as_secs_f64();
        let answers = seen.answers.saturating_sub(self.answers) as f64;
        (self.answers, self.sampled) = (seen.answers, now);
        if seconds <= 0.0 {
            return None;
        }
        let utilization = self.utilization(seen, elapsed);
        let is_asked = self.told.is_none() || answers >= RATE_MIN * seconds;
        if utilization < UTILIZATION_MIN || !is_asked {
            return self.expired(now);
        }
        self.learned = now;
        let kept = (-seconds / TAU.as_secs_f64()).exp();
        self.done = self.done * kept + answers;
        self.used = self.used * kept + utilization * seconds;
        self.watched = self.watched * kept + seconds;
        self.news(now).map(Word::Tell)
    }

    /// The capacity as last told.
    pub fn told(&self) -> Option<u32> {
        self.told.map(|(capacity, _)| capacity)
    }

    /// How much of what it could do it does, 0 to 1: of its processors, or of its workers where requests wait for those.
    ///
    /// A queue makes an answer take S / (1 − ρ) where its work takes S (one worker; with several it takes less, and more
    /// nearly so the fuller they are).
    fn utilization(&mut self, seen: &Seen, elapsed: Duration) -> f64 {
        let busy = seen.busy.clamp(0.0, 1.0);
        let Some(latency) = seen.latency.filter(|latency| *latency > 0.0) else {
            return busy;
        };
        let grown = (elapsed.as_secs_f64() / REST_TAU.as_secs_f64()).exp();
        let rest = self.rest.map_or(latency, |rest| latency.min(rest * grown));
        self.rest = Some(rest);
        if latency < rest * QUEUED_TIMES {
            return busy;
        }
        busy.max(1.0 - rest / latency)
    }

    fn expired(&mut self, now: Moment) -> Option<Word> {
        let is_weak = self.told.is_some() && !self.is_firm;
        if !is_weak || now.since(self.learned) < WEAK_FOR {
            return None;
        }
        *self = Learner {
            rest: self.rest,
            ..Learner::new(self.answers, now)
        };
        Some(Word::Forget)
    }

    fn news(&mut self, now: Moment) -> Option<u32> {
        if self.watched < WATCHED_MIN_S || (self.told.is_none() && self.done < FIRST_MIN) {
            return None;
        }
        self.is_firm |= self.done >= FIRM_MIN;
        let capacity = self.done / self.used;
        let next = match self.told {
            None => capacity,
            Some((told, at)) => {
                let told = f64::from(told);
                if now.since(at) < TOLD_APART || (capacity - told).abs() <= told * CHANGE {
                    return None;
                }
                // Of a few requests a second, the rounding would swallow every step.
                capacity.clamp(
                    (told / STEP_MAX).min(told - 1.0),
                    (told * STEP_MAX).max(told + 1.0),
                )
            }
        };
        let next = rounded(next);
        let is_news = self.told() != Some(next);
        self.told = Some((next, now));
        is_news.then_some(next)
    }
}

/// Rounded to the nearest step of 10 %, from 1 to [`CAPACITY_MAX`].
pub fn rounded(per_second: f64) -> u32 {
    let step = (per_second.max(1.0).ln() / ROUNDING.ln()).round();
    // Above 2^32 the cast saturates.
    (ROUNDING.powf(step).round() as u32).clamp(1, CAPACITY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An instance that is asked for `rate`, worker by worker and processor by processor.
    struct Served {
        /// Requests per second that it really can give.
        real: f64,
        workers: f64,
        /// Share of its processors that it uses when it is full.
        processors: f64,
    }

    const SERVICE_S: f64 = 0.010;

    impl Served {
        /// Mean time in the system by Sakasegawa's approximation for M/M/c, cut where callers give up.
        fn latency(&self, rate: f64) -> f64 {
            let load = (rate / self.real).min(0.995);
            let queue = load.powf((2.0 * (self.workers + 1.0)).sqrt() - 1.0);
            SERVICE_S * (1.0 + queue / (self.workers * (1.0 - load)))
        }

        fn seen(&self, answers: f64, rate: f64) -> Seen {
            Seen {
                answers: answers as u64,
                latency: Some(self.latency(rate)),
                busy: (rate / self.real).min(1.0) * self.processors,
            }
        }
    }

    /// What is told, second by second, of an instance asked at these rates.
    fn told(served: &Served, rates: impl IntoIterator<Item = f64>) -> Vec<(usize, u32)> {
        let mut learner = Learner::new(0, Moment::START);
        let (mut answers, mut words) = (0.0, Vec::new());
        for (second, rate) in rates.into_iter().enumerate() {
            answers += rate.min(served.real);
            let now = Moment::START + SAMPLE * (second as u32 + 1);
            match learner.sample(&served.seen(answers, rate), now) {
                Some(Word::Tell(capacity)) => words.push((second, capacity)),
                Some(Word::Forget) => panic!("taken back after {second} s: {words:?}"),
                None => {}
            }
        }
        words
    }

    #[test]
    fn where_processors_are_the_limit_the_figure_does_not_depend_on_the_load() {
        let served = Served {
            real: 400.0,
            workers: 8.0,
            processors: 1.0,
        };
        for load in [0.15, 0.4, 0.7, 0.95] {
            let words = told(&served, std::iter::repeat_n(400.0 * load, 600));
            assert!(words.len() <= 2, "{load}: {words:?}");
            let last = f64::from(words.last().expect("told").1);
            assert!((last / 400.0 - 1.0).abs() < 0.06, "{load}: {words:?}");
        }
    }

    #[test]
    fn where_workers_are_the_limit_it_comes_near_the_truth_as_they_fill() {
        let served = Served {
            real: 200.0,
            workers: 1.0,
            processors: 0.15,
        };
        let rest = std::iter::repeat_n(60.0, 120);
        let words = told(&served, rest.chain(std::iter::repeat_n(180.0, 900)));
        let last = f64::from(words.last().expect("told").1);
        assert!((last / 200.0 - 1.0).abs() < 0.25, "{words:?}");
        for pair in words.windows(2) {
            let factor = f64::from(pair[0].1) / f64::from(pair[1].1);
            assert!((1.0 / 1.38..=1.38).contains(&factor), "{words:?}");
            assert!(pair[1].0 - pair[0].0 >= 30, "{words:?}");
        }
    }

    #[test]
    fn an_idle_instance_keeps_what_it_was_known_for() {
        let served = Served {
            real: 400.0,
            workers: 8.0,
            processors: 1.0,
        };
        let busy = std::iter::repeat_n(200.0, 120);
        let words = told(&served, busy.chain(std::iter::repeat_n(0.3, 3_600)));
        assert_eq!(words.len(), 1, "{words:?}");
        // Nothing can be said of a host that does nothing, and something of one that others keep busy.
        assert!(told(&served, std::iter::repeat_n(2.0, 600)).is_empty());
        let busy = Served {
            processors: 200.0,
            ..served
        };
        assert!(!told(&busy, std::iter::repeat_n(0.4, 600)).is_empty());
    }

    #[test]
    fn a_figure_that_a_slow_start_made_too_low_does_not_keep_requests_away_for_ever() {
        let mut learner = Learner::new(0, Moment::START);
        let (mut answers, mut words) = (0.0, Vec::new());
        // Warming up keeps the host busy; then hardly anybody asks, as it is known to be able to do little; then all do.
        let start = std::iter::repeat_n((1.0, 1.0), 60);
        let shunned = std::iter::repeat_n((0.2, 0.02), 400);
        let asked = std::iter::repeat_n((200.0, 0.5), 120);
        for (second, (rate, busy)) in start.chain(shunned).chain(asked).enumerate() {
            answers += rate;
            let seen = Seen {
                answers: answers as u64,
                latency: Some(0.010),
                busy,
            };
            let now = Moment::START + SAMPLE * (second as u32 + 1);
            words.extend(learner.sample(&seen, now).map(|word| (second, word)));
        }
        let [
            (_, Word::Tell(low)),
            (forgotten, Word::Forget),
            (_, Word::Tell(right)),
            ..,
        ] = words[..]
        else {
            panic!("{words:?}");
        };
        assert!(low <= 2, "{words:?}");
        assert!((300..=361).contains(&forgotten), "{words:?}");
        assert!((370..=430).contains(&right), "{words:?}");
        assert_eq!(words.len(), 3, "{words:?}");
    }

    #[test]
    fn figures_are_steps_of_ten_per_cent_within_bounds() {
        assert_eq!(rounded(0.0), 1);
        assert_eq!(rounded(f64::INFINITY), CAPACITY_MAX);
        for exact in [7.0, 95.0, 1_234.0, 56_789.0] {
            let off = f64::from(rounded(exact)) / exact - 1.0;
            assert!(off.abs() < 0.08, "{exact}: {off}");
        }
    }

    #[test]
    fn a_figure_of_a_few_is_no_trap() {
        for (told, real, next) in [(1, 400.0, 2), (2, 0.5, 1)] {
            let mut learner = Learner {
                told: Some((told, Moment::START)),
                done: real * 100.0,
                used: 100.0,
                watched: 1_000.0,
                ..Learner::new(0, Moment::START)
            };
            let now = Moment::START + TOLD_APART;
            assert_eq!(learner.news(now), Some(next));
        }
    }
}
