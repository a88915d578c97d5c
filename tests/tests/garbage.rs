//! Nonsense on every port: no panic, no growth, a counter that goes up, and service as before.
//!
//! Not here: what exactly is wrong with a byte (the unit tests beside each parser).

use std::{net::SocketAddr, time::Duration};

use mesh_tests::{http::raw, mesh, sidecar::Sidecar};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UdpSocket},
};

/// How much a sidecar may grow while it is being shouted at.
const GROWTH_KIB_MAX: u64 = 12 << 10;

/// Connections that begin a request and never go on: a third for each port, below what an admin port holds open.
const HALF_OPEN: usize = 300;

/// A cheap sequence of bytes that looks like nothing; the seed makes it the same in every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(step).collect()
}

/// Beginnings that get past the first look of a parser.
const OPENINGS: [&[u8]; 8] = [
    b"",
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\nHost: shop.mesh\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: shop.mesh\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\xff\xff\x04\x00\x00\x00\x00\x00",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x01\x00\x00",
];

async fn shout_over_tcp(at: SocketAddr, rounds: u64) {
    for round in 0..rounds {
        let mut shouts = tokio::task::JoinSet::new();
        for (number, opening) in OPENINGS.into_iter().enumerate() {
            let mut bytes = opening.to_vec();
            let seed = round * 100 + number as u64;
            bytes.extend(noise(seed, 1 + (seed as usize * 977) % 40_000));
            shouts.spawn(async move { raw(at, &bytes, Duration::from_millis(300)).await });
        }
        while shouts.join_next().await.is_some() {}
    }
}

async fn shout_over_udp(at: SocketAddr, datagrams: u64) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    for seed in 0..datagrams {
        let mut bytes = noise(seed, (seed as usize * 31) % 1400);
        if seed % 3 == 0 && !bytes.is_empty() {
            bytes[0] = 1;
        }
        let _ = socket.send_to(&bytes, at).await;
        if seed % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// What each kind of port counts when it does not understand.
const COUNTERS: [&str; 3] = [
    "starling_client_faults_total",
    "starling_admin_refused_total",
    "starling_gossip_refused_total",
];

async fn counted(sidecar: &Sidecar) -> [f64; 3] {
    let mut counts = [0.0; 3];
    for (count, name) in counts.iter_mut().zip(COUNTERS) {
        *count = sidecar.metric(name).await;
    }
    counts
}

async fn shout_at_everything(sidecar: &Sidecar, rounds: u64) {
    let own_tcp = sidecar.port(7001);
    tokio::join!(
        shout_over_tcp(sidecar.outbound(), rounds),
        shout_over_tcp(sidecar.admin(), rounds),
        shout_over_tcp(sidecar.gossip(), rounds),
        shout_over_tcp(own_tcp, rounds),
        shout_over_udp(sidecar.gossip(), rounds * 400),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_on_every_port_is_counted_and_forgotten() {
    let mut hosts = mesh::shops(&["eu-1a", "eu-1b"], "").await;
    let address = hosts[0].sidecar.setup.address;
    let tables = hosts[0].sidecar.setup.tables.clone();
    hosts[0].sidecar.rewrite(&format!(
        "{tables}\n[upstream.shop-bytes]\nservice = \"shop\"\nprotocol = \"tcp\"\nlisten = \"{address}:7001\"\n"
    ));
    let asked = hosts[0].sidecar.order("/v1/reload", "").await;
    assert!(asked.expect("an answer").status < 300);
    let sidecar = &mut hosts[0].sidecar;

    // The first rounds warm pools and allocator up; growth is what comes after them.
    shout_at_everything(sidecar, 20).await;
    let (size, before) = (sidecar.process.resident_kib(), counted(sidecar).await);
    shout_at_everything(sidecar, 100).await;
    let mut half_open = Vec::new();
    for number in 0..HALF_OPEN {
        let ports = [sidecar.outbound(), sidecar.admin(), sidecar.gossip()];
        let mut stream = TcpStream::connect(ports[number % 3])
            .await
            .expect("it accepts");
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: sh").await;
        half_open.push(stream);
    }
    let grown = sidecar.process.resident_kib().saturating_sub(size);

    assert!(sidecar.process.ended().is_none(), "it died");
    assert!(
        !sidecar.process.log().contains("panicked"),
        "{}",
        sidecar.process.log()
    );
    println!(
        "grew by {grown} KiB from {size} KiB; counted {before:?}, now {:?}",
        counted(sidecar).await
    );
    assert!(grown < GROWTH_KIB_MAX, "grew by {grown} KiB from {size}");
    let after = counted(sidecar).await;
    for (name, (before, after)) in COUNTERS.iter().zip(before.into_iter().zip(after)) {
        assert!(after > before, "{name} did not go up: {before} to {after}");
    }
    for _ in 0..20 {
        let answer = sidecar.get("shop.mesh", "/").await.expect("an answer");
        assert_eq!(answer.status, 200);
    }
    drop(half_open);
    let members = sidecar.members().await.expect("a listing");
    assert_eq!(members.len(), 2, "{members:?}");
    assert!(
        members.iter().all(|(_, state)| state == "alive"),
        "{members:?}"
    );
}
