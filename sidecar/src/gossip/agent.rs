//! One task: sockets in, effects out, each turn timed.
//!
//! Not here: every decision (`mesh_core::membership`), the bytes of a stream (`stream.rs`), and what the task does about
//! keys and counters (`sealing.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mesh_core::{
    membership::{CallEnd, CallId, Change, Effect, Membership, Notice, Pace, Settings},
    mesh::{Mesh, NodeState},
    moment::Moment,
};
use mesh_proto::{
    frame::{KeyRing, Opener, Sealer, boot},
    member::Member,
    session::SessionKeys,
};
use rand::seq::SliceRandom;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep_until,
};
use tracing::{debug, error, info, warn};

use super::{
    Counters, Gossip, ORDERS_MAX, Order, Sockets,
    counters::{KeyUse, Meters},
    keys::Keys,
    seeds::{FOUND_MAX, Found, Seeker},
    state::State,
    stream::{self, EVENTS_MAX, Event, FRAMES_MAX, INBOUND_MAX, Line, STRANGERS_MAX},
};
use crate::{
    clock::Clock,
    config::{self, Profile},
};

mod sealing;

/// Changes of the mesh are told at most this often.
const COALESCE: Duration = Duration::from_millis(20);

/// Datagrams read before anything else gets its turn.
const BATCH_MAX: usize = 4_096;

/// A turn longer than this delays answers to probes: peers may suspect us.
const TURN_SLOW: Duration = Duration::from_millis(100);

/// Between two updates of the metrics.
const METERS: Duration = Duration::from_secs(1);

/// Between two snapshots of whom we know.
const SNAPSHOT: Duration = Duration::from_secs(30);

/// One byte more than a datagram may have, so that a longer one is known for what it is.
const DATAGRAM_ROOM: usize = mesh_proto::DATAGRAM_BYTES_MAX + 1;

/// The gossip task's belongings.
pub struct Agent {
    clock: Clock,
    membership: Membership,
    sealer: Sealer,
    opener: Opener,
    ring: KeyRing,
    keys: Keys,
    key_use: KeyUse,
    cluster: Box<str>,
    udp: UdpSocket,
    tcp: TcpListener,
    own: Vec<SocketAddr>,
    orders: mpsc::Receiver<Order>,
    mesh: watch::Sender<Arc<Mesh>>,
    session_keys: watch::Sender<Arc<SessionKeys>>,
    names: watch::Sender<Vec<Box<str>>>,
    company: watch::Sender<bool>,
    found: mpsc::Receiver<Found>,
    events: mpsc::Receiver<Event>,
    events_in: mpsc::Sender<Event>,
    strangers: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    calls: BTreeMap<CallId, mpsc::Sender<Vec<u8>>>,
    tasks: JoinSet<()>,
    state: State,
    kept: Vec<SocketAddr>,
    leaving: Vec<oneshot::Sender<()>>,
    is_over: bool,
    publish_at: Option<Moment>,
    meters_at: Moment,
    snapshot_at: Moment,
    turn_longest: Duration,
    meters: Meters,
    counters: Arc<Counters>,
}

/// What wakes the task.
enum Wake {
    Datagrams,
    Caller(TcpStream),
    Event(Event),
    Order(Order),
    Found(Found),
    Time,
}

