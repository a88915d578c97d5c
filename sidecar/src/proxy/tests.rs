//! The path without a socket: a client's pipe in, endpoints' pipes out, time paused.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use mesh_core::{
    balance::{Ask, PickKind},
    mesh::Mesh,
    outcome::{Outcome, Unreachable},
    policy::{FixedEndpoint, HttpVersion, Place as At, Policy, Protocol, ProxyVersion, Weight},
    snapshot::{Inputs, Snapshot},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{Notify, watch},
    task::LocalSet,
};
use tower::Service;

use super::{
    attempt::Attempt,
    dial::{Local, Target},
    front,
    headers::Via,
    listen::Place,
    patience::{CLIENT_IDLE, FAREWELL},
    proxy_header::{self, Addresses},
    transport::Transport,
    worker::{Common, Phase, Settings, Worker},
};
use crate::{clock::Clock, proxy::welcome::Caller};

/// What an endpoint does with the n-th connection to it.
type Script = Rc<dyn Fn(usize, DuplexStream) -> Local<()>>;

/// Endpoints by address; one that is not here refuses.
#[derive(Clone, Default)]
struct Endpoints {
    scripts: BTreeMap<SocketAddr, Script>,
    dialled: Rc<RefCell<Vec<SocketAddr>>>,
    /// Those that swallow connections without a word.
    silent: Rc<RefCell<Vec<SocketAddr>>>,
}

impl Service<Target> for Endpoints {
    type Response = Transport;
    type Error = io::Error;
    type Future = Local<io::Result<Transport>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let before = self
            .dialled
            .borrow()
            .iter()
            .filter(|at| **at == target.address)
            .count();
        self.dialled.borrow_mut().push(target.address);
        let script = self.scripts.get(&target.address).cloned();
        let is_silent = self.silent.borrow().contains(&target.address);
        Box::pin(async move {
            if is_silent {
                return std::future::pending().await;
            }
            let script = script.ok_or(io::ErrorKind::ConnectionRefused)?;
            let (mut ours, theirs) = duplex(64 * 1024);
            tokio::task::spawn_local(script(before, theirs));
            if let Some(header) = &target.header {
                ours.write_all(header).await?;
            }
            Ok(Transport::Pipe(ours))
        })
    }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Reads one request head.
