//! This worker's open connections per endpoint: a stack of idle HTTP/1, a few shared HTTP/2. Those that began with a
//! client's address are its connection's own, and go with it.
//!
//! Not here: opening them (`dial.rs`). Nothing is shared between workers, so nothing is locked.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::Duration,
};

use mesh_core::moment::Moment;
use tokio::{sync::Mutex, time::Instant};

use super::{
    connections::{Entry, reason},
    http1::wire::SharedWire,
    http2::client::Line,
};

/// Idle HTTP/1 connections kept per endpoint and worker; one more closes the oldest.
pub const IDLE_PER_ENDPOINT_MAX: usize = 256;
/// HTTP/2 connections per endpoint and worker: another one is opened where the streams of all are used up, and with
/// this many requests wait. Four times the usual 100 streams are more than one worker keeps one endpoint busy with.
pub const H2_PER_ENDPOINT_MAX: usize = 4;
/// After another HTTP/2 connection was not to be had, none is tried for so long while there are others.
const H2_GROWS_AGAIN: Duration = Duration::from_secs(1);
/// How long an idle connection is kept while nothing is known of the server: short, because a server that closes
/// first turns the next request into an error.
pub const IDLE_UNKNOWN: Duration = Duration::from_secs(3);
/// Longest life of an idle connection, whatever the server promises; and what another Starling keeps, which has 300 s
/// for a client that rests.
pub const IDLE_MAX: Duration = Duration::from_secs(90);
/// Share of the shortest idle time a server was seen to close after that is trusted from then on.
const LEARNED_SHARE: f64 = 0.8;
/// Shortest idle time that is learned: less would mean a connection for every request, and what is closed is looked
/// for before it is used.
const LEARNED_MIN: Duration = Duration::from_millis(500);
/// What was learned is forgotten after this time: the server may have been set up anew.
const LEARNED_FOR: Duration = Duration::from_secs(600);

/// Between whom a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Between {
    /// The number of the client's connection that it is made for; 0: anybody's requests may go over it.
    pub client: u64,
    /// The endpoint.
    pub endpoint: u64,
}

/// An HTTP/1 connection at rest.
#[derive(Debug)]
pub struct Idle {
    /// Carries one request at a time.
    pub wire: SharedWire,
    /// Its place in the table; its number there tells failures on one connection from failures on several.
    pub entry: Rc<Entry>,
    /// How long it may rest, as far as the server has said.
    pub keeps: Duration,
    between: Between,
    since: Moment,
    /// When it was last seen open while it rested.
    seen: Moment,
}

impl Idle {
    /// A connection just opened, as one that can be put back later.
    pub fn fresh(between: Between, wire: SharedWire, entry: Rc<Entry>) -> Idle {
        Idle {
            wire,
            entry,
            keeps: IDLE_UNKNOWN,
            between,
            since: Moment::START,
            seen: Moment::START,
        }
    }
}

/// An endpoint's HTTP/2 connections; whoever dials holds the lock, the others wait for the result.
#[derive(Debug, Default)]
pub struct SharedH2 {
    open: RefCell<Vec<Rc<Line>>>,
    /// Held while one is opened.
    pub dialling: Mutex<()>,
    /// Before then nobody tries to open another one beside those that are open.
    grows_from: Cell<Moment>,
}

impl SharedH2 {
    /// The first connection with room for another stream, so that those opened for a peak fall idle after it.
    pub fn with_room(&self, now: Moment) -> Option<Rc<Line>> {
        let open = &mut *self.open.borrow_mut();
        // What is closed, or too old for anything new, is let go of; what is under way on it goes on.
        open.retain(|line| {
            if line.is_open() && line.entry.is_over_age(now) {
                line.entry.ends_for(reason::OLD, None);
                return false;
            }
            line.is_open()
        });
        open.iter().find(|line| line.has_room()).cloned()
    }

    /// The one that a request waits on if there is to be no other.
    pub fn least_used(&self) -> Option<Rc<Line>> {
        let open = self.open.borrow();
        open.iter()
            .min_by_key(|line| line.entry.under_way())
            .cloned()
    }

    /// Whether there may be another one.
    pub fn may_grow(&self, now: Moment) -> bool {
        self.open.borrow().len() < H2_PER_ENDPOINT_MAX && self.grows_from.get() <= now
    }

    /// Another one was not to be had: whoever finds those that are open used up waits for a stream, for a while.
    pub fn cannot_grow(&self, now: Moment) {
        self.grows_from.set(now + H2_GROWS_AGAIN);
    }

    /// Takes one in that was just opened.
    pub fn add(&self, line: Rc<Line>) {
        let open = &mut *self.open.borrow_mut();
        if let Some(other) = open.first() {
            line.terms.streams.set(other.terms.streams.get());
        }
        open.push(line);
    }

