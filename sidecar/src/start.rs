//! Wiring: builds all, starts threads, decides nothing.
//!
//! Not here: how each part works. This is the one room that knows both wings.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_core::policy::{Limits, Protocol};
use mesh_core::snapshot::Snapshot;
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    access_log::AccessLog,
    caller_checks::CallerChecks,
    clock::Clock,
    config::{Config, ListenAddress, Loaded, ServerNames},
    gossip::{
        self, Gossip, Order,
        keys::{KeyAnswer, KeyFault, KeyOrder},
        probe::Probes,
        publish::Publisher,
    },
    proxy::{
        connections::row::{Query, Row},
        headers::Via,
        listen::{self, Bound, Door, Opening, Sign},
        worker::{self, Common, Phase, Settings, Workers},
    },
    resolve::Resolver,
};

/// The publisher takes a changed configuration over within its 20 ms; this much later something is wrong with it.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const PUBLISHED_LOOK: Duration = Duration::from_millis(5);

/// For the workers to tell the access log of what they break off.
const CUT: Duration = Duration::from_secs(1);
/// How often it is looked whether they have.
const CUT_LOOK: Duration = Duration::from_millis(5);

/// For a seed to answer before a sidecar is ready without any: the first node of a mesh has nobody to wait for.
const JOIN_TIME: Duration = Duration::from_secs(10);

/// Why a sidecar could not start, or a reload was refused: what was tried, and the next step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartError {
    /// What was tried, on whom, and what came of it.
    pub message: String,
    /// The next step.
    pub next: String,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.next)
    }
}

impl std::error::Error for StartError {}

/// A running sidecar, all but its admin API.
pub struct Sidecar {
    /// The one clock.
    pub clock: Clock,
    /// The way to the gossip task.
    pub gossip: Gossip,
    /// The checks of this host's applications.
    pub probes: Probes,
    /// The value the two wings meet in.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Serving, joined, and not on the way out.
    pub ready: Arc<AtomicBool>,
    /// The data plane's threads.
    pub workers: Workers,
    config: watch::Sender<Arc<Loaded>>,
    settings: Arc<ArcSwap<Settings>>,
    phase: watch::Sender<Phase>,
    resolver: Resolver,
    checks: CallerChecks,
    open: BTreeMap<String, (ListenAddress, Sign)>,
    threads: Vec<thread::JoinHandle<()>>,
    gossip_task: JoinHandle<()>,
}

