//! The load and the backend, face to face: the figures must tell what the backend did.

use std::time::Duration;

use examples::{
    backend::{Backend, Behaviour, Failure},
    load::{self, Plan},
};

async fn backend() -> Backend {
    let address = "127.0.0.1:0".parse().expect("an address");
    Backend::start(address, Behaviour::well("one", "eu-1a"))
        .await
        .expect("loopback takes a listener")
}

fn plan(backend: &Backend) -> Plan {
    Plan::new(backend.address(), "shop.mesh").at(200, Duration::from_millis(500))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_due_request_is_sent_and_told_by_zone() {
    let backend = backend().await;
    for http2 in [false, true] {
        let figures = load::run(Plan {
            http2,
            ..plan(&backend)
        })
        .await;
        assert_eq!((figures.sent, figures.ok), (100, 100), "{figures:?}");
        assert_eq!(figures.zones["eu-1a"], 100);
    }
    assert_eq!(backend.served(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_by_kind() {
    let backend = backend().await;
    backend.change(|b| b.failure_share = 1.0);
    let figures = load::run(plan(&backend)).await;
    assert_eq!(figures.failed["status_503"], 100, "{figures:?}");
    backend.change(|b| b.failure = Failure::Close);
    let figures = load::run(plan(&backend)).await;
    assert_eq!(figures.failed["broken"], 100, "{figures:?}");
    let closed = plan(&backend);
    drop(backend);
    let figures = load::run(closed).await;
    assert_eq!(figures.failures(), 100, "{figures:?}");
    assert!(figures.failed.contains_key("refused"), "{figures:?}");
}