    /// Whether streams of an open one may leave HTTP, as far as the endpoint has said.
    fn lets_leave(&self) -> bool {
        let open = self.open.borrow();
        open.iter()
            .any(|line| line.is_open() && line.has_let_leave())
    }

    fn rested(&self, now: Moment) -> usize {
        let open = &mut *self.open.borrow_mut();
        open.retain(|line| {
            let rests = line.entry.under_way() == 0 && line.entry.is_silent_for(IDLE_MAX, now);
            let is_old = line.entry.is_over_age(now);
            if line.is_open() && (rests || is_old) {
                let reason = if rests { reason::IDLE } else { reason::OLD };
                line.entry.ends_for(reason, None);
            }
            line.is_open() && !rests && !is_old
        });
        open.len()
    }
}

#[derive(Debug, Default)]
struct Shelf {
    idle: Vec<Idle>,
    h2: Option<Rc<SharedH2>>,
    /// The endpoint chose HTTP/2 where it had the choice (ALPN).
    agreed_http2: bool,
    /// How long its idle connections last by experience, and since when that is known.
    learned: Option<(Duration, Moment)>,
}

impl Shelf {
    fn keeps(&self, idle: &Idle) -> Duration {
        self.learned
            .map_or(idle.keeps, |(learned, _)| idle.keeps.min(learned))
    }

    /// Closes what rested too long or is too old. False if nothing is left.
    fn sweep(&mut self, now: Moment) -> bool {
        self.sweep_idle(now);
        if let Some(place) = &self.h2
            && place.rested(now) == 0
            && Rc::strong_count(place) == 1
        {
            self.h2 = None;
        }
        !self.idle.is_empty() || self.h2.is_some()
    }

    /// Lets go of idle connections that are closed, too old or have rested enough, and learns from those that the
    /// server closed.
    fn sweep_idle(&mut self, now: Moment) {
        if self
            .learned
            .is_some_and(|(_, at)| now.since(at) >= LEARNED_FOR)
        {
            self.learned = None;
        }
        let all = std::mem::take(&mut self.idle);
        let count = all.len();
        let mut closed_after: Option<Duration> = None;
        let mut closed = 0;
        let mut rested_longest = Duration::ZERO;
        for mut idle in all {
            if !idle.wire.borrow_mut().rests() {
                // It was open at the last look, so this is what it lasted at least.
                let lasted = idle.seen.since(idle.since);
                closed += 1;
                closed_after = Some(closed_after.map_or(lasted, |shortest| shortest.min(lasted)));
                idle.entry.ends_for(reason::ENDPOINT_GONE, None);
            } else {
                idle.seen = now;
                rested_longest = rested_longest.max(now.since(idle.since));
                if now.since(idle.since) >= self.keeps(&idle) {
                    idle.entry.ends_for(reason::IDLE, None);
                } else if idle.entry.is_over_age(now) {
                    idle.entry.ends_for(reason::OLD, None);
                } else {
                    self.idle.push(idle);
                }
            }
        }
        // A time limit takes those that rested longest. All at once, of several, is a server that went; younger ones
        // before older ones is chance.
        let by_time = closed == 1 && count == 1 || closed < count;
        if let Some(lasted) = closed_after.filter(|lasted| by_time && *lasted >= rested_longest) {
            self.learn(lasted, now);
        }
    }

    fn learn(&mut self, lasted: Duration, now: Moment) {
        let learned = lasted.mul_f64(LEARNED_SHARE).max(LEARNED_MIN);
        let known = self.learned.map_or(IDLE_MAX, |(known, _)| known);
        self.learned = Some((learned.min(known), now));
    }
}

/// Shelves by endpoint.
type Shelves = HashMap<u64, Shelf>;

/// Every open connection of one worker that no request owns.
#[derive(Debug, Default)]
pub struct Pool {
    shelves: Shelves,
    /// Those of single clients' connections, by their number.
    own: HashMap<u64, Shelves>,
}

impl Pool {
    fn shelf(&mut self, between: Between) -> Option<&mut Shelf> {
        let shelves = match between.client {
            0 => &mut self.shelves,
            client => self.own.get_mut(&client)?,
        };
        shelves.get_mut(&between.endpoint)
    }

    fn shelf_or_new(&mut self, between: Between) -> &mut Shelf {
        let shelves = match between.client {
            0 => &mut self.shelves,
            client => self.own.entry(client).or_default(),
        };
        shelves.entry(between.endpoint).or_default()
    }

