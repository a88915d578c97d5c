//! What the demo's load came to, request by request: counts, shares, quantiles over any stretch of time.
//!
//! Not here: sending (`load.rs`), and what is claimed of the figures (`script.rs`).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::ZONES;

/// Requests remembered: ten minutes at the usual rate. The oldest are forgotten first.
const SAMPLES_MAX: usize = 600_000;
/// Different faults told apart; the rest is counted as `other`.
const FAULT_KINDS_MAX: usize = 16;

/// One request, from the moment it was due. Times are since the load began.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it should have been sent.
    pub due: Duration,
    /// When the client came to send it: later than due on a machine that is too busy.
    pub sent: Duration,
    /// When its answer was whole, or it failed.
    pub done: Duration,
    /// The index of the zone that answered well; `None`: it failed.
    pub zone: Option<usize>,
}

/// All requests so far, in the order in which they ended.
#[derive(Default, Debug)]
pub struct Ledger {
    samples: VecDeque<Sample>,
    faults: BTreeMap<String, u64>,
}

/// What a stretch of time came to. A request belongs to the stretch in which it was due.
#[derive(Clone, Default, Debug)]
pub struct Figures {
    /// Requests that were due.
    pub requests: u64,
    /// Those without a good answer.
    pub failed: u64,
    /// Good answers by zone.
    pub answered: [u64; ZONES],
    /// Latencies of good answers, sorted.
    latencies: Vec<Duration>,
    /// How late the client was with each request, sorted.
    lateness: Vec<Duration>,
}

impl Ledger {
    /// Takes one ended request in; `fault` says why it failed.
    pub fn record(&mut self, sample: Sample, fault: Option<String>) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        if let Some(fault) = fault {
            let known = self.faults.contains_key(&fault) || self.faults.len() < FAULT_KINDS_MAX;
            let kind = if known { fault } else { "other".to_owned() };
            *self.faults.entry(kind).or_default() += 1;
        }
    }

    /// What failed how often, since the beginning.
    pub fn faults(&self) -> &BTreeMap<String, u64> {
        &self.faults
    }

    /// The figures of all requests due from `from` until before `to`.
    pub fn between(&self, from: Duration, to: Duration) -> Figures {
        let mut figures = Figures::default();
        for sample in self.since(from) {
            if sample.due < from || sample.due >= to {
                continue;
            }
            figures.requests += 1;
            figures
                .lateness
                .push(sample.sent.saturating_sub(sample.due));
            match sample.zone {
                Some(zone) => {
                    figures.answered[zone] += 1;
                    figures
                        .latencies
                        .push(sample.done.saturating_sub(sample.due));
                }
                None => figures.failed += 1,
            }
        }
        figures.latencies.sort_unstable();
        figures.lateness.sort_unstable();
        figures
    }

    /// When, after `from`, the first good answer came that `zone` satisfies.
    pub fn first_answer(&self, from: Duration, zone: impl Fn(usize) -> bool) -> Option<Duration> {
        let good = self.since(from).filter(|s| s.zone.is_some_and(&zone));
        good.map(|sample| sample.done).last()
    }

    /// The longest time without any good answer, within `from` to `to`.
    pub fn longest_silence(&self, from: Duration, to: Duration) -> Duration {
        let good = self.since(from).filter(|s| s.zone.is_some() && s.done < to);
        let ends: Vec<Duration> = std::iter::once(to)
            .chain(good.map(|sample| sample.done))
            .chain([from])
            .collect();
        let gaps = ends.windows(2).map(|pair| pair[0] - pair[1]);
        gaps.max().unwrap_or_default()
    }

    /// All that ended at `from` or later, the newest first: whatever was due then is among them.
    fn since(&self, from: Duration) -> impl Iterator<Item = &Sample> {
        let newest_first = self.samples.iter().rev();
        newest_first.take_while(move |sample| sample.done >= from)
    }
}

impl Figures {
    /// Each zone's part of the good answers, 0 to 1; all 0 where there were none.
    pub fn shares(&self) -> [f64; ZONES] {
        let total = self.answered.iter().sum::<u64>().max(1);
        self.answered.map(|answered| answered as f64 / total as f64)
    }

    /// The latency, in milliseconds, that `share` (0 to 1) of the good answers stayed within; 0 without any.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        quantile_ms(&self.latencies, share)
    }

    /// How late, in milliseconds, the client sent all but the latest `1 − share` of the requests; 0 without any.
    pub fn late_ms(&self, share: f64) -> f64 {
        quantile_ms(&self.lateness, share)
    }
}

fn quantile_ms(sorted: &[Duration], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    let at = sorted.get(rank.saturating_sub(1));
    at.map_or(0.0, |span| span.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn ledger(samples: &[(u64, u64, Option<usize>)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (due, done, zone) in samples {
            let sample = Sample {
                due: ms(*due),
                sent: ms(*due),
                done: ms(*done),
                zone: *zone,
            };
            let fault = zone.is_none().then(|| "refused".to_owned());
            ledger.record(sample, fault);
        }
        ledger
    }

    #[test]
    fn a_request_belongs_to_the_stretch_in_which_it_was_due() {
        let ledger = ledger(&[
            (0, 1, Some(0)),
            (10, 11, None),
            (11, 12, Some(2)),
            (9, 500, Some(1)),
        ]);
        let early = ledger.between(ms(0), ms(10));
        assert_eq!((early.requests, early.failed), (2, 0));
        assert_eq!(early.shares(), [0.5, 0.5, 0.0]);
        assert_eq!(
            (early.quantile_ms(0.5), early.quantile_ms(1.0)),
            (1.0, 491.0)
        );
        let late = ledger.between(ms(10), ms(20));
        assert_eq!((late.requests, late.failed), (2, 1));
        assert_eq!(ledger.faults()["refused"], 1);
        assert_eq!(ledger.between(ms(50), ms(60)).quantile_ms(0.99), 0.0);
    }

    #[test]
    fn silence_and_first_answers_go_by_the_end_of_a_request() {
        let ledger = ledger(&[
            (0, 1, Some(0)),
            (1, 9, None),
            (2, 40, Some(1)),
            (3, 41, Some(0)),
        ]);
        assert_eq!(ledger.first_answer(ms(1), |zone| zone != 0), Some(ms(40)));
        assert_eq!(ledger.first_answer(ms(2), |zone| zone == 0), Some(ms(41)));
        assert_eq!(ledger.first_answer(ms(42), |_| true), None);
        assert_eq!(ledger.longest_silence(ms(0), ms(60)), ms(39));
        assert_eq!(ledger.longest_silence(ms(0), ms(200)), ms(159));
    }
}
