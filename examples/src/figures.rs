//! What a load run came to: counts by kind, and latencies in buckets of one per cent.
//!
//! Not here: how requests are sent (`load.rs`).

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

/// Buckets to each doubling of latency: neighbours differ by about 1 %.
const BUCKETS_PER_DOUBLING: u32 = 64;
/// Doublings covered, from 1 µs: about 67 s, beyond which all falls into the last bucket.
const DOUBLINGS_MAX: u32 = 26;

/// Latencies, counted in logarithmic buckets so that memory does not grow with the run.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies {
            counts: vec![0; (BUCKETS_PER_DOUBLING * DOUBLINGS_MAX) as usize],
            total: 0,
        }
    }
}

impl Latencies {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let micros = (latency.as_micros().max(1) as f64).log2();
        let bucket = (micros * f64::from(BUCKETS_PER_DOUBLING)) as usize;
        let last = self.counts.len() - 1;
        self.counts[bucket.min(last)] += 1;
        self.total += 1;
    }

    /// The latency, in milliseconds, that `share` (0 to 1) of all stayed within; 0 when none was counted.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                let exponent = (bucket as f64 + 0.5) / f64::from(BUCKETS_PER_DOUBLING);
                return exponent.exp2() / 1000.0;
            }
        }
        0.0
    }
}

/// What one load run came to.
#[derive(Clone, Default, Debug)]
pub struct Figures {
    /// Requests whose time had come.
    pub sent: u64,
    /// Answered below 400.
    pub ok: u64,
    /// Everything else, by kind: `status_503`, `refused`, `connect`, `broken`, `body`, `timeout`, `too_many_open`.
    pub failed: BTreeMap<String, u64>,
    /// Sent again on a new connection because a kept one had been closed before any answer byte.
    pub reopened: u64,
    /// From the moment a request was due, not from when it could be sent.
    pub latencies: Latencies,
    /// Good answers by the value of the zone header.
    pub zones: BTreeMap<String, u64>,
}

impl Figures {
    /// How many failed, of whatever kind.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Share (0 to 1) of the good answers that came from `zone`.
    pub fn zone_share(&self, zone: &str) -> f64 {
        let all: u64 = self.zones.values().sum();
        let of_zone = self.zones.get(zone).copied().unwrap_or(0);
        if all == 0 {
            return 0.0;
        }
        of_zone as f64 / all as f64
    }

    /// The figures as one JSON object; latencies in milliseconds, shares from 0 to 1.
    pub fn to_json(&self) -> Value {
        let shares: BTreeMap<&String, f64> = self
            .zones
            .keys()
            .map(|zone| (zone, (self.zone_share(zone) * 1000.0).round() / 1000.0))
            .collect();
        json!({
            "sent": self.sent,
            "ok": self.ok,
            "failed": self.failures(),
            "failed_by_kind": self.failed,
            "reopened": self.reopened,
            "p50_ms": rounded(self.latencies.quantile_ms(0.5)),
            "p90_ms": rounded(self.latencies.quantile_ms(0.9)),
            "p99_ms": rounded(self.latencies.quantile_ms(0.99)),
            "p999_ms": rounded(self.latencies.quantile_ms(0.999)),
            "zone_share": shares,
        })
    }
}

fn rounded(milliseconds: f64) -> f64 {
    (milliseconds * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_true_within_two_per_cent() {
        let mut latencies = Latencies::default();
        for millisecond in 1..=1000 {
            latencies.record(Duration::from_millis(millisecond));
        }
        let median = latencies.quantile_ms(0.5);
        assert!((490.0..=510.0).contains(&median), "{median}");
        let late = latencies.quantile_ms(0.99);
        assert!((970.0..=1010.0).contains(&late), "{late}");
    }

    #[test]
    fn shares_are_of_the_good_answers() {
        let mut figures = Figures::default();
        figures.zones.insert("a".into(), 30);
        figures.zones.insert("b".into(), 10);
        assert!((figures.zone_share("a") - 0.75).abs() < 1e-9);
        assert!(figures.zone_share("c") < 1e-9);
    }
}
