//! The checked numbers of one upstream: balance, time limits, retries, ejection, limits, zones.
//!
//! Not here: parsing and faults (the sidecar's `config/`), and the decisions taken with the numbers.

use std::{net::SocketAddr, time::Duration};

/// Endpoints of one tier that a sidecar calls unless told otherwise: enough to choose from, and with a thousand callers few
/// enough connections at each endpoint.
pub const SUBSET: u32 = 256;

/// Everything that is decided about calls to one upstream before any call is made.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    /// The upstream's own name: its table in the configuration, and the authority it is called by.
    pub name: Box<str>,
    /// The mesh service whose instances it may use (`None`: only the fixed `endpoints`).
    pub service: Option<Box<str>>,
    /// Tags an instance must carry, all of them.
    pub select: Vec<(Box<str>, Box<str>)>,
    /// What the callers speak.
    pub protocol: Protocol,
    /// What is spoken to the endpoints.
    pub http: HttpVersion,
    /// How one of several endpoints is chosen.
    pub balance: Balance,
    /// What makes a request belong to one endpoint, before `balance` has a say.
    pub hash: Option<Hash>,
    /// What makes a client stay with one endpoint, before anything else has a say.
    pub sticky: Option<Sticky>,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Flows, where datagrams are spoken.
    pub udp: Udp,
    /// Every connection to its own listeners begins with a PROXY header.
    pub accept_proxy: bool,
    /// What connections to endpoints begin with.
    pub send_proxy: Option<ProxyVersion>,
    /// When a failed attempt is made again.
    pub retry: Retry,
    /// When an endpoint is sent out.
    pub ejection: Ejection,
    /// What is refused because it is too much.
    pub limits: Limits,
    /// Which endpoints come first.
    pub zones: Zones,
    /// Most endpoints of one tier that are called from here; `None`: all.
    pub subset: Option<u32>,
    /// Fixed and named endpoints outside the mesh.
    pub endpoints: Vec<FixedEndpoint>,
}

/// What the callers of an upstream speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2, gRPC among them.
    Http,
    /// Any bytes; never sniffed.
    Tcp,
    /// Datagrams, in flows.
    Udp,
    /// TLS passed through: bytes, led by the server name that they begin with.
    Tls,
}

/// How the flows of a UDP upstream end, beside [`Timeouts::idle`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Udp {
    /// Answers that each datagram is to have: with the last of them a flow is over; 0 when nobody can say.
    pub replies: u32,
    /// Flows at once.
    pub flows_max: u32,
}

impl Default for Udp {
    fn default() -> Udp {
        Udp {
            replies: 0,
            flows_max: 65_536,
        }
    }
}

/// A version of the PROXY protocol, which tells a server who really called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyVersion {
    /// A line of text.
    One,
    /// Bytes.
    Two,
}

/// What HTTP version is spoken to the endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HttpVersion {
    /// What the instance's record says: `grpc` means HTTP/2, else HTTP/1.1.
    Auto,
    /// HTTP/1.1.
    One,
    /// HTTP/2 by prior knowledge.
    Two,
}

/// The algorithms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Balance {
    /// Smallest expected cost of one more request; the default.
    LeastResponseTime,
    /// Smooth weighted round robin.
    RoundRobin,
    /// Fewest requests in flight by weight.
    LeastConnections,
    /// The better of two distinct draws.
    PowerOfTwo,
    /// By weight alone.
    Random,
}

/// Consistent hashing: requests of the same key go to the same endpoint, whoever calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hash {
    /// What of a request is its key; one that has none goes by [`Policy::balance`].
    pub key: HashKey,
    /// How keys are dealt out.
    pub table: HashTable,
    /// Bytes of a request's body that are waited for and looked at, where the key is in it.
    pub body_max: usize,
}

impl Hash {
    /// Bytes of a body that are looked at unless told otherwise.
    pub const BODY_MAX: usize = 16 * 1024;

    /// By this key, with all else as it is unless told otherwise.
    pub fn by(key: HashKey) -> Hash {
        Hash {
            key,
            table: HashTable::Rendezvous,
            body_max: Hash::BODY_MAX,
        }
    }
}

