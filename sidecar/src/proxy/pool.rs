//! This worker's open connections per endpoint: a stack of idle HTTP/1, one shared HTTP/2.
//!
//! Not here: opening them (`dial.rs`). Nothing is shared between workers, so nothing is locked.

use std::{collections::HashMap, rc::Rc, time::Duration};

use hyper::client::conn::http2;
use mesh_core::moment::Moment;
use tokio::sync::Mutex;

use super::{body::RequestBody, connections::Entry, http1::wire::SharedWire};

/// Idle HTTP/1 connections kept per endpoint and worker; one more closes the oldest.
pub const IDLE_PER_ENDPOINT_MAX: usize = 256;
/// How long an idle connection is kept while nothing is known of the server: short, because a server that closes
/// first turns the next request into an error.
pub const IDLE_UNKNOWN: Duration = Duration::from_secs(3);
/// Longest life of an idle connection, whatever the server promises.
pub const IDLE_MAX: Duration = Duration::from_secs(90);

/// An HTTP/1 connection at rest.
#[derive(Debug)]
pub struct Idle {
    /// Carries one request at a time.
    pub wire: SharedWire,
    /// Its place in the table; its number there tells failures on one connection from failures on several.
    pub entry: Rc<Entry>,
    /// How long it may rest.
    pub keeps: Duration,
    since: Moment,
}

/// A shared HTTP/2 connection.
#[derive(Clone, Debug)]
pub struct Multiplexed {
    /// Sends many requests at once.
    pub sender: http2::SendRequest<RequestBody>,
    /// Its place in the table.
    pub entry: Rc<Entry>,
    /// `https` if TLS protects it, else `http`: what its requests say in `:scheme`.
    pub scheme: &'static str,
}

/// The place of an endpoint's HTTP/2 connection; whoever dials holds the lock, the others wait for the result.
pub type SharedH2 = Rc<Mutex<Option<Multiplexed>>>;

#[derive(Debug, Default)]
struct Shelf {
    idle: Vec<Idle>,
    h2: Option<(SharedH2, Moment)>,
    /// The endpoint chose HTTP/2 where it had the choice (ALPN).
    agreed_http2: bool,
}

/// Every open connection of one worker that no request owns.
#[derive(Debug, Default)]
pub struct Pool {
    shelves: HashMap<u64, Shelf>,
}

impl Pool {
    /// A connection just opened, as one that can be put back later.
    pub fn fresh(wire: SharedWire, entry: Rc<Entry>) -> Idle {
        Idle {
            wire,
            entry,
            keeps: IDLE_UNKNOWN,
            since: Moment::START,
        }
    }

    /// The newest idle connection to `endpoint` that is still open and may be used now.
    pub fn take(&mut self, endpoint: u64, now: Moment) -> Option<Idle> {
        let shelf = self.shelves.get_mut(&endpoint)?;
        while let Some(idle) = shelf.idle.pop() {
            if now.since(idle.since) < idle.keeps && idle.wire.borrow_mut().rests() {
                return Some(idle);
            }
        }
        None
    }

    /// Puts a connection to rest after its answer's end, if another request may follow on it.
    pub fn put(&mut self, endpoint: u64, mut idle: Idle, now: Moment) {
        idle.entry.ended();
        if !idle.wire.borrow().is_reusable() {
            return;
        }
        idle.since = now;
        idle.entry.rests_for(idle.keeps);
        let shelf = self.shelves.entry(endpoint).or_default();
        if shelf.idle.len() >= IDLE_PER_ENDPOINT_MAX {
            shelf.idle.remove(0);
        }
        shelf.idle.push(idle);
    }

    /// The place of `endpoint`'s HTTP/2 connection.
    pub fn h2(&mut self, endpoint: u64, now: Moment) -> SharedH2 {
        let (place, used) = self
            .shelves
            .entry(endpoint)
            .or_default()
            .h2
            .get_or_insert_with(|| (SharedH2::default(), now));
        *used = now;
        Rc::clone(place)
    }

    /// Whether `endpoint` chose HTTP/2 when it had the choice.
    pub fn agreed_http2(&self, endpoint: u64) -> bool {
        (self.shelves.get(&endpoint)).is_some_and(|shelf| shelf.agreed_http2)
    }

    /// `endpoint` has chosen HTTP/2 on this connection: from now on it is shared.
    pub fn agree_http2(&mut self, endpoint: u64, shared: Multiplexed, now: Moment) {
        let shelf = self.shelves.entry(endpoint).or_default();
        shelf.agreed_http2 = true;
        shelf.h2 = Some((Rc::new(Mutex::new(Some(shared))), now));
    }

    /// Takes `endpoint`'s HTTP/2 connection out of use; it closes when its last stream ends.
    pub fn forget_h2(&mut self, endpoint: u64) {
        if let Some(shelf) = self.shelves.get_mut(&endpoint) {
            shelf.h2 = None;
        }
    }

    /// `endpoint` chose HTTP/1 after all.
    pub fn disagree_http2(&mut self, endpoint: u64) {
        if let Some(shelf) = self.shelves.get_mut(&endpoint) {
            shelf.h2 = None;
            shelf.agreed_http2 = false;
        }
    }

    /// Closes what rested too long; called once a second.
    pub fn sweep(&mut self, now: Moment) {
        self.shelves.retain(|_, shelf| {
            shelf.idle.retain(|idle| {
                now.since(idle.since) < idle.keeps && idle.wire.borrow_mut().rests()
            });
            if let Some((place, used)) = &shelf.h2
                && now.since(*used) >= IDLE_MAX
                && Rc::strong_count(place) == 1
            {
                shelf.h2 = None;
            }
            !shelf.idle.is_empty() || shelf.h2.is_some()
        });
    }

    /// Idle HTTP/1 and open HTTP/2 connections.
    pub fn count(&self) -> (usize, usize) {
        self.shelves.values().fold((0, 0), |(idle, h2), shelf| {
            (
                idle + shelf.idle.len(),
                h2 + usize::from(shelf.h2.is_some()),
            )
        })
    }
}
