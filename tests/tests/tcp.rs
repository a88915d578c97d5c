//! TCP upstreams: real Redis through them, servers that speak first, failover on a new connection, and how policies deal
//! connections out.
//!
//! Not here: HTTP.

use std::{net::SocketAddr, process::Command, time::Duration};

use mesh_tests::{
    PATIENCE,
    process::{Process, installed},
    scratch::Scratch,
    sidecar::{Setup, Sidecar, own_address},
    skipped,
    until::{answers_after, until},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const REDIS_PORT: u16 = 6379;

fn redis_server(setup: &Setup, scratch: &Scratch) -> Process {
    let mut command = Command::new("redis-server");
    command.args([
        "--save",
        "",
        "--appendonly",
        "no",
        "--port",
        "6379",
        "--bind",
    ]);
    command.arg(setup.address.to_string());
    command.current_dir(scratch.path());
    let log = scratch.path().join(format!("{}.log", setup.name));
    Process::start(&format!("redis-server of {}", setup.name), command, &log)
}

/// One `redis-cli` call on a connection of its own.
fn redis(at: SocketAddr, words: &[&str]) -> Result<String, String> {
    let output = Command::new("redis-cli")
        .args(["-h", &at.ip().to_string(), "-p", &at.port().to_string()])
        .args(words)
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && !said.is_empty() {
        return Ok(said);
    }
    Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_fails_over_to_the_second_server_on_a_new_connection() {
    if !installed("redis-server") || !installed("redis-cli") {
        return skipped(
            "redis over TCP",
            "redis-server or redis-cli is not installed",
        );
    }
    let service = "[service.cache]\nport = 6379\nprotocol = \"tcp\"\ncheck = { tcp = true, interval = \"250ms\" }\n";
    let first = Setup::new("first", "eu-1a").with(service);
    let second = Setup::new("second", "eu-1b").with(service).joining(&first);
    let scratch = Scratch::new();
    let mut near = redis_server(&first, &scratch);
    let _far = redis_server(&second, &scratch);
    let listen = SocketAddr::new(first.address, 7001);
    let first = first.with(&format!(
        "[upstream.cache]\nprotocol = \"tcp\"\nlisten = \"{listen}\"\n"
    ));
    let far_address = SocketAddr::new(second.address, REDIS_PORT);
    let sidecar = Sidecar::ready(first).await;
    let _second = Sidecar::ready(second).await;
    sidecar.until_usable("cache", 2, PATIENCE).await;

    assert_eq!(redis(listen, &["SET", "where", "near"]), Ok("OK".into()));
    assert_eq!(
        redis(far_address, &["SET", "where", "far"]),
        Ok("OK".into())
    );
    for _ in 0..10 {
        assert_eq!(redis(listen, &["GET", "where"]), Ok("near".into()));
    }
    near.kill();
    // No grace: the very next connection goes to the other server.
    for _ in 0..10 {
        assert_eq!(redis(listen, &["GET", "where"]), Ok("far".into()));
    }
    let _near = redis_server(&sidecar.setup, &scratch);
    until(PATIENCE * 3, "the own zone serves again", || async {
        redis(listen, &["SET", "where", "near again"])?;
        match redis(far_address, &["GET", "where"])?.as_str() {
            "far" => Ok(()),
            other => {
                redis(far_address, &["SET", "where", "far"])?;
                Err(format!("the far one was written: {other}"))
            }
        }
    })
    .await;
}

/// Greets before it is asked, then answers everything that came once the caller has finished.
async fn greeter(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            stream.write_all(b"220 ready\r\n").await?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            stream
                .write_all(format!("got {}", all.len()).as_bytes())
                .await?;
            stream.shutdown().await
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard_and_half_close_is_kept() {
    let setup = Setup::new("host", "eu-1a");
    let server = TcpListener::bind((setup.address, 2525))
        .await
        .expect("a free address");
    let fixed = server.local_addr().expect("it is bound");
    tokio::spawn(greeter(server));
    let listen = SocketAddr::new(setup.address, 7001);
    let dead = SocketAddr::new(setup.address, 2526);
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.mail]\nprotocol = \"tcp\"\nlisten = \"{listen}\"\nendpoints = [\"{fixed}\", \"{dead}\"]\n"
    )))
    .await;

    // One of the two endpoints refuses every connection: nobody may notice.
    for _ in 0..20 {
        let mut stream = TcpStream::connect(listen).await.expect("open");
        let mut greeting = [0; 11];
        let heard = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut greeting));
        heard.await.expect("in time").expect("no reset");
        assert_eq!(&greeting, b"220 ready\r\n");
        stream.write_all(&[7; 100_000]).await.expect("sent");
        stream.shutdown().await.expect("half-closed");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.expect("an end");
        assert_eq!(rest, "got 100000");
    }
    drop(sidecar);
}

