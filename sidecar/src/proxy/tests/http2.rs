//! HTTP/2 on either side: clients that dawdle, endpoints that are slow to take another connection.

use std::future::poll_fn;

use bytes::Bytes;
use http::{Request, Response};
use mesh_core::policy::HttpVersion;

use super::*;
use crate::proxy::{
    connections::Spoken, http2::client, patience::FAREWELL, pool::Between, send::listed,
};

/// What a client of HTTP/2 says first: its preface, and settings that change nothing.
const HTTP2_BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[test]
fn an_old_connection_of_http2_whose_client_says_nothing_more_is_closed() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let age = Duration::from_secs(60);
        world.set(|settings| settings.connection_age = Some(age));
        let began = tokio::time::Instant::now();
        let mut client = world.client();
        client.write_all(HTTP2_BEGIN).await.unwrap();
        // It is told to go and asked whether it has heard (PING), and neither answers nor hangs up.
        let mut told = Vec::new();
        let read = tokio::time::timeout(age * 10, client.read_to_end(&mut told)).await;
        read.expect("it is not waited for for ever").unwrap();
        let lasted = began.elapsed();
        assert!(
            lasted > age * 9 / 10 && lasted <= age * 11 / 10 + FAREWELL + Duration::from_secs(1),
            "{lasted:?}"
        );
        let goaway = told.windows(5).any(|frame| frame == b"\0\0\x08\x07\0");
        assert!(goaway, "{told:?}");
    });
}

