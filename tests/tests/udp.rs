//! UDP upstreams: answers find their client, a refused question is asked elsewhere, flows end and are bounded.
//!
//! Not here: TCP (`tcp.rs`).

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use mesh_tests::{
    PATIENCE,
    sidecar::{Setup, Sidecar},
    until::until,
};
use tokio::{net::UdpSocket, task::JoinHandle, time::timeout};

/// For an answer on a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// For an answer that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// Answers each datagram with its own name and what it heard; a DNS server as far as a proxy can tell.
struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(address: SocketAddr, name: &'static str) -> Server {
        let socket = UdpSocket::bind(address).await.expect("a free address");
        let task = tokio::spawn(async move {
            let mut room = [0; 2048];
            while let Ok((count, client)) = socket.recv_from(&mut room).await {
                let heard = String::from_utf8_lossy(&room[..count]).into_owned();
                let _ = socket
                    .send_to(format!("{name} {heard}").as_bytes(), client)
                    .await;
            }
        });
        Server { address, task }
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// A client at an address of its own.
async fn client(listen: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((listen.ip(), 0))
        .await
        .expect("a free port");
    socket
        .connect(listen)
        .await
        .expect("a datagram socket connects");
    socket
}

/// Asks and yields the name of who answers.
async fn ask(client: &UdpSocket, question: &str) -> Result<String, String> {
    client
        .send(question.as_bytes())
        .await
        .map_err(|error| error.to_string())?;
    let mut room = [0; 2048];
    let count = timeout(ANSWER_WITHIN, client.recv(&mut room))
        .await
        .map_err(|_| "no answer".to_owned())?
        .map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&room[..count]).into_owned();
    match answer.split_once(' ') {
        Some((name, heard)) if heard == question => Ok(name.to_owned()),
        _ => Err(format!("{answer:?} to {question:?}")),
    }
}

/// The address that an upstream of this host listens on, and two servers for it.
async fn one_and_two(setup: &Setup) -> (SocketAddr, [Server; 2]) {
    let at = |port: u16| SocketAddr::new(setup.address, port);
    let one = Server::start(at(5301), "one").await;
    let two = Server::start(at(5302), "two").await;
    (at(5300), [one, two])
}

