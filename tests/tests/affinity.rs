//! Requests that belong together: the same key reaches the same instance through any sidecar, and a loss moves only
//! what it must.
//!
//! Not here: whose which key is, and how evenly (`cargo bench -p mesh-core --bench hash`).

use std::{collections::BTreeMap, net::SocketAddr};

use http::Method;
use mesh_tests::{
    PATIENCE,
    http::{Answer, Call},
    mesh::{self, Host},
    sidecar::{Setup, Sidecar, own_address},
    until::until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

const ZONES: [&str; 4] = ["eu-1a", "eu-1b", "eu-1a", "us-1a"];

const BY_USER: &str =
    "[upstream.shop]\nbalance = { policy = \"consistent_hash\", key = \"header:x-user\" }\n";

/// The backend that each of `users` reaches through a sidecar.
async fn homes(sidecar: &Sidecar, users: u32) -> Result<BTreeMap<u32, String>, String> {
    let mut homes = BTreeMap::new();
    for user in 0..users {
        let call = Call::get("shop.mesh", "/").header("x-user", &format!("user-{user}"));
        let answer = call.to(sidecar.outbound()).await?;
        if answer.status != 200 {
            return Err(format!("user {user}: {}", answer.status));
        }
        homes.insert(user, answer.header("x-backend").to_owned());
    }
    Ok(homes)
}

fn backends(hosts: &[Host]) -> Vec<String> {
    hosts
        .iter()
        .map(|host| host.sidecar.setup.name.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_header_reaches_the_same_backend_through_every_sidecar() {
    let hosts = mesh::shops(&ZONES, BY_USER).await;
    let first = homes(&hosts[0].sidecar, 80).await.expect("answers");
    for backend in backends(&hosts) {
        let share = first.values().filter(|home| **home == backend).count();
        assert!(share >= 5, "{backend} owns {share} of 80 users");
    }
    for host in &hosts[1..] {
        assert_eq!(homes(&host.sidecar, 80).await.expect("answers"), first);
    }
    // Without the header zones decide, as ever.
    for _ in 0..20 {
        let answer = hosts[0]
            .sidecar
            .get("shop.mesh", "/")
            .await
            .expect("an answer");
        assert_eq!(answer.header("x-zone"), "eu-1a");
    }
    let told = hosts[3]
        .sidecar
        .listing("/v1/explain/shop?header=x-user:user-7")
        .await;
    let told = told.expect("an explanation");
    let owner = &told["owners"][0];
    assert_eq!(
        (owner["called"].as_bool(), owner["why"].as_str()),
        (Some(true), None),
        "{told}"
    );
    let instance = owner["instance"].as_str().unwrap_or_default();
    assert!(
        instance.starts_with(&first[&7]),
        "{instance} is not on {}",
        first[&7]
    );
    assert_eq!(told["hash"]["table"], "rendezvous-1", "{told}");
    let none = hosts[3]
        .sidecar
        .listing("/v1/explain/shop")
        .await
        .expect("an explanation");
    assert!(
        none["order"]
            .to_string()
            .contains("falls back to least_response_time"),
        "{none}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_instance_moves_only_its_own_keys_and_gets_them_back() {
    let mut hosts = mesh::shops(&ZONES, BY_USER).await;
    let before = homes(&hosts[0].sidecar, 60).await.expect("answers");
    let victim = hosts[2].sidecar.setup.name.clone();
    hosts[2].kill_backend();
    // At once, by refused connections, through two sidecars, and again when its own sidecar says that it fails.
    let moved = homes(&hosts[0].sidecar, 60).await.expect("nobody fails");
    for (user, home) in &moved {
        assert_ne!(*home, victim, "user {user}");
        assert!(
            *home == before[user] || before[user] == victim,
            "user {user} moved needlessly"
        );
    }
    assert_eq!(
        homes(&hosts[1].sidecar, 60).await.expect("nobody fails"),
        moved
    );
    for host in &hosts[..2] {
        host.sidecar
            .until_usable("shop", ZONES.len() - 1, PATIENCE)
            .await;
        assert_eq!(homes(&host.sidecar, 60).await.expect("nobody fails"), moved);
    }
    hosts[2].revive_backend().await;
    for host in &hosts[..2] {
        until(PATIENCE, "the keys are back where they were", || async {
            let now = homes(&host.sidecar, 60).await?;
            let away = now.iter().filter(|(user, home)| before[user] != **home);
            match away.count() {
                0 => Ok(()),
                away => Err(format!("{away} users are still elsewhere")),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_body_reaches_the_same_backend_as_often_as_it_is_sent() {
    let tables = "[upstream.shop]\n\
                  balance = { policy = \"consistent_hash\", key = \"json:/order/user\", body_max = \"2KiB\" }\n";
    let hosts = mesh::shops(&ZONES[..3], tables).await;
    let sent = async |host: usize, user: u32, rest: &str, http2: bool| {
        let body = format!("{{\"order\": {{\"user\": \"{user}\"}}, \"rest\": \"{rest}\"}}");
        let call = Call::get("shop.mesh", "/echo").with_body(Method::POST, body.clone());
        let call = call.header("content-type", "application/json");
        let call = if http2 { call.over_http2() } else { call };
        let answer = call.to(hosts[host].sidecar.outbound()).await;
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.text()), (200, body));
        answer.header("x-backend").to_owned()
    };
    // Some bodies are longer than what is looked at, and than what is kept for another try.
    let rests = ["", &"x".repeat(10_000), &"y".repeat(200_000)];
    let mut used = BTreeMap::new();
    for user in 0..12 {
        let home = sent(0, user, "", false).await;
        for (host, rest) in rests.iter().enumerate() {
            assert_eq!(sent(host, user, rest, host == 1).await, home, "user {user}");
        }
        *used.entry(home).or_insert(0) += 1;
    }
    assert_eq!(used.len(), 3, "{used:?}");
    let told = hosts[1]
        .sidecar
        .listing("/v1/explain/shop?method=POST&body=%7B%22order%22%3A%7B%22user%22%3A%225%22%7D%7D")
        .await
        .expect("an explanation");
    let owner = told["owners"][0]["instance"].as_str().unwrap_or_default();
    assert!(owner.starts_with(&sent(2, 5, "", false).await), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_a_word_is_told_to_send_the_body_that_holds_its_key() {
    let tables =
        "[upstream.shop]\nbalance = { policy = \"consistent_hash\", key = \"json:/user\" }\n";
    let hosts = mesh::shops(&ZONES[..2], tables).await;
    let sidecar = &hosts[0].sidecar;
    let mut client = TcpStream::connect(sidecar.outbound())
        .await
        .expect("it listens");
    let body = "{\"user\": 7}";
    let head = format!(
        "POST /echo HTTP/1.1\r\nhost: shop.mesh\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await.expect("it is open");
    let mut word = [0; 25];
    let heard = timeout(PATIENCE, client.read_exact(&mut word)).await;
    heard.expect("in time").expect("it is open");
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(body.as_bytes()).await.expect("it is open");
    let mut answer = String::new();
    client
        .read_to_string(&mut answer)
        .await
        .expect("it is text");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with(body),
        "{answer}"
    );
    let once = answer.matches("HTTP/1.1").count();
    assert_eq!(once, 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_hosts_of_a_service_reach_the_same_backend_if_keys_are_who_calls() {
    let tables =
        "[upstream.shop]\nbalance = { policy = \"consistent_hash\", key = \"source_service\" }\n";
    let hosts = mesh::shops(&ZONES, tables).await;
    let mut used = BTreeMap::new();
    for host in &hosts {
        for _ in 0..4 {
            let answer = host.sidecar.get("shop.mesh", "/").await.expect("an answer");
            *used
                .entry(answer.header("x-backend").to_owned())
                .or_insert(0) += 1;
        }
    }
    assert_eq!(used.values().collect::<Vec<_>>(), [&16], "{used:?}");
}

/// The value of the cookie that an answer sets, and the whole line.
fn set_cookie(answer: &Answer) -> Option<(String, String)> {
    let line = answer.header("set-cookie").to_owned();
    let pair = line.split(';').next()?.to_owned();
    pair.starts_with("starling=").then_some((pair, line))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_keeps_a_client_with_its_backend_through_any_sidecar() {
    let tables = "[upstream.shop]\nbalance = \"round_robin\"\nzones = { mode = \"ignore\" }\n\
                  sticky = { cookie = \"starling\", ttl = \"1h\" }\n";
    let mut hosts = mesh::shops(&ZONES[..3], tables).await;
    let begun = hosts[0]
        .sidecar
        .get("shop.mesh", "/")
        .await
        .expect("an answer");
    let home = begun.header("x-backend").to_owned();
    let (cookie, line) = set_cookie(&begun).expect("a cookie is set");
    for part in ["; Path=/", "; HttpOnly", "; SameSite=Lax", "; Max-Age=3600"] {
        assert!(line.contains(part), "{line}");
    }
    let place = hosts
        .iter()
        .position(|host| host.sidecar.setup.name == home);
    let place = place.expect("it is one of them");
    let address = hosts[place].sidecar.setup.address.to_string();
    assert!(!line.contains(&home) && !line.contains(&address), "{line}");
    let call = |cookie: &str| {
        let others = format!("a=1; {cookie}; b=2");
        Call::get("shop.mesh", "/").header("cookie", &others)
    };
    for host in &hosts {
        for _ in 0..6 {
            let answer = call(&cookie)
                .to(host.sidecar.outbound())
                .await
                .expect("an answer");
            assert_eq!(answer.header("x-backend"), home);
            assert_eq!(set_cookie(&answer), None, "it has one already");
        }
    }
    // Draining, it keeps this session, and new ones begin elsewhere.
    let other = &hosts[(place + 1) % 3].sidecar;
    let drained = hosts[place]
        .sidecar
        .order("/v1/drain", "{\"service\": \"shop\"}")
        .await;
    assert_eq!(drained.expect("an answer").status, 200);
    other.until_usable("shop", 2, PATIENCE).await;
    for _ in 0..6 {
        let answer = call(&cookie).to(other.outbound()).await.expect("an answer");
        assert_eq!(
            answer.header("x-backend"),
            home,
            "a draining instance keeps its sessions"
        );
        let new = other.get("shop.mesh", "/").await.expect("an answer");
        assert_ne!(new.header("x-backend"), home);
    }
    let undrained = hosts[place]
        .sidecar
        .order("/v1/undrain", "{\"service\": \"shop\"}")
        .await;
    assert_eq!(undrained.expect("an answer").status, 200);
    // Gone, the session goes on elsewhere, with another cookie.
    hosts[place].kill_backend();
    let other = &hosts[(place + 1) % 3].sidecar;
    let moved = call(&cookie).to(other.outbound()).await.expect("an answer");
    assert_eq!(moved.status, 200, "{moved:?}");
    assert_ne!(moved.header("x-backend"), home);
    let (next, _) = set_cookie(&moved).expect("another cookie is set");
    let third = &hosts[(place + 2) % 3].sidecar;
    let again = call(&next).to(third.outbound()).await.expect("an answer");
    assert_eq!(again.header("x-backend"), moved.header("x-backend"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_callers_stay_where_their_address_was_sent_first() {
    let mut endpoints = Vec::new();
    for i in 0..3 {
        let listener = TcpListener::bind((own_address(), 6000))
            .await
            .expect("a free address");
        endpoints.push(format!(
            "\"{}\"",
            listener.local_addr().expect("it is bound")
        ));
        tokio::spawn(named(listener, format!("server-{i}")));
    }
    let setup = Setup::new("one", "eu-1a");
    let table = format!(
        "[upstream.store]\nprotocol = \"tcp\"\nlisten = \"{}:7001\"\nendpoints = [{}]\n\
         balance = \"round_robin\"\nsticky = {{ source_ip = true }}\n",
        setup.address,
        endpoints.join(", ")
    );
    let sidecar = Sidecar::ready(setup.with(&table)).await;
    let mut homes = BTreeMap::new();
    let callers: Vec<SocketAddr> = (0..6)
        .map(|_| SocketAddr::from((own_address(), 0)))
        .collect();
    for _ in 0..4 {
        for caller in &callers {
            let name = heard(*caller, sidecar.port(7001)).await.expect("a name");
            let home = homes.entry(caller).or_insert_with(|| name.clone());
            assert_eq!(*home, name, "{caller}");
        }
    }
    let mut used: Vec<&String> = homes.values().collect();
    used.sort();
    used.dedup();
    assert_eq!(used.len(), 3, "round robin dealt out the six new ones");
}

/// Says its name to whoever connects.
async fn named(listener: TcpListener, name: String) {
    while let Ok((mut stream, _)) = listener.accept().await {
        // A caller that went away before it heard the name is not missed.
        let _ = stream.write_all(name.as_bytes()).await;
    }
}

/// The name heard by a caller from `source`.
async fn heard(source: SocketAddr, listen: SocketAddr) -> std::io::Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(source)?;
    let mut stream = socket.connect(listen).await?;
    let mut name = String::new();
    stream.read_to_string(&mut name).await?;
    Ok(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_callers_of_one_address_reach_one_server_through_every_sidecar() {
    let mut endpoints = Vec::new();
    let mut servers = Vec::new();
    for i in 0..4 {
        let listener = TcpListener::bind((own_address(), 6000))
            .await
            .expect("a free address");
        endpoints.push(format!(
            "\"{}\"",
            listener.local_addr().expect("it is bound")
        ));
        servers.push(tokio::spawn(named(listener, format!("server-{i}"))));
    }
    let mut sidecars = Vec::new();
    for (name, order) in [("one", [0, 1, 2, 3]), ("two", [3, 1, 0, 2])] {
        let setup = Setup::new(name, "eu-1a");
        let listed = order.map(|i| endpoints[i].clone()).join(", ");
        let table = format!(
            "[upstream.store]\nprotocol = \"tcp\"\nlisten = \"{}:7001\"\nendpoints = [{listed}]\n\
             balance = {{ policy = \"consistent_hash\", key = \"source_ip\", table = \"ring\" }}\n",
            setup.address
        );
        sidecars.push(Sidecar::ready(setup.with(&table)).await);
    }
    let callers: Vec<SocketAddr> = (0..16)
        .map(|_| SocketAddr::from((own_address(), 0)))
        .collect();
    let mut homes = BTreeMap::new();
    for caller in &callers {
        for sidecar in &sidecars {
            for _ in 0..2 {
                let name = heard(*caller, sidecar.port(7001)).await.expect("a name");
                let home = homes.entry(caller).or_insert_with(|| name.clone());
                assert_eq!(*home, name, "{caller} through {}", sidecar.setup.name);
            }
        }
    }
    let mut used: Vec<&String> = homes.values().collect();
    used.sort();
    used.dedup();
    assert!(used.len() >= 3, "16 callers and only {used:?}");
    // Its server dies: the next connection is made elsewhere, and nobody else is moved.
    let victim = homes[&callers[0]].clone();
    let number: usize = victim["server-".len()..].parse().expect("a number");
    servers[number].abort();
    let gone = until(PATIENCE, "the server is gone", || async {
        let address = endpoints[number]
            .trim_matches('"')
            .parse()
            .expect("an address");
        match heard(callers[0], address).await {
            Err(_) => Ok(()),
            Ok(name) => Err(name),
        }
    });
    gone.await;
    for caller in &callers {
        let one = heard(*caller, sidecars[0].port(7001))
            .await
            .expect("a name");
        let two = heard(*caller, sidecars[1].port(7001))
            .await
            .expect("a name");
        assert_eq!(one, two, "{caller}");
        assert_eq!(one != homes[caller], homes[caller] == victim, "{caller}");
    }
}
