//! Whole gossip tasks over real sockets on loopback.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use mesh_core::mesh::NodeState;
use mesh_proto::record::{Health, InstanceState, WireProtocol};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

use super::*;
use crate::config::{GossipKey, Profile};

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const KEY: [u8; 32] = [3; 32];

struct Node {
    started: Started,
    address: SocketAddr,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.started.task.abort();
    }
}

struct Wanted<'a> {
    name: &'a str,
    join: &'a [SocketAddr],
    keys: &'a [[u8; 32]],
    cluster: &'a str,
    address: SocketAddr,
    state_dir: Option<std::path::PathBuf>,
}

impl Default for Wanted<'_> {
    fn default() -> Self {
        Wanted {
            name: "n",
            join: &[],
            keys: &[KEY],
            cluster: "prod",
            address: LOOPBACK,
            state_dir: None,
        }
    }
}

async fn start(wanted: Wanted<'_>, clock: Clock) -> Node {
    let sockets = Sockets::bind(wanted.address).await.expect("a free port");
    let address = sockets.address;
    let node = config::Node {
        id: wanted.name.into(),
        zone: "a".into(),
        region: "r".into(),
        advertise: LOOPBACK.ip(),
        state_dir: wanted.state_dir,
        workers: 1,
    };
    let gossip = config::Gossip {
        bind: wanted.address,
        advertise: LOOPBACK,
        join: wanted
            .join
            .iter()
            .map(|seed| seed.to_string().into())
            .collect(),
        cluster: wanted.cluster.into(),
        keys: wanted.keys.iter().map(|key| GossipKey(*key)).collect(),
        profile: Profile::Fast,
    };
    let started = start_on(sockets, &node, &gossip, clock).expect("startable");
    Node { started, address }
}

impl Node {
    fn mesh(&self) -> Arc<Mesh> {
        self.started.gossip.mesh.borrow().clone()
    }

    async fn order(&self, order: Order) {
        self.started
            .gossip
            .orders
            .send(order)
            .await
            .expect("the task runs");
    }

    /// Waits until the mesh is so. Yields the time it took.
    async fn until(
        &self,
        within: Duration,
        what: &str,
        mut holds: impl FnMut(&Mesh) -> bool,
    ) -> Duration {
        let began = Instant::now();
        let mut mesh = self.started.gossip.mesh.clone();
        let waited = timeout(within, mesh.wait_for(|mesh| holds(mesh)))
            .await
            .map(|seen| seen.is_ok());
        if waited != Ok(true) {
            panic!(
                "{what}: not within {within:?}; the mesh is {:#?}",
                self.mesh()
            );
        }
        began.elapsed()
    }

    fn rejected(&self) -> u64 {
        self.started.counters.rejected_total()
    }
}

fn alive(mesh: &Mesh) -> usize {
    mesh.nodes
        .iter()
        .filter(|node| node.state == NodeState::Alive)
        .count()
}

fn state_of(mesh: &Mesh, name: &str) -> Option<NodeState> {
    mesh.nodes
        .iter()
        .find(|node| &*node.name == name)
        .map(|node| node.state)
}

fn service(instance: &str, state: InstanceState) -> ServiceRecord {
    ServiceRecord {
        service: "web".into(),
        instance: instance.into(),
        address: ([127, 0, 0, 1], 80).into(),
        protocol: WireProtocol::Http,
        weight: 100,
        health: Health::Passing,
        state,
        started_at_ms: 1,
        capacity: None,
        tags: BTreeMap::new(),
    }
}

const SOON: Duration = Duration::from_secs(5);

async fn three(clock: Clock) -> [Node; 3] {
    let a = start(
        Wanted {
            name: "a",
            ..Wanted::default()
        },
        clock,
    )
    .await;
    let seeds = [a.address];
    let b = start(
        Wanted {
            name: "b",
            join: &seeds,
            ..Wanted::default()
        },
        clock,
    )
    .await;
    let c = start(
        Wanted {
            name: "c",
            join: &seeds,
            ..Wanted::default()
        },
        clock,
    )
    .await;
    for node in [&a, &b, &c] {
        node.until(SOON, "all three are there", |mesh| {
            mesh.joined && alive(mesh) == 3
        })
        .await;
    }
    [a, b, c]
}

