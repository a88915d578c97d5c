//! An open-loop load: requests leave when their time has come, whether or not earlier ones were answered.
//!
//! Not here: counting (`figures.rs`) and arguments (`bin/caller.rs`). Latency runs from the due time, so a stall
//! is felt by every request that fell into it (no coordinated omission).

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{net::TcpStream, sync::mpsc, task::JoinSet, time::Instant};

use crate::{exponential, figures::Figures};

/// Requests open at once; what comes due beyond it fails as `too_many_open`.
pub const OPEN_REQUESTS_MAX: usize = 4096;
/// Shared connections of an HTTP/2 load.
const HTTP2_CONNECTIONS: usize = 4;

/// What to send, where, and how fast.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who is connected to, usually sidecars' outbound ports; several get the requests in turn, as many hosts would.
    pub targets: Vec<SocketAddr>,
    /// The authority asked for, such as `shop.mesh:7080`.
    pub authority: String,
    /// Path and query.
    pub path: String,
    /// The method.
    pub method: Method,
    /// Body bytes sent with each request.
    pub body_bytes: usize,
    /// Requests per second.
    pub rate: u32,
    /// How long requests come due.
    pub duration: Duration,
    /// Longest wait for one whole answer.
    pub timeout: Duration,
    /// The answer header that names a zone.
    pub zone_header: String,
    /// HTTP/2 by prior knowledge over four connections, instead of kept-alive HTTP/1.1.
    pub http2: bool,
    /// How requests come due.
    pub arrivals: Arrivals,
}

/// How requests come due at a mean rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrivals {
    /// At equal distances.
    Even,
    /// As independent callers make them: exponential distances, so that some come together.
    Poisson,
}

impl Plan {
    /// GET / at 100 requests per second for one second.
    pub fn new(target: SocketAddr, authority: &str) -> Plan {
        Plan {
            targets: vec![target],
            authority: authority.into(),
            path: "/".into(),
            method: Method::GET,
            body_bytes: 0,
            rate: 100,
            duration: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            zone_header: "x-zone".into(),
            http2: false,
            arrivals: Arrivals::Even,
        }
    }

    /// The same at another rate (requests per second) and for another time.
    pub fn at(mut self, rate: u32, duration: Duration) -> Plan {
        self.rate = rate;
        self.duration = duration;
        self
    }
}

/// Runs the plan to its end, the last answers included.
pub async fn run(plan: Plan) -> Figures {
    let places = plan.targets.len() * HTTP2_CONNECTIONS;
    let shared = (0..places).map(|_| Default::default()).collect();
    let load = Arc::new(Load {
        idle: plan.targets.iter().map(|_| Mutex::default()).collect(),
        plan,
        shared,
        next_shared: AtomicUsize::new(0),
        figures: Mutex::new(Figures::default()),
    });
    let mut dues = paced(&load.plan);
    let mut open = JoinSet::new();
    let mut number = 0;
    while let Some(due) = dues.recv().await {
        while open.try_join_next().is_some() {}
        if open.len() >= OPEN_REQUESTS_MAX {
            load.note(due, Err("too_many_open".into()));
        } else {
            let load = load.clone();
            let target = number % load.plan.targets.len().max(1);
            open.spawn(async move { load.one(due, target).await });
        }
        number += 1;
    }
    while open.join_next().await.is_some() {}
    load.with_figures(|figures| figures.clone())
}

/// Every due time when it has come. The runtime's timers know only whole milliseconds, which at a few thousand requests
/// per second would send them in bursts and add half a millisecond to each: a thread of its own wakes to some 60 µs.
fn paced(plan: &Plan) -> mpsc::Receiver<Instant> {
    let (due_now, dues) = mpsc::channel(OPEN_REQUESTS_MAX);
    let (rate, arrivals) = (f64::from(plan.rate.max(1)), plan.arrivals);
    let whole_s = plan.duration.as_secs_f64();
    let mut dice = StdRng::from_rng(&mut rand::rng());
    thread::spawn(move || {
        let start = Instant::now();
        let mut due_s = 0.0;
        for number in 1_u64.. {
            if due_s >= whole_s {
                break;
            }
            let due = start + Duration::from_secs_f64(due_s);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // Nobody listens any more: the load was dropped.
            if due_now.blocking_send(due).is_err() {
                break;
            }
            due_s = match arrivals {
                Arrivals::Even => number as f64 / rate,
                Arrivals::Poisson => due_s + exponential(&mut dice) / rate,
            };
        }
    });
    dues
}

struct Load {
    plan: Plan,
    /// Kept connections, by target.
    idle: Vec<Mutex<Vec<http1::SendRequest<Full<Bytes>>>>>,
    /// Shared connections, [`HTTP2_CONNECTIONS`] for each target.
    shared: Vec<tokio::sync::Mutex<Option<http2::SendRequest<Full<Bytes>>>>>,
    next_shared: AtomicUsize,
    figures: Mutex<Figures>,
}

/// The zone named by a good answer, or the kind of failure.
type Verdict = Result<Option<String>, String>;

enum Broke {
    /// The kept connection had been closed: nothing of the answer came.
    Unused,
    As(String),
}

impl Load {
    fn with_figures<T>(&self, f: impl FnOnce(&mut Figures) -> T) -> T {
        f(&mut self.figures.lock().expect("nobody panics while holding it"))
    }

