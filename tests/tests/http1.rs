//! HTTP/1 byte by byte: what is malformed or ambiguous never reaches a backend, what is sound reaches it once.
//!
//! Not here: the codec alone (the unit tests of `proxy/http1`), HTTP/2 frame by frame (`http2.rs`).

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_tests::{
    PATIENCE,
    http::raw,
    sidecar::{Setup, Sidecar},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Conversations held at once.
const AT_ONCE: usize = 16;
/// What follows every malformed request on its connection: it must never be taken for a request.
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: shop.mesh\r\n\r\n";

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// The sidecar answers with this status and closes; nothing reaches the backend.
    Refused(u16),
    /// It reaches the backend whole and once.
    Passed,
    /// The backend may see its beginning, but never a whole request; the client sees no success.
    Broken,
}

/// A backend that keeps whole requests as they came, and answers each.
async fn record(listener: TcpListener, seen: Arc<Mutex<Vec<String>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Some(request) = whole_request(&mut stream).await {
                seen.lock().expect("no panic").push(request);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Backend: Yes\r\n\r\nok";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Reads one head and its body as its framing says; `None` when the connection ends first.
async fn whole_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&bytes).to_lowercase();
    if head.contains("\r\ntransfer-encoding: chunked\r\n") {
        let from = bytes.len();
        // No chunk of these tests holds an empty line.
        while !bytes[from..].ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await.ok()?);
        }
    } else if let Some((_, rest)) = head.split_once("\r\ncontent-length: ") {
        let digits = rest.split("\r\n").next().unwrap_or_default();
        let mut body = vec![0; digits.parse().expect("a sound length")];
        stream.read_exact(&mut body).await.ok()?;
        bytes.extend(body);
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

struct Case {
    name: String,
    bytes: Vec<u8>,
    fate: Fate,
}

fn case(name: impl Into<String>, bytes: impl AsRef<[u8]>, fate: Fate) -> Case {
    Case {
        name: name.into(),
        bytes: bytes.as_ref().to_vec(),
        fate,
    }
}

/// A GET with these fields behind its Host.
fn with_fields(fields: impl AsRef<[u8]>) -> Vec<u8> {
    let start = b"GET /it HTTP/1.1\r\nHost: shop.mesh\r\n";
    [start, fields.as_ref(), b"\r\n"].concat()
}

/// A POST with these fields and whatever follows the head.
fn with_body(fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let start = format!("POST /it HTTP/1.1\r\nHost: shop.mesh\r\n{fields}\r\n");
    [start.as_bytes(), body.as_ref()].concat()
}

fn request_lines() -> Vec<Case> {
    let bad = Fate::Refused(400);
    let mut cases = Vec::new();
    for line in [
        "GET /it",
        "GET  /it HTTP/1.1",
        "GET /it  HTTP/1.1",
        " GET /it HTTP/1.1",
        "GET\t/it HTTP/1.1",
        "GET /it\tHTTP/1.1",
        "GET /it HTTP/1.1 ",
        "GET /it HTTP/1.1 x",
        "GET /it HTTP/1.2",
        "GET /it HTTP/2.0",
        "GET /it HTTP/0.9",
        "GET /it http/1.1",
        "GET /it HTTP/1",
        "GET /it HTTP/1.11",
        "GET /it HTTP/ 1.1",
        "GET /it HTTP/11",
        "GET /it HTTPS/1.1",
        "GET /it ICY/1.1",
        "/it HTTP/1.1",
        "GET HTTP/1.1",
        "GET  HTTP/1.1",
        "G{T /it HTTP/1.1",
        "G(T /it HTTP/1.1",
        "G@T /it HTTP/1.1",
        "GET: /it HTTP/1.1",
        "GET, /it HTTP/1.1",
        "GET it HTTP/1.1",
        "GET ?it HTTP/1.1",
        "GET * HTTP/1.1",
        "GET shop.mesh:80 HTTP/1.1",
        "GET //\x7f HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /it#part HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET ftp://shop.mesh/ HTTP/1.1",
        "GET http:///it HTTP/1.1",
        "GET http://me@shop.mesh/ HTTP/1.1",
        "GET http:shop.mesh/ HTTP/1.1",
        "GET http://shop.mesh:port/ HTTP/1.1",
        "OPTIONS it HTTP/1.1",
        "CONNECT shop.mesh HTTP/1.1",
        "CONNECT /it HTTP/1.1",
        "CONNECT http://shop.mesh/ HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        cases.push(case(
            line,
            format!("{line}\r\nHost: shop.mesh\r\n\r\n"),
            bad,
        ));
    }
    for byte in [0u8, 1, 7, 8, 11, 12, 13, 27, 127] {
        let line = [
            b"GET /i",
            &[byte][..],
            b"t HTTP/1.1\r\nHost: shop.mesh\r\n\r\n",
        ]
        .concat();
        cases.push(case(format!("byte {byte} in the target"), line, bad));
        let line = [
            b"GE",
            &[byte][..],
            b"T /it HTTP/1.1\r\nHost: shop.mesh\r\n\r\n",
        ]
        .concat();
        cases.push(case(format!("byte {byte} in the method"), line, bad));
    }
    cases.push(case(
        "line feeds alone",
        "GET /it HTTP/1.1\nHost: shop.mesh\n\n",
        bad,
    ));
    cases.push(case(
        "one line feed alone",
        "GET /it HTTP/1.1\r\nHost: shop.mesh\n\r\n",
        bad,
    ));
    cases.push(case(
        "line feed behind the head",
        "GET /it HTTP/1.1\r\nHost: shop.mesh\r\n\n",
        bad,
    ));
    cases.push(case(
        "carriage returns alone",
        "GET /it HTTP/1.1\rHost: shop.mesh\r\r\n\r\n",
        bad,
    ));
    cases.push(case(
        "two empty lines before it",
        "\r\n\r\nGET /it HTTP/1.1\r\nHost: shop.mesh\r\n\r\n",
        bad,
    ));
    cases.push(case(
        "a TLS hello",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n",
        bad,
    ));
    let long = |length: usize| {
        format!(
            "GET /{} HTTP/1.1\r\nHost: shop.mesh\r\n\r\n",
            "a".repeat(length)
        )
    };
    cases.push(case("a line of 9 KiB", long(9 << 10), Fate::Refused(414)));
    cases.push(case(
        "a line of 100 KiB",
        long(100 << 10),
        Fate::Refused(414),
    ));
    cases.push(case(
        "a line just too long",
        long(8192 - 13),
        Fate::Refused(414),
    ));
    cases
}

