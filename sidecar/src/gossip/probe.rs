//! Is our own application well? Then say so in our record.
//!
//! Not here: what applications register themselves (`probe/leases.rs`), the check itself (`active_check.rs`), the counting
//! (`mesh_core::check`), how records spread (`agent.rs`), and checks of endpoints outside the mesh (`caller_checks.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use mesh_core::check::Verdict;
use mesh_proto::record::{Health, InstanceState, ServiceRecord};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{Gossip, Order};
use crate::{
    active_check::{self, Subject, ttl::Word},
    clock::Clock,
    config::{CheckKind, Lease, Service},
};

use leases::Term;

pub use drain_state::DrainState;
pub use leases::{LEASES_MAX, LeaseRefused, Leased};

mod drain_state;
mod leases;

/// Orders waiting for the checks' task; the caller waits when it is full.
const ORDERS_MAX: usize = 64;
/// Verdicts waiting for the checks' task; a check waits with its next run when it is full.
const VERDICTS_MAX: usize = 256;

/// Service and instance: what one of this host's applications is known by.
pub type Key = (Box<str>, Box<str>);

/// The way to the task that checks this host's applications and offers them.
#[derive(Clone, Debug)]
pub struct Probes {
    orders: mpsc::Sender<ProbeOrder>,
}

/// What the checks' task is asked to do.
#[derive(Debug)]
pub enum ProbeOrder {
    /// These are the instances to offer from now on; others are withdrawn.
    Follow(Vec<Service>),
    /// Takes instances out of use; written down, so that it survives a restart.
    Drain {
        /// `None`: every service, and those that come later.
        service: Option<Box<str>>,
        /// `None`: every instance.
        instance: Option<Box<str>>,
        /// Told what it came to.
        done: oneshot::Sender<Drained>,
    },
    /// Ends what `Drain` began.
    Undrain {
        /// `None`: every service.
        service: Option<Box<str>>,
        /// `None`: every instance.
        instance: Option<Box<str>>,
        /// Told what it came to.
        done: oneshot::Sender<Drained>,
    },
    /// Offers an instance that an application registers itself, or renews it.
    Lease(Box<Lease>, oneshot::Sender<Result<Leased, LeaseRefused>>),
    /// Takes back what `Lease` offered.
    Release(Key, oneshot::Sender<Result<(), LeaseRefused>>),
    /// What an instance was found to be able to take, in requests per second; `None`: nothing any more.
    Learn(Key, Option<u32>),
    /// An application's own word on how it is.
    Say(Key, Health, oneshot::Sender<Result<(), WordRefused>>),
    /// This process is going: everything drains, and nothing of it is written down.
    Retire {
        /// Told when the gossip task has all the orders.
        done: oneshot::Sender<()>,
    },
}

/// What a drain or its end came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Drained {
    /// The instances it concerned.
    pub instances: Vec<Key>,
    /// Why it will not survive a restart, if it will not.
    pub not_kept: Option<String>,
}

/// Why an application's word was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WordRefused {
    /// This host offers no such instance.
    Unknown,
    /// Its health is found out in another way.
    Checked,
}

/// The checks' task has ended: the sidecar is on its way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the checks have ended: this sidecar is on its way out")
    }
}

impl std::error::Error for Gone {}

impl Probes {
    /// Starts the task on the current runtime; it ends when the last handle is dropped or the
    /// gossip task has gone. A drain kept in `state_dir` holds from the start.
    pub fn start(gossip: &Gossip, state_dir: Option<PathBuf>, clock: Clock) -> Probes {
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let (verdicts, told) = mpsc::channel(VERDICTS_MAX);
        let task = Task {
            gossip: gossip.orders.clone(),
            held: BTreeMap::new(),
            leases: BTreeMap::new(),
            learned: BTreeMap::new(),
            drain: DrainState::load(state_dir),
            retiring: false,
            generation: 0,
            checks: JoinSet::new(),
            verdicts,
            clock,
        };
        tokio::spawn(task.run(inbox, told));
        Probes { orders }
    }

    /// Offers exactly these instances from now on; what others were offered is withdrawn.
    ///
    /// # Errors
    /// [`Gone`] when the task has ended.
    pub async fn follow(&self, services: Vec<Service>) -> Result<(), Gone> {
        self.send(ProbeOrder::Follow(services)).await
    }

