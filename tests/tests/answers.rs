//! What comes back by HTTP/1, body by body: a bad answer never looks whole to a client, and its connection is closed.
//!
//! Not here: heads alone (`http1.rs`), and what clients send.

use std::{net::SocketAddr, sync::Arc};

use mesh_tests::{
    PATIENCE,
    http::raw,
    sidecar::{Setup, Sidecar},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

/// What the client sees of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    /// 502 and nothing of the answer.
    Refused,
    /// A status of 200 or 502, and in the first case no end: the connection is closed amid the body.
    Cut,
    /// All that belongs to it, and nothing behind it.
    Whole,
}

/// Without the field a bad answer's connection would be closed by its age of 3 s and not for what came over it.
const KEPT: &str = "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=60\r\n";

struct Case {
    what: &'static str,
    answer: String,
    seen: Seen,
    /// The backend closes behind it; else the sidecar must.
    closes: bool,
}

fn case(what: &'static str, rest: &str, seen: Seen) -> Case {
    Case {
        what,
        answer: format!("{KEPT}{rest}"),
        seen,
        closes: false,
    }
}

fn cases() -> Vec<Case> {
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";
    let chunked = |what, body: &str, seen| case(what, &format!("{CHUNKED}{body}"), seen);
    let mut cases = vec![
        case(
            "a length that is no number",
            "Content-Length: two\r\n\r\nok",
            Seen::Refused,
        ),
        case(
            "two lengths",
            "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok.",
            Seen::Refused,
        ),
        case(
            "a length and chunks",
            "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Seen::Refused,
        ),
        case(
            "a field without a name",
            ": x\r\nContent-Length: 2\r\n\r\nok",
            Seen::Refused,
        ),
        chunked(
            "a size that is no number",
            "zz\r\nok\r\n0\r\n\r\n",
            Seen::Cut,
        ),
        chunked("no size", "\r\nok\r\n0\r\n\r\n", Seen::Cut),
        chunked("a size below nothing", "-2\r\nok\r\n0\r\n\r\n", Seen::Cut),
        chunked("a size with a prefix", "0x2\r\nok\r\n0\r\n\r\n", Seen::Cut),
        chunked(
            "a size that fits no counter",
            "ffffffffffffffff0\r\nok\r\n0\r\n\r\n",
            Seen::Cut,
        ),
        chunked(
            "a size with a space before it",
            " 2\r\nok\r\n0\r\n\r\n",
            Seen::Cut,
        ),
        chunked(
            "a size ended by a bare line feed",
            "2\nok\r\n0\r\n\r\n",
            Seen::Cut,
        ),
        chunked(
            "a chunk longer than its size",
            "2\r\nokay\r\n0\r\n\r\n",
            Seen::Cut,
        ),
        chunked(
            "a chunk shorter than its size",
            "5\r\nok\r\n0\r\n\r\n!!",
            Seen::Cut,
        ),
        chunked(
            "a chunk without its line end",
            "2\r\nok0\r\n\r\n",
            Seen::Cut,
        ),
        chunked(
            "a later size that is no number",
            "2\r\nok\r\nzz\r\nok\r\n0\r\n\r\n",
            Seen::Cut,
        ),
        chunked(
            "a trailer with a space before its colon",
            "2\r\nok\r\n0\r\nX : 1\r\n\r\n",
            Seen::Cut,
        ),
        chunked(
            "a trailer without a colon",
            "2\r\nok\r\n0\r\nX\r\n\r\n",
            Seen::Cut,
        ),
        chunked(
            "a trailer without a name",
            "2\r\nok\r\n0\r\n: 1\r\n\r\n",
            Seen::Cut,
        ),
        chunked(
            "a trailer with a NUL",
            "2\r\nok\r\n0\r\nX: a\0b\r\n\r\n",
            Seen::Cut,
        ),
        chunked(
            "a folded trailer",
            "2\r\nok\r\n0\r\nX: a\r\n b\r\n\r\n",
            Seen::Cut,
        ),
        case(
            "bytes behind a length",
            "Content-Length: 2\r\n\r\nok and more",
            Seen::Whole,
        ),
        case(
            "another answer behind a length",
            "Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            Seen::Whole,
        ),
        chunked(
            "bytes behind the last chunk",
            "2\r\nok\r\n0\r\n\r\nand more",
            Seen::Whole,
        ),
    ];
    cases.extend([
        Case {
            closes: true,
            ..case(
                "a body short of its length",
                "Content-Length: 5\r\n\r\nok",
                Seen::Cut,
            )
        },
        Case {
            closes: true,
            ..chunked("a body without a last chunk", "2\r\nok\r\n", Seen::Cut)
        },
        Case {
            closes: true,
            ..chunked("a body that ends amid a chunk", "5\r\nok", Seen::Cut)
        },
        Case {
            closes: true,
            ..chunked(
                "a body that ends amid its trailers",
                "2\r\nok\r\n0\r\nX: 1\r\n",
                Seen::Cut,
            )
        },
    ]);
    cases
}

