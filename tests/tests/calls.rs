//! What a request asks of the kernel, counted by strace: two reads and two writes over kept connections, as in HAProxy.
//!
//! Not here: what it asks of the allocator (the sidecar's `proxy/cost.rs`), and how long it takes (`tests/bench/run`).

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use mesh_tests::{
    PATIENCE,
    frames::{
        Client, END_HEADERS, END_STREAM, Heard, block, frame,
        kind::{DATA, HEADERS},
    },
    process::{Process, installed},
    scratch::Scratch,
    sidecar::{Setup, Sidecar},
    skipped,
    until::until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Requests that are counted, one after another on one connection.
const REQUESTS: u64 = 500;
/// Calls beside those of the requests: timers, gossip and checks go on meanwhile.
const SPARE: u64 = 100;

/// Calls that move bytes.
const TRANSFERS: &[&str] = &[
    "read", "readv", "recvfrom", "recvmsg", "recvmmsg", "write", "writev", "sendto", "sendmsg",
    "sendmmsg", "splice",
];
/// Calls that wait for something; one connection waits twice for each request.
const WAITS: &[&str] = &["epoll_wait", "epoll_pwait", "epoll_pwait2"];

/// One request on a kept connection, to the end of its answer.
async fn ask(stream: &mut TcpStream) {
    let request = b"GET /bytes/10 HTTP/1.1\r\nHost: shop.mesh\r\n\r\n";
    stream.write_all(request).await.expect("it takes a request");
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.expect("an answer"));
    }
    assert!(bytes.starts_with(b"HTTP/1.1 200 "));
    let mut body = [0; 10];
    stream.read_exact(&mut body).await.expect("its body");
}

/// How often a call was made, from strace's table.
fn times(table: &str, names: &[&str]) -> u64 {
    let row = |line: &str| -> Option<u64> {
        let words: Vec<&str> = line.split_whitespace().collect();
        names
            .contains(words.last()?)
            .then(|| words.get(3)?.parse().ok())?
    };
    table.lines().filter_map(row).sum()
}

/// A client with one kept connection.
enum Caller {
    Http1(TcpStream),
    /// And the next stream's number.
    Http2(Client, u32),
}

impl Caller {
    async fn open(sidecar: &Sidecar, http2: bool) -> Caller {
        let at = sidecar.outbound();
        if http2 {
            Caller::Http2(Client::open(at).await.expect("it listens"), 1)
        } else {
            Caller::Http1(TcpStream::connect(at).await.expect("it listens"))
        }
    }

    /// One request, to the end of its answer.
    async fn ask(&mut self) {
        let (client, stream) = match self {
            Caller::Http1(stream) => return ask(stream).await,
            Caller::Http2(client, stream) => (client, stream),
        };
        let fields = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/bytes/10"),
            (":authority", "shop.mesh"),
        ];
        let head = frame(HEADERS, END_HEADERS | END_STREAM, *stream, &block(&fields));
        client.say(&head).await.expect("it takes a request");
        let is_last = |heard: &Heard| heard.stream == *stream && heard.flags & END_STREAM != 0;
        let heard = client.hear_until(PATIENCE, is_last).await;
        assert_eq!(
            heard.last().map(|heard| (heard.kind, heard.payload.len())),
            Some((DATA, 10))
        );
        *stream += 2;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_kept_connections_makes_four_socket_calls() {
    if !may_trace("socket calls of a request") {
        return;
    }
    count(false, "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_http2_makes_as_few_on_either_side() {
    if !may_trace("socket calls of a request of HTTP/2") {
        return;
    }
    for (client, endpoint) in [(true, "1"), (false, "2"), (true, "2")] {
        count(client, endpoint).await;
    }
}

/// Whether strace is there and allowed; says so if not.
fn may_trace(story: &str) -> bool {
    if !installed("strace") {
        skipped(story, "strace is not installed");
        return false;
    }
    let mut try_it = Command::new("strace");
    try_it.args(["-c", "-o", "/dev/null", "true"]);
    let may = try_it.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let may = may.is_ok_and(|status| status.success());
    if !may {
        skipped(story, "tracing is forbidden here");
    }
    may
}

/// Counts what requests of a client cost that speaks HTTP/2 or HTTP/1, to an endpoint of that version of HTTP.
async fn count(http2: bool, endpoint: &str) {
    let setup = Setup::new("host-0", "eu-1a");
    let table = format!(
        "[upstream.shop]\nendpoints = [\"{}:9001\"]\nhttp = \"{endpoint}\"\n",
        setup.address
    );
    let sidecar = Sidecar::ready(setup.with(&table)).await;
    let _backend = sidecar.backend(9001, "shop").await;
    let mut caller = Caller::open(&sidecar, http2).await;
    for _ in 0..20 {
        caller.ask().await;
    }

    let scratch = Scratch::new();
    let file = scratch.path().join("table");
    let mut command = Command::new("strace");
    command.args(["-c", "-f", "-o"]).arg(&file);
    command.args(["-p", &sidecar.process.id().to_string()]);
    let mut tracing = Process::start("strace", command, &scratch.path().join("strace"));
    until(PATIENCE, "strace is attached", || async {
        let said = tracing.log();
        if said.contains("attached") {
            return Ok(());
        }
        Err(said)
    })
    .await;
    for _ in 0..REQUESTS {
        caller.ask().await;
    }
    tracing.signal("INT");
    tracing.end(Duration::from_secs(10)).await;

    let table = std::fs::read_to_string(&file).expect("strace has told");
    let (transfers, waits) = (times(&table, TRANSFERS), times(&table, WAITS));
    let all: u64 = {
        let total = |line: &&str| line.split_whitespace().last() == Some("total");
        let row = table.lines().find(total).expect("a last row");
        let number = row.split_whitespace().nth(3).and_then(|n| n.parse().ok());
        number.expect("a number of calls")
    };
    let from = if http2 { "2" } else { "1" };
    println!(
        "HTTP/{from} to HTTP/{endpoint}: {transfers} transfers and {waits} waits of {all} calls for {REQUESTS} requests"
    );
    assert!(
        transfers >= 4 * REQUESTS,
        "they were not all seen:\n{table}"
    );
    assert!(transfers <= 4 * REQUESTS + SPARE, "{table}");
    assert!(waits <= 2 * REQUESTS + SPARE, "{table}");
    assert!(all <= 6 * REQUESTS + 3 * SPARE, "{table}");
}