fn fields() -> Vec<Case> {
    let bad = Fate::Refused(400);
    let mut cases = Vec::new();
    for fields in [
        "X-A : 1\r\n",
        "X-A\t: 1\r\n",
        " X-A: 1\r\n",
        "X A: 1\r\n",
        ": 1\r\n",
        "X-A\r\n",
        "X-A: 1\r\n 2\r\n",
        "X-A: 1\r\n\t2\r\n",
        "X-A:\r\n 1\r\n",
        "X-A: 1\r2\r\n",
        "X-A: 1\n2\r\n",
        "X-A: 1\r\r\n",
        "X(A): 1\r\n",
        "X/A: 1\r\n",
        "X\"A: 1\r\n",
        "X[A]: 1\r\n",
        "X@A: 1\r\n",
        "X{A}: 1\r\n",
        "X;A: 1\r\n",
        "X,A: 1\r\n",
        "X=A: 1\r\n",
        "X?A: 1\r\n",
        "X\\A: 1\r\n",
        "X<A>: 1\r\n",
        "\u{e9}: 1\r\n",
        "Host: shop.mesh\r\n",
        "Host: other.mesh\r\n",
        "host:\r\n",
        "Content-Length: x\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: +1\r\n",
        "Content-Length: 1.0\r\n",
        "Content-Length: 0x1\r\n",
        "Content-Length: 1 1\r\n",
        "Content-Length: 1;\r\n",
        "Content-Length: \"1\"\r\n",
        "Content-Length:\r\n",
        "Content-Length: 1,\r\n",
        "Content-Length: ,1\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 1, 2\r\n",
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: ,chunked\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: chu\r\n nked\r\n",
        "Transfer_Encoding\0: chunked\r\n",
    ] {
        cases.push(case(format!("{fields:?}"), with_fields(fields), bad));
    }
    for byte in [0u8, 1, 8, 10, 11, 12, 13, 27, 127] {
        let field = [b"X-A: b", &[byte][..], b"c\r\n"].concat();
        cases.push(case(
            format!("byte {byte} in a value"),
            with_fields(field),
            bad,
        ));
        let field = [b"X-", &[byte][..], b"A: b\r\n"].concat();
        cases.push(case(
            format!("byte {byte} in a name"),
            with_fields(field),
            bad,
        ));
    }
    let old = "GET /it HTTP/1.0\r\nHost: shop.mesh\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    cases.push(case("chunks in HTTP/1.0", old, bad));
    cases.push(case("no Host", "GET /it HTTP/1.1\r\n\r\n", bad));
    for (host, target) in [
        ("other.mesh", "http://shop.mesh/it"),
        ("", "/it"),
        ("shop.mesh, shop.mesh", "/it"),
        ("shop .mesh", "/it"),
        ("me@shop.mesh", "/it"),
        ("shop.mesh/", "/it"),
        ("shop.mesh:x", "/it"),
        ("http://shop.mesh", "/it"),
        ("shop.mesh:123456", "/it"),
        ("shop.mesh?", "/it"),
        ("shop.mesh#", "/it"),
        ("sh\u{f6}p.mesh", "/it"),
        ("other.mesh:80", "http://shop.mesh:80/it"),
        ("[::1", "/it"),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        cases.push(case(format!("Host {host:?} for {target}"), head, bad));
    }
    cases.push(case(
        "101 fields",
        with_fields("X-A: 1\r\n".repeat(100)),
        Fate::Refused(431),
    ));
    cases.push(case(
        "a value of 80 KiB",
        with_fields(format!("X-A: {}\r\n", "a".repeat(80 << 10))),
        Fate::Refused(431),
    ));
    let body = with_body("Content-Length: 5\r\n", "hello");
    let connect = String::from_utf8_lossy(&body).replace("POST /it", "CONNECT shop.mesh:80");
    cases.push(case("a body behind CONNECT", connect, bad));
    cases
}

