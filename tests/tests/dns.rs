//! DNS by a server and a client nobody here wrote (dnsmasq and dig), through a UDP upstream.
//!
//! Not here: flows, their bounds and ends (`udp.rs`).

use std::{
    net::SocketAddr,
    process::{Command, Output},
    time::Duration,
};

use mesh_tests::{
    PATIENCE,
    process::{Process, installed},
    scratch::Scratch,
    sidecar::{Setup, Sidecar},
    skipped,
    until::until,
};
use tokio::{net::UdpSocket, task::JoinSet, time::timeout};

const STORY: &str = "DNS";
const DNS_PORT: u16 = 5353;
const LISTEN_PORT: u16 = 5300;
/// Clients that ask at once.
const CLIENTS: usize = 50;
/// Addresses of one name: an answer of 2.4 kB, larger than a packet of most networks.
const MANY: usize = 150;
/// For a whole answer, on a crowded machine too.
const TALK_WITHIN: Duration = Duration::from_secs(60);

fn dnsmasq(at: SocketAddr) -> Command {
    let mut command = Command::new("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
    ]);
    command.args([
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--user=",
        "--group=",
    ]);
    command.args(["--log-facility=-", "--edns-packet-max=4096"]);
    command.arg(format!("--listen-address={}", at.ip()));
    command.arg(format!("--port={}", at.port()));
    command.arg("--host-record=shop.test,10.1.2.3,fd00::7");
    command.arg("--txt-record=shop.test,v=1 hello");
    for number in 0..MANY {
        command.arg(format!("--host-record=many.test,10.2.0.{number}"));
    }
    for number in 0..CLIENTS {
        command.arg(format!("--host-record=host-{number}.test,10.3.0.{number}"));
    }
    command
}

/// What dig says to a question; it asks once, by UDP alone, and takes answers of up to 4 kB.
fn ask(listen: SocketAddr, name: &str, kind: &str) -> Command {
    let mut dig = Command::new("dig");
    dig.arg(format!("@{}", listen.ip()));
    dig.args(["-p", &listen.port().to_string()]);
    dig.args([
        "+tries=1",
        "+time=15",
        "+notcp",
        "+ignore",
        "+bufsize=4096",
        "+short",
    ]);
    dig.args([name, kind]);
    dig
}

async fn said(mut dig: Command) -> Vec<String> {
    let talk = tokio::task::spawn_blocking(move || dig.output());
    let output: Output = timeout(TALK_WITHIN, talk)
        .await
        .expect("dig ends in time")
        .expect("no panic")
        .expect("dig runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_resolved_through_a_udp_upstream() {
    for (program, package) in [("dnsmasq", "dnsmasq-base"), ("dig", "bind9-dnsutils")] {
        if !installed(program) {
            let why = format!("{program} is not installed (Debian: apt-get install {package})");
            return skipped(STORY, &why);
        }
    }
    let setup = Setup::new("host", "eu-1a");
    let (at, listen) = (
        SocketAddr::new(setup.address, DNS_PORT),
        SocketAddr::new(setup.address, LISTEN_PORT),
    );
    let scratch = Scratch::new();
    let mut server = Process::start("dnsmasq", dnsmasq(at), &scratch.path().join("dnsmasq"));
    until(PATIENCE, "dnsmasq listens", || async {
        match UdpSocket::bind(at).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(server.ended().is_none(), "{}", server.log());
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.resolver]\nprotocol = \"udp\"\nlisten = \"{listen}\"\nendpoints = [\"{at}\"]\nudp = {{ replies = 1 }}\n"
    )))
    .await;

    assert_eq!(said(ask(listen, "shop.test", "A")).await, ["10.1.2.3"]);
    assert_eq!(said(ask(listen, "shop.test", "AAAA")).await, ["fd00::7"]);
    assert_eq!(
        said(ask(listen, "shop.test", "TXT")).await,
        ["\"v=1 hello\""]
    );
    let mut many = said(ask(listen, "many.test", "A")).await;
    many.sort();
    many.dedup();
    assert_eq!(many.len(), MANY, "a large answer came whole: {many:?}");

    let mut asking = JoinSet::new();
    for number in 0..CLIENTS {
        asking.spawn(async move {
            let answer = said(ask(listen, &format!("host-{number}.test"), "A")).await;
            (answer, format!("10.3.0.{number}"))
        });
    }
    while let Some(answered) = asking.join_next().await {
        let (answer, wanted) = answered.expect("no panic");
        assert_eq!(answer, [wanted], "each client got its own answer");
    }
    let rows = sidecar.endpoints("resolver").await.expect("a listing");
    assert!(rows.iter().all(|row| row.usable), "{rows:?}");
}
