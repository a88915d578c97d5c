//! What the gossip counts, and its metrics.
//!
//! Not here: members by state, which whoever builds the snapshot knows too.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use mesh_core::{membership::Membership, moment::Moment};
use mesh_proto::frame::{KeyId, Reject};
use metrics::{Counter, Gauge, counter, gauge};

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Datagrams received, noise included.
    pub datagrams_in: AtomicU64,
    /// Datagrams sent.
    pub datagrams_out: AtomicU64,
    /// Their bytes.
    pub bytes_in: AtomicU64,
    /// Their bytes.
    pub bytes_out: AtomicU64,
    /// Bytes of streams received, as far as they made sense.
    pub stream_bytes_in: AtomicU64,
    /// Bytes of streams sent.
    pub stream_bytes_out: AtomicU64,
    /// Datagrams that the system would not take at once.
    pub unsent: AtomicU64,
    /// Datagrams and streams dropped unread: one count for each reason.
    pub rejected: [AtomicU64; REASONS.len()],
    /// Streams closed because too many were open.
    pub streams_refused: AtomicU64,
}

/// All reasons, in the order of their counts.
const REASONS: [Reject; 8] = [
    Reject::Malformed,
    Reject::Version,
    Reject::Key,
    Reject::Tag,
    Reject::Replayed,
    Reject::OldBoot,
    Reject::FutureBoot,
    Reject::Full,
];

