//! What both benchmarks stand on: a counting allocator, a clock, and an upstream of so many endpoints.
//!
//! Not here: what is measured (`../pick.rs`, `../hash.rs`).

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

#[expect(clippy::disallowed_types, reason = "a benchmark reads the clock")]
use std::time::Instant;

use mesh_core::{
    mesh::{Demand, Instance, Mesh, Node, NodeState},
    moment::Moment,
    policy::{FixedEndpoint, Place, Policy, Weight},
    snapshot::{Inputs, Snapshot, Upstream},
};
use mesh_proto::record::{DemandRecord, Health, InstanceState, ServiceRecord, WireProtocol};

/// Numbers of endpoints that are measured.
pub const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

/// Counts what is allocated; the system's allocator does the work.
struct Counting;

static ALLOCATED: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

#[expect(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: every call is handed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` by way of `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The time that `work` takes, and what it allocates.
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark reads the clock"
)]
pub fn timed<T>(work: impl FnOnce() -> T) -> (Duration, u64, T) {
    let (allocations, before) = (ALLOCATED.load(Relaxed), Instant::now());
    let result = work();
    let spent = before.elapsed();
    (spent, ALLOCATED.load(Relaxed) - allocations, result)
}

/// An upstream of as many endpoints as there are `weights`, with `change` made to its policy.
pub fn upstream(
    weights: impl Iterator<Item = u16>,
    change: impl FnOnce(&mut Policy),
) -> Arc<Upstream> {
    let mut policy = Policy::of_service("bench");
    policy.service = None;
    change(&mut policy);
    let endpoint = |(i, weight): (usize, u16)| FixedEndpoint {
        place: Place::Address(SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 80))),
        zone: None,
        weight: Weight::new(weight).unwrap_or(Weight::DEFAULT),
        backup: false,
    };
    policy.endpoints = weights.enumerate().map(endpoint).collect();
    built(policy, Mesh::default())
}

/// An upstream of as many instances in two zones, of which the own one is asked for more than it takes: about six in ten
/// requests stay.
#[allow(dead_code, reason = "hashing knows no zones")]
pub fn zoned(instances: usize, change: impl FnOnce(&mut Policy)) -> Arc<Upstream> {
    const CAPACITY: u32 = 100;
    let mut policy = Policy::of_service("bench");
    change(&mut policy);
    let node = |i: usize| {
        Arc::new(Node {
            id: i as u64 + 1,
            name: format!("host-{i}").into(),
            address: SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 7946)),
            zone: ["a", "b"][i % 2].into(),
            region: "r".into(),
            state: NodeState::Alive,
            since: Moment::START,
            incarnation: 0,
        })
    };
    let instance = |i: usize| Instance {
        node: node(i),
        epoch: 1,
        record: Arc::new(ServiceRecord {
            service: "bench".into(),
            instance: format!("bench-{i}").into(),
            address: SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 80)),
            protocol: WireProtocol::Http,
            weight: 100,
            health: Health::Passing,
            state: InstanceState::Up,
            started_at_ms: 0,
            capacity: Some(CAPACITY),
            tags: BTreeMap::new(),
        }),
        version: 1,
    };
    // Of what one zone can take: 1.2 and 0.1 times as much.
    let demand = |i: usize, tenths: u32| Demand {
        node: node(i),
        record: Arc::new(DemandRecord {
            service: "bench".into(),
            per_second: instances as u32 / 2 * CAPACITY * tenths / 10,
        }),
    };
    let mesh = Mesh {
        nodes: (0..instances).map(node).collect(),
        instances: (0..instances).map(instance).collect(),
        demands: vec![demand(0, 12), demand(1, 1)],
        joined: true,
        ..Mesh::default()
    };
    built(policy, mesh)
}

fn built(policy: Policy, mesh: Mesh) -> Arc<Upstream> {
    let inputs = Inputs {
        mesh: &Arc::new(mesh),
        policies: &[Arc::new(policy)],
        undeclared: false,
        own_zone: "a",
        own_region: "r",
        own_name: "n",
        resolved: &BTreeMap::new(),
        not_passing: &BTreeMap::new(),
        session_keys: &Arc::default(),
        unix_ms: 1_700_000_000_000,
    };
    let snapshot = Snapshot::build(&inputs, &Snapshot::empty(), Moment::START);
    Arc::clone(snapshot.upstream("bench").expect("it was declared"))
}
