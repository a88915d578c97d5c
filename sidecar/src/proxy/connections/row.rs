//! A connection as the admin API lists it, and which ones are asked for. The names are a contract.
//!
//! Not here: the table itself (`connections.rs`), and merging what several workers say (`admin/`).

use std::{collections::HashMap, net::SocketAddr, os::fd::AsFd, rc::Rc, time::Duration};

use mesh_core::moment::Moment;
use serde::Serialize;

use super::{
    Connections, Entry, Side, Spoken,
    kernel::{self, Tcp},
    reason,
};
use crate::clock::Clock;

/// Rows of one answer: more would hold up the worker that writes them. `after` asks for those that follow.
pub const ROWS_MAX: usize = 1000;

/// One connection or flow.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// Its number, unique in this process.
    pub id: u64,
    /// `client`: a client opened it; `endpoint`: this sidecar did.
    pub side: &'static str,
    /// `-` (nothing was said yet), `http/1.1`, `h2`, `bytes` (TCP, or after an upgrade), `tls` (passed through), `udp`.
    pub protocol: &'static str,
    /// Whether TLS is ended or begun here.
    pub tls: bool,
    /// Whoever called; on the endpoint's side, whoever is being served.
    pub client: Option<SocketAddr>,
    /// The upstream; on the client's side absent where each request may have its own.
    pub upstream: Option<Box<str>>,
    /// The endpoint; on the client's side the one that serves it now.
    pub endpoint: Option<SocketAddr>,
    /// The endpoint's instance, or place as written.
    pub instance: Option<Box<str>>,
    /// The endpoint's zone.
    pub zone: Option<Box<str>>,
    /// What keeps the client with its endpoint: its address, for connections that are relayed whole; for a client's of
    /// HTTP the session of its last request, as the first eight digits of its cookie or of its address's hash.
    pub sticky: Option<Box<str>>,
    /// `idle`, `busy` (requests are under way) or `relaying`.
    pub state: &'static str,
    /// Requests so far.
    pub requests: u64,
    /// Requests under way.
    pub streams: u32,
    /// When it was opened, Unix time in milliseconds.
    pub started_ms: u64,
    /// How long ago that was.
    pub age_ms: u64,
    /// How long ago a byte went either way, exact to the second.
    pub idle_ms: u64,
    /// Bytes that came from the other end.
    pub received_bytes: u64,
    /// Bytes that went to the other end.
    pub sent_bytes: u64,
    /// How long it lasts if it goes on as now; absent while a request is under way, unless its end is set.
    pub left_ms: Option<u64>,
    /// The number of its connection on the other side, if it has one to itself.
    pub peer: Option<u64>,
    /// What the kernel knows, asked just now.
    pub tcp: Option<Tcp>,
}

/// A connection or flow that has ended, as the access log tells it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Ended {
    /// `connection`: one that was relayed, on both sides. Of HTTP each side has its own: `http_client` and
    /// `http_endpoint`.
    pub kind: &'static str,
    /// Its number, as listings had it.
    pub id: u64,
    /// When it ended, Unix time in milliseconds.
    pub ended_ms: u64,
    /// How long it was open.
    pub duration_ms: u64,
    /// See [`Row::protocol`].
    pub protocol: &'static str,
    /// See [`Row::client`].
    pub client: Option<SocketAddr>,
    /// See [`Row::upstream`].
    pub upstream: Option<Box<str>>,
    /// See [`Row::endpoint`].
    pub endpoint: Option<SocketAddr>,
    /// See [`Row::instance`].
    pub instance: Option<Box<str>>,
    /// See [`Row::zone`].
    pub zone: Option<Box<str>>,
    /// See [`Row::sticky`].
    pub sticky: Option<Box<str>>,
    /// Requests that went over it; absent of what was relayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Bytes that came from the other end, the client's of what was relayed.
    pub received_bytes: u64,
    /// Bytes that went there.
    pub sent_bytes: u64,
    /// Why it ended; `cut` if we broke it off.
    pub reason: &'static str,
    /// What the reason does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Ended {
    /// What `entry` has come to.
    pub fn of(entry: &Entry, clock: Clock) -> Ended {
        let unix_ms = clock.unix_ms();
        let row = entry.row(None, clock.now(), unix_ms);
        let is_relayed = entry.is_relayed();
        let said = entry.reason.get();
        Ended {
            kind: match entry.side {
                _ if is_relayed => "connection",
                Side::Client => "http_client",
                Side::Endpoint => "http_endpoint",
            },
            id: row.id,
            ended_ms: unix_ms,
            duration_ms: row.age_ms,
            protocol: row.protocol,
            client: row.client,
            upstream: row.upstream,
            endpoint: row.endpoint,
            instance: row.instance,
            zone: row.zone,
            sticky: row.sticky,
            requests: (!is_relayed).then_some(row.requests),
            received_bytes: row.received_bytes,
            sent_bytes: row.sent_bytes,
            // Whoever ends well says so, but for an endpoint's connection that nobody needs any more.
            reason: match said {
                Some(said) => said.word,
                None if entry.side == Side::Endpoint && row.streams == 0 => reason::DONE,
                None => reason::CUT,
            },
            detail: said.and_then(|said| said.detail.clone()),
        }
    }
}

