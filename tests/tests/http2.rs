//! HTTP/2 frame by frame: what breaks a rule ends its stream or its connection and never reaches the backend; floods
//! cost bounded memory and leave other clients alone.
//!
//! Not here: HTTP/2 as programs speak it (`clients.rs`, `strangers.rs`), and HTTP/1.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_tests::{
    frames::{Client, END_HEADERS, END_STREAM, Heard, PADDED, block, frame, get, kind::*},
    sidecar::{Setup, Sidecar},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const AUTHORITY: &str = "shop.mesh";

/// Error codes (RFC 9113, section 7).
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;

/// What becomes of what a client said.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    /// The request reached the backend and was answered; the connection lives.
    Answered,
    /// The connection lives, nothing reached the backend.
    Borne,
    /// The stream ends with one of these codes, or with an answer other than 200; nothing reached the backend. A
    /// receiver may end the whole connection instead (RFC 9113, 5.4.1), and the h2 crate often does.
    StreamEnds(&'static [u32]),
    /// The connection ends, saying one of these codes; nothing reached the backend.
    ConnectionEnds(&'static [u32]),
}
use Fate::*;

/// A backend that counts whole requests and answers each with two bytes.
async fn counting(listener: TcpListener, requests: Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, Arc::clone(&requests)));
    }
}

async fn answer(mut stream: TcpStream, requests: Arc<AtomicUsize>) {
    let mut unread = Vec::new();
    let mut piece = [0; 8192];
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        unread.extend_from_slice(&piece[..count]);
        while let Some(end) = end_of_request(&unread) {
            unread.drain(..end);
            requests.fetch_add(1, Ordering::Relaxed);
            let said = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            if stream.write_all(said).await.is_err() {
                return;
            }
        }
    }
}

/// Where the first request ends, if its head and as much body as its length says are there.
fn end_of_request(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(0, |length| length.trim().parse().expect("a length"));
    (bytes.len() >= head + length).then_some(head + length)
}

/// A sidecar before a counting backend (`shop`) and one that takes every connection and never reads (`deaf`).
struct World {
    sidecar: Sidecar,
    requests: Arc<AtomicUsize>,
}

impl World {
    async fn start() -> World {
        let setup = Setup::new("host", "eu-1a");
        let listener = TcpListener::bind((setup.address, 0)).await.expect("a port");
        let deaf = TcpListener::bind((setup.address, 0)).await.expect("a port");
        let (at, deaf_at) = (listener.local_addr(), deaf.local_addr());
        let (at, deaf_at) = (at.expect("bound"), deaf_at.expect("bound"));
        let requests = Arc::new(AtomicUsize::new(0));
        tokio::spawn(counting(listener, Arc::clone(&requests)));
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = deaf.accept().await {
                held.push(stream);
            }
        });
        let sidecar = Sidecar::ready(setup.with(&format!(
            "[upstream.shop]\nendpoints = [\"{at}\"]\n[upstream.deaf]\nendpoints = [\"{deaf_at}\"]\n"
        )))
        .await;
        World { sidecar, requests }
    }

    fn address(&self) -> SocketAddr {
        self.sidecar.outbound()
    }

    /// Says `bytes` on a fresh connection, then a PING, and tells what became of it.
    async fn fate(&self, bytes: &[u8], expected: Fate) -> Result<(), String> {
        let before = self.requests.load(Ordering::Relaxed);
        let mut client = Client::open(self.address()).await.expect("it listens");
        // Either may find the connection closed: then the frames that came back tell.
        let _ = client.say(bytes).await;
        let _ = client.say(&frame(PING, 0, 0, b"are you?")).await;
        let is_pong = |heard: &Heard| heard.kind == PING && heard.payload == b"are you?";
        let is_end = |heard: &Heard| {
            heard.kind == RST_STREAM
                || (heard.kind == HEADERS) && heard.flags & END_STREAM != 0
                || heard.kind == DATA && heard.flags & END_STREAM != 0
        };
        let wants_end = matches!(expected, Answered | StreamEnds(_));
        let (mut ponged, mut ended) = (false, false);
        let heard = client
            .hear_until(Duration::from_secs(5), |heard| {
                ponged |= is_pong(heard);
                ended |= is_end(heard);
                ponged && (ended || !wants_end)
            })
            .await;
        let reached = self.requests.load(Ordering::Relaxed) - before;
        let went_away = heard.iter().find(|heard| heard.kind == GOAWAY);
        let reset = heard.iter().find(|heard| heard.kind == RST_STREAM);
        // 200 is field 8 of the static table (RFC 7541, appendix A); an update of the dynamic table may stand before it.
        let head = heard.iter().find(|heard| heard.kind == HEADERS);
        let is_200 = head.is_some_and(|head| {
            head.payload.iter().find(|byte| **byte & 0xe0 != 0x20) == Some(&0x88)
        });
        let one_of = |codes: &[u32], frame: Option<&Heard>| {
            frame
                .and_then(Heard::code)
                .is_some_and(|code| codes.contains(&code))
        };
        let is_so = match expected {
            Answered => ponged && is_200 && reached == 1,
            Borne => ponged && reached == 0 && went_away.is_none(),
            StreamEnds(codes) => {
                let stream_ended = one_of(codes, reset) || head.is_some() && !is_200;
                reached == 0 && (ponged && stream_ended || one_of(codes, went_away))
            }
            ConnectionEnds(codes) => !ponged && reached == 0 && one_of(codes, went_away),
        };
        if is_so {
            return Ok(());
        }
        Err(format!(
            "expected {expected:?}; reached the backend {reached} times, pong {ponged}, heard {heard:?}"
        ))
    }
}

