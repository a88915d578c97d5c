//! What our own applications ask of each service: smoothed, rounded, and told only when it changed enough.
//!
//! Not here: counting requests (`upstream.rs`), the clock, and how the figures travel (`membership/offers.rs`).

use std::{collections::BTreeMap, time::Duration};

use crate::moment::Moment;

/// How often the counts should be looked at.
pub const SAMPLE: Duration = Duration::from_millis(500);

/// Services whose demand one node tells; those asked most of come first.
pub const SERVICES_MAX: usize = 32;

/// How fast old counts are forgotten.
const TAU: Duration = Duration::from_secs(2);

/// Nothing is told of a service before it was watched for this long.
const WATCHED_MIN: Duration = Duration::from_millis(900);

/// Chance is not reckoned for less than this many seconds.
const WATCHED_LEAST_S: f64 = 0.5;

/// Between two words about one service.
const TOLD_APART: Duration = Duration::from_secs(1);

/// Figures are rounded to powers of this: 2 % from one to the next. It is [`CHANGE`] that spares words; coarser steps
/// would spare none and put zones that are asked for the same up to 10 % apart.
const ROUNDING: f64 = 1.02;

/// A figure is told anew when it is off by more than this part of it.
const CHANGE: f64 = 0.10;

/// And by so many standard deviations of mere chance: few requests scatter widely. It is asked twice a second in every
/// zone, so a rarer accident than the usual three is wanted.
const CHANCE: f64 = 4.0;

/// Steady counts are remembered for longer, to know a demand better that was told in a hurry.
const TAU_STEADY: Duration = Duration::from_secs(20);

/// The better figure is told when the one told before is off by more than this part of it.
const CHANGE_STEADY: f64 = 0.04;

/// And by so many standard deviations.
const CHANCE_STEADY: f64 = 3.0;

/// Between two words about a service whose demand only drifts.
const TOLD_APART_STEADY: Duration = Duration::from_secs(8);

/// A figure that stands on this many times the requests of the one told replaces it, however near they are: the one
/// told may be off by the whole of its own chance, and nobody could tell. Doublings come to an end with [`TAU_STEADY`].
const KNOWN_BETTER: f64 = 2.0;

/// Less than this many requests per second count as none.
const RATE_MIN: f64 = 0.5;

/// A service of which nothing was asked for so long is not told of at all any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Words told at one sample, the largest changes first: ten per second.
const TOLD_MAX: usize = 5;

/// A word for the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Word {
    /// So many requests per second are asked of this service.
    Tell {
        /// The service.
        service: Box<str>,
        /// Requests per second.
        per_second: u32,
    },
    /// Nothing is asked of it any more.
    Forget {
        /// The service.
        service: Box<str>,
    },
}

/// Measures demand from counts that only grow.
#[derive(Debug, Default)]
pub struct Meter {
    services: BTreeMap<Box<str>, Track>,
}

#[derive(Debug)]
struct Track {
    count: u64,
    began: Moment,
    sampled: Moment,
    quick: Rate,
    steady: Rate,
    told: Option<Told>,
    asked: Moment,
}

/// What the others were told last.
#[derive(Clone, Copy, Debug)]
struct Told {
    per_second: u32,
    at: Moment,
    /// Requests that the figure stands on.
    requests: f64,
}

/// A figure worth telling.
struct News {
    /// By what factor it differs from what was told, 1 or more; the rate itself for a service never told of.
    factor: f64,
    per_second: u32,
    requests: f64,
}

/// Rounded to the nearest step of 2 %; below `RATE_MIN` it is 0.
pub fn rounded(per_second: f64) -> u32 {
    if per_second < RATE_MIN {
        return 0;
    }
    let step = (per_second.ln() / ROUNDING.ln()).round();
    // Above 2^32 requests per second the cast saturates.
    ROUNDING.powf(step).round().max(1.0) as u32
}

