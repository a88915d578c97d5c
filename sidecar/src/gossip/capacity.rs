//! What this host's instances can take, where their calls come in through this sidecar and nobody has declared it.
//!
//! Not here: how it is reckoned (`mesh_core::zone::capacity`) and how it is told (`probe.rs`).
//!
//! A sidecar stands in the path of an instance that is advertised at a listener of one of its own upstreams. It counts
//! what goes through there and reads from `/proc/stat` how busy the host's processors are.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use mesh_core::{
    snapshot::{Snapshot, Upstream},
    zone::capacity::{Learner, SAMPLE, Seen, Word},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::probe::{Key, Probes};
use crate::{
    clock::Clock,
    config::{Config, ListenAddress, Loaded},
};

/// Where the kernel tells what its processors did.
const PROCESSORS: &str = "/proc/stat";

/// Learns and tells until the checks' task is gone.
pub async fn run(
    snapshot: Arc<ArcSwap<Snapshot>>,
    configs: watch::Receiver<Arc<Loaded>>,
    probes: Probes,
    clock: Clock,
) {
    let mut learners: BTreeMap<Key, Learner> = BTreeMap::new();
    let mut before: Option<Ticks> = None;
    let mut tick = interval(SAMPLE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let loaded = Arc::clone(&configs.borrow());
        let paths = paths(&loaded.config);
        let gone: Vec<Key> = (learners.keys())
            .filter(|key| !paths.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            learners.remove(&key);
            if probes.learn(key, None).await.is_err() {
                return;
            }
        }
        if paths.is_empty() {
            before = None;
            continue;
        }
        let now = ticks().await;
        let busy = match (before, now) {
            (Some(before), Some(now)) => now.busy_since(before),
            _ => None,
        };
        before = now;
        let Some(busy) = busy else {
            continue;
        };
        let snapshot = snapshot.load_full();
        for (key, name) in paths {
            let Some(upstream) = snapshot.upstream(name) else {
                continue;
            };
            let seen = seen(upstream, busy);
            let now = clock.now();
            let learner =
                (learners.entry(key.clone())).or_insert_with(|| Learner::new(seen.answers, now));
            let capacity = match learner.sample(&seen, now) {
                Some(Word::Tell(capacity)) => Some(capacity),
                Some(Word::Forget) => None,
                None => continue,
            };
            tracing::info!(service = %key.0, instance = %key.1, capacity, "our instance's capacity is learned");
            if probes.learn(key, capacity).await.is_err() {
                return;
            }
        }
    }
}

/// Instances whose capacity nobody declared, with the upstream that stands before each.
fn paths(config: &Config) -> BTreeMap<Key, &str> {
    let undeclared = config.services.iter().filter(|s| s.capacity.is_none());
    let in_path = undeclared.filter_map(|service| {
        let at = |listen: &ListenAddress| listens_at(listen, service.advertise);
        let mut upstreams = config.upstreams.iter();
        let upstream = upstreams.find(|upstream| upstream.listen.iter().any(at))?;
        let key = (service.service.clone(), service.instance.clone());
        Some((key, &*upstream.policy.name))
    });
    in_path.collect()
}

fn listens_at(listen: &ListenAddress, address: SocketAddr) -> bool {
    match listen {
        ListenAddress::Tcp(own) => {
            *own == address || (own.ip().is_unspecified() && own.port() == address.port())
        }
        ListenAddress::Udp(_) | ListenAddress::Unix(_) => false,
    }
}

fn seen(upstream: &Upstream, busy: f64) -> Seen {
    let under_way = upstream
        .shared
        .in_flight
        .load(std::sync::atomic::Ordering::Relaxed);
    let members = upstream.members();
    let latencies: Vec<f64> = members
        .filter_map(|m| m.endpoint.load().latency())
        .collect();
    let mean = latencies.iter().sum::<f64>() / latencies.len().max(1) as f64;
    Seen {
        answers: upstream.shared.asked().saturating_sub(u64::from(under_way)),
        latency: (mean > 0.0).then_some(mean / 1e9),
        busy,
    }
}

/// What all processors together did since the host's start, in the kernel's ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ticks {
    all: u64,
    idle: u64,
}

impl Ticks {
    /// Share of the time since `before` in which they worked; `None` if no tick has passed.
    fn busy_since(self, before: Ticks) -> Option<f64> {
        let all = self.all.checked_sub(before.all).filter(|all| *all > 0)?;
        let idle = self.idle.saturating_sub(before.idle).min(all);
        Some(1.0 - idle as f64 / all as f64)
    }
}

async fn ticks() -> Option<Ticks> {
    let text = tokio::fs::read_to_string(PROCESSORS).await.ok()?;
    parse(&text)
}

/// The first line: `cpu user nice system idle iowait irq softirq steal …`; the guests' time is part of the user's.
fn parse(text: &str) -> Option<Ticks> {
    let mut words = text.lines().next()?.split_ascii_whitespace();
    if words.next() != Some("cpu") {
        return None;
    }
    let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).take(8).collect();
    let [_, _, _, idle, waiting, ..] = numbers[..] else {
        return None;
    };
    Some(Ticks {
        all: numbers.iter().sum(),
        idle: idle + waiting,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_as_the_kernel_tells_them() {
        let before = parse("cpu  100 0 50 800 50 0 0 0 7 0\ncpu0 1 2 3 4\n").expect("a line");
        assert_eq!(
            before,
            Ticks {
                all: 1_000,
                idle: 850
            }
        );
        let after = parse("cpu  130 0 60 850 60 0 0 0 9 0").expect("a line");
        assert_eq!(after.busy_since(before), Some(0.4));
        assert_eq!(before.busy_since(before), None);
        assert_eq!(before.busy_since(after), None);
        assert_eq!(parse("intr 1 2 3"), None);
        assert_eq!(parse("cpu 1 2"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_listener_everywhere_stands_before_every_address_of_its_port() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let tcp = |text: &str| ListenAddress::Tcp(at(text));
        assert!(listens_at(&tcp("10.0.0.5:7001"), at("10.0.0.5:7001")));
        assert!(listens_at(&tcp("0.0.0.0:7001"), at("10.0.0.5:7001")));
        assert!(!listens_at(&tcp("0.0.0.0:7001"), at("10.0.0.5:8080")));
        assert!(!listens_at(&tcp("10.0.0.6:7001"), at("10.0.0.5:7001")));
        assert!(!listens_at(
            &ListenAddress::Udp(at("10.0.0.5:7001")),
            at("10.0.0.5:7001")
        ));
    }
}
