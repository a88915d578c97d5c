//! The configuration, checked: what every other room reads.
//!
//! Not here: the file as written (`raw.rs`), how it becomes this (`check/`), where values came from (`print.rs`).

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesh_core::policy::{Policy, Weight};
use mesh_proto::{frame::KeyId, record::WireProtocol};

pub use self::{
    active::{Check, CheckKind, HttpCheck, Pattern, Statuses},
    fault::{Fault, Faults, Place},
    sni::ServerNames,
};
use crate::{
    access_log::Sink,
    tls::{ClientTls, ServerTls},
};

mod active;
mod check;
mod fault;
mod host;
mod print;
mod raw;
mod read;
pub mod sni;
mod value;

#[cfg(test)]
mod tests;

/// Where the configuration is looked for if nobody says otherwise.
pub const PATH: &str = "/etc/starling/starling.toml";

/// Reads the configuration file at `path` and `conf.d/*.toml` beside it, merged by table name.
///
/// # Errors
/// Everything that is wrong with them, each fault with file, line, key and a fix.
pub fn load(path: &Path) -> Result<Loaded, Faults> {
    let mut faults = Vec::new();
    let files = raw::read(path, &mut faults);
    checked(files, faults, &host::Host::here())
}

/// Checks a configuration that stands in no file, such as one made from arguments; `name` stands for the file in
/// faults. The empty text is a sidecar alone on loopback with every default.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, text: &str) -> Result<Loaded, Faults> {
    let mut faults = Vec::new();
    let files = raw::of_text(name, text, &mut faults);
    checked(files, faults, &host::Host::here())
}

/// A time as the configuration writes it, `250ms` or `2s`; `None` if it is none.
pub fn duration(text: &str) -> Option<Duration> {
    value::Setting::read(&raw::Value::String(text.to_owned())).ok()
}

/// A string as TOML, for whoever writes a text for [`parse`].
pub fn quote(text: &str) -> String {
    value::quote(text)
}

/// What an application registers over the admin API as `instance` of `service`: the keys of a `[service.*]` table but
/// for those two names, no program to run as a check, and `lease`. It is judged as a table of `config` would be.
///
/// # Errors
/// Everything that is wrong with it; the faults' places say nothing.
pub fn lease(
    service: &str,
    instance: &str,
    body: &serde_json::Value,
    config: &Config,
) -> Result<Lease, Vec<Fault>> {
    check::lease(service, instance, body, config)
}

fn checked(files: raw::Files, faults: Vec<Fault>, host: &host::Host) -> Result<Loaded, Faults> {
    let sheet = read::Sheet::new(host, files.directory.clone(), files.broken, faults);
    let config = check::check(&files, &sheet);
    let parts = sheet.into_parts();
    match Faults::of(parts.faults) {
        Some(faults) => Err(faults),
        None => Ok(Loaded {
            config,
            files: files.paths.into_iter().chain(parts.secrets).collect(),
            warnings: parts.warnings,
            lines: parts.lines,
        }),
    }
}

/// A configuration without faults, and what it was made of.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every file that was read, those of secrets included: a change of any may change the configuration.
    pub files: Vec<PathBuf>,
    /// What is seldom meant as it is written.
    pub warnings: Vec<Fault>,
    lines: Vec<read::Line>,
}

impl Loaded {
    /// The effective configuration as TOML, each value with its origin as a comment; secrets are hidden.
    pub fn print(&self) -> String {
        print::render(&self.lines)
    }

    /// The same as JSON: `{"config": the tables, "origins": {"node.zone": "default", …}}`.
    pub fn to_json(&self) -> serde_json::Value {
        print::json(&self.lines)
    }
}

/// One sidecar's whole configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// `[node]`: who this host is.
    pub node: Node,
    /// `[gossip]`: how it meets the others.
    pub gossip: Gossip,
    /// `[admin]`: where it is asked and steered.
    pub admin: Admin,
    /// `[outbound]`: where local applications call it.
    pub outbound: Outbound,
    /// `[drain]`: how it goes.
    pub drain: Drain,
    /// `[access_log]`: where what has ended is written down, if anywhere.
    pub access_log: Option<Sink>,
    /// `[service.*]`: what this host offers.
    pub services: Vec<Service>,
    /// `[upstream.*]`: what it calls under rules of its own.
    pub upstreams: Vec<Upstream>,
}

