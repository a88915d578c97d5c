//! Configuration changed while the sidecar runs: swapped whole, or refused whole.
//!
//! Not here: what counts as a fault (`sidecar/src/config`).

use std::{net::SocketAddr, time::Duration};

use examples::load::{self, Plan};
use mesh_tests::{
    PATIENCE,
    http::Call,
    mesh::{self, BACKEND_PORT, Host},
    sidecar::{Setup, Sidecar, backend_at},
    until::until,
};

async fn one_host() -> Host {
    let mut hosts = mesh::shops(&["eu-1a"], "").await;
    hosts.remove(0)
}

/// The configuration's generation, as the metric tells it.
async fn generation(host: &Host) -> f64 {
    host.sidecar.metric("starling_config_generation").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_brings_new_listeners_and_keeps_connections() {
    let mut host = one_host().await;
    let kept = tokio::spawn(load::run(
        Plan::new(host.sidecar.outbound(), "shop.mesh").at(100, Duration::from_secs(3)),
    ));
    let slow = Call::get("shop.mesh", "/delay/2000");
    let outbound = host.sidecar.outbound();
    let slow = tokio::spawn(async move { slow.to(outbound).await });
    host.sidecar.until_busy("shop").await;

    let before = generation(&host).await;
    let own_port = SocketAddr::new(host.sidecar.setup.local, 7001);
    let tables = host.sidecar.setup.tables.clone();
    host.sidecar.rewrite(&format!(
        "{tables}\n[upstream.shop]\nlisten = \"{own_port}\"\n"
    ));
    host.sidecar.process.signal("HUP");
    until(PATIENCE, "the new listener answers", || async {
        let answer = Call::get("anything", "/").to(own_port).await?;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(format!("{answer:?}"))
        }
    })
    .await;
    assert!(generation(&host).await > before, "a reload is counted");

    let slow = slow.await.expect("no panic").expect("an answer");
    assert_eq!(slow.status, 200, "a request in flight outlives a reload");
    let figures = kept.await.expect("the load ends");
    assert_eq!(figures.failures(), 0, "{}", figures.to_json());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_file_is_refused_whole_and_the_old_one_stays() {
    let host = one_host().await;
    let before = generation(&host).await;
    host.sidecar
        .rewrite_file("[outbound]\nhttp = \"127.0.0.1:1\"\n[upstream.shop]\ntimeuot = \"1s\"\n");
    host.sidecar.process.signal("HUP");
    until(PATIENCE, "the log names fault and fix", || async {
        let log = host.sidecar.process.log();
        if log.contains("timeuot") && log.contains("timeout") {
            Ok(())
        } else {
            Err("not a word in the log".into())
        }
    })
    .await;
    let answer = host.sidecar.get("shop.mesh", "/").await;
    assert_eq!(answer.expect("an answer").status, 200);
    assert!((generation(&host).await - before).abs() < 0.5);

    let asked = host.sidecar.order("/v1/reload", "").await;
    let asked = asked.expect("an answer");
    assert!(asked.status >= 400, "{asked:?}");
    assert!(asked.text().contains("timeuot"), "{}", asked.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_offers_and_withdraws_services_before_everybody() {
    let first = Setup::new("first", "eu-1a");
    let second = Setup::new("second", "eu-1a").joining(&first);
    let _backend = backend_at(&first, BACKEND_PORT, "late").await;
    let mut first = Sidecar::ready(first).await;
    let second = Sidecar::ready(second).await;
    let offered = Setup::new("unused", "x")
        .offering("late", BACKEND_PORT)
        .tables;

    first.rewrite(&offered);
    let asked = first.order("/v1/reload", "").await.expect("an answer");
    assert!(asked.status < 300, "{asked:?}");
    second.until_usable("late", 1, PATIENCE).await;
    let answer = second.get("late.mesh", "/").await.expect("an answer");
    assert_eq!(answer.header("x-backend"), "late");

    first.rewrite("");
    let asked = first.order("/v1/reload", "").await.expect("an answer");
    assert!(asked.status < 300, "{asked:?}");
    until(PATIENCE, "the second host forgets it", || async {
        match second.get("late.mesh", "/").await?.status {
            503 => Ok(()),
            other => Err(format!("it still answers {other}")),
        }
    })
    .await;
}
