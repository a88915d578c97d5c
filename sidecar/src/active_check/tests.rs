use std::sync::Arc;

use mesh_core::policy::ProxyVersion;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::{http::BODY_BYTES_MAX, *};
use crate::{
    config::{HttpCheck, Pattern, Statuses},
    proxy::proxy_header,
    tls::{Inside, ServerTls, tests::Office},
};

fn http(path: &str, timeout_ms: u64) -> Check {
    Check {
        kind: CheckKind::Http(HttpCheck::get(path)),
        interval: Duration::from_millis(20),
        timeout: Duration::from_millis(timeout_ms),
        fall: 1,
        rise: 1,
    }
}

async fn asked(check: &Check, address: SocketAddr, host: &str) -> Result<Finding, Fault> {
    once(check, &Subject::in_the_clear(address, host)).await
}

/// Answers every connection with `answer` once it has read a request's head; gives what it read.
async fn server(answer: Vec<u8>) -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, heads) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let n = stream.read(&mut head).await.unwrap();
            let _ = seen.try_send(String::from_utf8_lossy(&head[..n]).into_owned());
            let _ = stream.write_all(&answer).await;
            if answer.is_empty() {
                // Silent, but connected, for as long as the caller stays.
                let _ = stream.read(&mut head).await;
            }
        }
    });
    (address, heads)
}

#[tokio::test]
async fn only_200_to_399_passes() {
    for (status, passes) in [
        ("200 OK", true),
        ("204 No Content", true),
        ("302 Found", true),
        ("399 Odd", true),
        ("400 Bad Request", false),
        ("404 Not Found", false),
        ("503 Service Unavailable", false),
    ] {
        let (address, mut heads) =
            server(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into()).await;
        let result = asked(&http("/healthz", 5_000), address, "app:80").await;
        assert_eq!(result.is_ok(), passes, "{status}: {result:?}");
        let head = heads.recv().await.unwrap();
        assert!(head.starts_with("GET /healthz HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("host: app:80\r\n"), "{head}");
    }
}

#[tokio::test]
async fn method_status_and_body_are_as_the_check_says() {
    let answer = "HTTP/1.1 503 Busy\r\ncontent-length: 15\r\n\r\n{\"role\": \"main\"}";
    for (status, pattern, passes) in [
        (200..=399, None, false),
        (503..=503, None, true),
        (503..=503, Some("\"role\":\\s*\"main\""), true),
        (500..=599, Some("spare"), false),
    ] {
        let (address, mut heads) = server(answer.into()).await;
        let kind = CheckKind::Http(HttpCheck {
            method: ::http::Method::POST,
            status: vec![Statuses(status), Statuses(100..=199)],
            body: pattern.map(|text| Pattern::new(text).unwrap()),
            ..HttpCheck::get("/role?of=me")
        });
        let check = Check {
            kind,
            ..http("", 5_000)
        };
        let result = asked(&check, address, "app").await;
        assert_eq!(result.is_ok(), passes, "{pattern:?}: {result:?}");
        let head = heads.recv().await.unwrap();
        assert!(head.starts_with("POST /role?of=me HTTP/1.1\r\n"), "{head}");
    }
}

/// Answers gRPC calls with `message` and, in the trailers, `code`.
async fn answer_grpc(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    message: &'static [u8],
    code: &'static str,
) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let mut asked = request.into_body();
        let head = ::http::Response::builder().header("content-type", "application/grpc");
        let mut body = respond
            .send_response(head.body(()).unwrap(), false)
            .unwrap();
        tokio::spawn(async move {
            let question = asked.data().await.unwrap().unwrap();
            assert_eq!(&question[..], b"\0\0\0\0\x05\x0a\x03a.B");
            body.send_data(bytes::Bytes::from_static(message), false)
                .unwrap();
            let mut trailers = ::http::HeaderMap::new();
            trailers.insert("grpc-status", code.parse().unwrap());
            body.send_trailers(trailers).unwrap();
        });
    }
}

/// A gRPC server that answers one call with `message` and, in the trailers, `code`.
async fn grpc_server(message: &'static [u8], code: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        answer_grpc(stream, message, code).await;
    });
    address
}

#[tokio::test]
async fn only_a_server_that_says_serving_passes_a_grpc_check() {
    let check = Check {
        kind: CheckKind::Grpc {
            service: "a.B".into(),
        },
        ..http("", 5_000)
    };
    for (message, code, expected) in [
        (&b"\0\0\0\0\x02\x08\x01"[..], "0", ""),
        (b"\0\0\0\0\x02\x08\x02", "0", "NOT_SERVING"),
        (b"\0\0\0\0\0", "0", "UNKNOWN"),
        (b"", "5", "status 5 (it knows no service"),
        (b"", "12", "it has no health service"),
        (b"\0\0\0\0\x02\x08\x01", "14", "status 14"),
        (b"\0\0\0\0\x09\x08", "0", "no health answer"),
    ] {
        let address = grpc_server(message, code).await;
        let said = match asked(&check, address, "app:80").await {
            Ok(finding) => {
                assert_eq!(finding, Finding::Well);
                String::new()
            }
            Err(fault) => fault.to_string(),
        };
        let fits = said.contains(expected) && said.is_empty() == expected.is_empty();
        assert!(fits, "{message:?} {code}: {said}");
    }
    let (http1, _heads) = server(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()).await;
    let fault = asked(&check, http1, "app").await.unwrap_err();
    assert!(matches!(fault, Fault::Grpc(_)), "{fault:?}");
}

