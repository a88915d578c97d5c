//! UDP flows: the datagrams of one client go to one endpoint and its answers come back, until both fall silent.
//!
//! Not here: TCP (`tunnel.rs`). A flow is known by its client's address at one listener; every listener's flows live on
//! the worker that opened it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use mesh_core::{
    balance::Ask,
    moment::Moment,
    outcome::{Outcome, Unreachable},
    session::Session,
    snapshot::Upstream,
};
use metrics::{Counter, counter};
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::UdpSocket,
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    attempt::Attempt,
    connections::{self, Entry, Spoken},
    listen::may_call,
    worker::{Admission, Worker},
};
use crate::request_key;

/// Bytes of the largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Endpoints that a flow's first datagram is offered to, as long as each of them refuses it.
const TRIES_MAX: usize = 3;
/// A first datagram up to this size is kept until its endpoint is known to be there, for another try elsewhere.
const KEPT_BYTES_MAX: usize = 1_500;
/// An endpoint that has refused nothing for this long is there: what is not to be answered counts as arrived.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// Answers read from one flow before another gets its turn.
const BATCH_MAX: usize = 32;
/// Rest after the system failed to read a datagram.
const READ_REST: Duration = Duration::from_millis(50);
/// What a flow's socket may tell: an answer, or that nobody is there.
const NEWS: Interest = Interest::READABLE.add(Interest::ERROR);
/// How long a closing listener waits for answers that are due.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How often it looks whether they have come.
const LAST_LOOK: Duration = Duration::from_millis(10);

/// One listener and its flows.
struct Hub {
    worker: Rc<Worker>,
    name: Arc<str>,
    socket: UdpSocket,
    flows: RefCell<HashMap<SocketAddr, Rc<Flow>>>,
    tasks: RefCell<JoinSet<()>>,
    /// Where answers are read, one at a time.
    room: RefCell<Vec<u8>>,
    over_limit: Counter,
    foreign: Counter,
    dropped: Counter,
}

/// One client's datagrams at one listener.
struct Flow {
    upstream: Arc<Upstream>,
    course: RefCell<Course>,
    last: Cell<Moment>,
    sent: Cell<u64>,
    answered: Cell<u64>,
    /// A datagram of it was refused.
    refused: Notify,
    entry: Rc<Entry>,
    _admission: Admission,
}

/// Where a flow goes; replaced when the first datagram was refused.
struct Course {
    socket: Rc<UdpSocket>,
    attempt: Attempt,
    is_judged: bool,
    tried: Vec<u64>,
    /// The first datagram, while it may have to be sent elsewhere.
    first: Option<Bytes>,
}

/// Why a flow is over.
enum End {
    /// Every datagram has the answers it was to have, or nobody said anything for long.
    Done,
    /// Its endpoint is not there.
    Failed(Unreachable),
    /// Its endpoint was no longer to be called, and its grace was over; why.
    Outage(&'static str),
}

/// Relays the datagrams of one listener to endpoints of `name`, until `stop`.
pub async fn serve(worker: Rc<Worker>, socket: StdUdpSocket, name: Arc<str>, stop: Rc<Notify>) {
    let socket = match UdpSocket::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(upstream = %name, %error, "the listener could not be opened");
            return;
        }
    };
    let hub = Rc::new(Hub {
        worker,
        name,
        socket,
        flows: RefCell::default(),
        tasks: RefCell::default(),
        room: RefCell::new(vec![0; DATAGRAM_BYTES_MAX]),
        over_limit: counter!("starling_connections_refused_total", "reason" => "limit"),
        foreign: counter!("starling_connections_refused_total", "reason" => "client"),
        dropped: counter!("starling_datagrams_dropped_total"),
    });
    let mut room = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let read = tokio::select! {
            biased;
            () = stop.notified() => break,
            read = hub.socket.recv_from(&mut room) => read,
        };
        match read {
            Ok((count, client)) => hub.take(client, &room[..count]),
            Err(error) => {
                tracing::debug!(%error, "no datagram could be read");
                sleep(READ_REST).await;
            }
        }
    }
    let deadline = Instant::now() + LAST_ANSWERS;
    while hub
        .flows
        .borrow()
        .values()
        .any(|flow| flow.awaits_answers())
        && Instant::now() < deadline
    {
        sleep(LAST_LOOK).await;
    }
    // When this returns the port is free.
    let mut tasks = hub.tasks.take();
    tasks.shutdown().await;
}