    /// The newest idle connection that is still open and may be used now.
    pub fn take(&mut self, between: Between, now: Moment) -> Option<Idle> {
        let shelf = self.shelf(between)?;
        while let Some(idle) = shelf.idle.pop() {
            if now.since(idle.since) >= shelf.keeps(&idle) {
                idle.entry.ends_for(reason::IDLE, None);
            } else if idle.wire.borrow_mut().rests() {
                return Some(idle);
            } else {
                idle.entry.ends_for(reason::ENDPOINT_GONE, None);
            }
        }
        None
    }

    /// Puts a connection to rest after its answer's end, if another request may follow on it.
    pub fn put(&mut self, mut idle: Idle, now: Moment) {
        idle.entry.ended();
        if !idle.wire.borrow().is_reusable() {
            return idle.entry.ends_for(reason::DONE, None);
        }
        if idle.entry.is_over_age(now) {
            return idle.entry.ends_for(reason::OLD, None);
        }
        (idle.since, idle.seen) = (now, now);
        let shelf = self.shelf_or_new(idle.between);
        idle.entry.rests_for(shelf.keeps(&idle));
        if shelf.idle.len() >= IDLE_PER_ENDPOINT_MAX {
            shelf.idle.remove(0).entry.ends_for(reason::IDLE, None);
        }
        shelf.idle.push(idle);
    }

    /// The place of the HTTP/2 connections.
    pub fn h2(&mut self, between: Between) -> Rc<SharedH2> {
        Rc::clone(self.shelf_or_new(between).h2.get_or_insert_default())
    }

    /// Whether the endpoint chose HTTP/2 when it had the choice.
    pub fn agreed_http2(&mut self, between: Between) -> bool {
        (self.shelf(between)).is_some_and(|shelf| shelf.agreed_http2)
    }

    /// Whether it did, and a stream of an open connection may leave HTTP.
    pub fn leaves_http2(&mut self, between: Between) -> bool {
        self.shelf(between).is_some_and(|shelf| {
            let shared = shelf.h2.as_ref().filter(|_| shelf.agreed_http2);
            shared.is_some_and(|shared| shared.lets_leave())
        })
    }

    /// The endpoint has chosen HTTP/2 on this connection: from now on it is shared.
    pub fn agree_http2(&mut self, between: Between, line: Rc<Line>) {
        let shelf = self.shelf_or_new(between);
        shelf.agreed_http2 = true;
        shelf.h2.get_or_insert_default().add(line);
    }

    /// Takes the HTTP/2 connections out of use; each closes when its last stream ends.
    pub fn forget_h2(&mut self, between: Between) {
        if let Some(shelf) = self.shelf(between) {
            shelf.h2 = None;
        }
    }

    /// A request on this HTTP/2 connection waited in vain: unless others have heard something on it since then, the
    /// endpoint is asked whether it is still there. A request that took too long says nothing of the others.
    pub fn doubt_h2(&mut self, between: Between, connection: u64, since: Instant) {
        let shared = self.shelf(between).and_then(|shelf| shelf.h2.as_ref());
        if let Some(shared) = shared {
            let open = shared.open.borrow();
            let line = open.iter().find(|line| line.entry.id == connection);
            line.inspect(|line| line.doubt(since));
        }
    }

    /// The endpoint chose HTTP/1 after all.
    pub fn disagree_http2(&mut self, between: Between) {
        if let Some(shelf) = self.shelf(between) {
            shelf.h2 = None;
            shelf.agreed_http2 = false;
        }
    }

    /// A client's connection is over, and with it those that were made for it alone.
    pub fn forget_client(&mut self, client: u64) {
        self.own.remove(&client);
    }

    /// Closes what rested too long or is too old; called once a second.
    pub fn sweep(&mut self, now: Moment) {
        (self.shelves).retain(|_, shelf| shelf.sweep(now) || shelf.learned.is_some());
        self.own.retain(|_, shelves| {
            shelves.retain(|_, shelf| shelf.sweep(now));
            !shelves.is_empty()
        });
    }