#[tokio::test]
async fn a_program_that_hangs_is_out_of_time() {
    let check = Check {
        kind: CheckKind::Exec {
            command: ["/bin/sleep", "600"].map(Box::from).into(),
        },
        ..http("", 50)
    };
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let fault = asked(&check, address, "app").await.unwrap_err();
    assert!(matches!(fault, Fault::TimedOut), "{fault:?}");
}

#[tokio::test]
async fn garbage_silence_and_endless_heads_fail() {
    let (garbage, _heads) = server(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()).await;
    let fault = asked(&http("/", 5_000), garbage, "app").await.unwrap_err();
    assert!(matches!(fault, Fault::Http(_)), "{fault:?}");

    let (silent, _heads) = server(Vec::new()).await;
    let fault = asked(&http("/", 30), silent, "app").await.unwrap_err();
    assert!(matches!(fault, Fault::TimedOut), "{fault:?}");

    let mut long = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
    long.resize(HEAD_BYTES_MAX * 4, b'a');
    let (endless, _heads) = server(long).await;
    let fault = asked(&http("/", 5_000), endless, "app").await.unwrap_err();
    assert!(matches!(fault, Fault::Http(_)), "{fault:?}");
}

#[tokio::test]
async fn a_body_without_end_is_read_to_a_bound() {
    let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    endless.resize(BODY_BYTES_MAX * 8, b'a');
    let (address, _heads) = server(endless).await;
    asked(&http("/", 5_000), address, "app").await.unwrap();
}

#[tokio::test]
async fn a_tcp_check_needs_a_listener_only() {
    let check = Check {
        kind: CheckKind::Tcp,
        ..http("", 5_000)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    asked(&check, address, "").await.unwrap();
    drop(listener);
    let fault = asked(&check, address, "").await.unwrap_err();
    assert!(matches!(fault, Fault::Connect(_)), "{fault:?}");
}

#[test]
fn checks_are_quick_until_the_first_verdict_and_never_for_ever() {
    let mut check = http("/", 1_000);
    check.interval = Duration::from_secs(2);
    let fresh = Verdict::new(1, 1);
    let mut well = fresh.clone();
    well.record(Health::Passing);
    for _ in 0..100 {
        let quick = pause(&check, &fresh, Duration::ZERO).as_millis();
        assert!((225..=275).contains(&quick), "{quick}");
        let late = pause(&check, &fresh, FIRST_INTERVAL_UNTIL).as_millis();
        assert!((1800..=2200).contains(&late), "{late}");
        let usual = pause(&check, &well, Duration::ZERO).as_millis();
        assert!((1800..=2200).contains(&usual), "{usual}");
    }
}

/// A server behind TLS that speaks `inside` and answers one request of either HTTP with success.
async fn behind_tls(office: &Office, inside: Inside) -> SocketAddr {
    let files = office.server(office.sign("shop.internal", 7));
    let tls = ServerTls::load(&files, inside).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
            tokio::spawn(async move {
                let mut header = [0; 15];
                stream.read_exact(&mut header).await.unwrap();
                assert_eq!(&header, b"PROXY UNKNOWN\r\n");
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    return answer_grpc(stream, b"\0\0\0\0\x02\x08\x01", "0").await;
                }
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                let _ = stream.write_all(answer).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn checks_shake_hands_where_requests_do() {
    let office = Office::open("checks");
    let address = behind_tls(&office, Inside::EitherHttp).await;
    let tls = |name: &str| ClientTls::load(&office.client(name), Inside::EitherHttp).unwrap();
    let subject = |tls| Subject {
        tls,
        introduction: proxy_header::write(ProxyVersion::One, None),
        ..Subject::in_the_clear(address, "shop")
    };
    let grpc = Check {
        kind: CheckKind::Grpc {
            service: "a.B".into(),
        },
        ..http("", 5_000)
    };
    for check in [&http("/healthz", 5_000), &grpc] {
        // The same server speaks both, and each check what it asks by.
        let finding = once(check, &subject(Some(tls("shop.internal")))).await;
        assert_eq!(finding.unwrap(), Finding::Well);
        let fault = once(check, &subject(Some(tls("other.internal")))).await;
        assert!(matches!(fault, Err(Fault::Tls(_))), "{fault:?}");
        let fault = once(check, &subject(None)).await;
        assert!(
            matches!(fault, Err(Fault::Http(_) | Fault::Grpc(_))),
            "{fault:?}"
        );
    }
}
