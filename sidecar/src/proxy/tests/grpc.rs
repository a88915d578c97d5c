//! gRPC calls: a status that comes without a message is repeated elsewhere, one behind a message is not, and an endpoint's
//! reset is its caller's too.
//!
//! Not here: what a status means (`mesh_core::outcome`), and grpcio (`tests/clients.rs` of the workspace).

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use mesh_core::policy::HttpVersion;

use super::*;
use crate::proxy::ahead::LOOK_MAX;

/// A server of HTTP/2 that answers each call in this way, and counts them.
fn serves(answer: fn(SendResponse<Bytes>), calls: &Rc<RefCell<u32>>) -> Script {
    let calls = Rc::clone(calls);
    script(move |_, stream| {
        let calls = Rc::clone(&calls);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, respond))) = connection.accept().await {
                *calls.borrow_mut() += 1;
                answer(respond);
            }
        }
    })
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static(code),
    )])
}

/// An empty message.
const MESSAGE: &[u8] = b"\0\0\0\0\0";

const POST: &str = "POST /Shop/Buy HTTP/1.1\r\nHost: web.mesh\r\nContent-Type: application/grpc\r\nTE: trailers\r\n\
    Content-Length: 5\r\nConnection: close\r\n\r\n\0\0\0\0\0";

/// The head of any answer of gRPC.
fn head_of_grpc() -> Response<()> {
    let head = Response::builder().header("content-type", "application/grpc");
    head.body(()).unwrap()
}

fn well(mut respond: SendResponse<Bytes>) {
    let mut body = respond.send_response(head_of_grpc(), false).unwrap();
    body.send_data(Bytes::from_static(MESSAGE), false).unwrap();
    body.send_trailers(status("0")).unwrap();
}

/// UNAVAILABLE, and nothing but it.
fn trailers_only(mut respond: SendResponse<Bytes>) {
    let mut head = head_of_grpc();
    head.headers_mut().extend(status("14"));
    respond.send_response(head, true).unwrap();
}

/// The same behind a head that does not say so.
fn trailers_at_once(mut respond: SendResponse<Bytes>) {
    let mut body = respond.send_response(head_of_grpc(), false).unwrap();
    body.send_trailers(status("14")).unwrap();
}

/// The same so late that nobody waited for it.
fn trailers_late(mut respond: SendResponse<Bytes>) {
    let mut body = respond.send_response(head_of_grpc(), false).unwrap();
    tokio::task::spawn_local(async move {
        pass(LOOK_MAX * 2).await;
        body.send_trailers(status("14")).unwrap();
    });
}

/// The same behind a message.
fn trailers_after_message(mut respond: SendResponse<Bytes>) {
    let mut body = respond.send_response(head_of_grpc(), false).unwrap();
    body.send_data(Bytes::from_static(MESSAGE), false).unwrap();
    body.send_trailers(status("14")).unwrap();
}

/// One call; yields how long its head took, the messages of its answer, and its status, wherever that stood.
async fn call(client: &mut SendRequest<Bytes>) -> (Duration, Vec<u8>, String) {
    let request = Request::post("http://web.mesh/Shop/Buy")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = request.body(()).unwrap();
    let began = tokio::time::Instant::now();
    let (answer, mut message) = client.send_request(request, false).unwrap();
    message
        .send_data(Bytes::from_static(MESSAGE), true)
        .unwrap();
    let answer = answer.await.unwrap();
    let head_after = began.elapsed();
    let mut said = answer.headers().clone();
    let mut body = answer.into_body();
    let mut messages = Vec::new();
    while let Some(data) = body.data().await {
        messages.extend(data.unwrap());
    }
    said.extend(body.trailers().await.unwrap().unwrap_or_default());
    let status = said["grpc-status"].to_str().unwrap().to_owned();
    (head_after, messages, status)
}

