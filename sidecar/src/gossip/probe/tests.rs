//! The checks' task against applications on real sockets and a gossip task that only listens.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_core::{mesh::Mesh, policy::Weight};
use mesh_proto::record::{Health, WireProtocol};
use tokio::{net::TcpListener, sync::watch, time::timeout};

use super::*;
use crate::config::{Check, CheckKind};

const DEADLINE: Duration = Duration::from_secs(10);

fn gossip() -> (Gossip, mpsc::Receiver<Order>) {
    let (orders, inbox) = mpsc::channel(super::super::ORDERS_MAX);
    let (_, mesh) = watch::channel(Arc::new(Mesh::default()));
    (Gossip { orders, mesh }, inbox)
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
