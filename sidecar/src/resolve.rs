//! Names of fixed endpoints → addresses, again and again; the last good answers are kept.
//!
//! Not here: seeds of the gossip (`gossip/seeds.rs`), and what is made of the addresses (`mesh_core::snapshot`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use mesh_core::policy::Place;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::config::Upstream;

/// Between two good answers: short beside the time a failed-over database name takes to settle.
const INTERVAL: Duration = Duration::from_secs(5);
/// After the first failure in a row; doubles with each further one.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Longest pause between two tries of a name that fails.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// For one look-up; the system's resolver may take longer, but then nobody waits for it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Look-ups at the same time: each holds a thread of the runtime's blocking pool.
const LOOKUPS_MAX: usize = 16;
/// Addresses taken of one answer.
const ANSWERS_MAX: usize = 256;

/// Every name's addresses, sorted; a name that never resolved is absent.
pub type Resolved = BTreeMap<Place, Vec<SocketAddr>>;

/// Who is asked: the system's resolver, or a test's list.
type Lookup = Box<dyn Fn(Box<str>, u16) -> Answer + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// The way to the task that resolves names; it ends when the handle is dropped.
#[derive(Debug)]
pub struct Resolver {
    wanted: watch::Sender<BTreeSet<Place>>,
    resolved: watch::Receiver<Arc<Resolved>>,
}

impl Resolver {
    /// Starts the task on the current runtime. Nothing is resolved before [`Resolver::follow`].
    pub fn start() -> Resolver {
        Resolver::with(Box::new(|host, port| {
            Box::pin(async move { Ok(tokio::net::lookup_host((&*host, port)).await?.collect()) })
        }))
    }

    fn with(lookup: Lookup) -> Resolver {
        let (wanted, wishes) = watch::channel(BTreeSet::new());
        let (results, resolved) = watch::channel(Arc::default());
        let task = Task {
            lookup,
            names: BTreeMap::new(),
            lookups: JoinSet::new(),
            results,
        };
        tokio::spawn(task.run(wishes));
        Resolver { wanted, resolved }
    }

    /// Resolves the names in these upstreams' endpoints from now on, and no others.
    pub fn follow(&self, upstreams: &[Upstream]) {
        let names = upstreams
            .iter()
            .flat_map(|upstream| &upstream.policy.endpoints)
            .map(|endpoint| &endpoint.place)
            .filter(|place| matches!(place, Place::Name { .. }))
            .cloned()
            .collect();
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != names;
            *wanted = names;
            changed
        });
    }

    /// What the names resolve to; changes only when an answer is another one.
    pub fn resolved(&self) -> watch::Receiver<Arc<Resolved>> {
        self.resolved.clone()
    }
}

struct Task {
    lookup: Lookup,
    names: BTreeMap<Place, Name>,
    lookups: JoinSet<(Place, Result<Vec<SocketAddr>, String>)>,
    results: watch::Sender<Arc<Resolved>>,
}

struct Name {
    next: Next,
    failures_in_row: u32,
}

enum Next {
    Due(Instant),
    /// A look-up is under way.
    Asked,
}