async fn head(stream: &mut DuplexStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => bytes.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Answers every request with its own head as body.
async fn echo(mut stream: DuplexStream) {
    loop {
        let head = head(&mut stream).await;
        if head.is_empty() {
            return;
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}",
            head.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

struct World {
    worker: Rc<Worker>,
    dialled: Rc<RefCell<Vec<SocketAddr>>>,
    silent: Rc<RefCell<Vec<SocketAddr>>>,
    phase: watch::Sender<Phase>,
}

/// What a worker shares where the service `web` has these endpoints.
pub(super) fn common(
    endpoints: impl Iterator<Item = SocketAddr>,
    change: impl FnOnce(&mut Policy),
) -> (Common, watch::Sender<Phase>) {
    let mut policy = Policy::of_service("web");
    policy.service = None;
    policy.endpoints = endpoints
        .map(|address| FixedEndpoint {
            place: At::Address(address),
            zone: None,
            weight: Weight::DEFAULT,
            backup: false,
        })
        .collect();
    change(&mut policy);
    let clock = Clock::new();
    let mesh = Arc::new(Mesh::default());
    let inputs = Inputs {
        mesh: &mesh,
        policies: &[Arc::new(policy)],
        undeclared: true,
        own_zone: "a",
        own_region: "a",
        own_name: "n",
        resolved: &BTreeMap::new(),
        not_passing: &BTreeMap::new(),
        session_keys: &Arc::default(),
        unix_ms: 1,
    };
    let snapshot = Snapshot::build(&inputs, &Snapshot::empty(), clock.now());
    let (phase, phases) = watch::channel(Phase::Open);
    let settings = Settings {
        node: "n".into(),
        service: None,
        via: Via::new("n"),
        domain: "mesh".into(),
        clients: Vec::new(),
        trusted_proxies: Vec::new(),
        control_headers: false,
        header_bytes: 64 * 1024,
        access_log: None,
        connection_age: None,
        tls: Default::default(),
    };
    let common = Common {
        clock,
        snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
        settings: Arc::new(ArcSwap::from_pointee(settings)),
        phase: phases,
        verdicts: Notify::new(),
    };
    (common, phase)
}

fn world(scripts: Vec<(u16, Script)>, ports: &[u16], change: impl FnOnce(&mut Policy)) -> World {
    let (common, phase) = common(ports.iter().copied().map(address), change);
    let endpoints = Endpoints {
        scripts: scripts
            .into_iter()
            .map(|(port, script)| (address(port), script))
            .collect(),
        dialled: Rc::default(),
        silent: Rc::default(),
    };
    let dialled = Rc::clone(&endpoints.dialled);
    let silent = Rc::clone(&endpoints.silent);
    let worker = Worker::with_connector(Arc::new(common), Box::new(endpoints));
    World {
        worker,
        dialled,
        silent,
        phase,
    }
}

fn script<F: Future<Output = ()> + 'static>(
    play: impl Fn(usize, DuplexStream) -> F + 'static,
) -> Script {
    Rc::new(move |number, stream| Box::pin(play(number, stream)))
}

impl World {
    /// Changes what the configuration says of all connections.
    fn set(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = Settings::clone(&self.worker.settings());
        change(&mut settings);
        self.worker.common.settings.store(Arc::new(settings));
    }

    fn client(&self) -> DuplexStream {
        self.introduced(None)
    }

    /// A client that came with this PROXY header, if any.
    fn introduced(&self, told: Option<Addresses>) -> DuplexStream {
        let (client, server) = duplex(64 * 1024);
        let caller = Caller {
            ip: Some([127, 0, 0, 1].into()),
            told,
        };
        let serving = front::serve(
            Rc::clone(&self.worker),
            Transport::Pipe(server),
            caller,
            None,
            Place::uncounted(),
        );
        tokio::task::spawn_local(serving);
        client
    }

    /// A client of HTTP/2 with these settings.
    async fn http2_client(&self, settings: &mut h2::client::Builder) -> SendRequest<Bytes> {
        let handshake = settings.handshake(self.client()).await;
        let (sender, connection) = handshake.unwrap();
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        sender
    }

    /// Sends one raw request on a connection of its own and reads until the other side closes.
    async fn ask(&self, request: &str) -> String {
        let mut client = self.client();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

const GET: &str = "GET /a?b=1 HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n\r\n";

fn run<F: Future<Output = ()>>(story: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(LocalSet::new().run_until(story));
}

#[test]
fn a_request_arrives_with_our_headers_and_its_own_host() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let answer = world.ask(GET).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 200 ok\r\n"), "{answer}");
        for expected in [
            "get /a?b=1 http/1.1\r\n",
            "host: web.mesh\r\n",
            "x-forwarded-for: 127.0.0.1\r\n",
            "forwarded: for=127.0.0.1;host=\"web.mesh\";proto=http\r\n",
            "via: 1.1 starling-n\r\n",
            "x-request-id: ",
        ] {
            assert!(
                answer.contains(expected),
                "{expected:?} is missing in {answer}"
            );
        }
        let sent = answer.split("\r\n\r\n").nth(1).unwrap();
        assert!(
            !sent.contains("connection:"),
            "hop-by-hop header went through: {sent}"
        );
    });
}

#[test]
fn a_refused_connection_is_tried_elsewhere_at_once() {
    run(async {
        let world = world(vec![(2, script(|_, s| echo(s)))], &[1, 2], |_| {});
        for _ in 0..20 {
            let answer = world.ask(GET).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        assert!(
            world.dialled.borrow().contains(&address(1)),
            "the dead one was never tried"
        );
    });
}

#[test]
fn with_nobody_listening_the_answer_says_so() {
    run(async {
        let world = world(vec![], &[1, 2], |_| {});
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("UF"), "{answer}");
        assert!(answer.contains("connection_refused"), "{answer}");
    });
}

/// Answers the first request of each connection and hangs up on the second; every later connection echoes.
fn dies_when_reused() -> Script {
    script(|number, mut stream| async move {
        if number > 0 {
            return echo(stream).await;
        }
        head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst")
            .await
            .unwrap();
        head(&mut stream).await;
    })
}

#[test]
fn a_kept_connection_that_died_costs_a_get_nothing() {
    run(async {
        let world = world(vec![(1, dies_when_reused())], &[1], |policy| {
            policy.retry.retries = 0
        });
        assert!(world.ask(GET).await.ends_with("first"));
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(world.dialled.borrow().len(), 2);
    });
}

#[test]
fn a_post_on_a_kept_connection_that_died_is_not_sent_twice() {
    run(async {
        let world = world(vec![(1, dies_when_reused())], &[1], |_| {});
        assert!(world.ask(GET).await.ends_with("first"));
        let post =
            "POST / HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
        let answer = world.ask(post).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        assert_eq!(world.dialled.borrow().len(), 1);
    });
}

#[test]
fn an_endpoint_that_never_answers_is_given_up_in_time() {
    run(async {
        let silent = script(|_, mut stream| async move {
            head(&mut stream).await;
            std::future::pending().await
        });
        let world = world(vec![(1, silent)], &[1], |policy| {
            policy.timeouts.request = Duration::from_millis(300);
        });
        let began = tokio::time::Instant::now();
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        assert!(began.elapsed() < Duration::from_millis(400));
    });
}

#[test]
fn a_gateway_error_is_tried_once_more_elsewhere() {
    run(async {
        let sick = script(|_, mut stream| async move {
            head(&mut stream).await;
            stream
                .write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
                .await
                .unwrap();
            head(&mut stream).await;
        });
        let world = world(
            vec![(1, sick), (2, script(|_, s| echo(s)))],
            &[1, 2],
            |_| {},
        );
        for _ in 0..10 {
            let answer = world.ask(GET).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    });
}

#[test]
fn a_small_body_is_sent_again_whole() {
    run(async {
        // Takes the whole request, body included, and hangs up.
        let mean = script(|_, mut stream| async move {
            head(&mut stream).await;
            let mut body = [0u8; 5];
            stream.read_exact(&mut body).await.unwrap();
        });
        let kind = script(|_, mut stream| async move {
            head(&mut stream).await;
            let mut body = [0u8; 5];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, b"hello");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await
                .unwrap();
        });
        for _ in 0..6 {
            let world = world(
                vec![(1, Rc::clone(&mean)), (2, Rc::clone(&kind))],
                &[1, 2],
                |_| {},
            );
            let put = "PUT / HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
            let answer = world.ask(put).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    });
}

#[test]
fn what_is_not_of_the_mesh_is_refused_with_its_reason() {
    run(async {
        let world = world(vec![], &[1], |_| {});
        let cases = [
            (
                "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
                "403",
                "RBAC",
            ),
            (
                "GET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
                "403",
                "RBAC",
            ),
            (
                "GET / HTTP/1.1\r\nHost: nobody.mesh\r\nConnection: close\r\n\r\n",
                "503",
                "NC",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a.mesh\r\nHost: b.mesh\r\nConnection: close\r\n\r\n",
                "400",
                "DPE",
            ),
            (
                "GET http://a.mesh/ HTTP/1.1\r\nHost: b.mesh\r\nConnection: close\r\n\r\n",
                "400",
                "DPE",
            ),
            (
                "GET / HTTP/1.1\r\nHost: web.mesh\r\nVia: 1.1 starling-n, 1.1 starling-n\r\nConnection: close\r\n\r\n",
                "502",
                "LOOP",
            ),
            (
                "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
                "403",
                "RBAC",
            ),
        ];
        for (request, status, flag) in cases {
            let answer = world.ask(request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{request}: {answer}"
            );
            assert!(
                answer.contains(&format!("details=\"{flag}")),
                "{request}: {answer}"
            );
        }
    });
}

#[test]
fn an_absolute_form_names_its_service() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let answer = world
            .ask("GET http://web.mesh/x HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n\r\n")
            .await;
        assert!(answer.contains("GET /x HTTP/1.1\r\n"), "{answer}");
    });
}

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

