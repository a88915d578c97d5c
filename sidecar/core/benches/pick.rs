//! What one pick costs on one idle core, by policy and number of endpoints, and what a snapshot costs:
//! `cargo bench -p mesh-core`.
//!
//! Not here: whether the picks are good ones (`src/balance/tests.rs`, `src/sim/balance/`).

use std::{
    collections::{BTreeMap, VecDeque},
    hint::black_box,
    net::SocketAddr,
    sync::Arc,
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
use rand::{RngExt, SeedableRng, rngs::StdRng};

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
    picks: Duration,
    refresh: Duration,
}

#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark reads the clock"
)]
fn measure(balance: Balance, endpoints: usize, even: bool) -> Figures {
    let upstream = upstream(balance, endpoints, even);
    let mut rng = StdRng::seed_from_u64(1);
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
    let mut flying = VecDeque::with_capacity(IN_FLIGHT + ROUND);
    let mut figures = Figures::default();
    for _ in 0..ROUNDS {
        now = now + Duration::from_millis(100);
        // The first pick after 10 ms refreshes this worker's numbers.
        let before = Instant::now();
        let first = picker.pick(&Ask::default(), now, &mut rng);
        figures.refresh += before.elapsed();
        flying.extend(first.map(|pick| pick.endpoint));
        let before = Instant::now();
        for _ in 0..ROUND {
            let pick = picker.pick(black_box(&Ask::default()), now, &mut rng);
            let endpoint = pick.expect("all are in").endpoint;
            flying.push_back(endpoint);
        }
        figures.picks += before.elapsed();
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
            demands: Vec::new(),
            isolated: false,
            joined: true,
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

fn main() {
    for services in [1_000, 1] {
        println!(
            "next snapshot of 10,000 instances in {services} services: {:.1} ms",
            build_ms(services)
        );
    }
    println!("ns per pick / us per refresh, every 10 ms");
    println!("{:<24}{:>14}{:>14}{:>14}{:>14}", "", 10, 100, 1_000, 10_000);
    for (name, balance, even) in [
        ("round_robin", Balance::RoundRobin, true),
        ("round_robin, weighted", Balance::RoundRobin, false),
        ("random", Balance::Random, true),
        ("random, weighted", Balance::Random, false),
        ("power_of_two", Balance::PowerOfTwo, true),
        ("least_connections", Balance::LeastConnections, true),
        ("least_response_time", Balance::LeastResponseTime, true),
    ] {
        print!("{name:<24}");
        for endpoints in [10, 100, 1_000, 10_000] {
            let figures = measure(balance, endpoints, even);
            let pick = figures.picks.as_nanos() as f64 / (ROUNDS * ROUND) as f64;
            let refresh = figures.refresh.as_nanos() as f64 / ROUNDS as f64 / 1e3;
            print!("{:>14}", format!("{pick:.0} / {refresh:.1}"));
        }
        println!();
    }
}
