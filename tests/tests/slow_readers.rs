//! What one client's connection of HTTP/2 makes a sidecar hold with a hundred streams that stand still: large answers that
//! it does not take, each in another way, and bodies that an endpoint does not take.
//!
//! Not here: floods, which move more than they should (`http2.rs`), and how long a slow reader is borne with (the proxy's
//! own tests).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_tests::{
    PATIENCE,
    frames::{Client, END_HEADERS, END_STREAM, block, frame, get, kind::*},
    sidecar::{Setup, Sidecar},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::Instant,
};

/// Streams of the one connection, as many as it may have.
const STREAMS: u32 = 100;
/// Bytes of an answer: more than sockets hold, and than may be held.
const ANSWER_BYTES: usize = 8 << 20;
/// What one connection may make a sidecar hold, in KiB.
const HELD_KIB_MAX: u64 = 8 << 10;
/// What the endpoints' sockets hold.
const SOCKET_BYTES: u32 = 64 * 1024;
/// Requests that are answered beside it before the next look.
const BESIDE: usize = 20;
/// What the other side may send of one stream unless it is told otherwise (RFC 9113, 6.9.2).
const WINDOW_BYTES: u32 = 65_535;
/// For nothing more to come.
const QUIET: Duration = Duration::from_secs(1);

/// Answers every request with many bytes, and counts those that were taken from it.
async fn large(listener: TcpListener, taken: Arc<AtomicU64>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, ANSWER_BYTES, Arc::clone(&taken)));
    }
}

async fn answer(mut stream: TcpStream, bytes: usize, taken: Arc<AtomicU64>) -> std::io::Result<()> {
    let mut asked = Vec::new();
    loop {
        asked.clear();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await?);
        }
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut left = bytes;
        while left > 0 {
            let count = stream
                .write(&[b'a'; 16 * 1024][..left.min(16 * 1024)])
                .await?;
            taken.fetch_add(count as u64, Ordering::Relaxed);
            left -= count;
        }
    }
}

struct World {
    sidecar: Sidecar,
    taken: Arc<AtomicU64>,
}

impl World {
    async fn start() -> World {
        let setup = Setup::new("host", "eu-1a");
        let bind = || {
            let socket = TcpSocket::new_v4().expect("a socket");
            // What the kernel holds is not what is looked at, and takes its time to fill.
            socket.set_send_buffer_size(SOCKET_BYTES).expect("a size");
            socket.set_recv_buffer_size(SOCKET_BYTES).expect("a size");
            socket
                .bind(SocketAddr::new(setup.address, 0))
                .expect("a port");
            let listener = socket.listen(1_024).expect("it listens");
            let at = listener.local_addr().expect("bound");
            (listener, at)
        };
        let [(shop, shop_at), (small, small_at), (deaf, deaf_at)] = [bind(), bind(), bind()];
        let taken = Arc::<AtomicU64>::default();
        tokio::spawn(large(shop, Arc::clone(&taken)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = small.accept().await {
                tokio::spawn(answer(stream, 2, Arc::default()));
            }
        });
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = deaf.accept().await {
                held.push(stream);
            }
        });
        let sidecar = Sidecar::ready(setup.with(&format!(
            "[upstream.shop]\nendpoints = [\"{shop_at}\"]\ntimeout = \"60s\"\n\
             [upstream.small]\nendpoints = [\"{small_at}\"]\n\
             [upstream.deaf]\nendpoints = [\"{deaf_at}\"]\ntimeout = \"60s\"\n"
        )))
        .await;
        let world = World { sidecar, taken };
        world.beside(200).await;
        world
    }

    fn address(&self) -> SocketAddr {
        self.sidecar.outbound()
    }

    /// So many requests of others are answered; the most that the sidecar held meanwhile.
    async fn beside(&self, count: usize) -> u64 {
        let mut highest = 0;
        for _ in 0..count {
            let answer = self
                .sidecar
                .get("small.mesh", "/")
                .await
                .expect("an answer");
            assert_eq!(answer.status, 200);
            highest = highest.max(self.sidecar.process.resident_kib());
        }
        highest
    }

    /// Until nothing more is taken from the endpoint; the most that the sidecar held.
    async fn settled(&self) -> u64 {
        let mut highest = 0;
        let ends = Instant::now() + PATIENCE;
        loop {
            let before = self.taken.load(Ordering::Relaxed);
            highest = highest.max(self.beside(BESIDE).await);
            if self.taken.load(Ordering::Relaxed) == before {
                return highest;
            }
            assert!(Instant::now() < ends, "the endpoint is read without end");
        }
    }
}

/// In which way nothing goes on.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Stall {
    /// The client never opens a window.
    NoWindow,
    /// It uses up the window it began with and opens no other.
    UsedUp,
    /// It opens all there are and reads nothing.
    Unread,
    /// It opens them by little.
    Drip,
    /// The endpoint does not read what the client sends.
    Upload,
}