/// Which connections are asked for; what is not said does not matter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    /// By their upstream.
    pub upstream: Option<String>,
    /// By the endpoint's address, or its instance.
    pub endpoint: Option<String>,
    /// By the client's address, with or without its port.
    pub client: Option<String>,
    /// By the endpoint's zone.
    pub zone: Option<String>,
    /// By their side.
    pub side: Option<String>,
    /// By what is spoken.
    pub protocol: Option<String>,
    /// By their state.
    pub state: Option<String>,
    /// Only those with a larger number.
    pub after: u64,
    /// So many at most, the smallest numbers first.
    pub limit: usize,
}

impl Default for Query {
    fn default() -> Query {
        Query {
            upstream: None,
            endpoint: None,
            client: None,
            zone: None,
            side: None,
            protocol: None,
            state: None,
            after: 0,
            limit: ROWS_MAX,
        }
    }
}

impl Query {
    fn wants(&self, row: &Row) -> bool {
        let is = |wanted: &Option<String>, have: &str| wanted.as_deref().is_none_or(|w| w == have);
        let may_be = |wanted: &Option<String>, have: Option<&str>| {
            wanted.is_none() || wanted.as_deref() == have
        };
        let place = |wanted: &Option<String>, address: Option<SocketAddr>, name: Option<&str>| {
            let Some(wanted) = wanted else {
                return true;
            };
            let by_address = address.is_some_and(|address| {
                *wanted == address.to_string() || *wanted == address.ip().to_string()
            });
            by_address || name == Some(wanted)
        };
        is(&self.side, row.side)
            && is(&self.protocol, row.protocol)
            && is(&self.state, row.state)
            && may_be(&self.upstream, row.upstream.as_deref())
            && may_be(&self.zone, row.zone.as_deref())
            && place(&self.endpoint, row.endpoint, row.instance.as_deref())
            && place(&self.client, row.client, None)
    }
}

impl Connections {
    /// The rows asked for, by number.
    pub fn rows(&self, query: &Query) -> Vec<Row> {
        let (clock, all) = (self.clock, self.all());
        let now = clock.now();
        let of_id: HashMap<u64, &Rc<Entry>> = all.iter().map(|entry| (entry.id, entry)).collect();
        // Who serves a client is noted on the endpoint's side alone, so that a request need not tell both.
        let serving: HashMap<u64, &Rc<Entry>> = all
            .iter()
            .filter(|entry| entry.side == Side::Endpoint && entry.partner.get() != 0)
            .map(|entry| (entry.partner.get(), entry))
            .collect();
        let unix_ms = clock.unix_ms();
        let mut rows = Vec::new();
        for entry in all.iter().filter(|entry| entry.id > query.after) {
            if rows.len() >= query.limit.min(ROWS_MAX) {
                break;
            }
            let partner = match entry.side {
                Side::Client => serving.get(&entry.id),
                Side::Endpoint => of_id.get(&entry.partner.get()),
            };
            let row = entry.row(partner.map(|partner| &***partner), now, unix_ms);
            if query.wants(&row) {
                rows.push(Row {
                    tcp: entry.tcp(|stream| kernel::tcp(stream.as_fd())).flatten(),
                    ..row
                });
            }
        }
        rows
    }
}

