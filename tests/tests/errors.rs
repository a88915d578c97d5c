//! The sidecar's own answers, cause by cause: status, flag, and the same for gRPC.
//!
//! Not here: answers of backends, which pass as they are (`retries.rs`).

use std::{net::SocketAddr, time::Duration};

use http::Method;
use mesh_tests::{
    http::{Answer, Call, raw},
    sidecar::{Setup, Sidecar, backend_at},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Reads a request head, says `words` instead of an answer, and closes.
async fn oddity(listener: TcpListener, words: &'static [u8]) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut piece = [0; 4096];
            let _ = stream.read(&mut piece).await?;
            stream.write_all(words).await?;
            stream.shutdown().await
        });
    }
}

struct World {
    sidecar: Sidecar,
    backend: examples::backend::Backend,
}

/// One sidecar with an upstream for every way to fail.
async fn world() -> World {
    let setup = Setup::new("host", "eu-1a");
    let backend = backend_at(&setup, 9001, "slow").await;
    let closing = TcpListener::bind((setup.address, 9002))
        .await
        .expect("free");
    let babbling = TcpListener::bind((setup.address, 9003))
        .await
        .expect("free");
    tokio::spawn(oddity(closing, b""));
    tokio::spawn(oddity(babbling, b"SSH-2.0-OpenSSH_9.2\r\n"));
    let at = |port| SocketAddr::new(setup.address, port);
    let tables = format!(
        r#"
[upstream.slow]
timeout = "300ms"
endpoints = ["{}"]

[upstream.closing]
retry = {{ retries = 0 }}
endpoints = ["{}"]

[upstream.babbling]
retry = {{ retries = 0 }}
endpoints = ["{}"]

[upstream.refusing]
endpoints = ["{}"]

[upstream.empty]
"#,
        at(9001),
        at(9002),
        at(9003),
        at(9)
    );
    World {
        sidecar: Sidecar::ready(setup.with(&tables)).await,
        backend,
    }
}

fn check(cause: &str, answer: &Answer, status: u16, flag: &str) {
    assert_eq!(answer.status, status, "{cause}: {answer:?}");
    let told = answer.header("proxy-status");
    assert!(
        told.contains(flag),
        "{cause}: Proxy-Status {told:?} lacks {flag}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cause_has_its_status_and_flag_over_http_and_grpc() {
    let world = world().await;
    let outbound = world.sidecar.outbound();
    // cause, authority, path, HTTP status, gRPC status, flag
    let table = [
        ("unknown service", "nobody.mesh", "/", 503, "14", "NC"),
        ("no endpoint at all", "empty.mesh", "/", 503, "14", "UH"),
        ("refused", "refusing.mesh", "/", 503, "14", "UF"),
        ("timeout", "slow.mesh", "/delay/3000", 504, "4", "UT"),
        ("closed", "closing.mesh", "/", 502, "14", "UC"),
        ("not HTTP", "babbling.mesh", "/", 502, "13", "UPE"),
        ("external name", "www.example.com", "/", 403, "7", "RBAC"),
    ];
    for (cause, authority, path, status, grpc, flag) in table {
        let answer = Call::get(authority, path)
            .to(outbound)
            .await
            .expect("an answer");
        check(cause, &answer, status, flag);
        let call = Call::get(authority, path)
            .with_body(Method::POST, vec![0u8; 5])
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .over_http2();
        let answer = call.to(outbound).await.expect("an answer");
        assert_eq!(
            answer.status, 200,
            "{cause}: gRPC tells its status in a header: {answer:?}"
        );
        assert_eq!(answer.header("grpc-status"), grpc, "{cause}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_is_kept_though_the_backend_is_late() {
    let world = world().await;
    let begun = std::time::Instant::now();
    let answer = world.sidecar.get("slow.mesh", "/delay/5000").await;
    assert_eq!(answer.expect("an answer").status, 504);
    let took = begun.elapsed();
    assert!((300..1500).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_could_be_read_in_two_ways_are_refused_and_never_forwarded() {
    let world = world().await;
    let outbound = world.sidecar.outbound();
    let table: [(&str, &str, &[u16]); 7] = [
        (
            "a length beside chunked",
            "POST / HTTP/1.1\r\nHost: slow.mesh\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: slow.mesh\r\n\r\n",
            &[400],
        ),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nHost: slow.mesh\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            &[400],
        ),
        (
            "two hosts",
            "GET / HTTP/1.1\r\nHost: slow.mesh\r\nHost: empty.mesh\r\n\r\n",
            &[400],
        ),
        (
            "space before the colon",
            "GET / HTTP/1.1\r\nHost : slow.mesh\r\n\r\n",
            &[400],
        ),
        (
            "folded header",
            "GET / HTTP/1.1\r\nHost: slow.mesh\r\nX-A: 1\r\n 2\r\n\r\n",
            &[400],
        ),
        (
            "bare CR",
            "GET / HTTP/1.1\r\nHost: slow.mesh\r\nX-A: 1\r2\r\n\r\n",
            &[400],
        ),
        (
            "chunked is not last",
            "POST / HTTP/1.1\r\nHost: slow.mesh\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
            &[400, 501],
        ),
    ];
    for (cause, request, allowed) in table {
        let back = raw(outbound, request.as_bytes(), Duration::from_secs(2)).await;
        let back = String::from_utf8_lossy(&back);
        let status: u16 = back
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .unwrap_or(0);
        assert!(allowed.contains(&status), "{cause}: {back:?}");
    }
    assert_eq!(world.backend.served(), 0, "something was forwarded");
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: slow.mesh\r\n\r\n",
        "a".repeat(100_000)
    );
    let back = raw(outbound, long.as_bytes(), Duration::from_secs(2)).await;
    let back = String::from_utf8_lossy(&back);
    assert!(
        back.starts_with("HTTP/1.1 414") || back.starts_with("HTTP/1.1 431"),
        "{back:?}"
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: slow.mesh\r\n{}\r\n",
        "X-A: 1\r\n".repeat(500)
    );
    let back = raw(outbound, many.as_bytes(), Duration::from_secs(2)).await;
    assert!(
        back.starts_with(b"HTTP/1.1 431"),
        "{:?}",
        String::from_utf8_lossy(&back)
    );
}