    /// Takes all instances, those of one service, or one instance out of use until [`Probes::undrain`].
    ///
    /// # Errors
    /// [`Gone`] when the task has ended.
    pub async fn drain(
        &self,
        service: Option<Box<str>>,
        instance: Option<Box<str>>,
    ) -> Result<Drained, Gone> {
        let (done, told) = oneshot::channel();
        self.send(ProbeOrder::Drain {
            service,
            instance,
            done,
        })
        .await?;
        told.await.map_err(|_| Gone)
    }

    /// Puts instances back into use.
    ///
    /// # Errors
    /// [`Gone`] when the task has ended.
    pub async fn undrain(
        &self,
        service: Option<Box<str>>,
        instance: Option<Box<str>>,
    ) -> Result<Drained, Gone> {
        let (done, told) = oneshot::channel();
        self.send(ProbeOrder::Undrain {
            service,
            instance,
            done,
        })
        .await?;
        told.await.map_err(|_| Gone)
    }

    /// Offers what an application registers itself, until its lease is over and not renewed by the same again.
    ///
    /// # Errors
    /// [`Gone`] when the task has ended; within, why it was refused.
    pub async fn lease(&self, lease: Lease) -> Result<Result<Leased, LeaseRefused>, Gone> {
        let (done, told) = oneshot::channel();
        self.send(ProbeOrder::Lease(Box::new(lease), done)).await?;
        told.await.map_err(|_| Gone)
    }

    /// Takes back what was registered.
    ///
    /// # Errors
    /// [`Gone`] when the task has ended; within, why it was refused.
    pub async fn release(&self, key: Key) -> Result<Result<(), LeaseRefused>, Gone> {
        let (done, told) = oneshot::channel();
        self.send(ProbeOrder::Release(key, done)).await?;
        told.await.map_err(|_| Gone)
    }

    /// Takes an application's own word on how it is; where it is registered, that renews its lease too.
    ///
    /// # Errors
    /// [`Gone`] when the task has ended; within, why it was not taken.
    pub async fn say(&self, key: Key, health: Health) -> Result<Result<(), WordRefused>, Gone> {
        let (done, told) = oneshot::channel();
        self.send(ProbeOrder::Say(key, health, done)).await?;
        told.await.map_err(|_| Gone)
    }

    /// Tells what an instance can take, in requests per second, where nobody declared it; `None` takes that back.
    ///
    /// # Errors
    /// [`Gone`] when the task has ended.
    pub async fn learn(&self, key: Key, capacity: Option<u32>) -> Result<(), Gone> {
        self.send(ProbeOrder::Learn(key, capacity)).await
    }

    /// Drains everything because this process ends; the next one starts undrained.
    ///
    /// # Errors
    /// [`Gone`] when the task has ended.
    pub async fn retire(&self) -> Result<(), Gone> {
        let (done, told) = oneshot::channel();
        self.send(ProbeOrder::Retire { done }).await?;
        told.await.map_err(|_| Gone)
    }

    async fn send(&self, order: ProbeOrder) -> Result<(), Gone> {
        self.orders.send(order).await.map_err(|_| Gone)
    }
}

/// One instance of this host.
struct Held {
    service: Service,
    verdict: Verdict,
    /// When it last turned well, Unix milliseconds.
    started_at_ms: u64,
    /// What the mesh was last told of it.
    offered: Option<ServiceRecord>,
    /// Which start of its check the verdict must come from.
    generation: u64,
    check: Option<AbortHandle>,
    /// Where its own word on its health goes, if that is what counts.
    voice: Option<watch::Sender<Word>>,
}

/// A check's news for the task.
struct Told {
    key: Key,
    generation: u64,
    verdict: Verdict,
}