fn request(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
}

fn whole(stream: u32) -> Vec<u8> {
    request(stream, END_STREAM, &get(AUTHORITY))
}

/// `get` with one field more, or one changed.
fn with(name: &'static str, value: &'static str) -> Vec<u8> {
    let mut fields = get(AUTHORITY);
    match fields.iter_mut().find(|(held, _)| *held == name) {
        Some(field) => field.1 = value,
        None => fields.push((name, value)),
    }
    request(1, END_STREAM, &fields)
}

fn without(name: &str) -> Vec<u8> {
    let mut fields = get(AUTHORITY);
    fields.retain(|(held, _)| *held != name);
    request(1, END_STREAM, &fields)
}

fn post(length: &'static str, bodies: &[(&[u8], u8)]) -> Vec<u8> {
    let mut fields = get(AUTHORITY);
    fields[0].1 = "POST";
    fields.push(("content-length", length));
    let mut bytes = request(1, 0, &fields);
    for (body, flags) in bodies {
        bytes.extend(frame(DATA, *flags, 1, body));
    }
    bytes
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend(value.to_be_bytes());
    frame(SETTINGS, 0, 0, &payload)
}

fn both(first: Vec<u8>, second: Vec<u8>) -> Vec<u8> {
    [first, second].concat()
}