impl Meter {
    /// Takes in how many requests were ever made to each service, and yields what is to be told.
    ///
    /// A count that fell (one of its upstreams is gone, or was configured anew) is no request: it goes on from there.
    pub fn sample<'a>(
        &mut self,
        counts: impl Iterator<Item = (&'a str, u64)>,
        now: Moment,
    ) -> Vec<Word> {
        for (service, count) in counts {
            match self.services.get_mut(service) {
                Some(track) => track.take(count, now),
                None => {
                    self.services.insert(service.into(), Track::new(count, now));
                }
            }
        }
        for track in self.services.values_mut() {
            // Its upstream is gone: nothing is asked through it.
            if track.sampled < now {
                let count = track.count;
                track.take(count, now);
            }
        }
        let mut words = self.forget(now);
        words.extend(self.tell(now));
        words
    }

    /// Requests per second as smoothed now.
    pub fn per_second(&self, service: &str) -> f64 {
        self.services.get(service).map_or(0.0, Track::rate)
    }

    fn forget(&mut self, now: Moment) -> Vec<Word> {
        let mut words = Vec::new();
        self.services.retain(|service, track| {
            let keep = now.since(track.asked) < FORGOTTEN_AFTER;
            if !keep && track.told.is_some() {
                let service = service.clone();
                words.push(Word::Forget { service });
            }
            keep
        });
        words
    }

    fn tell(&mut self, now: Moment) -> Vec<Word> {
        let told = self.services.values().filter(|t| t.told.is_some()).count();
        let mut due: Vec<(News, &Box<str>, &mut Track)> = (self.services.iter_mut())
            .filter_map(|(service, track)| Some((track.news(now)?, service, track)))
            .collect();
        due.sort_by(|(a, x, _), (b, y, _)| b.factor.total_cmp(&a.factor).then_with(|| x.cmp(y)));
        let mut room = SERVICES_MAX.saturating_sub(told);
        let mut words = Vec::new();
        for (news, service, track) in due {
            if words.len() == TOLD_MAX || (track.told.is_none() && room == 0) {
                continue;
            }
            room -= usize::from(track.told.is_none());
            track.told = Some(Told {
                per_second: news.per_second,
                at: now,
                requests: news.requests,
            });
            words.push(Word::Tell {
                service: service.clone(),
                per_second: news.per_second,
            });
        }
        words
    }
}

impl Track {
    fn new(count: u64, now: Moment) -> Track {
        Track {
            count,
            began: now,
            sampled: now,
            quick: Rate::new(TAU),
            steady: Rate::new(TAU_STEADY),
            told: None,
            asked: now,
        }
    }

    fn take(&mut self, count: u64, now: Moment) {
        let new = count.saturating_sub(self.count);
        let elapsed = now.since(self.sampled);
        self.quick.take(new, elapsed);
        self.steady.take(new, elapsed);
        (self.count, self.sampled) = (count, now);
        if new > 0 {
            self.asked = now;
        }
    }

    fn rate(&self) -> f64 {
        self.quick.per_second()
    }

    /// What is to be told now; `None` if nothing is worth a word.
    fn news(&mut self, now: Moment) -> Option<News> {
        let Some(told) = &self.told else {
            let is_watched = now.since(self.began) >= WATCHED_MIN;
            let news = self.quick.news(RATE_MIN);
            return (is_watched && news.per_second > 0).then_some(news);
        };
        let since = now.since(told.at);
        let known = f64::from(told.per_second);
        let is_new = |news: News| (f64::from(news.per_second) != known).then_some(news);
        if since >= TOLD_APART && self.quick.differs(told, CHANGE, CHANCE) {
            // What was counted before the change says nothing of what comes after it.
            self.steady = Rate {
                tau: TAU_STEADY,
                ..self.quick
            };
            return is_new(self.quick.news(known));
        }
        let drifts = self.steady.differs(told, CHANGE_STEADY, CHANCE_STEADY);
        let is_better = (since >= TOLD_APART
            && self.steady.known() >= KNOWN_BETTER * told.requests)
            || (since >= TOLD_APART_STEADY && drifts);
        is_better.then(|| self.steady.news(known)).and_then(is_new)
    }
}

