//! What a play came to: quantiles, errors, shares, and how they moved.
//!
//! Not here: what is asked of them (`verdict.rs`).

use std::time::Duration;

use crate::moment::Moment;

use super::{
    fleet::Ended,
    scenario::{Scenario, ZONES},
};

/// One attempt that is over.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Sample {
    pub began: Moment,
    pub latency: Duration,
    pub client: usize,
    pub backend: usize,
    pub ended: Ended,
}

/// Everything that was counted in one play, or in several of one scenario.
#[derive(Clone, PartialEq, Debug)]
pub struct Tally {
    samples: Vec<Sample>,
    bad: Vec<bool>,
    has_zones: bool,
    warm_up: Moment,
    span: Duration,
    refused: u64,
}

/// A tally in numbers. Latencies are of good answers and of those that never came, which count as the client's
/// whole patience: a quick error is no quick answer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Figures {
    /// Attempts counted.
    pub requests: u64,
    /// Latency quantiles in milliseconds: 0.5, 0.9, 0.99, 0.999.
    pub quantiles_ms: [f64; 4],
    /// Share of attempts that came to nothing.
    pub errors: f64,
    /// Share of attempts that went to bad backends.
    pub bad_share: f64,
    /// Largest share of one backend as a multiple of the smallest of those that are not bad.
    pub spread: f64,
    /// Share of attempts that each zone got; `None` where there are no zones.
    pub zones: Option<[f64; ZONES]>,
    /// Share of attempts that left the zone of their client.
    pub away: f64,
}

/// The quantiles that [`Figures`] holds.
pub const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// One stretch of time.
#[derive(Clone, PartialEq, Debug)]
pub struct Stretch {
    /// Its middle, in seconds since the start.
    pub at_s: f64,
    /// Latency in milliseconds, 0.99 quantile; 0 where nothing ended.
    pub p99_ms: f64,
    /// Share of attempts that came to nothing.
    pub errors: f64,
    /// Share of each backend.
    pub shares: Vec<f64>,
}

impl Tally {
    pub(super) fn new(scenario: &Scenario) -> Tally {
        Tally {
            samples: Vec::new(),
            bad: scenario.backends.iter().map(|b| b.bad).collect(),
            has_zones: scenario.zones.is_some(),
            warm_up: Moment::START + scenario.warm_up,
            span: scenario.span,
            refused: 0,
        }
    }

    pub(super) fn count(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// A client had nobody to ask.
    pub(super) fn refused(&mut self, now: Moment) {
        self.refused += u64::from(now >= self.warm_up);
    }

    /// Adds another play of the same scenario.
    pub fn add(&mut self, other: Tally) {
        self.samples.extend(other.samples);
        self.refused += other.refused;
    }

    /// The numbers, without the warm-up.
    pub fn figures(&self) -> Figures {
        let counted = || self.samples.iter().filter(|s| s.began >= self.warm_up);
        let requests = counted().count() as u64 + self.refused;
        let failed = counted().filter(|s| s.ended != Ended::Well).count() as u64 + self.refused;
        let shares = self.shares(counted());
        let part = |count: f64| count / (requests as f64).max(1.0);
        let of_bad = shares.iter().zip(&self.bad).filter(|(_, bad)| **bad);
        let good = shares.iter().zip(&self.bad).filter(|(_, bad)| !**bad);
        let (least, most) = good.fold((f64::INFINITY, 0.0_f64), |(least, most), (share, _)| {
            (least.min(*share), most.max(*share))
        });
        let latencies = latencies(counted());
        Figures {
            requests,
            quantiles_ms: QUANTILES.map(|q| quantile(&latencies, q)),
            errors: part(failed as f64),
            // A sum of nothing is minus zero.
            bad_share: of_bad.fold(0.0, |sum, (share, _)| sum + share),
            spread: most / least,
            zones: self.has_zones.then(|| by_zone(&shares)),
            away: part(if self.has_zones {
                counted()
                    .filter(|s| s.client % ZONES != s.backend % ZONES)
                    .count() as f64
            } else {
                0.0
            }),
        }
    }

    /// The play cut into stretches of this length, the warm-up included.
    pub fn stretches(&self, length: Duration) -> Vec<Stretch> {
        let count = (self.span.as_secs_f64() / length.as_secs_f64()).ceil() as usize;
        let mut parts: Vec<Vec<Sample>> = vec![Vec::new(); count];
        for sample in &self.samples {
            let at = (sample.began.as_nanos() / length.as_nanos().max(1) as u64) as usize;
            if let Some(part) = parts.get_mut(at) {
                part.push(*sample);
            }
        }
        let parts = parts.iter().enumerate();
        parts
            .map(|(i, part)| {
                let failed = part.iter().filter(|s| s.ended != Ended::Well).count();
                Stretch {
                    at_s: (i as f64 + 0.5) * length.as_secs_f64(),
                    p99_ms: quantile(&latencies(part.iter()), 0.99),
                    errors: failed as f64 / (part.len() as f64).max(1.0),
                    shares: self.shares(part.iter()),
                }
            })
            .collect()
    }

    fn shares<'a>(&self, samples: impl Iterator<Item = &'a Sample>) -> Vec<f64> {
        let mut counts = vec![0.0; self.bad.len()];
        for sample in samples {
            counts[sample.backend] += 1.0;
        }
        let sum = counts.iter().sum::<f64>().max(1.0);
        counts.iter_mut().for_each(|count| *count /= sum);
        counts
    }
}

/// Shares of backends added up by their zones.
pub fn by_zone(shares: &[f64]) -> [f64; ZONES] {
    std::array::from_fn(|zone| shares.iter().skip(zone).step_by(ZONES).sum())
}

/// Sorted milliseconds.
fn latencies<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<f64> {
    let answered = samples.filter(|s| !s.ended.is_quick_error());
    let mut millis: Vec<f64> = answered.map(|s| s.latency.as_secs_f64() * 1e3).collect();
    millis.sort_unstable_by(f64::total_cmp);
    millis
}

/// The nearest rank; 0 of nothing.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_nearest_rank() {
        let sorted: Vec<f64> = (1..=1_000).map(f64::from).collect();
        assert_eq!(
            QUANTILES.map(|q| quantile(&sorted, q)),
            [500.0, 900.0, 990.0, 999.0]
        );
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[7.0], 0.999), 7.0);
    }
}