struct Task {
    gossip: mpsc::Sender<Order>,
    held: BTreeMap<Key, Held>,
    /// Those of `held` that were registered, and not configured.
    leases: BTreeMap<Key, Term>,
    /// What instances were found to be able to take; no more of them than are configured.
    learned: BTreeMap<Key, u32>,
    drain: DrainState,
    retiring: bool,
    generation: u64,
    checks: JoinSet<()>,
    verdicts: mpsc::Sender<Told>,
    clock: Clock,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<ProbeOrder>, mut told: mpsc::Receiver<Told>) {
        loop {
            let ends = self.leases.values().map(|term| term.ends).min();
            let turn = tokio::select! {
                order = inbox.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                Some(news) = told.recv() => self.hear(news).await,
                Some(_) = self.checks.join_next() => Ok(()),
                () = sleep_until(ends.unwrap_or_else(Instant::now)), if ends.is_some() => self.end_leases().await,
            };
            if turn.is_err() {
                return;
            }
        }
    }

    async fn obey(&mut self, order: ProbeOrder) -> Result<(), Gone> {
        match order {
            ProbeOrder::Follow(services) => self.follow(services).await,
            ProbeOrder::Drain {
                service,
                instance,
                done,
            } => {
                let keys = self.matching(service.as_deref(), instance.as_deref());
                if service.is_none() && instance.is_none() {
                    self.drain.drain_node();
                } else {
                    self.drain.drain(keys.iter().cloned());
                }
                self.drain_changed(keys, done).await
            }
            ProbeOrder::Undrain {
                service,
                instance,
                done,
            } => {
                let keys = self.matching(service.as_deref(), instance.as_deref());
                if service.is_none() && instance.is_none() {
                    self.drain.undrain_node();
                } else {
                    self.drain.undrain(&keys, self.held.keys());
                }
                self.drain_changed(keys, done).await
            }
            ProbeOrder::Lease(lease, done) => {
                let leased = self.lease(*lease).await?;
                let _ = done.send(leased);
                Ok(())
            }
            ProbeOrder::Release(key, done) => {
                let released = self.release(&key).await?;
                let _ = done.send(released);
                Ok(())
            }
            ProbeOrder::Learn(key, capacity) => {
                match capacity {
                    Some(capacity) => self.learned.insert(key.clone(), capacity),
                    None => self.learned.remove(&key),
                };
                self.offer(&key).await
            }
            ProbeOrder::Say(key, health, done) => {
                let _ = done.send(self.say(&key, health));
                Ok(())
            }
            ProbeOrder::Retire { done } => {
                self.retiring = true;
                self.offer_all().await?;
                let _ = done.send(());
                Ok(())
            }
        }
    }

    async fn follow(&mut self, services: Vec<Service>) -> Result<(), Gone> {
        let wanted: BTreeSet<Key> = services.iter().map(key).collect();
        // The configuration stands above what was registered under the same name.
        self.leases.retain(|key, _| !wanted.contains(key));
        let stays = |key: &Key| wanted.contains(key) || self.leases.contains_key(key);
        let gone: Vec<Key> = (self.held.keys())
            .filter(|key| !stays(key))
            .cloned()
            .collect();
        for key in gone {
            self.withdraw(key).await?;
        }
        for service in services {
            let key = key(&service);
            self.hold(key.clone(), service);
            self.offer(&key).await?;
        }
        Ok(())
    }

    async fn withdraw(&mut self, key: Key) -> Result<(), Gone> {
        if let Some(Held {
            check: Some(check), ..
        }) = self.held.remove(&key)
        {
            check.abort();
        }
        let (service, instance) = key;
        self.order(Order::Withdraw { service, instance }).await
    }

    fn say(&mut self, key: &Key, health: Health) -> Result<(), WordRefused> {
        let held = self.held.get(key).ok_or(WordRefused::Unknown)?;
        let voice = held.voice.as_ref().ok_or(WordRefused::Checked)?;
        voice.send_modify(|word| {
            word.count += 1;
            word.health = health;
        });
        if let Some(term) = self.leases.get_mut(key) {
            *term = Term::of(term.lasts);
        }
        Ok(())
    }

    /// Starts, restarts or leaves alone the check of one instance.
    fn hold(&mut self, key: Key, service: Service) {
        let before = self.held.remove(&key);
        let verdict = match (&before, &service.check) {
            // Another address is another application, which must show first that it works.
            (Some(held), Some(check)) if held.service.address == service.address => {
                if held.service.check == service.check {
                    self.held.insert(
                        key,
                        Held {
                            service,
                            ..before.expect("matched as Some above")
                        },
                    );
                    return;
                }
                held.verdict.with_thresholds(check.rise, check.fall)
            }
            (_, Some(check)) => Verdict::new(check.rise, check.fall),
            (_, None) => Verdict::unchecked(),
        };
        if let Some(check) = before.as_ref().and_then(|held| held.check.as_ref()) {
            check.abort();
        }
        self.generation += 1;
        let (check, voice) = self.start_check(&key, &service, verdict.clone());
        let (started_at_ms, offered) = before.map_or((self.clock.unix_ms(), None), |held| {
            (held.started_at_ms, held.offered)
        });
        let held = Held {
            service,
            verdict,
            started_at_ms,
            offered,
            generation: self.generation,
            check,
            voice,
        };
        self.held.insert(key, held);
    }

    fn start_check(
        &mut self,
        key: &Key,
        service: &Service,
        verdict: Verdict,
    ) -> (Option<AbortHandle>, Option<watch::Sender<Word>>) {
        let Some(check) = service.check.clone() else {
            return (None, None);
        };
        let (voice, words) = watch::channel(Word {
            count: 0,
            health: Health::Failing,
        });
        let is_own_word = matches!(check.kind, CheckKind::Ttl { .. });
        let (key, address, generation) = (key.clone(), service.address, self.generation);
        let verdicts = self.verdicts.clone();
        let running = self.checks.spawn(async move {
            let tell = |verdict| {
                let told = Told {
                    key: key.clone(),
                    generation,
                    verdict,
                };
                let verdicts = verdicts.clone();
                // Nobody listens any more: then this check is about to be dropped, too.
                async move { drop(verdicts.send(told).await) }
            };
            match check.kind {
                CheckKind::Ttl { within } => {
                    active_check::ttl::listen(within, words, verdict, tell).await;
                }
                _ => {
                    let subject = Subject::in_the_clear(address, &address.to_string());
                    active_check::repeat(&check, &subject, verdict, tell).await;
                }
            }
        });
        (Some(running), is_own_word.then_some(voice))
    }

    async fn hear(&mut self, news: Told) -> Result<(), Gone> {
        let Some(held) = self.held.get_mut(&news.key) else {
            return Ok(());
        };
        if held.generation != news.generation {
            return Ok(());
        }
        let (service, instance) = &news.key;
        let health = news.verdict.health();
        tracing::info!(%service, %instance, ?health, "our instance's health changed");
        // From then on it is offered (again); a warning that comes or goes makes nobody new.
        if held.verdict.health() == Health::Failing {
            held.started_at_ms = self.clock.unix_ms();
        }
        held.verdict = news.verdict;
        self.offer(&news.key).await
    }

    /// Tells the mesh how an instance is, if that is news.
    async fn offer(&mut self, key: &Key) -> Result<(), Gone> {
        let draining = self.retiring || self.drain.holds(key);
        let Some(held) = self.held.get_mut(key) else {
            return Ok(());
        };
        let record = held.record(draining, self.learned.get(key).copied());
        if held.offered.as_ref() == Some(&record) {
            return Ok(());
        }
        held.offered = Some(record.clone());
        self.order(Order::Offer(record)).await
    }

    async fn offer_all(&mut self) -> Result<(), Gone> {
        for key in self.held.keys().cloned().collect::<Vec<_>>() {
            self.offer(&key).await?;
        }
        Ok(())
    }

    async fn drain_changed(
        &mut self,
        instances: Vec<Key>,
        done: oneshot::Sender<Drained>,
    ) -> Result<(), Gone> {
        // The mesh hears it first: the disk may be slow, and callers should stop now.
        self.offer_all().await?;
        let not_kept = self.drain.save().await.err();
        if let Some(why) = &not_kept {
            tracing::warn!(%why, "the drain state will not survive a restart");
        }
        let _ = done.send(Drained {
            instances,
            not_kept,
        });
        Ok(())
    }

    fn matching(&self, service: Option<&str>, instance: Option<&str>) -> Vec<Key> {
        self.held
            .keys()
            .filter(|(s, i)| {
                service.is_none_or(|name| name == &**s) && instance.is_none_or(|name| name == &**i)
            })
            .cloned()
            .collect()
    }

    async fn order(&self, order: Order) -> Result<(), Gone> {
        self.gossip.send(order).await.map_err(|_| Gone)
    }
}

impl Held {
    fn record(&self, draining: bool, learned: Option<u32>) -> ServiceRecord {
        ServiceRecord {
            service: self.service.service.clone(),
            instance: self.service.instance.clone(),
            address: self.service.advertise,
            protocol: self.service.protocol,
            weight: self.service.weight.get(),
            health: self.verdict.health(),
            state: if draining {
                InstanceState::Draining
            } else {
                self.verdict.state()
            },
            started_at_ms: self.started_at_ms,
            capacity: self.service.capacity.or(learned),
            tags: self.service.tags.iter().cloned().collect(),
        }
    }
}

fn key(service: &Service) -> Key {
    (service.service.clone(), service.instance.clone())
}

#[cfg(test)]
mod tests;
