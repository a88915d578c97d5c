//! One thread of the data plane: its runtime, pool, dice and cached snapshot.
//!
//! Not here: what is done with a connection (`front.rs`, `tunnel.rs`) and who gets one (`listen.rs`).

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    task::Context,
    thread,
    time::{Duration, UNIX_EPOCH},
};

use arc_swap::{ArcSwap, Cache};
use http::HeaderValue;
use mesh_core::{
    balance::{Ask, Pick, PickKind, Picker},
    endpoint::Endpoint,
    moment::Moment,
    outlier::Ejected,
    snapshot::{Shared, Snapshot, Upstream},
};
use metrics::{Counter, Gauge, counter, gauge};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{Notify, mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    connections::{Connections, Entry},
    control,
    dial::{Connector, Tcp},
    headers::{Origins, Via},
    http1::wire::Buffers,
    listen::{self, Order},
    outage::Outages,
    pool::Pool,
    porter::Porters,
    splice::Pipes,
    tally::Meters,
};
use crate::{
    access_log::AccessLog,
    clock::Clock,
    config::{ClientLimits, Network},
    request_key,
    tls::ClientTls,
};

/// Orders waiting for a worker; the control thread waits when it is full, an accept loop takes the connection itself.
pub const ORDERS_MAX: usize = 1024;
/// How often a worker closes what rested too long.
const SWEEP: Duration = Duration::from_secs(1);

/// What every worker shares.
pub struct Common {
    /// The one clock.
    pub clock: Clock,
    /// The value the two wings meet in.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// What the configuration says of all connections; replaced by a reload.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Where this sidecar is in its life.
    pub phase: watch::Receiver<Phase>,
    /// Told when it is known of one that was sent out, on any worker, whether it is well again.
    pub verdicts: Notify,
}

/// What the configuration says of all connections.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: Box<str>,
    /// The service that this host offers, if it is one.
    pub service: Option<Box<str>>,
    /// Its `Via` elements.
    pub via: Via,
    /// The suffix of mesh names.
    pub domain: Box<str>,
    /// Who may call a listener off loopback.
    pub clients: Vec<Network>,
    /// Whose forwarding headers are believed.
    pub trusted_proxies: Vec<Network>,
    /// `x-starling-*` headers of callers on this host are obeyed.
    pub control_headers: bool,
    /// How long a client's connection of HTTP goes on taking requests; `None`: for as long as the client likes.
    pub connection_age: Option<Duration>,
    /// What clients may have and take.
    pub limits: ClientLimits,
    /// Largest request head that is read, in bytes: the largest `limits.header_bytes` of all upstreams.
    pub header_bytes: usize,
    /// Where relayed connections that have ended are told of.
    pub access_log: Option<AccessLog>,
    /// TLS towards the endpoints of upstreams that have it, by the upstream's name.
    pub tls: BTreeMap<Box<str>, ClientTls>,
}

impl Settings {
    /// The service that a caller is, as far as anybody can tell: without identities that is known only of those on this
    /// host, where one service is offered.
    pub fn service_of(&self, is_local: bool) -> Option<&str> {
        self.service.as_deref().filter(|_| is_local)
    }
}

/// Where the data plane is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Serving.
    Open,
    /// Serving, and asking callers to come back on another connection.
    Closing,
    /// Accepting no more; what is in flight ends, idle connections close.
    Ending,
    /// The time for that is over: what is still open is broken off.
    Cut,
}

/// One worker's own things. Nothing of it leaves its thread.
pub struct Worker {
    /// The one clock.
    pub clock: Clock,
    /// What every worker shares.
    pub common: Arc<Common>,
    /// Buffers that no HTTP/1 connection uses now.
    pub buffers: Rc<Buffers>,
    /// What requests of callers that were here lately have in common.
    pub origins: Origins,
    /// Futures of the path that carry no request now.
    pub porters: Rc<Porters>,
    /// Open connections to endpoints.
    pub pool: RefCell<Pool>,
    /// Every connection, for whoever asks.
    pub connections: Rc<Connections>,
    /// Pipes that carry nothing now.
    pub pipes: Pipes,
    /// What becomes of relayed connections whose endpoint went bad.
    pub outages: Outages,
    /// Dice.
    pub rng: RefCell<SmallRng>,
    /// Opens connections.
    pub connector: RefCell<Connector>,
    /// Metrics of requests that name no upstream.
    pub stray: Rc<Meters>,
    /// As this worker was last told.
    phase: Cell<Phase>,
    outage_ends: Counter,
    /// Gauges of idle HTTP/1 and open HTTP/2 connections in the pool.
    kept: (Gauge, Gauge),
    snapshot: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    settings: RefCell<Cache<Arc<ArcSwap<Settings>>, Arc<Settings>>>,
    desks: RefCell<HashMap<Box<str>, Rc<Desk>>>,
    /// The second it was made for, and its text.
    date: RefCell<(u64, HeaderValue)>,
}

/// What a worker keeps for one upstream.
pub struct Desk {
    picker: RefCell<Picker>,
    /// Its metric handles.
    pub meters: Rc<Meters>,
}