/// What of a request decides where it belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HashKey {
    /// The client's address.
    SourceIp,
    /// The service that calls.
    SourceService,
    /// The value of a header, its name in lower case.
    Header(Box<str>),
    /// The value of a cookie.
    Cookie(Box<str>),
    /// The value of a query parameter, as it is written.
    Query(Box<str>),
    /// The path, without the query.
    Path,
    /// The string, number or truth value that a JSON pointer leads to in the body.
    Json(Box<str>),
}

impl std::fmt::Display for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HashKey::SourceIp => f.write_str("source_ip"),
            HashKey::SourceService => f.write_str("source_service"),
            HashKey::Header(name) => write!(f, "header:{name}"),
            HashKey::Cookie(name) => write!(f, "cookie:{name}"),
            HashKey::Query(name) => write!(f, "query:{name}"),
            HashKey::Path => f.write_str("path"),
            HashKey::Json(pointer) => write!(f, "json:{pointer}"),
        }
    }
}

/// How keys are dealt out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashTable {
    /// Each slot to the best lots: no key moves that need not.
    Rendezvous,
    /// Points on a ring, more for more weight.
    Ring,
    /// Entries claimed in turn: the evenest, and a few keys move that need not.
    Maglev,
}

impl HashTable {
    /// Its name with the version of its functions: two sidecars agree on every key if they agree on this.
    pub const fn name(self) -> &'static str {
        match self {
            HashTable::Rendezvous => "rendezvous-1",
            HashTable::Ring => "ring-1",
            HashTable::Maglev => "maglev-1",
        }
    }
}

/// Sessions: a client stays with the endpoint it was sent to first, as long as that can be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sticky {
    /// A cookie of this name says where.
    Cookie {
        /// Its name.
        name: Box<str>,
        /// How long a client keeps it; `None`: until it closes.
        ttl: Option<Duration>,
    },
    /// This sidecar remembers where it sent a client's address.
    SourceIp {
        /// For how long since its last request.
        ttl: Duration,
    },
}

/// Time limits of one upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// From the first byte of the request head to the end of the answer (to its head for streams), retries included.
    pub request: Duration,
    /// To one connection, handshake included.
    pub connect: Duration,
    /// Without a byte in either direction, once the answer has begun (streams), or on a TCP relay or a UDP flow.
    pub idle: Duration,
    /// Without a byte on a relay whose one side has said all.
    pub half_closed: Duration,
    /// How long what is relayed goes on to an endpoint that is no longer to be called; `None`: for as long as it likes.
    pub endpoint_grace: Option<Duration>,
    /// How long a connection of HTTP takes requests, a tenth more or less; `None`: for as long as it lasts.
    pub connection_age: Option<Duration>,
}

/// When a failed attempt is made again. Failures before the endpoint saw anything are always tried elsewhere.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Retry {
    /// How many repeats beyond the first attempt; 0 turns them off.
    pub retries: u8,
    /// Which outcomes deserve one.
    pub on: RetryOn,
    /// Time of one attempt to its answer head; `None` leaves it the whole request timeout.
    pub per_try: Option<Duration>,
    /// Repeats allowed, as a share of requests (0.2 = 20 %).
    pub budget_share: f64,
    /// Repeats allowed beside the share, per second.
    pub budget_per_second: f64,
}

/// The classes of outcome that a repeat is allowed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RetryOn {
    /// 502, 503, 504, and no answer at all.
    pub gateway_error: bool,
    /// Every 5xx but 501 and 505.
    pub server_error: bool,
    /// The connection broke before the answer.
    pub reset: bool,
    /// Also for methods that are not idempotent.
    pub non_idempotent: bool,
}

/// When an endpoint is sent out, and for how long.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ejection {
    /// Failures in a row; 0 turns ejection off.
    pub consecutive: u32,
    /// Least success share over 10 s with at least 10 samples (0.8 = 80 %).
    pub success_below: f64,
    /// First time out; doubled each time.
    pub base: Duration,
    /// Longest time out.
    pub max: Duration,
    /// Share of a service that may be out at once (0.5 = 50 %).
    pub max_ejected: f64,
}

/// What is refused because it is too much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections accepted by this upstream's own listener.
    pub connections: u32,
    /// Requests in flight to the upstream.
    pub requests: u32,
    /// Requests waiting for a connection.
    pub pending: u32,
    /// Bytes of one header block.
    pub header_bytes: usize,
    /// Bytes of one request's body; `None`: as many as come.
    pub body_bytes: Option<u64>,
    /// Requests in flight to one endpoint; `None`: no limit of its own.
    pub endpoint_requests: Option<u32>,
}

