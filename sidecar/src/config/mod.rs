//! The configuration, checked: what every other room reads.
//!
//! Not here: the file as written (`raw.rs`), how it becomes this (`check.rs`), where values came from (`print.rs`).

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mesh_core::policy::{Policy, Weight};
use mesh_proto::record::WireProtocol;

/// One sidecar's whole configuration.
#[derive(Clone, Debug)]
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
    /// `[service.*]`: what this host offers.
    pub services: Vec<Service>,
    /// `[upstream.*]`: what it calls under rules of its own.
    pub upstreams: Vec<Upstream>,
}

/// Who this host is.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
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

/// A 32-byte gossip key that never shows in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct GossipKey(pub [u8; 32]);

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
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Listeners routed by authority.
    pub http: Vec<ListenAddress>,
    /// `payments.<domain>` means the service payments (beside `.<domain>.internal` and `.localhost`).
    pub domain: Box<str>,
    /// Services without an `[upstream.*]` table may be called.
    pub undeclared: bool,
    /// Networks whose callers are accepted where a listener is bound off loopback; empty: loopback only.
    pub clients: Vec<Network>,
    /// Callers whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<Network>,
    /// `x-starling-*` is accepted from loopback callers.
    pub control_headers: bool,
}

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListenAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
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
#[derive(Clone, Copy, Debug)]
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
    /// Requests per second it can take.
    pub capacity: Option<u32>,
    /// Words to select by.
    pub tags: Vec<(Box<str>, Box<str>)>,
    /// How its health is found out; `None`: it is taken to be well.
    pub check: Option<Check>,
}

/// An active check.
#[derive(Clone, PartialEq, Debug)]
pub struct Check {
    /// What is tried.
    pub kind: CheckKind,
    /// Between two checks (250 ms until the first verdict).
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Failures in a row until it is failing.
    pub fall: u32,
    /// Successes in a row until it is passing.
    pub rise: u32,
}

/// What an active check tries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CheckKind {
    /// A connection is accepted.
    Tcp,
    /// `GET path` answers 200–399.
    Http {
        /// The path asked for.
        path: Box<str>,
    },
}

/// One upstream: its policy and where it listens.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The numbers.
    pub policy: Arc<Policy>,
    /// Ports of its own.
    pub listen: Vec<ListenAddress>,
    /// Run by this caller against its fixed and named endpoints.
    pub check: Option<Check>,
}
