//! Every metric: its name, unit, labels and help, and the exporter that renders them.
//!
//! Not here: counting itself (handles are made once where something happens, and kept), and figures that are only
//! read off the snapshot when somebody asks (`admin/gauges.rs`).

use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::task::JoinHandle;

/// Upper bounds of the request duration's buckets, in seconds: half a millisecond is a local answer, 10 s is more
/// than most callers wait.
pub const DURATION_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// How often samples are folded into buckets; until then every one of them is kept.
const UPKEEP: Duration = Duration::from_secs(5);

/// Families that only grow: name, unit if it is not a plain count, help. Labels stand in the help.
const COUNTERS: &[(&str, Unit, &str)] = &[
    (
        "starling_requests_total",
        Unit::Count,
        "Requests answered, by upstream, code (HTTP status, 0 if the client went away) and flag (- unless the sidecar answered itself).",
    ),
    (
        "starling_attempts_total",
        Unit::Count,
        "Attempts at endpoints, by upstream and outcome; a request may need several.",
    ),
    (
        "starling_retries_total",
        Unit::Count,
        "Attempts beyond a request's first, by upstream.",
    ),
    (
        "starling_ejections_total",
        Unit::Count,
        "Endpoints sent out because they failed, by upstream.",
    ),
    (
        "starling_canaries_total",
        Unit::Count,
        "Attempts made to find out whether an endpoint or a zone is well again, by upstream; they may well fail.",
    ),
    (
        "starling_panic_total",
        Unit::Count,
        "Picks made against better knowledge because nobody else was left, by upstream.",
    ),
    (
        "starling_connections_refused_total",
        Unit::Count,
        "Connections closed unheard, by reason: limit (of the listener), all, per_client, busy, or client (not in outbound.clients).",
    ),
    (
        "starling_connections_ended_total",
        Unit::Count,
        "Connections ended by this sidecar, by reason: endpoint (relayed to one that is no longer to be called).",
    ),
    (
        "starling_access_log_dropped_total",
        Unit::Count,
        "Lines of the access log lost because its queue was full or it could not be written.",
    ),
    (
        "starling_datagrams_dropped_total",
        Unit::Count,
        "UDP datagrams lost here: no endpoint was left, or a buffer was full.",
    ),
    (
        "starling_client_faults_total",
        Unit::Count,
        "Connections ended because the client's bytes were not HTTP.",
    ),
    (
        "starling_client_floods_total",
        Unit::Count,
        "Clients of HTTP/2 cut off for asking much and bringing nothing, by kind: chatter, resets, refusals.",
    ),
    (
        "starling_requests_refused_total",
        Unit::Count,
        "Requests refused before any upstream was known, by flag.",
    ),
    (
        "starling_admin_requests_total",
        Unit::Count,
        "Requests to the admin API, by code.",
    ),
    (
        "starling_admin_refused_total",
        Unit::Count,
        "Admin connections and requests refused, by reason: limit, malformed, host, origin, token, write.",
    ),
    (
        "starling_gossip_datagrams_total",
        Unit::Count,
        "Gossip datagrams, by direction.",
    ),
    (
        "starling_gossip_bytes_total",
        Unit::Bytes,
        "Bytes of gossip datagrams (UDP payload, seal included), by direction.",
    ),
    (
        "starling_gossip_stream_bytes_total",
        Unit::Bytes,
        "Bytes of gossip streams (TCP payload: joins, exchanges and probes), by direction.",
    ),
    (
        "starling_gossip_unsent_total",
        Unit::Count,
        "Gossip datagrams that the system would not take; they are as good as lost.",
    ),
    (
        "starling_gossip_refused_total",
        Unit::Count,
        "Datagrams and streams of gossip dropped, by reason: unread, refused as too many streams, not understood, or absurd (of no believable time).",
    ),
    (
        "starling_gossip_sealed_total",
        Unit::Count,
        "Datagrams and streams of gossip sealed, by key: an id, never the key.",
    ),
    (
        "starling_gossip_opened_total",
        Unit::Count,
        "Datagrams and streams of others opened, by key; one that stands still is not used by anybody any more.",
    ),
    (
        "starling_gossip_exchanges_total",
        Unit::Count,
        "Full exchanges over streams, by result: begun or done.",
    ),
    (
        "starling_gossip_suspicions_total",
        Unit::Count,
        "Suspicions against members seen, this node's and others'.",
    ),
    (
        "starling_gossip_suspicions_originated_total",
        Unit::Count,
        "Suspicions that began with a probe of this node; many of them with few confirmed mean that it is badly connected or busy.",
    ),
    (
        "starling_gossip_suspicions_ended_total",
        Unit::Count,
        "Suspicions seen that are over, by result: refuted by the suspect, or confirmed and the member is down.",
    ),
    (
        "starling_gossip_confirmations_total",
        Unit::Count,
        "Opinions of other nodes that agreed with a suspicion of this one.",
    ),
    (
        "starling_gossip_probes_total",
        Unit::Count,
        "Probes of members by this node, by result: answered (directly, through others or by a stream), or failed.",
    ),
    (
        "starling_gossip_news_total",
        Unit::Count,
        "Records received that were news.",
    ),
    (
        "starling_gossip_records_refused_total",
        Unit::Count,
        "Records refused because a table of the catalogue was full.",
    ),
    (
        "starling_gossip_renewals_total",
        Unit::Count,
        "Times this node had to take a new identity because it was declared down.",
    ),
    (
        "starling_config_reloads_total",
        Unit::Count,
        "Reloads asked for, by result: done or refused.",
    ),
];

