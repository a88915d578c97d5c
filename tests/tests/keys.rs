//! Gossip keys: changed without a gap, by orders or by files, and never shown.
//!
//! Not here: who holds no key at all (`membership.rs`, `attack.rs`).

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

use examples::load::{self, Plan};
use mesh_tests::{
    PATIENCE, binary,
    scratch::Scratch,
    sidecar::{Setup, Sidecar, backend_at},
    until::until,
};

const PORT: u16 = 9001;

/// Long enough for every step of a rotation, short enough to wait for.
const LOAD: Duration = Duration::from_secs(6);

/// A key of which a digit is known.
fn key(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

fn write_key(directory: &Path, name: &str, key: &str) {
    let path = directory.join(name);
    let fresh = directory.join(format!("{name}.new"));
    fs::write(&fresh, format!("{key}\n")).expect("our own directory");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).expect("our own file");
    fs::rename(&fresh, &path).expect("our own directory");
}

/// Four hosts that offer `shop`, each with a directory for its state and keys, and everybody known to everybody.
async fn four(gossip: impl Fn(&Path) -> String) -> Vec<(Sidecar, Scratch)> {
    let mut setups: Vec<(Setup, Scratch)> = Vec::new();
    for number in 0..4 {
        let own = Scratch::new();
        let mut setup = Setup::new(&format!("host-{number}"), "eu-1a").offering("shop", PORT);
        setup.node = format!("state_dir = \"{}/state\"", own.path().display());
        setup.gossip = gossip(own.path());
        if let Some((first, _)) = setups.first() {
            setup = setup.joining(first);
        }
        setups.push((setup, own));
    }
    let mut hosts = Vec::new();
    for (setup, own) in setups {
        hosts.push((Sidecar::start(setup), own));
    }
    for (host, _) in &mut hosts {
        host.until_ready().await;
    }
    hosts
}

async fn until_all_meet(hosts: &[(Sidecar, Scratch)]) {
    for (host, _) in hosts {
        host.until_usable("shop", hosts.len(), PATIENCE).await;
    }
}

