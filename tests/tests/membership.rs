//! Who is there: joining, dying, returning, leaving, and nobody let in who does not belong.
//!
//! Not here: the protocol's own simulation (`mesh-core`), and networks cut apart (`strangers.rs`).

use std::time::Duration;

use mesh_tests::{
    PATIENCE, mesh,
    sidecar::{Setup, Sidecar},
    until::until,
};

#[tokio::test(flavor = "multi_thread")]
async fn everyone_meets_through_one_seed_and_learns_every_service() {
    let hosts = mesh::shops(&["eu-1a", "eu-1b", "eu-1c", "eu-1c"], "").await;
    for host in &hosts {
        let members = host.sidecar.members().await.expect("a listing");
        assert_eq!(members.len(), 4, "{members:?}");
        assert!(
            members.iter().all(|(_, state)| state == "alive"),
            "{members:?}"
        );
        let services = host.sidecar.listing("/v1/services").await;
        let services = services.expect("a listing");
        assert_eq!(services.as_array().map(Vec::len), Some(4), "{services}");
        assert_eq!(services[0]["service"], "shop");
        assert_eq!(services[0]["health"], "passing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_host_is_told_down_and_welcomed_back_with_its_services() {
    let mut hosts = mesh::shops(&["eu-1a", "eu-1b", "eu-1c"], "").await;
    let mut last = hosts.pop().expect("three hosts");
    last.sidecar.process.kill();
    for host in &hosts {
        host.sidecar.until_member("host-2", "down", PATIENCE).await;
        host.sidecar.until_usable("shop", 2, PATIENCE).await;
    }
    let backend = last.backend;
    let back = last.sidecar.restart().await;
    back.until_usable("shop", 3, PATIENCE).await;
    for host in &hosts {
        host.sidecar.until_member("host-2", "alive", PATIENCE).await;
        host.sidecar.until_usable("shop", 3, PATIENCE).await;
    }
    drop(backend);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_leaves_is_told_left_at_once_and_its_process_ends() {
    let mut hosts = mesh::shops(&["eu-1a", "eu-1b", "eu-1c"], "").await;
    let mut last = hosts.pop().expect("three hosts");
    let order = last
        .sidecar
        .order("/v1/leave", "")
        .await
        .expect("an answer");
    assert!(order.status < 300, "{order:?}");
    for host in &hosts {
        host.sidecar
            .until_member("host-2", "left", Duration::from_secs(10))
            .await;
        host.sidecar.until_usable("shop", 2, PATIENCE).await;
    }
    let status = last.sidecar.process.end(PATIENCE).await;
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_seed_comes_later_is_alone_until_then() {
    let seed = Setup::new("seed", "eu-1a");
    let early = Sidecar::start(Setup::new("early", "eu-1a").joining(&seed));
    until(PATIENCE, "it lives, but has nobody", || async {
        let members = early.members().await?;
        match members.len() {
            1 => Ok(()),
            count => Err(format!("{count} members")),
        }
    })
    .await;
    let seed = Sidecar::ready(seed).await;
    seed.until_member("early", "alive", PATIENCE * 2).await;
    early.until_member("seed", "alive", PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_and_another_key_stay_outside() {
    let key = |byte: u8| {
        let digits = format!("{byte:02x}");
        format!("key = \"{}\"", digits.repeat(32))
    };
    let inside = Setup {
        gossip: key(1),
        ..Setup::new("inside", "eu-1a")
    };
    let friend = Setup {
        gossip: key(1),
        ..Setup::new("friend", "eu-1a")
    }
    .joining(&inside);
    let stranger = Setup {
        gossip: key(2),
        ..Setup::new("stranger", "eu-1a")
    }
    .joining(&inside);
    let other = Setup {
        gossip: format!("{}\ncluster = \"other\"", key(1)),
        ..Setup::new("other", "eu-1a")
    }
    .joining(&inside);
    let inside = Sidecar::ready(inside).await;
    let friend = Sidecar::ready(friend).await;
    let stranger = Sidecar::start(stranger);
    let other = Sidecar::start(other);
    friend.until_member("inside", "alive", PATIENCE).await;
    // Both knocked and were turned away: a counter tells it.
    until(PATIENCE, "the refused are counted", || async {
        match inside.metric("starling_gossip_refused").await {
            count if count >= 2.0 => Ok(()),
            count => Err(format!("{count} refused")),
        }
    })
    .await;
    for outsider in [&stranger, &other] {
        assert_eq!(outsider.members().await.expect("a listing").len(), 1);
    }
    assert_eq!(inside.members().await.expect("a listing").len(), 2);
}
