//! One request to one endpoint over a kept or a new connection, up to the answer's head.
//!
//! Not here: how it goes over HTTP/2 (`send/http2.rs`), and what follows from how it went (`forward.rs`,
//! `mesh_core::retry`).

use std::{io, pin::pin, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderValue, response};
use http_body::Body;
use mesh_core::{
    endpoint::Endpoint,
    moment::Moment,
    outcome::{Outcome, Unreachable},
    outlier::Canary,
    retry::Sent,
    snapshot::Upstream,
};
use tokio::time::{timeout, timeout_at};
use tower::Service;

use self::http2::{ask, multiplexed, over_http2};
use super::{
    ahead,
    attempt::Attempt,
    body::Inflow,
    call::Call,
    connections::{Entry, Spoken, reason},
    dial::Target,
    extended,
    forward::judge,
    headers,
    http1::{
        client::{Trouble, exchange},
        wire::Wire,
    },
    http2::client::Line,
    pool::{Between, IDLE_MAX, Idle},
    present::Present,
    request_body::Source,
    transport::Transport,
    worker::{Admission, Worker},
};
use crate::tls::ClientTls;

mod http2;

/// A kept connection that breaks within this time of being used again was dead before: a round trip across the world,
/// and then some.
const STALE_SOON: Duration = Duration::from_millis(500);

/// An answer's head, its body still to come.
pub struct Answer {
    /// The head.
    pub head: response::Parts,
    /// What stands in it.
    pub there: Present,
    /// The body.
    pub body: Inflow,
    /// The account, open until the body's end.
    pub attempt: Attempt,
    /// The HTTP/1 connection to be put back after it.
    pub connection: Option<Idle>,
    /// How it went so far.
    pub outcome: Outcome,
    /// What was sent of the request.
    pub sent: Sent,
}

/// No answer.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub why: Unreachable,
    /// What was sent of the request.
    pub sent: Sent,
    /// The client broke off its own body: nobody else is to blame.
    pub client_failed: bool,
    /// Too many requests wait for a connection already: nothing was tried.
    pub full: bool,
}

impl Failure {
    fn new(why: Unreachable, sent: Sent) -> Failure {
        Failure {
            why,
            sent,
            client_failed: false,
            full: false,
        }
    }
}

/// What one try is made with.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// When it is given up.
    pub deadline: Moment,
    /// On a connection of its own: one that was kept has just been found dead.
    pub fresh: bool,
    /// The client's connection.
    pub client: &'a Entry,
    /// The trial of its endpoint that it is, if it is one.
    pub canary: Option<Canary>,
    /// If its answer tells that the endpoint failed, it is made again: worth a look behind a head that does not tell.
    pub looks_ahead: bool,
}

impl Terms<'_> {
    /// Whose connections it may go over: where they begin with the client's address, its own.
    fn between(self, upstream: &Upstream, endpoint: &Endpoint) -> Between {
        let is_introduced = upstream.policy.send_proxy.is_some();
        Between {
            client: if is_introduced { self.client.id } else { 0 },
            endpoint: endpoint.id,
        }
    }
}

