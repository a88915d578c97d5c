//! The checks' task against applications on real sockets and a gossip task that only listens.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_core::{mesh::Mesh, policy::Weight};
use mesh_proto::record::{Health, WireProtocol};
use tokio::{net::TcpListener, sync::watch, time::timeout};

use super::*;
use crate::{
    config::{Check, CheckKind},
    waiting::pass,
};

const DEADLINE: Duration = Duration::from_secs(10);

fn gossip() -> (Gossip, mpsc::Receiver<Order>) {
    let (orders, inbox) = mpsc::channel(super::super::ORDERS_MAX);
    let (_, mesh) = watch::channel(Arc::new(Mesh::default()));
    let (_, session_keys) = watch::channel(Arc::default());
    let gossip = Gossip {
        orders,
        mesh,
        session_keys,
    };
    (gossip, inbox)
}

fn service(name: &str, address: SocketAddr, check: Option<Check>) -> Service {
    Service {
        table: name.into(),
        service: name.into(),
        instance: "one".into(),
        address,
        advertise: address,
        protocol: WireProtocol::Http,
        weight: Weight::DEFAULT,
        capacity: None,
        tags: Vec::new(),
        check,
    }
}

fn tcp_check() -> Check {
    Check {
        kind: CheckKind::Tcp,
        interval: Duration::from_millis(5),
        timeout: Duration::from_secs(5),
        fall: 2,
        rise: 2,
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn next(inbox: &mut mpsc::Receiver<Order>) -> Order {
    timeout(DEADLINE, inbox.recv()).await.unwrap().unwrap()
}

async fn offered(inbox: &mut mpsc::Receiver<Order>) -> (String, Health, InstanceState) {
    match next(inbox).await {
        Order::Offer(record) => (record.service.into(), record.health, record.state),
        other => panic!("expected an offer, got {other:?}"),
    }
}

fn told(service: &str, health: Health, state: InstanceState) -> (String, Health, InstanceState) {
    (service.to_owned(), health, state)
}

#[tokio::test]
async fn nobody_is_offered_before_its_check_passed() {
    let (gossip, mut inbox) = gossip();
    let probes = Probes::start(&gossip, None, Clock::new());
    let (socket, address) = listener().await;
    drop(socket);
    probes
        .follow(vec![service("web", address, Some(tcp_check()))])
        .await
        .unwrap();
    let first = offered(&mut inbox).await;
    assert_eq!(first, told("web", Health::Failing, InstanceState::Warming));
    let socket = TcpListener::bind(address).await.unwrap();
    let second = offered(&mut inbox).await;
    assert_eq!(second, told("web", Health::Passing, InstanceState::Up));
    drop(socket);
    let third = offered(&mut inbox).await;
    assert_eq!(third, told("web", Health::Failing, InstanceState::Up));
}

#[tokio::test]
async fn a_service_without_a_check_is_up_at_once_and_told_once() {
    let (gossip, mut inbox) = gossip();
    let probes = Probes::start(&gossip, None, Clock::new());
    let (_socket, address) = listener().await;
    let web = service("web", address, None);
    probes.follow(vec![web.clone()]).await.unwrap();
    probes.follow(vec![web]).await.unwrap();
    probes.follow(Vec::new()).await.unwrap();
    let first = offered(&mut inbox).await;
    assert_eq!(first, told("web", Health::Passing, InstanceState::Up));
    match next(&mut inbox).await {
        Order::Withdraw { service, instance } => {
            assert_eq!((&*service, &*instance), ("web", "one"))
        }
        other => panic!("expected a withdrawal, got {other:?}"),
    }
}

#[tokio::test]
async fn a_learned_capacity_is_told_unless_one_is_declared() {
    let (gossip, mut inbox) = gossip();
    let probes = Probes::start(&gossip, None, Clock::new());
    let (_socket, address) = listener().await;
    let mut web = service("web", address, None);
    let capacity = async |inbox: &mut mpsc::Receiver<Order>| match next(inbox).await {
        Order::Offer(record) => record.capacity,
        other => panic!("expected an offer, got {other:?}"),
    };
    let learn = |capacity| probes.learn(("web".into(), "one".into()), capacity);
    probes.follow(vec![web.clone()]).await.unwrap();
    assert_eq!(capacity(&mut inbox).await, None);
    learn(Some(240)).await.unwrap();
    assert_eq!(capacity(&mut inbox).await, Some(240));
    web.capacity = Some(100);
    probes.follow(vec![web.clone()]).await.unwrap();
    assert_eq!(capacity(&mut inbox).await, Some(100));
    web.capacity = None;
    probes.follow(vec![web]).await.unwrap();
    assert_eq!(capacity(&mut inbox).await, Some(240));
    learn(None).await.unwrap();
    assert_eq!(capacity(&mut inbox).await, None);
}

#[tokio::test]
async fn a_changed_check_takes_nobody_out_and_a_changed_address_does() {
    let (gossip, mut inbox) = gossip();
    let probes = Probes::start(&gossip, None, Clock::new());
    let (_socket, address) = listener().await;
    let mut web = service("web", address, Some(tcp_check()));
    probes.follow(vec![web.clone()]).await.unwrap();
    assert_eq!(offered(&mut inbox).await.2, InstanceState::Warming);
    assert_eq!(offered(&mut inbox).await.2, InstanceState::Up);

    // Told with the change of the weight alone: still up under the new thresholds.
    web.check = Some(Check {
        rise: 9,
        ..tcp_check()
    });
    web.weight = Weight::new(7).unwrap();
    probes.follow(vec![web.clone()]).await.unwrap();
    match next(&mut inbox).await {
        Order::Offer(record) => {
            assert_eq!((record.weight, record.state), (7, InstanceState::Up));
        }
        other => panic!("expected an offer, got {other:?}"),
    }

    let (_other_socket, other) = listener().await;
    web.address = other;
    web.check = Some(tcp_check());
    probes.follow(vec![web]).await.unwrap();
    assert_eq!(offered(&mut inbox).await.2, InstanceState::Warming);
    assert_eq!(offered(&mut inbox).await.2, InstanceState::Up);
}

#[tokio::test]
async fn a_drain_survives_a_restart_until_undrain_and_retiring_does_not() {
    let dir = std::env::temp_dir().join(format!("starling-probes-{}", rand::random::<u64>()));
    let (_socket, address) = listener().await;
    let services = vec![service("db", address, None), service("web", address, None)];

    let (gossip, mut inbox) = gossip();
    let probes = Probes::start(&gossip, Some(dir.clone()), Clock::new());
    probes.follow(services.clone()).await.unwrap();
    assert_eq!(offered(&mut inbox).await.2, InstanceState::Up);
    assert_eq!(offered(&mut inbox).await.2, InstanceState::Up);
    let drained = probes.drain(Some("web".into()), None).await.unwrap();
    assert_eq!(drained.instances, [("web".into(), "one".into())]);
    assert_eq!(drained.not_kept, None);
    let draining = told("web", Health::Passing, InstanceState::Draining);
    assert_eq!(offered(&mut inbox).await, draining);
    probes.retire().await.unwrap();
    assert_eq!(offered(&mut inbox).await.0, "db");

    let (gossip, mut inbox) = self::gossip();
    let probes = Probes::start(&gossip, Some(dir.clone()), Clock::new());
    probes.follow(services).await.unwrap();
    assert_eq!(
        offered(&mut inbox).await,
        told("db", Health::Passing, InstanceState::Up)
    );
    assert_eq!(offered(&mut inbox).await, draining);
    let none = probes.undrain(Some("nobody".into()), None).await.unwrap();
    assert_eq!(none.instances, []);
    probes.undrain(None, None).await.unwrap();
    assert_eq!(
        offered(&mut inbox).await,
        told("web", Health::Passing, InstanceState::Up)
    );
    std::fs::remove_dir_all(&dir).unwrap();
}

fn lease(name: &str, address: SocketAddr, check: Option<Check>, millis: u64) -> Lease {
    Lease {
        service: service(name, address, check),
        lasts: Duration::from_millis(millis),
    }
}

async fn withdrawn(inbox: &mut mpsc::Receiver<Order>) -> String {
    match next(inbox).await {
        Order::Withdraw { service, .. } => service.into(),
        other => panic!("expected a withdrawal, got {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_registered_lasts_as_long_as_it_is_renewed() {
    let (gossip, mut inbox) = gossip();
    let probes = Probes::start(&gossip, None, Clock::new());
    let address = SocketAddr::from(([127, 0, 0, 1], 9));
    let began = Instant::now();
    let web = || lease("web", address, None, 1_000);
    assert_eq!(probes.lease(web()).await, Ok(Ok(Leased::New)));
    assert_eq!(offered(&mut inbox).await.0, "web");
    // A reload of the configuration does not know it and leaves it alone.
    probes.follow(Vec::new()).await.unwrap();
    pass(Duration::from_millis(900)).await;
    assert_eq!(probes.lease(web()).await, Ok(Ok(Leased::Renewed)));
    let mut heavier = web();
    heavier.service.weight = Weight::new(7).unwrap();
    assert_eq!(probes.lease(heavier).await, Ok(Ok(Leased::Changed)));
    assert_eq!(offered(&mut inbox).await.0, "web");
    assert_eq!(withdrawn(&mut inbox).await, "web");
    assert_eq!(began.elapsed().as_millis() / 100, 19);

    assert_eq!(probes.lease(web()).await, Ok(Ok(Leased::New)));
    assert_eq!(offered(&mut inbox).await.0, "web");
    let key: Key = ("web".into(), "one".into());
    assert_eq!(probes.release(key.clone()).await, Ok(Ok(())));
    assert_eq!(withdrawn(&mut inbox).await, "web");
    assert_eq!(probes.release(key).await, Ok(Err(LeaseRefused::Unknown)));
}

#[tokio::test]
async fn the_configuration_stands_above_what_is_registered() {
    let (gossip, mut inbox) = gossip();
    let probes = Probes::start(&gossip, None, Clock::new());
    let address = SocketAddr::from(([127, 0, 0, 1], 9));
    let web = service("web", address, None);
    let registered = lease("web", SocketAddr::from(([127, 0, 0, 2], 9)), None, 60_000);
    assert_eq!(probes.lease(registered.clone()).await, Ok(Ok(Leased::New)));
    assert_eq!(offered(&mut inbox).await.0, "web");
    probes.follow(vec![web]).await.unwrap();
    match next(&mut inbox).await {
        Order::Offer(record) => assert_eq!(record.address, address),
        other => panic!("expected an offer, got {other:?}"),
    }
    let key = ("web".into(), "one".into());
    let refused = Ok(Err(LeaseRefused::Configured));
    assert_eq!(probes.lease(registered).await, refused);
    assert_eq!(probes.release(key).await, Ok(Err(LeaseRefused::Configured)));
}

#[tokio::test]
async fn no_more_than_so_many_can_be_registered() {
    let (gossip, mut inbox) = gossip();
    let probes = Probes::start(&gossip, None, Clock::new());
    let address = SocketAddr::from(([127, 0, 0, 1], 9));
    for i in 0..LEASES_MAX {
        let one = lease(&format!("s{i}"), address, None, 60_000);
        assert_eq!(probes.lease(one).await, Ok(Ok(Leased::New)));
        offered(&mut inbox).await;
    }
    let one_more = lease("more", address, None, 60_000);
    assert_eq!(probes.lease(one_more).await, Ok(Err(LeaseRefused::Full)));
    let known = lease("s0", address, None, 60_000);
    assert_eq!(probes.lease(known).await, Ok(Ok(Leased::Renewed)));
}

#[tokio::test(start_paused = true)]
async fn an_applications_own_word_is_its_health_and_renews_its_lease() {
    let (gossip, mut inbox) = gossip();
    let probes = Probes::start(&gossip, None, Clock::new());
    let address = SocketAddr::from(([127, 0, 0, 1], 9));
    let within = Duration::from_secs(2);
    let check = Check::of(CheckKind::Ttl { within });
    let web = lease("web", address, Some(check), 3_000);
    assert_eq!(probes.lease(web).await, Ok(Ok(Leased::New)));
    let warming = told("web", Health::Failing, InstanceState::Warming);
    assert_eq!(offered(&mut inbox).await, warming);
    let key = || ("web".into(), "one".into());
    for health in [Health::Passing, Health::Warning, Health::Passing] {
        pass(Duration::from_millis(1_900)).await;
        assert_eq!(probes.say(key(), health).await, Ok(Ok(())));
        let up = told("web", health, InstanceState::Up);
        assert_eq!(offered(&mut inbox).await, up);
    }
    let silent = told("web", Health::Failing, InstanceState::Up);
    assert_eq!(offered(&mut inbox).await, silent);
    assert_eq!(withdrawn(&mut inbox).await, "web");
    let unknown = probes.say(key(), Health::Passing).await;
    assert_eq!(unknown, Ok(Err(WordRefused::Unknown)));
    let web = service("web", address, Some(tcp_check()));
    probes.follow(vec![web]).await.unwrap();
    let checked = probes.say(key(), Health::Passing).await;
    assert_eq!(checked, Ok(Err(WordRefused::Checked)));
}
