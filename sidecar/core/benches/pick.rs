//! What one pick costs on one idle core, by policy and number of endpoints, that it allocates nothing, and what a
//! snapshot costs: `cargo bench -p mesh-core`.
//!
//! Not here: whether the picks are good ones (`src/balance/tests.rs`, `src/sim/balance/`).

mod ground;

use std::{
    collections::{BTreeMap, VecDeque},
    hint::black_box,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_core::{
    balance::{Ask, Picker},
    endpoint::{Endpoint, Report},
    mesh::{Instance, Mesh, Node, NodeState},
    moment::Moment,
    outcome::Outcome,
    policy::Balance,
    snapshot::{Inputs, Snapshot},
};
use mesh_proto::record::{Health, InstanceState, ServiceRecord, WireProtocol};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use ground::{SIZES, timed};

/// Every figure is the range of this many runs.
const RUNS: usize = 5;

/// Refreshes.
const ROUNDS: usize = 100;

/// Picks after each.
const ROUND: usize = 1_000;

/// Requests in flight while picking.
const IN_FLIGHT: usize = 64;

#[derive(Default)]
struct Figures {
    /// Time of one round's picks, each of which says where the endpoint stands.
    choices: Vec<Duration>,
    /// The same with a handle on the endpoint, which is counted up and down.
    picks: Vec<Duration>,
    allocated: u64,
    refresh: Duration,
}

/// What the endpoints are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// All of one weight.
    Even,
    /// Of a hundred weights.
    Weighted,
    /// In two zones, filled like water.
    Zones,
}

fn measure(balance: Balance, endpoints: usize, of: Of) -> Figures {
    let weight = |i: usize| match of {
        Of::Weighted => 50 + (i % 100) as u16,
        Of::Even | Of::Zones => 100,
    };
    let upstream = match of {
        Of::Zones => ground::zoned(endpoints, |policy| policy.balance = balance),
        Of::Even | Of::Weighted => ground::upstream((0..endpoints).map(weight), |policy| {
            policy.balance = balance;
        }),
    };
    let peopled = upstream
        .tiers
        .iter()
        .filter(|tier| !tier.members.is_empty());
    assert_eq!(peopled.count(), 1 + usize::from(of == Of::Zones));
    let mut rng = SmallRng::seed_from_u64(1);
    let mut now = Moment::from_millis(1);
    for member in upstream.members() {
        let report = Report {
            outcome: Outcome::Success,
            latency: Some(Duration::from_micros(rng.random_range(500..2_000))),
            canary: None,
            connection: 1,
        };
        upstream.report(&member.endpoint, &report, now, &mut rng);
    }
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut flying = VecDeque::with_capacity(IN_FLIGHT + ROUND + 1);
    let mut figures = Figures::default();
    let ask = Ask::default();
    for _ in 0..ROUNDS {
        now = now + Duration::from_millis(100);
        // The first pick after a while refreshes this worker's numbers.
        let (spent, _, first) = timed(|| picker.pick(&ask, now, &mut rng));
        figures.refresh += spent;
        flying.extend(first.map(|pick| pick.endpoint));
        let mut chosen = [None; ROUND];
        let (spent, allocated, ()) = timed(|| {
            for place in &mut chosen {
                *place = picker.choose(black_box(&ask), now, &mut rng);
            }
        });
        figures.choices.push(spent);
        figures.allocated += allocated;
        let (spent, allocated, ()) = timed(|| {
            for _ in 0..ROUND {
                black_box(picker.pick(black_box(&ask), now, &mut rng));
            }
        });
        figures.picks.push(spent);
        figures.allocated += allocated;
        for choice in chosen {
            let seat = choice.expect("all are in").seat;
            let endpoint = Arc::clone(&upstream.at(seat).endpoint);
            endpoint.begin(now);
            flying.push_back(endpoint);
        }
        while flying.len() > IN_FLIGHT
            && let Some(over) = flying.pop_front()
        {
            land(&over, now);
        }
    }
    figures
}

fn land(endpoint: &Endpoint, now: Moment) {
    endpoint.head_came(now);
    endpoint.end(now);
}