#[tokio::test]
async fn three_nodes_meet_and_hear_of_every_change() {
    let nodes = three(Clock::new()).await;
    nodes[1]
        .order(Order::Offer(service("web-1", InstanceState::Up)))
        .await;
    for node in &nodes {
        node.until(SOON, "the instance is known", |mesh| {
            mesh.instances.len() == 1
        })
        .await;
    }
    nodes[1]
        .order(Order::Offer(service("web-1", InstanceState::Draining)))
        .await;
    let began = Instant::now();
    for node in &nodes {
        node.until(SOON, "it is draining", |mesh| {
            mesh.instances
                .iter()
                .all(|instance| instance.record.state == InstanceState::Draining)
        })
        .await;
    }
    println!("draining known to all after {:?}", began.elapsed());
    let withdraw = Order::Withdraw {
        service: "web".into(),
        instance: "web-1".into(),
    };
    nodes[1].order(withdraw).await;
    for node in &nodes {
        node.until(SOON, "it is gone", |mesh| mesh.instances.is_empty())
            .await;
    }
}

#[tokio::test]
async fn sixteen_nodes_started_at_once_find_each_other() {
    let clock = Clock::new();
    let first = start(
        Wanted {
            name: "n0",
            ..Wanted::default()
        },
        clock,
    )
    .await;
    let seeds = [first.address];
    let mut nodes = vec![first];
    for number in 1..16 {
        let name = format!("n{number}");
        let wanted = Wanted {
            name: &name,
            join: &seeds,
            ..Wanted::default()
        };
        nodes.push(start(wanted, clock).await);
    }
    let began = Instant::now();
    for node in &nodes {
        node.until(SOON, "all are there", |mesh| alive(mesh) == 16)
            .await;
    }
    println!(
        "16 started at once: all know all after {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_killed_node_is_seen_down_and_its_records_are_kept() {
    let [a, b, c] = three(Clock::new()).await;
    c.order(Order::Offer(service("web-1", InstanceState::Up)))
        .await;
    a.until(SOON, "the instance is known", |mesh| {
        mesh.instances.len() == 1
    })
    .await;
    drop(c);
    let began = Instant::now();
    for node in [&a, &b] {
        let within = Duration::from_millis(5_500);
        node.until(within, "the crash is known", |mesh| {
            state_of(mesh, "c") == Some(NodeState::Down)
        })
        .await;
        assert_eq!(node.mesh().instances[0].node.state, NodeState::Down);
    }
    println!("crash known to all after {:?}", began.elapsed());
    drop(b);
    a.until(Duration::from_secs(8), "the last one knows", |mesh| {
        state_of(mesh, "b") == Some(NodeState::Down)
    })
    .await;
}

#[tokio::test]
async fn a_node_that_leaves_is_seen_as_left() {
    let [a, b, c] = three(Clock::new()).await;
    let (done, left) = oneshot::channel();
    let began = Instant::now();
    c.order(Order::Leave { done }).await;
    for node in [&a, &b] {
        node.until(SOON, "the goodbye is known", |mesh| {
            state_of(mesh, "c") == Some(NodeState::Left)
        })
        .await;
    }
    println!("goodbye known to all after {:?}", began.elapsed());
    timeout(SOON, left).await.expect("in time").expect("told");
}

#[tokio::test]
async fn a_restarted_node_comes_back_as_itself_with_new_records() {
    let clock = Clock::new();
    let directory =
        std::env::temp_dir().join(format!("starling-gossip-{:016x}", rand::random::<u64>()));
    let a = start(
        Wanted {
            name: "a",
            ..Wanted::default()
        },
        clock,
    )
    .await;
    let seeds = [a.address];
    let wanted = |address| Wanted {
        name: "b",
        join: &seeds,
        state_dir: Some(directory.clone()),
        address,
        ..Wanted::default()
    };
    let b = start(wanted(LOOPBACK), clock).await;
    let address = b.address;
    for instance in ["web-1", "web-2"] {
        b.order(Order::Offer(service(instance, InstanceState::Up)))
            .await;
    }
    a.until(SOON, "both are known", |mesh| mesh.instances.len() == 2)
        .await;
    let first = a.mesh().instances[0].clone();
    drop(b);
    // The port is free again once the aborted task is gone.
    let began = Instant::now();
    while Sockets::bind(address).await.is_err() {
        assert!(
            began.elapsed() < SOON,
            "the port of an ended task stays taken"
        );
        tokio::task::yield_now().await;
    }
    let b = start(wanted(address), clock).await;
    b.order(Order::Offer(service("web-1", InstanceState::Up)))
        .await;
    a.until(SOON, "only the new record is left", |mesh| {
        mesh.instances.len() == 1 && mesh.instances[0].epoch > first.epoch
    })
    .await;
    let again = a.mesh().instances[0].clone();
    assert_eq!(again.node.id, first.node.id);
    assert_eq!(a.mesh().nodes.len(), 2);
    std::fs::remove_dir_all(directory).expect("ours");
}

#[tokio::test]
async fn strangers_and_noise_change_nothing_and_are_counted() {
    let clock = Clock::new();
    let a = start(
        Wanted {
            name: "a",
            ..Wanted::default()
        },
        clock,
    )
    .await;
    let seeds = [a.address];
    let stranger = Wanted {
        name: "x",
        join: &seeds,
        keys: &[[9; 32]],
        ..Wanted::default()
    };
    let x = start(stranger, clock).await;
    let udp = UdpSocket::bind(LOOPBACK).await.expect("a free port");
    for length in 0..1_500usize {
        let noise: Vec<u8> = (0..length).map(|_| rand::random()).collect();
        udp.send_to(&noise, a.address).await.expect("sent");
    }
    let mut tcp = tokio::net::TcpStream::connect(a.address)
        .await
        .expect("accepted");
    tcp.write_all(&[1; 4_096]).await.expect("taken");
    let mut answer = Vec::new();
    // A reset is as good as a close: not a byte comes back.
    let _ = timeout(SOON, tcp.read_to_end(&mut answer))
        .await
        .expect("closed in time");
    assert!(answer.is_empty());
    let began = Instant::now();
    while a.rejected() < 500 {
        assert!(began.elapsed() < SOON, "only {} rejected", a.rejected());
        tokio::task::yield_now().await;
    }
    let mut none = [0; 64];
    assert_eq!(
        udp.try_recv_from(&mut none).map_err(|error| error.kind()),
        Err(io::ErrorKind::WouldBlock)
    );
    assert_eq!((a.mesh().nodes.len(), x.mesh().nodes.len()), (1, 1));
    assert!(!x.mesh().joined);
    let b = start(
        Wanted {
            name: "b",
            join: &seeds,
            ..Wanted::default()
        },
        clock,
    )
    .await;
    b.until(SOON, "friends still meet", |mesh| alive(mesh) == 2)
        .await;
}

#[tokio::test]
async fn a_node_whose_only_seed_is_itself_is_alone_whomever_it_knew() {
    let directory =
        std::env::temp_dir().join(format!("starling-gossip-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&directory).expect("writable");
    // Port 9 of a network that does not exist: swallowed or refused, never answered.
    std::fs::write(directory.join("peers.json"), br#"["192.0.2.1:9"]"#).expect("writable");
    let silent = "192.0.2.2:9".parse().expect("an address");
    let clock = Clock::new();
    for is_named in [true, false] {
        let node = start(
            Wanted {
                join: &[silent],
                state_dir: is_named.then(|| directory.clone()),
                ..Wanted::default()
            },
            clock,
        )
        .await;
        assert!(!node.mesh().joined);
        let seeds = is_named.then(|| node.address.to_string().into());
        node.order(Order::Seeds(seeds.into_iter().collect())).await;
        node.until(SOON, "it is alone", |mesh| mesh.joined).await;
    }
    std::fs::remove_dir_all(directory).expect("ours");
}

#[tokio::test]
async fn another_cluster_is_left_alone() {
    let clock = Clock::new();
    for keys in [&[KEY][..], &[]] {
        let a = start(
            Wanted {
                name: "a",
                keys,
                ..Wanted::default()
            },
            clock,
        )
        .await;
        let seeds = [a.address];
        let wanted = Wanted {
            name: "b",
            join: &seeds,
            keys,
            cluster: "test",
            ..Wanted::default()
        };
        let b = start(wanted, clock).await;
        let c = start(
            Wanted {
                name: "c",
                keys,
                join: &seeds,
                ..Wanted::default()
            },
            clock,
        )
        .await;
        c.until(SOON, "its own cluster meets", |mesh| alive(mesh) == 2)
            .await;
        a.until(SOON, "both sides know", |mesh| alive(mesh) == 2)
            .await;
        assert_eq!((a.mesh().nodes.len(), b.mesh().nodes.len()), (2, 1));
    }
}

#[tokio::test]
async fn what_was_said_before_a_node_joined_cannot_be_replayed_to_it() {
    let clock = Clock::new();
    let [a, b, c] = three(clock).await;
    let address = c.address;
    drop(c);
    let seed = a.mesh().nodes[0].id.to_be_bytes();
    // Whoever listens where a dead node was hears what the others try to tell it, sealed and never seen elsewhere.
    let began = Instant::now();
    let ear = loop {
        match UdpSocket::bind(address).await {
            Ok(ear) => break ear,
            Err(error) => assert!(began.elapsed() < SOON, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    let mut heard = Vec::new();
    while heard.len() < 3 {
        let mut room = [0; 2_048];
        let waited = timeout(SOON, ear.recv_from(&mut room)).await;
        let (length, _) = waited.expect("they probe it").expect("readable");
        // How far the seed's own counter came is known to it; of the others it knows what it heard itself.
        if room[3..11] == seed {
            heard.push(room[..length].to_vec());
        }
    }
    let seeds = [a.address];
    let wanted = Wanted {
        name: "d",
        join: &seeds,
        ..Wanted::default()
    };
    let d = start(wanted, clock).await;
    d.until(SOON, "it joined", |mesh| mesh.joined && alive(mesh) >= 3)
        .await;
    b.until(SOON, "it is known", |mesh| {
        state_of(mesh, "d") == Some(NodeState::Alive)
    })
    .await;
    let before = d.rejected();
    for datagram in &heard {
        ear.send_to(datagram, d.address).await.expect("sent");
    }
    let began = Instant::now();
    while d.rejected() < before + heard.len() as u64 {
        assert!(
            began.elapsed() < SOON,
            "{} of {} refused",
            d.rejected() - before,
            heard.len()
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn items_of_a_later_version_are_passed_over_and_the_rest_is_heard() {
    use mesh_proto::{
        codec::{encode_record, put_item},
        frame::{KeyRing, Sealer, boot},
        message::Item,
        record::{Body, Head},
    };
    let [a, b, _c] = three(Clock::new()).await;
    b.order(Order::Offer(service("web-1", InstanceState::Up)))
        .await;
    a.until(SOON, "the instance is known", |mesh| {
        mesh.instances.len() == 1
    })
    .await;
    let known = a.mesh().instances[0].clone();
    let head = Head {
        owner: known.node.id,
        epoch: known.epoch,
        slot: 77,
        version: known.version + 100,
    };
    let body = Body::Service(service("web-2", InstanceState::Up));
    let mut record = encode_record(&head, &body).expect("fits");
    record.extend_from_slice(b"a field of a later version");
    let mut payload = vec![200, 0, 3, 1, 2, 3];
    // A hash with four bytes more than this version knows.
    payload.extend_from_slice(&[2, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9]);
    put_item(&mut payload, &Item::Record(&record)).expect("fits");
    payload.extend_from_slice(&[255, 0, 0]);
    let ring = KeyRing::new([KEY], "prod");
    let mut sealer = Sealer::new(ring, 0xfeed, boot(1, 1));
    let udp = UdpSocket::bind(LOOPBACK).await.expect("a free port");
    let datagram = sealer.seal(&payload).expect("fits");
    udp.send_to(&datagram, a.address).await.expect("sent");
    a.until(SOON, "the record between them is known", |mesh| {
        mesh.instances
            .iter()
            .any(|instance| &*instance.record.instance == "web-2")
    })
    .await;
}

#[tokio::test]
async fn keys_change_without_a_gap() {
    let [a, b, c] = three(Clock::new()).await;
    let new = [8; 32];
    for ring in [vec![KEY, new], vec![new, KEY], vec![new]] {
        for node in [&a, &b, &c] {
            node.order(Order::Keys(
                ring.iter().map(|key| GossipKey(*key)).collect(),
            ))
            .await;
        }
    }
    a.order(Order::Offer(service("web-1", InstanceState::Up)))
        .await;
    for node in [&b, &c] {
        node.until(SOON, "news passes under the new key", |mesh| {
            mesh.instances.len() == 1
        })
        .await;
        assert_eq!(alive(&node.mesh()), 3);
    }
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_next_step() {
    let held = Sockets::bind(LOOPBACK).await.expect("a free port");
    let error = Sockets::bind(held.address)
        .await
        .expect_err("taken")
        .to_string();
    assert!(
        error.contains(&held.address.to_string()) && error.contains("gossip.bind"),
        "{error}"
    );
}

#[tokio::test]
async fn without_a_key_only_loopback_is_allowed() {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let sockets = Sockets::bind(any).await.expect("a free port");
    let gossip = config::Gossip {
        bind: any,
        advertise: LOOPBACK,
        join: Vec::new(),
        cluster: "prod".into(),
        keys: Vec::new(),
        profile: Profile::Fast,
    };
    let node = config::Node {
        id: "n".into(),
        zone: "a".into(),
        region: "r".into(),
        advertise: LOOPBACK.ip(),
        state_dir: None,
        workers: 1,
    };
    let error = start_on(sockets, &node, &gossip, Clock::new())
        .expect_err("no key")
        .to_string();
    assert!(error.contains("starling key new"), "{error}");
}
