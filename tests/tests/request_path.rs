//! One request's way: by name, over either HTTP, through ports of its own, streams and upgrades included.
//!
//! Not here: what happens when an endpoint fails (`retries.rs`, `failover.rs`).

use bytes::Bytes;
use http::Method;
use mesh_tests::{
    PATIENCE,
    http::Call,
    mesh::{self, BACKEND_PORT},
    sidecar::{Setup, Sidecar, backend_at},
    until::until,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The headers that reached the backend, by lower-case name, joined where there were several.
fn seen(answer: &Value, name: &str) -> String {
    let headers = answer["headers"].as_array().cloned().unwrap_or_default();
    let values: Vec<String> = headers
        .iter()
        .filter(|pair| pair[0] == name)
        .map(|pair| pair[1].as_str().unwrap_or_default().to_owned())
        .collect();
    values.join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_on_this_host_gets_an_account_of_the_decision_and_no_endpoint_sees_it_ask() {
    let hosts = mesh::shops(&["eu-1a", "eu-1b"], "").await;
    let (seed, backend) = (&hosts[0].sidecar.setup, "host-0");
    // A caller with the headers on, beside one with them off.
    let mut open = Setup::new("open", "eu-1a").joining(seed);
    open.outbound = "control_headers = true".into();
    let open = Sidecar::ready(open).await;
    open.until_usable("shop", 2, PATIENCE).await;
    let call = |name: &str, value: &str| Call::get("shop.mesh", "/headers").header(name, value);
    let asked = call("x-starling-explain", "1").to(open.outbound()).await;
    let asked = asked.expect("an answer");
    assert_eq!(asked.status, 200, "{asked:?}");
    assert_eq!(seen(&asked.json(), "x-starling-explain"), "");
    let told = asked.header("x-starling-explain");
    let account: Value = serde_json::from_str(told).unwrap_or_else(|e| panic!("{e}: {told}"));
    assert_eq!(account["upstream"], "shop");
    let picked = account["picks"][0]["instance"].as_str().unwrap_or_default();
    assert!(picked.starts_with(backend), "{account}");
    let candidates = account["candidates"].as_array().expect("a list");
    assert_eq!(candidates.len(), 2, "{account}");
    for factor in [
        "cost",
        "latency_ms",
        "own",
        "success",
        "stall",
        "ramp",
        "weight",
        "evenness",
        "quiet",
    ] {
        assert!(candidates[0][factor].is_number(), "{factor}: {account}");
    }
    let decides = account["order"].as_array().expect("steps").iter();
    let decides: Vec<&str> = decides
        .filter(|step| step["decides"] == true)
        .filter_map(|step| step["step"].as_str())
        .collect();
    assert_eq!(decides, ["zone", "algorithm"]);

    // Nobody in between who hands on what the Internet sent is obeyed.
    let forwarded = call("x-starling-explain", "1").header("x-forwarded-for", "203.0.113.9");
    let answer = forwarded.to(open.outbound()).await.expect("an answer");
    assert_eq!(
        (answer.status, answer.header("x-starling-explain")),
        (200, "")
    );
    let unread = call("x-starling-timeout", "soon").to(open.outbound()).await;
    assert_eq!(unread.expect("an answer").status, 400);
    // Without a usable endpoint it is told why.
    let nobody = Call::get("nobody.mesh", "/").header("x-starling-explain", "1");
    assert_eq!(
        nobody.to(open.outbound()).await.expect("an answer").status,
        503
    );
    let off = call("x-starling-explain", "1")
        .to(hosts[0].sidecar.outbound())
        .await;
    let off = off.expect("an answer");
    assert_eq!(off.header("x-starling-explain"), "");
    assert_eq!(seen(&off.json(), "x-starling-explain"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_on_this_host_may_name_the_zone_or_the_instance() {
    let hosts = mesh::shops(&["eu-1a", "eu-1b", "eu-1b"], "").await;
    let mut open = Setup::new("open", "eu-1a").joining(&hosts[0].sidecar.setup);
    open.outbound = "control_headers = true".into();
    let open = Sidecar::ready(open).await;
    open.until_usable("shop", 3, PATIENCE).await;
    let asked = async |name: &str, value: &str| {
        let call = Call::get("shop.mesh", "/").header(name, value);
        let call = call.header("x-starling-explain", "1");
        call.to(open.outbound()).await.expect("an answer")
    };
    for _ in 0..6 {
        let answer = asked("x-starling-zone", "eu-1b").await;
        assert_eq!(answer.header("x-zone"), "eu-1b", "{answer:?}");
        let instance = "host-2-9001";
        let answer = asked("x-starling-instance", instance).await;
        assert_eq!(answer.header("x-backend"), "host-2", "{answer:?}");
        let account = answer.header("x-starling-explain");
        let account: Value = serde_json::from_str(account).expect("an account");
        assert_eq!(account["order"][0]["decides"], true, "{account}");
    }
    // Who is not there is nowhere, and what cannot be obeyed is not passed over.
    let nobody = asked("x-starling-instance", "shop-of-nobody").await;
    assert_eq!(nobody.status, 503, "{nobody:?}");
    assert_eq!(asked("x-starling-zone", "us-1a").await.status, 503);
    assert_eq!(asked("x-starling-zone", "").await.status, 400);
    let told = open.listing("/v1/explain/shop?header=x-starling-zone:eu-1b");
    let told = told.await.expect("an explanation").to_string();
    assert!(told.contains("nowhere but in eu-1b"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_by_any_of_a_services_names_reaches_it_over_either_http() {
    let hosts = mesh::shops(&["eu-1a"], "").await;
    let sidecar = &hosts[0].sidecar;
    for authority in [
        "shop.mesh",
        "shop.mesh:7080",
        "shop.mesh.internal",
        "shop.localhost:7080",
    ] {
        for call in [
            Call::get(authority, "/"),
            Call::get(authority, "/").over_http2(),
        ] {
            let answer = call.to(sidecar.outbound()).await.expect("an answer");
            assert_eq!(answer.status, 200, "{authority}: {answer:?}");
            assert_eq!(answer.header("x-backend"), "host-0");
        }
    }
    let absolute = Call::get("ignored.example", "http://shop.mesh:7080/headers");
    let answer = absolute.to(sidecar.outbound()).await.expect("an answer");
    // A Host that disagrees with the absolute form is refused, not guessed about.
    assert_eq!(answer.status, 400, "{answer:?}");
    let absolute = Call::get("shop.mesh:7080", "http://shop.mesh:7080/headers");
    let answer = absolute.to(sidecar.outbound()).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["uri"], "/headers");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_learns_who_called_and_nothing_that_ends_at_a_hop() {
    let hosts = mesh::shops(&["eu-1a"], "").await;
    let outbound = hosts[0].sidecar.outbound();
    let answer = Call::get("shop.mesh:7080", "/headers?a=1")
        .header("connection", "x-private, keep-alive")
        .header("x-private", "for the next hop only")
        .header("keep-alive", "timeout=5")
        .header("te", "trailers, deflate")
        .header("x-kept", "yes")
        .header("x-forwarded-for", "203.0.113.9")
        .to(outbound)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let saw = answer.json();
    assert_eq!(saw["uri"], "/headers?a=1", "{saw}");
    assert_eq!(seen(&saw, "x-kept"), "yes");
    assert_eq!(seen(&saw, "x-private"), "", "{saw}");
    assert_eq!(seen(&saw, "keep-alive"), "", "{saw}");
    assert_eq!(seen(&saw, "host"), "shop.mesh:7080", "{saw}");
    assert!(!seen(&saw, "via").is_empty(), "{saw}");
    assert!(!seen(&saw, "x-request-id").is_empty(), "{saw}");
    assert!(seen(&saw, "forwarded").contains("for="), "{saw}");
    assert_eq!(seen(&saw, "x-forwarded-proto"), "http", "{saw}");
    // The caller is no trusted proxy: what it claims of others is dropped.
    let forwarded_for = seen(&saw, "x-forwarded-for");
    assert!(!forwarded_for.contains("203.0.113.9"), "{saw}");
    assert!(forwarded_for.contains("127."), "{saw}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_any_size_pass_whole_in_both_directions() {
    let hosts = mesh::shops(&["eu-1a"], "").await;
    let outbound = hosts[0].sidecar.outbound();
    let body: Bytes = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    for http2 in [false, true] {
        let mut call = Call::get("shop.mesh", "/echo").with_body(Method::POST, body.clone());
        if http2 {
            call = call.over_http2();
        }
        let answer = call.to(outbound).await.expect("an answer");
        assert_eq!(answer.status, 200);
        assert!(answer.body == body, "{} bytes came back", answer.body.len());
    }
    let head = Call::get("shop.mesh", "/bytes/1000")
        .with_body(Method::HEAD, "")
        .to(outbound)
        .await
        .expect("an answer");
    assert_eq!((head.status, head.body.len()), (200, 0), "{head:?}");
    let empty = Call::get("shop.mesh", "/status/204").to(outbound).await;
    assert_eq!(empty.expect("an answer").status, 204);
}

/// Answers 101 to one request on each connection, then echoes bytes until the other side has finished.
async fn echo_after_upgrade(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let upgraded = String::from_utf8_lossy(&head).to_lowercase();
            if !upgraded.contains("upgrade: echo") {
                let none = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell";
                return stream.write_all(none).await;
            }
            // The first bytes of the new protocol come in the same packet as the answer.
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhello ";
            stream.write_all(answer).await?;
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await?;
            to.write_all(b" bye").await?;
            to.shutdown().await
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_carries_any_bytes_and_half_closes() {
    let setup =
        Setup::new("host", "eu-1a").with("[service.live]\nport = 9001\ncheck = { tcp = true }");
    let listener = TcpListener::bind((setup.address, BACKEND_PORT)).await;
    tokio::spawn(echo_after_upgrade(listener.expect("a free address")));
    let sidecar = Sidecar::ready(setup).await;
    sidecar.until_usable("live", 1, PATIENCE).await;

    let mut stream = TcpStream::connect(sidecar.outbound()).await.expect("open");
    let request =
        "GET /chat HTTP/1.1\r\nhost: live.mesh\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream.write_all(b"one two").await.expect("sent");
    stream.shutdown().await.expect("half-closed");
    let mut back = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut back)).await;
    read.expect("an end").expect("no reset");
    let back = String::from_utf8_lossy(&back);
    assert!(back.starts_with("HTTP/1.1 101 "), "{back}");
    assert!(back.ends_with("\r\n\r\nhello one two bye"), "{back}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tables_call_one_service_under_rules_of_their_own() {
    // Two instances of one service on one host, told apart by a tag; each table has its own port and timeout.
    let setup = Setup::new("host", "eu-1a").with(
        r#"
[service.shop-old]
service = "shop"
port = 9001
tags = { version = "1" }
check = { http = "/healthz" }

[service.shop-new]
service = "shop"
port = 9002
tags = { version = "2" }
check = { http = "/healthz" }

[upstream.shop]
listen = "ADDRESS:7001"

[upstream.shop-next]
service = "shop"
select = { tags = { version = "2" } }
listen = "ADDRESS:7002"
timeout = "300ms"
"#,
    );
    let address = setup.address.to_string();
    let setup = Setup {
        tables: setup.tables.replace("ADDRESS", &address),
        ..setup
    };
    let _old = backend_at(&setup, 9001, "old").await;
    let _new = backend_at(&setup, 9002, "new").await;
    let sidecar = Sidecar::ready(setup).await;
    sidecar.until_usable("shop", 2, PATIENCE).await;

    let mut both = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let answer = Call::get("anything", "/").to(sidecar.port(7001)).await;
        both.insert(answer.expect("an answer").header("x-backend").to_owned());
        for next in [
            Call::get("anything", "/").to(sidecar.port(7002)).await,
            sidecar.get("shop-next.mesh", "/").await,
        ] {
            assert_eq!(next.expect("an answer").header("x-backend"), "new");
        }
    }
    assert_eq!(both.len(), 2, "only {both:?} were chosen by the wide table");
    let late = sidecar.get("shop-next.mesh", "/delay/2000").await;
    assert_eq!(late.expect("an answer").status, 504);
    let patient = sidecar.get("shop.mesh", "/delay/500").await;
    assert_eq!(patient.expect("an answer").status, 200);
}

/// Carries connections from a mapped port to the real one, as a container host's NAT does.
async fn relay(from: TcpListener, to: std::net::SocketAddr) {
    while let Ok((mut outer, _)) = from.accept().await {
        tokio::spawn(async move {
            let mut inner = TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(&mut outer, &mut inner).await
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_behind_a_mapped_port_is_called_where_it_is_advertised() {
    let inside = Setup::new("inside", "eu-1a");
    let outside = mesh_tests::sidecar::own_address();
    let mapped = std::net::SocketAddr::new(outside.into(), 28080);
    let inside = inside.with(&format!(
        "[service.shop]\nport = 9001\nadvertise = \"{mapped}\"\ncheck = {{ http = \"/healthz\" }}"
    ));
    let listener = TcpListener::bind(mapped).await.expect("a free address");
    let real = std::net::SocketAddr::new(inside.address, BACKEND_PORT);
    tokio::spawn(relay(listener, real));
    let _backend = backend_at(&inside, BACKEND_PORT, "behind").await;
    let far = Setup::new("far", "eu-1a").joining(&inside);
    let _inside = Sidecar::ready(inside).await;
    let far = Sidecar::ready(far).await;
    far.until_usable("shop", 1, PATIENCE).await;

    let endpoints = far.endpoints("shop").await.expect("a listing");
    assert_eq!(endpoints[0].address, mapped.to_string());
    let answer = far.get("shop.mesh", "/").await.expect("an answer");
    assert_eq!(answer.header("x-backend"), "behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn fixed_endpoints_obey_zone_weight_and_backup() {
    let setup = Setup::new("host", "eu-1a");
    let (near, far, spare) = (
        Setup::new("near", "eu-1a"),
        Setup::new("far", "us-9z"),
        Setup::new("spare", "eu-1a"),
    );
    let setup = setup.with(&format!(
        r#"
[upstream.legacy]
endpoints = [
  {{ address = "{near}:9001", zone = "eu-1a", weight = 300 }},
  {{ address = "{near}:9002", zone = "eu-1a", weight = 100 }},
  {{ address = "{far}:9001", zone = "us-9z" }},
  {{ address = "{spare}:9001", zone = "eu-1a", backup = true }},
]
balance = "round_robin"
"#,
        near = near.address,
        far = far.address,
        spare = spare.address
    ));
    let heavy = backend_at(&near, 9001, "heavy").await;
    let light = backend_at(&near, 9002, "light").await;
    let other = backend_at(&far, 9001, "far").await;
    let backup = backend_at(&spare, 9001, "backup").await;
    let sidecar = Sidecar::ready(setup).await;

    for _ in 0..80 {
        let answer = sidecar.get("legacy.mesh", "/").await.expect("an answer");
        assert_eq!(answer.status, 200);
    }
    assert_eq!((other.served(), backup.served()), (0, 0), "own zone first");
    let (heavies, lights) = (heavy.served(), light.served());
    assert!(
        (58..=62).contains(&heavies),
        "{heavies} of 80 where 60 are due, {lights} light"
    );

    drop((heavy, light));
    for _ in 0..20 {
        let answer = sidecar.get("legacy.mesh", "/").await.expect("an answer");
        assert_eq!(
            answer.header("x-backend"),
            "far",
            "backups stand behind every zone"
        );
    }
    drop(other);
    until(PATIENCE, "the backup stands in", || async {
        let answer = sidecar.get("legacy.mesh", "/").await?;
        match answer.header("x-backend") {
            "backup" => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
}
