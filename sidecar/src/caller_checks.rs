//! Checks that a caller runs itself: endpoints outside the mesh have no sidecar beside them.
//!
//! Not here: the check (`active_check.rs`), names → addresses (`resolve.rs`), and checks of the
//! host's own applications (`gossip/probe.rs`).

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use mesh_core::{check::Verdict, policy::Place};
use mesh_proto::record::Health;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
};

use crate::{
    active_check::{self, Subject},
    config::{Check, Upstream},
    proxy::proxy_header,
    resolve::Resolved,
};

/// Configurations waiting for the task; the caller waits when it is full.
const ORDERS_MAX: usize = 4;
/// Verdicts waiting for the task; a check waits with its next run when it is full.
const VERDICTS_MAX: usize = 256;
/// Endpoints checked; those beyond stay unchecked, with a warning, and count as passing.
const CHECKED_MAX: usize = 4096;

/// An upstream and one of its endpoints.
pub type Key = (Box<str>, SocketAddr);

/// The checked endpoints that are not passing and how they are; one whose check has not passed yet is failing.
pub type NotPassing = BTreeMap<Key, Health>;

/// The way to the task that checks endpoints outside the mesh; it ends when the handle is dropped.
#[derive(Debug)]
pub struct CallerChecks {
    orders: mpsc::Sender<Follow>,
    not_passing: watch::Receiver<Arc<NotPassing>>,
}

#[derive(Debug)]
struct Follow {
    upstreams: Vec<Upstream>,
    done: oneshot::Sender<()>,
}

impl CallerChecks {
    /// Starts the task on the current runtime. Nothing is checked before [`CallerChecks::follow`].
    ///
    /// It hears of new addresses through `resolved`, as the snapshot's builder does; the builder waits
    /// for a while before it builds, so it finds new addresses among those not passing.
    pub fn start(resolved: watch::Receiver<Arc<Resolved>>) -> CallerChecks {
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let (verdicts, told) = mpsc::channel(VERDICTS_MAX);
        let (results, not_passing) = watch::channel(Arc::default());
        let task = Task {
            upstreams: Vec::new(),
            resolved,
            checked: BTreeMap::new(),
            generation: 0,
            checks: JoinSet::new(),
            verdicts,
            results,
        };
        tokio::spawn(task.run(inbox, told));
        CallerChecks {
            orders,
            not_passing,
        }
    }

    /// Runs the checks of these upstreams from now on, and no others.
    ///
    /// When it returns, every endpoint that must still show that it works is among those not passing.
    pub async fn follow(&self, upstreams: &[Upstream]) {
        let (done, published) = oneshot::channel();
        let upstreams = upstreams
            .iter()
            .filter(|upstream| upstream.check.is_some())
            .cloned()
            .collect();
        // The task ends with this handle only, so both ends are there.
        if self.orders.send(Follow { upstreams, done }).await.is_ok() {
            let _ = published.await;
        }
    }

    /// Who is not passing; changes only when somebody turns.
    pub fn not_passing(&self) -> watch::Receiver<Arc<NotPassing>> {
        self.not_passing.clone()
    }
}

struct Task {
    upstreams: Vec<Upstream>,
    resolved: watch::Receiver<Arc<Resolved>>,
    checked: BTreeMap<Key, Checked>,
    generation: u64,
    checks: JoinSet<()>,
    verdicts: mpsc::Sender<Told>,
    results: watch::Sender<Arc<NotPassing>>,
}

/// One endpoint under one upstream's check.
struct Checked {
    target: Target,
    verdict: Verdict,
    /// Which start of the check a verdict must come from.
    generation: u64,
    running: AbortHandle,
}

/// Who is checked, and how.
#[derive(Clone, PartialEq)]
struct Target {
    check: Check,
    subject: Subject,
}