/// Says its name to whoever connects, after a while, and keeps the connection open until its caller goes.
async fn named(listener: TcpListener, name: u8, after: Duration) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            answers_after(after).await;
            stream.write_all(&[name]).await?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await
        });
    }
}

/// A sidecar with one TCP upstream at port 7001, whose servers weigh so much and say their places after a while.
async fn weighed(balance: &str, weights: &[u32], after: Duration) -> Sidecar {
    let mut endpoints = Vec::new();
    for (name, weight) in weights.iter().enumerate() {
        let listener = TcpListener::bind((own_address(), 6000)).await;
        let listener = listener.expect("a free address");
        let address = listener.local_addr().expect("it is bound");
        endpoints.push(format!("{{ address = \"{address}\", weight = {weight} }}"));
        tokio::spawn(named(listener, name as u8, after));
    }
    let setup = Setup::new("host", "eu-1a");
    let table = format!(
        "[upstream.store]\nprotocol = \"tcp\"\nlisten = \"{}:7001\"\nbalance = \"{balance}\"\nendpoints = [{}]\n",
        setup.address,
        endpoints.join(", ")
    );
    Sidecar::ready(setup.with(&table)).await
}

/// A connection through the sidecar, and the place of the server that it leads to.
async fn connected(sidecar: &Sidecar) -> (TcpStream, usize) {
    let stream = TcpStream::connect(sidecar.port(7001)).await;
    let mut stream = stream.expect("open");
    let name = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
    (stream, name.expect("in time").expect("no reset").into())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_dealt_out_by_policy_and_weight() {
    // How many connections, whether they stay open, and of how many each server may get off what it should.
    let cases: [(&str, &[u32], u32, bool, u32); 4] = [
        // Each worker has turns of its own.
        ("round_robin", &[300, 100], 40, false, 2),
        // Four standard deviations.
        ("random", &[300, 100], 400, false, 35),
        ("least_connections", &[100, 200, 100], 24, true, 0),
        // Of two servers both are drawn, and the one with fewer gets it: any other way chance would show.
        ("power_of_two", &[100, 100], 24, true, 0),
    ];
    for (balance, weights, connections, stay, off) in cases {
        let sidecar = weighed(balance, weights, Duration::ZERO).await;
        let mut counts = vec![0_u32; weights.len()];
        let mut open = Vec::new();
        for _ in 0..connections {
            let (stream, place) = connected(&sidecar).await;
            counts[place] += 1;
            if stay {
                open.push(stream);
            }
        }
        let sum: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let want = connections * weight / sum;
            assert!(count.abs_diff(want) <= off, "{balance}: {counts:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_takes_to_speak_is_not_taken_for_its_latency() {
    let late = Duration::from_secs(3);
    let sidecar = weighed("least_response_time", &[100], late).await;
    for _ in 0..4 {
        connected(&sidecar).await;
    }
    let told = sidecar.listing("/v1/explain/store").await;
    let told = told.expect("an explanation");
    let latency = told["endpoints"][0]["latency_ms"].as_f64();
    // Connecting on one machine takes a fraction of a millisecond; a slow one may take longer.
    assert!(
        latency.is_some_and(|ms| ms > 0.0 && ms < 1_500.0),
        "{latency:?}"
    );
}
