//! What one pick costs on one idle core, by policy and number of endpoints, that it allocates nothing, and what a
//! snapshot costs: `cargo bench -p mesh-core`.
//!
//! Not here: whether the picks are good ones (`src/balance/tests.rs`, `src/sim/balance/`).

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::{BTreeMap, VecDeque},
    hint::black_box,
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
    balance::{Ask, Picker},
    endpoint::Report,
    mesh::{Instance, Mesh, Node, NodeState},
    moment::Moment,
    outcome::Outcome,
    policy::{Balance, FixedEndpoint, Place, Policy, Weight},
    snapshot::{Inputs, Snapshot, Upstream},
};
use mesh_proto::record::{Health, InstanceState, ServiceRecord, WireProtocol};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

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

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` by way of `alloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Every figure is the range of this many runs.
const RUNS: usize = 5;

/// Refreshes.
const ROUNDS: usize = 100;

/// Picks after each.
const ROUND: usize = 1_000;

/// Requests in flight while picking.
const IN_FLIGHT: usize = 64;

fn upstream(balance: Balance, endpoints: usize, even: bool) -> Arc<Upstream> {
    let mut policy = Policy::of_service("bench");
    policy.service = None;
    policy.balance = balance;
    policy.endpoints = (0..endpoints)
        .map(|i| FixedEndpoint {
            place: Place::Address(SocketAddr::from((
                [10, (i >> 16) as u8, (i >> 8) as u8, i as u8],
                80,
            ))),
            zone: None,
            weight: Weight::new(if even { 100 } else { 50 + (i % 100) as u16 })
                .unwrap_or(Weight::DEFAULT),
            backup: false,
        })
        .collect();
    let inputs = Inputs {
        mesh: &Arc::new(Mesh::default()),
        policies: &[Arc::new(policy)],
        undeclared: false,
        own_zone: "a",
        own_region: "a",
        resolved: &BTreeMap::new(),
        not_passing: &BTreeMap::new(),
        session_keys: &Arc::default(),
        unix_ms: 0,
    };
    let snapshot = Snapshot::build(&inputs, &Snapshot::empty(), Moment::START);
    Arc::clone(snapshot.upstream("bench").expect("it was declared"))
}

#[derive(Default)]
struct Figures {
    /// One time a round.
    picks: Vec<Duration>,
    allocated: u64,
    refresh: Duration,
}

#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark reads the clock"
)]
fn measure(balance: Balance, endpoints: usize, even: bool) -> Figures {
    let upstream = upstream(balance, endpoints, even);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut now = Moment::from_millis(1);
    for member in upstream.members() {
        let report = Report {
            outcome: Outcome::Success,
            latency: Some(Duration::from_micros(rng.random_range(500..2_000))),
            connection: 1,
        };
        upstream.report(&member.endpoint, &report, now, &mut rng);
    }
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut flying = VecDeque::with_capacity(IN_FLIGHT + ROUND + 1);
    let mut figures = Figures {
        picks: Vec::with_capacity(ROUNDS),
        ..Figures::default()
    };
    for _ in 0..ROUNDS {
        now = now + Duration::from_millis(100);
        // The first pick after 10 ms refreshes this worker's numbers.
        let before = Instant::now();
        let first = picker.pick(&Ask::default(), now, &mut rng);
        figures.refresh += before.elapsed();
        flying.extend(first.map(|pick| pick.endpoint));
        let allocated = ALLOCATED.load(Relaxed);
        let before = Instant::now();
        for _ in 0..ROUND {
            let pick = picker.pick(black_box(&Ask::default()), now, &mut rng);
            let endpoint = pick.expect("all are in").endpoint;
            flying.push_back(endpoint);
        }
        let elapsed = before.elapsed();
        figures.picks.push(elapsed);
        figures.allocated += ALLOCATED.load(Relaxed) - allocated;
        for endpoint in flying.iter().rev().take(ROUND) {
            endpoint.begin(now);
        }
        while flying.len() > IN_FLIGHT
            && let Some(over) = flying.pop_front()
        {
            over.head_came(now);
            over.end(now);
        }
    }
    figures
}