impl Sidecar {
    /// Binds, then starts: workers, gossip, checks, publisher. Call it within the control runtime.
    ///
    /// # Errors
    /// An address that cannot be bound, a state directory that cannot be written, no threads.
    pub async fn start(loaded: Loaded, clock: Clock) -> Result<Sidecar, StartError> {
        let loaded = Arc::new(loaded);
        let config = &loaded.config;
        warn_of(&loaded);
        let wanted = doors(config);
        let mut bound = Vec::new();
        for (address, sign) in wanted.values() {
            bound.push(bind(address, sign)?);
        }
        let (gossip, gossip_task) =
            gossip::start(config, clock)
                .await
                .map_err(|error| StartError {
                    message: error.to_string(),
                    next: "see [gossip] in the configuration".into(),
                })?;

        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::empty()));
        let access_log = access_log(config, None)?;
        let settings = Arc::new(ArcSwap::from_pointee(settings_of(config, access_log)));
        let (phase, phases) = watch::channel(Phase::Open);
        let common = Arc::new(Common {
            clock,
            snapshot: Arc::clone(&snapshot),
            settings: Arc::clone(&settings),
            phase: phases,
            verdicts: Notify::new(),
        });
        let (workers, threads) =
            worker::start(config.node.workers, &common).map_err(|error| StartError {
                message: format!("cannot start {} data workers: {error}", config.node.workers),
                next: "lower node.workers or raise the limit of threads".into(),
            })?;
        let resolver = Resolver::start();
        let checks = CallerChecks::start(resolver.resolved());
        let probes = Probes::start(&gossip, config.node.state_dir.clone(), clock);
        let (config_sender, config_receiver) = watch::channel(Arc::clone(&loaded));
        resolver.follow(&config.upstreams);
        checks.follow(&config.upstreams).await;
        let publisher = Publisher {
            snapshot: Arc::clone(&snapshot),
            clock,
            mesh: gossip.mesh.clone(),
            config: config_receiver,
            resolved: resolver.resolved(),
            not_passing: checks.not_passing(),
            session_keys: gossip.session_keys.clone(),
        };
        tokio::spawn(publisher.run());
        tokio::spawn(gossip::demand::run(
            Arc::clone(&snapshot),
            gossip.orders.clone(),
            clock,
        ));
        tokio::spawn(gossip::capacity::run(
            Arc::clone(&snapshot),
            config_sender.subscribe(),
            probes.clone(),
            clock,
        ));

        let mut sidecar = Sidecar {
            clock,
            gossip,
            probes,
            snapshot,
            ready: Arc::new(AtomicBool::new(false)),
            workers,
            config: config_sender,
            settings,
            phase,
            resolver,
            checks,
            open: BTreeMap::new(),
            threads,
            gossip_task,
        };
        sidecar.until_published().await;
        for opening in bound {
            sidecar.listen(opening).await;
        }
        sidecar.offer(config).await;
        sidecar.watch_readiness();
        Ok(sidecar)
    }

    /// The configuration in force.
    pub fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.config.borrow())
    }

    /// The configuration as it changes.
    pub fn configs(&self) -> watch::Receiver<Arc<Loaded>> {
        self.config.subscribe()
    }

    /// Swaps the configuration whole, or refuses it whole; connections survive.
    ///
    /// # Errors
    /// A new address that cannot be bound, or a change that needs a restart: nothing was changed then.
    pub async fn reload(&mut self, loaded: Loaded) -> Result<(), StartError> {
        let old = self.loaded();
        let loaded = Arc::new(loaded);
        let config = &loaded.config;
        if let Some(key) = needs_restart(&old.config, config) {
            return Err(StartError {
                message: format!("a change of {key} cannot be taken over while running"),
                next: "restart the sidecar, or undo that change".into(),
            });
        }
        let wanted = doors(config);
        let mut bound = Vec::new();
        for (key, (address, sign)) in &wanted {
            if !self.open.contains_key(key) {
                bound.push(bind(address, sign)?);
            }
        }
        let log = self.settings.load().access_log.clone();
        let log = access_log(config, Some((&old.config, log)))?;
        warn_of(&loaded);
        self.settings.store(Arc::new(settings_of(config, log)));
        self.resolver.follow(&config.upstreams);
        self.checks.follow(&config.upstreams).await;
        self.config.send_replace(Arc::clone(&loaded));
        self.until_published().await;
        let changed: Vec<(String, ListenAddress)> = self
            .open
            .iter()
            .filter(|(key, open)| wanted.get(*key) != Some(open))
            .map(|(key, (address, ..))| (key.clone(), address.clone()))
            .collect();
        for (key, address) in changed {
            match wanted.get(&key) {
                Some(open) => self.redoor(key, open.clone()).await,
                None => self.close(&address).await,
            }
        }
        for opening in bound {
            self.listen(opening).await;
        }
        self.offer(config).await;
        self.order(Order::Keys(config.gossip.keys.clone())).await;
        self.order(Order::Seeds(config.gossip.join.clone())).await;
        Ok(())
    }

    /// Changes the gossip's key ring, or tells of it. `None`: the gossip has ended.
    pub async fn keys(&self, order: KeyOrder) -> Option<Result<KeyAnswer, KeyFault>> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Key { order, done }).await;
        answer.await.ok()
    }

    /// Says that this sidecar goes: not ready, records drain, callers are asked to come back on other connections.
    pub async fn say_draining(&self) {
        self.ready.store(false, Ordering::Relaxed);
        self.phase.send_replace(Phase::Closing);
        if let Err(gone) = self.probes.retire().await {
            tracing::debug!(%gone, "nothing to drain");
        }
    }

    /// Stops listening; idle connections close, those in use end with what is in flight.
    pub async fn stop_listening(&mut self) {
        let addresses: Vec<ListenAddress> = self
            .open
            .values()
            .map(|(address, ..)| address.clone())
            .collect();
        for address in addresses {
            self.close(&address).await;
        }
        self.phase.send_replace(Phase::Ending);
    }

    /// Breaks off what is still open, and waits a moment until the workers have told the access log.
    pub async fn cut(self) {
        self.phase.send_replace(Phase::Cut);
        let deadline = Instant::now() + CUT;
        let is_over = || self.threads.iter().all(thread::JoinHandle::is_finished);
        while !is_over() && Instant::now() < deadline {
            sleep(CUT_LOOK).await;
        }
    }

    /// Where connections that have ended are told of, if anywhere.
    pub fn access_log(&self) -> Option<AccessLog> {
        self.settings.load().access_log.clone()
    }

    /// Says goodbye to the mesh.
    pub async fn leave(&mut self) {
        let (done, left) = oneshot::channel();
        self.order(Order::Leave { done }).await;
        // The task is gone already if it cannot say so.
        let _ = left.await;
    }

    /// Waits for the threads to end; call it once nothing is in flight.
    pub fn join(self) {
        let Sidecar {
            workers,
            threads,
            gossip_task,
            ..
        } = self;
        drop(workers);
        gossip_task.abort();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a data worker panicked");
            }
        }
    }

    /// Every worker's connections that `query` asks for, by number.
    pub async fn connections(&self, query: &Query) -> Vec<Row> {
        let mut rows = Vec::new();
        for hand in &self.workers.hands {
            let (done, told) = oneshot::channel();
            let order = listen::Order::Tell(Box::new(query.clone()), done);
            // A worker that has ended has no connections.
            if hand.orders.send(order).await.is_ok() {
                rows.extend(told.await.unwrap_or_default());
            }
        }
        rows.sort_unstable_by_key(|row| row.id);
        rows.truncate(query.limit);
        rows
    }

    async fn offer(&self, config: &Config) {
        if let Err(gone) = self.probes.follow(config.services.clone()).await {
            tracing::error!(%gone, "services cannot be offered");
        }
    }

    async fn order(&self, order: Order) {
        if self.gossip.orders.send(order).await.is_err() {
            tracing::error!("the gossip task has ended");
        }
    }

    async fn listen(&mut self, opening: Opening) {
        let key = key(&opening.address);
        let open = (opening.address.clone(), opening.sign.clone());
        let tls = opening.sign.tls.is_some();
        tracing::info!(address = key, door = ?opening.sign.door, tls, "listening");
        if let Some(hand) = self.workers.hands.first()
            && hand
                .orders
                .send(listen::Order::Listen(opening))
                .await
                .is_ok()
        {
            self.open.insert(key, open);
        }
    }

    /// Same socket, another sign over it: nobody is turned away meanwhile.
    async fn redoor(&mut self, key: String, open: (ListenAddress, Sign)) {
        let (address, sign) = open.clone();
        let tls = sign.tls.is_some();
        tracing::info!(address = key, door = ?sign.door, tls, "listening under other terms");
        let order = listen::Order::Redoor { address, sign };
        if let Some(hand) = self.workers.hands.first()
            && hand.orders.send(order).await.is_ok()
        {
            self.open.insert(key, open);
        }
    }

    /// Waits until the snapshot knows the configuration's upstreams: a listener that opened before would refuse its
    /// first callers.
    async fn until_published(&self) {
        let loaded = self.loaded();
        let deadline = Instant::now() + PUBLISHED_WITHIN;
        let is_published = || {
            let snapshot = self.snapshot.load();
            loaded.config.upstreams.iter().all(|upstream| {
                let known = snapshot.upstream(&upstream.policy.name);
                known.is_some_and(|known| *known.policy == *upstream.policy)
            })
        };
        while !is_published() && Instant::now() < deadline {
            sleep(PUBLISHED_LOOK).await;
        }
    }

    async fn close(&mut self, address: &ListenAddress) {
        let (done, closed) = oneshot::channel();
        if let Some(hand) = self.workers.hands.first()
            && hand
                .orders
                .send(listen::Order::Close(address.clone(), done))
                .await
                .is_ok()
        {
            // The worker has ended, and its listeners with it, if it cannot say so.
            let _ = closed.await;
        }
        self.open.remove(&key(address));
    }

    /// Ready once joined, or after [`JOIN_TIME`]; a sidecar without seeds is alone on purpose.
    fn watch_readiness(&self) {
        let ready = Arc::clone(&self.ready);
        let mut mesh = self.gossip.mesh.clone();
        let phase = self.phase.subscribe();
        tokio::spawn(async move {
            let joined = timeout(JOIN_TIME, mesh.wait_for(|mesh| mesh.joined)).await;
            let is_over = matches!(joined, Ok(Err(_)));
            if joined.is_err() {
                tracing::warn!(
                    "no seed answered within {} s: serving alone, and calling them on",
                    JOIN_TIME.as_secs()
                );
            }
            if !is_over && *phase.borrow() == Phase::Open {
                ready.store(true, Ordering::Relaxed);
                tracing::info!("ready");
                crate::notify::tell("READY=1");
            }
        });
    }
}