/// What [`twenty`] calls came to.
struct Told {
    statuses: Vec<String>,
    /// How many the endpoint got that fails.
    at_bad: u32,
    /// How many calls brought a message.
    with_message: usize,
    slowest_head: Duration,
}

/// Twenty calls where one of two endpoints does what `bad` says.
async fn twenty(bad: Script, at_bad: Rc<RefCell<u32>>, change: impl FnOnce(&mut Policy)) -> Told {
    let scripts = vec![(1, bad), (2, serves(well, &Rc::default()))];
    let world = world(scripts, &[1, 2], |policy| {
        policy.http = HttpVersion::Two;
        policy.retry.on.gateway_error = true;
        policy.retry.on.non_idempotent = true;
        policy.balance = mesh_core::policy::Balance::RoundRobin;
        policy.ejection.consecutive = 0;
        policy.ejection.success_below = 0.0;
        change(policy);
    });
    let mut client = world.http2_client(&mut h2::client::Builder::new()).await;
    let (mut statuses, mut with_message) = (Vec::new(), 0);
    let mut slowest_head = Duration::ZERO;
    for _ in 0..20 {
        let (head_after, messages, status) = call(&mut client).await;
        slowest_head = slowest_head.max(head_after);
        assert!(messages.is_empty() || messages == MESSAGE, "{messages:?}");
        with_message += usize::from(!messages.is_empty());
        statuses.push(status);
        // The budget of repeats grows with time.
        pass(Duration::from_secs(1)).await;
    }
    let at_bad = *at_bad.borrow();
    assert!(at_bad >= 5, "it was asked {at_bad} times");
    Told {
        statuses,
        at_bad,
        with_message,
        slowest_head,
    }
}

/// The same where it is an endpoint of HTTP/2.
async fn of_http2(bad: fn(SendResponse<Bytes>), change: impl FnOnce(&mut Policy)) -> Told {
    let calls = Rc::default();
    twenty(serves(bad, &calls), calls, change).await
}

impl Told {
    /// Whether no client heard of a failure.
    fn is_well(&self) -> bool {
        self.statuses.iter().all(|status| status == "0")
    }

    /// Whether the clients heard of every one.
    fn is_told_whole(&self) -> bool {
        let failed = self.statuses.iter().filter(|status| *status == "14");
        failed.count() as u32 == self.at_bad
    }
}

#[test]
fn a_call_that_came_to_unavailable_without_a_message_is_repeated_elsewhere() {
    for bad in [trailers_only, trailers_at_once] {
        run(async {
            let told = of_http2(bad, |_| {}).await;
            assert!(told.is_well(), "{:?}", told.statuses);
        });
    }
    // A message goes to the client, and the status follows it.
    run(async {
        let told = of_http2(trailers_after_message, |_| {}).await;
        assert!(told.is_told_whole(), "{:?}", told.statuses);
        assert_eq!(told.with_message, 20);
    });
}

#[test]
fn a_head_that_nothing_follows_waits_a_moment_where_the_call_would_be_repeated_and_nowhere_else() {
    run(async {
        let told = of_http2(trailers_late, |_| {}).await;
        assert!(told.is_told_whole(), "{:?}", told.statuses);
        let waited = told.slowest_head;
        assert!(
            waited >= LOOK_MAX && waited < LOOK_MAX * 3 / 2,
            "{waited:?}"
        );
    });
    type Change = fn(&mut Policy);
    let changes: [Change; 3] = [
        |policy| policy.retry.retries = 0,
        |policy| policy.retry.on.non_idempotent = false,
        |policy| policy.retry.on.gateway_error = false,
    ];
    for change in changes {
        for bad in [trailers_late, trailers_at_once, trailers_only] {
            run(async {
                let told = of_http2(bad, change).await;
                assert!(told.is_told_whole(), "{:?}", told.statuses);
                let waited = told.slowest_head;
                assert!(waited < LOOK_MAX / 2, "{waited:?}");
            });
        }
    }
}

