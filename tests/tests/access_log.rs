//! What the access log tells of connections that have ended, on either side, and of those that were cut.
//!
//! Not here: listings of open ones (`connections.rs`), and logs that take nothing more.

use std::{fs, net::SocketAddr, path::Path};

use mesh_tests::{
    PATIENCE,
    scratch::Scratch,
    sidecar::{Setup, Sidecar},
    until::until,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: web.mesh\r\n\r\n";

/// Reads up to the end of a head; false if there is none.
async fn head(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => bytes.push(byte),
            Err(_) => return false,
        }
    }
    true
}

/// Gives so many answers on each connection, then listens without a word, or hangs up.
async fn server(at: SocketAddr, answers: usize, hangs_up: bool) {
    let listener = TcpListener::bind(at).await.expect("a free address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                for _ in 0..answers {
                    if !head(&mut stream).await {
                        return;
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    let _ = stream.write_all(answer).await;
                }
                if !hangs_up {
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            });
        }
    });
}

/// The lines of this kind so far.
fn lines(log: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|line: &Value| line["kind"] == kind).collect()
}

async fn line_of(log: &Path, kind: &str) -> Value {
    until(PATIENCE, &format!("a line of kind {kind}"), || async {
        lines(log, kind).pop().ok_or("none yet".to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_http_have_a_line_each_on_either_side() {
    let setup = Setup::new("host", "eu-1a");
    let scratch = Scratch::new();
    let log = scratch.path().join("access.jsonl");
    let [listen, at] = [7001, 9001].map(|port| SocketAddr::new(setup.address, port));
    server(at, 2, true).await;
    let _sidecar = Sidecar::ready(setup.with(&format!(
        "[access_log]\npath = \"{}\"\n[upstream.web]\nlisten = \"{listen}\"\n\
         endpoints = [{{ address = \"{at}\", zone = \"eu-1b\" }}]\n",
        log.display()
    )))
    .await;
    let mut client = TcpStream::connect(listen).await.expect("open");
    for _ in 0..2 {
        client.write_all(ASK).await.expect("sent");
        assert!(head(&mut client).await, "an answer");
        client.read_exact(&mut [0; 2]).await.expect("its body");
    }
    let address = client.local_addr().expect("bound");
    assert_eq!(lines(&log, "http_client"), [] as [Value; 0], "it is open");
    drop(client);

    let line = line_of(&log, "http_client").await;
    assert_eq!(line["reason"], "client closed", "{line}");
    assert_eq!(line["client"], address.to_string());
    assert_eq!(
        (&line["upstream"], &line["requests"]),
        (&"web".into(), &2.into())
    );
    assert_eq!(line["received_bytes"], 2 * ASK.len());
    assert!(line["sent_bytes"].as_u64() > Some(60), "{line}");
    assert_eq!(line["protocol"], "http/1.1");

    let line = line_of(&log, "http_endpoint").await;
    assert_eq!(line["reason"], "endpoint closed", "{line}");
    assert_eq!(line["endpoint"], at.to_string());
    assert_eq!(
        (&line["zone"], &line["requests"]),
        (&"eu-1b".into(), &2.into())
    );

    // One that says what may not be said.
    let mut bad = TcpStream::connect(listen).await.expect("open");
    bad.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        .await
        .expect("sent");
    bad.read_to_end(&mut Vec::new()).await.expect("an answer");
    until(PATIENCE, "its line", || async {
        let lines = lines(&log, "http_client");
        let last = lines
            .last()
            .filter(|_| lines.len() == 2)
            .ok_or("none yet")?;
        match last["reason"].as_str() {
            Some("client fault") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(
        lines(&log, "connection"),
        [] as [Value; 0],
        "nothing was relayed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_at_the_end_of_a_drain_have_their_lines_too() {
    let setup = Setup::new("host", "eu-1a");
    let scratch = Scratch::new();
    let log = scratch.path().join("access.jsonl");
    let [web, mail, at] = [7001, 7002, 9001].map(|port| SocketAddr::new(setup.address, port));
    server(at, 0, false).await;
    let mut sidecar = Sidecar::ready(setup.with(&format!(
        "[drain]\ngrace = \"100ms\"\ntimeout = \"200ms\"\n[access_log]\npath = \"{}\"\n\
         [upstream.web]\nlisten = \"{web}\"\nendpoints = [\"{at}\"]\n\
         [upstream.mail]\nprotocol = \"tcp\"\nlisten = \"{mail}\"\nendpoints = [\"{at}\"]\n",
        log.display()
    )))
    .await;
    let mut asks = TcpStream::connect(web).await.expect("open");
    asks.write_all(ASK).await.expect("sent");
    let mut talks = TcpStream::connect(mail).await.expect("open");
    talks.write_all(b"HELO").await.expect("sent");
    until(PATIENCE, "both are served", || async {
        let listing = sidecar.listing("/v1/connections?side=endpoint").await?;
        match listing.as_array().map(Vec::len) {
            Some(2) => Ok(()),
            other => Err(format!("{other:?} connections")),
        }
    })
    .await;
    sidecar.process.signal("TERM");
    assert!(sidecar.process.end(PATIENCE).await.success());
    for kind in ["http_client", "http_endpoint", "connection"] {
        let lines = lines(&log, kind);
        assert_eq!(lines.len(), 1, "{kind}: {lines:#?}");
        assert_eq!(lines[0]["reason"], "cut", "{kind}");
    }
}
