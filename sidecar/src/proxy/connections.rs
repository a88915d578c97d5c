//! This worker's table of connections: who is connected to whom, since when, with how many bytes.
//!
//! Not here: how a row looks (`row.rs`), what the kernel knows of a socket (`kernel.rs`), and who asks (the admin API,
//! by an order to each worker). Nothing is looked up, locked, timed or formatted on the path: a connection is entered
//! once and counts in cells of its own; its clock is the table's, which moves once a second.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::SocketAddr,
    pin::Pin,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use mesh_core::{
    endpoint::Endpoint, moment::Moment, policy::Sticky, session::Session, snapshot::Upstream,
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use super::{
    proxy_header::{self, Addresses},
    transport::Transport,
};
use crate::{access_log::AccessLog, clock::Clock};

mod kernel;
pub mod reason;
pub mod row;

/// Numbers of connections, unique in this process.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A number that no other connection has.
pub fn number() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// Every connection and flow of one worker.
#[derive(Debug)]
pub struct Connections {
    clock: Clock,
    /// As of the last second.
    now: Cell<Moment>,
    slots: RefCell<Slots>,
    /// Where those that end are told of, if anywhere.
    log: RefCell<Option<AccessLog>>,
}

/// Places in the table; those given up are taken again.
#[derive(Debug, Default)]
struct Slots {
    places: Vec<Weak<Entry>>,
    free: Vec<u32>,
}

/// Which side of the sidecar a connection is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// A client opened it.
    Client,
    /// We opened it.
    Endpoint,
}

/// What is spoken on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spoken {
    /// Nobody has said anything yet.
    Nothing,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes, from the beginning or since an upgrade.
    Bytes,
    /// TLS passed through.
    Tls,
    /// Datagrams.
    Datagrams,
}

/// One connection, or one flow of datagrams; leaves the table when dropped.
#[derive(Debug)]
pub struct Entry {
    /// Its number, unique in this process.
    pub id: u64,
    /// Which side it is on.
    pub side: Side,
    table: Rc<Connections>,
    slot: u32,
    /// `None` for a flow, whose socket belongs to others too.
    transport: RefCell<Option<Transport>>,
    /// The client, where the socket does not tell: behind a proxy, or of a flow.
    told: Option<Box<Told>>,
    spoken: Cell<Spoken>,
    course: RefCell<Option<Box<Course>>>,
    opened: Moment,
    active: Cell<Moment>,
    received: Cell<u64>,
    sent: Cell<u64>,
    requests: Cell<u64>,
    under_way: Cell<u32>,
    /// How long it may be silent as it is now.
    rests: Cell<Duration>,
    /// When it is closed in any case.
    ends: Cell<Option<Moment>>,
    /// The connection on the other side that it serves, or is served by; 0: none of its own.
    partner: Cell<u64>,
    /// The word of the session that its last request belonged to; 0: none.
    session: Cell<u32>,
    /// Why it ends, once that was said.
    reason: OnceCell<Box<Reason>>,
    /// Who waits on it, and would not go on by itself when the sidecar ends.
    resting: RefCell<Option<Waker>>,
}

/// Why a connection ends.
#[derive(Debug)]
struct Reason {
    word: &'static str,
    detail: Option<String>,
}

/// A client that its socket does not tell.
#[derive(Clone, Copy, Debug)]
struct Told {
    source: SocketAddr,
    /// What it called, if that is known.
    destination: Option<SocketAddr>,
}

/// Where a connection leads.
#[derive(Clone, Debug)]
struct Course {
    upstream: Arc<str>,
    endpoint: Option<Arc<Endpoint>>,
    /// Its client stays with its endpoint.
    sticky: bool,
}

impl Connections {
    /// An empty table.
    pub fn new(clock: Clock) -> Rc<Connections> {
        Rc::new(Connections {
            clock,
            now: Cell::new(clock.now()),
            slots: RefCell::default(),
            log: RefCell::default(),
        })
    }

    /// Moves the time that bytes are noted with; called once a second.
    pub fn tick(&self, now: Moment) {
        self.now.set(now);
    }

    /// From now on those that end are told of here.
    pub fn logs_to(&self, log: Option<AccessLog>) {
        *self.log.borrow_mut() = log;
    }

    /// Enters a connection that a client opened, by a listener of `upstream` if it is one of its own. `told` is who
    /// called whom where the socket does not know.
    pub fn client(
        self: &Rc<Self>,
        transport: Transport,
        told: Option<Addresses>,
        upstream: Option<&Arc<str>>,
        rests: Duration,
    ) -> Rc<Entry> {
        let course = upstream.map(|upstream| Course {
            upstream: Arc::clone(upstream),
            endpoint: None,
            sticky: false,
        });
        // For the log: a closed socket knows no address any more.
        let noted = || {
            self.log.borrow().as_ref()?;
            Addresses::of(&transport)
        };
        let told = told.or_else(noted).map(|told| Told {
            source: told.source,
            destination: Some(told.destination),
        });
        self.enter(Side::Client, Some(transport), told, course, rests)
    }