#[test]
fn trailers_of_either_version_go_on_whole_where_nobody_else_is_left_to_ask() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n\
        transfer-encoding: chunked\r\n\r\n0\r\nGrpc-Status: 14\r\n\r\n";
    let of_http1 = |calls: &Rc<RefCell<u32>>| {
        let calls = Rc::clone(calls);
        script(move |_, mut stream| {
            let calls = Rc::clone(&calls);
            async move {
                while head(&mut stream).await.starts_with("POST ") {
                    *calls.borrow_mut() += 1;
                    stream.read_exact(&mut [0; MESSAGE.len()]).await.unwrap();
                    stream.write_all(ANSWER).await.unwrap();
                }
            }
        })
    };
    let answers = |bad: Script, ports: &'static [u16], version| async move {
        let scripts = ports.iter().map(|port| (*port, Rc::clone(&bad)));
        let world = world(scripts.collect(), ports, |policy| {
            policy.http = version;
            policy.retry.on.non_idempotent = true;
            policy.ejection.consecutive = 0;
            policy.ejection.success_below = 0.0;
        });
        for _ in 0..3 {
            let answer = world.ask(POST).await.to_lowercase();
            let ending = "\r\n0\r\ngrpc-status: 14\r\n\r\n";
            assert!(answer.ends_with(ending), "{answer}");
            pass(Duration::from_secs(1)).await;
        }
        world.dialled.take().len()
    };
    for ports in [&[1][..], &[1, 2]] {
        let calls = Rc::default();
        run(async {
            let dialled = answers(of_http1(&calls), ports, HttpVersion::One).await;
            // What is passed on was read to its end, so with nobody else to ask its connection serves the next call.
            assert!(ports.len() > 1 || dialled == 1, "{dialled}");
        });
        assert_eq!(*calls.borrow() as usize, 3 * ports.len(), "once at each");
        let calls = Rc::default();
        run(async {
            let bad = serves(trailers_at_once, &calls);
            answers(bad, ports, HttpVersion::Two).await;
        });
        assert_eq!(*calls.borrow() as usize, 3 * ports.len(), "once at each");
    }
}

#[test]
fn a_conversation_is_not_looked_into() {
    run(async {
        // It answers with a head before it has the request, and fails when it has.
        let talks = serves(trailers_late, &Rc::default());
        let world = world(vec![(1, talks)], &[1], |policy| {
            policy.http = HttpVersion::Two;
            policy.retry.on.non_idempotent = true;
        });
        let mut client = world.http2_client(&mut h2::client::Builder::new()).await;
        let request = Request::post("http://web.mesh/Shop/Talk")
            .header("content-type", "application/grpc")
            .body(());
        let began = tokio::time::Instant::now();
        let (answer, _open) = client.send_request(request.unwrap(), false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        assert!(began.elapsed() < LOOK_MAX / 2, "{:?}", began.elapsed());
    });
}

#[test]
fn an_endpoint_that_resets_a_stream_resets_its_clients_with_the_same_reason() {
    run(async {
        let resets = serves(
            |mut respond| {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"half"), false).unwrap();
                tokio::task::spawn_local(async move {
                    pass(Duration::from_millis(10)).await;
                    body.send_reset(Reason::ENHANCE_YOUR_CALM);
                });
            },
            &Rc::default(),
        );
        let world = world(vec![(1, resets)], &[1], |policy| {
            policy.http = HttpVersion::Two;
        });
        let mut client = world.http2_client(&mut h2::client::Builder::new()).await;
        for kind in ["application/grpc", "text/plain"] {
            let request = Request::post("http://web.mesh/").header("content-type", kind);
            let (answer, _) = client
                .send_request(request.body(()).unwrap(), true)
                .unwrap();
            let mut body = answer.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "half");
            let end = body.data().await.expect("no end").expect_err("nor more");
            assert_eq!(end.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{kind}");
        }
        // The connection is none the worse for it.
        let request = Request::get("http://web.mesh/").body(()).unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
    });
}
