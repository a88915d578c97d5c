//! Health as applications tell it: a real gRPC health server, programs as checks, heartbeats, registrations that end.
//!
//! Not here: checks by HTTP and TCP (`request_path.rs`, `outside.rs`) and what callers find out themselves
//! (`failover.rs`).

use std::{
    collections::BTreeMap,
    process::{Command, Output},
    time::Duration,
};

use http::Method;
use mesh_tests::{
    PATIENCE, binary,
    http::{Answer, Call},
    process::{Module, Process, python_having},
    scratch::Scratch,
    sidecar::{Setup, Sidecar, backend_at},
    skipped,
    until::until,
};

/// Serves `grpc.health.v1.Health` as grpcio ships it; SIGUSR1 turns `shop.Shop` well and ill.
const GRPC_SERVER: &str = r#"
import signal, sys
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
is_well = True

def tell():
    statuses = health_pb2.HealthCheckResponse
    servicer.set("shop.Shop", statuses.SERVING if is_well else statuses.NOT_SERVING)

def turn(*_):
    global is_well
    is_well = not is_well
    tell()

tell()
signal.signal(signal.SIGUSR1, turn)
assert server.add_insecure_port(sys.argv[1])
server.start()
while True:
    signal.pause()
"#;

async fn until_health(sidecar: &Sidecar, service: &str, health: &str) {
    let what = format!("{service} is {health}");
    until(PATIENCE, &what, || async {
        let rows = sidecar.listing("/v1/services").await?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|row| row["service"] == *service);
        match row.and_then(|row| row["health"].as_str()) {
            Some(told) if told == health => Ok(()),
            other => Err(format!("{other:?} of {rows:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_grpc_health_server_says_who_may_be_called() {
    let Some(mut python) = python_having(&[Module {
        import: "grpc_health.v1",
        package: "grpcio-health-checking",
    }]) else {
        return skipped("gRPC health", "grpcio-health-checking cannot be had");
    };
    let setup = Setup::new("host", "eu-1a");
    let scratch = Scratch::new();
    let script = scratch.write("server.py", GRPC_SERVER);
    python.arg(script).arg(format!("{}:9001", setup.address));
    let server = Process::start("grpc server", python, &scratch.path().join("grpc.log"));
    let rhythm = "interval = \"100ms\", timeout = \"5s\", fall = 1, rise = 1";
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[service.shop]\nport = 9001\nprotocol = \"grpc\"\ncheck = {{ grpc = \"shop.Shop\", {rhythm} }}\n\
         [service.whole]\nport = 9001\ninstance = \"w\"\nprotocol = \"grpc\"\ncheck = {{ grpc = \"\", {rhythm} }}\n\
         [service.other]\nport = 9001\ninstance = \"o\"\nprotocol = \"grpc\"\ncheck = {{ grpc = \"no.Such\", {rhythm} }}\n"
    )))
    .await;
    until_health(&sidecar, "shop", "passing").await;
    until_health(&sidecar, "whole", "passing").await;
    until_health(&sidecar, "other", "failing").await;
    let log = sidecar.process.log();
    assert!(log.contains("it knows no service of that name"), "{log}");
    server.signal("USR1");
    until_health(&sidecar, "shop", "failing").await;
    server.signal("USR1");
    until_health(&sidecar, "shop", "passing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_warns_halves_the_share_and_one_that_fails_ends_it() {
    let setup = Setup::new("host", "eu-1a");
    let scratch = Scratch::new();
    let code = scratch.write("code", "0");
    let _one = backend_at(&setup, 9001, "one").await;
    let _two = backend_at(&setup, 9002, "two").await;
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[service.one]\nservice = \"shop\"\nport = 9001\n\
         check = {{ exec = [\"/bin/sh\", \"-c\", \"exit $(cat {})\"], interval = \"50ms\", timeout = \"5s\", fall = 1, rise = 1 }}\n\
         [service.two]\nservice = \"shop\"\nport = 9002\n\
         [upstream.shop]\nbalance = \"round_robin\"\n",
        code.display()
    )))
    .await;
    sidecar.until_usable("shop", 2, PATIENCE).await;
    // Shares while an instance is new follow its age; what the warning makes of them shows against a passing one.
    for (word, health, share) in [
        ("1", "warning", 20),
        ("0", "passing", 30),
        ("2", "failing", 0),
    ] {
        scratch.write("code", word);
        until(
            PATIENCE * 2,
            &format!("{health}: {share} of 60"),
            || async {
                let mut counts = BTreeMap::new();
                for _ in 0..60 {
                    let answer = sidecar.get("shop.mesh", "/").await?;
                    *counts
                        .entry(answer.header("x-backend").to_owned())
                        .or_insert(0) += 1;
                }
                let got: i32 = counts.get("one").copied().unwrap_or(0);
                // The turn of a smooth round robin may be off by one at both ends.
                if (got - share).abs() <= 1 {
                    Ok(())
                } else {
                    Err(format!("{counts:?}"))
                }
            },
        )
        .await;
    }
}

async fn put(sidecar: &Sidecar, path: &str, body: &str) -> Answer {
    let call = Call::get("localhost", path).with_body(Method::PUT, body.to_owned());
    call.to_socket(&sidecar.socket()).await.expect("an answer")
}

fn heartbeat(sidecar: &Sidecar, words: &[&str]) -> Output {
    Command::new(binary::starling())
        .arg("heartbeat")
        .args(words)
        .args(["--admin", &format!("unix:{}", sidecar.socket().display())])
        .output()
        .expect("starling runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_registers_itself_and_goes_when_it_falls_silent() {
    let setup = Setup::new("host", "eu-1a");
    let other = Setup::new("caller", "eu-1a").joining(&setup);
    let _backend = backend_at(&setup, 9001, "self-made").await;
    let mut host = Sidecar::ready(setup).await;
    let caller = Sidecar::ready(other).await;
    let one = "/v1/services/shop/blue";

    let refused = put(
        &host,
        one,
        "{\"port\": 9001, \"check\": {\"exec\": [\"/bin/true\"]}}",
    )
    .await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(
        refused.text().contains("configuration file"),
        "{}",
        refused.text()
    );

    let body = "{\"port\": 9001, \"lease\": \"2s\", \"check\": {\"ttl\": \"2s\"}}";
    let answer = put(&host, one, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Known, and not called before it said that it is well.
    until_health(&caller, "shop", "failing").await;
    until(PATIENCE, "it is called", || async {
        beat(&host);
        let answer = caller.get("shop.mesh", "/").await?;
        match answer.header("x-backend") {
            "self-made" => Ok(()),
            _ => Err(answer.text()),
        }
    })
    .await;
    // A reload of the configuration, which knows nothing of it, leaves it alone.
    host.rewrite("[service.more]\nport = 9001\n");
    beat(&host);
    let reloaded = host.order("/v1/reload", "").await.expect("an answer");
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    beat(&host);
    caller.until_usable("more", 1, PATIENCE).await;
    beat(&host);
    caller.until_usable("shop", 1, Duration::from_secs(1)).await;
    // Silent now: failing after the time of its word, withdrawn after that of its lease.
    until(PATIENCE, "it is gone", || async {
        let rows = caller.listing("/v1/services").await?;
        if rows.to_string().contains("blue") {
            Err(rows.to_string())
        } else {
            Ok(())
        }
    })
    .await;
    let output = heartbeat(&host, &["shop/blue", "warning"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// One heartbeat that has to be heard.
fn beat(sidecar: &Sidecar) {
    let output = heartbeat(sidecar, &["shop/blue"]);
    assert!(output.status.success(), "{output:?}");
}