/// What is said, and what becomes of it. A case that a rule lets end either way names both codes.
fn cases() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let protocol = ConnectionEnds(&[PROTOCOL_ERROR]);
    // The h2 crate says PROTOCOL_ERROR for several faults that have codes of their own; the connection ends all the same.
    let size = ConnectionEnds(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]);
    let compression = ConnectionEnds(&[COMPRESSION_ERROR, PROTOCOL_ERROR]);
    let flow = ConnectionEnds(&[FLOW_CONTROL_ERROR, PROTOCOL_ERROR]);
    let malformed = StreamEnds(&[PROTOCOL_ERROR]);
    let head = block(&get(AUTHORITY));
    let (front, back) = head.split_at(10);
    let padded = |length: u8, rest: &[u8]| [&[length], rest].concat();
    let priority = |stream: u32, on: u32| {
        frame(
            PRIORITY,
            0,
            stream,
            &[&on.to_be_bytes()[..], &[16]].concat(),
        )
    };
    vec![
        ("a request", whole(1), Answered),
        ("a request on a later stream", whole(7), Answered),
        // Streams and their states (5.1).
        (
            "HEADERS on stream 0",
            request(0, END_STREAM, &get(AUTHORITY)),
            protocol,
        ),
        ("HEADERS on an even stream", whole(2), protocol),
        ("DATA on stream 0", frame(DATA, 0, 0, b"x"), protocol),
        ("DATA on an idle stream", frame(DATA, 0, 5, b"x"), protocol),
        (
            "RST_STREAM on an idle stream",
            frame(RST_STREAM, 0, 5, &[0; 4]),
            protocol,
        ),
        (
            "RST_STREAM on stream 0",
            frame(RST_STREAM, 0, 0, &[0; 4]),
            protocol,
        ),
        (
            "RST_STREAM of three bytes",
            both(
                request(1, 0, &get("nobody.mesh")),
                frame(RST_STREAM, 0, 1, &[0; 3]),
            ),
            size,
        ),
        (
            "WINDOW_UPDATE on an idle stream",
            frame(WINDOW_UPDATE, 0, 5, &[0, 0, 0, 9]),
            protocol,
        ),
        (
            "PUSH_PROMISE from a client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            protocol,
        ),
        // CONTINUATION (6.10).
        (
            "a header block in two frames",
            both(
                frame(HEADERS, END_STREAM, 1, front),
                frame(CONTINUATION, END_HEADERS, 1, back),
            ),
            Answered,
        ),
        (
            "CONTINUATION out of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &head),
            protocol,
        ),
        (
            "CONTINUATION after the end of its block",
            both(
                request(1, 0, &get("nobody.mesh")),
                frame(CONTINUATION, END_HEADERS, 1, b""),
            ),
            protocol,
        ),
        (
            "CONTINUATION of another stream",
            both(
                frame(HEADERS, END_STREAM, 1, front),
                frame(CONTINUATION, END_HEADERS, 3, back),
            ),
            protocol,
        ),
        (
            "a frame inside a header block",
            both(
                frame(HEADERS, END_STREAM, 1, front),
                frame(PRIORITY, 0, 1, &[0; 5]),
            ),
            protocol,
        ),
        (
            "DATA inside a header block",
            both(
                frame(HEADERS, 0, 1, front),
                frame(DATA, END_STREAM, 1, b"x"),
            ),
            protocol,
        ),
        // Sizes (4.2).
        ("a frame over 16 KiB", frame(DATA, 0, 1, &[0; 16_385]), size),
        (
            "a HEADERS frame over 16 KiB",
            frame(HEADERS, END_HEADERS, 1, &[0; 16_385]),
            size,
        ),
        (
            "an unknown frame over 16 KiB",
            frame(0x20, 0, 0, &[0; 16_385]),
            size,
        ),
        ("an unknown frame", frame(0x20, 0xff, 0, b"whatever"), Borne),
        ("PING of seven bytes", frame(PING, 0, 0, &[0; 7]), size),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8]), protocol),
        (
            "a PING nobody asked to be answered",
            frame(PING, 1, 0, &[7; 8]),
            Borne,
        ),
        ("GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), protocol),
        (
            "WINDOW_UPDATE of three bytes",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            size,
        ),
        (
            "WINDOW_UPDATE by nothing",
            frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
            protocol,
        ),
        (
            "WINDOW_UPDATE beyond 2^31 - 1",
            frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
            flow,
        ),
        // SETTINGS (6.5).
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), protocol),
        (
            "SETTINGS of five bytes",
            frame(SETTINGS, 0, 0, &[0; 5]),
            size,
        ),
        (
            "an acknowledgement with content",
            frame(SETTINGS, 1, 0, &[0; 6]),
            size,
        ),
        ("ENABLE_PUSH of 2", setting(2, 2), protocol),
        ("a window of 2^31", setting(4, 1 << 31), flow),
        ("frames of 100 bytes", setting(5, 100), protocol),
        ("frames of 2^24", setting(5, 1 << 24), protocol),
        (
            "an unknown setting",
            both(setting(0x99, 7), whole(1)),
            Answered,
        ),
        ("no header table", both(setting(1, 0), whole(1)), Answered),
        // Priority (5.3): deprecated, borne where it is well-formed.
        ("PRIORITY", both(priority(1, 0), whole(1)), Answered),
        ("PRIORITY on an idle stream", priority(9, 3), Borne),
        ("PRIORITY on stream 0", priority(0, 1), protocol),
        // Padding (6.1, 6.2).
        (
            "padding",
            frame(
                HEADERS,
                END_STREAM | END_HEADERS | PADDED,
                1,
                &[padded(4, &head), vec![0; 4]].concat(),
            ),
            Answered,
        ),
        (
            "more padding than frame",
            frame(
                HEADERS,
                END_STREAM | END_HEADERS | PADDED,
                1,
                &padded(255, &head),
            ),
            protocol,
        ),
        (
            "DATA with more padding than frame",
            both(
                request(1, 0, &get("nobody.mesh")),
                frame(DATA, PADDED, 1, &padded(9, b"x")),
            ),
            protocol,
        ),
        // Header compression (4.3): the state is lost, so is the connection.
        (
            "an index of nothing",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff, 0x7f]),
            compression,
        ),
        (
            "index 0",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x80]),
            compression,
        ),
        (
            "a table larger than allowed",
            frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &[0x3f, 0xff, 0xff, 0x03],
            ),
            compression,
        ),
        (
            "a block that ends within a field",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x00, 0x7f]),
            compression,
        ),
        // Fields (8.2, 8.3): never passed on.
        ("no method", without(":method"), malformed),
        ("no path", without(":path"), malformed),
        ("no scheme", without(":scheme"), malformed),
        ("no authority", without(":authority"), malformed),
        ("an empty path", with(":path", ""), malformed),
        ("a path that is none", with(":path", "no slash"), malformed),
        ("a method with a space", with(":method", "GET /"), malformed),
        (
            "an authority with a line break",
            with(":authority", "shop.mesh\r\nx: y"),
            malformed,
        ),
        ("an unknown pseudo-field", with(":who", "me"), malformed),
        (
            "an answer's pseudo-field",
            with(":status", "200"),
            malformed,
        ),
        ("an upper-case name", with("X-Up", "1"), malformed),
        ("a name with a colon", with("x:y", "1"), malformed),
        ("a name with a space", with("x y", "1"), malformed),
        ("an empty name", with("", "1"), malformed),
        (
            "a value with a line break",
            with("x-a", "1\r\nx-b: 2"),
            malformed,
        ),
        ("a value with NUL", with("x-a", "1\0"), malformed),
        ("Connection", with("connection", "close"), malformed),
        (
            "Transfer-Encoding",
            with("transfer-encoding", "chunked"),
            malformed,
        ),
        ("Keep-Alive", with("keep-alive", "timeout=5"), malformed),
        (
            "Proxy-Connection",
            with("proxy-connection", "close"),
            malformed,
        ),
        ("Upgrade", with("upgrade", "websocket"), malformed),
        ("TE other than trailers", with("te", "gzip"), malformed),
        (
            "a Host that disagrees",
            with("host", "other.mesh"),
            malformed,
        ),
        (
            "a Content-Length that is no number",
            with("content-length", "five"),
            malformed,
        ),
        (
            "a Content-Length without a body",
            with("content-length", "5"),
            malformed,
        ),
        (
            "a pseudo-field twice",
            request(
                1,
                END_STREAM,
                &[get(AUTHORITY), vec![(":path", "/x")]].concat(),
            ),
            malformed,
        ),
        (
            "a pseudo-field after others",
            request(
                1,
                END_STREAM,
                &[vec![("x-a", "1")], get(AUTHORITY)].concat(),
            ),
            malformed,
        ),
        (
            "two lengths",
            request(
                1,
                END_STREAM,
                &[
                    get(AUTHORITY),
                    vec![("content-length", "0"), ("content-length", "1")],
                ]
                .concat(),
            ),
            malformed,
        ),
        (
            "CONNECT to a name outside the mesh",
            request(
                1,
                0,
                &[(":method", "CONNECT"), (":authority", "shop.example:80")],
            ),
            StreamEnds(&[PROTOCOL_ERROR]),
        ),
        // After the end of a stream (5.1). The first request is to nobody, so nothing reaches the backend.
        (
            "DATA after END_STREAM",
            both(
                request(1, END_STREAM, &get("nobody.mesh")),
                frame(DATA, 0, 1, b"x"),
            ),
            StreamEnds(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        (
            "a second HEADERS of an ended stream",
            both(
                request(1, END_STREAM, &get("nobody.mesh")),
                request(1, END_STREAM, &get("nobody.mesh")),
            ),
            StreamEnds(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        (
            "a lower stream than before",
            both(
                request(5, END_STREAM, &get("nobody.mesh")),
                request(3, END_STREAM, &get("nobody.mesh")),
            ),
            ConnectionEnds(&[PROTOCOL_ERROR, STREAM_CLOSED]),
        ),
        // A body that is not what its head said. Its head may have reached the backend, its end never does.
        (
            "a body longer than its length",
            post("2", &[(b"abc", END_STREAM)]),
            StreamEnds(&[PROTOCOL_ERROR]),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_a_rule_never_reaches_the_backend() {
    let world = World::start().await;
    let mut wrong = Vec::new();
    let cases = cases();
    let count = cases.len();
    for (name, bytes, expected) in cases {
        if let Err(why) = world.fate(&bytes, expected).await {
            wrong.push(format!("{name}: {why}"));
        }
    }
    println!("{count} cases");
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// How much a sidecar may grow while it is flooded.
const GROWTH_KIB_MAX: u64 = 8 << 10;
/// For one flood to come to its end.
const FLOOD_WITHIN: Duration = Duration::from_secs(20);

/// One flood: what is said on each of several connections at once, again and again, until the other side has enough.
struct Flood {
    name: &'static str,
    /// Said once.
    first: Vec<u8>,
    /// Said again and again; gets the number of the round.
    again: fn(u32) -> Vec<u8>,
    rounds: u32,
    /// What comes back is read; else it piles up.
    reads: bool,
    /// The connection must be closed before the rounds are over.
    is_cut: bool,
}

fn stream_of(round: u32) -> u32 {
    2 * round + 1
}

fn floods() -> Vec<Flood> {
    vec![
        Flood {
            name: "rapid reset",
            first: Vec::new(),
            again: |round| {
                let open = request(stream_of(round), END_STREAM, &get("deaf.mesh"));
                both(open, frame(RST_STREAM, 0, stream_of(round), &[0, 0, 0, 8]))
            },
            rounds: 50_000,
            reads: true,
            is_cut: true,
        },
        Flood {
            name: "streams reset by the sidecar",
            first: Vec::new(),
            // Each is malformed, so that it is the sidecar that resets it (known as MadeYouReset).
            again: |round| {
                let open = request(stream_of(round), 0, &get("deaf.mesh"));
                both(open, frame(WINDOW_UPDATE, 0, stream_of(round), &[0; 4]))
            },
            rounds: 50_000,
            reads: true,
            is_cut: true,
        },
        Flood {
            name: "CONTINUATION without end",
            first: frame(HEADERS, END_STREAM, 1, &block(&get(AUTHORITY))),
            again: |round| {
                let value = "v".repeat(1_000);
                frame(
                    CONTINUATION,
                    0,
                    1,
                    &block(&[(&format!("x-{round}"), &value)]),
                )
            },
            rounds: 20_000,
            reads: true,
            is_cut: true,
        },
        Flood {
            name: "empty CONTINUATION without end",
            first: frame(HEADERS, END_STREAM, 1, &block(&get(AUTHORITY))),
            again: |_| frame(CONTINUATION, 0, 1, &[]),
            rounds: 100_000,
            reads: true,
            is_cut: true,
        },
        Flood {
            name: "PING, answers unread",
            first: Vec::new(),
            again: |_| frame(PING, 0, 0, b"are you?").repeat(1_000),
            rounds: 1_000,
            reads: false,
            is_cut: true,
        },
        Flood {
            name: "SETTINGS, answers unread",
            first: Vec::new(),
            again: |_| setting(4, 65_535).repeat(1_000),
            rounds: 1_000,
            reads: false,
            is_cut: true,
        },
        Flood {
            name: "PING, answers read",
            first: Vec::new(),
            again: |_| frame(PING, 0, 0, b"are you?").repeat(16),
            rounds: 100_000,
            reads: true,
            is_cut: true,
        },
        Flood {
            name: "SETTINGS, answers read",
            first: Vec::new(),
            again: |_| setting(4, 65_535).repeat(16),
            rounds: 100_000,
            reads: true,
            is_cut: true,
        },
        Flood {
            name: "WINDOW_UPDATE",
            first: request(1, 0, &get("deaf.mesh")),
            again: |_| frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(16),
            rounds: 100_000,
            reads: true,
            is_cut: true,
        },
        Flood {
            name: "PRIORITY",
            first: Vec::new(),
            again: |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]).repeat(16),
            rounds: 100_000,
            reads: true,
            is_cut: true,
        },
        Flood {
            name: "empty DATA",
            first: request(1, 0, &get("deaf.mesh")),
            again: |_| frame(DATA, 0, 1, &[]).repeat(1_000),
            rounds: 1_000,
            reads: true,
            is_cut: true,
        },
        Flood {
            name: "HPACK bomb",
            // One field of 4,000 bytes enters the dynamic table, then is named by one byte, 16,000 times a request.
            first: {
                let mut block = block(&get(AUTHORITY));
                block.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
                block.extend([b'v'; 4_000]);
                frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)
            },
            again: |round| {
                let mut block = block(&get(AUTHORITY));
                block.extend([0xbe; 16_000]);
                frame(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    stream_of(round + 1),
                    &block,
                )
            },
            rounds: 2_000,
            reads: true,
            is_cut: true,
        },
    ]
}

impl Flood {
    /// Pours; yields whether the other side closed before the end.
    async fn pour(&self, address: SocketAddr) -> bool {
        let Ok(mut client) = Client::open(address).await else {
            return true;
        };
        let pouring = async {
            client.say(&self.first).await?;
            for round in 0..self.rounds {
                client.say(&(self.again)(round)).await?;
                if self.reads && round % 16 == 0 {
                    client.skip_what_came()?;
                }
            }
            std::io::Result::Ok(())
        };
        // A flood whose answers nobody reads may stand still for ever: that is as good an end as any.
        matches!(
            tokio::time::timeout(FLOOD_WITHIN / 4, pouring).await,
            Ok(Err(_))
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_cost_bounded_memory_and_hurt_nobody_else() {
    let mut world = World::start().await;
    let address = world.address();
    for _ in 0..200 {
        let answer = world.sidecar.get(AUTHORITY, "/").await.expect("an answer");
        assert_eq!(answer.status, 200);
    }
    let at_rest = world.sidecar.process.resident_kib();
    println!("| flood | KiB before | highest | after | cut | others answered |");
    println!("|---|---|---|---|---|---|");
    for flood in floods() {
        let before = world.sidecar.process.resident_kib();
        let pours = async {
            tokio::join!(
                flood.pour(address),
                flood.pour(address),
                flood.pour(address)
            )
        };
        let mut pours = std::pin::pin!(pours);
        let (mut highest, mut answered) = (before, 0);
        let cut = loop {
            tokio::select! {
                cut = &mut pours => break cut,
                answer = world.sidecar.get(AUTHORITY, "/") => {
                    let answer = answer.unwrap_or_else(|why| panic!("{}: {why}", flood.name));
                    assert_eq!(answer.status, 200, "{}", flood.name);
                    answered += 1;
                    highest = highest.max(world.sidecar.process.resident_kib());
                }
            }
        };
        // A flood that is cut at once leaves no time to be answered beside it.
        let answer = world.sidecar.get(AUTHORITY, "/").await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", flood.name);
        let after = world.sidecar.process.resident_kib();
        highest = highest.max(after);
        println!(
            "| {} | {before} | {highest} | {after} | {cut:?} | {answered} |",
            flood.name
        );
        assert!(
            highest < at_rest + GROWTH_KIB_MAX,
            "{}: {highest} KiB from {at_rest}",
            flood.name
        );
        if flood.is_cut {
            assert_eq!(cut, (true, true, true), "{}", flood.name);
        }
    }
    assert!(world.sidecar.process.ended().is_none(), "it died");
}

/// Cancelling every call at once is no flood: gRPC clients do so when their own caller goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_calls_cancelled_at_once_leave_the_connection_alone() {
    let world = World::start().await;
    let mut client = Client::open(world.address()).await.expect("it listens");
    for burst in 0..5 {
        let numbers = || (burst * 100..burst * 100 + 100).map(stream_of);
        let mut said: Vec<u8> = numbers().flat_map(whole).collect();
        said.extend(numbers().flat_map(|stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])));
        said.extend(frame(PING, 0, 0, b"are you?"));
        client.say(&said).await.expect("it reads");
        let heard = client
            .hear_until(Duration::from_secs(10), |heard| heard.kind == PING)
            .await;
        assert!(heard.iter().all(|heard| heard.kind != GOAWAY), "{heard:?}");
        assert_eq!(
            heard.last().map(|heard| heard.kind),
            Some(PING),
            "burst {burst}"
        );
    }
}

/// Answers that nobody reads are not fetched either: a window of nothing bounds what the sidecar holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_opens_no_window_makes_nobody_hold_its_answers() {
    let world = World::start().await;
    let mut client = Client::open(world.address()).await.expect("it listens");
    client.say(&setting(4, 0)).await.expect("it reads");
    let before = world.sidecar.process.resident_kib();
    for number in 0..100 {
        client
            .say(&whole(stream_of(number)))
            .await
            .expect("it reads");
    }
    let heads = client
        .hear_until(Duration::from_secs(10), {
            let mut heads = 0;
            move |heard| {
                heads += usize::from(heard.kind == HEADERS);
                heads == 100
            }
        })
        .await;
    assert!(heads.iter().all(|heard| heard.kind != DATA), "{heads:?}");
    assert_eq!(
        heads.iter().filter(|heard| heard.kind == HEADERS).count(),
        100
    );
    // The 101st is refused, not queued.
    client.say(&whole(201)).await.expect("it reads");
    let more = client
        .hear_until(Duration::from_secs(10), |heard| heard.stream == 201)
        .await;
    assert_eq!(
        more.last().and_then(Heard::code),
        Some(REFUSED_STREAM),
        "{more:?}"
    );
    let grown = world.sidecar.process.resident_kib().saturating_sub(before);
    println!("100 unread answers cost {grown} KiB");
    assert!(grown < GROWTH_KIB_MAX, "{grown}");
    // A window for one of them, and it comes.
    client
        .say(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 2]))
        .await
        .expect("it reads");
    let body = client
        .hear_until(Duration::from_secs(10), |heard| heard.kind == DATA)
        .await;
    assert_eq!(
        body.last().map(|heard| heard.payload.as_slice()),
        Some(&b"ok"[..])
    );
}