/// Milliseconds to build the next snapshot of a mesh of 10,000 instances in which one has changed.
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
            own_name: "n",
            resolved: &BTreeMap::new(),
            not_passing: &BTreeMap::new(),
            session_keys: &Arc::default(),
            unix_ms: 1_700_000_000_000,
        };
        let now = Moment::from_millis(u64::from(round));
        let (took, _, next) = timed(|| Snapshot::build(&inputs, &snapshot, now));
        if round > 0 {
            spent += took;
        }
        snapshot = next;
    }
    spent.as_secs_f64() * 1e3 / 10.0
}

/// Nanoseconds a pick in the middle one of the rounds: another process on the core spoils a few and not that one.
fn median_ns(rounds: &[Duration]) -> f64 {
    let mut rounds = rounds.to_vec();
    rounds.sort_unstable();
    let middle = rounds.get(rounds.len() / 2).copied().unwrap_or_default();
    middle.as_nanos() as f64 / ROUND as f64
}

/// Least and most of the runs' medians.
fn range(runs: &[Figures], of: impl Fn(&Figures) -> &[Duration]) -> String {
    let medians = runs.iter().map(|figures| median_ns(of(figures)));
    let (least, most) = medians.fold((f64::INFINITY, 0.0_f64), |(least, most), pick| {
        (least.min(pick), most.max(pick))
    });
    format!("{least:.1}-{most:.1}")
}

/// What is measured: its name, the policy, the endpoints, and the ns that a pick shall take with each of [`SIZES`].
fn kinds() -> [(&'static str, Balance, Of, [u32; 4]); 11] {
    use Balance::{LeastConnections, LeastResponseTime, PowerOfTwo, Random, RoundRobin};
    use Of::{Even, Weighted, Zones};
    let turns = [4, 4, 5, 5];
    let weighted = [12, 12, 15, 18];
    let fewest = [15, 35, 150, 100];
    let quickest = [25, 60, 200, 100];
    [
        ("round_robin", RoundRobin, Even, turns),
        ("round_robin, weighted", RoundRobin, Weighted, weighted),
        ("random", Random, Even, turns),
        ("random, weighted", Random, Weighted, weighted),
        ("power_of_two", PowerOfTwo, Even, [6, 6, 8, 12]),
        ("power_of_two, weighted", PowerOfTwo, Weighted, weighted),
        ("least_connections", LeastConnections, Even, fewest),
        ("least_conn., weighted", LeastConnections, Weighted, fewest),
        ("least_response_time", LeastResponseTime, Even, quickest),
        (
            "least_resp., weighted",
            LeastResponseTime,
            Weighted,
            quickest,
        ),
        ("least_resp., two zones", LeastResponseTime, Zones, quickest),
    ]
}

fn main() {
    for services in [1_000, 1] {
        println!(
            "next snapshot of 10,000 instances in {services} services: {:.1} ms",
            build_ms(services)
        );
    }
    println!("ns per pick, range of {RUNS} runs' medians (what it shall be) / with a handle");
    println!("on the endpoint made and dropped / us per refresh, every ms or less often");
    println!("{:<24}{:>36}{:>36}{:>36}{:>36}", "", 10, 100, 1_000, 10_000);
    let mut allocated = 0;
    for (name, balance, of, targets) in kinds() {
        print!("{name:<24}");
        for (endpoints, target) in SIZES.into_iter().zip(targets) {
            let runs: Vec<Figures> = (0..RUNS).map(|_| measure(balance, endpoints, of)).collect();
            let refresh = runs.iter().map(|f| f.refresh.as_nanos()).min().unwrap_or(0);
            let refresh = refresh as f64 / ROUNDS as f64 / 1e3;
            allocated += runs.iter().map(|f| f.allocated).sum::<u64>();
            let index = range(&runs, |figures| &figures.choices);
            let handle = range(&runs, |figures| &figures.picks);
            let cell = format!("{index} ({target}) / {handle} / {refresh:.1}");
            print!("{cell:>36}");
        }
        println!();
    }
    println!("allocations in all picks: {allocated}");
    assert_eq!(allocated, 0, "a pick allocates nothing");
}
