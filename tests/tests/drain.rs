//! Going without a lost request: SIGTERM, and draining one service by hand.
//!
//! Not here: hosts that vanish (`failover.rs`).

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use examples::load::{self, Plan};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tests::{
    PATIENCE,
    http::Call,
    mesh::{self, Host},
    sidecar::Sidecar,
    until::until,
};
use tokio::{net::TcpStream, task::JoinSet};

/// Clients of HTTP/2 that ask at once.
const CLIENTS: usize = 8;

fn load_through(host: &Host, seconds: u64) -> Plan {
    Plan::new(host.sidecar.outbound(), "shop.mesh").at(150, Duration::from_secs(seconds))
}

/// Waits until `host` sees the instance at `address` as draining.
async fn until_draining(host: &Sidecar, address: &str, within: Duration) {
    let what = format!("{} sees {address} draining", host.setup.name);
    until(within, &what, || async {
        let rows = host.endpoints("shop").await?;
        let row = rows.iter().find(|row| row.address == address);
        match row {
            Some(row) if !row.usable && row.why.contains("draining") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_told_to_stop_under_load_loses_no_request() {
    let mut hosts = mesh::shops(
        &["eu-1a", "eu-1a", "eu-1a"],
        "[drain]\ngrace = \"2s\"\ntimeout = \"10s\"\n",
    )
    .await;
    let remote = tokio::spawn(load::run(load_through(&hosts[0], 6)));
    let own = tokio::spawn(load::run(load_through(&hosts[2], 6)));
    hosts[2].sidecar.until_served(100).await;
    let outbound = hosts[2].sidecar.outbound();
    let slow =
        tokio::spawn(async move { Call::get("shop.mesh", "/delay/4000").to(outbound).await });
    hosts[2].sidecar.until_busy("shop").await;

    hosts[2].sidecar.process.signal("TERM");
    let address = format!("{}:{}", hosts[2].sidecar.setup.address, mesh::BACKEND_PORT);
    for host in &hosts[..2] {
        until_draining(&host.sidecar, &address, Duration::from_secs(1)).await;
    }
    let ready = hosts[2].sidecar.ask("/ready").await;
    assert_eq!(ready.expect("admin answers while draining").status, 503);

    let slow = slow.await.expect("no panic").expect("an answer");
    assert_eq!(slow.status, 200, "a request in flight is waited for");
    let remote = remote.await.expect("the load ends");
    assert_eq!(remote.failures(), 0, "remote: {}", remote.to_json());
    // Its own callers are served until it stops listening; after that the kernel refuses, and that is all.
    let own = own.await.expect("the load ends");
    let refused = own.failed.get("refused").copied().unwrap_or(0);
    assert_eq!(own.failures(), refused, "own: {}", own.to_json());
    assert!(own.ok >= 150, "own: {}", own.to_json());

    let status = hosts[2].sidecar.process.end(PATIENCE).await;
    assert!(status.success(), "{status}");
    for host in &hosts[..2] {
        host.sidecar.until_member("host-2", "left", PATIENCE).await;
    }
}

/// Requests of HTTP/2 one after another, on a new connection whenever one is at its end, until nobody listens any more.
/// Yields how many were answered; an error tells of one that was lost.
async fn asks_over_http2(at: SocketAddr) -> Result<u32, String> {
    let mut answered = 0;
    while let Ok(stream) = TcpStream::connect(at).await {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let Ok((mut sender, connection)) = handshake else {
            // The kernel had taken it and the sidecar never did.
            continue;
        };
        tokio::spawn(connection);
        while sender.ready().await.is_ok() {
            let request = Request::get("http://shop.mesh/delay/20").body(Empty::<Bytes>::new());
            let request = request.expect("it is sound");
            let answer = match sender.try_send_request(request).await {
                Ok(answer) => answer,
                // It was told to go before this one was sent.
                Err(error) if error.message().is_some() => break,
                Err(error) => return Err(format!("after {answered}: {:?}", error.into_error())),
            };
            let status = answer.status();
            let body = answer.into_body().collect().await;
            if !status.is_success() || body.is_err() {
                return Err(format!("after {answered}: {status}, {body:?}"));
            }
            answered += 1;
        }
    }
    Ok(answered)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_http2_are_told_to_go_and_lose_nothing() {
    let mut hosts = mesh::shops(
        &["eu-1a", "eu-1a"],
        "[drain]\ngrace = \"1s\"\ntimeout = \"10s\"\n",
    )
    .await;
    let outbound = hosts[1].sidecar.outbound();
    let mut asking = JoinSet::new();
    for _ in 0..CLIENTS {
        asking.spawn(asks_over_http2(outbound));
    }
    hosts[1].sidecar.until_served(100).await;
    hosts[1].sidecar.process.signal("TERM");
    let status = hosts[1].sidecar.process.end(PATIENCE).await;
    assert!(status.success(), "{status}");
    let mut answered = 0;
    while let Some(ended) = asking.join_next().await {
        answered += ended.expect("no panic").expect("nothing is lost");
    }
    assert!(answered >= 100, "{answered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_term_cuts_at_once() {
    let mut hosts = mesh::shops(&["eu-1a"], "[drain]\ngrace = \"10s\"\ntimeout = \"30s\"\n").await;
    let sidecar = &mut hosts[0].sidecar;
    sidecar.process.signal("TERM");
    until(PATIENCE, "it drains", || async {
        match sidecar.ask("/ready").await?.status {
            503 => Ok(()),
            other => Err(format!("/ready answers {other}")),
        }
    })
    .await;
    sidecar.process.signal("TERM");
    sidecar.process.end(Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_drained_by_hand_is_left_alone_until_undrained() {
    let hosts = mesh::shops(&["eu-1a", "eu-1a"], "").await;
    let order = hosts[1]
        .sidecar
        .order("/v1/drain", "{\"service\":\"shop\"}")
        .await;
    let order = order.expect("an answer");
    assert!(order.status < 300, "{order:?}");
    let address = format!("{}:{}", hosts[1].sidecar.setup.address, mesh::BACKEND_PORT);
    for host in &hosts {
        until_draining(&host.sidecar, &address, PATIENCE).await;
    }
    let backend = hosts[1].backend.as_ref().expect("it runs");
    let before = backend.served();
    let figures = load::run(load_through(&hosts[0], 1)).await;
    assert_eq!(figures.failures(), 0, "{}", figures.to_json());
    assert_eq!(
        backend.served(),
        before,
        "a draining instance got new requests"
    );

    let order = hosts[1]
        .sidecar
        .order("/v1/undrain", "{\"service\":\"shop\"}")
        .await;
    assert!(order.expect("an answer").status < 300);
    for host in &hosts {
        host.sidecar.until_usable("shop", 2, PATIENCE).await;
    }
}