impl Counters {
    /// Counts a datagram or stream that was dropped unread.
    pub fn reject(&self, reason: Reject) {
        let at = REASONS.iter().position(|known| *known == reason);
        if let Some(count) = at.and_then(|at| self.rejected.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were dropped for any reason.
    pub fn rejected_total(&self) -> u64 {
        self.rejected
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }
}

/// Keys whose use is counted; whoever rotates more often between two restarts misses the counts of the last ones.
const KEYS_MAX: usize = 64;

/// Owners told by name at once that have known something else than we for longest.
const BEHIND_MAX: usize = 16;

/// Owners ever told by name: a family of metrics forgets none.
const BEHIND_NAMES_MAX: usize = 256;

/// How much each key was used since the start, those no longer in the ring included.
#[derive(Default)]
pub struct KeyUse {
    keys: BTreeMap<KeyId, Used>,
}

struct Used {
    sealed: (u64, Counter),
    opened: (u64, Counter),
}

impl KeyUse {
    fn of(&mut self, key: KeyId) -> Option<&mut Used> {
        if !self.keys.contains_key(&key) && self.keys.len() >= KEYS_MAX {
            return None;
        }
        let used = self.keys.entry(key).or_insert_with(|| Used {
            sealed: (
                0,
                counter!("starling_gossip_sealed_total", "key" => key.to_string()),
            ),
            opened: (
                0,
                counter!("starling_gossip_opened_total", "key" => key.to_string()),
            ),
        });
        Some(used)
    }

    /// Shows these keys from now on, used or not.
    pub fn show(&mut self, keys: impl IntoIterator<Item = KeyId>) {
        for key in keys {
            self.of(key);
        }
    }

    /// Something was sealed; `None`: in clear.
    pub fn sealed(&mut self, key: Option<KeyId>) {
        if let Some(used) = key.and_then(|key| self.of(key)) {
            used.sealed.0 += 1;
        }
    }

    /// Something was opened; `None`: in clear.
    pub fn opened(&mut self, key: Option<KeyId>) {
        if let Some(used) = key.and_then(|key| self.of(key)) {
            used.opened.0 += 1;
        }
    }

    /// Each key with how often it sealed and opened.
    pub fn counts(&self) -> impl Iterator<Item = (KeyId, u64, u64)> + '_ {
        let keys = self.keys.iter();
        keys.map(|(key, used)| (*key, used.sealed.0, used.opened.0))
    }

    /// Brings the metrics up to date.
    pub fn update(&self) {
        for used in self.keys.values() {
            for (count, meter) in [&used.sealed, &used.opened] {
                meter.absolute(*count);
            }
        }
    }
}

/// The same as metrics; handles made once.
pub struct Meters {
    datagrams: [Counter; 2],
    bytes: [Counter; 2],
    stream_bytes: [Counter; 2],
    unsent: Counter,
    refused: Vec<Counter>,
    streams_refused: Counter,
    malformed: Counter,
    exchanges_begun: Counter,
    exchanges_done: Counter,
    suspicions: Counter,
    originated: Counter,
    refuted: Counter,
    confirmed: Counter,
    confirmations: Counter,
    renewals: Counter,
    probes: [Counter; 2],
    absurd: Counter,
    news: Counter,
    records_refused: Counter,
    isolated: Gauge,
    divergent: Gauge,
    divergence: Gauge,
    behind: BTreeMap<Box<str>, Gauge>,
    health: Gauge,
    round_trips: BTreeMap<Box<str>, Gauge>,
    records: Gauge,
    rumours: Gauge,
    turn: Gauge,
}

impl Meters {
    /// Registers them.
    pub fn new() -> Meters {
        let datagrams = "starling_gossip_datagrams_total";
        let bytes = "starling_gossip_bytes_total";
        let refused = "starling_gossip_refused_total";
        let exchanges = "starling_gossip_exchanges_total";
        let streams = "starling_gossip_stream_bytes_total";
        let probes = "starling_gossip_probes_total";
        let ended = "starling_gossip_suspicions_ended_total";
        Meters {
            datagrams: ["in", "out"].map(|direction| counter!(datagrams, "direction" => direction)),
            bytes: ["in", "out"].map(|direction| counter!(bytes, "direction" => direction)),
            stream_bytes: ["in", "out"]
                .map(|direction| counter!(streams, "direction" => direction)),
            unsent: counter!("starling_gossip_unsent_total"),
            refused: REASONS
                .map(|reason| counter!(refused, "reason" => reason.word()))
                .into(),
            streams_refused: counter!(refused, "reason" => "streams"),
            malformed: counter!(refused, "reason" => "items"),
            absurd: counter!(refused, "reason" => "absurd"),
            probes: ["answered", "failed"].map(|result| counter!(probes, "result" => result)),
            confirmations: counter!("starling_gossip_confirmations_total"),
            exchanges_begun: counter!(exchanges, "result" => "begun"),
            exchanges_done: counter!(exchanges, "result" => "done"),
            suspicions: counter!("starling_gossip_suspicions_total"),
            originated: counter!("starling_gossip_suspicions_originated_total"),
            refuted: counter!(ended, "result" => "refuted"),
            confirmed: counter!(ended, "result" => "confirmed"),
            renewals: counter!("starling_gossip_renewals_total"),
            news: counter!("starling_gossip_news_total"),
            records_refused: counter!("starling_gossip_records_refused_total"),
            isolated: gauge!("starling_gossip_isolated"),
            divergent: gauge!("starling_gossip_divergent_peers"),
            divergence: gauge!("starling_gossip_divergence_seconds"),
            behind: BTreeMap::new(),
            health: gauge!("starling_gossip_health_score"),
            round_trips: BTreeMap::new(),
            records: gauge!("starling_gossip_records"),
            rumours: gauge!("starling_gossip_backlog"),
            turn: gauge!("starling_gossip_turn_seconds"),
        }
    }

