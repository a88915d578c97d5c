//! One client connection of HTTP: what is spoken is told, hyper's server runs, the one tower stack stands before the path.
//!
//! Not here: where a request goes (`forward.rs`). A layer here may refuse or observe, never choose.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use metrics::counter;
use tokio::{
    io::AsyncReadExt,
    sync::watch,
    time::{sleep, timeout},
};
use tower::{Layer, Service, ServiceBuilder};

use super::{
    body::ReplyBody,
    detect::{PREFACE, Speaks, detect},
    dial::OnThisThread,
    forward::forward,
    headers::{OWN_VIA_MAX, Origin, own_via_count},
    listen::Place,
    patience::{CLIENT_IDLE, HEAD_READ, Patience, RanOut},
    reply::{Cause, reply},
    transport::{Rewound, Transport},
    worker::{Phase, Worker},
};

/// Longest path and query, in bytes.
pub const URI_BYTES_MAX: usize = 8 * 1024;
/// Streams of one HTTP/2 client connection at once.
const H2_STREAMS_MAX: u32 = 100;
/// Streams that a client has cancelled before we looked at them. h2's default of 20 takes a gRPC client that cancels
/// its calls all at once for an attacker (h2 #856); as many as may be open at once can be cancelled at once.
const H2_CANCELLED_MAX: usize = H2_STREAMS_MAX as usize;
/// What one HTTP/2 stream of a client may send ahead of the endpoint reading it, in bytes.
const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// What all streams of a client connection may send ahead, in bytes.
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;

/// How long a connection that asked for nothing yet is listened to once the sidecar ends: its request may be on
/// the way, and was promised an answer when the connection was accepted.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What every request of one client connection has in common.
#[derive(Clone)]
pub struct Caller {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// Its forwarding headers.
    pub origin: Rc<Origin>,
    /// The upstream its listener belongs to; `None`: the authority tells.
    pub upstream: Option<Rc<str>>,
    /// Its place under the listener's limit; a tunnel that outlives the HTTP connection keeps it.
    pub place: Rc<Place>,
}

/// Serves one client connection until it ends.
pub async fn serve(
    worker: Rc<Worker>,
    mut transport: Transport,
    peer: Option<IpAddr>,
    upstream: Option<Box<str>>,
    place: Place,
) {
    let (first, length, speaks) = match first_bytes(&worker, &mut transport).await {
        Ok(told) => told,
        Err(error) => {
            tracing::trace!(%error, "a connection said nothing");
            return;
        }
    };
    let settings = worker.settings();
    let trusted =
        peer.is_some_and(|ip| settings.trusted_proxies.iter().any(|net| net.contains(ip)));
    let caller = Caller {
        origin: Rc::new(Origin::new(peer, trusted)),
        upstream: upstream.map(Rc::from),
        place: Rc::new(place),
        worker,
    };
    let patience = Patience::new(caller.worker.clock, speaks != Speaks::Http2, length > 0);
    let io = TokioIo::new(Rewound::new(
        first,
        length,
        transport,
        Arc::clone(&patience),
    ));
    let service = ServiceBuilder::new()
        .layer(Guard {
            caller: caller.clone(),
            patience: Arc::clone(&patience),
        })
        .service(Forward {
            caller: caller.clone(),
        });
    let service = TowerToHyperService::new(service);
    let ended = match speaks {
        Speaks::Http2 => {
            let connection = http2::Builder::new(OnThisThread)
                .timer(TokioTimer::new())
                .max_concurrent_streams(H2_STREAMS_MAX)
                .max_pending_accept_reset_streams(H2_CANCELLED_MAX)
                .initial_stream_window_size(H2_STREAM_WINDOW)
                .initial_connection_window_size(H2_CONNECTION_WINDOW)
                .max_header_list_size(u32::try_from(settings.header_bytes).unwrap_or(u32::MAX))
                .serve_connection(io, service);
            run(&caller.worker, &patience, connection).await
        }
        Speaks::Http1 | Speaks::Undecided => {
            let connection = http1::Builder::new()
                .max_header_size(settings.header_bytes)
                .serve_connection(io, service)
                .with_upgrades();
            run(&caller.worker, &patience, connection).await
        }
    };
    if let Err(error) = ended {
        let h2 = std::error::Error::source(&error).is_some_and(|source| source.is::<h2::Error>());
        if error.is_parse() || error.is_timeout() || h2 {
            counter!("starling_client_faults_total").increment(1);
        }
        tracing::debug!(%error, "client connection ended early");
    }
}