/// Reads one chunked body.
async fn chunked(stream: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"0\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => bytes.push(byte),
            Err(_) => break,
        }
    }
    bytes
}

#[test]
fn a_body_goes_to_one_try_at_a_time() {
    run(async {
        // Refuses at once and reads on, as a server does that wants to keep the connection.
        let early = script(|_, mut stream| async move {
            head(&mut stream).await;
            let no = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(no).await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        });
        let whole = script(|_, mut stream| async move {
            head(&mut stream).await;
            let body = chunked(&mut stream).await;
            let letters = body.iter().filter(|byte| byte.is_ascii_lowercase()).count();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{letters:05}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        for _ in 0..8 {
            let scripts = vec![(1, Rc::clone(&early)), (2, Rc::clone(&whole))];
            let world = world(scripts, &[1, 2], |_| {});
            let mut client = world.client();
            let ask = "PUT / HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
            client.write_all(ask.as_bytes()).await.unwrap();
            for _ in 0..50 {
                client
                    .write_all(b"10\r\nabcdefghijklmnop\r\n")
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
            client.write_all(b"0\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.ends_with("00800"), "{answer}");
        }
    });
}

#[test]
fn a_silent_endpoint_costs_a_post_nothing_but_time() {
    run(async {
        let world = world(vec![(2, script(|_, s| echo(s)))], &[1, 2], |policy| {
            policy.retry.per_try = Some(Duration::from_millis(300));
            policy.timeouts.connect = Duration::from_secs(1);
        });
        world.silent.borrow_mut().push(address(1));
        let post =
            "POST / HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        for _ in 0..8 {
            let answer = world.ask(post).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        assert!(
            world.dialled.borrow().contains(&address(1)),
            "the silent one was never tried"
        );
    });
}

#[test]
fn a_get_keeps_its_body_of_unknown_length() {
    run(async {
        let search = script(|_, mut stream| async move {
            let asked = head(&mut stream).await.to_lowercase();
            assert!(asked.contains("transfer-encoding: chunked"), "{asked}");
            let body = chunked(&mut stream).await;
            assert!(body.windows(5).any(|part| part == b"query"), "{body:?}");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await
                .unwrap();
        });
        let world = world(vec![(1, search)], &[1], |_| {});
        let ask = "GET /_search HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nquery\r\n0\r\n\r\n";
        let answer = world.ask(ask).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
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
fn limits_are_told_apart_from_failures() {
    run(async {
        let echoing = || vec![(1, script(|_, s| echo(s)))];
        let full = world(echoing(), &[1], |policy| policy.limits.requests = 0);
        let answer = full.ask(GET).await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("UO"),
            "{answer}"
        );
        assert!(answer.contains("retry-after"), "{answer}");

        let waiting = world(echoing(), &[1], |policy| policy.limits.pending = 0);
        let answer = waiting.ask(GET).await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("UO"),
            "{answer}"
        );
        assert_eq!(waiting.dialled.borrow().len(), 0);

        let narrow = world(echoing(), &[1], |policy| policy.limits.header_bytes = 100);
        let large = GET.replace("\r\n\r\n", &format!("\r\nx: {}\r\n\r\n", "y".repeat(100)));
        let answer = narrow.ask(&large).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    });
}

#[test]
fn a_trickling_head_is_cut_off_and_a_resting_connection_is_not() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let began = tokio::time::Instant::now();
        let mut slow = world.client();
        slow.write_all(b"GET / HTTP/1.1\r\nHost: web")
            .await
            .unwrap();
        let mut answer = Vec::new();
        slow.read_to_end(&mut answer).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 10);
        assert!(answer.starts_with(b"HTTP/1.1 408 "), "{answer:?}");

        let mut kept = world.client();
        for _ in 0..2 {
            kept.write_all(b"GET / HTTP/1.1\r\nHost: web.mesh\r\n\r\n")
                .await
                .unwrap();
            let answer = head(&mut kept).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            // The answer's body is the request's head: it ends like one.
            head(&mut kept).await;
            tokio::time::advance(Duration::from_secs(120)).await;
        }
    });
}

#[test]
fn garbage_gets_an_answer_or_an_end_and_harms_nobody() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        for garbage in [
            "\0\0\0\0\0\0",
            "GET\r\n\r\n",
            "\x16\x03\x01\x02\0",
            "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        ] {
            let mut client = world.client();
            client.write_all(garbage.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert!(!answer.starts_with(b"HTTP/1.1 2"), "{garbage:?}");
        }
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn a_caller_that_has_connected_is_heard_though_the_sidecar_ends() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let get = "GET / HTTP/1.1\r\nHost: web.mesh\r\n\r\n";
        // Whether its request is here already or still on the way must not matter; by chance it once did.
        for on_the_way in [false, true].repeat(16) {
            world.phase.send_replace(Phase::Open);
            let mut client = world.client();
            if on_the_way {
                tokio::task::yield_now().await;
            } else {
                client.write_all(get.as_bytes()).await.unwrap();
            }
            world.phase.send_replace(Phase::Ending);
            if on_the_way {
                tokio::time::sleep(Duration::from_millis(100)).await;
                client.write_all(get.as_bytes()).await.unwrap();
            }
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            let answer = answer.to_lowercase();
            assert!(answer.starts_with("http/1.1 200"), "{answer:?}");
            assert!(answer.contains("connection: close"), "{answer}");
        }
        // One that stays silent is not waited for.
        let mut silent = world.client();
        let mut nothing = String::new();
        silent.read_to_string(&mut nothing).await.unwrap();
        assert_eq!(nothing, "");
    });
}

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
                () = tokio::time::sleep(Duration::from_secs(60)) => {
                    assert!(began.elapsed() < CLIENT_IDLE * 2, "it is kept for ever");
                    assert_eq!(ask("/none").await.unwrap().status(), 204);
                }
            }
        };
        let told = told
            .expect("it does not end well")
            .expect_err("nor goes on");
        assert_eq!(told.reason(), Some(h2::Reason::CANCEL));
        let lasted = began.elapsed();
        assert!(
            lasted >= CLIENT_IDLE && lasted < CLIENT_IDLE * 2,
            "{lasted:?}"
        );
        let released = tokio::time::timeout(Duration::from_secs(1), ended).await;
        released
            .expect("in time")
            .expect("the endpoint is rid of it");
        assert_eq!(ask("/none").await.unwrap().status(), 204);
    });
}