/// Makes one try, and closes its account unless there is an answer.
pub async fn once(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    endpoint: &Arc<Endpoint>,
    call: &Call,
    terms: Terms<'_>,
) -> Result<Answer, Failure> {
    let mut attempt = Attempt::begin(worker, upstream, endpoint, terms.canary);
    let tried = {
        // In its place from the beginning: it is large, and would be copied into whatever holds it.
        let trying = pin!(async {
            let agreed_http2 = || {
                let between = terms.between(upstream, endpoint);
                let pool = &mut *worker.pool.borrow_mut();
                if call.upgrade {
                    // Unless a stream can do it, it takes HTTP/1, which an endpoint behind TLS speaks too if nothing
                    // else is offered.
                    extended::is_websocket(&call.headers) && pool.leaves_http2(between)
                } else {
                    pool.agreed_http2(between)
                }
            };
            if endpoint.http2 || agreed_http2() {
                over_http2(&mut attempt, upstream, call, terms).await
            } else {
                over_http1(&mut attempt, upstream, call, terms).await
            }
        });
        timeout_at(worker.clock.instant(terms.deadline), trying).await
    };
    match tried {
        Ok(Ok((head, mut body, connection))) => {
            let there = Present::of(&head.headers);
            let mut told = judge(&head, there, body.is_end_stream());
            attempt.headed(told);
            if told.is_none() && terms.looks_ahead && is_repeatable(call) {
                let until = terms.deadline.min(worker.clock.now() + ahead::LOOK_MAX);
                // Apart, so that no other call needs room for it.
                let looking = Box::pin(ahead::look(body, worker.clock.instant(until)));
                (body, told) = looking.await;
                if told.is_some() {
                    attempt.over(told);
                }
            }
            Ok(Answer {
                connection: connection.map(|idle| keeps_as_told(idle, &head, there)),
                outcome: told.unwrap_or(Outcome::Success),
                sent: all_sent(call),
                head,
                there,
                body,
                attempt,
            })
        }
        Ok(Err(failure)) => {
            // A dead idle connection says nothing of the endpoint, a client that gave up nothing of anybody.
            let nobodys_fault = failure.client_failed
                || failure.full
                || failure.why == Unreachable::NotProcessed
                || matches!(failure.sent, Sent::Stale { .. });
            if !nobodys_fault {
                attempt.failed(Outcome::Unreachable(failure.why));
            }
            Err(failure)
        }
        Err(_) => {
            let failure = if attempt.is_connected() {
                let between = terms.between(upstream, endpoint);
                let since = worker.clock.instant(attempt.began());
                (worker.pool.borrow_mut()).doubt_h2(between, attempt.connection(), since);
                Failure::new(Unreachable::AnswerTimedOut, all_sent(call))
            } else {
                Failure::new(Unreachable::ConnectTimedOut, Sent::Nothing)
            };
            attempt.failed(Outcome::Unreachable(failure.why));
            Err(failure)
        }
    }
}

/// Whether the endpoint has, or is about to have, all of the request, and so could another.
fn is_repeatable(call: &Call) -> bool {
    let is_whole = call.source.as_ref().is_none_or(Source::is_whole);
    is_whole && all_sent(call) == Sent::Replayable
}

/// What was sent once the request went out: whether it can be sent again whole.
fn all_sent(call: &Call) -> Sent {
    let replayable = call
        .source
        .as_ref()
        .is_none_or(|source| source.is_replayable());
    if replayable {
        Sent::Replayable
    } else {
        Sent::Gone
    }
}

type Tried = Result<(response::Parts, Inflow, Option<Idle>), Failure>;

async fn over_http1(
    attempt: &mut Attempt,
    upstream: &Upstream,
    call: &Call,
    terms: Terms<'_>,
) -> Tried {
    let worker = Rc::clone(attempt.worker());
    let endpoint = Arc::clone(attempt.endpoint());
    let between = terms.between(upstream, &endpoint);
    let kept = if terms.fresh {
        None
    } else {
        worker.pool.borrow_mut().take(between, worker.clock.now())
    };
    let reused = kept.is_some();
    let idle = match kept {
        Some(idle) => idle,
        None => {
            // Seldom, so it has no part in the room that every request takes.
            let opening = Box::pin(async {
                let header = terms.client.introduction(upstream);
                let header = header.as_deref();
                let transport = dialled(&worker, upstream, &endpoint, call.upgrade, header).await?;
                if transport.agreed_http2() != Some(true) {
                    return Ok(Opened::Http1(transport));
                }
                // The endpoint would rather speak HTTP/2: from now on so do we.
                let shared = multiplexed(&worker, upstream, &endpoint, transport).await?;
                (worker.pool.borrow_mut()).agree_http2(between, Rc::clone(&shared));
                Ok(Opened::Http2(shared))
            });
            let transport = match connect(upstream, opening).await? {
                Opened::Http1(transport) => transport,
                Opened::Http2(shared) => {
                    return ask(attempt, shared, call, terms, false).await;
                }
            };
            let entry = listed(&worker, upstream, &endpoint, transport);
            entry.speaks(Spoken::Http1);
            let transport = Transport::Listed(Rc::clone(&entry));
            Idle::fresh(between, Wire::new(transport, &worker.buffers), entry)
        }
    };
    attempt.on_connection(idle.entry.id);
    idle.entry.begins(terms.client.id);
    let sent_at = worker.clock.now();
    let left = terms.deadline.since(sent_at);
    let header_bytes = upstream.policy.limits.header_bytes;
    match exchange(&idle.wire, call, left, header_bytes).await {
        Ok((head, body)) => Ok((head, Inflow::Http1(body), Some(idle))),
        Err(trouble) => {
            let soon = worker.clock.now().since(sent_at) < STALE_SOON;
            if trouble != Trouble::Client {
                let detail = Some(format!("{trouble:?}"));
                idle.entry.ends_for(reason::ENDPOINT_BROKE, detail);
            }
            Err(troubled(trouble, call, reused, reused && soon))
        }
    }
}

