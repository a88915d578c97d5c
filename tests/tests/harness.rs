//! The harness itself: what the stories stand on must be true first.

use std::{net::IpAddr, time::Duration};

use mesh_tests::{
    PATIENCE, binary,
    netns::{self, Network},
    process::Process,
    scratch::Scratch,
    skipped,
    until::until,
};

#[tokio::test]
async fn hosts_reach_one_another_until_they_are_cut_apart_and_again_when_healed() {
    let story = "network namespaces as hosts";
    let mut network = match Network::new() {
        Ok(network) => network,
        Err(why) => return skipped(story, &why),
    };
    let (caller, caller_address) = network.host().expect("a second namespace can be made");
    let (server, address) = network.host().expect("a second namespace can be made");
    let scratch = Scratch::new();
    let mut backend = netns::command(&server, binary::backend().to_str().expect("UTF-8 path"));
    backend.args(["--listen", &format!("{address}:80"), "--name", "far"]);
    let _backend = Process::start("backend", backend, &scratch.path().join("log"));
    let url = format!("http://{address}/");
    let get = || netns::inside(&caller, &["curl", "-sf", "-m", "1", &url]);

    until(PATIENCE, "the far backend answers", || async { get() }).await;
    let apart = [IpAddr::V4(caller_address)];
    network.cut(&[&server], &apart).expect("nft takes rules");
    assert!(get().is_err(), "a cut network still carries");
    network.heal(&[&server]).expect("nft takes rules");
    until(Duration::from_secs(5), "it answers again", || async {
        get()
    })
    .await;
}