#[test]
fn an_answer_that_a_client_of_http2_leaves_unread_is_given_up_and_the_others_go_on() {
    run(async {
        let (gone, ended) = tokio::sync::oneshot::channel();
        let gone = Rc::new(RefCell::new(Some(gone)));
        let large = script(move |_, mut stream| {
            let gone = Rc::clone(&gone);
            async move {
                while let asked = head(&mut stream).await
                    && !asked.is_empty()
                {
                    if asked.starts_with("GET /none ") {
                        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
                        stream.write_all(answer).await.unwrap();
                        continue;
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                    let _ = stream.write_all(&[b'a'; 1_000_000]).await;
                    let _ = gone.take().map(|gone| gone.send(()));
                }
            }
        });
        let world = world(vec![(1, large)], &[1], |_| {});
        let mut shut = h2::client::Builder::new();
        let mut client = world.http2_client(shut.initial_window_size(0)).await;
        let mut ask = async |path: &str| {
            let request = Request::get(format!("http://web.mesh{path}"));
            let (answer, _) = client
                .send_request(request.body(()).unwrap(), true)
                .unwrap();
            answer.await
        };
        let began = tokio::time::Instant::now();
        let answer = ask("/large").await.unwrap();
        assert_eq!(answer.status(), 200);
        // The connection is in use all the time.
        let mut body = answer.into_body();
        let mut unread = std::pin::pin!(body.data());
        let told = loop {
            tokio::select! {
                told = &mut unread => break told,
                () = pass(Duration::from_secs(60)) => {
                    assert!(began.elapsed() < IDLE * 2, "it is kept for ever");
                    assert_eq!(ask("/none").await.unwrap().status(), 204);
                }
            }
        };
        let told = told
            .expect("it does not end well")
            .expect_err("nor goes on");
        assert_eq!(told.reason(), Some(h2::Reason::CANCEL));
        let lasted = began.elapsed();
        assert!(lasted >= IDLE && lasted < IDLE * 2, "{lasted:?}");
        let released = tokio::time::timeout(Duration::from_secs(1), ended).await;
        released
            .expect("in time")
            .expect("the endpoint is rid of it");
        assert_eq!(ask("/none").await.unwrap().status(), 204);
    });
}

/// Speaks HTTP/2, allows one stream at a time, and answers each after so long.
fn one_at_a_time(after: Duration) -> Script {
    script(move |_, stream| async move {
        let mut server = h2::server::Builder::new();
        let server = server.max_concurrent_streams(1);
        let mut connection = server.handshake::<_, Bytes>(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::task::spawn_local(async move {
                pass(after).await;
                let _ = respond.send_response(Response::new(()), true);
            });
        }
    })
}

#[test]
fn an_endpoint_that_is_slow_to_take_another_connection_is_asked_over_the_one_it_has() {
    run(async {
        let answers_after = Duration::from_millis(50);
        let world = world(vec![(1, one_at_a_time(answers_after))], &[1], |policy| {
            policy.http = HttpVersion::Two;
            policy.retry.retries = 0;
            policy.timeouts.connect = Duration::from_secs(1);
        });
        // From the first answer on it is known that there is one stream.
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
        world.silent.borrow_mut().push(address(1));
        let began = tokio::time::Instant::now();
        let answers = tokio::join!(world.ask(GET), world.ask(GET), world.ask(GET));
        for answer in [answers.0, answers.1, answers.2] {
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(
            world.dialled.borrow().len(),
            2,
            "both that waited, by one dial"
        );
        // For a while nobody tries in vain again.
        let began = tokio::time::Instant::now();
        let _ = tokio::join!(world.ask(GET), world.ask(GET));
        assert!(began.elapsed() < answers_after * 3, "{:?}", began.elapsed());
        assert_eq!(world.dialled.borrow().len(), 2);
    });
}

#[test]
fn an_endpoint_of_http2_that_takes_its_time_is_waited_for_and_one_that_is_gone_is_not() {
    let of_http2 = |policy: &mut Policy| {
        policy.http = HttpVersion::Two;
        policy.timeouts.request = Duration::from_secs(60);
        policy.retry.retries = 0;
    };
    run(async {
        // It says nothing meanwhile but that it is there.
        let takes = Duration::from_secs(30);
        let world = world(vec![(1, one_at_a_time(takes))], &[1], of_http2);
        let began = tokio::time::Instant::now();
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
        assert!(began.elapsed() >= takes);
    });
    run(async {
        // After the request its host is cut off: what is sent to it is lost.
        let gone = script(|_, stream| async move {
            let mut server = h2::server::handshake(stream).await.unwrap();
            let asked = server.accept().await;
            std::future::pending::<()>().await;
            drop(asked);
        });
        let world = world(vec![(1, gone)], &[1], of_http2);
        let began = tokio::time::Instant::now();
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 502"));
        assert_eq!(
            began.elapsed().as_secs(),
            8,
            "asked after 5 s, given up 3 s later"
        );
    });
}

#[test]
fn an_answer_cut_without_an_error_is_not_taken_for_whole() {
    run(async {
        let cuts = script(|_, stream| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"half"), false).unwrap();
                tokio::task::spawn_local(async move {
                    pass(Duration::from_millis(10)).await;
                    body.send_reset(h2::Reason::NO_ERROR);
                });
            }
        });
        let world = world(vec![(1, cuts)], &[1], |policy| {
            policy.http = HttpVersion::Two;
        });
        let answer = world.ask(GET).await;
        assert!(answer.ends_with("half\r\n"), "{answer}");
        assert!(!answer.ends_with("0\r\n\r\n"), "a last chunk: {answer}");
    });
}

#[test]
fn an_answer_of_our_own_to_head_has_no_body_over_http2_either() {
    run(async {
        let world = world(vec![], &[1], |_| {});
        let mut client = world.http2_client(&mut h2::client::Builder::new()).await;
        let request = Request::head("http://web.mesh/").body(()).unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 503);
        assert!(answer.headers().contains_key("content-length"));
        assert!(answer.into_body().is_end_stream());
    });
}

#[test]
fn a_request_goes_on_after_its_answer_has_begun() {
    run(async {
        // Its head comes before anything of the request, and then every piece goes back.
        let echoes = script(|_, stream| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let mut back = respond.send_response(Response::new(()), false).unwrap();
                tokio::task::spawn_local(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(piece)) = body.data().await {
                        let _ = back.send_data(piece, false);
                    }
                    let _ = back.send_data(Bytes::new(), true);
                });
            }
        });
        let world = world(vec![(1, echoes)], &[1], |policy| {
            policy.http = HttpVersion::Two;
        });
        let mut client = world.http2_client(&mut h2::client::Builder::new()).await;
        let request = Request::post("http://web.mesh/").body(()).unwrap();
        let (answer, mut pieces) = client.send_request(request, false).unwrap();
        let mut back = answer.await.unwrap().into_body();
        for piece in ["one", "two"] {
            pieces.send_data(Bytes::from(piece), false).unwrap();
            let came = tokio::time::timeout(Duration::from_secs(1), back.data()).await;
            assert_eq!(came.expect("in time").expect("goes on").unwrap(), piece);
        }
        pieces.send_data(Bytes::new(), true).unwrap();
        assert!(back.data().await.is_none_or(|end| end.unwrap().is_empty()));
    });
}

