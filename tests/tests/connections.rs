//! Connections as the sidecar lists them, how long they last, how many there are, and what becomes of relayed ones whose
//! endpoint goes bad.
//!
//! Not here: what goes over them.

use std::{fs, net::SocketAddr, pin::pin, process::Command, sync::Arc, time::Duration};

use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tests::{
    PATIENCE, binary,
    frames::{
        Client, END_HEADERS, END_STREAM, block, frame, get,
        kind::{GOAWAY, HEADERS},
    },
    http::Call,
    scratch::Scratch,
    sidecar::{Setup, Sidecar},
    until::until,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinHandle,
};

/// Says its name, then everything it hears.
async fn parrot(at: SocketAddr, name: &'static str) -> JoinHandle<()> {
    let listener = TcpListener::bind(at).await.expect("a free address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(name.as_bytes()).await?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    })
}

/// Connects, and hears who is there.
async fn greeted(at: SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(at).await.expect("open");
    let mut name = [0; 1];
    stream.read_exact(&mut name).await.expect("a name");
    (stream, String::from_utf8_lossy(&name).into_owned())
}

async fn rows(sidecar: &Sidecar, query: &str) -> Vec<Value> {
    let listing = sidecar.listing(&format!("/v1/connections?{query}")).await;
    match listing.expect("a listing") {
        Value::Array(rows) => rows,
        other => panic!("no list: {other}"),
    }
}

/// Waits until a query has so many rows.
async fn until_rows(sidecar: &Sidecar, query: &str, count: usize) -> Vec<Value> {
    until(PATIENCE, &format!("{count} rows of {query}"), || async {
        let rows = rows(sidecar, query).await;
        match rows.len() == count {
            true => Ok(rows),
            false => Err(format!("{rows:#?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_takes_nothing_more_keeps_no_sidecar_from_going() {
    let setup = Setup::new("host", "eu-1a");
    let scratch = Scratch::new();
    let pipe = scratch.path().join("access.pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("it runs").success());
    // Open for reading, and never read: what is more than the kernel keeps (64 KiB) waits in the sidecar.
    let unread = fs::File::options().read(true).write(true).open(&pipe);
    let _unread = unread.expect("a pipe");
    let [listen, server] = [7001, 2525].map(|port| SocketAddr::new(setup.address, port));
    parrot(server, "a").await;
    let mut sidecar = Sidecar::ready(setup.with(&format!(
        "[access_log]\npath = \"{}\"\n[upstream.mail]\nprotocol = \"tcp\"\nlisten = \"{listen}\"\nendpoints = [\"{server}\"]\n",
        pipe.display()
    )))
    .await;
    for _ in 0..500 {
        greeted(listen).await;
    }
    until_rows(&sidecar, "upstream=mail", 0).await;
    sidecar.process.signal("TERM");
    assert!(sidecar.process.end(PATIENCE).await.success());
    let log = sidecar.process.log();
    assert!(log.contains("its last lines are lost"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_connection_is_listed_from_both_sides_and_logged_at_its_end() {
    let setup = Setup::new("host", "eu-1a");
    let scratch = Scratch::new();
    let log = scratch.path().join("access.jsonl");
    let (listen, server) = (
        SocketAddr::new(setup.address, 7001),
        SocketAddr::new(setup.address, 2525),
    );
    parrot(server, "a").await;
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[access_log]\npath = \"{}\"\n[upstream.mail]\nprotocol = \"tcp\"\nlisten = \"{listen}\"\n\
         sticky = {{ source_ip = true }}\nendpoints = [{{ address = \"{server}\", zone = \"eu-1b\" }}]\n",
        log.display()
    )))
    .await;
    let (mut stream, _) = greeted(listen).await;
    stream.write_all(&[7; 1000]).await.expect("sent");
    stream.read_exact(&mut [0; 1000]).await.expect("echoed");

    let client = stream.local_addr().expect("bound");
    let near = until_rows(&sidecar, &format!("client={client}&side=client"), 1).await;
    let far = until_rows(&sidecar, "endpoint=mail&side=endpoint", 0).await;
    assert!(far.is_empty(), "there is no instance of that name");
    let far = until_rows(&sidecar, &format!("endpoint={server}&side=endpoint"), 1).await;
    let (near, far) = (&near[0], &far[0]);
    for row in [near, far] {
        assert_eq!(row["client"], client.to_string(), "{row}");
        assert_eq!(row["endpoint"], server.to_string());
        assert_eq!(
            (&row["zone"], &row["upstream"]),
            (&"eu-1b".into(), &"mail".into())
        );
        assert_eq!(
            (&row["state"], &row["protocol"]),
            (&"relaying".into(), &"bytes".into())
        );
        assert_eq!(row["tcp"]["state"], "established");
        assert!(row["tcp"]["rtt_us"].as_u64() > Some(0), "{row}");
        let left = row["left_ms"].as_u64().expect("it has an end");
        assert!((3_500_000..=3_600_000).contains(&left), "{row}");
    }
    assert_eq!(near["sticky"], client.ip().to_string());
    assert_eq!((&near["peer"], &far["peer"]), (&far["id"], &near["id"]));
    assert_eq!(
        (near["received_bytes"].as_u64(), near["sent_bytes"].as_u64()),
        (Some(1000), Some(1001))
    );
    assert_eq!(
        (far["received_bytes"].as_u64(), far["sent_bytes"].as_u64()),
        (Some(1001), Some(1000))
    );

    let output = Command::new(binary::starling())
        .args([
            "conns",
            "--upstream",
            "mail",
            "--admin",
            &sidecar.admin().to_string(),
        ])
        .output()
        .expect("it runs");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        table.contains("RTT/RETR") && table.contains(&client.to_string()),
        "{table}"
    );

    stream.shutdown().await.expect("half-closed");
    drop(stream);
    until_rows(&sidecar, "upstream=mail", 0).await;
    let line = until(PATIENCE, "a line in the access log", || async {
        let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
        let line = text.lines().next().ok_or("nothing yet")?;
        serde_json::from_str::<Value>(line).map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(line["reason"], "done", "{line}");
    assert_eq!(
        (&line["client"], &line["sent_bytes"]),
        (&client.to_string().into(), &1001.into())
    );

    // A rotated file is followed on the next reload.
    fs::rename(&log, scratch.path().join("old")).expect("moved");
    let told = sidecar.order("/v1/reload", "").await.expect("an answer");
    assert_eq!(told.status, 200, "{}", told.text());
    drop(greeted(listen).await);
    until(PATIENCE, "a line in the new file", || async {
        let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
        text.lines()
            .next()
            .map(|_| ())
            .ok_or("nothing yet".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_connections_leave_an_endpoint_that_is_gone_after_the_grace() {
    let setup = Setup::new("host", "eu-1a");
    let address = setup.address;
    let at = |port| SocketAddr::new(address, port);
    let (listen, bad, good) = (at(7001), at(2525), at(2526));
    parrot(bad, "b").await;
    parrot(good, "g").await;
    let tables = |endpoints: &str| {
        format!(
            "[upstream.mail]\nprotocol = \"tcp\"\nlisten = \"{listen}\"\nendpoint_grace = \"1s\"\nbalance = \"round_robin\"\n\
             endpoints = [{endpoints}]\n"
        )
    };
    let both = format!("\"{bad}\", \"{good}\"");
    let mut sidecar = Sidecar::ready(setup.with(&tables(&both))).await;
    let mut open = Vec::new();
    while !(open.iter().any(|(_, name)| name == "b") && open.iter().any(|(_, name)| name == "g")) {
        open.push(greeted(listen).await);
        assert!(open.len() < 50, "round robin leads to both");
    }
    sidecar.rewrite(&tables(&format!("\"{good}\"")));
    let told = sidecar.order("/v1/reload", "").await.expect("an answer");
    assert_eq!(told.status, 200, "{}", told.text());
    for (mut stream, name) in open {
        if name == "b" {
            let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 8])).await;
            assert!(
                matches!(end, Ok(Ok(0) | Err(_))),
                "closed after the grace: {end:?}"
            );
        } else {
            stream.write_all(b"x").await.expect("sent");
            stream.read_exact(&mut [0; 1]).await.expect("still there");
        }
    }
    assert!(sidecar.metric("starling_connections_ended_total").await >= 1.0);
}

/// Answers an upgrade, and says its name then and to everything it hears.
async fn upgrading(at: SocketAddr) {
    let listener = TcpListener::bind(at).await.expect("a free address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let agreed = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
                stream.write_all(agreed).await?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
}

/// Opens a tunnel through the outbound port and proves by an echo that it is there.
async fn tunnel(sidecar: &Sidecar, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(sidecar.outbound()).await.expect("open");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("an answer"));
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.starts_with("HTTP/1.1 101 ") || answer.starts_with("HTTP/1.1 200 "),
        "{answer}"
    );
    stream.write_all(b"x").await.expect("sent");
    stream.read_exact(&mut [0; 1]).await.expect("relayed");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_upgrades_and_connects_leave_an_endpoint_that_is_gone_after_the_grace() {
    let setup = Setup::new("host", "eu-1a");
    let address = setup.address;
    let at = |port| SocketAddr::new(address, port);
    let (gone, there) = (at(2525), at(2526));
    // The same addresses by TCP and by UDP; of the latter, each says its port.
    for server in [gone, there] {
        upgrading(server).await;
        let socket = UdpSocket::bind(server).await.expect("a free address");
        tokio::spawn(async move {
            let mut room = [0; 64];
            while let Ok((_, client)) = socket.recv_from(&mut room).await {
                let name = server.port().to_string();
                let _ = socket.send_to(name.as_bytes(), client).await;
            }
        });
    }
    let listen = at(5300);
    let tables = |endpoint: SocketAddr| {
        format!(
            "[upstream.web]\nendpoints = [\"{endpoint}\"]\nendpoint_grace = \"1s\"\n\
             [upstream.dns]\nprotocol = \"udp\"\nlisten = \"{listen}\"\nendpoints = [\"{endpoint}\"]\nendpoint_grace = \"1s\"\n"
        )
    };
    let mut sidecar = Sidecar::ready(setup.with(&tables(gone))).await;
    let upgrade =
        "GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
    let connect = "CONNECT web.mesh:80 HTTP/1.1\r\nHost: web.mesh:80\r\n\r\n";
    let upgraded = tunnel(&sidecar, upgrade).await;
    let connected = {
        let mut stream = TcpStream::connect(sidecar.outbound()).await.expect("open");
        stream.write_all(connect.as_bytes()).await.expect("sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(
            &answer,
            b"HTTP/1.1 200",
            "{}",
            String::from_utf8_lossy(&answer)
        );
        stream
    };
    let flow = UdpSocket::bind((address, 0)).await.expect("bound");
    flow.connect(listen).await.expect("a place to send to");
    let ask = || async {
        flow.send(b"who?")
            .await
            .map_err(|error| error.to_string())?;
        let mut room = [0; 16];
        let heard = tokio::time::timeout(Duration::from_secs(1), flow.recv(&mut room)).await;
        let count = heard
            .map_err(|_| "no answer".to_owned())?
            .map_err(|error| error.to_string())?;
        Ok::<_, String>(String::from_utf8_lossy(&room[..count]).into_owned())
    };
    assert_eq!(ask().await.as_deref(), Ok("2525"));

    sidecar.rewrite(&tables(there));
    let told = sidecar.order("/v1/reload", "").await.expect("an answer");
    assert_eq!(told.status, 200, "{}", told.text());
    for (what, mut stream) in [("the upgrade", upgraded), ("the CONNECT", connected)] {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "{what} is still open");
    }
    // A flow that is asked all the time never falls silent, and moves nevertheless.
    until(PATIENCE, "the flow is led elsewhere", || async {
        match ask().await?.as_str() {
            "2526" => Ok(()),
            other => Err(format!("{other} answers")),
        }
    })
    .await;
    assert!(sidecar.metric("starling_connections_ended_total").await >= 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_flows_show_who_serves_whom() {
    let setup = Setup::new("host", "eu-1a").offering("web", 8080);
    let address = setup.address;
    let at = |port| SocketAddr::new(address, port);
    let (resolver, listen) = (at(5353), at(5300));
    let server = UdpSocket::bind(resolver).await.expect("a free address");
    tokio::spawn(async move {
        let mut room = [0; 512];
        while let Ok((count, from)) = server.recv_from(&mut room).await {
            let _ = server.send_to(&room[..count], from).await;
        }
    });
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.dns]\nprotocol = \"udp\"\nlisten = \"{listen}\"\nendpoints = [\"{resolver}\"]\n"
    )))
    .await;
    let _backend = sidecar.backend(8080, "web").await;
    sidecar.until_usable("web", 1, PATIENCE).await;

    let mut stream = TcpStream::connect(sidecar.outbound()).await.expect("open");
    let client = stream.local_addr().expect("bound").to_string();
    until_rows(&sidecar, &format!("client={client}&protocol=-"), 1).await;
    stream
        .write_all(b"GET /delay/100000 HTTP/1.1\r\nHost: web.mesh\r\n\r\n")
        .await
        .expect("sent");
    let busy = until_rows(&sidecar, &format!("client={client}&state=busy"), 2).await;
    assert_eq!(
        (&busy[0]["side"], &busy[1]["side"]),
        (&"client".into(), &"endpoint".into())
    );
    for row in &busy {
        assert_eq!(
            (&row["endpoint"], &row["protocol"]),
            (&at(8080).to_string().into(), &"http/1.1".into()),
            "{row}"
        );
    }
    drop(stream);
    until_rows(&sidecar, &format!("client={client}"), 0).await;

    let caller = UdpSocket::bind((sidecar.setup.address, 0))
        .await
        .expect("bound");
    caller.connect(listen).await.expect("a place to send to");
    caller.send(b"who?").await.expect("sent");
    let heard = tokio::time::timeout(Duration::from_secs(5), caller.recv(&mut [0; 16])).await;
    heard.expect("in time").expect("an answer");
    let flows = until_rows(&sidecar, "protocol=udp", 1).await;
    assert_eq!(
        flows[0]["client"],
        caller.local_addr().expect("bound").to_string()
    );
    assert_eq!(
        (&flows[0]["received_bytes"], &flows[0]["sent_bytes"]),
        (&4.into(), &4.into())
    );

    let refused = sidecar
        .ask("/v1/connections?limit=5000")
        .await
        .expect("an answer");
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("1 to 1000"), "{}", refused.text());
}

/// An HTTP/2 server that grants two streams a connection, and answers what is slow when that is let go.
async fn few_streams(at: SocketAddr, let_go: Arc<Semaphore>) {
    let listener = TcpListener::bind(at).await.expect("a free address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let let_go = Arc::clone(&let_go);
            let answer = service_fn(move |request: Request<Incoming>| {
                let let_go = Arc::clone(&let_go);
                async move {
                    if request.uri().path() == "/slow" {
                        let_go.acquire().await.expect("never closed").forget();
                    }
                    let body = request.into_body().collect().await?.to_bytes();
                    Ok::<_, hyper::Error>(Response::new(Full::new(body)))
                }
            });
            let connection = http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(2)
                .serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(connection);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_streams_are_used_up_another_connection_is_opened() {
    const SLOW: usize = 6;
    let setup = Setup::new("host", "eu-1a");
    let server = SocketAddr::new(setup.address, 2525);
    let let_go = Arc::new(Semaphore::new(0));
    few_streams(server, Arc::clone(&let_go)).await;
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.web]\nhttp = \"2\"\nendpoints = [\"{server}\"]\n"
    )))
    .await;
    // One request first: until its settings have come, an endpoint is taken to grant a hundred streams.
    assert_eq!(
        sidecar.get("web.mesh", "/").await.expect("answered").status,
        200
    );
    let slow = (0..SLOW).map(|_| {
        let outbound = sidecar.outbound();
        tokio::spawn(async move { Call::get("web.mesh", "/slow").to(outbound).await })
    });
    let slow: Vec<_> = slow.collect();
    let open = until_rows(&sidecar, "side=endpoint&protocol=h2&state=busy", 3).await;
    for row in open {
        assert_eq!(row["streams"], 2, "{row}");
    }
    let_go.add_permits(SLOW);
    for call in slow {
        let answer = call.await.expect("no panic").expect("answered");
        assert_eq!(answer.status, 200);
    }
}

/// An HTTP/2 server that says goodbye on each connection once it has heard five requests.
async fn many_goodbyes(at: SocketAddr) {
    let listener = TcpListener::bind(at).await.expect("a free address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heard = Arc::new(Semaphore::new(0));
            let count = Arc::clone(&heard);
            let answer = service_fn(move |request: Request<Incoming>| {
                count.add_permits(1);
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    Ok::<_, hyper::Error>(Response::new(Full::new(body)))
                }
            });
            tokio::spawn(async move {
                let connection = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer);
                let mut connection = pin!(connection);
                tokio::select! {
                    _ = connection.as_mut() => return,
                    _ = heard.acquire_many(5) => {}
                }
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_goodbye_again_and_again_loses_nothing() {
    let setup = Setup::new("host", "eu-1a");
    let server = SocketAddr::new(setup.address, 2526);
    many_goodbyes(server).await;
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.web]\nhttp = \"2\"\nretry = {{ retries = 0 }}\nendpoints = [\"{server}\"]\n"
    )))
    .await;
    let callers = (0..4).map(|_| {
        let outbound = sidecar.outbound();
        tokio::spawn(async move {
            for _ in 0..40 {
                let call = Call::get("web.mesh", "/").with_body(Method::POST, "paid");
                let answer = call.to(outbound).await.expect("answered");
                assert_eq!((answer.status, &*answer.text()), (200, "paid"));
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("every request is answered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_too_old_are_replaced_without_a_word_lost() {
    let setup = Setup::new("host", "eu-1a");
    let address = setup.address;
    let mut setup = setup.offering("web", 8080);
    setup.tables += "[upstream.web]\nconnection_age = \"1s\"\n";
    setup.outbound = "connection_age = \"1s\"\n".into();
    let sidecar = Sidecar::ready(setup).await;
    let _backend = sidecar.backend(8080, "web").await;
    sidecar.until_usable("web", 1, PATIENCE).await;

    // HTTP/1: answered as long as it lasts, and then asked to come back.
    let mut stream = TcpStream::connect(sidecar.outbound()).await.expect("open");
    let mut answered = 0;
    let mut upstream = std::collections::BTreeSet::new();
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: web.mesh\r\n\r\n")
                .await
                .expect("still open");
            let mut room = [0; 4096];
            let count = stream.read(&mut room).await.expect("an answer");
            let text = String::from_utf8_lossy(&room[..count]).to_lowercase();
            assert!(text.starts_with("http/1.1 200"), "{text}");
            answered += 1;
            for row in rows(&sidecar, &format!("endpoint={address}:8080&side=endpoint")).await {
                upstream.insert(row["id"].as_u64());
            }
            if text.contains("connection: close") {
                break;
            }
        }
    });
    told.await.expect("a second and a bit");
    assert!(answered > 2, "{answered} requests in a second");
    assert!(!upstream.is_empty());

    // HTTP/2: GOAWAY once the time is over, with nothing under way.
    let mut client = Client::open(sidecar.outbound()).await.expect("open");
    let fields = block(&get("web.mesh"));
    client
        .say(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields))
        .await
        .expect("said");
    let heard = client
        .hear_until(PATIENCE, |heard| heard.kind == GOAWAY)
        .await;
    let goodbye = heard.last().expect("something came");
    assert_eq!((goodbye.kind, goodbye.code()), (GOAWAY, Some(0)));
    assert!(
        heard
            .iter()
            .any(|heard| heard.kind == HEADERS && heard.stream == 1)
    );
}