/// A request's place under one of its upstream's limits, given up when dropped.
pub struct Admission {
    shared: Arc<Shared>,
    counter: fn(&Shared) -> &AtomicU32,
}

impl Admission {
    /// Takes a place; `None` when `limit` of them are taken.
    fn take(
        upstream: &Upstream,
        counter: fn(&Shared) -> &AtomicU32,
        limit: u32,
    ) -> Option<Admission> {
        let before = counter(&upstream.shared).fetch_add(1, Ordering::Relaxed);
        let admission = Admission {
            shared: Arc::clone(&upstream.shared),
            counter,
        };
        (before < limit).then_some(admission)
    }

    /// A place among the requests in flight to `upstream`.
    pub fn in_flight(upstream: &Upstream) -> Option<Admission> {
        Admission::take(
            upstream,
            |shared| &shared.in_flight,
            upstream.policy.limits.requests,
        )
    }

    /// A place among those that wait for a connection to `upstream`.
    pub fn pending(upstream: &Upstream) -> Option<Admission> {
        Admission::take(
            upstream,
            |shared| &shared.pending,
            upstream.policy.limits.pending,
        )
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        (self.counter)(&self.shared).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    /// A worker that connects over TCP.
    pub fn new(common: Arc<Common>) -> Rc<Worker> {
        Worker::with_connector(common, Box::new(Tcp))
    }

    /// A worker with another way to connect.
    pub fn with_connector(common: Arc<Common>, connector: Connector) -> Rc<Worker> {
        let connections = Connections::new(common.clock);
        connections.logs_to(common.settings.load().access_log.clone());
        let phase = *common.phase.borrow();
        Rc::new(Worker {
            clock: common.clock,
            buffers: Rc::default(),
            origins: Origins::default(),
            porters: Rc::default(),
            pipes: Pipes::default(),
            pool: RefCell::default(),
            connections,
            outages: Outages::default(),
            rng: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            connector: RefCell::new(connector),
            stray: Meters::new("-"),
            outage_ends: counter!("starling_connections_ended_total", "reason" => "endpoint"),
            kept: {
                // Each worker sets a series of its own: a shared one would show whoever set it last.
                let worker = thread::current().name().unwrap_or("-").to_owned();
                let gauge = |state: &'static str| gauge!("starling_pool_connections", "worker" => worker.clone(), "state" => state);
                (gauge("idle"), gauge("http2"))
            },
            snapshot: RefCell::new(Cache::new(Arc::clone(&common.snapshot))),
            settings: RefCell::new(Cache::new(Arc::clone(&common.settings))),
            desks: RefCell::default(),
            phase: Cell::new(phase),
            date: RefCell::new((0, HeaderValue::from_static(""))),
            common,
        })
    }

    /// The view of the mesh that this request decides by.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.snapshot.borrow_mut().load())
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(self.settings.borrow_mut().load())
    }

    /// The time as a `Date` header tells it, made once a second.
    pub fn date(&self) -> HeaderValue {
        let second = self.clock.unix_ms() / 1000;
        let mut date = self.date.borrow_mut();
        if date.0 != second {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            if let Ok(value) = HeaderValue::try_from(text) {
                *date = (second, value);
            }
        }
        date.1.clone()
    }

    /// The hash of the key of a connection or a flow from `client`, where keys decide.
    pub fn key_of_source(&self, upstream: &Upstream, client: Option<IpAddr>) -> Option<u64> {
        let hash = upstream.policy.hash.as_ref()?;
        let settings = self.settings();
        let service = settings.service_of(control::is_local(client));
        request_key::of_source(&hash.key, request_key::Source { client, service })
    }

    /// A tenth more or less than `span`, so that what began together does not end together.
    pub fn about(&self, span: Duration) -> Duration {
        span.mul_f64(self.rng.borrow_mut().random_range(0.9..=1.1))
    }