#[test]
fn a_client_that_goes_takes_the_unsent_rest_of_its_request_with_it() {
    run(async {
        let (tell, ended) = tokio::sync::oneshot::channel();
        let tell = Rc::new(RefCell::new(Some(tell)));
        // Answers at once, grants no window, and tells how the stream ends.
        let talks = script(move |_, stream| {
            let tell = Rc::clone(&tell);
            async move {
                let mut server = h2::server::Builder::new();
                let server = server.initial_window_size(0);
                let mut connection = server.handshake::<_, Bytes>(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let mut body = respond.send_response(Response::new(()), false).unwrap();
                    let tell = tell.take();
                    tokio::task::spawn_local(async move {
                        let reason = poll_fn(|cx| body.poll_reset(cx)).await;
                        let _ = tell.map(|tell| tell.send(reason.ok()));
                    });
                }
            }
        });
        let world = world(vec![(1, talks)], &[1], |policy| {
            policy.http = HttpVersion::Two;
        });
        let mut client = world.http2_client(&mut h2::client::Builder::new()).await;
        let request = Request::post("http://web.mesh/").body(()).unwrap();
        let (answer, mut body) = client.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"more than fits"), false)
            .unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        // The first piece leaves at once and waits in the stream. Behind it a second one is held, and whoever holds one
        // reads no more of the request: that its client has gone shows in nothing but its answer's end.
        body.send_data(Bytes::from_static(b"and more still"), false)
            .unwrap();
        pass(Duration::from_millis(100)).await;
        body.send_reset(h2::Reason::CANCEL);
        drop(answer);
        let reason = tokio::time::timeout(Duration::from_secs(1), ended).await;
        let reason = reason.expect("the endpoint hears of it").unwrap();
        assert_eq!(reason, Some(h2::Reason::CANCEL));
    });
}

#[test]
fn an_endpoint_that_says_nothing_is_asked_no_more_often_than_servers_of_grpc_bear() {
    run(async {
        let pings = Rc::new(RefCell::new(0));
        let counted = Rc::clone(&pings);
        // By hand: settings, then an answer to each ping, and nothing to the request.
        let silent = script(move |_, mut stream| {
            let pings = Rc::clone(&counted);
            async move {
                stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
                let mut preface = [0; 24];
                stream.read_exact(&mut preface).await.unwrap();
                let mut head = [0; 9];
                while stream.read_exact(&mut head).await.is_ok() {
                    let length = usize::from(head[1]) << 8 | usize::from(head[2]);
                    let mut payload = vec![0; length];
                    stream.read_exact(&mut payload).await.unwrap();
                    if (head[3], head[4]) == (6, 0) {
                        *pings.borrow_mut() += 1;
                        head[4] = 1;
                        stream
                            .write_all(&[&head[..], &payload].concat())
                            .await
                            .unwrap();
                    }
                }
            }
        });
        let world = world(vec![(1, silent)], &[1], |policy| {
            policy.http = HttpVersion::Two;
            policy.timeouts.request = Duration::from_secs(1_000);
            policy.retry.retries = 0;
        });
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 504"));
        // After 5 s, and then every 300 s.
        assert_eq!(*pings.borrow(), 4);
    });
}