    /// Idle HTTP/1 and open HTTP/2 connections.
    pub fn count(&self) -> (usize, usize) {
        let own = self.own.values().flat_map(Shelves::values);
        let all = self.shelves.values().chain(own);
        all.fold((0, 0), |(idle, h2), shelf| {
            let shared = shelf.h2.as_ref();
            let open = shared.map_or(0, |shared| shared.open.borrow().len());
            (idle + shelf.idle.len(), h2 + open)
        })
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::policy::Policy;
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::{
        clock::Clock,
        proxy::{
            connections::Connections,
            http1::wire::{Buffers, Wire},
            transport::Transport,
        },
    };

    /// What anybody may use to endpoint 1.
    const ANYBODYS: Between = Between {
        client: 0,
        endpoint: 1,
    };

    /// A pool of connections to endpoint 1, and the servers' ends.
    #[derive(Default)]
    struct Servers {
        pool: Pool,
        ends: Vec<DuplexStream>,
    }

    impl Servers {
        /// A connection that anybody may use comes to rest.
        fn rest(&mut self, now: Moment) {
            self.rest_for(0, now);
        }

        /// One that is a client's own, if that is not 0.
        fn rest_for(&mut self, client: u64, now: Moment) {
            let between = Between { client, ..ANYBODYS };
            let (near, far) = duplex(64);
            self.ends.push(far);
            let connections = Connections::new(Clock::new());
            let entry = connections.client(Transport::Pipe(near), None, None, IDLE_MAX);
            let transport = Transport::Listed(Rc::clone(&entry));
            let wire = Wire::new(transport, &Rc::<Buffers>::default());
            let mut idle = Idle::fresh(between, wire, entry);
            idle.keeps = IDLE_MAX;
            self.pool.put(idle, now);
        }

        fn learned(&self) -> Option<Duration> {
            self.pool
                .shelves
                .get(&1)?
                .learned
                .map(|(learned, _)| learned)
        }
    }

    fn second(number: u64) -> Moment {
        Moment::from_millis(number * 1000)
    }

    #[test]
    fn a_server_that_closes_what_rests_is_known_by_it_and_forgotten_after_a_while() {
        let mut servers = Servers::default();
        servers.rest(second(1));
        servers.rest(second(5));
        for now in 6..=10 {
            servers.pool.sweep(second(now));
        }
        // The older one of the two is closed after it was seen open for 9 s.
        drop(servers.ends.remove(0));
        servers.pool.sweep(second(11));
        assert_eq!(servers.learned(), Some(Duration::from_millis(7200)));
        assert!(
            servers.pool.take(ANYBODYS, second(12)).is_some(),
            "it rested 7 s"
        );
        servers.rest(second(20));
        assert!(
            servers.pool.take(ANYBODYS, second(28)).is_none(),
            "8 s are too long now"
        );
        servers.pool.sweep(second(11 + 600));
        assert_eq!(servers.learned(), None);
    }

    #[test]
    fn a_server_that_goes_teaches_nothing() {
        let mut servers = Servers::default();
        servers.rest(second(1));
        servers.rest(second(5));
        servers.pool.sweep(second(6));
        servers.ends.clear();
        servers.pool.sweep(second(7));
        assert_eq!(servers.learned(), None);
        // Nor does one younger connection that breaks while an older one stays.
        servers.rest(second(8));
        servers.rest(second(9));
        servers.pool.sweep(second(10));
        drop(servers.ends.pop());
        servers.pool.sweep(second(11));
        assert_eq!(servers.learned(), None);
    }

    #[test]
    fn the_newest_connection_is_used_first_so_that_the_older_ones_may_close() {
        let mut servers = Servers::default();
        for number in 1..=3 {
            servers.rest(second(number));
        }
        let mut take = || {
            servers
                .pool
                .take(ANYBODYS, second(4))
                .map(|idle| idle.since)
        };
        let order = [take(), take(), take(), take()];
        let newest_first = [3, 2, 1].map(|number| Some(second(number)));
        assert_eq!(order[..3], newest_first);
        assert_eq!(order[3], None);
    }

    #[test]
    fn a_connection_that_is_too_old_takes_no_other_request() {
        let mut servers = Servers::default();
        servers.rest(second(1));
        let idle = servers.pool.take(ANYBODYS, second(2)).expect("it is young");
        idle.entry.ends_by(second(10));
        servers.pool.put(idle, second(10));
        assert_eq!(servers.pool.count(), (0, 0));
        assert!(Policy::of_service("web").timeouts.connection_age.is_some());
    }

    #[test]
    fn what_was_made_for_one_client_serves_no_other_and_goes_with_it() {
        let mut servers = Servers::default();
        for client in [7, 0, 8] {
            servers.rest_for(client, second(1));
        }
        let of = |client| Between { client, ..ANYBODYS };
        assert!(servers.pool.take(of(9), second(2)).is_none());
        let own = servers.pool.take(of(7), second(2)).expect("its own");
        assert!(servers.pool.take(of(7), second(2)).is_none());
        assert!(servers.pool.take(ANYBODYS, second(2)).is_some());
        servers.pool.put(own, second(3));
        assert_eq!(servers.pool.count(), (2, 0));
        servers.pool.forget_client(8);
        assert_eq!(servers.pool.count(), (1, 0));
        // One whose request ends after its client has gone rests no longer than any.
        servers.pool.sweep(second(3) + IDLE_MAX);
        assert_eq!(servers.pool.count(), (0, 0));
        assert!(servers.pool.own.is_empty());
    }
}
