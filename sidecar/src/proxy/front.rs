//! One client connection of HTTP: what is spoken is told, its server runs, the one tower stack stands before the path.
//!
//! Not here: where a request goes (`forward.rs`). A layer here may refuse or observe, never choose.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response};
use mesh_core::moment::Moment;
use metrics::counter;
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Layer, Service, ServiceBuilder};

use super::{
    body::Inflow,
    connections::{Entry, Spoken, reason},
    detect::{Speaks, detect},
    headers::{OWN_VIA_MAX, Origin, own_via_count},
    http1::{
        server,
        wire::{SharedWire, Wire},
    },
    http2,
    interim::Ear,
    listen::Place,
    patience::Timer,
    porter::Carrying,
    reply::{Cause, reply},
    reply_body::ReplyBody,
    transport::Transport,
    welcome,
    worker::{Phase, Settings, Worker},
};

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
    pub upstream: Option<Arc<str>>,
    /// Where a client is told something before an answer; `None` until it is known what it speaks.
    pub client: Option<Ear>,
    /// Its connection's place in the table.
    pub entry: Rc<Entry>,
}

/// Serves one client connection until it ends.
///
/// What is only needed at its beginning is done with before: the future lasts, and takes its room, as long as the
/// connection.
pub fn serve(
    worker: Rc<Worker>,
    transport: Transport,
    caller: welcome::Caller,
    upstream: Option<Arc<str>>,
    place: Place,
) -> impl Future<Output = ()> {
    let (peer, told, secure) = (caller.ip, caller.told, transport.is_tls());
    let settings = worker.settings();
    let connections = &worker.connections;
    let idle = settings.limits.idle;
    let entry = connections.client(transport, told, upstream.as_ref(), idle);
    if let Some(age) = settings.connection_age {
        entry.ends_by(worker.clock.now() + worker.about(age));
    }
    let wire = Wire::new(Transport::Listed(Rc::clone(&entry)), &worker.buffers);
    let trusted =
        peer.is_some_and(|ip| settings.trusted_proxies.iter().any(|net| net.contains(ip)));
    let origin = (worker.origins).of(peer, told.is_some(), trusted, secure);
    let mut caller = Caller {
        origin,
        upstream,
        client: None,
        entry,
        worker,
    };
    async move {
        let sleep = pin!(sleep(idle));
        let mut timer = Timer::new(sleep);
        match first_bytes(&caller, &wire, &mut timer).await {
            Err(error) => {
                tracing::trace!(%error, "a connection said nothing");
                let reason = end_of_silence(&caller.worker, &error);
                caller.entry.ends_for(reason, None);
            }
            // Boxed, so that a resting connection of HTTP/1 does not take the room of one of HTTP/2.
            Ok((Speaks::Http2, _)) => {
                caller.entry.speaks(Spoken::Http2);
                Box::pin(http2::server::serve(caller.clone(), Rc::clone(&wire))).await;
            }
            Ok((Speaks::Http1 | Speaks::Undecided, head_ends)) => {
                caller.entry.speaks(Spoken::Http1);
                caller.client = Some(Ear::Http1(Rc::clone(&wire)));
                server::serve(&caller, &wire, &mut timer, head_ends).await;
            }
        }
        let pool = &caller.worker.pool;
        pool.borrow_mut().forget_client(caller.entry.id);
        drop(place);
    }
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

/// Reads until it is told what is spoken; and when the first request's head must have come, if it was waited for.
async fn first_bytes(
    caller: &Caller,
    wire: &SharedWire,
    timer: &mut Timer<'_>,
) -> io::Result<(Speaks, Option<Instant>)> {
    let rest_ends = timer.due();
    let head = caller.worker.settings().limits.head;
    let (mut head_ends, mut last_words_end) = (None, None);
    poll_fn(|cx| {
        let wire = &mut *wire.borrow_mut();
        while let Poll::Ready(count) = wire.poll_fill(cx) {
            let count = count?;
            if wire.input().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            match detect(wire.input()) {
                Speaks::Undecided if count > 0 => {}
                told => return Poll::Ready(Ok((told, head_ends))),
            }
        }
        let has_begun = !wire.input().is_empty();
        let due = if has_begun {
            *head_ends.get_or_insert_with(|| Instant::now() + head)
        } else if caller.worker.is_ending(cx, &caller.entry) {
            *last_words_end.get_or_insert_with(|| Instant::now() + LAST_WORDS)
        } else {
            rest_ends
        };
        ready!(timer.poll_until(cx, due));
        Poll::Ready(if has_begun {
            Ok((Speaks::Undecided, head_ends))
        } else if last_words_end.is_some() {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Err(io::ErrorKind::TimedOut.into())
        })
    })
    .await
}

/// Why a connection ends that has asked for nothing, as the log has it.
fn end_of_silence(worker: &Worker, error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::TimedOut => reason::IDLE,
        _ if worker.phase() == Phase::Ending => reason::LEAVING,
        _ => reason::CLIENT_GONE,
    }
}

/// Ready when a connection is too old for more requests.
pub async fn old_age(worker: &Worker, ends: Option<Moment>) {
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

/// Refuses what must never be forwarded: loops, endless paths, too many fields. While the sidecar closes, and once their connection is
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
        if let Some(cause) = refusal(&request, &settings) {
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

fn refusal(request: &Request<Inflow>, settings: &Settings) -> Option<Cause> {
    if request
        .uri()
        .path_and_query()
        .is_some_and(|path| path.as_str().len() > settings.limits.request_line_bytes)
    {
        return Some(Cause::UriTooLong);
    }
    if has_too_many_fields(request.headers(), settings.limits.headers) {
        return Some(Cause::HeadersTooLarge);
    }
    (own_via_count(request.headers(), &settings.via.pseudonym) > OWN_VIA_MAX).then_some(Cause::Loop)
}

/// Whether there are more than `max`, `cookie` counted once: HTTP/2 lets it come in pieces (RFC 9113, 8.2.3).
fn has_too_many_fields(headers: &HeaderMap, max: usize) -> bool {
    let count = headers.len();
    let cookies = || headers.get_all(http::header::COOKIE).iter().skip(1).count();
    count > max && count - cookies() > max
}
