//! One client connection of HTTP: what is spoken is told, its server runs, the one tower stack stands before the path.
//!
//! Not here: where a request goes (`forward.rs`). A layer here may refuse or observe, never choose.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response};
use hyper::{
    body::Incoming,
    server::conn::http2,
    service::service_fn,
    upgrade::{self, OnUpgrade},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::moment::Moment;
use metrics::counter;
use tokio::{
    sync::watch,
    time::{sleep, sleep_until, timeout},
};
use tower::{Layer, Service, ServiceBuilder};

use super::{
    body::{Inflow, ReplyBody},
    connections::{Entry, Spoken, UnderWay},
    detect::{Speaks, detect},
    dial::OnThisThread,
    gather::Gathered,
    headers::{OWN_VIA_MAX, Origin, own_via_count},
    http1::{
        server,
        wire::{SharedWire, Wire},
    },
    listen::Place,
    patience::{self, CLIENT_IDLE, HEAD_READ, Patience, RanOut},
    porter::Carrying,
    reply::{Cause, reply},
    transport::Transport,
    tunnel, welcome,
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
    /// An HTTP/1 client's connection, for what it is told before an answer.
    pub client: Option<SharedWire>,
    /// Its connection's place in the table.
    pub entry: Rc<Entry>,
}

/// Serves one client connection until it ends.
pub async fn serve(
    worker: Rc<Worker>,
    transport: Transport,
    caller: welcome::Caller,
    upstream: Option<Box<str>>,
    place: Place,
) {
    let secure = transport.is_tls();
    let (peer, told) = (caller.ip, caller.told);
    let connections = &worker.connections;
    let entry = connections.client(transport, told, upstream.as_deref(), CLIENT_IDLE);
    if let Some(age) = worker.settings().connection_age {
        entry.ends_by(worker.clock.now() + worker.about(age));
    }
    let wire = Wire::new(Transport::Listed(Rc::clone(&entry)), &worker.buffers);
    let speaks = match first_bytes(&worker, &wire).await {
        Ok(speaks) => speaks,
        Err(error) => {
            tracing::trace!(%error, "a connection said nothing");
            return;
        }
    };
    let settings = worker.settings();
    let trusted =
        peer.is_some_and(|ip| settings.trusted_proxies.iter().any(|net| net.contains(ip)));
    let (id, home) = (entry.id, Rc::clone(&worker));
    let mut caller = Caller {
        origin: Rc::new(Origin::new(peer, trusted, secure)),
        upstream: upstream.map(Rc::from),
        client: None,
        entry,
        worker,
    };
    match speaks {
        // Boxed, so that a resting connection of HTTP/1 does not take the room of one of HTTP/2.
        Speaks::Http2 => {
            caller.entry.speaks(Spoken::Http2);
            Box::pin(serve_http2(caller, wire, settings.header_bytes)).await;
        }
        Speaks::Http1 | Speaks::Undecided => {
            caller.entry.speaks(Spoken::Http1);
            caller.client = Some(Rc::clone(&wire));
            server::serve(caller, wire).await;
        }
    }
    home.pool.borrow_mut().forget_client(id);
    drop(place);
}

/// Serves a client that speaks HTTP/2 by prior knowledge.
async fn serve_http2(caller: Caller, wire: SharedWire, header_bytes: usize) {
    let worker = Rc::clone(&caller.worker);
    let patience = Patience::new(worker.clock);
    let io = Gathered::new(wire, Some(Arc::clone(&patience)));
    let entry = Rc::clone(&caller.entry);
    let ends = entry.end();
    let stack = stack(caller);
    let busy = Arc::clone(&patience);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let answering = busy.answer(UnderWay::on(&entry));
        let leaving = (request.method() == Method::CONNECT).then(|| upgrade::on(&mut request));
        let client = Rc::clone(&entry);
        let answer = stack.clone().call(request.map(Inflow::Http2));
        async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(match leaving {
                Some(leaving) if answer.body().is_tunnel() => {
                    left(answer, leaving, client, answering)
                }
                _ => answer.map(|body| body.served(answering)),
            })
        }
    });
    let connection = http2::Builder::new(OnThisThread)
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_pending_accept_reset_streams(H2_CANCELLED_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .serve_connection(TokioIo::new(io.clone()), service);
    if let Err(error) = run(&worker, &patience, (&io, ends), connection).await {
        let h2 = std::error::Error::source(&error).is_some_and(|source| source.is::<h2::Error>());
        if error.is_parse() || error.is_timeout() || h2 {
            counter!("starling_client_faults_total").increment(1);
        }
        tracing::debug!(%error, "client connection ended early");
    }
}

