//! Connections beyond a limit are turned away, HTTP with a word why, and nobody else waits for it.
//!
//! Not here: floods on one connection (`http2.rs`), and what single requests may take (the proxy's own tests).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use mesh_tests::{
    PATIENCE,
    sidecar::{Setup, Sidecar},
    until::until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// Two clients beside everybody else on this host.
const GREEDY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 1));
const MODEST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 2));

async fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(SocketAddr::new(from, 0))
        .expect("loopback is all ours");
    socket.connect(to).await.expect("it accepts")
}

/// Says `said` and reads to the end; an error if the connection stays open.
async fn told(mut stream: TcpStream, said: &str) -> Result<String, String> {
    let mut all = Vec::new();
    let whole = async {
        stream.write_all(said.as_bytes()).await?;
        stream.read_to_end(&mut all).await
    };
    match timeout(PATIENCE, whole).await {
        Ok(Ok(_)) => Ok(String::from_utf8_lossy(&all).into_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it stays open".into()),
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: shop.mesh\r\nConnection: close\r\n\r\n";

/// What an HTTP client sees that is one too many.
fn is_turned_away(answer: &Result<String, String>) -> bool {
    let Ok(answer) = answer else {
        return false;
    };
    answer.starts_with("HTTP/1.1 503 ")
        && answer.contains("\r\nretry-after: 1\r\n")
        && answer.contains("\r\nconnection: close\r\n")
        && answer.contains("503 UO: too many connections")
}

/// Answers `ok` to everything, and to bytes with the same.
async fn backend(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut piece = [0; 4096];
            while let Ok(1..) = stream.read(&mut piece).await {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// A sidecar with an HTTP upstream `shop` and a tcp upstream `bytes` at port 7001, both before one backend.
async fn sidecar(outbound: &str, of_bytes: &str) -> (Sidecar, SocketAddr) {
    let mut setup = Setup::new("host", "eu-1a");
    let listener = TcpListener::bind((setup.address, 0)).await.expect("a port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(backend(listener));
    let bytes = SocketAddr::new(setup.address, 7001);
    setup.outbound = format!("{outbound}\n");
    let setup = setup.with(&format!(
        "[upstream.shop]\nendpoints = [\"{at}\"]\n\
         [upstream.bytes]\nprotocol = \"tcp\"\nlisten = \"{bytes}\"\nendpoints = [\"{at}\"]\n{of_bytes}\n"
    ));
    (Sidecar::ready(setup).await, bytes)
}

/// Says something and reads the answer, so that the connection is surely taken and stays.
async fn taken(from: IpAddr, to: SocketAddr) -> TcpStream {
    let mut stream = connect(from, to).await;
    let said = b"GET / HTTP/1.1\r\nHost: shop.mesh\r\n\r\n";
    stream.write_all(said).await.expect("it is open");
    let mut answer = [0; 12];
    let read = timeout(PATIENCE, stream.read_exact(&mut answer));
    read.await.expect("in time").expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    stream
}

/// Until a connection from there is served again.
async fn until_served(from: IpAddr, to: SocketAddr) {
    until(PATIENCE, "a place that was given up is free", || async {
        let answer = told(connect(from, to).await, GET).await?;
        if answer.starts_with("HTTP/1.1 200 ") {
            return Ok(());
        }
        Err(answer)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_gets_so_many_connections_and_the_others_notice_nothing() {
    let limits = "limits = { per_client = { connections = 5 } }";
    let (sidecar, bytes) = sidecar(limits, "").await;
    let http = sidecar.outbound();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(taken(GREEDY, http).await);
    }
    // Of all listeners.
    for _ in 0..2 {
        held.push(taken(GREEDY, bytes).await);
    }
    let silent = told(connect(GREEDY, http).await, "").await;
    assert!(is_turned_away(&silent), "{silent:?}");
    let asking = told(connect(GREEDY, http).await, GET).await;
    assert!(is_turned_away(&asking), "{asking:?}");
    assert_eq!(
        told(connect(GREEDY, bytes).await, "").await,
        Ok(String::new())
    );
    // It goes on trying, a thousand times at once at most, and reads nothing of what it is told.
    let trying = tokio::spawn(async move {
        let mut tried = Vec::new();
        for round in 0..3_000 {
            let stream = connect(GREEDY, if round % 2 == 0 { http } else { bytes }).await;
            tried.push(stream);
            if tried.len() == 1_000 {
                tried.clear();
            }
        }
    });
    let mut answered = 0;
    while !trying.is_finished() || answered < 20 {
        let answer = told(connect(MODEST, http).await, GET).await;
        assert!(
            answer
                .as_ref()
                .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")),
            "{answer:?}"
        );
        answered += 1;
    }
    trying.await.expect("it tried");
    println!("{answered} requests of another address answered beside it");
    // The last of them may still wait to be accepted.
    until(PATIENCE, "all of them are turned away", || async {
        let needle = "starling_connections_refused_total{reason=\"per_client\"}";
        let refused = sidecar.metric(needle).await;
        if refused >= 3_000.0 {
            return Ok(());
        }
        Err(format!("{refused} are"))
    })
    .await;
    held.pop();
    until_served(GREEDY, http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_and_all_of_them_together_have_their_limits() {
    let limits = "limits = { connections = 3, all_connections = 5 }";
    let (sidecar, bytes) = sidecar(limits, "limits = { connections = 4 }").await;
    let http = sidecar.outbound();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(taken(GREEDY, http).await);
    }
    let answer = told(connect(MODEST, http).await, GET).await;
    assert!(is_turned_away(&answer), "{answer:?}");
    let mut relayed = Vec::new();
    for _ in 0..2 {
        relayed.push(taken(GREEDY, bytes).await);
    }
    assert_eq!(
        told(connect(MODEST, bytes).await, "").await,
        Ok(String::new())
    );
    for (reason, least) in [("limit", 1.0), ("all", 1.0)] {
        let needle = format!("starling_connections_refused_total{{reason=\"{reason}\"}}");
        assert!(sidecar.metric(&needle).await >= least, "{reason}");
    }
    // Without the three there is room at the other one, up to its own limit.
    held.clear();
    until_served(MODEST, http).await;
    until(PATIENCE, "all places of the first are free", || async {
        let mut two = Vec::new();
        for _ in 0..2 {
            let mut stream = connect(MODEST, bytes).await;
            stream
                .write_all(b"?")
                .await
                .map_err(|error| error.to_string())?;
            let mut answer = [0; 12];
            let read = timeout(Duration::from_secs(1), stream.read_exact(&mut answer)).await;
            read.map_err(|_| "no answer")?
                .map_err(|error| error.to_string())?;
            two.push(stream);
        }
        match told(connect(MODEST, bytes).await, "").await {
            Ok(nothing) if nothing.is_empty() => Ok(()),
            other => Err(format!("a fifth: {other:?}")),
        }
    })
    .await;
}
