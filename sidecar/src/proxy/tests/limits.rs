//! What a client may take its time for, and how much of it is borne.

use http::{HeaderName, Request};

use super::*;
use crate::proxy::{detect::PREFACE, patience::FAREWELL};

/// How long a request's head may take, if nothing else is said.
const HEAD: Duration = Duration::from_secs(10);

/// Reads to the end; what was read, and how long that took.
async fn rest_of(client: &mut DuplexStream) -> (Vec<u8>, Duration) {
    let began = tokio::time::Instant::now();
    let mut told = Vec::new();
    let read = tokio::time::timeout(IDLE * 2, client.read_to_end(&mut told)).await;
    // A connection that is cut tells what it told before.
    let _ = read.expect("it is not waited for for ever");
    (told, began.elapsed())
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

#[test]
fn a_client_that_never_says_what_it_speaks_is_told_so_after_ten_seconds() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let mut client = world.client();
        let began = tokio::time::Instant::now();
        let (mut reading, mut writing) = tokio::io::split(&mut client);
        let told = async {
            let mut told = String::new();
            reading.read_to_string(&mut told).await.unwrap();
            told
        };
        let mut told = std::pin::pin!(told);
        let answer = 'told: {
            // The preface of HTTP/2, a byte in 3 s.
            for byte in PREFACE {
                writing.write_all(&[*byte]).await.unwrap();
                tokio::select! {
                    told = &mut told => break 'told told,
                    () = pass(Duration::from_secs(3)) => {}
                }
            }
            panic!("it was listened to for {:?}", began.elapsed());
        };
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert_eq!(began.elapsed().as_secs(), HEAD.as_secs());
    });
}

#[test]
fn a_head_of_http2_that_does_not_end_is_waited_for_ten_seconds_whatever_else_goes_on() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let mut client = world.client();
        client.write_all(PREFACE).await.unwrap();
        client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        pass(Duration::from_secs(60)).await;
        // Two fields of the static table, and the block goes on.
        client
            .write_all(&frame(1, 1, 1, &[0x82, 0x86]))
            .await
            .unwrap();
        let (_, lasted) = rest_of(&mut client).await;
        assert_eq!(lasted.as_secs(), HEAD.as_secs());

        // The same where half of a frame is missing.
        let mut client = world.client();
        let head = frame(1, 5, 1, &[0x82; 100]);
        client.write_all(PREFACE).await.unwrap();
        client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        client.write_all(&head[..50]).await.unwrap();
        let (_, lasted) = rest_of(&mut client).await;
        assert_eq!(lasted.as_secs(), HEAD.as_secs());
    });
}

#[test]
fn a_hundred_fields_are_taken_by_http2_too_and_cookies_count_once() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let mut client = world.http2_client(&mut h2::client::Builder::new()).await;
        let mut ask = async |fields: usize, cookies: usize| {
            let mut request = Request::get("http://web.mesh/").body(()).unwrap();
            for number in 0..fields {
                let name = HeaderName::try_from(format!("x-{number}")).unwrap();
                request.headers_mut().insert(name, "1".parse().unwrap());
            }
            for number in 0..cookies {
                let crumb = format!("c{number}=1").parse().unwrap();
                request.headers_mut().append("cookie", crumb);
            }
            let (answer, _) = client.send_request(request, true).unwrap();
            answer.await.unwrap().status()
        };
        assert_eq!(ask(100, 0).await, 200);
        assert_eq!(ask(101, 0).await, 431);
        assert_eq!(ask(99, 50).await, 200);
        assert_eq!(ask(100, 1).await, 431);
    });
}

#[test]
fn http10_may_leave_out_the_host_at_an_upstreams_own_listener() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let ask = async |upstream: Option<&str>, request: &str| {
            let (mut client, server) = duplex(64 * 1024);
            world.serve(server, None, upstream);
            client.write_all(request.as_bytes()).await.unwrap();
            String::from_utf8(rest_of(&mut client).await.0).unwrap()
        };
        let answer = ask(Some("web"), "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("\r\nhost: web.mesh\r\n"), "{answer}");
        let answer = ask(Some("web"), "GET / HTTP/1.1\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let answer = ask(None, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let request =
            "GET http://web.mesh:80/ HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n\r\n";
        let answer = ask(None, request).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}

/// Asks for an answer without end and opens the window for it, 0 at first, by `grant` bytes every `pause`; how long that
/// is borne, at most `max`.
async fn dripped(grant: u32, pause: Duration, max: Duration) -> Duration {
    let endless = script(|_, mut stream| async move {
        head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        while stream.write_all(&[b'a'; 1_000]).await.is_ok() {}
    });
    let world = world(vec![(1, endless)], &[1], |_| {});
    let mut client = world.client();
    // SETTINGS_INITIAL_WINDOW_SIZE of 0; GET http://web.mesh/.
    let block = [&[0x82, 0x86, 0x84, 0x01, 8][..], b"web.mesh"].concat();
    let hello = [
        PREFACE,
        &frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]),
        &frame(1, 5, 1, &block),
    ]
    .concat();
    client.write_all(&hello).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(client);
    let reset = async {
        loop {
            let mut head = [0; 9];
            reading.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            reading
                .read_exact(&mut vec![0; length as usize])
                .await
                .unwrap();
            if head[3] == 3 {
                return;
            }
        }
    };
    let mut reset = std::pin::pin!(reset);
    let began = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = &mut reset => return began.elapsed(),
            () = pass(pause) => {}
        }
        if began.elapsed() >= max {
            return max;
        }
        for stream in [0, 1] {
            let update = frame(8, 0, stream, &grant.to_be_bytes());
            writing.write_all(&update).await.unwrap();
        }
    }
}

