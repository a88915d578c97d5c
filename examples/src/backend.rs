//! A small HTTP/1.1 and h2c server that says who it is and can be made slow, sick or dead.
//!
//! Not here: command-line arguments (`bin/backend.rs`). It speaks no WebSocket.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rand::RngExt;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use crate::exponential;

/// Largest body `/bytes/N` makes up.
const MADE_UP_BYTES_MAX: usize = 64 << 20;

/// How a backend behaves; changeable while it runs.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Told in `x-backend`.
    pub name: String,
    /// Told in `x-zone`.
    pub zone: String,
    /// Waited before every answer but `/healthz`.
    pub delay: Duration,
    /// Share (0 to 1) of requests, `/healthz` apart, that fail.
    pub failure_share: f64,
    /// What a failing request gets.
    pub failure: Failure,
    /// `/healthz` answers 200; else 503.
    pub well: bool,
    /// How it works on every request but `/healthz`; `None`: at once, any number together.
    pub work: Option<Work>,
}

/// Work as a pool of threads does it: some requests at a time, the others wait in order.
#[derive(Clone, Debug)]
pub struct Work {
    /// One permit a worker.
    pub pool: Arc<Semaphore>,
    /// Mean time on one request.
    pub mean: Duration,
    /// How the times differ.
    pub spread: Spread,
    /// Now and then nothing is worked on, as in a collection of garbage.
    pub stalls: Option<Stalls>,
    /// Its speed changes to and fro.
    pub flips: Option<Flips>,
    began: Instant,
}

/// How service times differ from their mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// Not at all.
    Constant,
    /// Exponentially.
    Exponential,
}

/// A speed that changes to and fro, from the making of the [`Work`] on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flips {
    /// Time between two changes.
    pub every: Duration,
    /// Mean time on one request, every other time.
    pub mean: Duration,
}

/// Times in which nothing is worked on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stalls {
    /// Mean time between the beginnings of two.
    pub every: Duration,
    /// Length of each.
    pub length: Duration,
}

/// What a failing request gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// An answer with this status.
    Status(u16),
    /// The connection closed without an answer.
    Close,
    /// Nothing, for as long as the caller waits.
    Hang,
}

impl Behaviour {
    /// A well backend of this name and zone.
    pub fn well(name: &str, zone: &str) -> Behaviour {
        Behaviour {
            name: name.into(),
            zone: zone.into(),
            delay: Duration::ZERO,
            failure_share: 0.0,
            failure: Failure::Status(503),
            well: true,
            work: None,
        }
    }
}

impl Work {
    /// So many workers, so long for each request on the mean.
    pub fn new(workers: usize, mean: Duration, spread: Spread) -> Work {
        Work {
            pool: Arc::new(Semaphore::new(workers)),
            mean,
            spread,
            stalls: None,
            flips: None,
            began: Instant::now(),
        }
    }

    fn mean_now(&self) -> Duration {
        match self.flips {
            Some(flips)
                if self.began.elapsed().as_nanos() / flips.every.as_nanos().max(1) % 2 == 1 =>
            {
                flips.mean
            }
            _ => self.mean,
        }
    }

    async fn done(&self) {
        // The semaphore is never closed, and it hands out its permits in order.
        let _worker = self.pool.acquire().await;
        let factor = match self.spread {
            Spread::Constant => 1.0,
            Spread::Exponential => exponential(&mut rand::rng()),
        };
        tokio::time::sleep(self.mean_now().mul_f64(factor)).await;
    }

    /// Takes every worker away now and then, for ever.
    async fn stall(self, workers: u32) {
        let Some(stalls) = self.stalls else { return };
        loop {
            let pause = stalls.every.mul_f64(exponential(&mut rand::rng()));
            tokio::time::sleep(pause).await;
            let _all = self.pool.acquire_many(workers).await;
            tokio::time::sleep(stalls.length).await;
        }
    }
}

struct State {
    behaviour: Mutex<Behaviour>,
    served: AtomicU64,
}

impl State {
    fn behaviour(&self) -> Behaviour {
        self.behaviour
            .lock()
            .expect("nobody panics while holding it")
            .clone()
    }
}

