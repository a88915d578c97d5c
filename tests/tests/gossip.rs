//! Sixteen real sidecars: how soon all know of a death and of a change, and that nobody is wronged.
//!
//! Not here: 64 of them beside Serf, with figures (`tests/gossip/run`), and thousands in the simulator (`mesh-core`).

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use mesh_tests::{
    PATIENCE,
    netns::Network,
    sidecar::{Setup, Sidecar},
    until::until,
};

const HOSTS: usize = 16;

/// The median on a quiet machine is 3 s; tests run beside other tests on two cores.
const CRASH_TIME: Duration = Duration::from_secs(8);

/// 0.2 s on a quiet machine.
const CHANGE_TIME: Duration = Duration::from_secs(3);

fn named(number: usize) -> String {
    format!("host-{number}")
}

/// Starts them all, each with an instance of `shop` that is taken to be well, and waits until everybody knows everybody.
async fn sixteen(mut setups: Vec<Setup>) -> Vec<Sidecar> {
    let first = setups[0].clone();
    for setup in setups.iter_mut().skip(1) {
        *setup = setup.clone().joining(&first);
    }
    let with_shop = |setup: Setup| setup.with("[service.shop]\nport = 9001\n");
    let hosts: Vec<Sidecar> = (setups.into_iter().map(with_shop))
        .map(Sidecar::start)
        .collect();
    let begun = Instant::now();
    until_whole(&hosts, PATIENCE).await;
    println!("whole {:?} after the last start", begun.elapsed());
    hosts
}

fn on_loopback() -> Vec<Setup> {
    let zone = |number: usize| ["eu-1a", "eu-1b", "eu-1c"][number % 3];
    (0..HOSTS)
        .map(|number| Setup::new(&named(number), zone(number)))
        .collect()
}

/// Everybody sees everybody alive, and one instance of each.
async fn until_whole(hosts: &[Sidecar], within: Duration) {
    let begun = Instant::now();
    for host in hosts {
        let what = format!("{} sees everybody", host.setup.name);
        until(within.saturating_sub(begun.elapsed()), &what, || async {
            let members = host.members().await?;
            let alive = members.iter().filter(|(_, state)| state == "alive").count();
            let services = host.listing("/v1/services").await?;
            let offers = services.as_array().map_or(0, Vec::len);
            if (alive, offers) == (hosts.len(), hosts.len()) {
                return Ok(());
            }
            Err(format!("{alive} alive, {offers} offers: {members:?}"))
        })
        .await;
    }
}

/// Waits until all of `hosts` see `node` as `state`; yields how long the last one took since `begun`.
async fn until_all_see<'a>(
    hosts: impl Iterator<Item = &'a Sidecar>,
    node: &str,
    state: &str,
    (begun, within): (Instant, Duration),
) -> Duration {
    for host in hosts {
        let left = within.saturating_sub(begun.elapsed());
        host.until_member(node, state, left).await;
    }
    begun.elapsed()
}

/// Nobody who lived had to come back under a new identity.
async fn assert_nobody_was_wronged<'a>(hosts: impl Iterator<Item = &'a Sidecar>) {
    for host in hosts {
        let renewals = host.metric("starling_gossip_renewals_total").await;
        assert_eq!(renewals, 0.0, "{} was taken for dead", host.setup.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_know_in_time_what_changed_who_died_and_who_woke() {
    let mut hosts = sixteen(on_loopback()).await;

    let begun = Instant::now();
    let drained = hosts[3].order("/v1/drain", "").await.expect("an answer");
    assert_eq!(drained.status, 200, "{}", drained.text());
    for host in &hosts {
        let left = CHANGE_TIME.saturating_sub(begun.elapsed());
        until(left, "host-3 is seen draining", || async {
            let services = host.listing("/v1/services").await?;
            let rows = services.as_array().into_iter().flatten();
            let draining = rows.filter(|row| row["state"] == "draining" && row["node"] == "host-3");
            match draining.count() {
                1 => Ok(()),
                count => Err(format!("{} sees {count}", host.setup.name)),
            }
        })
        .await;
    }
    println!("a change: known to all within {:?}", begun.elapsed());

    let mut dead = hosts.pop().expect("sixteen");
    let begun = Instant::now();
    dead.process.kill();
    let took = until_all_see(hosts.iter(), &named(15), "down", (begun, CRASH_TIME)).await;
    println!("a crash: known to all within {took:?}");
    assert_nobody_was_wronged(hosts.iter()).await;

    // It stands still until it is told down: then it must neither stay down nor judge those whom it did not hear.
    let asleep = hosts.pop().expect("fifteen");
    asleep.process.signal("STOP");
    let begun = Instant::now();
    until_all_see(hosts.iter(), &named(14), "down", (begun, CRASH_TIME)).await;
    asleep.process.signal("CONT");
    let begun = Instant::now();
    let took = until_all_see(hosts.iter(), &named(14), "alive", (begun, CRASH_TIME)).await;
    println!("a sleeper: alive to all {took:?} after it woke");
    for host in &hosts {
        asleep
            .until_member(&host.setup.name, "alive", CRASH_TIME)
            .await;
    }
    assert_nobody_was_wronged(hosts.iter()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_cut_in_halves_grows_together_with_every_record() {
    let mut network = match Network::new() {
        Ok(network) => network,
        Err(why) => return println!("SKIPPED: no networks of hosts here: {why}"),
    };
    let key = "5e".repeat(32);
    let setups: Result<Vec<Setup>, String> = (0..HOSTS)
        .map(|number| network.setup(&named(number), "eu-1a", &key))
        .collect();
    let hosts = sixteen(setups.expect("the first host was possible")).await;
    let (ones, others) = hosts.split_at(HOSTS / 2);
    let namespaces: Vec<&str> = ones
        .iter()
        .filter_map(|host| host.setup.namespace.as_deref())
        .collect();
    let addresses: Vec<IpAddr> = others.iter().map(|host| host.setup.address).collect();
    network.cut(&namespaces, &addresses).expect("nft cuts");
    let begun = Instant::now();
    for other in others {
        let within = (begun, PATIENCE * 2);
        until_all_see(ones.iter(), &other.setup.name, "down", within).await;
    }
    println!("cut: told on one side within {:?}", begun.elapsed());
    network.heal(&namespaces).expect("nft heals");
    let begun = Instant::now();
    until_whole(&hosts, PATIENCE).await;
    println!("whole {:?} after the cut was healed", begun.elapsed());
}
