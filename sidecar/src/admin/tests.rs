//! The admin API over real sockets: listings, commands, and requests that are none.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use super::*;

struct Stage {
    serving: Serving,
    commands: mpsc::Receiver<Command>,
    state: State,
}

fn state(config: &str) -> (State, mpsc::Receiver<Command>, watch::Sender<Arc<Loaded>>) {
    let loaded = crate::config::parse("test", config).map_err(|faults| faults.to_string());
    let (config, receiver) = watch::channel(Arc::new(loaded.unwrap()));
    let (commands, orders) = mpsc::channel(COMMANDS_MAX);
    let state = State {
        snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::empty())),
        ready: Arc::new(AtomicBool::new(false)),
        clock: Clock::new(),
        config: receiver,
        metrics: Exporter::detached().unwrap(),
        commands,
    };
    (state, orders, config)
}

async fn stage(config: &str) -> Stage {
    let (state, commands, config) = state(&format!("[admin]\nbind = \"127.0.0.1:0\"\n{config}"));
    let admin = config.borrow().config.admin.clone();
    let serving = start(&admin, state.clone()).await.unwrap();
    Stage {
        serving,
        commands,
        state,
    }
}

/// Sends bytes and yields everything that comes back until the connection ends.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(5), read).await;
    String::from_utf8_lossy(&answer).into_owned()
}

impl Stage {
    async fn tcp(&self, bytes: &[u8]) -> String {
        exchange(
            TcpStream::connect(self.serving.address).await.unwrap(),
            bytes,
        )
        .await
    }

    async fn get(&self, path: &str) -> String {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        self.tcp(request.as_bytes()).await
    }
}

