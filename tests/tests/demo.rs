//! The demo is the first thing anybody runs: its script must come to an end here, and be true.

use std::{process::Command, time::Duration};

use mesh_tests::{binary, process::Process, scratch::Scratch};
use serde_json::Value;

/// Four phases, the longest a share's return at 5 % a second.
const WITHIN: Duration = Duration::from_secs(150);

#[tokio::test]
async fn the_script_loses_a_zone_under_load_and_no_request() {
    let scratch = Scratch::new();
    let log = scratch.path().join("log");
    let mut command = Command::new(binary::starling());
    // A quarter of the usual rate: this binary is not optimised, and other tests run beside it.
    command.args(["demo", "--script", "--rate", "250"]);
    let mut demo = Process::start("demo", command, &log);
    let status = demo.end(WITHIN).await;
    let said = demo.log();
    let figures: Value = said
        .find('{')
        .and_then(|start| serde_json::from_str(&said[start..]).ok())
        .unwrap_or_else(|| panic!("no figures in {said}"));
    for key in [
        "members",
        "endpoints",
        "requests",
        "failed",
        "retried",
        "failover_ms",
        "detected_ms",
        "p50_ms",
        "p99_ms",
        "zone_share",
        "converged_ms",
    ] {
        assert!(!figures[key].is_null(), "{key} is missing: {figures:#}");
    }
    assert!(status.success(), "{figures:#}");
}

#[tokio::test]
async fn without_a_terminal_the_live_view_points_to_the_script() {
    let scratch = Scratch::new();
    let mut command = Command::new(binary::starling());
    command.arg("demo");
    let mut demo = Process::start("demo", command, &scratch.path().join("log"));
    let status = demo.end(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(64));
    assert!(
        demo.log().contains("starling demo --script"),
        "{}",
        demo.log()
    );
}