/// A running backend; dropping it cuts its listener and every connection, as a crash would.
pub struct Backend {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// Binds and serves in a task of the current runtime. Errors when the address cannot be bound.
    pub async fn start(address: SocketAddr, behaviour: Behaviour) -> io::Result<Backend> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            behaviour: Mutex::new(behaviour),
            served: AtomicU64::new(0),
        });
        let stalling = state.behaviour().work.map(|work| {
            let workers = u32::try_from(work.pool.available_permits()).unwrap_or(u32::MAX);
            work.stall(workers)
        });
        let serving = accept(listener, state.clone());
        let task = tokio::spawn(async move {
            match stalling {
                // It ends only where there are no stalls.
                Some(stalling) => drop(tokio::join!(serving, stalling)),
                None => serving.await,
            }
        });
        Ok(Backend {
            address,
            state,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that reached it, `/healthz` apart.
    pub fn served(&self) -> u64 {
        self.state.served.load(Ordering::Relaxed)
    }

    /// Changes how it behaves from the next request on.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        let mut behaviour = self
            .state
            .behaviour
            .lock()
            .expect("nobody panics while holding it");
        change(&mut behaviour);
    }

    /// Serves until the task ends, which it does not by itself.
    pub async fn finished(mut self) {
        let _ = (&mut self.task).await;
    }
}

/// Accepts for ever; its connections end with it, because the set is dropped with the task.
async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        // A failed accept (out of descriptors, or the peer is gone already) is no reason to end.
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| answer(state.clone(), request));
            let builder = auto::Builder::new(TokioExecutor::new());
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Body = BoxBody<Bytes, hyper::Error>;

/// The caller sees this only as a closed connection.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed on purpose")
    }
}

impl std::error::Error for Closed {}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
    let behaviour = state.behaviour();
    let path = request.uri().path().to_owned();
    if let Some(rest) = path.strip_prefix("/healthz") {
        return Ok(health(&state, &behaviour, request.method(), rest));
    }
    state.served.fetch_add(1, Ordering::Relaxed);
    if !behaviour.delay.is_zero() {
        tokio::time::sleep(behaviour.delay).await;
    }
    if behaviour.failure_share > 0.0 && rand::rng().random::<f64>() < behaviour.failure_share {
        match behaviour.failure {
            Failure::Status(code) => return Ok(text(&behaviour, code, "made to fail\n")),
            Failure::Close => return Err(Closed),
            Failure::Hang => std::future::pending::<()>().await,
        }
    }
    if let Some(work) = &behaviour.work {
        work.done().await;
    }
    Ok(page(&behaviour, &path, request).await)
}

/// `GET /healthz`, `POST /healthz/fail` and `/healthz/pass` to switch it, and `GET /healthz/served`: how many requests
/// reached this backend, these apart.
fn health(state: &State, behaviour: &Behaviour, method: &Method, rest: &str) -> Response<Body> {
    match (method, rest) {
        (&Method::POST, "/fail" | "/pass") => {
            let well = rest == "/pass";
            state
                .behaviour
                .lock()
                .expect("nobody panics while holding it")
                .well = well;
            text(behaviour, 200, "switched\n")
        }
        (&Method::GET, "/served") => {
            let served = state.served.load(Ordering::Relaxed);
            text(behaviour, 200, &format!("{served}\n"))
        }
        _ if behaviour.well => text(behaviour, 200, "well\n"),
        _ => text(behaviour, 503, "not well\n"),
    }
}

async fn page(behaviour: &Behaviour, path: &str, request: Request<Incoming>) -> Response<Body> {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    match (parts.next().unwrap_or_default(), parts.next()) {
        ("headers", _) => {
            let seen: Vec<(&str, String)> = request
                .headers()
                .iter()
                .map(|(name, value)| {
                    let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    (name.as_str(), value)
                })
                .collect();
            let seen = json!({
                "method": request.method().as_str(),
                "uri": request.uri().to_string(),
                "version": format!("{:?}", request.version()),
                "headers": seen,
            });
            text(behaviour, 200, &format!("{seen}\n"))
        }
        ("echo", _) => with_body(behaviour, 200, request.into_body().boxed()),
        ("status", Some(code)) => text(behaviour, code.parse().unwrap_or(400), "as asked\n"),
        ("delay", Some(milliseconds)) => {
            let milliseconds = milliseconds.parse().unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            text(behaviour, 200, "late\n")
        }
        ("bytes", Some(count)) => {
            let count = count.parse::<usize>().unwrap_or(0).min(MADE_UP_BYTES_MAX);
            with_body(behaviour, 200, full(vec![b'x'; count]))
        }
        _ => {
            // A request body that is left unread would close the connection under the caller.
            let _ = request.into_body().collect().await;
            let who = json!({ "name": behaviour.name, "zone": behaviour.zone });
            text(behaviour, 200, &format!("{who}\n"))
        }
    }
}

fn text(behaviour: &Behaviour, code: u16, words: &str) -> Response<Body> {
    with_body(behaviour, code, full(words.as_bytes().to_vec()))
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes))
        .map_err(|never: Infallible| match never {})
        .boxed()
}

fn with_body(behaviour: &Behaviour, code: u16, body: Body) -> Response<Body> {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in [("x-backend", &behaviour.name), ("x-zone", &behaviour.zone)] {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