/// Families that go up and down.
const GAUGES: &[(&str, Unit, &str)] = &[
    (
        "starling_config_generation",
        Unit::Count,
        "Counts the configurations that took effect since the start.",
    ),
    (
        "starling_snapshot_generation",
        Unit::Count,
        "Counts the snapshots built since the start.",
    ),
    (
        "starling_pool_connections",
        Unit::Count,
        "Open connections to endpoints, by worker and state: idle (HTTP/1), or http2.",
    ),
    (
        "starling_gossip_turn_seconds",
        Unit::Seconds,
        "Longest turn of the gossip task in the last 30 s at the most; a slow one makes peers suspect this node.",
    ),
    (
        "starling_gossip_isolated",
        Unit::Count,
        "1 when nothing was heard of others for a while, or nobody answered what this node said.",
    ),
    (
        "starling_gossip_rtt_seconds",
        Unit::Seconds,
        "Smoothed round trip of this node's probes, by peer_zone.",
    ),
    (
        "starling_gossip_health_score",
        Unit::Count,
        "How ill this node is by its own probes: 0 well, 8 at worst; the worse, the slower it probes.",
    ),
    (
        "starling_gossip_divergent_peers",
        Unit::Count,
        "Living nodes that last said to know something else than this one.",
    ),
    (
        "starling_gossip_divergence_seconds",
        Unit::Seconds,
        "For how long the longest of them has said so; over 10 s, exchanges do not get through.",
    ),
    (
        "starling_gossip_owner_divergence_seconds",
        Unit::Seconds,
        "For how long a node (peer) has said to know something else than this one: the longest 16, 0 once it is over.",
    ),
    (
        "starling_gossip_records",
        Unit::Count,
        "Records in the catalogue.",
    ),
    (
        "starling_gossip_backlog",
        Unit::Count,
        "News that wait to be passed on.",
    ),
];

/// Gauges that are read off the snapshot when somebody scrapes: name and help.
const READ_OFF: &[(&str, &str)] = &[
    (
        "starling_ready",
        "1 when this sidecar listens, has joined and is not on its way out.",
    ),
    ("starling_gossip_members", "Nodes known, by state."),
    (
        "starling_endpoint_state",
        "Endpoints, by upstream, zone and state: usable, or why not.",
    ),
    (
        "starling_tier_share",
        "Share of the requests each tier gets, 0 to 1, by upstream and tier.",
    ),
    (
        "starling_zone_share",
        "Share of the requests each zone gets by water-filling, 0 to 1, by upstream and peer_zone.",
    ),
    (
        "starling_zone_capacity",
        "Capacity of a zone's endpoints that are well for this sidecar, by upstream, peer_zone and unit.",
    ),
    (
        "starling_zone_demand",
        "Requests per second that a zone's own applications ask for, by upstream and peer_zone.",
    ),
];

/// The help of a gauge that is read off the snapshot.
pub fn help_of(name: &str) -> &'static str {
    let found = READ_OFF.iter().find(|(known, _)| *known == name);
    found.map_or("", |(_, help)| help)
}

/// Families of samples.
const HISTOGRAMS: &[(&str, Unit, &str)] = &[(
    REQUEST_DURATION,
    Unit::Seconds,
    "From the first byte of a request's head to the end of its answer, by upstream.",
)];

const REQUEST_DURATION: &str = "starling_request_duration_seconds";

/// What renders the metrics, and folds samples together now and then.
#[derive(Clone, Debug)]
pub struct Exporter {
    handle: PrometheusHandle,
}