impl Config {
    /// The service that this host offers; `None` if it is none or several.
    pub fn only_service(&self) -> Option<&str> {
        let first = &*self.services.first()?.service;
        let same = |service: &Service| *service.service == *first;
        self.services.iter().all(same).then_some(first)
    }
}

/// Who this host is.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// Its name; default: the host name.
    pub id: Box<str>,
    /// Its zone.
    pub zone: Box<str>,
    /// Its region.
    pub region: Box<str>,
    /// The address others reach this host by.
    pub advertise: IpAddr,
    /// Where the node id, the snapshot of peers and the drain state are kept.
    pub state_dir: Option<PathBuf>,
    /// Data worker threads.
    pub workers: usize,
}

/// How this host meets the others.
#[derive(Clone, PartialEq, Debug)]
pub struct Gossip {
    /// UDP and TCP.
    pub bind: SocketAddr,
    /// What others are told, where ports are mapped; else `node.advertise` and the bound port.
    pub advertise: SocketAddr,
    /// Seeds: `host:port`, addresses and names (port 7946 filled in).
    pub join: Vec<Box<str>>,
    /// Name checked before two meshes merge.
    pub cluster: Box<str>,
    /// 32-byte keys: the first encrypts, all decrypt; empty only on loopback.
    pub keys: Vec<GossipKey>,
    /// How hasty it is.
    pub profile: Profile,
}

/// Keys of one ring: the new one, the old one, and room for a rotation that went wrong.
pub const GOSSIP_KEYS_MAX: usize = 4;

/// A 32-byte gossip key that never shows in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct GossipKey(pub [u8; 32]);

impl GossipKey {
    /// What it is called in listings and metrics.
    pub fn id(&self) -> KeyId {
        KeyId::of(&self.0)
    }

    /// The key itself as 64 hex digits, for the file that keeps it.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A text that is not 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoGossipKey;

impl std::str::FromStr for GossipKey {
    type Err = NoGossipKey;

    fn from_str(text: &str) -> Result<GossipKey, NoGossipKey> {
        let text = text.trim();
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoGossipKey);
        }
        let mut key = [0; 32];
        for (index, byte) in key.iter_mut().enumerate() {
            *byte =
                u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).map_err(|_| NoGossipKey)?;
        }
        Ok(GossipKey(key))
    }
}

impl std::fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GossipKey(hidden)")
    }
}

/// How hasty the gossip is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// Probe period 0.5 s, suspicion at least 2 s.
    Fast,
    /// Probe period 1 s, foca's LAN suspicion.
    Calm,
}

/// Where this sidecar is asked and steered.
#[derive(Clone, PartialEq, Debug)]
pub struct Admin {
    /// TCP address; reads are open on loopback.
    pub bind: SocketAddr,
    /// Unix socket for writes.
    pub socket: Option<PathBuf>,
    /// Bearer token for writes, and for everything off loopback.
    pub token: Option<Secret>,
}

/// A secret string that never shows in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Box<str>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Where local applications call the mesh.
#[derive(Clone, PartialEq, Debug)]
pub struct Outbound {
    /// Listeners routed by authority.
    pub http: Vec<ListenAddress>,
    /// `payments.<domain>` means the service payments (beside `.<domain>.internal` and `.localhost`).
    pub domain: Box<str>,
    /// Services without an `[upstream.*]` table may be called.
    pub undeclared: bool,
    /// Networks whose callers are accepted where a listener is bound off loopback; empty: loopback only.
    pub clients: Vec<Network>,
    /// How long a connection of HTTP goes on taking requests; `None`: for as long as its client likes.
    pub connection_age: Option<Duration>,
    /// Connections open at once at each of these listeners.
    pub connections: u32,
    /// What clients may have and take, here and at the upstreams' own listeners.
    pub limits: ClientLimits,
    /// Callers whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<Network>,
    /// `x-starling-*` headers of callers on this host are obeyed.
    pub control_headers: bool,
}