#[test]
fn a_window_that_opens_by_drops_is_borne_as_long_as_one_that_stays_shut() {
    run(async {
        let second = Duration::from_secs(1);
        let borne = dripped(1, second, IDLE * 3).await;
        assert!(borne >= IDLE && borne < IDLE + second * 5, "{borne:?}");
        // A few kilobytes at a time, and pieces of the answer are taken whole: not enough of them.
        let borne = dripped(1_000, second * 10, IDLE * 3).await;
        assert!(borne >= IDLE && borne < IDLE * 2, "{borne:?}");
        // A line of 1 KB/s is slow, and gets its answer.
        let max = IDLE * 3;
        assert_eq!(dripped(1_000, second, max).await, max);
    });
}

/// Answers each request once its body has come whole; those that break off are noted.
fn whole_bodies(broken: &Rc<RefCell<u32>>) -> Script {
    let broken = Rc::clone(broken);
    script(move |_, mut stream| {
        let broken = Rc::clone(&broken);
        async move {
            loop {
                let asked = head(&mut stream).await;
                if asked.is_empty() {
                    return;
                }
                let length = asked
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .map_or(0, |length| length.parse().unwrap());
                let mut body = vec![0; length];
                let mut whole = stream.read_exact(&mut body).await.is_ok();
                if asked.contains("transfer-encoding: chunked") {
                    let mut body = Vec::new();
                    while whole && !body.ends_with(b"0\r\n\r\n") {
                        whole = stream
                            .read_buf(&mut body)
                            .await
                            .is_ok_and(|count| count > 0);
                    }
                }
                if !whole {
                    *broken.borrow_mut() += 1;
                    return;
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        }
    })
}

#[test]
fn a_body_over_the_limit_is_refused_and_nobody_is_blamed() {
    run(async {
        let broken = Rc::default();
        let world = world(vec![(1, whole_bodies(&broken))], &[1], |policy| {
            policy.limits.body_bytes = Some(10);
            policy.ejection.consecutive = 1;
        });
        let put = |fields: &str, body: &str| {
            format!("PUT / HTTP/1.1\r\nhost: web.mesh\r\n{fields}\r\n\r\n{body}")
        };
        // Declared: before anything is forwarded, and without waiting for it.
        let answer = world.ask(&put("content-length: 11", "")).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert!(answer.contains("413 DPE: "), "{answer}");
        assert!(world.dialled.borrow().is_empty());
        // As much as may be.
        let close = "connection: close\r\ncontent-length: 10";
        let answer = world.ask(&put(close, "0123456789")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let chunked = "transfer-encoding: chunked";
        let fits = format!("connection: close\r\n{chunked}");
        let answer = world.ask(&put(&fits, "a\r\n0123456789\r\n0\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        // One that turns out longer, and goes on.
        for _ in 0..3 {
            let mut client = world.client();
            let begun = put(chunked, "6\r\n012345\r\n");
            client.write_all(begun.as_bytes()).await.unwrap();
            pass(Duration::from_millis(1)).await;
            client.write_all(b"5\r\n01234\r\n").await.unwrap();
            let answer = String::from_utf8(rest_of(&mut client).await.0).unwrap();
            assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        }
        assert_eq!(*broken.borrow(), 3, "the endpoint is rid of them");
        let answer = world.ask(&put(close, "0123456789")).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 "),
            "it was sent out: {answer}"
        );
    });
}

#[test]
fn a_body_over_the_limit_is_refused_by_http2_too_and_its_connection_lives() {
    run(async {
        let broken = Rc::default();
        let world = world(vec![(1, whole_bodies(&broken))], &[1], |policy| {
            policy.limits.body_bytes = Some(10);
        });
        let mut client = world.http2_client(&mut h2::client::Builder::new()).await;
        let mut put = async |length: Option<u64>, pieces: &[&'static [u8]]| {
            let mut request = Request::put("http://web.mesh/").body(()).unwrap();
            if let Some(length) = length {
                request
                    .headers_mut()
                    .insert("content-length", length.into());
            }
            let (answer, mut body) = client.send_request(request, false).unwrap();
            for piece in pieces {
                body.send_data(Bytes::from_static(piece), false).unwrap();
            }
            if pieces.iter().map(|piece| piece.len()).sum::<usize>() <= 10 && length.is_none() {
                body.send_data(Bytes::new(), true).unwrap();
            }
            answer.await.unwrap().status()
        };
        assert_eq!(put(Some(11), &[]).await, 413);
        assert!(world.dialled.borrow().is_empty());
        assert_eq!(put(None, &[b"0123456789"]).await, 200);
        assert_eq!(put(None, &[b"012345", b"01234"]).await, 413);
        assert_eq!(put(None, &[b"0123456789"]).await, 200);
        assert_eq!(*broken.borrow(), 1);
    });
}

#[test]
fn what_clients_may_take_is_as_configured() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let second = Duration::from_secs(1);
        world.set(|settings| {
            settings.limits.head = second;
            settings.limits.idle = second * 2;
            settings.limits.headers = 3;
            settings.limits.request_line_bytes = 100;
        });
        let lasts = async |said: &str| {
            let mut client = world.client();
            client.write_all(said.as_bytes()).await.unwrap();
            let (told, lasted) = rest_of(&mut client).await;
            (
                String::from_utf8_lossy(&told).into_owned(),
                lasted.as_secs(),
            )
        };
        assert_eq!(lasts("").await, (String::new(), 2));
        let (told, lasted) = lasts("GET").await;
        assert_eq!((&told[9..12], lasted), ("408", 1));
        let line = "a".repeat(100);
        let (told, _) = lasts(&format!("GET /{line} HTTP/1.1\r\nhost: web.mesh\r\n\r\n")).await;
        assert_eq!(&told[9..12], "414");
        let fields = "x-a: 1\r\nx-b: 2\r\nx-c: 3\r\n";
        let (told, _) = lasts(&format!("GET / HTTP/1.1\r\nhost: web.mesh\r\n{fields}\r\n")).await;
        assert_eq!(&told[9..12], "431");
        let (told, lasted) = lasts("GET / HTTP/1.1\r\nhost: web.mesh\r\n\r\n").await;
        assert_eq!((&told[9..12], lasted), ("200", 2));
        let hello = String::from_utf8([PREFACE, &frame(4, 0, 0, &[])].concat()).unwrap();
        assert_eq!(lasts(&hello).await.1, 2 + FAREWELL.as_secs());
        let begun =
            String::from_utf8([PREFACE, &frame(4, 0, 0, &[]), &frame(1, 0, 1, b"")].concat());
        assert_eq!(lasts(&begun.unwrap()).await.1, 1);
    });
}

#[test]
fn a_request_line_may_be_longer_than_all_fields_and_come_in_pieces() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        world.set(|settings| {
            settings.header_bytes = 8 * 1024;
            settings.limits.request_line_bytes = 32 * 1024;
        });
        let long = "a".repeat(20 * 1024);
        let answer = async |fields: &str| {
            let mut client = world.client();
            client.write_all(b"GET /").await.unwrap();
            client.write_all(long.as_bytes()).await.unwrap();
            pass(Duration::from_millis(1)).await;
            let rest = format!(" HTTP/1.1\r\nhost: web.mesh\r\nconnection: close\r\n{fields}\r\n");
            // One that is refused may be so before it has said all.
            let _ = client.write_all(rest.as_bytes()).await;
            String::from_utf8(rest_of(&mut client).await.0).unwrap()
        };
        let told = answer("").await;
        assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
        let told = answer(&format!("x-long: {}{}\r\n", long, long)).await;
        assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
    });
}