/// `starling key …` at a host's admin socket: whether it was done, and what it said.
fn order(host: &Sidecar, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(binary::starling());
    command.arg("key").args(words);
    command
        .arg("--admin")
        .arg(format!("unix:{}", host.socket().display()));
    let output = command.output().expect("starling runs");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// The ids of a host's keys in the order of the ring.
async fn ring(host: &Sidecar) -> Result<Vec<String>, String> {
    let listing = host.listing("/v1/keys").await?;
    let keys = listing["keys"].as_array().into_iter().flatten();
    let held = keys.filter(|key| key["state"] != "removed");
    Ok(held
        .map(|key| key["id"].as_str().unwrap_or_default().to_owned())
        .collect())
}

/// Waits until `host` has heard that all others hold these keys, the first sealing.
async fn until_all_tell(host: &Sidecar, keys: &[&str]) {
    let what = format!("{} hears that all others hold {keys:?}", host.setup.name);
    until(PATIENCE, &what, || async {
        let listing = host.listing("/v1/keys").await?;
        let nodes = listing["nodes"].as_array().cloned().unwrap_or_default();
        if nodes.len() == 3
            && nodes
                .iter()
                .all(|node| node["keys"] == serde_json::json!(keys))
        {
            Ok(())
        } else {
            Err(listing.to_string())
        }
    })
    .await;
}

/// Nobody lost a word for want of a key, and nobody was taken for dead.
async fn assert_no_gap(hosts: &[(Sidecar, Scratch)]) {
    for (host, _) in hosts {
        let name = &host.setup.name;
        for reason in ["key", "tag", "replayed", "old_boot"] {
            let needle = format!("starling_gossip_refused_total{{reason=\"{reason}\"}}");
            assert_eq!(host.metric(&needle).await, 0.0, "{name}: {needle}");
        }
        let renewals = host.metric("starling_gossip_renewals_total").await;
        assert_eq!(renewals, 0.0, "{name} was taken for dead");
        let log = host.process.log();
        assert!(!log.contains("a node is down"), "{name}:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_rotated_by_orders_under_load_without_a_gap() {
    let (old, new) = (key(0xa1), key(0xb2));
    let hosts = four(|own| {
        write_key(own, "gossip.key", &old);
        write_key(own, "fresh.key", &new);
        format!("key = \"file:{}\"", own.join("gossip.key").display())
    })
    .await;
    let mut backends = Vec::new();
    for (host, _) in &hosts {
        backends.push(backend_at(&host.setup, PORT, &host.setup.name).await);
    }
    until_all_meet(&hosts).await;
    let caller = &hosts[0].0;
    let old_id = ring(caller).await.expect("a ring").remove(0);

    let plan = Plan::new(caller.outbound(), "shop.mesh").at(100, LOAD);
    let load = tokio::spawn(load::run(plan));
    let mut new_id = String::new();
    for (number, (host, own)) in hosts.iter().enumerate() {
        let file = own.path().join("fresh.key").display().to_string();
        let (done, said) = order(host, &["install", &file]);
        assert!(done && said.contains("is installed"), "{said}");
        new_id = said.split(' ').next().expect("a word").to_owned();
        if number == 0 {
            // Nobody else has it: to seal with it now would shut this host out.
            let (done, said) = order(host, &["use", &new_id]);
            assert!(!done && said.contains("host-3"), "{said}");
        }
    }
    for (host, _) in &hosts {
        until_all_tell(host, &[&old_id, &new_id]).await;
        let (done, said) = order(host, &["remove", &old_id]);
        assert!(!done && said.contains("seals with"), "{said}");
    }
    for (host, _) in &hosts {
        let (done, said) = order(host, &["use", &new_id]);
        assert!(done, "{said}");
        if std::ptr::eq(host, caller) {
            let (done, said) = order(host, &["remove", &old_id]);
            assert!(!done && said.contains("still seal with"), "{said}");
        }
    }
    for (host, _) in &hosts {
        until_all_tell(host, &[&new_id, &old_id]).await;
    }
    for (host, _) in &hosts {
        let (done, said) = order(host, &["remove", &old_id]);
        assert!(done, "{said}");
    }
    for (host, _) in &hosts {
        until_all_tell(host, &[&new_id]).await;
    }
    let figures = load.await.expect("the load ends");
    assert_eq!(figures.failures(), 0, "{}", figures.to_json());
    assert_no_gap(&hosts).await;

    // News passes under the new key, and the old one stands still.
    let opened = |id: &str| format!("starling_gossip_opened_total{{key=\"{id}\"}}");
    let before = caller.metric(&opened(&old_id)).await;
    let fresh = caller.metric(&opened(&new_id)).await;
    until(PATIENCE, "the new key is used", || async {
        let now = caller.metric(&opened(&new_id)).await;
        if now >= fresh + 10.0 {
            Ok(())
        } else {
            Err(format!("{now} opened, {fresh} before"))
        }
    })
    .await;
    assert!(before > 0.0);
    assert_eq!(caller.metric(&opened(&old_id)).await, before);

    for (host, _) in &hosts {
        let (_, listed) = order(host, &["status"]);
        assert!(listed.contains(&new_id), "{listed}");
        let said = [
            host.process.log(),
            listed,
            host.ask("/v1/keys").await.expect("an answer").text(),
            host.ask("/v1/config").await.expect("an answer").text(),
            host.ask("/metrics").await.expect("an answer").text(),
        ]
        .concat();
        for secret in [&old, &new] {
            assert!(
                !said.contains(&secret[..16]),
                "{} shows a key",
                host.setup.name
            );
        }
    }
    assert_restart_and_file_agree(hosts, &new, &new_id).await;
}

/// What was ordered survives a restart; and once the file says the same, there is nothing left to remember.
async fn assert_restart_and_file_agree(
    mut hosts: Vec<(Sidecar, Scratch)>,
    new: &str,
    new_id: &str,
) {
    let (last, own) = hosts.pop().expect("four hosts");
    let last = last.restart().await;
    assert_eq!(ring(&last).await, Ok(vec![new_id.to_owned()]));
    let (first, _) = &hosts[0];
    first.until_member("host-3", "alive", PATIENCE).await;
    last.until_member("host-0", "alive", PATIENCE).await;
    let kept = own.path().join("state/keys.json");
    assert!(kept.exists());
    write_key(own.path(), "gossip.key", new);
    until(PATIENCE, "the file has the last word", || async {
        match (kept.exists(), ring(&last).await?) {
            (false, ring) if ring == [new_id] => Ok(()),
            (exists, ring) => Err(format!("kept: {exists}, ring {ring:?}")),
        }
    })
    .await;
    last.until_member("host-1", "alive", PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_rotated_by_the_configuration_without_a_gap() {
    let (old, new) = (key(0xc3), key(0xd4));
    let ring_of = |own: &Path, names: &[&str]| {
        let files = names
            .iter()
            .map(|name| format!("\"file:{}\"", own.join(name).display()));
        format!("keys = [{}]", files.collect::<Vec<_>>().join(", "))
    };
    let mut hosts = four(|own| {
        write_key(own, "old.key", &old);
        write_key(own, "new.key", &new);
        ring_of(own, &["old.key"])
    })
    .await;
    let mut backends = Vec::new();
    for (host, _) in &hosts {
        backends.push(backend_at(&host.setup, PORT, &host.setup.name).await);
    }
    until_all_meet(&hosts).await;
    let old_id = ring(&hosts[0].0).await.expect("a ring").remove(0);
    let mut new_id = String::new();
    for names in [
        ["old.key", "new.key"].as_slice(),
        &["new.key", "old.key"],
        &["new.key"],
    ] {
        for (host, own) in &mut hosts {
            host.setup.gossip = ring_of(own.path(), names);
            let tables = host.setup.tables.clone();
            host.rewrite(&tables);
        }
        until(PATIENCE, "the new ring is in force", || async {
            let now = ring(&hosts[0].0).await?;
            if now.len() == names.len() && now != [old_id.as_str()] {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await;
        if new_id.is_empty() {
            new_id = ring(&hosts[0].0).await.expect("a ring").remove(1);
        }
        let id_of = |name: &&str| {
            if *name == "new.key" {
                &*new_id
            } else {
                &*old_id
            }
        };
        let told: Vec<&str> = names.iter().map(id_of).collect();
        for (host, _) in &hosts {
            until_all_tell(host, &told).await;
        }
    }
    assert_no_gap(&hosts).await;
}