impl Agent {
    /// The task's belongings, ready to [`Agent::run`], and the way to it.
    pub fn new(
        sockets: Sockets,
        node: &config::Node,
        gossip: &config::Gossip,
        state: State,
        clock: Clock,
    ) -> (Agent, Gossip, Arc<Counters>) {
        let mut advertise = gossip.advertise;
        if advertise.port() == 0 {
            advertise.set_port(sockets.address.port());
        }
        let me = Member {
            id: state.id(),
            address: advertise,
            bump: state.bump(),
        };
        let settings = Settings {
            me,
            cluster: gossip.cluster.clone(),
            name: node.id.clone(),
            zone: node.zone.clone(),
            region: node.region.clone(),
            pace: match gossip.profile {
                Profile::Fast => Pace::FAST,
                Profile::Calm => Pace::CALM,
            },
            has_seeds: !gossip.join.is_empty(),
        };
        let keys = Keys::load(gossip.keys.clone(), state.directory());
        let ring = sealing::ring(keys.ring(), &gossip.cluster);
        let mut key_use = KeyUse::default();
        key_use.show(keys.ids());
        let mut membership = Membership::new(settings, &mut rand::rng(), clock.now());
        membership.on_local_change(Change::Keys(keys.ids()), clock.now());
        let (orders_in, orders) = mpsc::channel(ORDERS_MAX);
        let (mesh_in, mesh) = watch::channel(Arc::new(membership.mesh()));
        let (sessions_in, session_keys) = watch::channel(sealing::session_keys(keys.ring()));
        let (names_in, names) = watch::channel(gossip.join.clone());
        let (company_in, company) = watch::channel(false);
        let (found_in, found) = mpsc::channel(FOUND_MAX);
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let mut tasks = JoinSet::new();
        let seeker = Seeker {
            names,
            company,
            found: found_in,
            known: state.peers(),
        };
        tasks.spawn(seeker.run());
        let counters = Arc::new(Counters::default());
        let mut opener = Opener::new(ring.clone());
        opener.believe_until(membership.bump_max(clock.now()));
        let agent = Agent {
            clock,
            sealer: Sealer::new(ring.clone(), me.id, boot(me.bump, rand::random())),
            opener,
            ring,
            keys,
            key_use,
            cluster: gossip.cluster.clone(),
            udp: sockets.udp,
            tcp: sockets.tcp,
            own: vec![advertise, sockets.address],
            membership,
            orders,
            mesh: mesh_in,
            session_keys: sessions_in,
            names: names_in,
            company: company_in,
            found,
            events,
            events_in,
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            turns: Arc::new(Semaphore::new(INBOUND_MAX)),
            calls: BTreeMap::new(),
            tasks,
            state,
            kept: Vec::new(),
            leaving: Vec::new(),
            is_over: false,
            publish_at: None,
            meters_at: clock.now(),
            snapshot_at: clock.now() + SNAPSHOT,
            turn_longest: Duration::ZERO,
            meters: Meters::new(),
            counters: Arc::clone(&counters),
        };
        let gossip = Gossip {
            orders: orders_in,
            mesh,
            session_keys,
        };
        (agent, gossip, counters)
    }

    /// Runs until the goodbye is said.
    pub async fn run(mut self) {
        let me = self.membership.me();
        info!(id = format!("{:016x}", me.id), address = %me.address, clear = self.ring.is_clear(), "the gossip runs");
        while !self.is_over {
            let wake = self.wait().await;
            let began = self.clock.now();
            let is_flooded = self.turn(wake);
            self.time(self.clock.now().since(began));
            if is_flooded {
                // Anybody can send datagrams; streams, checks and the admin API share this thread with us.
                tokio::task::yield_now().await;
            }
        }
        for done in self.leaving.drain(..) {
            // Whoever asked may have gone already.
            let _ = done.send(());
        }
    }

    async fn wait(&mut self) -> Wake {
        let mut until = self.membership.next_timer().min(self.meters_at);
        if let Some(at) = self.publish_at {
            until = until.min(at);
        }
        // In no fixed order, or a flood of datagrams would starve the rest.
        tokio::select! {
            readable = self.udp.readable() => match readable {
                Ok(()) => Wake::Datagrams,
                Err(_) => Wake::Time,
            },
            Some(event) = self.events.recv() => Wake::Event(event),
            () = sleep_until(self.clock.instant(until)) => Wake::Time,
            Some(order) = self.orders.recv() => Wake::Order(order),
            Some(found) = self.found.recv() => Wake::Found(found),
            Ok((caller, _)) = self.tcp.accept() => Wake::Caller(caller),
        }
    }