impl Exporter {
    /// Installs the recorder of this process and describes every family. Call it once, before the first handle is
    /// made: what is counted earlier is lost.
    ///
    /// # Errors
    /// A recorder is installed already.
    pub fn install() -> Result<Exporter, BuildError> {
        let handle = builder()?.install_recorder()?;
        describe();
        Ok(Exporter { handle })
    }

    /// An exporter of nothing, beside any recorder of the process; for tests of what stands around it.
    ///
    /// # Errors
    /// The buckets make no sense.
    pub fn detached() -> Result<Exporter, BuildError> {
        let handle = builder()?.build_recorder().handle();
        Ok(Exporter { handle })
    }

    /// All metrics as Prometheus text (version 0.0.4).
    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }

    /// Folds samples into buckets every 5 s, so that memory does not depend on being scraped. Ends when aborted.
    pub fn upkeep(&self) -> JoinHandle<()> {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let mut every = tokio::time::interval(UPKEEP);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                handle.run_upkeep();
            }
        })
    }
}

/// Says which configuration is in force: 1 after the start, one more with every reload.
pub fn config_generation(generation: u64) {
    gauge!("starling_config_generation").set(generation as f64);
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let duration = Matcher::Full(REQUEST_DURATION.to_owned());
    PrometheusBuilder::new().set_buckets_for_metric(duration, &DURATION_BUCKETS)
}

fn describe() {
    for (name, unit, help) in COUNTERS {
        describe_counter!(*name, *unit, *help);
    }
    for (name, unit, help) in GAUGES {
        describe_gauge!(*name, *unit, *help);
    }
    for (name, unit, help) in HISTOGRAMS {
        describe_histogram!(*name, *unit, *help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_is_starlings_own_and_stands_once() {
        let families = [COUNTERS, GAUGES, HISTOGRAMS];
        let names: Vec<&str> = families
            .iter()
            .copied()
            .flatten()
            .map(|(name, ..)| *name)
            .collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(names.iter().all(|name| name.starts_with("starling_")));
        assert!(COUNTERS.iter().all(|(name, ..)| name.ends_with("_total")));
        assert!(GAUGES.iter().all(|(name, ..)| !name.ends_with("_total")));
    }

    #[test]
    fn every_name_in_the_source_is_described_here() {
        fn names_in(directory: &std::path::Path, names: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    names_in(&path, names);
                } else if path.file_name().is_some_and(|name| name != "tests.rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let literals = text
                        .split('"')
                        .filter(|literal| literal.starts_with("starling_"));
                    let whole =
                        |name: &&str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
                    names.extend(literals.filter(whole).map(str::to_owned));
                }
            }
        }
        let mut used = BTreeSet::new();
        names_in(
            &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut used,
        );
        let described: BTreeSet<&str> = [COUNTERS, GAUGES, HISTOGRAMS]
            .iter()
            .copied()
            .flatten()
            .map(|(name, ..)| *name)
            .chain(READ_OFF.iter().map(|(name, _)| *name))
            .collect();
        let missing: Vec<_> = used
            .iter()
            .filter(|name| !described.contains(name.as_str()))
            .collect();
        // The names of the tables themselves and the prefix in the test above are no families.
        let missing: Vec<_> = missing
            .into_iter()
            .filter(|name| *name != "starling_")
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn every_metric_of_the_gossip_stands_in_its_manual() {
        let manual = include_str!("../../deploy/metrics.md");
        let families = [COUNTERS, GAUGES].into_iter().flatten();
        let names = families.map(|(name, ..)| *name);
        for name in names.chain(READ_OFF.iter().map(|(name, _)| *name)) {
            let is_told =
                manual.contains(&format!("`{name}`")) || manual.contains(&format!("`{name}{{"));
            assert!(is_told || !name.contains("_gossip_"), "{name}");
        }
    }

    #[test]
    fn durations_are_rendered_as_buckets_and_not_as_quantiles() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::histogram!(REQUEST_DURATION, "upstream" => "p").record(0.002);
            metrics::counter!("starling_retries_total", "upstream" => "p").increment(2);
        });
        let text = Exporter { handle }.render();
        assert!(
            text.contains(
                "starling_request_duration_seconds_bucket{upstream=\"p\",le=\"0.0025\"} 1"
            ),
            "{text}"
        );
        assert!(
            text.contains("starling_retries_total{upstream=\"p\"} 2"),
            "{text}"
        );
        assert!(
            text.contains("# HELP starling_retries_total Attempts beyond"),
            "{text}"
        );
    }
}