    /// Where the sidecar is in its life.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Follows the sidecar through its life, and wakes the connections that rest when it ends.
    pub async fn follow(&self) {
        let mut phases = self.common.phase.clone();
        loop {
            let phase = *phases.borrow_and_update();
            self.enter(phase);
            if phases.changed().await.is_err() {
                // Nobody is left to say so, but it ends all the same.
                return self.enter(Phase::Ending);
            }
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        if phase >= Phase::Ending {
            self.connections.wake_resting();
        }
    }

    /// Whether the sidecar ends; wakes `cx`, which serves the connection `entry`, when it does.
    pub fn is_ending(&self, cx: &Context<'_>, entry: &Entry) -> bool {
        entry.wakes_at_end(cx);
        self.phase() >= Phase::Ending
    }

    /// What this worker keeps for `upstream`.
    pub fn desk(&self, upstream: &Arc<Upstream>) -> Rc<Desk> {
        let mut desks = self.desks.borrow_mut();
        if let Some(desk) = desks.get(&upstream.policy.name) {
            return Rc::clone(desk);
        }
        let desk = Rc::new(Desk {
            picker: RefCell::new(Picker::new(upstream, &mut *self.rng.borrow_mut())),
            meters: Meters::new(&upstream.policy.name),
        });
        desks.insert(upstream.policy.name.clone(), Rc::clone(&desk));
        desk
    }

    /// Says that an endpoint was sent out.
    pub fn ejected(&self, upstream: &Arc<Upstream>, endpoint: &Endpoint, ejected: &Ejected) {
        self.desk(upstream).meters.ejection();
        tracing::info!(
            upstream = %upstream.policy.name,
            instance = %endpoint.key.instance,
            address = %endpoint.key.address,
            for_ms = u64::try_from(ejected.duration.as_millis()).unwrap_or(u64::MAX),
            gone = ejected.gone,
            because = ejected.cause.as_str(),
            "endpoint sent out: it fails for this sidecar"
        );
    }

    /// Closes what rested too long, forgets upstreams that are gone and tells of requests to the others.
    fn sweep(&self) {
        let now = self.clock.now();
        self.connections.tick(now);
        self.connections.logs_to(self.settings().access_log.clone());
        self.porters.sweep();
        let (idle, h2) = {
            let mut pool = self.pool.borrow_mut();
            pool.sweep(now);
            pool.count()
        };
        self.kept.0.set(idle as f64);
        self.kept.1.set(h2 as f64);
        let snapshot = self.snapshot();
        let ended = self.outages.review(&snapshot, now);
        self.outage_ends.increment(ended as u64);
        let desks = &mut *self.desks.borrow_mut();
        desks.retain(|name, _| snapshot.upstream(name).is_some());
        for desk in desks.values() {
            // What was asked for just before a rest counts too.
            desk.picker.borrow_mut().tell_asked();
        }
    }
}

impl Desk {
    /// Chooses an endpoint.
    pub fn pick(
        &self,
        worker: &Worker,
        upstream: &Arc<Upstream>,
        ask: &Ask<'_>,
        now: Moment,
    ) -> Option<Pick> {
        let mut picker = self.picker.borrow_mut();
        picker.follow(upstream, now);
        let pick = picker.pick(ask, now, &mut *worker.rng.borrow_mut())?;
        match pick.kind {
            PickKind::Usual => {}
            PickKind::Canary => self.meters.canary(),
            PickKind::Panic => self.meters.panic(),
        }
        Some(pick)
    }
}

/// The way to the workers.
#[derive(Clone)]
pub struct Workers {
    /// One way a worker.
    pub hands: Vec<Hand>,
}

/// The way to one worker.
#[derive(Clone)]
pub struct Hand {
    /// Orders to it.
    pub orders: mpsc::Sender<Order>,
    /// Client connections open on it.
    pub open: Arc<AtomicUsize>,
}

impl Workers {
    /// Client connections open on all of them.
    pub fn open(&self) -> usize {
        self.hands
            .iter()
            .map(|hand| hand.open.load(Ordering::Relaxed))
            .sum()
    }
}

/// Starts `count` worker threads; each ends when every [`Hand`] to it is gone and its connections are over.
///
/// # Errors
/// The system gives no thread, or a thread no event queue.
pub fn start(
    count: usize,
    common: &Arc<Common>,
) -> io::Result<(Workers, Vec<thread::JoinHandle<()>>)> {
    let mut hands = Vec::new();
    let mut inboxes = Vec::new();
    for _ in 0..count.max(1) {
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        hands.push(Hand {
            orders,
            open: Arc::default(),
        });
        inboxes.push(inbox);
    }
    let mut threads = Vec::new();
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let common = Arc::clone(common);
        // Worker 0 accepts for all, so it alone keeps ways to the others: they end when it does.
        let peers = if index == 0 {
            hands.iter().skip(1).cloned().collect()
        } else {
            Vec::new()
        };
        let open = Arc::clone(&hands[index].open);
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                // A local runtime cannot change threads, so it is made on its own.
                match Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default())
                {
                    Ok(runtime) => {
                        let _ = started.send(Ok(()));
                        runtime.block_on(live(Worker::new(common), inbox, open, peers));
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            })?;
        start.recv().map_err(io::Error::other)??;
        threads.push(thread);
    }
    Ok((Workers { hands }, threads))
}

/// A worker's life: orders in, connections served, until nobody gives orders and the last connection is over.
async fn live(
    worker: Rc<Worker>,
    mut inbox: mpsc::Receiver<Order>,
    open: Arc<AtomicUsize>,
    peers: Vec<Hand>,
) {
    let follower = Rc::clone(&worker);
    tokio::task::spawn_local(async move { follower.follow().await });
    let mut floor = listen::Floor::new(Rc::clone(&worker), open, peers);
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut phase = worker.common.phase.clone();
    loop {
        tokio::select! {
            // With the runtime goes every connection, and the log is told of each.
            _ = phase.wait_for(|phase| *phase == Phase::Cut) => return,
            order = inbox.recv() => match order {
                Some(order) => floor.carry_out(order),
                None => break,
            },
            _ = sweep.tick() => worker.sweep(),
        }
    }
    floor.close().await;
}