fn bodies() -> Vec<Case> {
    let mut cases = Vec::new();
    for chunks in [
        "\r\n",
        "x\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "6\r\nhello\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5,5\r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: 1\n\r\n",
        "5\r\nhello\r\n0\r\nX : 1\r\n\r\n",
        "5\r\nhello\r\n0\r\n X: 1\r\n\r\n",
        "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
        "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5\r\nhello\r\n0\r\nHost: a\r\n\r\n",
        "5\r\nhello\r\n00 \r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
    ] {
        let bytes = with_body("Transfer-Encoding: chunked\r\n", chunks);
        cases.push(case(format!("chunks {chunks:?}"), bytes, Fate::Broken));
    }
    cases
}

/// What is odd, and still can be read in one way only.
fn sound() -> Vec<Case> {
    let mut cases = vec![
        case(
            "an empty line before it",
            [b"\r\n".as_slice(), &with_fields("Connection: close\r\n")].concat(),
            Fate::Passed,
        ),
        case(
            "an unknown method",
            "PURGE /it HTTP/1.1\r\nHost: shop.mesh\r\nConnection: close\r\n\r\n",
            Fate::Passed,
        ),
        case(
            "absolute form",
            "GET http://shop.mesh/it HTTP/1.1\r\nHost: shop.mesh\r\nConnection: close\r\n\r\n",
            Fate::Passed,
        ),
        case(
            "absolute form in other case",
            "GET HTTP://SHOP.mesh/it HTTP/1.1\r\nHost: shop.mesh\r\nConnection: close\r\n\r\n",
            Fate::Passed,
        ),
        case(
            "the server itself",
            "OPTIONS * HTTP/1.1\r\nHost: shop.mesh\r\nConnection: close\r\n\r\n",
            Fate::Passed,
        ),
        case(
            "HTTP/1.0",
            "GET /it HTTP/1.0\r\nHost: shop.mesh\r\n\r\n",
            Fate::Passed,
        ),
        case(
            "a path of odd characters",
            "GET /it/%00|{}\"~'()[]?a=/?:@ HTTP/1.1\r\nHost: shop.mesh\r\nConnection: close\r\n\r\n",
            Fate::Passed,
        ),
    ];
    for fields in [
        "X-A:1\r\n",
        "X-A: \r\n",
        "X-A:\r\n",
        "X-A: \t 1 \t\r\n",
        "!#$%&'*+-.^_`|~: 1\r\n",
        "X-A: caf\u{e9}\r\n",
        "X-A: a:b\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 00\r\n",
        "Content-Length: 0\r\nContent-Length: 0\r\n",
        "Expect: something\r\n",
    ] {
        let fields = format!("{fields}Connection: close\r\n");
        cases.push(case(
            format!("{fields:?}"),
            with_fields(fields),
            Fate::Passed,
        ));
    }
    let close = "Connection: close\r\nTransfer-Encoding: chunked\r\n";
    for chunks in [
        "0\r\n\r\n",
        "000\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "5;a=b;c\r\nhello\r\n0;x\r\n\r\n",
        "0A\r\n0123456789\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    ] {
        cases.push(case(
            format!("chunks {chunks:?}"),
            with_body(close, chunks),
            Fate::Passed,
        ));
    }
    cases
}