struct Told {
    key: Key,
    generation: u64,
    verdict: Verdict,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Follow>, mut told: mpsc::Receiver<Told>) {
        let mut names_may_change = true;
        loop {
            tokio::select! {
                order = inbox.recv() => {
                    let Some(Follow { upstreams, done }) = order else {
                        return;
                    };
                    self.upstreams = upstreams;
                    self.check_all();
                    let _ = done.send(());
                }
                changed = self.resolved.changed(), if names_may_change => {
                    names_may_change = changed.is_ok();
                    self.check_all();
                }
                Some(news) = told.recv() => self.hear(news),
                Some(_) = self.checks.join_next() => {}
            }
        }
    }

    fn check_all(&mut self) {
        let targets = self.targets();
        self.checked.retain(|key, checked| {
            let stays = targets.contains_key(key);
            if !stays {
                checked.running.abort();
            }
            stays
        });
        for (key, target) in targets {
            let before = self.checked.get(&key);
            if before.is_some_and(|checked| checked.target == target) {
                continue;
            }
            let (rise, fall) = (target.check.rise, target.check.fall);
            let verdict = match before {
                // Other thresholds for the same address: a reload takes nobody out.
                Some(checked) => checked.verdict.with_thresholds(rise, fall),
                None => Verdict::new(rise, fall),
            };
            if let Some(before) = before {
                before.running.abort();
            }
            let checked = self.start_check(key.clone(), target, verdict);
            self.checked.insert(key, checked);
        }
        self.publish();
    }

    /// Every endpoint outside the mesh of the upstreams with a check.
    fn targets(&mut self) -> BTreeMap<Key, Target> {
        let resolved = self.resolved.borrow_and_update().clone();
        let mut targets = BTreeMap::new();
        for upstream in &self.upstreams {
            let Some(check) = &upstream.check else {
                continue;
            };
            let version = upstream.policy.send_proxy;
            // A check calls for nobody but itself.
            let introduction = version.map(|version| proxy_header::write(version, None));
            let introduction = introduction.unwrap_or_default();
            for endpoint in &upstream.policy.endpoints {
                let (addresses, host) = match &endpoint.place {
                    Place::Address(address) => (vec![*address], address.to_string()),
                    place @ Place::Name { host, port } => (
                        resolved.get(place).cloned().unwrap_or_default(),
                        format!("{host}:{port}"),
                    ),
                };
                for address in addresses {
                    if targets.len() == CHECKED_MAX {
                        tracing::warn!(CHECKED_MAX, "too many endpoints: the rest is not checked");
                        return targets;
                    }
                    let target = || Target {
                        check: check.clone(),
                        subject: Subject {
                            tls: upstream.tls.clone(),
                            introduction: introduction.clone(),
                            ..Subject::in_the_clear(address, &host)
                        },
                    };
                    targets
                        .entry((upstream.policy.name.clone(), address))
                        .or_insert_with(target);
                }
            }
        }
        targets
    }

    fn start_check(&mut self, key: Key, target: Target, verdict: Verdict) -> Checked {
        self.generation += 1;
        let generation = self.generation;
        let (verdicts, run, first) = (self.verdicts.clone(), target.clone(), verdict.clone());
        let running = self.checks.spawn(async move {
            active_check::repeat(&run.check, &run.subject, first, |verdict| {
                let told = Told {
                    key: key.clone(),
                    generation,
                    verdict,
                };
                let verdicts = verdicts.clone();
                // Nobody listens any more: then this check is about to be dropped, too.
                async move { drop(verdicts.send(told).await) }
            })
            .await;
        });
        Checked {
            target,
            verdict,
            generation,
            running,
        }
    }

    fn hear(&mut self, news: Told) {
        let Some(checked) = self.checked.get_mut(&news.key) else {
            return;
        };
        if checked.generation != news.generation {
            return;
        }
        checked.verdict = news.verdict;
        let (upstream, address) = &news.key;
        let health = checked.verdict.health();
        tracing::info!(%upstream, %address, ?health, "an endpoint's health changed");
        self.publish();
    }

    fn publish(&self) {
        let fresh: NotPassing = self
            .checked
            .iter()
            .map(|(key, checked)| (key.clone(), checked.verdict.health()))
            .filter(|(_, health)| *health != Health::Passing)
            .collect();
        self.results.send_if_modified(|not_passing| {
            let changed = **not_passing != fresh;
            if changed {
                *not_passing = Arc::new(fresh);
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_core::policy::{FixedEndpoint, Policy, Weight};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::CheckKind;

    fn upstream(name: &str, places: &[Place]) -> Upstream {
        let mut policy = Policy::of_service(name);
        let endpoints = places.iter().map(|place| FixedEndpoint {
            place: place.clone(),
            zone: None,
            weight: Weight::DEFAULT,
            backup: false,
        });
        policy.endpoints = endpoints.collect();
        Upstream {
            policy: Arc::new(policy),
            listen: Vec::new(),
            sni: Vec::new(),
            check: Some(Check {
                kind: CheckKind::Tcp,
                interval: Duration::from_millis(5),
                timeout: Duration::from_secs(5),
                fall: 2,
                rise: 2,
            }),
            listen_tls: None,
            tls: None,
        }
    }

    async fn until(checks: &CallerChecks, expected: &[(&str, SocketAddr, Health)]) {
        let expected: NotPassing = expected
            .iter()
            .map(|(name, address, health)| ((Box::from(*name), *address), *health))
            .collect();
        let mut not_passing = checks.not_passing();
        let reached = not_passing.wait_for(|now| **now == expected);
        tokio::time::timeout(Duration::from_secs(10), reached)
            .await
            .unwrap_or_else(|_| panic!("never came to {expected:?}"))
            .unwrap();
    }

    #[tokio::test]
    async fn an_endpoint_passes_only_after_its_checks_and_fails_with_them() {
        let (_names, resolved) = watch::channel(Arc::default());
        let checks = CallerChecks::start(resolved);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let db = upstream("db", &[Place::Address(address)]);
        checks.follow(std::slice::from_ref(&db)).await;
        assert_eq!(checks.not_passing().borrow().len(), 1, "before any result");
        let socket = TcpListener::bind(address).await.unwrap();
        until(&checks, &[]).await;
        drop(socket);
        until(&checks, &[("db", address, Health::Failing)]).await;
        let unchecked = Upstream { check: None, ..db };
        checks.follow(&[unchecked]).await;
        until(&checks, &[]).await;
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_checked_as_it_comes_and_goes() {
        let place = Place::Name {
            host: "db.internal".into(),
            port: 5432,
        };
        let (names, resolved) = watch::channel(Arc::default());
        let checks = CallerChecks::start(resolved);
        checks
            .follow(&[upstream("db", std::slice::from_ref(&place))])
            .await;
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let well = socket.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ill = closed.local_addr().unwrap();
        drop(closed);
        names.send_replace(Arc::new(Resolved::from([(place.clone(), vec![well, ill])])));
        until(&checks, &[("db", ill, Health::Failing)]).await;
        names.send_replace(Arc::new(Resolved::from([(place, vec![well])])));
        until(&checks, &[]).await;
    }

    #[tokio::test]
    async fn a_program_is_told_whom_it_checks_and_may_warn() {
        let (_names, resolved) = watch::channel(Arc::default());
        let checks = CallerChecks::start(resolved);
        let place = |last: u8| Place::Address(SocketAddr::from(([10, 9, 9, last], 1)));
        let mut db = upstream("db", &[place(0), place(1), place(2)]);
        let script = "a=${STARLING_ADDRESS%:1}; exit ${a##*.}";
        db.check.as_mut().unwrap().kind = CheckKind::Exec {
            command: ["/bin/sh", "-c", script].map(Box::from).into(),
        };
        checks.follow(&[db]).await;
        let at = |last: u8| SocketAddr::from(([10, 9, 9, last], 1));
        let expected = [
            ("db", at(1), Health::Warning),
            ("db", at(2), Health::Failing),
        ];
        until(&checks, &expected).await;
    }
}