/// By what factor two rates differ, 1 or more.
fn factor(a: f64, b: f64) -> f64 {
    a.max(b) / a.min(b).max(RATE_MIN)
}

/// Requests and seconds, both forgotten at the same pace: their ratio is unbiased from the first sample on.
#[derive(Clone, Copy, Debug)]
struct Rate {
    tau: Duration,
    requests: f64,
    seconds: f64,
    /// The same seconds forgotten twice as fast: what it takes to know how well the ratio is known.
    squares: f64,
}

impl Rate {
    fn new(tau: Duration) -> Rate {
        Rate {
            tau,
            requests: 0.0,
            seconds: 0.0,
            squares: 0.0,
        }
    }

    fn take(&mut self, requests: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let kept = (-seconds / self.tau.as_secs_f64()).exp();
        self.requests = self.requests * kept + requests as f64;
        self.seconds = self.seconds * kept + seconds;
        self.squares = self.squares * kept * kept + seconds;
    }

    fn per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.requests / self.seconds
        } else {
            0.0
        }
    }

    /// Seconds at equal weight that would tell as much.
    fn watched(&self) -> f64 {
        self.seconds * self.seconds / self.squares.max(f64::MIN_POSITIVE)
    }

    /// Requests that the figure stands on.
    fn known(&self) -> f64 {
        self.per_second() * self.watched()
    }

    /// This figure, where `known` was told.
    fn news(&self, known: f64) -> News {
        News {
            factor: factor(self.per_second(), known),
            per_second: rounded(self.per_second()),
            requests: self.known(),
        }
    }

    /// Whether what was told is off by more than `part` of it and by more than so many deviations, or nothing is left
    /// of it.
    fn differs(&self, told: &Told, part: f64, deviations: f64) -> bool {
        let (rate, known) = (self.per_second(), f64::from(told.per_second));
        // Counts scatter by their root, those that were told as well as those of now.
        let now = known.max(rate) / self.watched().max(WATCHED_LEAST_S);
        let then = known * known / told.requests.max(1.0);
        let chance = deviations * (now + then).sqrt();
        let off = (rate - known).abs();
        off > (known * part).max(chance.min(known)) || rounded(rate) == 0
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// Samples a service asked of at these rates, one per sample, and yields what was told and when (in samples).
    fn told(rates: impl IntoIterator<Item = f64>) -> Vec<(usize, u32)> {
        let mut meter = Meter::default();
        let (mut count, mut words) = (0.0, Vec::new());
        meter.sample([("s", 0)].into_iter(), Moment::START);
        for (sample, rate) in rates.into_iter().enumerate() {
            count += rate * SAMPLE.as_secs_f64();
            let now = Moment::START + SAMPLE * (sample as u32 + 1);
            for word in meter.sample([("s", count as u64)].into_iter(), now) {
                match word {
                    Word::Tell { per_second, .. } => words.push((sample, per_second)),
                    Word::Forget { .. } => words.push((sample, u32::MAX)),
                }
            }
        }
        words
    }

    #[test]
    fn a_steady_demand_is_told_once_and_within_two_per_cent() {
        for rate in [1.0, 7.0, 60.0, 100.0, 1_000.0, 50_000.0] {
            let words = told(std::iter::repeat_n(rate, 240));
            assert_eq!(words.len(), 1, "{rate}: {words:?}");
            let (sample, figure) = words[0];
            assert!(sample <= 2, "{words:?}");
            assert!(
                (f64::from(figure) / rate - 1.0).abs() < 0.02 || rate < 10.0,
                "{words:?}"
            );
        }
    }

    /// Requests of half a second each, at random times at this mean rate.
    fn at_random(rate: f64, seconds: u32, rng: &mut StdRng) -> Vec<f64> {
        let mut due = 0.0;
        let mut counts = vec![0.0; seconds as usize * 2];
        loop {
            due -= (1.0 - rng.random::<f64>()).ln() / rate;
            let Some(count) = counts.get_mut((due * 2.0) as usize) else {
                return counts.iter().map(|n| n * 2.0).collect();
            };
            *count += 1.0;
        }
    }

    #[test]
    fn random_demand_comes_to_be_known_well_in_few_words_and_then_rests() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut off = 0.0;
        const RUNS: u32 = 40;
        for _ in 0..RUNS {
            let words = told(at_random(66.0, 120, &mut rng));
            let late = words.iter().filter(|(sample, _)| *sample > 100).count();
            assert!(words.len() <= 8 && late <= 1, "{words:?}");
            let last = f64::from(words.last().expect("told").1);
            off += (last / 66.0 - 1.0).powi(2) / f64::from(RUNS);
        }
        // Forty seconds of 66 per second are known to 2 %; a figure told at half of that, to 3 %.
        assert!(f64::sqrt(off) < 0.03, "{}", f64::sqrt(off));
    }

    #[test]
    fn a_changed_demand_is_told_at_most_once_a_second_and_ends_near_the_truth() {
        let rates = [100.0; 20].into_iter().chain([180.0; 40]);
        let words = told(rates);
        let apart = words.windows(2).all(|w| w[1].0 - w[0].0 >= 2);
        assert!(apart && words.len() <= 6, "{words:?}");
        let last = f64::from(words.last().expect("told").1);
        assert!((last / 180.0 - 1.0).abs() < 0.1, "{words:?}");
    }

    #[test]
    fn an_end_is_told_as_nothing_and_forgotten_much_later() {
        let rates = [100.0; 20].into_iter().chain([0.0; 1_300]);
        let words = told(rates);
        let zero = words.iter().find(|(_, figure)| *figure == 0).expect("told");
        // A few time constants until less than half a request per second is left.
        assert!(zero.0 < 20 + 40, "{words:?}");
        assert_eq!(words.last().map(|(_, figure)| *figure), Some(u32::MAX));
    }

    #[test]
    fn a_count_that_falls_is_no_request() {
        let mut meter = Meter::default();
        // Of two upstreams one goes after 20 samples, and takes its ten million requests with it.
        for sample in 0..40 {
            let gone = if sample < 20 { 10_000_000 } else { 0 };
            let now = Moment::START + SAMPLE * sample;
            let count = gone + 5_000_000 + 50 * u64::from(sample);
            meter.sample([("s", count)].into_iter(), now);
            assert!(meter.per_second("s") < 101.0, "{sample}");
        }
        assert!(meter.per_second("s") > 90.0);
    }

    #[test]
    fn the_scatter_of_few_requests_is_no_news() {
        // Ten per second, as chance has it: 2 to 8 in each half second.
        let scatter = [5.0, 8.0, 2.0, 6.0, 4.0, 7.0, 3.0, 5.0].map(|n| n * 2.0);
        let words = told(scatter.into_iter().cycle().take(400));
        // What the first second said is put right as more is known; nothing else is worth a word.
        assert!(words.len() <= 3, "{words:?}");
        assert!(words.iter().all(|(sample, _)| *sample < 30), "{words:?}");
        assert_eq!(words.last().map(|(_, figure)| *figure), Some(10));
    }

    #[test]
    fn only_so_many_services_are_told_of() {
        let names: Vec<String> = (0..50).map(|n| format!("s{n:02}")).collect();
        let mut meter = Meter::default();
        let mut told = BTreeMap::new();
        for sample in 0..60u32 {
            let counts = names.iter().enumerate();
            let counts = counts.map(|(n, name)| (&**name, u64::from(sample) * (n as u64 + 1)));
            let words = meter.sample(counts, Moment::START + SAMPLE * sample);
            assert!(words.len() <= TOLD_MAX);
            for word in words {
                if let Word::Tell {
                    service,
                    per_second,
                } = word
                {
                    told.insert(service, per_second);
                }
            }
        }
        assert_eq!(told.len(), SERVICES_MAX);
        assert!(
            told.contains_key("s49") && !told.contains_key("s00"),
            "{told:?}"
        );
    }
}