/// An answer behind which its stream is a tunnel.
fn left(
    answer: Response<ReplyBody>,
    leaving: OnUpgrade,
    client: Rc<Entry>,
    answering: patience::Answering,
) -> Response<ReplyBody> {
    let (head, body) = answer.into_parts();
    if let Some(tunnel) = body.into_tunnel() {
        tokio::task::spawn_local(async move {
            match leaving.await {
                Ok(stream) => tunnel::streamed(TokioIo::new(stream), &client, tunnel).await,
                Err(error) => tracing::debug!(%error, "a stream did not become a tunnel"),
            }
            drop(answering);
        });
    }
    Response::from_parts(head, ReplyBody::empty())
}

/// The path and what stands before it.
pub type Stack = Guarded<Forward>;

/// Builds the stack for one client connection.
pub fn stack(caller: Caller) -> Stack {
    ServiceBuilder::new()
        .layer(Guard {
            worker: Rc::clone(&caller.worker),
            entry: Rc::clone(&caller.entry),
        })
        .service(Forward { caller })
}

/// Reads until it is told what is spoken.
async fn first_bytes(worker: &Worker, wire: &SharedWire) -> io::Result<Speaks> {
    let mut phase = worker.common.phase.clone();
    loop {
        let nothing_yet = wire.borrow().input().is_empty();
        let patience = if nothing_yet { CLIENT_IDLE } else { HEAD_READ };
        let fill = poll_fn(|cx| wire.borrow_mut().poll_fill(cx));
        let count = tokio::select! {
            biased;
            count = timeout(patience, fill) => count??,
            () = last_words(&mut phase), if nothing_yet => 0,
        };
        match detect(wire.borrow().input()) {
            Speaks::Undecided if count == 0 && nothing_yet => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Speaks::Undecided if count > 0 => {}
            Speaks::Undecided => return Ok(Speaks::Http1),
            told => return Ok(told),
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

impl<S, B> Graceful for http2::Connection<TokioIo<Gathered>, S, OnThisThread>
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
async fn run(
    worker: &Worker,
    patience: &Patience,
    (io, ends): (&Gathered, Option<Moment>),
    connection: impl Graceful,
) -> hyper::Result<()> {
    let mut connection = std::pin::pin!(connection);
    let mut phase = worker.common.phase.clone();
    tokio::select! {
        // The connection first: hyper closes one that is told to end before it has read what is there already.
        biased;
        ended = poll_fn(|cx| io.poll_turn(connection.as_mut(), cx)) => return ended,
        _ = phase.wait_for(|phase| *phase == Phase::Ending) => {}
        () = old_age(worker, ends) => {}
        ran_out = patience.run_out() => if ran_out != RanOut::Idle {
            dawdled(ran_out);
            return Ok(());
        },
    }
    connection.as_mut().end();
    tokio::select! {
        biased;
        ended = poll_fn(|cx| io.poll_turn(connection.as_mut(), cx)) => ended,
        // One that neither reads nor hangs up would be waited for to the end of time.
        ran_out = patience.run_out_of_farewell() => {
            dawdled(ran_out);
            Ok(())
        }
    }
}

fn dawdled(ran_out: RanOut) {
    counter!("starling_client_faults_total").increment(1);
    tracing::debug!(?ran_out, "a client dawdled too long");
}

/// Ready when a connection is too old for more requests.
async fn old_age(worker: &Worker, ends: Option<Moment>) {
    match ends {
        Some(ends) => sleep_until(worker.clock.instant(ends)).await,
        None => std::future::pending().await,
    }
}

/// The path as a tower service.
#[derive(Clone)]
pub struct Forward {
    caller: Caller,
}

impl Service<Request<Inflow>> for Forward {
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    type Future = Carrying;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Inflow>) -> Self::Future {
        let caller = self.caller.clone();
        let porters = &self.caller.worker.porters;
        porters.send(caller, request)
    }
}

/// Refuses what must never be forwarded: loops, endless paths. While the sidecar closes, and once their connection is
/// too old, it asks HTTP/1 callers to come back on another connection.
#[derive(Clone)]
struct Guard {
    worker: Rc<Worker>,
    entry: Rc<Entry>,
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            worker: Rc::clone(&self.worker),
            entry: Rc::clone(&self.entry),
            inner,
        }
    }
}