fn post(path: &str, body: &str, more: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

#[tokio::test]
async fn readiness_is_told_apart_from_life() {
    let stage = stage("").await;
    assert!(stage.get("/live").await.starts_with("HTTP/1.1 200"));
    assert!(stage.get("/ready").await.starts_with("HTTP/1.1 503"));
    stage.state.ready.store(true, Ordering::Relaxed);
    assert!(stage.get("/ready").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn listings_of_an_empty_mesh_are_empty_and_names_are_helped() {
    let stage = stage("").await;
    assert!(stage.get("/v1/members").await.ends_with("[]\n"));
    assert!(stage.get("/v1/services").await.ends_with("[]\n"));
    let status = stage.get("/v1/status").await;
    assert!(
        status.contains("\"ready\":false") && status.contains("\"alive\":0"),
        "{status}"
    );
    let unknown = stage.get("/v1/endpoints/payments").await;
    assert!(
        unknown.starts_with("HTTP/1.1 404") && unknown.contains("no service is known yet"),
        "{unknown}"
    );
    assert!(stage.get("/v1/nothing").await.contains("see /live"));
    assert!(stage.get("/v1/config").await.contains("\"origins\""));
    assert!(
        stage
            .get("/metrics")
            .await
            .contains("starling_gossip_members{state=\"alive\"} 0")
    );
}

#[tokio::test]
async fn without_socket_and_token_a_write_is_refused_with_the_fix() {
    let stage = stage("").await;
    let answer = stage.tcp(&post("/v1/drain", "", "")).await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("admin.sock"),
        "{answer}"
    );
    let key = "5e".repeat(32);
    let body = format!("{{\"key\": \"{key}\"}}");
    let answer = stage.tcp(&post("/v1/keys/install", &body, "")).await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && !answer.contains(&key),
        "{answer}"
    );
    let answer = stage.get("/v1/reload").await;
    assert!(
        answer.starts_with("HTTP/1.1 405") && answer.contains("allow: POST"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_token_opens_writes_and_the_sidecar_answers() {
    let mut stage = stage("token = \"0123456789abcdef\"").await;
    let wrong = stage
        .tcp(&post(
            "/v1/drain",
            "",
            "Authorization: Bearer 0123456789abcdeF\r\n",
        ))
        .await;
    assert!(wrong.starts_with("HTTP/1.1 401"), "{wrong}");
    let body = "{\"service\":\"shop\"}";
    let request = post(
        "/v1/drain",
        body,
        "Authorization: Bearer 0123456789abcdef\r\n",
    );
    let sidecar = async {
        let Some(Command::Drain(target, reply)) = stage.commands.recv().await else {
            panic!("no drain");
        };
        assert!(target.matches("shop", "a") && !target.matches("web", "a"));
        reply.send(Ok("shop drains".to_owned())).unwrap();
    };
    let stream = TcpStream::connect(stage.serving.address).await.unwrap();
    let (answer, ()) = tokio::join!(exchange(stream, &request), sidecar);
    assert!(answer.contains("{\"done\":\"shop drains\"}"), "{answer}");
}

#[tokio::test]
async fn the_socket_needs_no_token_and_gives_way_to_a_new_sidecar() {
    let path = std::env::temp_dir().join(format!("starling-admin-{}.sock", std::process::id()));
    // What a killed sidecar leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut stage = stage(&format!("socket = \"{}\"", path.display())).await;
    let admin = stage.state.config.borrow().config.admin.clone();
    let second = start(&admin, stage.state.clone());
    assert!(
        second
            .await
            .unwrap_err()
            .message
            .contains("a sidecar answers there")
    );
    let stream = UnixStream::connect(&path).await.unwrap();
    let request = post("/v1/reload", "", "");
    let sidecar = async {
        let Some(Command::Reload(reply)) = stage.commands.recv().await else {
            panic!("no reload");
        };
        reply
            .send(Err(Refusal::new("two faults", "see them")))
            .unwrap();
    };
    let (answer, ()) = tokio::join!(exchange(stream, &request), sidecar);
    assert!(
        answer.starts_with("HTTP/1.1 409") && answer.contains("two faults"),
        "{answer}"
    );
    drop(stage);
    assert!(!path.exists(), "the socket's file goes with the sidecar");
}

#[tokio::test]
async fn an_instance_registers_says_how_it_is_and_goes() {
    let mut stage = stage("token = \"0123456789abcdef\"").await;
    let authority = "Authorization: Bearer 0123456789abcdef\r\n";
    let ask = |method: &str, path: &str, body: &str| {
        let post = post(path, body, authority);
        [method.as_bytes(), &post["POST".len()..]].concat()
    };
    let one = "/v1/services/shop/one";
    let health = "/v1/services/shop/one/health";
    let told = async |stage: &mut Stage, request: &[u8]| {
        let stream = TcpStream::connect(stage.serving.address).await.unwrap();
        let sidecar = async {
            let (words, reply) = match stage.commands.recv().await.unwrap() {
                Command::Register(lease, reply) => {
                    let Lease { service, lasts } = *lease;
                    (
                        format!("{}/{} {lasts:?}", service.service, service.instance),
                        reply,
                    )
                }
                Command::Deregister(instance, reply) => (format!("gone {instance}"), reply),
                Command::Say(instance, health, reply) => (format!("{instance} {health:?}"), reply),
                other => panic!("{other:?}"),
            };
            reply.send(Ok(words)).unwrap();
        };
        tokio::join!(exchange(stream, request), sidecar).0
    };
    let body = "{\"port\": 8080, \"lease\": \"5s\"}";
    for (request, expected) in [
        (ask("PUT", one, body), "shop/one 5s"),
        (ask("PUT", health, ""), "shop/one Passing"),
        (
            ask("PUT", health, "{\"health\": \"warning\"}"),
            "shop/one Warning",
        ),
        (ask("DELETE", one, ""), "gone shop/one"),
    ] {
        let answer = told(&mut stage, &request).await;
        assert!(answer.contains(expected), "{answer}");
    }
    for (request, status, expected) in [
        (ask("PUT", one, "{}"), 400, "where the application listens"),
        (ask("PUT", one, "port: 8080"), 400, "cannot be read"),
        (ask("PUT", one, "[]"), 400, "no JSON object"),
        (ask("PUT", health, "{\"health\": \"fine\"}"), 400, "`fine`"),
        (ask("POST", one, body), 405, "PUT, DELETE"),
        (ask("GET", health, ""), 405, "allow: PUT"),
        (ask("PUT", "/v1/services/shop/", ""), 404, "there is no"),
        (
            ask("PUT", "/v1/services/shop/one/weight", ""),
            404,
            "there is no",
        ),
        (post(one, body, "")["POST".len()..].to_vec(), 400, ""),
    ] {
        let answer = stage.tcp(&request).await;
        let fits = answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(expected);
        assert!(fits, "{answer}");
    }
}

#[tokio::test]
async fn a_full_queue_of_commands_is_told_at_once() {
    let stage = stage("token = \"0123456789abcdef\"").await;
    for _ in 0..COMMANDS_MAX {
        let (reply, _) = oneshot::channel();
        stage
            .state
            .commands
            .try_send(Command::Leave(reply))
            .unwrap();
    }
    let answer = stage
        .tcp(&post(
            "/v1/leave",
            "",
            "Authorization: Bearer 0123456789abcdef\r\n",
        ))
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("try again"),
        "{answer}"
    );
}

#[tokio::test]
async fn nonsense_is_answered_with_400_and_forgotten() {
    let stage = stage("token = \"0123456789abcdef\"").await;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(40_000));
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        let answer = stage.tcp(nonsense).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{answer}"
        );
    }
    let answer = stage.tcp(long.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let authority = "Authorization: Bearer 0123456789abcdef\r\n";
    let answer = stage
        .tcp(&post("/v1/drain", "{\"servce\": 1}", authority))
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("servce"),
        "{answer}"
    );
    let answer = stage
        .tcp(&post("/v1/drain", &"x".repeat(20_000), authority))
        .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(
        stage.get("/live").await.starts_with("HTTP/1.1 200"),
        "it serves on"
    );
}

#[tokio::test]
async fn more_connections_than_the_limit_are_closed_unheard() {
    let stage = stage("").await;
    let mut held = Vec::new();
    for _ in 0..serve::CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(stage.serving.address).await.unwrap();
        stream
            .write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut some = [0; 12];
        stream.read_exact(&mut some).await.unwrap();
        held.push(stream);
    }
    let mut late = TcpStream::connect(stage.serving.address).await.unwrap();
    let _ = late
        .write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    let mut answer = Vec::new();
    let _ = late.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_or_not_enough_is_cut_off() {
    let stage = stage("").await;
    for said in [&b""[..], b"GET /live HTTP/1.1\r\nHos"] {
        let mut stream = TcpStream::connect(stage.serving.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let ended = tokio::time::timeout(Duration::from_secs(60), read).await;
        assert!(ended.is_ok(), "still open after a minute");
    }
}