    /// Yields whether there are more datagrams than one turn reads.
    fn turn(&mut self, wake: Wake) -> bool {
        match wake {
            Wake::Datagrams => {}
            Wake::Caller(caller) => self.on_caller(caller),
            Wake::Event(event) => self.on_event(event),
            Wake::Order(order) => self.on_order(order),
            Wake::Found(found) => self.on_found(&found),
            Wake::Time => {}
        }
        // Datagrams go before timers: what came during a stall must be known before anybody is judged.
        let is_flooded = self.read_datagrams();
        let now = self.clock.now();
        if now >= self.membership.next_timer() {
            self.membership.on_timer(now);
        }
        self.carry_out();
        self.publish(now);
        if now >= self.meters_at {
            self.meters_at = now + METERS;
            self.meters.update(&self.counters, &self.membership, now);
            self.meters.turn(self.turn_longest.as_secs_f64());
            self.key_use.update();
            self.forget_senders();
            self.opener.believe_until(self.membership.bump_max(now));
            while self.tasks.try_join_next().is_some() {}
        }
        if now >= self.snapshot_at {
            self.snapshot_at = now + SNAPSHOT;
            self.turn_longest = Duration::ZERO;
            self.keep_peers();
        }
        is_flooded
    }

    // ---- in ----

    /// Yields whether there are more than it read.
    fn read_datagrams(&mut self) -> bool {
        let mut room = [0; DATAGRAM_ROOM];
        for _ in 0..BATCH_MAX {
            let length = match self.udp.try_recv_from(&mut room) {
                Ok((length, _)) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
                // An earlier datagram of ours was not wanted somewhere: nothing to read, but more may follow.
                Err(_) => continue,
            };
            self.counters.datagrams_in.fetch_add(1, Ordering::Relaxed);
            self.counters
                .bytes_in
                .fetch_add(length as u64, Ordering::Relaxed);
            match self.opener.open(&mut room[..length]) {
                Ok(opened) => {
                    self.key_use.opened(opened.key);
                    let now = self.clock.now();
                    self.membership
                        .on_datagram(opened.payload, opened.sender, now);
                }
                Err(reject) => self.counters.reject(reject),
            }
            self.carry_out();
        }
        true
    }