async fn world() -> (Sidecar, SocketAddr, Arc<Mutex<Vec<String>>>) {
    let setup = Setup::new("host", "eu-1a");
    let listener = TcpListener::bind((setup.address, 9001))
        .await
        .expect("a free address");
    let seen = Arc::new(Mutex::new(Vec::new()));
    tokio::spawn(record(listener, Arc::clone(&seen)));
    let table = format!(
        "[upstream.shop]\nlisten = \"{0}:7001\"\nendpoints = [\"{0}:9001\"]\nretry = {{ retries = 0 }}\n",
        setup.address
    );
    let sidecar = Sidecar::ready(setup.with(&table)).await;
    let outbound = sidecar.outbound();
    (sidecar, outbound, seen)
}

fn status_of(back: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(back);
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok());
    status.unwrap_or(0)
}

/// What is wrong with how `case` went; `None`: nothing.
async fn fault_of(case: &Case, outbound: SocketAddr) -> Option<String> {
    let mut bytes = case.bytes.clone();
    if case.fate != Fate::Passed {
        bytes.extend_from_slice(SMUGGLED);
    }
    let began = std::time::Instant::now();
    let back = raw(outbound, &bytes, Duration::from_secs(9)).await;
    let status = status_of(&back);
    let answers = back.windows(9).filter(|part| part == b"HTTP/1.1 ").count();
    let fits = match case.fate {
        Fate::Refused(wanted) => status == wanted && answers == 1,
        Fate::Passed => status == 200 && answers == 1,
        Fate::Broken => matches!(status, 0 | 400) && answers <= 1,
    };
    let closed = began.elapsed() < Duration::from_secs(8);
    (!(fits && closed)).then(|| {
        format!(
            "{}: {:?}, closed: {closed}, got {:?}",
            case.name,
            case.fate,
            String::from_utf8_lossy(&back)
        )
    })
}

/// Holds every conversation and gathers what went wrong.
async fn faults_of(cases: Vec<Case>, outbound: SocketAddr) -> Vec<String> {
    let mut faults = Vec::new();
    let mut under_way = JoinSet::new();
    for case in cases {
        if under_way.len() >= AT_ONCE {
            faults.extend(
                under_way
                    .join_next()
                    .await
                    .and_then(|done| done.expect("no panic")),
            );
        }
        under_way.spawn(async move { fault_of(&case, outbound).await });
    }
    while let Some(done) = under_way.join_next().await {
        faults.extend(done.expect("no panic"));
    }
    faults
}