    /// Brings them up to date.
    pub fn update(&mut self, counters: &Counters, membership: &Membership, now: Moment) {
        let counts = &membership.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        self.datagrams[0].absolute(read(&counters.datagrams_in));
        self.datagrams[1].absolute(read(&counters.datagrams_out));
        self.bytes[0].absolute(read(&counters.bytes_in));
        self.bytes[1].absolute(read(&counters.bytes_out));
        self.stream_bytes[0].absolute(read(&counters.stream_bytes_in));
        self.stream_bytes[1].absolute(read(&counters.stream_bytes_out));
        self.unsent.absolute(read(&counters.unsent));
        for (meter, count) in self.refused.iter().zip(&counters.rejected) {
            meter.absolute(read(count));
        }
        self.streams_refused
            .absolute(read(&counters.streams_refused));
        self.malformed.absolute(counts.malformed);
        self.exchanges_begun.absolute(counts.exchanges_begun);
        self.exchanges_done.absolute(counts.exchanges_done);
        self.suspicions.absolute(counts.suspicions);
        self.originated.absolute(membership.originated());
        self.refuted.absolute(counts.refuted);
        self.confirmed.absolute(counts.confirmed);
        self.confirmations.absolute(counts.confirmations);
        self.probes[0].absolute(counts.probes_answered);
        self.probes[1].absolute(counts.probes_failed);
        self.absurd.absolute(counts.absurd);
        self.news.absolute(counts.news);
        self.records_refused.absolute(counts.refused);
        self.renewals.absolute(counts.renewals);
        let (records, rumours) = membership.backlog();
        self.records.set(records as f64);
        self.rumours.set(rumours as f64);
        let (divergent, longest) = membership.divergence(now);
        self.divergent.set(divergent as f64);
        self.divergence.set(longest.as_secs_f64());
        self.update_behind(membership.behind(BEHIND_MAX, now));
        self.health.set(f64::from(membership.score()));
        // The core remembers a bounded number of zones.
        for (zone, took) in membership.round_trips() {
            if !self.round_trips.contains_key(zone) {
                let gauge = gauge!("starling_gossip_rtt_seconds", "peer_zone" => zone.to_owned());
                self.round_trips.insert(zone.into(), gauge);
            }
            if let Some(gauge) = self.round_trips.get(zone) {
                gauge.set(took.as_secs_f64());
            }
        }
    }

    fn update_behind(&mut self, behind: Vec<(&str, Duration)>) {
        for gauge in self.behind.values() {
            gauge.set(0.0);
        }
        for (name, span) in behind {
            if self.behind.len() < BEHIND_NAMES_MAX && !self.behind.contains_key(name) {
                let family = "starling_gossip_owner_divergence_seconds";
                let gauge = gauge!(family, "peer" => name.to_owned());
                self.behind.insert(name.into(), gauge);
            }
            if let Some(gauge) = self.behind.get(name) {
                gauge.set(span.as_secs_f64());
            }
        }
    }

    /// Whether we are cut off.
    pub fn isolated(&self, isolated: bool) {
        self.isolated.set(if isolated { 1.0 } else { 0.0 });
    }

    /// The longest turn of late, in seconds.
    pub fn turn(&self, seconds: f64) {
        self.turn.set(seconds);
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn who_knows_something_else_is_shown_until_it_agrees_and_only_so_many_by_name() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let mut meters = Meters::new();
            let span = Duration::from_millis(1_500);
            let shown = |peer: &str, seconds: &str| {
                let line = format!(
                    "starling_gossip_owner_divergence_seconds{{peer=\"{peer}\"}} {seconds}\n"
                );
                recorder.handle().render().contains(&line)
            };
            meters.update_behind(vec![("web-1", span), ("web-2", span * 2)]);
            assert!(shown("web-1", "1.5") && shown("web-2", "3"));
            meters.update_behind(vec![("web-2", span * 3)]);
            assert!(shown("web-1", "0") && shown("web-2", "4.5"));

            let names: Vec<String> = (0..2 * BEHIND_NAMES_MAX)
                .map(|n| format!("db-{n}"))
                .collect();
            for name in &names {
                meters.update_behind(vec![(name, span)]);
            }
            let text = recorder.handle().render();
            let lines = text.matches("starling_gossip_owner_divergence_seconds{");
            assert_eq!(lines.count(), BEHIND_NAMES_MAX);
        });
    }
}