/// A connection just opened, by what is spoken on it.
enum Opened {
    Http1(Transport),
    Http2(Rc<Line>),
}

/// Reads what befell a request over HTTP/1. `died_idle`: it broke so soon after a kept connection was used again that
/// it had been dead before.
fn troubled(trouble: Trouble, call: &Call, reused: bool, died_idle: bool) -> Failure {
    let (why, sent) = match (trouble, all_sent(call)) {
        (Trouble::Unsent, _) if reused => (Unreachable::Broken, Sent::Stale { body: false }),
        (Trouble::Malformed(_), sent) => (Unreachable::Garbled, sent),
        // Its head went out, so a method that is not idempotent may have had its effect: that counts as a body.
        (Trouble::Silent, Sent::Replayable) if died_idle => {
            let body = !call.method.is_idempotent() || call.source.is_some();
            (Unreachable::Broken, Sent::Stale { body })
        }
        (_, sent) => (Unreachable::Broken, sent),
    };
    tracing::debug!(?trouble, ?why, ?sent, "no answer");
    Failure {
        client_failed: trouble == Trouble::Client,
        ..Failure::new(why, sent)
    }
}

/// Enters a connection just opened into the table.
pub fn listed(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: &Arc<Endpoint>,
    transport: Transport,
) -> Rc<Entry> {
    let entry = (worker.connections).endpoint(transport, upstream, endpoint);
    if let Some(age) = upstream.policy.timeouts.connection_age {
        entry.ends_by(worker.clock.now() + worker.about(age));
    }
    entry
}

/// Waits for a connection within the limits of time and of requests that wait.
async fn connect<S>(
    upstream: &Upstream,
    opening: impl Future<Output = Result<S, Unreachable>>,
) -> Result<S, Failure> {
    let failed = |why| Failure::new(why, Sent::Nothing);
    let Some(_place) = Admission::pending(upstream) else {
        return Err(Failure {
            full: true,
            ..failed(Unreachable::ConnectFailed)
        });
    };
    match timeout(upstream.policy.timeouts.connect, opening).await {
        Ok(opened) => opened.map_err(failed),
        Err(_) => Err(failed(Unreachable::ConnectTimedOut)),
    }
}

/// Opens a transport; the caller bounds the time. `only_http1`: nothing else is offered inside TLS. `header`: said
/// before any handshake.
pub async fn dialled(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: &Endpoint,
    only_http1: bool,
    header: Option<&[u8]>,
) -> Result<Transport, Unreachable> {
    let tls = worker.settings().tls.get(&upstream.policy.name).cloned();
    let tls = if only_http1 {
        tls.map(ClientTls::speaking_http1)
    } else {
        tls
    };
    let opening = worker.connector.borrow_mut().call(Target {
        address: endpoint.key.address,
        header: header.map(Into::into),
        tls,
    });
    opening.await.map_err(|error| {
        tracing::debug!(address = %endpoint.key.address, %error, "cannot connect");
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Unreachable::Refused,
            io::ErrorKind::TimedOut => Unreachable::ConnectTimedOut,
            _ => Unreachable::ConnectFailed,
        }
    })
}

/// A client's `grpc-timeout` goes on as what is left of it.
pub fn time_left(call: &Call, left: Duration) -> Option<HeaderValue> {
    call.timeout.filter(|_| call.grpc)?;
    // Eight digits at most (the gRPC protocol); 99,999,999 ms are 27 hours.
    let millis = left.as_millis().clamp(1, 99_999_999);
    HeaderValue::try_from(format!("{millis}m")).ok()
}

/// An idle connection rests one second less than the server said it would keep it, and long with another Starling.
fn keeps_as_told(mut idle: Idle, head: &response::Parts, there: Present) -> Idle {
    if !there.has(Present::KEEP_ALIVE.or(Present::VIA)) {
        return idle;
    }
    let told = head
        .headers
        .get(headers::KEEP_ALIVE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            value
                .split(',')
                .find_map(|part| part.trim().strip_prefix("timeout="))
        })
        .and_then(|seconds| seconds.parse::<u64>().ok());
    if let Some(seconds) = told {
        idle.keeps = Duration::from_secs(seconds.saturating_sub(1)).min(IDLE_MAX);
    } else if headers::is_of_starling(&head.headers) {
        idle.keeps = IDLE_MAX;
    }
    idle
}