fn warn_of(loaded: &Loaded) {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
}

/// What each listener of a configuration leads to.
fn doors(config: &Config) -> BTreeMap<String, (ListenAddress, Sign)> {
    let mut doors = BTreeMap::new();
    for address in &config.outbound.http {
        let sign = Sign {
            door: Door::Authority,
            connections_max: config.outbound.connections,
            tls: None,
        };
        doors.insert(key(address), (address.clone(), sign));
    }
    for upstream in &config.upstreams {
        let name: &Arc<str> = &Arc::from(&*upstream.policy.name);
        for address in &upstream.listen {
            let door = match upstream.policy.protocol {
                Protocol::Http => Door::Upstream(Arc::clone(name)),
                Protocol::Tcp => Door::Tcp(Arc::clone(name)),
                Protocol::Udp => Door::Udp(Arc::clone(name)),
                Protocol::Tls => Door::Tls(leads_at(address, config)),
            };
            let sign = Sign {
                door,
                connections_max: upstream.policy.limits.connections,
                tls: upstream.listen_tls.clone(),
            };
            doors.insert(key(address), (address.clone(), sign));
        }
    }
    doors
}

/// Where each server name leads, of all upstreams that share the listener.
fn leads_at(address: &ListenAddress, config: &Config) -> Arc<[(ServerNames, Box<str>)]> {
    let sharing = config.upstreams.iter().filter(|upstream| {
        upstream.policy.protocol == Protocol::Tls && upstream.listen.contains(address)
    });
    let leads = sharing.flat_map(|upstream| {
        let name = &upstream.policy.name;
        upstream
            .sni
            .iter()
            .map(move |names| (names.clone(), name.clone()))
    });
    leads.collect()
}