/// Which endpoints come first.
#[derive(Clone, PartialEq, Debug)]
pub struct Zones {
    /// Whether zones matter at all.
    pub mode: ZoneMode,
    /// The operator's own order of zones (`*`: all others); empty: own zone, own region, everywhere.
    pub order: Vec<Box<str>>,
}

/// Whether zones matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZoneMode {
    /// Demand runs into the capacity of the zones, nearest first, reckoned for all zones at once.
    Waterfill,
    /// The next tier gets what the earlier ones are not well enough for.
    Priority,
    /// One tier with everybody in it.
    Ignore,
}

/// One endpoint written in the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct FixedEndpoint {
    /// Where it is.
    pub place: Place,
    /// Its zone; `None`: the own zone.
    pub zone: Option<Box<str>>,
    /// Its share relative to others.
    pub weight: Weight,
    /// Used only when nothing else is left.
    pub backup: bool,
}

/// Where a fixed endpoint is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// A literal address.
    Address(SocketAddr),
    /// A name that the shell resolves again and again; every answer is an endpoint.
    Name {
        /// The host name.
        host: Box<str>,
        /// The port.
        port: u16,
    },
}

/// A share relative to others, 1 to 65,535; 100 is the default.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Weight(u16);

impl Weight {
    /// The weight of whoever does not say otherwise.
    pub const DEFAULT: Weight = Weight(100);

    /// `None` for 0: an endpoint without weight is not an endpoint.
    pub const fn new(weight: u16) -> Option<Weight> {
        if weight == 0 {
            None
        } else {
            Some(Weight(weight))
        }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Policy {
    /// How zones matter in effect: endpoints outside the mesh have nobody who tells their demand, so there
    /// water-filling gives way to priority.
    pub fn zone_mode(&self) -> ZoneMode {
        match self.zones.mode {
            ZoneMode::Waterfill if self.service.is_none() => ZoneMode::Priority,
            mode => mode,
        }
    }

    /// Whether the key of a request is in its body.
    pub fn looks_into_bodies(&self) -> bool {
        matches!(&self.hash, Some(hash) if matches!(hash.key, HashKey::Json(_)))
    }

    /// Most endpoints of one tier that are called from here, in effect: a key may belong to any of them.
    pub fn subset_max(&self) -> usize {
        match self.subset {
            Some(most) if self.hash.is_none() => most as usize,
            _ => usize::MAX,
        }
    }

    /// The policy of an upstream nobody wrote a table for: the documented defaults of every key.
    pub fn of_service(service: &str) -> Policy {
        Policy {
            name: service.into(),
            service: Some(service.into()),
            select: Vec::new(),
            protocol: Protocol::Http,
            http: HttpVersion::Auto,
            balance: Balance::LeastResponseTime,
            hash: None,
            sticky: None,
            timeouts: Timeouts::default(),
            udp: Udp::default(),
            accept_proxy: false,
            send_proxy: None,
            retry: Retry::default(),
            ejection: Ejection::default(),
            limits: Limits::default(),
            zones: Zones::default(),
            subset: Some(SUBSET),
            endpoints: Vec::new(),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            request: Duration::from_secs(15),
            connect: Duration::from_secs(1),
            idle: Duration::from_secs(300),
            half_closed: Duration::from_secs(30),
            endpoint_grace: Some(Duration::from_secs(30)),
            connection_age: Some(Duration::from_secs(3_600)),
        }
    }
}

impl Default for Retry {
    fn default() -> Retry {
        Retry {
            retries: 1,
            on: RetryOn {
                gateway_error: true,
                ..RetryOn::default()
            },
            per_try: None,
            budget_share: 0.2,
            budget_per_second: 3.0,
        }
    }
}

impl Default for Ejection {
    fn default() -> Ejection {
        Ejection {
            consecutive: 5,
            success_below: 0.8,
            base: Duration::from_secs(1),
            max: Duration::from_secs(60),
            max_ejected: 0.5,
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 10_000,
            requests: 10_000,
            pending: 1_000,
            header_bytes: 64 * 1024,
            body_bytes: None,
            endpoint_requests: None,
        }
    }
}

impl Default for Zones {
    fn default() -> Zones {
        Zones {
            mode: ZoneMode::Waterfill,
            order: Vec::new(),
        }
    }
}