impl Task {
    async fn run(mut self, mut wishes: watch::Receiver<BTreeSet<Place>>) {
        loop {
            self.ask_those_due();
            let due = self.earliest();
            tokio::select! {
                changed = wishes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let wanted = wishes.borrow_and_update().clone();
                    self.follow(wanted);
                }
                Some(Ok((place, answer))) = self.lookups.join_next() => self.hear(place, answer),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    fn follow(&mut self, wanted: BTreeSet<Place>) {
        self.names.retain(|place, _| wanted.contains(place));
        self.publish(|resolved| resolved.retain(|place, _| wanted.contains(place)));
        for place in wanted {
            self.names.entry(place).or_insert_with(|| Name {
                next: Next::Due(Instant::now()),
                failures_in_row: 0,
            });
        }
    }

    fn ask_those_due(&mut self) {
        let now = Instant::now();
        for (place, name) in &mut self.names {
            if self.lookups.len() >= LOOKUPS_MAX {
                return;
            }
            let Place::Name { host, port } = place else {
                continue;
            };
            if !matches!(name.next, Next::Due(due) if due <= now) {
                continue;
            }
            name.next = Next::Asked;
            let (place, answer) = (place.clone(), (self.lookup)(host.clone(), *port));
            self.lookups.spawn(async move {
                let answer = match tokio::time::timeout(LOOKUP_TIMEOUT, answer).await {
                    Ok(Ok(addresses)) if addresses.is_empty() => Err("no address".to_owned()),
                    Ok(answer) => answer.map_err(|error| error.to_string()),
                    Err(_) => Err(format!("no answer within {LOOKUP_TIMEOUT:?}")),
                };
                (place, answer)
            });
        }
    }

    /// When the next look-up is due; `None` while a look-up's end comes first anyway.
    fn earliest(&self) -> Option<Instant> {
        if self.lookups.len() >= LOOKUPS_MAX {
            return None;
        }
        let due = self.names.values().filter_map(|name| match name.next {
            Next::Due(due) => Some(due),
            Next::Asked => None,
        });
        due.min()
    }

    fn hear(&mut self, place: Place, answer: Result<Vec<SocketAddr>, String>) {
        // Nobody wants it any more: then its answer would never be removed again.
        let Some(name) = self.names.get_mut(&place) else {
            return;
        };
        match answer {
            Ok(mut addresses) => {
                name.failures_in_row = 0;
                name.next = Next::Due(Instant::now() + INTERVAL);
                addresses.sort_unstable();
                addresses.dedup();
                addresses.truncate(ANSWERS_MAX);
                self.publish(|resolved| {
                    resolved.insert(place, addresses);
                });
            }
            Err(why) => {
                let pause = RETRY_MIN.saturating_mul(1 << name.failures_in_row.min(16));
                if name.failures_in_row == 0 {
                    let known = self.results.borrow().get(&place).map_or(0, Vec::len);
                    tracing::warn!(?place, %why, known, "name not resolved; the last good answer stays");
                }
                name.failures_in_row = name.failures_in_row.saturating_add(1);
                name.next = Next::Due(Instant::now() + pause.min(RETRY_MAX));
            }
        }
    }

    fn publish(&self, change: impl FnOnce(&mut Resolved)) {
        self.results.send_if_modified(|resolved| {
            let mut fresh = Resolved::clone(resolved);
            change(&mut fresh);
            let changed = fresh != **resolved;
            if changed {
                *resolved = Arc::new(fresh);
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use mesh_core::policy::{FixedEndpoint, Policy, Weight};

    use super::*;
    use crate::waiting::pass;

    /// Answers of a resolver that a test rewrites as it goes, and how often each name was asked.
    #[derive(Default)]
    struct Zone {
        answers: BTreeMap<String, Vec<SocketAddr>>,
        asked: BTreeMap<String, u32>,
    }

    fn resolver() -> (Resolver, Arc<Mutex<Zone>>) {
        let zone = Arc::new(Mutex::new(Zone::default()));
        let answers = zone.clone();
        let resolver = Resolver::with(Box::new(move |host, _| {
            let mut zone = answers.lock().unwrap();
            *zone.asked.entry(host.to_string()).or_default() += 1;
            let answer = zone.answers.get(&*host).cloned();
            Box::pin(async move { answer.ok_or_else(|| io::Error::other("no such name")) })
        }));
        (resolver, zone)
    }

    fn place(host: &str) -> Place {
        Place::Name {
            host: host.into(),
            port: 80,
        }
    }

    fn upstream(hosts: &[&str]) -> Upstream {
        let mut policy = Policy::of_service("legacy");
        let literal = Place::Address(address(9));
        let places = hosts.iter().map(|host| place(host)).chain([literal]);
        policy.endpoints = places
            .map(|place| FixedEndpoint {
                place,
                zone: None,
                weight: Weight::DEFAULT,
                backup: false,
            })
            .collect();
        Upstream {
            policy: Arc::new(policy),
            listen: Vec::new(),
            sni: Vec::new(),
            check: None,
            listen_tls: None,
            tls: None,
        }
    }

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn answer(zone: &Mutex<Zone>, host: &str, answer: &[SocketAddr]) {
        let mut zone = zone.lock().unwrap();
        zone.answers.insert(host.to_owned(), answer.to_vec());
    }

    async fn until(resolved: &mut watch::Receiver<Arc<Resolved>>, expected: &[(&str, &[u8])]) {
        let expected: Resolved = expected
            .iter()
            .map(|(host, last)| {
                (
                    place(host),
                    last.iter().map(|last| address(*last)).collect(),
                )
            })
            .collect();
        let reached = resolved.wait_for(|resolved| **resolved == expected);
        tokio::time::timeout(Duration::from_secs(120), reached)
            .await
            .unwrap_or_else(|_| panic!("never came to {expected:?}"))
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_resolved_again_and_the_last_good_answer_stays() {
        let (resolver, zone) = resolver();
        let mut resolved = resolver.resolved();
        answer(&zone, "db", &[address(2), address(1), address(2)]);
        resolver.follow(&[upstream(&["db", "late"])]);
        until(&mut resolved, &[("db", &[1, 2])]).await;
        answer(&zone, "late", &[address(7)]);
        until(&mut resolved, &[("db", &[1, 2]), ("late", &[7])]).await;
        answer(&zone, "late", &[]);
        answer(&zone, "db", &[address(3)]);
        until(&mut resolved, &[("db", &[3]), ("late", &[7])]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_nobody_wants_is_forgotten_and_not_asked_for() {
        let (resolver, zone) = resolver();
        let mut resolved = resolver.resolved();
        answer(&zone, "old", &[address(1)]);
        answer(&zone, "new", &[address(2)]);
        resolver.follow(&[upstream(&["old"])]);
        until(&mut resolved, &[("old", &[1])]).await;
        resolver.follow(&[upstream(&["new"])]);
        until(&mut resolved, &[("new", &[2])]).await;
        let asked = zone.lock().unwrap().asked["old"];
        pass(INTERVAL * 3).await;
        assert_eq!(zone.lock().unwrap().asked["old"], asked);
        assert!(zone.lock().unwrap().asked["new"] >= 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_name_is_asked_for_less_and_less() {
        let (resolver, zone) = resolver();
        resolver.follow(&[upstream(&["nowhere"])]);
        pass(Duration::from_secs(600)).await;
        let asked = zone.lock().unwrap().asked["nowhere"];
        // 0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5 s, then one every 30 s.
        assert!((24..=27).contains(&asked), "{asked}");
    }
}