    async fn one(&self, due: Instant, target: usize) {
        let verdict = match tokio::time::timeout(self.plan.timeout, self.exchange(target)).await {
            Ok(verdict) => verdict,
            Err(_) => Err("timeout".into()),
        };
        self.note(due, verdict);
    }

    fn note(&self, due: Instant, verdict: Verdict) {
        let latency = due.elapsed();
        self.with_figures(|figures| {
            figures.sent += 1;
            match verdict {
                Ok(zone) => {
                    figures.ok += 1;
                    figures.latencies.record(latency);
                    if let Some(zone) = zone {
                        *figures.zones.entry(zone).or_default() += 1;
                    }
                }
                Err(kind) => *figures.failed.entry(kind).or_default() += 1,
            }
        });
    }

    async fn exchange(&self, target: usize) -> Verdict {
        let kept = if self.plan.http2 {
            None
        } else {
            self.take_idle(target)
        };
        if let Some(kept) = kept {
            match self.over_http1(kept, target).await {
                Ok(zone) => return Ok(zone),
                Err(Broke::As(kind)) => return Err(kind),
                // Every common client does this: the server may close a kept connection at any moment.
                Err(Broke::Unused) => self.with_figures(|figures| figures.reopened += 1),
            }
        }
        let done = if self.plan.http2 {
            self.over_http2(target).await
        } else {
            let sender = self.dial_http1(target).await?;
            self.over_http1(sender, target).await
        };
        done.map_err(|broke| match broke {
            Broke::Unused => "broken".into(),
            Broke::As(kind) => kind,
        })
    }

    fn take_idle(&self, target: usize) -> Option<http1::SendRequest<Full<Bytes>>> {
        let mut idle = (self.idle[target].lock()).expect("nobody panics while holding it");
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: http1::SendRequest<Full<Bytes>>, target: usize) {
        let mut idle = (self.idle[target].lock()).expect("nobody panics while holding it");
        if !sender.is_closed() {
            idle.push(sender);
        }
    }

    async fn dial(&self, target: usize) -> Result<TokioIo<TcpStream>, String> {
        let stream = TcpStream::connect(self.plan.targets[target])
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => "refused".to_owned(),
                _ => "connect".to_owned(),
            })?;
        let _ = stream.set_nodelay(true);
        Ok(TokioIo::new(stream))
    }

    async fn dial_http1(&self, target: usize) -> Result<http1::SendRequest<Full<Bytes>>, String> {
        let io = self.dial(target).await?;
        let (sender, connection) = http1::handshake(io).await.map_err(|_| "connect")?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn over_http1(
        &self,
        mut sender: http1::SendRequest<Full<Bytes>>,
        target: usize,
    ) -> Result<Option<String>, Broke> {
        sender.ready().await.map_err(|_| Broke::Unused)?;
        let response = sender
            .send_request(self.request(false))
            .await
            .map_err(|_| Broke::Unused)?;
        let verdict = self.read(response).await;
        // The connection task takes a turn to see that the answer is over.
        if verdict.is_ok() && sender.ready().await.is_ok() {
            self.keep(sender, target);
        }
        verdict.map_err(Broke::As)
    }

    async fn over_http2(&self, target: usize) -> Result<Option<String>, Broke> {
        let turn = self.next_shared.fetch_add(1, Ordering::Relaxed) % HTTP2_CONNECTIONS;
        let mut slot = (self.shared[target * HTTP2_CONNECTIONS + turn].lock()).await;
        let kept = slot.take().filter(|sender| !sender.is_closed());
        let mut sender = match kept {
            Some(sender) => sender,
            None => {
                let io = self.dial(target).await.map_err(Broke::As)?;
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                    .await
                    .map_err(|_| Broke::As("connect".into()))?;
                tokio::spawn(connection);
                sender
            }
        };
        *slot = Some(sender.clone());
        drop(slot);
        sender.ready().await.map_err(|_| Broke::Unused)?;
        let response = sender
            .send_request(self.request(true))
            .await
            .map_err(|_| Broke::Unused)?;
        self.read(response).await.map_err(Broke::As)
    }

    fn request(&self, http2: bool) -> Request<Full<Bytes>> {
        let body = Full::new(Bytes::from(vec![b'x'; self.plan.body_bytes]));
        let mut request = Request::new(body);
        *request.method_mut() = self.plan.method.clone();
        let target = if http2 {
            format!("http://{}{}", self.plan.authority, self.plan.path)
        } else {
            self.plan.path.clone()
        };
        *request.uri_mut() = target.parse().unwrap_or(Uri::from_static("/"));
        if !http2 && let Ok(host) = self.plan.authority.parse() {
            request.headers_mut().insert("host", host);
        }
        request
    }

    async fn read(&self, response: hyper::Response<hyper::body::Incoming>) -> Verdict {
        let status = response.status();
        let zone = response
            .headers()
            .get(&self.plan.zone_header)
            .and_then(|zone| zone.to_str().ok())
            .map(str::to_owned);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.map_err(|_| "body")?;
        }
        if status.as_u16() >= 400 {
            return Err(format!("status_{}", status.as_u16()));
        }
        Ok(zone)
    }
}
