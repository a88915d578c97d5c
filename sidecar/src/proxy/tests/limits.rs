//! What a client may take its time for, and how much of it is borne.

use http::{HeaderName, Request};

use super::*;
use crate::proxy::{
    detect::PREFACE,
    patience::{CLIENT_IDLE, HEAD_READ},
};

/// Reads to the end; what was read, and how long that took.
async fn rest_of(client: &mut DuplexStream) -> (Vec<u8>, Duration) {
    let began = tokio::time::Instant::now();
    let mut told = Vec::new();
    let read = tokio::time::timeout(CLIENT_IDLE * 2, client.read_to_end(&mut told)).await;
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
                    () = tokio::time::sleep(Duration::from_secs(3)) => {}
                }
            }
            panic!("it was listened to for {:?}", began.elapsed());
        };
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert_eq!(began.elapsed().as_secs(), HEAD_READ.as_secs());
    });
}

#[test]
fn a_head_of_http2_that_does_not_end_is_waited_for_ten_seconds_whatever_else_goes_on() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let mut client = world.client();
        client.write_all(PREFACE).await.unwrap();
        client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        // Two fields of the static table, and the block goes on.
        client
            .write_all(&frame(1, 1, 1, &[0x82, 0x86]))
            .await
            .unwrap();
        let (_, lasted) = rest_of(&mut client).await;
        assert_eq!(lasted.as_secs(), HEAD_READ.as_secs());

        // The same where half of a frame is missing.
        let mut client = world.client();
        let head = frame(1, 5, 1, &[0x82; 100]);
        client.write_all(PREFACE).await.unwrap();
        client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        client.write_all(&head[..50]).await.unwrap();
        let (_, lasted) = rest_of(&mut client).await;
        assert_eq!(lasted.as_secs(), HEAD_READ.as_secs());
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
            () = tokio::time::sleep(pause) => {}
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
        let borne = dripped(1, second, CLIENT_IDLE * 3).await;
        assert!(
            borne >= CLIENT_IDLE && borne < CLIENT_IDLE + second * 5,
            "{borne:?}"
        );
        // A few kilobytes at a time, and pieces of the answer are taken whole: not enough of them.
        let borne = dripped(1_000, second * 10, CLIENT_IDLE * 3).await;
        assert!(borne >= CLIENT_IDLE && borne < CLIENT_IDLE * 2, "{borne:?}");
        // A line of 1 KB/s is slow, and gets its answer.
        let max = CLIENT_IDLE * 3;
        assert_eq!(dripped(1_000, second, max).await, max);
    });
}