    /// Enters a connection that we opened.
    pub fn endpoint(
        self: &Rc<Self>,
        transport: Transport,
        upstream: &Upstream,
        endpoint: &Arc<Endpoint>,
    ) -> Rc<Entry> {
        let course = Course::to(upstream, endpoint);
        self.enter(
            Side::Endpoint,
            Some(transport),
            None,
            Some(course),
            Duration::MAX,
        )
    }

    /// Enters a flow of datagrams, or one stream of many of a connection that is relayed by itself.
    pub fn flow(
        self: &Rc<Self>,
        spoken: Spoken,
        client: Option<SocketAddr>,
        upstream: &Upstream,
        endpoint: &Arc<Endpoint>,
    ) -> Rc<Entry> {
        let course = Course::to(upstream, endpoint);
        let rests = upstream.policy.timeouts.idle;
        let told = client.map(|source| Told {
            source,
            destination: None,
        });
        let entry = self.enter(Side::Client, None, told, Some(course), rests);
        entry.speaks(spoken);
        entry
    }

    fn enter(
        self: &Rc<Self>,
        side: Side,
        transport: Option<Transport>,
        told: Option<Told>,
        course: Option<Course>,
        rests: Duration,
    ) -> Rc<Entry> {
        let slots = &mut *self.slots.borrow_mut();
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.places.push(Weak::new());
            u32::try_from(slots.places.len() - 1).unwrap_or(u32::MAX)
        });
        let now = self.clock.now();
        let entry = Rc::new(Entry {
            id: number(),
            side,
            table: Rc::clone(self),
            slot,
            transport: RefCell::new(transport),
            told: told.map(Box::new),
            spoken: Cell::new(Spoken::Nothing),
            course: RefCell::new(course.map(Box::new)),
            opened: now,
            active: Cell::new(now),
            received: Cell::default(),
            sent: Cell::default(),
            requests: Cell::default(),
            under_way: Cell::default(),
            rests: Cell::new(rests),
            ends: Cell::default(),
            partner: Cell::default(),
            session: Cell::default(),
            reason: OnceCell::new(),
            resting: RefCell::default(),
        });
        if let Some(place) = slots.places.get_mut(slot as usize) {
            *place = Rc::downgrade(&entry);
        }
        entry
    }

    /// Wakes whoever rests, for the sidecar ends.
    pub fn wake_resting(&self) {
        for entry in self.all() {
            if let Some(waker) = entry.resting.take() {
                waker.wake();
            }
        }
    }

    /// Everything that is in the table now, by number.
    fn all(&self) -> Vec<Rc<Entry>> {
        let slots = self.slots.borrow();
        let mut all: Vec<Rc<Entry>> = slots.places.iter().filter_map(Weak::upgrade).collect();
        all.sort_unstable_by_key(|entry| entry.id);
        all
    }
}

impl Course {
    fn to(upstream: &Upstream, endpoint: &Arc<Endpoint>) -> Course {
        Course {
            upstream: Arc::from(&*upstream.policy.name),
            endpoint: Some(Arc::clone(endpoint)),
            sticky: matches!(upstream.policy.sticky, Some(Sticky::SourceIp { .. })),
        }
    }
}

impl Entry {
    /// Says what is spoken.
    pub fn speaks(&self, spoken: Spoken) {
        self.spoken.set(spoken);
    }

    /// It leads to this endpoint from now on.
    pub fn leads_to(&self, upstream: &Upstream, endpoint: &Arc<Endpoint>) {
        *self.course.borrow_mut() = Some(Box::new(Course::to(upstream, endpoint)));
    }

    /// From now on bytes are relayed between this connection of a client and `other`, until neither says anything for
    /// `rests`.
    pub fn relays(&self, other: &Entry, spoken: Spoken, rests: Duration) {
        let course = other.course.borrow().clone();
        *self.course.borrow_mut() = course;
        for (entry, partner) in [(self, other), (other, self)] {
            entry.partner.set(partner.id);
            entry.speaks(spoken);
            entry.rests_for(rests);
        }
    }

    /// A request begins; `partner` is the number of the connection on the other side if it has this one to itself.
    pub fn begins(&self, partner: u64) {
        self.under_way.set(self.under_way.get() + 1);
        self.requests.set(self.requests.get() + 1);
        self.partner.set(partner);
    }

    /// A request has ended.
    pub fn ended(&self) {
        self.under_way.set(self.under_way.get().saturating_sub(1));
        self.partner.set(0);
    }

    /// Requests under way.
    pub fn under_way(&self) -> u32 {
        self.under_way.get()
    }

    /// How long it may be silent from now on.
    pub fn rests_for(&self, rests: Duration) {
        self.rests.set(rests);
    }

    /// When it is closed in any case; the earliest that was said holds.
    pub fn ends_by(&self, moment: Moment) {
        let earlier = self.ends.get().filter(|ends| *ends < moment);
        self.ends.set(Some(earlier.unwrap_or(moment)));
    }

