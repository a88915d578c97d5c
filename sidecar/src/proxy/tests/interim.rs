//! What is said before an answer (1xx), with HTTP/1 and HTTP/2 on either side.

use std::future::poll_fn;

use bytes::Bytes;
use h2::client::Builder;
use http::{HeaderMap, Request, Response, StatusCode};
use mesh_core::policy::HttpVersion::{self, One, Two};
use tokio::time::{Instant, timeout};

use super::*;
use crate::proxy::interim::INTERIM_MAX;

const PAIRINGS: [(HttpVersion, HttpVersion); 4] = [(One, One), (One, Two), (Two, One), (Two, Two)];
/// Longer than any of this takes.
const LONG: Duration = Duration::from_secs(20);
/// What an endpoint takes to think about a body that it has not seen.
const THINKS: Duration = Duration::from_millis(300);

/// What an endpoint does with a request's head before it reads on.
#[derive(Clone, Copy, PartialEq)]
enum Says {
    /// So many hints.
    Hints(u32),
    /// After a while, that the body is welcome.
    GoOn,
    /// After a while, that it is not: 417.
    Refuses,
    /// Nothing.
    Nothing,
}

/// An endpoint that says this, and answers 200 with the body it was sent.
fn endpoint(version: HttpVersion, says: Says) -> Script {
    match version {
        Two => script(move |_, stream| over_http2(stream, says)),
        _ => script(move |_, stream| over_http1(stream, says)),
    }
}

async fn over_http1(mut stream: DuplexStream, says: Says) {
    let asked = head(&mut stream).await;
    let length = asked.split_once("ontent-length: ").map(|(_, rest)| rest);
    let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let mut told = String::new();
    match says {
        Says::Hints(count) => {
            told = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(count as usize);
        }
        Says::GoOn => {
            pass(THINKS).await;
            told.push_str("HTTP/1.1 100 Continue\r\n\r\n");
        }
        Says::Refuses => {
            pass(THINKS).await;
            let answer = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            assert_eq!(head(&mut stream).await, "", "a body nobody asked for");
            return;
        }
        Says::Nothing => {}
    }
    stream.write_all(told.as_bytes()).await.unwrap();
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.unwrap();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.write_all(&body).await;
}

async fn over_http2(stream: DuplexStream, says: Says) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::task::spawn_local(async move {
            let said = |status| {
                let mut said = Response::new(());
                *said.status_mut() = status;
                said
            };
            match says {
                Says::Hints(count) => {
                    for _ in 0..count {
                        let mut hint = said(StatusCode::EARLY_HINTS);
                        hint.headers_mut().insert("link", "</a>".parse().unwrap());
                        respond.send_informational(hint).unwrap();
                    }
                }
                Says::GoOn => {
                    pass(THINKS).await;
                    respond
                        .send_informational(said(StatusCode::CONTINUE))
                        .unwrap();
                }
                Says::Refuses => {
                    pass(THINKS).await;
                    let answer = said(StatusCode::EXPECTATION_FAILED);
                    respond.send_response(answer, true).unwrap();
                    let body = request.into_body().data().await;
                    assert!(!matches!(body, Some(Ok(_))), "a body nobody asked for");
                    return;
                }
                Says::Nothing => {}
            }
            let (mut come, mut body) = (request.into_body(), Vec::new());
            while let Some(Ok(data)) = come.data().await {
                body.extend_from_slice(&data);
            }
            let mut answer = said(StatusCode::OK);
            (answer.headers_mut()).insert("content-length", body.len().into());
            let mut stream = respond.send_response(answer, false).unwrap();
            let _ = stream.send_data(body.into(), true);
        });
    }
}

/// What a client has heard.
#[derive(Debug, Default)]
struct Heard {
    /// Before the answer: what, when, and with which `Link`.
    before: Vec<(u16, Duration, Option<String>)>,
    status: u16,
    body: String,
}

impl Heard {
    fn statuses(&self) -> Vec<u16> {
        self.before.iter().map(|(status, ..)| *status).collect()
    }
}

/// Asks with a body that is sent once the sidecar says so, if `waits`, and else at once.
async fn ask(world: &World, version: HttpVersion, waits: bool) -> Heard {
    let asking = async {
        match version {
            Two => ask_over_http2(world, waits).await,
            _ => ask_over_http1(world, waits).await,
        }
    };
    timeout(LONG, asking).await.expect("an answer")
}

async fn ask_over_http1(world: &World, waits: bool) -> Heard {
    let mut client = world.client();
    let began = Instant::now();
    let expect = if waits {
        "Expect: 100-continue\r\n"
    } else {
        ""
    };
    let ask = format!("PUT / HTTP/1.1\r\nHost: web.mesh\r\n{expect}content-length: 5\r\n\r\n");
    client.write_all(ask.as_bytes()).await.unwrap();
    if !waits {
        client.write_all(b"hello").await.unwrap();
    }
    let mut heard = Heard::default();
    loop {
        let said = head(&mut client).await;
        heard.status = said[9..12].parse().unwrap();
        if heard.status >= 200 {
            let length = said.split_once("ontent-length: ").unwrap().1;
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            let mut body = vec![0; length];
            client.read_exact(&mut body).await.unwrap();
            heard.body = String::from_utf8(body).unwrap();
            return heard;
        }
        let link = said.split_once("Link: ").or(said.split_once("link: "));
        let link = link.map(|(_, rest)| rest.split("\r\n").next().unwrap().to_owned());
        heard.before.push((heard.status, began.elapsed(), link));
        if heard.status == 100 {
            client.write_all(b"hello").await.unwrap();
        }
    }
}