fn key(address: &ListenAddress) -> String {
    address.to_string()
}

fn bind(address: &ListenAddress, sign: &Sign) -> Result<Opening, StartError> {
    let socket = Bound::new(address).map_err(|error| StartError {
        message: format!("cannot listen on {address} ({}): {error}", behind(&sign.door)),
        next: match error.kind() {
            io::ErrorKind::AddrInUse => "another program listens there: `ss -ltnp` tells which; stop it or choose another port".into(),
            io::ErrorKind::AddrNotAvailable => "that address is not of this host: `ip address` lists those that are".into(),
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one".into(),
            _ => "see the configuration key that names it".into(),
        },
    })?;
    Ok(Opening {
        address: address.clone(),
        sign: sign.clone(),
        socket,
    })
}

fn behind(door: &Door) -> String {
    match door {
        Door::Authority => "outbound.http".into(),
        Door::Tls(leads) => match leads.first() {
            Some((_, name)) => format!("upstream.{name}.listen"),
            None => "a tls listener".into(),
        },
        Door::Upstream(name) | Door::Tcp(name) | Door::Udp(name) => {
            format!("upstream.{name}.listen")
        }
    }
}

/// Opens the access log: the one there is goes on, in a file opened anew, where the place stayed the same.
fn access_log(
    config: &Config,
    old: Option<(&Config, Option<AccessLog>)>,
) -> Result<Option<AccessLog>, StartError> {
    let Some(sink) = &config.access_log else {
        return Ok(None);
    };
    let opened = match old {
        Some((old, Some(log))) if old.access_log.as_ref() == Some(sink) => {
            log.reopen(sink).map(|()| log)
        }
        _ => AccessLog::open(sink),
    };
    opened.map(Some).map_err(|error| StartError {
        message: format!("cannot open the access log ({sink:?}): {error}"),
        next: "let the sidecar's user write there, or change access_log.path".into(),
    })
}

fn settings_of(config: &Config, access_log: Option<AccessLog>) -> Settings {
    Settings {
        access_log,
        connection_age: config.outbound.connection_age,
        limits: config.outbound.limits,
        node: config.node.id.clone(),
        service: config.only_service().map(Box::from),
        via: Via::new(&config.node.id),
        domain: config.outbound.domain.clone(),
        clients: config.outbound.clients.clone(),
        trusted_proxies: config.outbound.trusted_proxies.clone(),
        control_headers: config.outbound.control_headers,
        header_bytes: config
            .upstreams
            .iter()
            .map(|upstream| upstream.policy.limits.header_bytes)
            .fold(Limits::default().header_bytes, usize::max),
        tls: config
            .upstreams
            .iter()
            .filter_map(|upstream| Some((upstream.policy.name.clone(), upstream.tls.clone()?)))
            .collect(),
    }
}

/// The first key whose change a running sidecar cannot take over.
fn needs_restart(old: &Config, new: &Config) -> Option<&'static str> {
    let checks = [
        ("node.id", old.node.id == new.node.id),
        ("node.zone", old.node.zone == new.node.zone),
        ("node.region", old.node.region == new.node.region),
        ("node.state_dir", old.node.state_dir == new.node.state_dir),
        ("node.workers", old.node.workers == new.node.workers),
        ("gossip.bind", old.gossip.bind == new.gossip.bind),
        (
            "gossip.advertise",
            old.gossip.advertise == new.gossip.advertise,
        ),
        ("gossip.cluster", old.gossip.cluster == new.gossip.cluster),
        ("gossip.profile", old.gossip.profile == new.gossip.profile),
        ("admin.bind", old.admin.bind == new.admin.bind),
        ("admin.socket", old.admin.socket == new.admin.socket),
    ];
    checks.iter().find(|(_, same)| !same).map(|(key, _)| *key)
}
