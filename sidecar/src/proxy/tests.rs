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
use mesh_core::{
    balance::{Ask, PickKind},
    mesh::Mesh,
    outcome::{Outcome, Unreachable},
    policy::{FixedEndpoint, Hash, HashKey, Place as At, Policy, Weight},
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
    proxy_header::Addresses,
    transport::Transport,
    worker::{Common, Phase, Settings, Worker},
};
use crate::{clock::Clock, config::ClientLimits, proxy::welcome::Caller, waiting::pass};

mod grpc;
mod http2;
mod idle;
mod interim;
mod leaving;
mod limits;
mod listing;
mod tls;

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
        limits: ClientLimits::default(),
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
    let follower = Rc::clone(&worker);
    tokio::task::spawn_local(async move { follower.follow().await });
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
        self.serve(server, told, None);
        client
    }

    /// Serves a connection that came by the outbound listener, or by this upstream's own.
    fn serve(&self, server: DuplexStream, told: Option<Addresses>, upstream: Option<&str>) {
        let caller = Caller {
            ip: Some([127, 0, 0, 1].into()),
            told,
        };
        let serving = front::serve(
            Rc::clone(&self.worker),
            Transport::Pipe(server),
            caller,
            upstream.map(Into::into),
            Place::uncounted(),
        );
        tokio::task::spawn_local(serving);
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

/// How long a client may rest, if nothing else is said.
const IDLE: Duration = Duration::from_secs(300);

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
fn an_id_that_connection_names_away_is_replaced() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        let get = "GET / HTTP/1.1\r\nHost: web.mesh\r\nX-Request-Id: mine\r\n\
            Connection: close, x-request-id\r\n\r\n";
        let answer = world.ask(get).await.to_lowercase();
        let sent = answer.split("\r\n\r\n").nth(1).unwrap();
        assert_eq!(sent.matches("x-request-id: ").count(), 1, "{sent}");
        assert!(!sent.contains("mine"), "{sent}");
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
fn a_body_whose_key_does_not_come_is_its_clients_fault_alone() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |policy| {
            policy.hash = Some(Hash::by(HashKey::Json("/user".into())));
            policy.timeouts.request = Duration::from_millis(300);
        });
        let post = "POST / HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n\
                    Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
        let answer = world.ask(post).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(world.dialled.borrow().is_empty(), "nobody was asked");
    });
}

#[test]
fn who_was_told_of_by_a_proxy_header_is_never_on_this_host() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |_| {});
        world.set(|settings| settings.control_headers = true);
        let told = Addresses {
            source: "127.0.0.1:4000".parse().unwrap(),
            destination: "127.0.0.1:80".parse().unwrap(),
        };
        let get = "GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\nx-starling-explain: 1\r\n\r\n";
        for (told, is_obeyed) in [(None, true), (Some(told), false)] {
            let mut client = world.introduced(told);
            client.write_all(get.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert_eq!(
                answer.contains("x-starling-explain: {"),
                is_obeyed,
                "{answer}"
            );
        }
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
                pass(Duration::from_millis(7)).await;
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
                pass(Duration::from_millis(100)).await;
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

#[test]
fn the_endpoint_itself_says_whether_a_body_may_be_sent() {
    run(async {
        let asks = script(|_, mut stream| async move {
            let asked = head(&mut stream).await;
            assert!(asked.contains("Expect: 100-continue"), "{asked}");
            pass(Duration::from_millis(50)).await;
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
fn trailers_keep_the_case_of_their_names_both_ways() {
    run(async {
        let echoes = script(|_, mut stream| async move {
            head(&mut stream).await;
            let body = head(&mut stream).await;
            assert_eq!(body, "2\r\nok\r\n0\r\nX-SuM: 1\r\nplain: 2\r\n\r\n");
            let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let world = world(vec![(1, echoes)], &[1], |_| {});
        let sent = "2\r\nok\r\n0\r\nX-SuM: 1\r\nplain: 2\r\n\r\n";
        let head = "PUT / HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        let answer = world.ask(&format!("{head}{sent}")).await;
        assert!(answer.ends_with(&format!("\r\n\r\n{sent}")), "{answer}");
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
fn a_client_that_goes_takes_its_request_with_it() {
    run(async {
        let (gone, ended) = tokio::sync::oneshot::channel();
        let (asked, heard) = tokio::sync::oneshot::channel();
        let ends = Rc::new(RefCell::new(Some((asked, gone))));
        let waits = script(move |_, mut stream| {
            let (asked, gone) = ends.borrow_mut().take().unzip();
            async move {
                head(&mut stream).await;
                let _ = asked.map(|asked| asked.send(()));
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
        let soon = Duration::from_secs(1);
        let told = tokio::time::timeout(soon, heard).await;
        told.expect("in time").expect("the endpoint was asked");
        drop(client);
        let told = tokio::time::timeout(soon, ended).await;
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
                pass(answers_after).await;
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
            Attempt::begin(worker, upstream, endpoint, None).failed(refused);
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
        Attempt::begin(worker, upstream, endpoint, None).headed(None);
        assert!(endpoint.load().answered());
        for _ in 0..5 {
            let refused = Outcome::Unreachable(Unreachable::Refused);
            Attempt::begin(worker, upstream, endpoint, None).failed(refused);
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
        let mut stream = Attempt::begin(worker, upstream, endpoint, canary.canary);
        stream.headed(None);
        assert!(endpoint.is_ejected(), "its end may tell otherwise");
        drop(stream);
        assert!(!endpoint.is_ejected());
        assert_eq!(endpoint.in_flight(), 0);
    });
}