/// Reads until it is told what is spoken.
async fn first_bytes(
    worker: &Worker,
    transport: &mut Transport,
) -> io::Result<([u8; PREFACE.len()], usize, Speaks)> {
    let mut first = [0u8; PREFACE.len()];
    let mut length = 0;
    let mut phase = worker.common.phase.clone();
    loop {
        let patience = if length == 0 { CLIENT_IDLE } else { HEAD_READ };
        let read = tokio::select! {
            biased;
            read = timeout(patience, transport.read(&mut first[length..])) => read??,
            () = last_words(&mut phase), if length == 0 => 0,
        };
        length += read;
        match detect(&first[..length]) {
            Speaks::Undecided if read == 0 && length == 0 => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Speaks::Undecided if read > 0 => {}
            Speaks::Undecided => return Ok((first, length, Speaks::Http1)),
            told => return Ok((first, length, told)),
        }
    }
}

/// Over when the sidecar ends and whoever connected has had the time to say what for.
async fn last_words(phase: &mut watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase == Phase::Ending).await;
    sleep(LAST_WORDS).await;
}

/// A hyper connection that can be asked to end after what is in flight.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn end(self: Pin<&mut Self>);
}

impl<S, B> Graceful for http1::UpgradeableConnection<TokioIo<Rewound>, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn end(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S, B> Graceful for http2::Connection<TokioIo<Rewound>, S, OnThisThread>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
    B: http_body::Body<Data = bytes::Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn end(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection; when the sidecar ends or the client rests too long, it finishes what is in flight and closes.
async fn run(worker: &Worker, patience: &Patience, connection: impl Graceful) -> hyper::Result<()> {
    let mut connection = std::pin::pin!(connection);
    let mut phase = worker.common.phase.clone();
    tokio::select! {
        // The connection first: hyper closes one that is told to end before it has read what is there already.
        biased;
        ended = connection.as_mut() => return ended,
        _ = phase.wait_for(|phase| *phase == Phase::Ending) => {}
        ran_out = patience.run_out() => if ran_out != RanOut::Idle {
            counter!("starling_client_faults_total").increment(1);
            tracing::debug!(?ran_out, "a client dawdled too long");
            return Ok(());
        },
    }
    connection.as_mut().end();
    connection.await
}

/// The path as a tower service.
#[derive(Clone)]
pub struct Forward {
    caller: Caller,
}

/// A future that stays on its worker's thread.
type Answering = Pin<Box<dyn Future<Output = Result<Response<ReplyBody>, Infallible>>>>;

impl Service<Request<Incoming>> for Forward {
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let caller = self.caller.clone();
        Box::pin(async move { Ok(forward(&caller, request).await) })
    }
}

/// Refuses what must never be forwarded: loops, endless paths, CONNECT. While the sidecar closes, it asks HTTP/1
/// callers to come back on another connection.
#[derive(Clone)]
struct Guard {
    caller: Caller,
    patience: Arc<Patience>,
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            caller: self.caller.clone(),
            patience: Arc::clone(&self.patience),
            inner,
        }
    }
}

/// A service behind the [`Guard`].
#[derive(Clone)]
struct Guarded<S> {
    caller: Caller,
    patience: Arc<Patience>,
    inner: S,
}

impl<S> Service<Request<Incoming>> for Guarded<S>
where
    S: Service<Request<Incoming>, Response = Response<ReplyBody>, Error = Infallible>,
    S::Future: 'static,
{
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let settings = self.caller.worker.settings();
        let busy = self.patience.answer();
        if let Some(cause) = refusal(&request, &settings.via.pseudonym) {
            counter!("starling_requests_refused_total", "flag" => cause.line().flag).increment(1);
            let answer = reply(cause, false, &settings.node, None);
            return Box::pin(std::future::ready(Ok(answer.map(|body| body.served(busy)))));
        }
        let one = request.version() < http::Version::HTTP_2;
        let worker = Rc::clone(&self.caller.worker);
        let answering = self.inner.call(request);
        Box::pin(async move {
            let mut answer = answering.await?;
            let stays = answer.status() == http::StatusCode::SWITCHING_PROTOCOLS;
            if one && !stays && worker.phase() != Phase::Open {
                answer
                    .headers_mut()
                    .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer.map(|body| body.served(busy)))
        })
    }
}

fn refusal(request: &Request<Incoming>, pseudonym: &str) -> Option<Cause> {
    if request.method() == http::Method::CONNECT {
        return Some(Cause::ConnectMethod);
    }
    if request
        .uri()
        .path_and_query()
        .is_some_and(|path| path.as_str().len() > URI_BYTES_MAX)
    {
        return Some(Cause::UriTooLong);
    }
    (own_via_count(request.headers(), pseudonym) > OWN_VIA_MAX).then_some(Cause::Loop)
}