/// A service behind the guard.
#[derive(Clone)]
pub struct Guarded<S> {
    worker: Rc<Worker>,
    entry: Rc<Entry>,
    inner: S,
}

impl<S> Service<Request<Inflow>> for Guarded<S>
where
    S: Service<Request<Inflow>, Response = Response<ReplyBody>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    type Future = Guarding<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Inflow>) -> Self::Future {
        let settings = self.worker.settings();
        if let Some(cause) = refusal(&request, &settings.via.pseudonym) {
            counter!("starling_requests_refused_total", "flag" => cause.line().flag).increment(1);
            let answer = reply(cause, false, &settings.node, None);
            return Guarding::Refused(Some(Box::new(answer)));
        }
        Guarding::Answering {
            asks_to_close: (request.version() < http::Version::HTTP_2)
                .then(|| (Rc::clone(&self.worker), Rc::clone(&self.entry))),
            inner: self.inner.call(request),
        }
    }
}

/// The answer of a guarded service.
pub enum Guarding<F> {
    /// It did not get as far.
    Refused(Option<Box<Response<ReplyBody>>>),
    /// It is on the way.
    Answering {
        /// For HTTP/1: whose life and whose age decide whether the client is asked to close.
        asks_to_close: Option<(Rc<Worker>, Rc<Entry>)>,
        /// The service's own future.
        inner: F,
    },
}

impl<F> Future for Guarding<F>
where
    F: Future<Output = Result<Response<ReplyBody>, Infallible>> + Unpin,
{
    type Output = Result<Response<ReplyBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Guarding::Refused(answer) => match answer.take() {
                Some(answer) => Poll::Ready(Ok(*answer)),
                None => Poll::Pending,
            },
            Guarding::Answering {
                asks_to_close,
                inner,
            } => {
                let mut answer = ready!(Pin::new(inner).poll(cx))?;
                let closing = asks_to_close
                    .as_ref()
                    .is_some_and(|(worker, entry)| closes(worker, entry));
                if closing && !answer.body().is_tunnel() {
                    answer
                        .headers_mut()
                        .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                }
                Poll::Ready(Ok(answer))
            }
        }
    }
}

/// Whether a client of HTTP/1 is to come back on another connection.
fn closes(worker: &Worker, entry: &Entry) -> bool {
    worker.phase() != Phase::Open
        || (entry.end().is_some() && entry.is_over_age(worker.clock.now()))
}

fn refusal(request: &Request<Inflow>, pseudonym: &str) -> Option<Cause> {
    if request
        .uri()
        .path_and_query()
        .is_some_and(|path| path.as_str().len() > URI_BYTES_MAX)
    {
        return Some(Cause::UriTooLong);
    }
    (own_via_count(request.headers(), pseudonym) > OWN_VIA_MAX).then_some(Cause::Loop)
}
