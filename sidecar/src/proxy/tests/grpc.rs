//! gRPC calls: a status that comes alone is repeated elsewhere, one behind a message is not, and an endpoint's reset is
//! its caller's too.
//!
//! Not here: what a status means (`mesh_core::outcome`), and grpcio (`tests/clients.rs` of the workspace).

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use mesh_core::policy::HttpVersion;

use super::*;

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

/// The head of any answer of gRPC.
fn head_of_grpc() -> Response<()> {
    let head = Response::builder().header("content-type", "application/grpc");
    head.body(()).unwrap()
}

fn well(mut respond: SendResponse<Bytes>) {
    let mut body = respond.send_response(head_of_grpc(), false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), false)
        .unwrap();
    body.send_trailers(status("0")).unwrap();
}

/// UNAVAILABLE, and nothing but it.
fn trailers_only(mut respond: SendResponse<Bytes>) {
    let mut head = head_of_grpc();
    head.headers_mut().extend(status("14"));
    respond.send_response(head, true).unwrap();
}

/// The same behind a message.
fn trailers_after_message(mut respond: SendResponse<Bytes>) {
    let mut body = respond.send_response(head_of_grpc(), false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), false)
        .unwrap();
    body.send_trailers(status("14")).unwrap();
}

/// One call without a message; yields its status, wherever that stood.
async fn call(client: &mut SendRequest<Bytes>) -> String {
    let request = Request::post("http://web.mesh/Shop/Buy")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = request.body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    let answer = answer.await.unwrap();
    let mut said = answer.headers().clone();
    let mut body = answer.into_body();
    while let Some(data) = body.data().await {
        data.unwrap();
    }
    said.extend(body.trailers().await.unwrap().unwrap_or_default());
    said["grpc-status"].to_str().unwrap().to_owned()
}

/// Statuses of twenty calls where one of two endpoints answers so, and how many calls that one got.
async fn twenty(bad: fn(SendResponse<Bytes>), retries: u8) -> (Vec<String>, u32) {
    let (of_bad, of_well) = (Rc::default(), Rc::default());
    let scripts = vec![(1, serves(bad, &of_bad)), (2, serves(well, &of_well))];
    let world = world(scripts, &[1, 2], |policy| {
        policy.http = HttpVersion::Two;
        policy.retry.retries = retries;
        policy.retry.on.gateway_error = true;
        policy.retry.on.non_idempotent = true;
        policy.balance = mesh_core::policy::Balance::RoundRobin;
        policy.ejection.consecutive = 0;
        policy.ejection.success_below = 0.0;
    });
    let mut client = world.http2_client(&mut h2::client::Builder::new()).await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(call(&mut client).await);
        // The budget of repeats grows with time.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let bad = *of_bad.borrow();
    (statuses, bad)
}

#[test]
fn a_call_that_came_to_unavailable_alone_is_repeated_elsewhere() {
    run(async {
        let (statuses, at_bad) = twenty(trailers_only, 1).await;
        assert!(statuses.iter().all(|status| status == "0"), "{statuses:?}");
        assert!(at_bad >= 5, "it was asked {at_bad} times");
    });
    // A message has gone to the client, so the status follows it.
    for (bad, retries) in [(trailers_after_message as fn(_), 1), (trailers_only, 0)] {
        run(async {
            let (statuses, at_bad) = twenty(bad, retries).await;
            let told = statuses.iter().filter(|status| *status == "14").count();
            assert_eq!(told as u32, at_bad, "{statuses:?}");
            assert!(at_bad >= 5, "it was asked {at_bad} times");
        });
    }
}

#[test]
fn an_endpoint_that_resets_a_stream_resets_its_clients_with_the_same_reason() {
    run(async {
        let resets = serves(
            |mut respond| {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"half"), false).unwrap();
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(Duration::from_millis(10)).await;
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