fn stream_of(number: u32) -> u32 {
    2 * number + 1
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn opened(authority: &str, method: &'static str, flags: u8) -> Vec<u8> {
    let mut fields = get(authority);
    fields[0].1 = method;
    let block = block(&fields);
    let streams = (0..STREAMS).map(stream_of);
    streams
        .flat_map(|stream| frame(HEADERS, END_HEADERS | flags, stream, &block))
        .collect()
}

/// Reads until so many bytes of bodies came.
async fn data(client: &mut Client, bytes: usize) {
    let mut left = bytes;
    let ends = Instant::now() + PATIENCE;
    while left > 0 {
        let heard = client.hear(ends).await.expect("more of the answers");
        if heard.kind == DATA {
            left -= heard.payload.len();
        }
    }
}

impl Stall {
    async fn begin(self, client: &mut Client) {
        let said = match self {
            Stall::NoWindow | Stall::Drip => both(setting(4, 0), window(0, 1 << 30)),
            Stall::UsedUp => window(0, 1 << 30),
            Stall::Unread => both(setting(4, i32::MAX as u32), window(0, 1 << 30)),
            Stall::Upload => Vec::new(),
        };
        client.say(&said).await.expect("it reads");
        if self == Stall::Upload {
            return upload(client).await;
        }
        let asked = opened("shop.mesh", "GET", END_STREAM);
        client.say(&asked).await.expect("it reads");
        match self {
            Stall::NoWindow | Stall::Drip => {
                let mut heads = 0;
                client
                    .hear_until(PATIENCE, |heard| {
                        heads += u32::from(heard.kind == HEADERS);
                        heads == STREAMS
                    })
                    .await;
                assert_eq!(heads, STREAMS);
            }
            Stall::UsedUp => data(client, (STREAMS * WINDOW_BYTES) as usize).await,
            Stall::Unread | Stall::Upload => {}
        }
        if self == Stall::Drip {
            for _ in 0..DRIPS {
                let streams = (0..STREAMS).map(stream_of);
                let drops: Vec<u8> = streams
                    .flat_map(|stream| window(stream, DRIP_BYTES))
                    .collect();
                client.say(&drops).await.expect("it reads");
                data(client, (STREAMS * DRIP_BYTES) as usize).await;
            }
        }
    }
}

/// Windows that a dripping client opens of each stream.
const DRIPS: u32 = 20;
const DRIP_BYTES: u32 = 1_000;

fn both(first: Vec<u8>, second: Vec<u8>) -> Vec<u8> {
    [first, second].concat()
}

/// Sends on all streams as much as the windows allow, until none opens.
async fn upload(client: &mut Client) {
    const PIECE_BYTES: u32 = 16 * 1024;
    client
        .say(&opened("deaf.mesh", "POST", 0))
        .await
        .expect("it reads");
    let mut left = [WINDOW_BYTES; STREAMS as usize];
    let mut left_of_all = WINDOW_BYTES;
    let (mut sent, mut next) = (0_u64, 0);
    loop {
        let mut said = Vec::new();
        for _ in 0..STREAMS {
            if left[next] >= PIECE_BYTES && left_of_all >= PIECE_BYTES {
                said.extend(frame(
                    DATA,
                    0,
                    stream_of(next as u32),
                    &[b'u'; PIECE_BYTES as usize],
                ));
                left[next] -= PIECE_BYTES;
                left_of_all -= PIECE_BYTES;
                sent += u64::from(PIECE_BYTES);
            }
            next = (next + 1) % left.len();
        }
        client.say(&said).await.expect("it reads");
        // What was said opens windows; with nothing more to say, they are waited for.
        let wait = if said.is_empty() {
            QUIET
        } else {
            Duration::ZERO
        };
        let mut next_heard = client.hear(Instant::now() + wait).await;
        if said.is_empty() && next_heard.is_none() {
            println!("{sent} bytes were sent");
            return;
        }
        while let Some(heard) = next_heard {
            let number =
                |at: usize| u32::from_be_bytes(heard.payload[at..at + 4].try_into().expect("four"));
            match heard.kind {
                WINDOW_UPDATE if heard.stream == 0 => left_of_all += number(0),
                WINDOW_UPDATE => left[(heard.stream / 2) as usize] += number(0),
                SETTINGS => {
                    for at in (0..heard.payload.len()).step_by(6) {
                        if heard.payload[at..at + 2] == [0, 4] {
                            let more = number(at + 2) - WINDOW_BYTES;
                            left.iter_mut().for_each(|left| *left += more);
                        }
                    }
                }
                _ => {}
            }
            next_heard = client.hear(Instant::now()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_stand_still_cost_bounded_memory_and_hurt_nobody_else() {
    println!("| a hundred streams | KiB before | highest | after |");
    println!("|---|---|---|---|");
    let mut wrong = Vec::new();
    for stall in [
        Stall::NoWindow,
        Stall::UsedUp,
        Stall::Unread,
        Stall::Drip,
        Stall::Upload,
    ] {
        // Of its own, for memory once given out is seldom given back.
        let world = World::start().await;
        let before = world.sidecar.process.resident_kib();
        let mut client = Client::open(world.address()).await.expect("it listens");
        stall.begin(&mut client).await;
        let highest = world.settled().await;
        drop(client);
        world.beside(BESIDE).await;
        let after = world.sidecar.process.resident_kib();
        println!("| {stall:?} | {before} | {highest} | {after} |");
        if highest - before > HELD_KIB_MAX {
            wrong.push(format!("{stall:?}: {} KiB", highest - before));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