impl Entry {
    /// All of its row but for what the kernel knows.
    fn row(&self, partner: Option<&Entry>, now: Moment, unix_ms: u64) -> Row {
        let course = self.course.borrow();
        let others = partner.map(|partner| partner.course.borrow());
        let lent = others.as_ref().and_then(|course| course.as_deref());
        let (client_entry, endpoint) = match self.side {
            Side::Client => {
                let own = course
                    .as_deref()
                    .and_then(|course| course.endpoint.as_ref());
                let lent = lent.and_then(|course| course.endpoint.as_ref());
                (Some(self), own.or(lent))
            }
            Side::Endpoint => {
                let own = course
                    .as_deref()
                    .and_then(|course| course.endpoint.as_ref());
                (partner, own)
            }
        };
        let client = client_entry.and_then(Entry::client_address);
        let upstream = course.as_deref().or(lent).map(|course| &course.upstream);
        let relays = self.is_relayed();
        Row {
            id: self.id,
            side: match self.side {
                Side::Client => "client",
                Side::Endpoint => "endpoint",
            },
            protocol: self.spoken.get().as_str(),
            tls: self.carrier(super::Transport::is_tls).unwrap_or(false),
            client,
            upstream: upstream.map(|name| name.as_ref().into()),
            endpoint: endpoint.map(|endpoint| endpoint.key.address),
            instance: endpoint.map(|endpoint| endpoint.key.instance.clone()),
            zone: endpoint.map(|endpoint| endpoint.zone.clone()),
            sticky: match self.session.get() {
                _ if relays => client
                    .filter(|_| self.is_sticky())
                    .map(|client| client.ip().to_string().into()),
                0 => None,
                word => Some(format!("{word:08x}").into()),
            },
            state: match self.under_way.get() {
                _ if relays => "relaying",
                0 => "idle",
                _ => "busy",
            },
            requests: self.requests.get(),
            streams: self.under_way.get(),
            started_ms: unix_ms.saturating_sub(millis(now.since(self.opened))),
            age_ms: millis(now.since(self.opened)),
            idle_ms: millis(now.since(self.active.get())),
            received_bytes: self.received.get(),
            sent_bytes: self.sent.get(),
            left_ms: self.left(now).map(millis),
            peer: partner.map(|partner| partner.id),
            tcp: None,
        }
    }

    fn is_sticky(&self) -> bool {
        let course = self.course.borrow();
        course.as_deref().is_some_and(|course| course.sticky)
    }

    /// Whether its end is worth a line: what was relayed has one for both sides.
    pub(super) fn is_told_of(&self) -> bool {
        self.side == Side::Client || matches!(self.spoken.get(), Spoken::Http1 | Spoken::Http2)
    }

    fn is_relayed(&self) -> bool {
        matches!(
            self.spoken.get(),
            Spoken::Bytes | Spoken::Tls | Spoken::Datagrams
        )
    }

    /// How long it lasts if it goes on as now.
    fn left(&self, now: Moment) -> Option<Duration> {
        let is_waiting = self.under_way.get() == 0 || self.is_relayed();
        let rests = self.rests.get();
        let silence =
            (is_waiting && rests != Duration::MAX).then(|| (self.active.get() + rests).since(now));
        let end = self.ends.get().map(|ends| ends.since(now));
        silence.into_iter().chain(end).min()
    }
}

impl Spoken {
    const fn as_str(self) -> &'static str {
        match self {
            Spoken::Nothing => "-",
            Spoken::Http1 => "http/1.1",
            Spoken::Http2 => "h2",
            Spoken::Bytes => "bytes",
            Spoken::Tls => "tls",
            Spoken::Datagrams => "udp",
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
