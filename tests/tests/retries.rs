//! Attempts that fail and requests that do not: what is tried again, and what is not.
//!
//! Not here: whole zones (`failover.rs`).

use std::time::Duration;

use examples::{
    backend::Failure,
    load::{self, Plan},
};
use http::Method;
use mesh_tests::{
    PATIENCE,
    http::Call,
    mesh::{self, Host},
    sidecar::{Setup, Sidecar},
    until::until,
};
use tokio::task::JoinSet;

/// Requests at once in the story of the last one killed.
const REQUESTS: u64 = 40;

fn plan(caller: &Host) -> Plan {
    Plan::new(caller.sidecar.outbound(), "shop.mesh").at(200, Duration::from_secs(3))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_dies_in_mid_load_costs_no_get() {
    let mut hosts = mesh::shops(&["eu-1a", "eu-1a", "eu-1a"], "").await;
    let load = tokio::spawn(load::run(plan(&hosts[0])));
    hosts[0].sidecar.until_served(100).await;
    hosts[1].kill_backend();
    let figures = load.await.expect("the load ends");
    assert_eq!(figures.failures(), 0, "{}", figures.to_json());
    assert_eq!(figures.ok, 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_without_an_answer_is_retried_for_get_but_not_for_post() {
    let hosts = mesh::shops(&["eu-1a", "eu-1a"], "").await;
    let sick = hosts[1].backend.as_ref().expect("it runs");
    sick.change(|b| (b.failure_share, b.failure) = (1.0, Failure::Close));
    let outbound = hosts[0].sidecar.outbound();
    let mut refused = 0;
    for _ in 0..60 {
        let get = Call::get("shop.mesh", "/").to(outbound).await;
        assert_eq!(get.expect("an answer").status, 200);
        let post = Call::get("shop.mesh", "/")
            .with_body(Method::POST, "once")
            .to(outbound)
            .await
            .expect("an answer");
        match post.status {
            200 => {}
            502 => refused += 1,
            other => panic!("{other}: {post:?}"),
        }
    }
    // Balancing soon leaves the sick one alone; what must not happen is a repeat behind the caller's back.
    assert!(refused <= sick.served(), "{refused} of {}", sick.served());
    let healthy = hosts[0].backend.as_ref().expect("it runs").served();
    assert_eq!(healthy, 120 - refused, "a POST was repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_error_is_retried_once_on_another_endpoint() {
    let hosts = mesh::shops(&["eu-1a", "eu-1a"], "").await;
    let sick = hosts[1].backend.as_ref().expect("it runs");
    sick.change(|b| (b.failure_share, b.failure) = (1.0, Failure::Status(503)));
    let figures = load::run(plan(&hosts[0])).await;
    assert_eq!(figures.failures(), 0, "{}", figures.to_json());
    let sick_share = sick.served() as f64 / 600.0;
    assert!(
        sick_share < 0.1,
        "a backend that fails fast got {sick_share}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_switched_off_show_the_failure_as_it_is() {
    let tables = "[upstream.shop]\nretry = { retries = 0 }\nejection = { consecutive = 0 }\n";
    let hosts = mesh::shops(&["eu-1a"], tables).await;
    let backend = hosts[0].backend.as_ref().expect("it runs");
    backend.change(|b| b.failure_share = 1.0);
    for _ in 0..5 {
        let answer = hosts[0].sidecar.get("shop.mesh", "/").await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 503);
        assert_eq!(answer.text(), "made to fail\n", "the backend's own answer");
    }
    assert_eq!(backend.served(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_hangs_is_left_when_its_try_is_over() {
    let tables = "[upstream.shop]\nretry = { on = [\"gateway-error\"], retries = 1, per_try_timeout = \"200ms\" }\n";
    let hosts = mesh::shops(&["eu-1a", "eu-1a"], tables).await;
    let hanging = hosts[1].backend.as_ref().expect("it runs");
    hanging.change(|b| (b.failure_share, b.failure) = (1.0, Failure::Hang));
    let plan = plan(&hosts[0]).at(50, Duration::from_secs(3));
    let figures = load::run(plan).await;
    assert_eq!(figures.failures(), 0, "{}", figures.to_json());
}

/// Asks until so many endpoints were sent out.
async fn until_sent_out(sidecar: &Sidecar, count: f64) {
    until(PATIENCE, "the killed one is sent out", || async {
        let answer = sidecar.get("shop.mesh", "/").await?;
        assert_eq!(answer.status, 200, "others are there: {}", answer.text());
        let sent_out = sidecar.metric("starling_ejections_total").await;
        if sent_out >= count {
            return Ok(());
        }
        Err(format!("{sent_out} sent out"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_one_may_be_killed_while_the_others_sit_out_for_having_been_killed() {
    let setup = Setup::new("host-0", "eu-1a");
    let ports = [9001, 9002, 9003];
    let places = ports.map(|port| format!("\"{}:{port}\"", setup.address));
    // Out for longer than the story lasts: nobody comes back because its time is over.
    let table = format!(
        "[upstream.shop]\nendpoints = [{}]\nbalance = \"round_robin\"\nejection = {{ base = \"1m\" }}\n",
        places.join(", ")
    );
    let sidecar = Sidecar::ready(setup.with(&table)).await;
    let [first, second, last] = ports.map(|port| sidecar.backend(port, "shop"));
    let last = last.await;
    let others = [first.await, second.await];
    for (number, other) in others.into_iter().enumerate() {
        drop(other);
        until_sent_out(&sidecar, number as f64 + 1.0).await;
    }
    let mut back = Vec::new();
    for port in [ports[0], ports[1]] {
        let backend = sidecar.backend(port, "shop").await;
        // Slow enough for all requests to come while the first is under way.
        backend.change(|b| b.delay = Duration::from_millis(100));
        back.push(backend);
    }
    drop(last);

    let mut calls = JoinSet::new();
    for _ in 0..REQUESTS {
        let outbound = sidecar.outbound();
        calls.spawn(async move { Call::get("shop.mesh", "/").to(outbound).await });
    }
    while let Some(called) = calls.join_next().await {
        let answer = called.expect("no panic").expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let served: Vec<u64> = back.iter().map(|backend| backend.served()).collect();
    assert_eq!(served.iter().sum::<u64>(), REQUESTS, "{served:?}");
}