async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// Answers `/N` with the N-th case, and tells what came next on that connection: nothing but its end is well.
async fn answer(
    listener: TcpListener,
    cases: Arc<Vec<Case>>,
    ends: mpsc::Sender<(usize, Result<(), String>)>,
) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (cases, ends) = (Arc::clone(&cases), ends.clone());
        tokio::spawn(async move {
            let head = head(&mut stream).await?;
            let number: usize = head.split(['/', ' ']).nth(2)?.parse().ok()?;
            let case = cases.get(number)?;
            stream.write_all(case.answer.as_bytes()).await.ok()?;
            if case.closes {
                stream.shutdown().await.ok()?;
            }
            let mut more = [0; 64];
            let end = match timeout(PATIENCE, stream.read(&mut more)).await {
                Ok(Ok(0) | Err(_)) => Ok(()),
                Ok(Ok(count)) => Err(format!(
                    "used again: {:?}",
                    String::from_utf8_lossy(&more[..count])
                )),
                Err(_) => Err("left open".to_owned()),
            };
            ends.send((number, end)).await.ok()
        });
    }
}

/// What is wrong with what the client got, if anything.
fn fault(case: &Case, back: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(back);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.get(9..12).unwrap_or("no status");
    let is_chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let is_whole = if is_chunked {
        body == "2\r\nok\r\n0\r\n\r\n"
    } else {
        body == "ok" && !head.contains(": 5")
    };
    let has_end = body.ends_with("0\r\n\r\n") || (!is_chunked && body.len() >= 5);
    let well = match case.seen {
        Seen::Refused => status == "502",
        Seen::Cut => status == "502" || (status == "200" && !has_end),
        Seen::Whole => status == "200" && is_whole,
    };
    (!well).then(|| format!("{}: {text:?}", case.what))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_body_never_looks_whole_and_its_connection_is_closed() {
    let cases = Arc::new(cases());
    let setup = Setup::new("host", "eu-1a");
    let at = SocketAddr::new(setup.address, 9001);
    let listener = TcpListener::bind(at).await.expect("a free address");
    let (tell, mut ends) = mpsc::channel(cases.len());
    tokio::spawn(answer(listener, Arc::clone(&cases), tell));
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.odd]\nendpoints = [\"{at}\"]\nretry = {{ retries = 0 }}\nejection = {{ consecutive = 0 }}\n"
    )))
    .await;
    // All at once: some wait for more that never comes until their time is over.
    let mut asking = JoinSet::new();
    for number in 0..cases.len() {
        let outbound = sidecar.outbound();
        asking.spawn(async move {
            let request =
                format!("GET /{number} HTTP/1.1\r\nHost: odd.mesh\r\nConnection: close\r\n\r\n");
            (number, raw(outbound, request.as_bytes(), PATIENCE).await)
        });
    }
    let mut faults = Vec::new();
    while let Some(asked) = asking.join_next().await {
        let (number, back) = asked.expect("no panic");
        faults.extend(fault(&cases[number], &back));
    }
    for _ in 0..cases.len() {
        let ended = timeout(PATIENCE * 2, ends.recv()).await;
        let (number, end) = ended.ok().flatten().expect("each was asked for");
        if let Err(end) = end {
            faults.push(format!("{}: its connection was {end}", cases[number].what));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