/// A body that the endpoint does not read is not taken from the client either, and one that sends all the same is cut.
#[tokio::test(flavor = "multi_thread")]
async fn flow_control_reaches_from_a_deaf_endpoint_to_the_client() {
    let world = World::start().await;
    let mut client = Client::open(world.address()).await.expect("it listens");
    let mut fields = get("deaf.mesh");
    fields[0].1 = "POST";
    client.say(&request(1, 0, &fields)).await.expect("it reads");
    let before = world.sidecar.process.resident_kib();
    let mut sent = 0;
    let mut said = Ok(());
    while said.is_ok() && sent < 256 << 20 {
        said = client.say(&frame(DATA, 0, 1, &[0; 16_384])).await;
        sent += 16_384;
    }
    let heard = client.hear_until(Duration::from_secs(5), |_| false).await;
    let code = heard.iter().find_map(Heard::code);
    let grown = world.sidecar.process.resident_kib().saturating_sub(before);
    println!("{sent} bytes against the window cost {grown} KiB; told {code:?}");
    assert!(grown < GROWTH_KIB_MAX, "{grown}");
    assert!(sent < 256 << 20, "nobody stopped it");
    // The end may overtake the words for it: a reset connection loses what was not read yet.
    assert!(matches!(code, None | Some(FLOW_CONTROL_ERROR)), "{heard:?}");
}