#[test]
fn a_head_that_came_while_an_answer_was_left_unread_is_served_when_that_is_read() {
    run(async {
        const ANSWER_BYTES: usize = 1 << 20;
        let large = script(|_, mut stream| async move {
            head(&mut stream).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {ANSWER_BYTES}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.write_all(&vec![b'a'; ANSWER_BYTES]).await.unwrap();
        });
        let world = world(vec![(1, large)], &[1], |_| {});
        let mut client = world.client();
        // GET http://web.mesh/.
        let block = [&[0x82, 0x86, 0x84, 0x01, 8][..], b"web.mesh"].concat();
        let window = (8_u32 << 20).to_be_bytes();
        let hello = [
            PREFACE,
            &frame(4, 0, 0, &[&[0, 4][..], &window].concat()),
            &frame(8, 0, 0, &window),
            &frame(1, 5, 1, &block),
        ]
        .concat();
        client.write_all(&hello).await.unwrap();
        pass(Duration::from_secs(1)).await;
        let second = frame(1, 5, 3, &block);
        client.write_all(&second[..12]).await.unwrap();
        pass(HEAD * 6).await;
        client.write_all(&second[12..]).await.unwrap();
        let mut taken = [0; 2];
        while taken != [ANSWER_BYTES; 2] {
            let mut head = [0; 9];
            client.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            client.read_exact(&mut vec![0; length]).await.unwrap();
            if head[3] == 0 {
                taken[usize::from(head[8] / 2)] += length;
            }
        }
    });
}
