//! The rows of the listings, as JSON and the command line have them. Their names are a contract.
//!
//! Not here: endpoints, which `mesh_core::explain` tells, and who asks.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, sync::atomic::Ordering};

use mesh_core::{
    mesh::{Instance, Mesh, Node, NodeState},
    moment::Moment,
};
use mesh_proto::record::{Health, InstanceState, WireProtocol};
use serde::Serialize;

use super::{State, words};

/// One row of `/v1/members`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Member {
    /// Its random id: 16 hex digits.
    pub id: String,
    /// Its configured name.
    pub node: Box<str>,
    /// Where its gossip is reached.
    pub addr: SocketAddr,
    /// Its zone.
    pub zone: Box<str>,
    /// Its region.
    pub region: Box<str>,
    /// `alive`, `suspect`, `down` or `left`.
    pub state: &'static str,
    /// Since when it is so, Unix time in milliseconds.
    pub since_ms: u64,
    /// SWIM incarnation last heard.
    pub incarnation: u64,
    /// A sentence on a suspicion or a blocked path, with the next step; absent where there is nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// One row of `/v1/services`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Service {
    /// The service.
    pub service: Box<str>,
    /// The instance.
    pub instance: Box<str>,
    /// Its node's configured name.
    pub node: Box<str>,
    /// Its zone.
    pub zone: Box<str>,
    /// Where it is called.
    pub address: SocketAddr,
    /// `http`, `grpc`, `tcp`, `udp` or `tls`.
    pub protocol: &'static str,
    /// Share relative to others.
    pub weight: u16,
    /// What its owner's checks say: `passing`, `warning` or `failing`.
    pub health: &'static str,
    /// `warming`, `up` or `draining`.
    pub state: &'static str,
    /// Words to select by.
    pub tags: BTreeMap<Box<str>, Box<str>>,
    /// How its node is; what a node that is down offers is remembered and not used.
    pub node_state: &'static str,
    /// Requests per second it can take, if declared or learned.
    pub capacity: Option<u32>,
    /// When it started, Unix time in milliseconds.
    pub started_at_ms: u64,
}

/// `/v1/status`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Status {
    /// The configured name.
    pub node: Box<str>,
    /// The random id: 16 hex digits; empty before the gossip task has begun.
    pub id: String,
    /// The zone.
    pub zone: Box<str>,
    /// The region.
    pub region: Box<str>,
    /// The name checked before meshes merge.
    pub cluster: Box<str>,
    /// The address others reach this host by.
    pub advertise: String,
    /// Starling's version.
    pub version: &'static str,
    /// The process.
    pub pid: u32,
    /// Since the process started.
    pub uptime_ms: u64,
    /// Listening, joined, and not on the way out.
    pub ready: bool,
    /// A full exchange with a peer is done, or there is no seed to join.
    pub joined: bool,
    /// Nothing was heard of others for a while: what is said of them may be stale.
    pub isolated: bool,
    /// Nodes by state.
    pub members: BTreeMap<&'static str, usize>,
    /// Instances this host offers.
    pub offers: usize,
    /// Services anybody offers.
    pub services: usize,
    /// Upstreams that can be called.
    pub upstreams: usize,
    /// Counts snapshots.
    pub snapshot: u64,
    /// How long this sidecar serves on while draining.
    pub drain_grace_ms: u64,
    /// How long it then waits for requests in flight.
    pub drain_timeout_ms: u64,
}

/// Everybody known, this node first and the others by name.
pub fn members(mesh: &Mesh, now: Moment, unix_ms: u64) -> Vec<Member> {
    let row = |node: &Arc<Node>| Member {
        id: id(node),
        node: node.name.clone(),
        addr: node.address,
        zone: node.zone.clone(),
        region: node.region.clone(),
        state: state(node.state),
        since_ms: unix_ms.saturating_sub(millis(now.since(node.since))),
        incarnation: node.incarnation,
        note: words::note(node, mesh.remarks.get(&node.id)),
    };
    let mut rows: Vec<Member> = mesh.nodes.iter().map(row).collect();
    if let Some((_, others)) = rows.split_first_mut() {
        others.sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
    }
    rows
}

/// Every instance on offer, sorted by service, instance and node.
pub fn services(mesh: &Mesh) -> Vec<Service> {
    let mut rows: Vec<Service> = mesh.instances.iter().map(service).collect();
    rows.sort_by(|a, b| {
        (&a.service, &a.instance, &a.node).cmp(&(&b.service, &b.instance, &b.node))
    });
    rows
}

fn service(instance: &Instance) -> Service {
    let Instance { node, record, .. } = instance;
    Service {
        service: record.service.clone(),
        instance: record.instance.clone(),
        node: node.name.clone(),
        zone: node.zone.clone(),
        address: record.address,
        protocol: match record.protocol {
            WireProtocol::Http => "http",
            WireProtocol::Grpc => "grpc",
            WireProtocol::Tcp => "tcp",
            WireProtocol::Udp => "udp",
            WireProtocol::Tls => "tls",
        },
        weight: record.weight,
        health: match record.health {
            Health::Passing => "passing",
            Health::Warning => "warning",
            Health::Failing => "failing",
        },
        state: match record.state {
            InstanceState::Warming => "warming",
            InstanceState::Up => "up",
            InstanceState::Draining => "draining",
        },
        tags: record.tags.clone(),
        node_state: state(node.state),
        capacity: record.capacity,
        started_at_ms: record.started_at_ms,
    }
}

/// How this sidecar is.
pub fn status(state: &State) -> Status {
    let loaded = Arc::clone(&state.config.borrow());
    let config = &loaded.config;
    let snapshot = state.snapshot.load();
    let mesh = &snapshot.mesh;
    let mut services: Vec<&str> = mesh.instances.iter().map(|i| &*i.record.service).collect();
    services.sort_unstable();
    services.dedup();
    Status {
        node: config.node.id.clone(),
        id: mesh.nodes.first().map(|node| id(node)).unwrap_or_default(),
        zone: config.node.zone.clone(),
        region: config.node.region.clone(),
        cluster: config.gossip.cluster.clone(),
        advertise: config.node.advertise.to_string(),
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        uptime_ms: millis(state.clock.now().since(Moment::START)),
        ready: state.ready.load(Ordering::Relaxed),
        joined: mesh.joined,
        isolated: mesh.isolated,
        members: by_state(mesh),
        offers: own_instances(mesh),
        services: services.len(),
        upstreams: snapshot.upstreams().count(),
        snapshot: snapshot.generation,
        drain_grace_ms: millis(config.drain.grace),
        drain_timeout_ms: millis(config.drain.timeout),
    }
}

/// Configured and registered ones alike.
fn own_instances(mesh: &Mesh) -> usize {
    let own = mesh.nodes.first().map(|node| node.id);
    let instances = mesh.instances.iter();
    instances.filter(|i| Some(i.node.id) == own).count()
}

/// How many nodes are in each state; every state is there.
pub fn by_state(mesh: &Mesh) -> BTreeMap<&'static str, usize> {
    let states = [
        NodeState::Alive,
        NodeState::Suspect,
        NodeState::Down,
        NodeState::Left,
    ];
    let count = |wanted: NodeState| {
        mesh.nodes
            .iter()
            .filter(|node| node.state == wanted)
            .count()
    };
    states.map(|wanted| (state(wanted), count(wanted))).into()
}

fn id(node: &Node) -> String {
    format!("{:016x}", node.id)
}

/// The word for a node's state.
pub const fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Alive => "alive",
        NodeState::Suspect => "suspect",
        NodeState::Down => "down",
        NodeState::Left => "left",
    }
}

fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
