//! `starling run`: an application and its sidecar as one, from the first check to the last request.
//!
//! Not here: sidecars that stand alone (`drain.rs`).

use std::time::Duration;

use examples::load::{self, Plan};
use mesh_tests::{
    PATIENCE, binary,
    mesh::{self, BACKEND_PORT},
    process::children_of,
    sidecar::{Setup, Sidecar},
};

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
    tokio::time::sleep(Duration::from_secs(1)).await;
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
