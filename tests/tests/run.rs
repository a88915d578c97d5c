//! `starling run`: an application and its sidecar as one, from the first check to the last request.
//!
//! Not here: sidecars that stand alone (`drain.rs`).

use std::time::Duration;

use examples::load::{self, Plan};
use mesh_tests::{
    PATIENCE, binary,
    mesh::{self, BACKEND_PORT},
    process::{children_of, installed, signal_to},
    scratch::Scratch,
    sidecar::{Setup, Sidecar},
    skipped,
    until::until,
};

/// A change that gossip carries: far below any failure detector.
const SOON: Duration = Duration::from_secs(5);

/// A host whose sidecar starts the example backend as the application of `shop`.
fn together(joining: &Setup) -> Setup {
    let setup = Setup::new("together", "eu-1a").joining(joining);
    let listen = format!("{}:{BACKEND_PORT}", setup.address);
    let port = BACKEND_PORT.to_string();
    let application = binary::backend().display().to_string();
    let words = [
        "run",
        "--service",
        "shop",
        "--port",
        &port,
        "--check",
        "/healthz",
        "--",
        &application,
        "--listen",
        &listen,
        "--name",
        "together",
        "--zone",
        "eu-1a",
    ];
    Setup {
        command: words.map(str::to_owned).to_vec(),
        ..setup
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_announced_when_it_is_well_and_drained_before_it_ends() {
    let hosts = mesh::shops(&["eu-1a"], "").await;
    let far = &hosts[0].sidecar;
    let mut sidecar = Sidecar::ready(together(&far.setup)).await;
    far.until_usable("shop", 2, PATIENCE).await;
    let applications = children_of(sidecar.process.id());
    assert_eq!(applications.len(), 1, "the application is a child");

    let plan = Plan::new(far.outbound(), "shop.mesh").at(150, Duration::from_secs(5));
    let load = tokio::spawn(load::run(plan));
    far.until_served(100).await;
    sidecar.process.signal("TERM");
    let figures = load.await.expect("the load ends");
    assert_eq!(figures.failures(), 0, "{}", figures.to_json());
    sidecar.process.end(PATIENCE).await;
    assert!(
        !std::path::Path::new(&format!("/proc/{}", applications[0])).exists(),
        "the application outlived its sidecar"
    );
    far.until_usable("shop", 1, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_is_the_applications_own() {
    let setup = Setup::new("short", "eu-1a");
    let words = [
        "run",
        "--service",
        "shop",
        "--port",
        "9001",
        "--",
        "sh",
        "-c",
        "exit 7",
    ];
    let mut sidecar = Sidecar::start(Setup {
        command: words.map(str::to_owned).to_vec(),
        ..setup
    });
    let status = sidecar.process.end(PATIENCE).await;
    assert_eq!(status.code(), Some(7), "{}", sidecar.process.log());
}

#[tokio::test]
async fn an_application_that_dies_takes_its_sidecar_along() {
    let hosts = mesh::shops(&["eu-1a"], "").await;
    let far = &hosts[0].sidecar;
    let mut sidecar = Sidecar::start(together(&far.setup));
    far.until_usable("shop", 2, PATIENCE).await;
    let applications = children_of(sidecar.process.id());
    signal_to(applications[0], "KILL");
    let status = sidecar.process.end(PATIENCE).await;
    assert_eq!(status.code(), Some(137), "{}", sidecar.process.log());
    far.until_usable("shop", 1, SOON).await;
}

#[tokio::test]
async fn on_sigterm_callers_go_first_then_the_application_and_its_own_calls_work_until_then() {
    let story = "the application's own calls while it goes";
    if !installed("curl") {
        return skipped(story, "curl is not installed");
    }
    let hosts = mesh::shops(&["eu-1b"], "").await;
    let peer = &hosts[0].sidecar;
    let scratch = Scratch::new();
    let said = scratch.path().join("said");
    let setup = Setup::new("with-app", "eu-1b").joining(&peer.setup);
    let listen = format!("{}:{BACKEND_PORT}", setup.address);
    // The application's last deed is a call through its sidecar; then it ends with a code of its own.
    let script = format!(
        "trap 'curl -s -o /dev/null -w %{{http_code}} -H host:shop.mesh http://{}:7080/ > {}; exit 5' TERM; \
         {} --listen {listen} --name app & while :; do wait $!; done",
        setup.local,
        said.display(),
        binary::backend().display(),
    );
    let port = BACKEND_PORT.to_string();
    let setup = running(
        setup,
        &[
            "--service",
            "shop",
            "--port",
            &port,
            "--check",
            "/healthz",
            "--",
            "sh",
            "-c",
            &script,
        ],
    );
    let mut together = Sidecar::start(setup);
    peer.until_usable("shop", 2, PATIENCE).await;

    together.process.signal("TERM");
    until(SOON, "the peer sees it draining", || async {
        let rows = peer.endpoints("shop").await?;
        let draining = rows
            .iter()
            .any(|row| !row.usable && row.why.contains("draining"));
        draining.then_some(()).ok_or(format!("{rows:?}"))
    })
    .await;
    assert!(
        !said.exists(),
        "the application was asked to end before callers were"
    );
    let mut calls = 0;
    while together.process.ended().is_none() {
        let answer = peer.get("shop.mesh", "/").await;
        assert!(
            matches!(&answer, Ok(answer) if answer.status == 200),
            "call {calls}: {answer:?}"
        );
        calls += 1;
    }
    assert!(calls > 0);
    let status = together.process.end(PATIENCE).await;
    assert_eq!(status.code(), Some(5), "{}", together.process.log());
    let said = std::fs::read_to_string(&said).expect("the application said what it got");
    assert_eq!(said, "200");
    peer.until_usable("shop", 1, SOON).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_failure_with_a_word() {
    let setup = Setup::new("with-app", "eu-1c");
    let mut together = Sidecar::start(running(
        setup,
        &["--service", "shop", "--port", "9001", "--", "/nowhere/app"],
    ));
    let status = together.process.end(PATIENCE).await;
    assert_eq!(status.code(), Some(1));
    let log = together.process.log();
    assert!(log.contains("cannot start /nowhere/app"), "{log}");
}

/// A host under `starling run` with these arguments.
fn running(setup: Setup, arguments: &[&str]) -> Setup {
    let words = std::iter::once(&"run").chain(arguments);
    Setup {
        command: words.map(|word| (*word).to_owned()).collect(),
        ..setup
    }
}