#[test]
fn a_request_that_takes_too_long_costs_the_others_no_connection() {
    run(async {
        let after = Duration::from_millis(500);
        let slow = script(move |_, stream| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::task::spawn_local(async move {
                    if request.uri().path() != "/quick" {
                        pass(after).await;
                    }
                    let _ = respond.send_response(Response::new(()), true);
                });
            }
        });
        let world = world(vec![(1, slow)], &[1], |policy| {
            policy.http = HttpVersion::Two;
            policy.timeouts.request = Duration::from_millis(100);
            policy.retry.retries = 0;
        });
        for _ in 0..10 {
            assert!(world.ask(GET).await.starts_with("HTTP/1.1 504"));
        }
        let quick = "GET /quick HTTP/1.1\r\nhost: web.mesh\r\nconnection: close\r\n\r\n";
        assert!(world.ask(quick).await.starts_with("HTTP/1.1 200"));
        assert_eq!(world.dialled.borrow().len(), 1);
    });
}

#[test]
fn a_connection_on_which_a_request_waits_in_vain_is_asked_and_left_when_it_is_dead() {
    run(async {
        // The first is cut off after its first answer: what is sent to it is lost.
        let cut = script(move |number, stream| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let _ = respond.send_response(Response::new(()), true);
                if number == 0 {
                    tokio::time::timeout(Duration::from_millis(10), connection.accept())
                        .await
                        .expect_err("nobody asks for more");
                    return std::future::pending().await;
                }
            }
        });
        let world = world(vec![(1, cut)], &[1], |policy| {
            policy.http = HttpVersion::Two;
            policy.timeouts.request = Duration::from_millis(100);
            policy.retry.retries = 0;
        });
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
        pass(Duration::from_millis(20)).await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 504"));
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
        assert_eq!(world.dialled.borrow().len(), 2);
        pass(Duration::from_secs(3)).await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
        assert_eq!(world.dialled.borrow().len(), 2);
        let (_, open) = world.worker.pool.borrow().count();
        assert_eq!(open, 1, "the dead one is let go of");
    });
}

/// The worker has a connection on which the endpoint has chosen HTTP/2 inside TLS; streams may leave HTTP, or not.
async fn has_agreed(world: &World, lets_leave: bool) {
    let (ours, theirs) = duplex(64 * 1024);
    tokio::task::spawn_local(async move {
        let mut server = h2::server::Builder::new();
        if lets_leave {
            server.enable_connect_protocol();
        }
        let mut connection = server.handshake::<_, Bytes>(theirs).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let protocol = request.extensions().get::<h2::ext::Protocol>();
            assert_eq!(protocol.map(h2::ext::Protocol::as_str), Some("websocket"));
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream
                .send_data(Bytes::from_static(b"hello"), true)
                .unwrap();
        }
    });
    let worker = &world.worker;
    let snapshot = worker.snapshot();
    let upstream = snapshot.upstream("web").unwrap();
    let ask = Ask::default();
    let pick = (worker.desk(upstream)).pick(worker, upstream, &ask, worker.clock.now());
    let endpoint = pick.unwrap().endpoint;
    let entry = listed(worker, upstream, &endpoint, Transport::Pipe(ours));
    entry.speaks(Spoken::Http2);
    let line = client::open(entry, &worker.buffers, 64 * 1024)
        .await
        .unwrap();
    assert_eq!(line.lets_leave().await, lets_leave);
    let between = Between {
        client: 0,
        endpoint: endpoint.id,
    };
    worker.pool.borrow_mut().agree_http2(between, line);
}

#[test]
fn a_websocket_takes_the_http2_that_was_agreed_where_streams_may_leave_it() {
    let ask = "GET /chat HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    for lets_leave in [true, false] {
        run(async {
            let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
            has_agreed(&world, lets_leave).await;
            let mut client = world.client();
            client.write_all(ask.as_bytes()).await.unwrap();
            let answer = head(&mut client).await;
            if lets_leave {
                assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
                let accepted = "\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
                assert!(
                    answer.to_lowercase().contains(&accepted.to_lowercase()),
                    "{answer}"
                );
                let mut hello = [0; 5];
                client.read_exact(&mut hello).await.unwrap();
                assert_eq!(&hello, b"hello");
                assert_eq!(*world.dialled.borrow(), [], "another connection");
            } else {
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                let asked = head(&mut client).await.to_lowercase();
                assert!(asked.contains("\r\nupgrade: websocket\r\n"), "{asked}");
                assert_eq!(*world.dialled.borrow(), [address(1)]);
            }
        });
    }
}
