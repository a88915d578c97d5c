//! The demo's client: an open-loop load of GETs through a sidecar.
//!
//! Open loop: each request has the time at which it is due, and its latency counts from there, so a
//! stall shows in every request that fell into it. Not here: the figures (`ledger.rs`).

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    ZONE_NAMES,
    backend::ZONE_HEADER,
    ledger::{Ledger, Sample},
};

/// Requests due and not ended; one more counts as failed. A second's stall at the highest rate fits.
const IN_FLIGHT_MAX: u32 = 32_768;
/// Connections to the sidecar; a request that finds all of them busy waits for one, and its latency with it.
const CONNECTIONS_MAX: usize = 512;
/// For one request; longer than any of the sidecar's own limits that the demo touches.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest answer body that counts as an answer.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// A running load; it ends with [`Load::stop`] or when this is dropped.
#[derive(Debug)]
pub struct Load {
    began: Instant,
    ledger: Arc<Mutex<Ledger>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Load {
    /// Sends `per_second` GETs for `authority` to the sidecar at `through`, evenly spread.
    pub fn start(through: SocketAddr, authority: &str, per_second: u32) -> Load {
        let (stop, stopped) = watch::channel(false);
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let client = Arc::new(Client {
            began: Instant::now(),
            through,
            authority: authority.to_owned(),
            connections: Semaphore::new(CONNECTIONS_MAX),
            idle: Mutex::new(Vec::new()),
            ledger: ledger.clone(),
        });
        Load {
            began: client.began,
            ledger,
            stop,
            task: tokio::spawn(client.run(per_second, stopped)),
        }
    }

    /// The requests ended so far.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        locked(&self.ledger)
    }

    /// Time since the load began: the ledger's clock.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// `moment` on the ledger's clock.
    pub fn at(&self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.began)
    }

    /// Sends no more and waits for what is in flight; gives the finished ledger.
    pub async fn stop(self) -> Ledger {
        let _ = self.stop.send(true);
        // Its only other end is a panic, and then the ledger lacks the requests of its time: seen as missing.
        let _ = self.task.await;
        std::mem::take(&mut *locked(&self.ledger))
    }
}

struct Client {
    began: Instant,
    through: SocketAddr,
    authority: String,
    /// Leaves to use a connection.
    connections: Semaphore,
    /// Open connections without a request, the newest last. Never more than were once in use.
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    ledger: Arc<Mutex<Ledger>>,
}

impl Client {
    async fn run(self: Arc<Client>, per_second: u32, mut stopped: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize));
        for n in 0_u64.. {
            let due = Duration::from_nanos(n * 1_000_000_000 / u64::from(per_second.max(1)));
            tokio::select! {
                // True, or the handle was dropped.
                _ = stopped.wait_for(|stopped| *stopped) => break,
                () = tokio::time::sleep_until(self.began + due) => {}
            }
            let Ok(place) = places.clone().try_acquire_owned() else {
                self.record(
                    due,
                    self.began.elapsed(),
                    Err("too many requests in flight".to_owned()),
                );
                continue;
            };
            let client = self.clone();
            tokio::spawn(async move {
                let sent = client.began.elapsed();
                let answer = tokio::time::timeout(REQUEST_TIMEOUT, client.get()).await;
                let answer = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                client.record(due, sent, answer);
                drop(place);
            });
        }
        // All places free again: nothing is in flight.
        let _ = places.acquire_many(IN_FLIGHT_MAX).await;
    }

    fn record(&self, due: Duration, sent: Duration, answer: Result<usize, String>) {
        let (zone, fault) = match answer {
            Ok(zone) => (Some(zone), None),
            Err(fault) => (None, Some(fault)),
        };
        let mut ledger = locked(&self.ledger);
        // Read under the lock, so that samples stand in the order in which they ended.
        let done = self.began.elapsed();
        let sample = Sample {
            due,
            sent,
            done,
            zone,
        };
        ledger.record(sample, fault);
    }

    /// One GET; the index of the zone that answered.
    async fn get(&self) -> Result<usize, String> {
        let _leave = self
            .connections
            .acquire()
            .await
            .map_err(|e| e.to_string())?;
        let mut sender = self.connection().await.map_err(|e| e.to_string())?;
        let answer = match sender.send_request(self.request()).await {
            // The sidecar had closed the idle connection before anything was sent: nothing is lost with it.
            Err(error) if error.is_canceled() => {
                sender = self.connect().await.map_err(|e| e.to_string())?;
                sender.send_request(self.request()).await
            }
            answer => answer,
        };
        let zone = zone_of(answer.map_err(|e| e.to_string())?).await?;
        locked(&self.idle).push(sender);
        Ok(zone)
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        if let Ok(host) = self.authority.parse() {
            request.headers_mut().insert(header::HOST, host);
        }
        request
    }

    /// An idle connection that is still open, or a new one.
    async fn connection(
        &self,
    ) -> Result<SendRequest<Empty<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        loop {
            let idle = locked(&self.idle).pop();
            let Some(mut sender) = idle else {
                return Ok(self.connect().await?);
            };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
    }

    async fn connect(&self) -> io::Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.through).await?;
        stream.set_nodelay(true)?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        // It ends when the sender is dropped or the sidecar closes; its errors reach the sender.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Reads an answer to its end. An answer that is not 200, not whole or of no zone is a failure.
async fn zone_of(answer: Response<Incoming>) -> Result<usize, String> {
    let status = answer.status();
    let zone = answer.headers().get(ZONE_HEADER).cloned();
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX);
    body.collect().await.map_err(|e| e.to_string())?;
    if status != 200 {
        return Err(format!("answered {status}"));
    }
    let known = |zone: &[u8]| ZONE_NAMES.iter().position(|name| name.as_bytes() == zone);
    zone.and_then(|zone| known(zone.as_bytes()))
        .ok_or_else(|| "an answer of no zone".to_owned())
}

/// The demo only counts behind its locks: a panic between leaves nothing half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tokio::net::TcpListener;

    use super::*;
    use crate::demo::backend;

    #[tokio::test]
    async fn every_request_that_fell_due_is_counted_once_well_or_failed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let zone = HeaderValue::from_static(ZONE_NAMES[1]);
        let served = tokio::spawn(backend::serve(listener, zone, Bytes::from_static(b"b-1\n")));
        let load = Load::start(address, "web.mesh", 500);
        let enough = async {
            while load.ledger().between(Duration::ZERO, load.now()).answered[1] < 50 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), enough)
            .await
            .unwrap();
        // Nobody accepts any more, though what was accepted lives on: new connections would be refused.
        served.abort();
        let ledger = load.stop().await;
        let figures = ledger.between(Duration::ZERO, Duration::MAX);
        assert_eq!(figures.failed, 0, "{:?}", ledger.faults());
        assert_eq!(figures.answered, [0, figures.requests, 0]);

        let load = Load::start(address, "web.mesh", 500);
        let refused = async {
            while load.ledger().faults().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), refused)
            .await
            .unwrap();
        let figures = load.stop().await.between(Duration::ZERO, Duration::MAX);
        assert!(figures.requests > 0 && figures.failed == figures.requests);
    }
}