    fn on_caller(&mut self, caller: TcpStream) {
        let Ok(permit) = Arc::clone(&self.strangers).try_acquire_owned() else {
            self.counters
                .streams_refused
                .fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (turns, line) = (Arc::clone(&self.turns), self.line());
        self.tasks.spawn(async move {
            stream::answer(caller, turns, line).await;
            drop(permit);
        });
    }

    fn line(&self) -> Line {
        Line {
            ring: self.ring.clone(),
            events: self.events_in.clone(),
            counters: Arc::clone(&self.counters),
        }
    }

    fn on_event(&mut self, event: Event) {
        let now = self.clock.now();
        match event {
            Event::Hello { hello, key, answer } => {
                self.key_use.opened(key);
                if let Some(call) = self.membership.on_call(&hello, now) {
                    let (frames_in, frames) = mpsc::channel(FRAMES_MAX);
                    self.calls.insert(call, frames_in);
                    // Should its task be gone already, the frames end in a closed channel.
                    let _ = answer.send((call, frames));
                    self.tell_floors(call, &hello);
                }
            }
            Event::Frame { call, payload } => {
                self.take_floors(&payload);
                self.membership.on_stream_message(call, &payload, now)
            }
            Event::End { call, end } => {
                self.calls.remove(&call);
                self.membership.on_call_end(call, end, now);
            }
            Event::Rejected(reject) => self.counters.reject(reject),
        }
    }

    fn on_order(&mut self, order: Order) {
        let change = match order {
            Order::Offer(record) => Change::Offer(record),
            Order::Withdraw { service, instance } => Change::Withdraw { service, instance },
            Order::Demand(record) => Change::Demand(record),
            Order::NoDemand { service } => Change::NoDemand { service },
            Order::Leave { done } => {
                self.leaving.push(done);
                Change::Leave
            }
            Order::Keys(configured) => return self.on_keys(configured),
            Order::Key { order, done } => return self.on_key_order(order, done),
            Order::Seeds(names) => {
                let is_alone = names.is_empty();
                self.names.send_if_modified(|held| {
                    let is_new = *held != names;
                    *held = names;
                    is_new
                });
                if !is_alone {
                    return;
                }
                Change::Alone
            }
        };
        self.membership.on_local_change(change, self.clock.now());
    }

    fn on_found(&mut self, found: &Found) {
        let now = self.clock.now();
        let is_own =
            |address: &SocketAddr| self.own.contains(address) || self.membership.is_self(*address);
        // Peers of an earlier life say nothing about this: they may be gone for good.
        let is_alone = !found.seeds.is_empty() && found.seeds.iter().all(is_own);
        let mut others: Vec<SocketAddr> = (found.seeds.iter().chain(&found.known).copied())
            .filter(|address| !is_own(address))
            .collect();
        if is_alone {
            self.membership.on_local_change(Change::Alone, now);
        }
        // Few are called at once: dead seeds must not always come before living acquaintances.
        others.shuffle(&mut rand::rng());
        for address in others {
            self.membership.join(address, now);
        }
    }

    // ---- out ----

    fn carry_out(&mut self) {
        while let Some(effect) = self.membership.poll() {
            match effect {
                Effect::Send { to, payload } => self.send(to, &payload),
                Effect::Dial {
                    call,
                    to,
                    hello,
                    within,
                } => {
                    let (frames_in, frames) = mpsc::channel(FRAMES_MAX);
                    self.calls.insert(call, frames_in);
                    self.key_use.sealed(self.sealer.key_id());
                    let line = self.line();
                    self.tasks
                        .spawn(stream::call(call, to, hello, within, frames, line));
                }
                Effect::Frame { call, payload } => {
                    let frames = self.calls.get(&call);
                    if frames.is_some_and(|frames| frames.try_send(payload).is_err()) {
                        // Full or over: an exchange that cannot go on is repeated later.
                        self.calls.remove(&call);
                        self.membership
                            .on_call_end(call, CallEnd::Failed, self.clock.now());
                    }
                }
                // The stream's task writes what is queued and then closes.
                Effect::Hang { call } => drop(self.calls.remove(&call)),
                Effect::Bump(bump) => self.keep_bump(bump),
                Effect::Notice(notice) => self.notice(notice),
                Effect::Left => self.is_over = true,
            }
        }
    }

    fn send(&mut self, to: SocketAddr, payload: &[u8]) {
        let Some(datagram) = self.sealer.seal(payload) else {
            error!(
                bytes = payload.len(),
                "a gossip datagram was too long and not sent"
            );
            return;
        };
        self.key_use.sealed(self.sealer.key_id());
        match self.udp.try_send_to(&datagram, to) {
            Ok(_) => {
                self.counters.datagrams_out.fetch_add(1, Ordering::Relaxed);
                self.counters
                    .bytes_out
                    .fetch_add(datagram.len() as u64, Ordering::Relaxed);
            }
            // As good as lost on the way, which the protocol bears.
            Err(error) => {
                self.counters.unsent.fetch_add(1, Ordering::Relaxed);
                debug!(%to, %error, "a gossip datagram was not sent");
            }
        }
    }

    fn publish(&mut self, now: Moment) {
        if self.membership.take_changed() && self.publish_at.is_none() {
            self.publish_at = Some(now + COALESCE);
        }
        if self.publish_at.is_some_and(|at| now >= at) {
            self.publish_at = None;
            self.mesh.send_replace(Arc::new(self.membership.mesh()));
            let company = self.membership.has_company();
            self.company
                .send_if_modified(|held| std::mem::replace(held, company) != company);
        }
    }

    fn notice(&self, notice: Notice) {
        match notice {
            Notice::State { id, state } => {
                let member = self.membership.peers().find(|(member, _)| member.id == id);
                let address = member.map(|(member, _)| member.address.to_string());
                let id = format!("{id:016x}");
                match state {
                    NodeState::Down => warn!(id, address, "a node is down"),
                    _ => info!(id, address, ?state, "a node changed its state"),
                }
            }
            Notice::Renewed => {
                warn!("others took this node for dead; it is back under a new incarnation")
            }
            Notice::Isolated(true) => {
                self.meters.isolated(true);
                warn!("this node is cut off from the others, and keeps what it knew");
            }
            Notice::Isolated(false) => {
                self.meters.isolated(false);
                info!("this node and the others hear each other again");
            }
            Notice::Unheard => warn!(
                "other nodes are heard, and none answers: what this one says does not get out; let UDP and TCP of gossip.bind out through the firewall"
            ),
            Notice::DatagramsLost { id } => warn!(
                id = format!("{id:016x}"),
                "a node is reached by TCP and not by UDP; let UDP of gossip.bind through the firewall"
            ),
            Notice::OtherCluster { at, cluster } => warn!(
                at = at.map(|at| at.to_string()),
                "a node of the cluster \"{cluster}\" was met and left alone: this one belongs to \"{}\"; mind gossip.cluster and gossip.join",
                self.cluster
            ),
            Notice::Unanswered { at } => warn!(
                %at,
                "a seed closed the stream without a word: it holds another gossip key, is about to leave, or is no sidecar"
            ),
            Notice::TooLong { service, instance } => error!(
                %service, %instance,
                "the instance is not offered: its record is over {} bytes; shorten names or tags",
                mesh_proto::RECORD_BYTES_MAX
            ),
        }
    }

    // ---- housekeeping ----

    fn keep_bump(&mut self, bump: u64) {
        if bump <= self.state.bump() {
            // What we seal under is as high already. Another boot of the same bump could be the lower one of the two,
            // and one of a lower bump surely is: whoever heard us would drop it as of an earlier start.
            return;
        }
        // The new identity seals under a boot above the old one, as after a start: whoever met the old one's datagrams
        // under a later boot would drop these as a replay.
        let boot = boot(bump, rand::random());
        self.sealer = Sealer::new(self.ring.clone(), self.membership.me().id, boot);
        self.state.raise_bump(bump);
        let state = self.state.clone();
        self.write(move || state.keep_identity());
    }

    fn keep_peers(&mut self) {
        let peers = self
            .membership
            .peers()
            .filter(|(_, state)| *state != NodeState::Left);
        let peers: Vec<_> = peers.map(|(member, _)| member.address).collect();
        if peers != self.kept {
            self.kept.clone_from(&peers);
            let state = self.state.clone();
            self.write(move || state.keep_peers(peers));
        }
    }

    /// Files are written beside the task: a slow disk must not make peers suspect us.
    fn write(&mut self, act: impl FnOnce() -> Result<(), super::StateError> + Send + 'static) {
        if self.state.is_kept() {
            self.tasks.spawn_blocking(move || {
                if let Err(fault) = act() {
                    warn!(path = %fault.path.display(), error = %fault.error, "the node's state was not kept");
                }
            });
        }
    }

    fn forget_senders(&mut self) {
        let known: BTreeSet<u64> = self
            .membership
            .peers()
            .map(|(member, _)| member.id)
            .collect();
        self.opener.retain(|sender| known.contains(&sender));
    }

    fn time(&mut self, turn: Duration) {
        self.turn_longest = self.turn_longest.max(turn);
        if turn > TURN_SLOW {
            warn!(
                ms = turn.as_millis(),
                "a turn of the gossip task was slow: other nodes may suspect this one"
            );
        }
    }
}