impl Hub {
    /// Sends one datagram on its flow, a new one if its client has none.
    fn take(self: &Rc<Self>, client: SocketAddr, datagram: &[u8]) {
        let known = self.flows.borrow().get(&client).cloned();
        if let Some(flow) = known {
            match flow.send(datagram, self.worker.clock.now()) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    // The system tells a refusal once, to whoever comes first: the flow's task has to hear of it.
                    flow.refused.notify_one();
                    self.flows.borrow_mut().remove(&client);
                }
                // A full buffer loses a datagram, as any wire may.
                Err(_) => return self.dropped.increment(1),
            }
        }
        if !may_call(&self.worker, Some(client.ip().to_canonical())) {
            return self.foreign.increment(1);
        }
        if let Some(flow) = self.open(client, datagram) {
            let flow = Rc::new(flow);
            self.flows.borrow_mut().insert(client, Rc::clone(&flow));
            let hub = Rc::clone(self);
            let mut tasks = self.tasks.borrow_mut();
            while tasks.try_join_next().is_some() {}
            tasks.spawn_local(async move {
                let end = hub.carry(client, &flow).await;
                hub.forget(client, &flow);
                flow.settle(&hub.worker, end);
            });
        }
    }

    /// Lets the client's next datagram begin a new flow, unless it has one already.
    fn forget(&self, client: SocketAddr, flow: &Rc<Flow>) {
        let mut flows = self.flows.borrow_mut();
        if flows
            .get(&client)
            .is_some_and(|known| Rc::ptr_eq(known, flow))
        {
            flows.remove(&client);
        }
    }

    /// A new flow, its first datagram sent.
    fn open(&self, client: SocketAddr, datagram: &[u8]) -> Option<Flow> {
        let snapshot = self.worker.snapshot();
        let Some(upstream) = snapshot.upstream(&self.name) else {
            tracing::debug!(upstream = %self.name, "a datagram for an upstream that is gone");
            self.dropped.increment(1);
            return None;
        };
        let room = upstream.policy.udp.flows_max as usize;
        let admission = Admission::in_flight(upstream).filter(|_| self.flows.borrow().len() < room);
        let Some(admission) = admission else {
            self.over_limit.increment(1);
            return None;
        };
        let now = self.worker.clock.now();
        upstream.shared.budget.request(now);
        let first = Bytes::copy_from_slice(datagram);
        let Some(course) = self.reach(upstream, client.ip(), first, Vec::new()) else {
            tracing::debug!(upstream = %self.name, "no endpoint is left for a datagram");
            self.dropped.increment(1);
            return None;
        };
        let endpoint = course.attempt.endpoint();
        let connections = &self.worker.connections;
        let entry = connections.flow(Spoken::Datagrams, Some(client), upstream, endpoint);
        entry.received(datagram.len());
        Some(Flow {
            entry,
            upstream: Arc::clone(upstream),
            course: RefCell::new(course),
            last: Cell::new(now),
            sent: Cell::new(1),
            answered: Cell::new(0),
            refused: Notify::new(),
            _admission: admission,
        })
    }

    /// Sends `first` to an endpoint that was not tried yet.
    fn reach(
        &self,
        upstream: &Arc<Upstream>,
        client: IpAddr,
        first: Bytes,
        mut tried: Vec<u64>,
    ) -> Option<Course> {
        let desk = self.worker.desk(upstream);
        // Of a flow nothing is known but where it comes from, whatever the key.
        let source = request_key::of_address(client);
        let session = (upstream.policy.sticky.as_ref()).map(|_| Session::Source(source));
        let key = self.worker.key_of_source(upstream, Some(client));
        while tried.len() < TRIES_MAX {
            let now = self.worker.clock.now();
            let ask = Ask {
                tried: &tried,
                beyond_tier: None,
                idempotent: true,
                session,
                key,
                wish: None,
            };
            let pick = desk.pick(&self.worker, upstream, &ask, now)?;
            if !tried.is_empty() {
                desk.meters.retry();
            }
            tried.push(pick.endpoint.id);
            let mut attempt = Attempt::begin(&self.worker, upstream, &pick.endpoint, pick.canary);
            attempt.on_connection(connections::number());
            match sent_to(pick.endpoint.key.address, &first) {
                Ok(socket) => {
                    if upstream.policy.udp.replies == 0 {
                        attempt.awaits_nothing();
                    }
                    return Some(Course {
                        socket: Rc::new(socket),
                        attempt,
                        is_judged: false,
                        tried,
                        first: (first.len() <= KEPT_BYTES_MAX).then_some(first),
                    });
                }
                Err(error) => {
                    tracing::debug!(address = %pick.endpoint.key.address, %error, "a datagram cannot be sent");
                    let outcome = Outcome::Unreachable(Unreachable::ConnectFailed);
                    attempt.failed(outcome);
                    desk.meters.attempt(outcome);
                }
            }
        }
        None
    }

    /// Brings answers back until the flow is over.
    async fn carry(&self, client: SocketAddr, flow: &Flow) -> End {
        let idle = flow.upstream.policy.timeouts.idle;
        let endpoint = flow.course.borrow().attempt.endpoint().key.address;
        let mut outage = self.worker.outages.watch(&flow.upstream, endpoint);
        let mut look = pin!(sleep(SETTLED_AFTER.min(idle)));
        loop {
            let socket = Rc::clone(&flow.course.borrow().socket);
            tokio::select! {
                () = flow.refused.notified() => return End::Failed(Unreachable::Refused),
                why = outage.over() => return End::Outage(why),
                ready = socket.ready(NEWS) => {
                    let read = match ready {
                        Ok(_) => self.answer(client, flow, &socket),
                        Err(error) => Err(error),
                    };
                    match read {
                        Ok(true) => return End::Done,
                        Ok(false) => {}
                        Err(error) => {
                            let why = match error.kind() {
                                io::ErrorKind::ConnectionRefused => Unreachable::Refused,
                                _ => Unreachable::Broken,
                            };
                            if !self.goes_elsewhere(client, flow, why) {
                                return End::Failed(why);
                            }
                            let endpoint = flow.course.borrow().attempt.endpoint().key.address;
                            outage = self.worker.outages.watch(&flow.upstream, endpoint);
                        }
                    }
                }
                () = &mut look => {
                    let now = self.worker.clock.now();
                    let left = (flow.last.get() + idle).since(now);
                    if left.is_zero() {
                        return if flow.awaits_answers() && flow.answered.get() == 0 {
                            End::Failed(Unreachable::AnswerTimedOut)
                        } else {
                            End::Done
                        };
                    }
                    flow.is_there(&self.worker, false);
                    look.set(sleep(left));
                }
            }
        }
    }

    /// Reads what has come and sends it to the client; true when that was the last of it.
    fn answer(&self, client: SocketAddr, flow: &Flow, socket: &UdpSocket) -> io::Result<bool> {
        let mut room = self.room.borrow_mut();
        for _ in 0..BATCH_MAX {
            let read = match socket.try_recv(&mut room) {
                // The system tells a refusal without saying that there is anything to read.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket
                    .try_io(Interest::ERROR, || {
                        (&*SockRef::from(socket)).read(&mut room)
                    }),
                read => read,
            };
            let count = match read {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            flow.last.set(self.worker.clock.now());
            flow.answered.set(flow.answered.get() + 1);
            flow.is_there(&self.worker, true);
            match self.socket.try_send_to(&room[..count], client) {
                Ok(count) => flow.entry.sent(count),
                Err(_) => self.dropped.increment(1),
            }
            if flow.upstream.policy.udp.replies > 0 && !flow.awaits_answers() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a flow that was refused could begin anew somewhere else.
    fn goes_elsewhere(&self, client: SocketAddr, flow: &Flow, why: Unreachable) -> bool {
        let fresh = flow.sent.get() == 1 && flow.answered.get() == 0;
        let mut course = flow.course.borrow_mut();
        let Some(first) = course.first.take().filter(|_| fresh) else {
            return false;
        };
        if course.is_judged {
            return false;
        }
        course.judge(&flow.upstream, &self.worker, Outcome::Unreachable(why));
        let tried = std::mem::take(&mut course.tried);
        match self.reach(&flow.upstream, client.ip(), first, tried) {
            Some(next) => {
                flow.entry.leads_to(&flow.upstream, next.attempt.endpoint());
                *course = next;
                true
            }
            None => false,
        }
    }
}

impl Flow {
    fn send(&self, datagram: &[u8], now: Moment) -> io::Result<()> {
        self.course.borrow().socket.try_send(datagram)?;
        self.last.set(now);
        self.sent.set(self.sent.get() + 1);
        self.entry.received(datagram.len());
        Ok(())
    }

    /// Whether a datagram still lacks an answer it is to have.
    fn awaits_answers(&self) -> bool {
        let each = u64::from(self.upstream.policy.udp.replies);
        self.answered.get() < self.sent.get().saturating_mul(each)
    }

    /// The endpoint has answered, or it has refused nothing for a while where nothing is to be answered.
    fn is_there(&self, worker: &Rc<Worker>, by_answer: bool) {
        let mut course = self.course.borrow_mut();
        if course.is_judged || !(by_answer || self.upstream.policy.udp.replies == 0) {
            return;
        }
        course.first = None;
        course.judge(&self.upstream, worker, Outcome::Success);
    }

    fn settle(&self, worker: &Rc<Worker>, end: End) {
        let (reason, detail) = match end {
            End::Done => ("done", None),
            End::Failed(why) => ("no endpoint", Some(format!("{why:?}"))),
            End::Outage(why) => ("endpoint not to be called", Some(why.to_owned())),
        };
        self.entry.ends_for(reason, detail);
        let mut course = self.course.borrow_mut();
        if !course.is_judged {
            course.judge(
                &self.upstream,
                worker,
                match end {
                    End::Done | End::Outage(_) => Outcome::Success,
                    End::Failed(why) => Outcome::Unreachable(why),
                },
            );
        }
    }
}

impl Course {
    fn judge(&mut self, upstream: &Arc<Upstream>, worker: &Rc<Worker>, outcome: Outcome) {
        self.is_judged = true;
        worker.desk(upstream).meters.attempt(outcome);
        match outcome {
            Outcome::Success if upstream.policy.udp.replies == 0 => self.attempt.over(None),
            Outcome::Success => self.attempt.headed(Some(Outcome::Success)),
            failure => self.attempt.failed(failure),
        }
    }
}

/// A socket of its own towards `address`, so that answers and refusals come to this flow; `first` is sent already.
fn sent_to(address: SocketAddr, first: &[u8]) -> io::Result<UdpSocket> {
    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = StdUdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    socket.send(first)?;
    UdpSocket::from_std(socket)
}
