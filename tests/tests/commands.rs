//! The command line against a running sidecar: listings, orders, exit codes.
//!
//! Not here: what the orders do to the mesh (`drain.rs`, `reload.rs`).

use std::{path::Path, process::Output};

use mesh_tests::{binary, mesh, sidecar::Sidecar};
use serde_json::Value;

/// Runs `starling` with these arguments, asking the sidecar at `admin`.
async fn starling(admin: &str, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(binary::starling());
    command
        .args(arguments)
        .env("STARLING_ADMIN", admin)
        .env_remove("STARLING_TOKEN");
    command.output().await.expect("starling can be run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command that goes well prints.
async fn told(admin: &str, arguments: &[&str]) -> String {
    let output = starling(admin, arguments).await;
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// What a command that fails says, and its exit code.
async fn refused(admin: &str, arguments: &[&str]) -> (i32, String) {
    let output = starling(admin, arguments).await;
    let code = output.status.code().expect("it exits by itself");
    assert_ne!(code, 0, "{arguments:?}: {}", text(&output.stdout));
    (code, text(&output.stderr))
}

fn addresses(sidecar: &Sidecar) -> (String, String) {
    (
        sidecar.admin().to_string(),
        format!("unix:{}", sidecar.socket().display()),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listing_is_a_table_and_with_json_what_the_api_has() {
    let hosts = mesh::shops(&["eu-1a"], "[upstream.till]\nservice = \"shop\"\n").await;
    let (tcp, _) = addresses(&hosts[0].sidecar);
    for (command, words) in [
        (&["status"][..], &["host-0", "ready", "1 alive"][..]),
        (&["members"], &["NODE", "host-0", "alive", "eu-1a"]),
        (
            &["services"],
            &["SERVICE", "shop", "passing", "host-0-9001"],
        ),
        (&["endpoints", "shop"], &["INSTANCE", "host-0-9001", "yes"]),
        (&["endpoints", "till"], &["host-0-9001"]),
        (
            &["explain", "till", "POST", "/pay?x=1"],
            &[
                "POST /pay to till",
                "found by its own table",
                "Candidates",
                "100.0%",
            ],
        ),
    ] {
        let table = told(&tcp, command).await;
        for word in words {
            assert!(table.contains(word), "{command:?} lacks {word}:\n{table}");
        }
        let json = told(&tcp, &[command, &["--json"]].concat()).await;
        let json: Value = serde_json::from_str(&json).expect("one JSON value");
        assert!(json.is_array() || json.is_object());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_go_by_the_socket_and_say_what_was_done() {
    let hosts = mesh::shops(&["eu-1a"], "[drain]\ngrace = \"100ms\"\n").await;
    let (tcp, socket) = addresses(&hosts[0].sidecar);
    let (code, why) = refused(&tcp, &["drain", "shop"]).await;
    assert!(code == 1 && why.contains(&socket), "{code} {why}");

    let done = told(&socket, &["drain", "shop", "--wait"]).await;
    assert!(done.contains("host-0-9001"), "{done}");
    let services = told(&tcp, &["services"]).await;
    assert!(services.contains("draining"), "{services}");
    told(&socket, &["undrain", "shop/host-0-9001"]).await;
    let (code, why) = refused(&socket, &["drain", "nobody"]).await;
    assert!(code == 1 && why.contains("nobody"), "{code} {why}");

    told(&socket, &["reload"]).await;
    hosts[0].sidecar.rewrite_file("[node]\nzne = \"x\"\n");
    let (code, why) = refused(&socket, &["reload"]).await;
    assert!(
        code == 1 && why.contains("did you mean \"zone\"?"),
        "{code} {why}"
    );
}

#[tokio::test]
async fn every_way_to_fail_has_its_exit_code() {
    let nobody = "unix:/does/not/exist.sock";
    let (code, why) = refused(nobody, &["status"]).await;
    assert!(code == 69 && why.contains("starling agent"), "{code} {why}");
    let (code, why) = refused(nobody, &["statsu"]).await;
    assert!(code == 64 && why.contains("status"), "{code} {why}");
    let (code, why) = refused(nobody, &["check", "/does/not/exist.toml"]).await;
    assert!(
        code == 78 && why.contains("/does/not/exist.toml"),
        "{code} {why}"
    );
    let (code, why) = refused(nobody, &["agent", "--config", "/does/not/exist.toml"]).await;
    assert!(
        code == 78 && why.contains("/does/not/exist.toml"),
        "{code} {why}"
    );

    let examples =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/three-zones/zone-a.toml");
    let example = examples.to_str().expect("a plain path");
    assert!(
        told(nobody, &["check", example])
            .await
            .contains("no faults")
    );
    assert!(
        told(nobody, &["check", "--print", example])
            .await
            .contains("# default")
    );
    assert_eq!(told(nobody, &["key", "new"]).await.trim().len(), 64);
    assert!(
        told(nobody, &["completions", "bash"])
            .await
            .contains("starling")
    );
    assert!(told(nobody, &["--help"]).await.contains("Exit codes"));
}
