//! The load and the backend, face to face: the figures must tell what the backend did.

use std::time::Duration;

use examples::{
    backend::{Backend, Behaviour, Failure, Spread, Stalls, Work},
    load::{self, Arrivals, Plan},
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

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_works_on_so_many_at_a_time_and_the_others_wait() {
    let backend = backend().await;
    let (workers, time) = (2, Duration::from_millis(50));
    backend.change(|b| b.work = Some(Work::new(workers, time, Spread::Constant)));
    // Ten come within a moment: the last pair waits for four before it.
    let figures = load::run(plan(&backend).at(1_000, Duration::from_millis(10))).await;
    assert_eq!(figures.ok, 10, "{figures:?}");
    let (first, last) = (
        figures.latencies.quantile_ms(0.1),
        figures.latencies.quantile_ms(1.0),
    );
    assert!(first >= 49.0, "{first} ms");
    assert!(last >= 5.0 * 50.0 - 15.0, "{last} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_felt_by_whoever_comes_into_it() {
    let address = "127.0.0.1:0".parse().expect("an address");
    let mut work = Work::new(4, Duration::from_millis(1), Spread::Exponential);
    work.stalls = Some(Stalls {
        every: Duration::from_millis(20),
        length: Duration::from_millis(200),
    });
    let behaviour = Behaviour {
        work: Some(work),
        ..Behaviour::well("one", "eu-1a")
    };
    let backend = Backend::start(address, behaviour).await.expect("loopback");
    let figures = load::run(plan(&backend)).await;
    assert_eq!(figures.ok, 100, "{figures:?}");
    assert!(figures.latencies.quantile_ms(0.99) > 100.0, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_get_the_requests_in_turn() {
    let (first, second) = (backend().await, backend().await);
    for http2 in [false, true] {
        let figures = load::run(Plan {
            targets: vec![first.address(), second.address()],
            arrivals: Arrivals::Poisson,
            http2,
            ..plan(&first)
        })
        .await;
        assert_eq!(figures.failures(), 0, "{figures:?}");
    }
    let (one, other) = (first.served(), second.served());
    // Two loads of 100 on the mean, random in number: ten deviations are 142.
    assert!(
        one.abs_diff(other) <= 2 && (60..=340).contains(&(one + other)),
        "{one}, {other}"
    );
}