/// Every case met its fate.
fn all_met(faults: &[String], count: usize) {
    let (wrong, told) = (faults.len(), faults.join("\n"));
    assert!(faults.is_empty(), "{wrong} of {count}:\n{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_ambiguous_ever_reaches_a_backend() {
    let (_sidecar, outbound, seen) = world().await;
    let cases: Vec<Case> = [request_lines(), fields(), bodies()]
        .into_iter()
        .flatten()
        .collect();
    let count = cases.len();
    assert!(count >= 150, "only {count} cases");
    let faults = faults_of(cases, outbound).await;
    all_met(&faults, count);
    let seen = seen.lock().expect("no panic");
    assert!(seen.is_empty(), "the backend saw {seen:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_odd_and_sound_reaches_the_backend_once() {
    let (_sidecar, outbound, seen) = world().await;
    let cases = sound();
    let count = cases.len();
    let faults = faults_of(cases, outbound).await;
    all_met(&faults, count);
    let seen = seen.lock().expect("no panic");
    assert_eq!(seen.len(), count, "{seen:#?}");
}

/// Answers each request `/N` with the N-th of `answers`, and closes.
async fn answer_oddly(listener: TcpListener, answers: Arc<Vec<(&'static [u8], u16)>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            let head = whole_request(&mut stream).await?;
            let number: usize = head.split(['/', ' ']).nth(2)?.parse().ok()?;
            stream.write_all(answers.get(number)?.0).await.ok()?;
            stream.shutdown().await.ok()
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_malformed_becomes_a_502() {
    const BAD: &[&[u8]] = &[
        b"",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"hello\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 \r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok",
        b"HTTP/1.1 200 O\0K\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok.",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok.",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n X: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ];
    const SOUND: &[&[u8]] = &[
        b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2;x\r\nok\r\n0\r\nT: 1\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more",
    ];
    let bad = BAD.iter().map(|bytes| (*bytes, 502));
    let answers: Vec<(&[u8], u16)> = bad.chain(SOUND.iter().map(|bytes| (*bytes, 200))).collect();
    assert!(answers.len() >= 40, "only {} answers", answers.len());
    let answers = Arc::new(answers);
    let setup = Setup::new("host", "eu-1a");
    let listener = TcpListener::bind((setup.address, 9001))
        .await
        .expect("a free address");
    tokio::spawn(answer_oddly(listener, Arc::clone(&answers)));
    let table = format!(
        "[upstream.odd]\nendpoints = [\"{}:9001\"]\nretry = {{ retries = 0 }}\nejection = {{ consecutive = 0 }}\n",
        setup.address
    );
    let sidecar = Sidecar::ready(setup.with(&table)).await;
    let mut faults = Vec::new();
    for (number, (bytes, wanted)) in answers.iter().enumerate() {
        let request =
            format!("GET /{number} HTTP/1.1\r\nHost: odd.mesh\r\nConnection: close\r\n\r\n");
        let back = raw(sidecar.outbound(), request.as_bytes(), PATIENCE).await;
        let text = String::from_utf8_lossy(&back);
        let last = text.rsplit("HTTP/1.1 ").next().unwrap_or_default();
        let whole = *wanted == 502
            || text.ends_with("\r\n\r\nok")
            || text.ends_with("2\r\nok\r\n0\r\n\r\n")
            || text.ends_with("2\r\nok\r\n0\r\nT: 1\r\n\r\n");
        if !last.starts_with(&wanted.to_string()) || !whole {
            faults.push(format!(
                "{:?} became {text:?}",
                String::from_utf8_lossy(bytes)
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A chunk is handed on whole: many clients give it to their caller only once they have seen its line end.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_comes_with_its_line_end_before_the_next_is_there() {
    let setup = Setup::new("host", "eu-1a");
    let listener = TcpListener::bind((setup.address, 0)).await.expect("a port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            whole_request(&mut stream).await;
            let begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
            if stream.write_all(begun).await.is_ok() {
                // The next chunk never comes.
                held.push(stream);
            }
        }
    });
    let sidecar =
        Sidecar::ready(setup.with(&format!("[upstream.shop]\nendpoints = [\"{at}\"]\n"))).await;
    let mut stream = TcpStream::connect(sidecar.outbound())
        .await
        .expect("it listens");
    let ask = b"GET / HTTP/1.1\r\nHost: shop.mesh\r\n\r\n";
    stream.write_all(ask).await.expect("it reads");
    let mut heard = Vec::new();
    let hearing = async {
        while !heard.ends_with(b"hello\r\n") {
            let count = stream.read_buf(&mut heard).await.expect("it lives");
            assert!(count > 0, "it closed");
        }
    };
    let whole = tokio::time::timeout(PATIENCE, hearing).await;
    assert!(whole.is_ok(), "{}", String::from_utf8_lossy(&heard));
}

/// A length told twice goes on as one, so that nobody behind us can read it another way.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_told_twice_goes_on_once() {
    let (sidecar, _, seen) = world().await;
    let ask = b"POST / HTTP/1.1\r\nHost: shop.mesh\r\nContent-Length: 2\r\nContent-Length: 2, 2\r\n\r\nok";
    let back = raw(sidecar.outbound(), ask, Duration::from_secs(2)).await;
    assert_eq!(status_of(&back), 200);
    let seen = seen
        .lock()
        .expect("no panic")
        .join("\n")
        .to_ascii_lowercase();
    assert_eq!(seen.matches("content-length").count(), 1, "{seen}");
    assert!(seen.contains("content-length: 2\r\n"), "{seen}");
}