/// What clients may have and take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientLimits {
    /// Connections of all listeners together; `None`: no limit of its own.
    pub all_connections: Option<u32>,
    /// Connections of one address; `None`: no limit of its own.
    pub client_connections: Option<u32>,
    /// Streams of one connection of HTTP/2 at once.
    pub streams: u32,
    /// Fields of one request's head.
    pub headers: usize,
    /// Bytes of one request line, or of the path of HTTP/2.
    pub request_line_bytes: usize,
    /// How long a request's head, a TLS handshake or a PROXY header may take.
    pub head: Duration,
    /// How long a connection of HTTP may rest, and leave an answer unread.
    pub idle: Duration,
}

impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits {
            all_connections: None,
            client_connections: None,
            streams: 100,
            headers: 100,
            request_line_bytes: 8 * 1024,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(300),
        }
    }
}

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListenAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// UDP.
    Udp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Udp(address) => write!(f, "udp:{address}"),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address prefix such as 172.26.64.0/20.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// The prefix' address.
    pub address: IpAddr,
    /// Its length in bits.
    pub bits: u8,
}

impl Network {
    /// Whether `ip` lies within (an IPv4 address mapped into IPv6 counts as IPv4).
    pub fn contains(&self, ip: IpAddr) -> bool {
        fn same(a: u128, b: u128, bits: u32, width: u32) -> bool {
            bits == 0 || (a ^ b) >> (width - bits) == 0
        }
        match (self.address.to_canonical(), ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(
                u32::from(a).into(),
                u32::from(b).into(),
                self.bits.min(32).into(),
                32,
            ),
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                same(a.into(), b.into(), self.bits.min(128).into(), 128)
            }
            _ => false,
        }
    }
}

/// How this sidecar goes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Drain {
    /// Accepts on after it said that it drains.
    pub grace: Duration,
    /// Waits for requests in flight.
    pub timeout: Duration,
}

/// One instance this host offers.
#[derive(Clone, PartialEq, Debug)]
pub struct Service {
    /// The configuration table's name, for messages.
    pub table: Box<str>,
    /// The service's name.
    pub service: Box<str>,
    /// The instance's name.
    pub instance: Box<str>,
    /// Where this sidecar's checks reach the application.
    pub address: SocketAddr,
    /// Where others call it.
    pub advertise: SocketAddr,
    /// What it speaks.
    pub protocol: WireProtocol,
    /// Its share.
    pub weight: Weight,
    /// Requests per second it can take; `None`: learned where this sidecar stands in the path.
    pub capacity: Option<u32>,
    /// Words to select by.
    pub tags: Vec<(Box<str>, Box<str>)>,
    /// How its health is found out; `None`: it is taken to be well.
    pub check: Option<Check>,
}

impl Service {
    /// A service at a port of this host, as a table with nothing but `port` (and `check.http`) would make it.
    pub fn at(node: &Node, service: &str, port: u16, check: Option<Check>) -> Service {
        let address = SocketAddr::new(node.advertise, port);
        Service {
            table: service.into(),
            service: service.into(),
            instance: format!("{}-{port}", node.id).into(),
            address,
            advertise: address,
            protocol: WireProtocol::Http,
            weight: Weight::DEFAULT,
            capacity: None,
            tags: Vec::new(),
            check,
        }
    }
}

/// A service that an application has registered itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Lease {
    /// What it offers.
    pub service: Service,
    /// How long the registration lasts unless it is renewed.
    pub lasts: Duration,
}

/// One upstream: its policy and where it listens.
#[derive(Clone, PartialEq, Debug)]
pub struct Upstream {
    /// The numbers.
    pub policy: Arc<Policy>,
    /// Ports of its own.
    pub listen: Vec<ListenAddress>,
    /// Server names that lead here, where TLS is passed through.
    pub sni: Vec<ServerNames>,
    /// Run by this caller against its fixed and named endpoints.
    pub check: Option<Check>,
    /// TLS that ends at its own listeners.
    pub listen_tls: Option<ServerTls>,
    /// TLS towards its endpoints.
    pub tls: Option<ClientTls>,
}
