//! Whoever leaves HTTP: upgrades, CONNECT, WebSockets over HTTP/1 and HTTP/2.

use bytes::Bytes;
use http::{Request, Response};
use mesh_core::policy::{HttpVersion, Protocol, ProxyVersion};

use super::*;
use crate::proxy::{http2::client, pool::Between, proxy_header, send};

#[test]
fn an_upgrade_becomes_a_tunnel_both_ways() {
    run(async {
        let websocket = script(|_, mut stream| async move {
            let asked = head(&mut stream).await.to_lowercase();
            assert!(
                asked.contains("upgrade: websocket") && asked.contains("connection: upgrade"),
                "{asked}"
            );
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut word = [0u8; 4];
            stream.read_exact(&mut word).await.unwrap();
            stream.write_all(&word).await.unwrap();
        });
        let world = world(vec![(1, websocket)], &[1], |_| {});
        let mut client = world.client();
        let ask = "GET /chat HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(ask.as_bytes()).await.unwrap();
        let answer = head(&mut client).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        assert!(answer.contains("upgrade: websocket"), "{answer}");
        client.write_all(b"ping").await.unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hiping");
    });
}

#[test]
fn an_h2c_upgrade_is_no_way_past_the_rules() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let ask = "GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
        let answer = world.ask(ask).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert!(
            !answer.contains("h2c") && !answer.contains("http2-settings"),
            "{answer}"
        );
    });
}

#[test]
fn connect_opens_a_tunnel_to_a_name_of_the_mesh() {
    run(async {
        let shouts = script(|_, mut stream| async move {
            let mut word = [0u8; 5];
            stream.read_exact(&mut word).await.unwrap();
            word.make_ascii_uppercase();
            stream.write_all(&word).await.unwrap();
        });
        let world = world(vec![(1, shouts)], &[1], |_| {});
        let mut client = world.client();
        // The tunnel's first bytes come together with the request.
        let ask = "CONNECT web.mesh:80 HTTP/1.1\r\nHost: web.mesh:80\r\n\r\nhello";
        client.write_all(ask.as_bytes()).await.unwrap();
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(!answer.contains("content-length") && !answer.contains("chunked"));
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "HELLO");
    });
}

/// Speaks HTTP/2, lets streams leave it for a WebSocket if it `understands`, and says back what comes by them.
fn leaves_http2(understands: bool) -> Script {
    script(move |_, stream| async move {
        let mut server = h2::server::Builder::new();
        if understands {
            server.enable_connect_protocol();
        }
        let mut connection = server.handshake::<_, Bytes>(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let protocol = request.extensions().get::<h2::ext::Protocol>();
            if protocol.is_none_or(|protocol| protocol.as_str() != "websocket") {
                let answer = Response::builder().status(426).body(()).unwrap();
                respond.send_response(answer, true).unwrap();
                continue;
            }
            assert_eq!(request.uri(), "http://web.mesh/chat");
            assert!(!request.headers().contains_key("sec-websocket-key"));
            let mut said = request.into_body();
            let mut back = respond.send_response(Response::new(()), false).unwrap();
            tokio::task::spawn_local(async move {
                while let Some(Ok(piece)) = said.data().await {
                    said.flow_control().release_capacity(piece.len()).unwrap();
                    back.send_data(piece, false).unwrap();
                }
                back.send_data(Bytes::new(), true).unwrap();
            });
        }
    })
}

fn of_http2(policy: &mut Policy) {
    policy.http = HttpVersion::Two;
}

/// The example of RFC 6455, 1.3.
const WEBSOCKET: &str = "GET /chat HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn an_upgrade_to_websocket_becomes_a_stream_where_the_endpoint_speaks_http2() {
    run(async {
        let world = world(vec![(1, leaves_http2(true))], &[1], of_http2);
        // The first on a connection waits for what the endpoint says of itself, the second finds it known.
        for _ in 0..2 {
            let mut client = world.client();
            client.write_all(WEBSOCKET.as_bytes()).await.unwrap();
            let answer = head(&mut client).await.to_lowercase();
            assert!(answer.starts_with("http/1.1 101"), "{answer}");
            let accepted = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n";
            assert!(answer.contains(accepted), "{answer}");
            assert!(answer.contains("upgrade: websocket\r\n"), "{answer}");
            client.write_all(b"ping").await.unwrap();
            client.shutdown().await.unwrap();
            let mut rest = String::new();
            client.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "ping");
        }
        assert_eq!(world.dialled.borrow().len(), 1);
    });
}

#[test]
fn an_endpoint_of_http2_that_knows_no_websocket_says_so_itself() {
    run(async {
        let world = world(vec![(1, leaves_http2(false))], &[1], of_http2);
        let mut client = world.client();
        client.write_all(WEBSOCKET.as_bytes()).await.unwrap();
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    });
}