#[test]
fn the_endpoint_itself_says_whether_a_body_may_be_sent() {
    run(async {
        let asks = script(|_, mut stream| async move {
            let asked = head(&mut stream).await;
            assert!(asked.contains("Expect: 100-continue"), "{asked}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await
                .unwrap();
            let mut body = [0u8; 5];
            stream.read_exact(&mut body).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        });
        let world = world(vec![(1, asks)], &[1], |_| {});
        let mut client = world.client();
        let ask =
            "PUT / HTTP/1.1\r\nHost: web.mesh\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        let began = tokio::time::Instant::now();
        client.write_all(ask.as_bytes()).await.unwrap();
        assert_eq!(head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
        assert!(
            began.elapsed() >= Duration::from_millis(50),
            "promised before the endpoint agreed"
        );
        client.write_all(b"hello").await.unwrap();
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 OK"));
    });
}

#[test]
fn a_body_that_nobody_wants_is_not_promised_and_ends_the_connection() {
    run(async {
        let refuses = script(|_, mut stream| async move {
            head(&mut stream).await;
            let answer = b"HTTP/1.1 413 Too Much\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            head(&mut stream).await;
        });
        let world = world(vec![(1, refuses)], &[1], |_| {});
        let ask =
            "PUT / HTTP/1.1\r\nHost: web.mesh\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        let answer = world.ask(ask).await;
        assert!(answer.starts_with("HTTP/1.1 413 Too Much\r\n"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(!answer.contains("100 Continue"), "{answer}");
    });
}

#[test]
fn interim_answers_pass_and_names_keep_their_case() {
    run(async {
        let hints = script(|_, mut stream| async move {
            let asked = head(&mut stream).await;
            assert!(asked.contains("\r\nX-MiXed: Yes\r\n"), "{asked}");
            let answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 Fine\r\nX-BaCk: 1\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        });
        let world = world(vec![(1, hints)], &[1], |_| {});
        let answer = world
            .ask("GET / HTTP/1.1\r\nHost: web.mesh\r\nX-MiXed: Yes\r\nConnection: close\r\n\r\n")
            .await;
        let early = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 Fine\r\n";
        assert!(answer.starts_with(early), "{answer}");
        assert!(answer.contains("\r\nX-BaCk: 1\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    });
}

#[test]
fn requests_sent_ahead_are_answered_in_their_order() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let mut client = world.client();
        let ahead: String = (0..20)
            .map(|number| format!("GET /{number} HTTP/1.1\r\nHost: web.mesh\r\n\r\n"))
            .collect();
        client.write_all(ahead.as_bytes()).await.unwrap();
        for number in 0..20 {
            head(&mut client).await;
            let asked = head(&mut client).await;
            assert!(asked.starts_with(&format!("GET /{number} ")), "{asked}");
        }
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

/// Speaks HTTP/2, allows one stream at a time, and answers each after so long.
fn one_at_a_time(after: Duration) -> Script {
    script(move |_, stream| async move {
        let mut server = h2::server::Builder::new();
        let server = server.max_concurrent_streams(1);
        let mut connection = server.handshake::<_, Bytes>(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::task::spawn_local(async move {
                tokio::time::sleep(after).await;
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
fn a_client_that_goes_takes_its_request_with_it() {
    run(async {
        let (gone, ended) = tokio::sync::oneshot::channel();
        let gone = Rc::new(RefCell::new(Some(gone)));
        let waits = script(move |_, mut stream| {
            let gone = gone.borrow_mut().take();
            async move {
                head(&mut stream).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
                let _ = gone.map(|gone| gone.send(()));
            }
        });
        let world = world(vec![(1, waits)], &[1], |_| {});
        let mut client = world.client();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: web.mesh\r\n\r\n")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(client);
        let told = tokio::time::timeout(Duration::from_secs(1), ended).await;
        told.expect("in time").expect("the endpoint saw the end");
    });
}

#[test]
fn whoever_stands_by_goes_on_with_the_verdict() {
    run(async {
        // As long as no multiple of a few milliseconds, so that a look now and then would come late.
        let answers_after = Duration::from_millis(107);
        let slow = script(move |_, mut stream| async move {
            while !head(&mut stream).await.is_empty() {
                tokio::time::sleep(answers_after).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        });
        let world = world(vec![(1, slow)], &[1, 2], |_| {});
        let worker = &world.worker;
        let snapshot = worker.snapshot();
        let upstream = snapshot.upstream("web").unwrap();
        let endpoint = &upstream.tiers[0].members[0].endpoint;
        assert_eq!(endpoint.key.address, address(1));
        for _ in 0..5 {
            let refused = Outcome::Unreachable(Unreachable::Refused);
            Attempt::begin(worker, upstream, endpoint).failed(refused);
        }
        assert!(endpoint.is_ejected());
        // The one that is in refuses; one request asks the one that is out, and the other waits for what comes of it.
        let began = tokio::time::Instant::now();
        let answers = tokio::join!(world.ask(GET), world.ask(GET));
        for answer in [answers.0, answers.1] {
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let lasted = began.elapsed();
        let both = answers_after * 2;
        assert!(
            lasted >= both && lasted < both + Duration::from_millis(3),
            "{lasted:?}"
        );
    });
}

#[test]
fn a_stream_that_its_client_ends_is_no_doubt_about_its_endpoint() {
    run(async {
        let world = world(Vec::new(), &[1, 2], |_| {});
        let worker = &world.worker;
        let snapshot = worker.snapshot();
        let upstream = snapshot.upstream("web").unwrap();
        let endpoint = &upstream.tiers[0].members[0].endpoint;
        Attempt::begin(worker, upstream, endpoint).headed(None);
        assert!(endpoint.load().answered());
        for _ in 0..5 {
            let refused = Outcome::Unreachable(Unreachable::Refused);
            Attempt::begin(worker, upstream, endpoint).failed(refused);
        }
        assert!(endpoint.is_ejected());
        tokio::time::advance(Duration::from_secs(60)).await;
        let desk = worker.desk(upstream);
        let ask = Ask {
            idempotent: true,
            ..Ask::default()
        };
        let pick = desk.pick(worker, upstream, &ask, worker.clock.now());
        let canary = pick.filter(|pick| pick.kind == PickKind::Canary).unwrap();
        assert_eq!(canary.endpoint.id, endpoint.id);
        let mut stream = Attempt::begin(worker, upstream, endpoint);
        stream.headed(None);
        assert!(endpoint.is_ejected(), "its end may tell otherwise");
        drop(stream);
        assert!(!endpoint.is_ejected());
        assert_eq!(endpoint.in_flight(), 0);
    });
}
