//! The PROXY protocol as HAProxy speaks it, in front of a sidecar and behind it: the first caller's address arrives.
//!
//! Not here: every form a header may have (the sidecar's `proxy_header.rs`).

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use mesh_tests::{
    PATIENCE,
    http::raw,
    process::{Process, installed},
    scratch::Scratch,
    sidecar::{Setup, Sidecar, backend_at, own_address},
    skipped,
    until::until,
};

/// HAProxy with these proxies.
fn haproxy(scratch: &Scratch, proxies: &str) -> Process {
    let file = scratch.write(
        "haproxy.cfg",
        &format!("global\n  maxconn 200\ndefaults\n  timeout connect 5s\n  timeout client 10s\n  timeout server 10s\n{proxies}"),
    );
    let mut command = Command::new("haproxy");
    command
        .env("PATH", "/usr/sbin:/usr/bin:/bin")
        .arg("-db")
        .arg("-f")
        .arg(file);
    Process::start("haproxy", command, &scratch.path().join("haproxy.log"))
}

/// What a backend was sent by curl from `source`, as it tells by `/headers`.
fn headers_seen(source: IpAddr, at: SocketAddr) -> Result<String, String> {
    let output = Command::new("curl")
        .args(["-sS", "-f", "--max-time", "5", "--interface"])
        .arg(source.to_string())
        .arg(format!("http://{at}/headers"))
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).to_lowercase());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_callers_address_arrives_through_haproxy_and_the_sidecar() {
    for program in ["haproxy", "curl"] {
        if !installed(program) {
            return skipped("the PROXY protocol", &format!("{program} is not installed"));
        }
    }
    let caller = IpAddr::V4(own_address());
    let setup = Setup::new("host", "eu-1a");
    let at = |port: u16| SocketAddr::new(setup.address, port);
    let _backend = backend_at(&setup, 9001, "behind").await;
    let scratch = Scratch::new();
    let (tcp, http, behind) = (at(7001), at(7002), at(7003));
    let _haproxy = haproxy(
        &scratch,
        &format!(
            "listen to-tcp\n  mode tcp\n  bind {}\n  server s {tcp} send-proxy-v2\n\
             listen to-http\n  mode tcp\n  bind {}\n  server s {http} send-proxy\n\
             listen behind\n  mode http\n  bind {behind} accept-proxy\n  option forwardfor\n  server s {}\n",
            at(8001),
            at(8002),
            at(9001),
        ),
    );
    let sidecar = Sidecar::ready(setup.clone().with(&format!(
        "[upstream.bytes]\nprotocol = \"tcp\"\nlisten = \"{tcp}\"\nendpoints = [\"{behind}\"]\n\
         accept_proxy_protocol = true\nsend_proxy_protocol = \"v1\"\n\
         [upstream.requests]\nlisten = \"{http}\"\nendpoints = [\"{}\"]\naccept_proxy_protocol = true\n",
        at(9001),
    )))
    .await;
    // By TCP all the way: version 2 to the sidecar, version 1 from it, and HAProxy writes down who it was told of.
    // By HTTP: the sidecar itself writes it down.
    for front in [at(8001), at(8002)] {
        until(
            PATIENCE,
            &format!("{front} leads to the backend"),
            || async {
                let seen = headers_seen(caller, front)?;
                let told = seen.lines().any(|line| {
                    line.contains("x-forwarded-for") && line.contains(&caller.to_string())
                });
                if told { Ok(()) } else { Err(seen) }
            },
        )
        .await;
    }
    // Whoever comes without a header is not heard.
    let request = b"GET /headers HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for listener in [tcp, http] {
        let answer = raw(listener, request, Duration::from_secs(5)).await;
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(sidecar.metric("starling_client_faults_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_told_of_every_client_though_requests_share_connections() {
    for program in ["haproxy", "curl"] {
        if !installed(program) {
            let why = format!("{program} is not installed");
            return skipped("the PROXY protocol before HTTP", &why);
        }
    }
    let setup = Setup::new("host", "eu-1a");
    let at = |port: u16| SocketAddr::new(setup.address, port);
    let _backend = backend_at(&setup, 9001, "behind").await;
    let scratch = Scratch::new();
    let listen = |name: &str, port: u16, spoken: &str| {
        format!(
            "listen {name}\n  mode http\n  bind {} accept-proxy {spoken}\n  http-request set-header x-told %[src]\n  server s {}\n",
            at(port),
            at(9001),
        )
    };
    let proxies = listen("one", 8001, "") + &listen("two", 8002, "proto h2");
    let _haproxy = haproxy(&scratch, &proxies);
    let table = |name: &str, version: &str, port: u16| {
        format!(
            "[upstream.{name}]\nlisten = \"{}\"\nendpoints = [\"{}\"]\nhttp = \"{version}\"\nsend_proxy_protocol = \"v{version}\"\n",
            at(port),
            at(port + 1000),
        )
    };
    // HTTP/1 behind version 1 of the header, and checked; HTTP/2 behind version 2.
    let checked = "check = { http = \"/healthz\", interval = \"100ms\" }\n";
    let tables = table("one", "1", 7001) + checked + &table("two", "2", 7002);
    let _sidecar = Sidecar::ready(setup.clone().with(&tables)).await;
    let clients = [own_address(), own_address()].map(IpAddr::V4);
    for listener in [at(7001), at(7002)] {
        until(PATIENCE, &format!("{listener} leads somewhere"), || async {
            headers_seen(clients[0], listener).map(drop)
        })
        .await;
        for client in clients.repeat(3) {
            let seen = headers_seen(client, listener).expect("an answer");
            let told = format!("[\"x-told\",\"{client}\"]");
            assert!(seen.contains(&told), "{told} is not in {seen}");
        }
    }
}