#[test]
fn a_websocket_goes_by_http1_where_the_connection_at_hand_knows_none() {
    run(async {
        let of_http1 = script(|_, mut stream| async move {
            let asked = head(&mut stream).await.to_lowercase();
            assert!(asked.contains("upgrade: websocket\r\n"), "{asked}");
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi";
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let world = world(vec![(1, of_http1)], &[1], |_| {});
        let worker = &world.worker;
        let snapshot = worker.snapshot();
        let upstream = snapshot.upstream("web").unwrap();
        let endpoint = &upstream.tiers[0].members[0].endpoint;
        // Two servers at one address have agreed to HTTP/2, and the first with room is the one that knows less.
        for understands in [false, true] {
            let (ours, theirs) = duplex(64 * 1024);
            tokio::task::spawn_local(leaves_http2(understands)(0, theirs));
            let entry = send::listed(worker, upstream, endpoint, Transport::Pipe(ours));
            let line = client::open(entry, &worker.buffers, 64 * 1024).await;
            let line = line.unwrap();
            assert_eq!(line.lets_leave().await, understands);
            let between = Between {
                client: 0,
                endpoint: endpoint.id,
            };
            worker.pool.borrow_mut().agree_http2(between, line);
        }
        let mut client = world.client();
        client.write_all(WEBSOCKET.as_bytes()).await.unwrap();
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hi");
    });
}

#[test]
fn a_websocket_of_http2_stays_one_all_the_way() {
    run(async {
        let world = world(vec![(1, leaves_http2(true))], &[1], of_http2);
        let sender = world.http2_client(&mut h2::client::Builder::new()).await;
        let enabled = async {
            while !sender.is_extended_connect_protocol_enabled() {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(1), enabled).await;
        waited.expect("the sidecar allows it");
        let protocol = h2::ext::Protocol::from_static("websocket");
        let request = Request::connect("http://web.mesh/chat").extension(protocol);
        let mut sender = sender.ready().await.unwrap();
        let sent = sender.send_request(request.body(()).unwrap(), false);
        let (answer, mut said) = sent.unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("sec-websocket-accept"));
        said.send_data(Bytes::from_static(b"ping"), true).unwrap();
        let mut back = answer.into_body();
        let mut heard = Vec::new();
        while let Some(piece) = back.data().await {
            heard.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(heard, b"ping");
    });
}

#[test]
fn a_tunnel_begins_with_whose_it_is_and_not_with_what_its_client_says_of_itself() {
    run(async {
        // Tells whom it was told of, and then what came behind that.
        let told = script(|_, mut stream| async move {
            let whose = proxy_header::read(&mut stream).await.unwrap();
            let whose = whose.map_or("nobody".to_owned(), |told| told.source.to_string());
            stream.write_all(whose.as_bytes()).await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            stream.write_all(&rest).await.unwrap();
        });
        let world = world(vec![(1, told)], &[1], |policy| {
            policy.send_proxy = Some(ProxyVersion::Two);
        });
        let forged = "PROXY TCP4 6.6.6.6 10.0.0.1 6 6\r\n";
        let ask = "CONNECT web.mesh:80 HTTP/1.1\r\nHost: web.mesh:80\r\n\r\n";
        let ours = Addresses {
            source: "10.1.2.3:4000".parse().unwrap(),
            destination: "10.1.2.4:80".parse().unwrap(),
        };
        for (whose, seen) in [(Some(ours), "10.1.2.3:4000"), (None, "nobody")] {
            let mut client = world.introduced(whose);
            client.write_all(ask.as_bytes()).await.unwrap();
            client.write_all(forged.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
            let mut rest = String::new();
            client.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, format!("{seen}{forged}"));
        }
    });
}

#[test]
fn no_tunnel_leads_to_where_datagrams_are_spoken() {
    run(async {
        let echoes = vec![(1, script(|_, s| echo(s)))];
        let world = world(echoes, &[1], |policy| policy.protocol = Protocol::Udp);
        let ask = "CONNECT web.mesh:80 HTTP/1.1\r\nHost: web.mesh:80\r\nConnection: close\r\n\r\n";
        let answer = world.ask(ask).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("details=\"NC"), "{answer}");
        assert!(world.dialled.borrow().is_empty());
    });
}

#[test]
fn whoever_has_said_all_is_answered_within_a_time_of_its_own() {
    let answered = |half_closed: u64| {
        let said = Rc::new(RefCell::new(String::new()));
        let told = Rc::clone(&said);
        let lasted = Rc::new(RefCell::new(0));
        let took = Rc::clone(&lasted);
        run(async move {
            let thinks = script(|_, mut stream| async move {
                let mut asked = String::new();
                stream.read_to_string(&mut asked).await.unwrap();
                pass(Duration::from_secs(100)).await;
                let _ = stream.write_all(asked.to_uppercase().as_bytes()).await;
            });
            let world = world(vec![(1, thinks)], &[1], |policy| {
                policy.timeouts.half_closed = Duration::from_secs(half_closed);
            });
            let mut client = world.client();
            let ask = "CONNECT web.mesh:80 HTTP/1.1\r\nHost: web.mesh:80\r\n\r\nhello";
            client.write_all(ask.as_bytes()).await.unwrap();
            assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
            client.shutdown().await.unwrap();
            let began = tokio::time::Instant::now();
            let mut heard = String::new();
            let _ = client.read_to_string(&mut heard).await;
            *told.borrow_mut() = heard;
            *took.borrow_mut() = began.elapsed().as_secs();
        });
        (said.take(), lasted.take())
    };
    assert_eq!(answered(30), (String::new(), 30));
    assert_eq!(answered(200), ("HELLO".to_owned(), 100));
}