async fn ask_over_http2(world: &World, waits: bool) -> Heard {
    let mut client = world.http2_client(&mut Builder::new()).await;
    let began = Instant::now();
    let mut request = Request::put("http://web.mesh/").header("content-length", "5");
    if waits {
        request = request.header("expect", "100-continue");
    }
    let sent = client.send_request(request.body(()).unwrap(), false);
    let (mut answer, mut stream) = sent.unwrap();
    let hello = || Bytes::from_static(b"hello");
    if !waits {
        stream.send_data(hello(), true).unwrap();
    }
    let mut heard = Heard::default();
    while let Some(said) = poll_fn(|cx| answer.poll_informational(cx)).await {
        let said = said.unwrap();
        let status = said.status().as_u16();
        let link = said.headers().get("link");
        let link = link.map(|link| link.to_str().unwrap().to_owned());
        heard.before.push((status, began.elapsed(), link));
        if status == 100 {
            stream.send_data(hello(), true).unwrap();
        }
    }
    let answer = answer.await.unwrap();
    heard.status = answer.status().as_u16();
    let mut body = answer.into_body();
    while let Some(Ok(data)) = body.data().await {
        heard.body.push_str(std::str::from_utf8(&data).unwrap());
    }
    heard
}

/// Plays every pairing of a client with an endpoint that says this.
fn in_each_pairing(says: Says, waits: bool, look: impl Fn(Heard, (HttpVersion, HttpVersion))) {
    for pairing in PAIRINGS {
        run(async {
            let (client, server) = pairing;
            let world = world(vec![(1, endpoint(server, says))], &[1], |policy| {
                policy.http = server;
            });
            look(ask(&world, client, waits).await, pairing);
        });
    }
}

#[test]
fn hints_reach_the_client_before_the_answer_in_each_pairing() {
    in_each_pairing(Says::Hints(2), false, |heard, pairing| {
        assert_eq!(heard.statuses(), [103, 103], "{pairing:?}");
        let links = heard.before.iter().map(|(.., link)| link.as_deref());
        assert!(links.eq([Some("</a>"); 2]), "{pairing:?}: {heard:?}");
        assert_eq!((heard.status, &*heard.body), (200, "hello"), "{pairing:?}");
    });
}

#[test]
fn an_endpoint_that_says_more_than_is_passed_on_is_not_well_in_each_pairing() {
    in_each_pairing(Says::Hints(INTERIM_MAX), false, |heard, pairing| {
        assert_eq!(heard.before.len(), INTERIM_MAX as usize, "{pairing:?}");
        assert_eq!(heard.status, 200, "{pairing:?}");
    });
    in_each_pairing(Says::Hints(INTERIM_MAX + 1), false, |heard, pairing| {
        assert_eq!(heard.before.len(), INTERIM_MAX as usize, "{pairing:?}");
        assert_eq!(heard.status, 502, "{pairing:?}");
    });
}

#[test]
fn a_client_that_waits_hears_from_the_endpoint_itself_in_each_pairing() {
    in_each_pairing(Says::GoOn, true, |heard, pairing| {
        assert_eq!(heard.statuses(), [100], "{pairing:?}");
        assert!(heard.before[0].1 >= THINKS, "promised before: {pairing:?}");
        assert_eq!((heard.status, &*heard.body), (200, "hello"), "{pairing:?}");
    });
}

#[test]
fn a_body_that_the_endpoint_refuses_is_never_asked_for_in_each_pairing() {
    in_each_pairing(Says::Refuses, true, |heard, pairing| {
        assert_eq!(heard.statuses(), [0u16; 0], "{pairing:?}");
        assert_eq!(heard.status, 417, "{pairing:?}");
    });
}

#[test]
fn where_the_endpoint_says_nothing_the_client_is_told_to_go_on_after_a_while_in_each_pairing() {
    in_each_pairing(Says::Nothing, true, |heard, pairing| {
        assert_eq!(heard.statuses(), [100], "{pairing:?}");
        let waited = heard.before[0].1;
        let at_least = Duration::from_secs(1);
        assert!(waited >= at_least && waited < 2 * at_least, "{waited:?}");
        assert_eq!((heard.status, &*heard.body), (200, "hello"), "{pairing:?}");
    });
    // Who does not wait is told nothing.
    in_each_pairing(Says::Nothing, false, |heard, pairing| {
        assert_eq!(heard.statuses(), [0u16; 0], "{pairing:?}");
        assert_eq!((heard.status, &*heard.body), (200, "hello"), "{pairing:?}");
    });
}

#[test]
fn a_client_of_http_1_0_is_told_nothing_before_its_answer() {
    for server in [One, Two] {
        run(async {
            let world = world(
                vec![(1, endpoint(server, Says::Hints(1)))],
                &[1],
                |policy| {
                    policy.http = server;
                },
            );
            let answer = world.ask("GET / HTTP/1.0\r\nHost: web.mesh\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        });
    }
}

#[test]
fn an_endpoint_of_http2_that_switches_protocols_is_garbled() {
    run(async {
        let switches = script(|_, stream| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut said = Response::new(());
                *said.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                *said.headers_mut() = HeaderMap::new();
                respond.send_informational(said).unwrap();
                respond.send_response(Response::new(()), true).unwrap();
            }
        });
        let world = world(vec![(1, switches)], &[1], |policy| policy.http = Two);
        let heard = ask(&world, One, false).await;
        assert_eq!((heard.status, heard.before.len()), (502, 0), "{heard:?}");
    });
}
