//! Zones: the own one first, the others when it fails, and back without a jolt.
//!
//! Not here: single endpoints (`retries.rs`), and zones cut apart by the network (`strangers.rs`).

use std::time::Duration;

use examples::load::{self, Plan};
use mesh_tests::{PATIENCE, mesh, until::until};

const ZONES: [&str; 6] = ["eu-1a", "eu-1a", "eu-1b", "eu-1b", "us-2c", "us-2c"];

fn plan(caller: &mesh::Host) -> Plan {
    Plan::new(caller.sidecar.outbound(), "shop.mesh")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_killed_under_load_loses_no_get_and_comes_back_by_a_ramp() {
    let mut hosts = mesh::shops(&ZONES, "").await;
    let steady = load::run(plan(&hosts[0]).at(200, Duration::from_secs(1))).await;
    assert_eq!(steady.failures(), 0, "{}", steady.to_json());
    assert!(steady.zone_share("eu-1a") > 0.999, "{}", steady.to_json());

    // Two applications at once: the hosts' sidecars live on, as when a deploy goes wrong.
    let load = tokio::spawn(load::run(plan(&hosts[0]).at(200, Duration::from_secs(4))));
    hosts[0].sidecar.until_served(100).await;
    hosts[0].kill_backend();
    hosts[1].kill_backend();
    let killed = load.await.expect("the load ends");
    assert_eq!(killed.failures(), 0, "{}", killed.to_json());
    // The own region stands in before the rest of the world.
    assert!(killed.zone_share("eu-1b") > 0.6, "{}", killed.to_json());
    assert!(killed.zone_share("us-2c") < 0.1, "{}", killed.to_json());

    hosts[0].revive_backend().await;
    hosts[1].revive_backend().await;
    let caller = plan(&hosts[0]);
    until(PATIENCE * 3, "the own zone has its share again", || async {
        let figures = load::run(caller.clone().at(100, Duration::from_secs(1))).await;
        assert_eq!(figures.failures(), 0, "{}", figures.to_json());
        if figures.zone_share("eu-1a") > 0.98 {
            Ok(())
        } else {
            Err(figures.to_json().to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_killed_whole_are_passed_over_and_told_down() {
    let mut hosts = mesh::shops(&["eu-1a", "eu-1b", "eu-1b"], "").await;
    let caller = &hosts[1];
    let load = tokio::spawn(load::run(plan(caller).at(100, Duration::from_secs(4))));
    caller.sidecar.until_served(50).await;
    let mut lost = hosts.pop().expect("three hosts");
    lost.sidecar.process.kill();
    lost.kill_backend();
    let figures = load.await.expect("the load ends");
    assert_eq!(figures.failures(), 0, "{}", figures.to_json());
    for host in &hosts {
        host.sidecar.until_member("host-2", "down", PATIENCE).await;
        host.sidecar.until_usable("shop", 2, PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_fails_its_check_is_left_by_everybody() {
    let hosts = mesh::shops(&["eu-1a", "eu-1b", "us-2c"], "").await;
    let sick = hosts[0].backend.as_ref().expect("it runs");
    sick.change(|b| b.well = false);
    for host in &hosts {
        host.sidecar.until_usable("shop", 2, PATIENCE).await;
        let rows = host.sidecar.endpoints("shop").await.expect("a listing");
        let out: Vec<_> = rows.iter().filter(|row| !row.usable).collect();
        assert_eq!(out.len(), 1);
        assert!(out[0].why.contains("failing"), "{out:?}");
    }
    sick.change(|b| b.well = true);
    for host in &hosts {
        host.sidecar.until_usable("shop", 3, PATIENCE).await;
    }
}