    /// Whether it is too old for another request.
    pub fn is_over_age(&self, now: Moment) -> bool {
        self.ends.get().is_some_and(|ends| ends <= now)
    }

    /// When it is closed in any case, if that was said.
    pub fn end(&self) -> Option<Moment> {
        self.ends.get()
    }

    /// The request under way belongs to this session, of an upstream that has such.
    pub fn stays(&self, session: Option<Session>) {
        self.session
            .set(session.map_or(0, |session| session.word()));
    }

    /// Says for the log why it ends, and what that word leaves open; what was said first holds.
    pub fn ends_for(&self, word: &'static str, detail: Option<String>) {
        if self.table.log.borrow().is_some() {
            let _ = self.reason.set(Box::new(Reason { word, detail }));
        }
    }

    /// Whether no byte went either way for `span`, exact to the second.
    pub fn is_silent_for(&self, span: Duration, now: Moment) -> bool {
        now.since(self.active.get()) >= span
    }

    /// Lets `cx` be woken by [`Connections::wake_resting`].
    pub fn wakes_at_end(&self, cx: &Context<'_>) {
        let resting = &mut *self.resting.borrow_mut();
        let is_known = |waker: &Waker| waker.will_wake(cx.waker());
        if !resting.as_ref().is_some_and(is_known) {
            *resting = Some(cx.waker().clone());
        }
    }

    /// Bytes came from the other end.
    pub fn received(&self, count: usize) {
        if count > 0 {
            self.received.set(self.received.get() + count as u64);
            self.active.set(self.table.now.get().max(self.active.get()));
        }
    }

    /// Bytes went to the other end.
    pub fn sent(&self, count: usize) {
        self.sent.set(self.sent.get() + count as u64);
        self.active.set(self.table.now.get().max(self.active.get()));
    }

    /// Bytes that came from and went to the other end.
    pub fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }

    /// Whoever is at the client's end, if that is known.
    pub fn client_address(&self) -> Option<SocketAddr> {
        let address = match &self.told {
            Some(told) => told.source,
            None => self.tcp(|stream| stream.peer_addr().ok())??,
        };
        Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// What a connection to an endpoint of `upstream` begins with that is made on behalf of this client: a PROXY header
    /// with its addresses; `None`: nothing.
    pub fn introduction(&self, upstream: &Upstream) -> Option<Vec<u8>> {
        let version = upstream.policy.send_proxy?;
        Some(proxy_header::write(version, self.addresses()))
    }

    /// Who called whom; `None` behind a Unix socket.
    fn addresses(&self) -> Option<Addresses> {
        match self.told.as_deref() {
            Some(told) => Some(Addresses {
                source: told.source,
                destination: told.destination?,
            }),
            None => self.carrier(Addresses::of)?,
        }
    }

    /// Looks at its TCP socket, if it is one.
    pub fn tcp<R>(&self, look: impl FnOnce(&TcpStream) -> R) -> Option<R> {
        self.transport.borrow().as_ref()?.tcp(look)
    }

    /// Looks at what carries it; `None` for a flow.
    pub fn carrier<R>(&self, look: impl FnOnce(&Transport) -> R) -> Option<R> {
        self.transport.borrow().as_ref().map(look)
    }

    /// Reads and counts.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = self.on_transport(|transport| transport.poll_read(cx, buf));
        self.received(buf.filled().len() - before);
        read
    }

    /// Writes and counts.
    pub fn poll_write(
        &self,
        write: impl FnOnce(Pin<&mut Transport>) -> Poll<std::io::Result<usize>>,
    ) -> Poll<std::io::Result<usize>> {
        let written = self.on_transport(write);
        if let Poll::Ready(Ok(count)) = written {
            self.sent(count);
        }
        written
    }

    /// Does something that moves no bytes of its own.
    pub fn on_transport<R>(
        &self,
        act: impl FnOnce(Pin<&mut Transport>) -> Poll<std::io::Result<R>>,
    ) -> Poll<std::io::Result<R>> {
        match self.transport.borrow_mut().as_mut() {
            Some(transport) => act(Pin::new(transport)),
            None => Poll::Ready(Err(std::io::ErrorKind::NotConnected.into())),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(log) = &*self.table.log.borrow()
            && self.is_told_of()
        {
            log.tell(&row::Ended::of(self, self.table.clock));
        }
        let slots = &mut *self.table.slots.borrow_mut();
        if let Some(place) = slots.places.get_mut(self.slot as usize) {
            *place = Weak::new();
            slots.free.push(self.slot);
        }
    }
}

/// A request under way on a connection, until dropped.
#[derive(Debug)]
pub struct UnderWay(Rc<Entry>);

impl UnderWay {
    /// A request begins on `entry`, which may carry others beside it.
    pub fn on(entry: &Rc<Entry>) -> UnderWay {
        entry.begins(0);
        UnderWay(Rc::clone(entry))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended();
    }
}