fn table(listen: SocketAddr, endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|at| format!("\"{at}\"")).collect();
    format!(
        "[upstream.resolver]\nprotocol = \"udp\"\nlisten = \"{listen}\"\nendpoints = [{}]\n{more}\n",
        endpoints.join(", ")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_find_their_client_and_a_flow_stays_with_its_server() {
    let setup = Setup::new("host", "eu-1a");
    let (listen, [one, two]) = one_and_two(&setup).await;
    let tables = table(
        listen,
        &[one.address, two.address],
        "balance = \"round_robin\"",
    );
    let sidecar = Sidecar::ready(setup.with(&tables)).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(client(listen).await);
    }
    let mut homes = Vec::new();
    for (i, client) in clients.iter().enumerate() {
        homes.push(
            ask(client, &format!("hello from {i}"))
                .await
                .expect("an answer"),
        );
    }
    for home in ["one", "two"] {
        // Until its first answer is known everywhere, an endpoint gets one flow at most.
        let count = homes.iter().filter(|name| *name == home).count();
        assert!(count >= 5, "{home}: {homes:?}");
    }
    for round in 0..5 {
        for (client, home) in clients.iter().zip(&homes) {
            let again = ask(client, &format!("again {round}"))
                .await
                .expect("an answer");
            assert_eq!(again, *home, "a flow has moved");
        }
    }
    drop(sidecar);
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_of_one_client_go_where_its_address_belongs() {
    let setup = Setup::new("host", "eu-1a");
    let (listen, [one, two]) = one_and_two(&setup).await;
    let rules = "balance = { policy = \"consistent_hash\", key = \"source_ip\" }";
    let tables = table(listen, &[one.address, two.address], rules);
    let _sidecar = Sidecar::ready(setup.with(&tables)).await;
    let (mut homes, mut kept) = (BTreeSet::new(), 0);
    // Chance would send all of them to one server once in some eight million runs.
    for host in 1..=24 {
        let source = [127, 88, 7, host];
        let mut seen = BTreeSet::new();
        // Each socket is a flow of its own.
        for flow in 0..6 {
            let socket = UdpSocket::bind((std::net::Ipv4Addr::from(source), 0)).await;
            let socket = socket.expect("a free port");
            socket.connect(listen).await.expect("a place to send to");
            seen.insert(
                ask(&socket, &format!("flow {flow}"))
                    .await
                    .expect("an answer"),
            );
        }
        kept += usize::from(seen.len() == 1);
        homes.extend(seen);
    }
    // A flow goes elsewhere while its server has more than its part of all, or has not answered yet. By chance six flows
    // would stay together in one case of 32, and six clients or more would be kept once in some ten thousand runs.
    assert!(kept >= 6, "{kept} of 24 clients were kept");
    assert_eq!(homes.len(), 2, "all went to {homes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_refused_is_asked_elsewhere_and_nobody_notices() {
    let setup = Setup::new("host", "eu-1a");
    let (listen, [one, two]) = one_and_two(&setup).await;
    let rules = "balance = \"round_robin\"\nudp = { replies = 1, idle = \"2s\" }";
    let tables = table(listen, &[one.address, two.address], rules);
    let sidecar = Sidecar::ready(setup.with(&tables)).await;
    // A flow is over with its answer, so that one socket's next question may go elsewhere.
    let asking = client(listen).await;
    let mut seen = BTreeSet::new();
    for i in 0..4 {
        seen.insert(ask(&asking, &format!("q{i}")).await.expect("an answer"));
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    let address = one.address;
    one.stop().await;
    for i in 0..20 {
        let answer = ask(&asking, &format!("without one {i}")).await;
        assert_eq!(answer.as_deref(), Ok("two"));
    }
    let rows = sidecar.endpoints("resolver").await.expect("a listing");
    let row = rows.iter().find(|row| row.address == address.to_string());
    assert!(row.is_some_and(|row| row.why == "ejected"), "{rows:?}");
    let _one = Server::start(address, "one").await;
    until(PATIENCE, "one is asked again", || async {
        match ask(&asking, "are you back").await?.as_str() {
            "one" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_left_and_flows_are_bounded() {
    let setup = Setup::new("host", "eu-1a");
    let at = |port: u16| SocketAddr::new(setup.address, port);
    let silent = UdpSocket::bind(at(5301)).await.expect("a free address");
    let well = Server::start(at(5302), "well").await;
    let listen = at(5300);
    let rules = "balance = \"round_robin\"\nudp = { replies = 1, idle = \"100ms\", max_flows = 4 }";
    let endpoints = [silent.local_addr().expect("it is bound"), well.address];
    let sidecar = Sidecar::ready(setup.with(&table(listen, &endpoints, rules))).await;
    until(PATIENCE, "the silent one is left", || async {
        let asking = client(listen).await;
        asking
            .send(b"anybody?")
            .await
            .map_err(|error| error.to_string())?;
        let mut room = [0; 64];
        // Whether it is answered or not: it is one more question.
        let _ = timeout(Duration::from_millis(150), asking.recv(&mut room)).await;
        let rows = sidecar.endpoints("resolver").await?;
        if rows.iter().any(|row| row.why == "ejected") {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    })
    .await;
    drop(sidecar);

    let setup = Setup::new("bounded", "eu-1a");
    let listen = SocketAddr::new(setup.address, 5300);
    let sidecar =
        Sidecar::ready(setup.with(&table(listen, &[well.address], "udp = { max_flows = 4 }")))
            .await;
    let mut held = Vec::new();
    for i in 0..4 {
        let one = client(listen).await;
        assert!(ask(&one, &format!("flow {i}")).await.is_ok());
        held.push(one);
    }
    let late = client(listen).await;
    late.send(b"one too many").await.expect("sent");
    let mut room = [0; 64];
    assert!(timeout(SILENCE, late.recv(&mut room)).await.is_err());
    assert!(ask(&held[0], "those there are go on").await.is_ok());
    let refused = sidecar
        .metric("starling_connections_refused_total{reason=\"limit\"}")
        .await;
    assert_eq!(refused, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_the_mesh_are_called_by_datagram_and_a_reload_closes_the_port() {
    let first = Setup::new("first", "eu-1a");
    let second = Setup::new("second", "eu-1a").joining(&first);
    let at = |setup: &Setup| SocketAddr::new(setup.address, 5353);
    let _near = Server::start(at(&first), "first").await;
    let _far = Server::start(at(&second), "second").await;
    let service = "[service.names]\nport = 5353\nprotocol = \"udp\"\n";
    let listen = SocketAddr::new(first.address, 5300);
    let tables = format!("{service}[upstream.names]\nprotocol = \"udp\"\nlisten = \"{listen}\"\n");
    let mut sidecar = Sidecar::ready(first.with(&tables)).await;
    let _second = Sidecar::ready(second.with(service)).await;
    sidecar.until_usable("names", 2, PATIENCE).await;
    until(PATIENCE, "both are asked", || async {
        let mut seen = BTreeSet::new();
        for i in 0..10 {
            let asking = client(listen).await;
            seen.insert(ask(&asking, &format!("q{i}")).await?);
        }
        if seen.len() == 2 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
    sidecar.rewrite(service);
    let reloaded = sidecar.order("/v1/reload", "").await.expect("an answer");
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    UdpSocket::bind(listen)
        .await
        .expect("the port is free again");
}