/// Milliseconds to build the next snapshot of a mesh of 10,000 instances in which one has changed.
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark reads the clock"
)]
fn build_ms(services: usize) -> f64 {
    let node = |i: usize| {
        Arc::new(Node {
            id: i as u64 + 1,
            name: format!("host-{i}").into(),
            address: SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 7946)),
            zone: ["a", "b", "c"][i % 3].into(),
            region: "r".into(),
            state: NodeState::Alive,
            since: Moment::START,
            incarnation: 0,
        })
    };
    let nodes: Vec<Arc<Node>> = (0..1_000).map(node).collect();
    let instance = |i: usize, weight: u16| Instance {
        node: Arc::clone(&nodes[i % 1_000]),
        epoch: 1,
        record: Arc::new(ServiceRecord {
            service: format!("service-{}", i % services).into(),
            instance: format!("instance-{i}").into(),
            address: SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 80)),
            protocol: WireProtocol::Http,
            weight,
            health: Health::Passing,
            state: InstanceState::Up,
            started_at_ms: 0,
            capacity: None,
            tags: BTreeMap::new(),
        }),
        version: 1,
    };
    let mut instances: Vec<Instance> = (0..10_000).map(|i| instance(i, 100)).collect();
    let mut snapshot = Snapshot::empty();
    let mut spent = Duration::ZERO;
    for round in 0..11 {
        instances[7] = instance(7, 100 + round);
        let mesh = Arc::new(Mesh {
            nodes: nodes.clone(),
            instances: instances.clone(),
            joined: true,
            ..Mesh::default()
        });
        let inputs = Inputs {
            mesh: &mesh,
            policies: &[],
            undeclared: true,
            own_zone: "a",
            own_region: "r",
            resolved: &BTreeMap::new(),
            not_passing: &BTreeMap::new(),
            session_keys: &Arc::default(),
            unix_ms: 1_700_000_000_000,
        };
        let before = Instant::now();
        let next = Snapshot::build(&inputs, &snapshot, Moment::from_millis(u64::from(round)));
        if round > 0 {
            spent += before.elapsed();
        }
        snapshot = next;
    }
    spent.as_secs_f64() * 1e3 / 10.0
}

/// Nanoseconds a pick in the middle one of the rounds: another process on the core spoils a few and not that one.
fn median_ns(figures: &Figures) -> f64 {
    let mut rounds = figures.picks.clone();
    rounds.sort_unstable();
    let middle = rounds.get(rounds.len() / 2).copied().unwrap_or_default();
    middle.as_nanos() as f64 / ROUND as f64
}

fn main() {
    for services in [1_000, 1] {
        println!(
            "next snapshot of 10,000 instances in {services} services: {:.1} ms",
            build_ms(services)
        );
    }
    println!(
        "ns per pick with its handle, range of {RUNS} runs' medians (what it shall be) / us per refresh, every 10 ms"
    );
    println!("{:<24}{:>22}{:>22}{:>22}{:>22}", "", 10, 100, 1_000, 10_000);
    let mut allocated = 0;
    for (name, balance, even, targets) in [
        ("round_robin", Balance::RoundRobin, true, [4, 4, 5, 5]),
        (
            "round_robin, weighted",
            Balance::RoundRobin,
            false,
            [12, 12, 15, 18],
        ),
        ("random", Balance::Random, true, [4, 4, 5, 5]),
        ("random, weighted", Balance::Random, false, [12, 12, 15, 18]),
        ("power_of_two", Balance::PowerOfTwo, true, [6, 6, 8, 12]),
        (
            "least_connections",
            Balance::LeastConnections,
            true,
            [15, 35, 150, 100],
        ),
        (
            "least_response_time",
            Balance::LeastResponseTime,
            true,
            [25, 60, 200, 100],
        ),
    ] {
        print!("{name:<24}");
        for (endpoints, target) in [10, 100, 1_000, 10_000].into_iter().zip(targets) {
            let runs: Vec<Figures> = (0..RUNS)
                .map(|_| measure(balance, endpoints, even))
                .collect();
            let picks = runs.iter().map(median_ns);
            let (least, most) = picks.fold((f64::INFINITY, 0.0_f64), |(least, most), pick| {
                (least.min(pick), most.max(pick))
            });
            let refresh = runs.iter().map(|f| f.refresh.as_nanos()).min().unwrap_or(0);
            let refresh = refresh as f64 / ROUNDS as f64 / 1e3;
            allocated += runs.iter().map(|f| f.allocated).sum::<u64>();
            let cell = format!("{least:.0}-{most:.0} ({target}) / {refresh:.1}");
            print!("{cell:>22}");
        }
        println!();
    }
    println!("allocations in all picks: {allocated}");
    assert_eq!(allocated, 0, "a pick allocates nothing");
}
