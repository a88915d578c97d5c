//! One request to one endpoint over a kept or a new connection, up to the answer's head.
//!
//! Not here: what follows from how it went (`forward.rs`, `mesh_core::retry`).

use std::{error::Error, io, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Request, Uri, Version, header, response};
use hyper::body::Incoming;
use mesh_core::{
    endpoint::Endpoint,
    moment::Moment,
    outcome::{Outcome, Unreachable},
    retry::Sent,
    snapshot::Upstream,
};
use tokio::time::{timeout, timeout_at};
use tower::Service;

use super::{
    attempt::Attempt,
    body::RequestBody,
    dial::{self, Target},
    forward::{Call, judge},
    pool::{Idle, Multiplexed, Pool},
    transport::Transport,
    worker::{Admission, Worker},
};

/// A kept connection that breaks within this time of being used again was dead before: a round trip across the world,
/// and then some.
const STALE_SOON: Duration = Duration::from_millis(500);

/// An answer's head, its body still to come.
pub struct Answer {
    /// The head.
    pub head: response::Parts,
    /// The body.
    pub body: Incoming,
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
pub struct Terms {
    /// When it is given up.
    pub deadline: Moment,
    /// On a connection of its own: one that was kept has just been found dead.
    pub fresh: bool,
}

/// Makes one try, and closes its account unless there is an answer.
pub async fn once(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    endpoint: &Arc<Endpoint>,
    call: &Call,
    terms: Terms,
) -> Result<Answer, Failure> {
    let mut attempt = Attempt::begin(worker, upstream, endpoint);
    let trying = async {
        if endpoint.http2 {
            over_http2(&mut attempt, upstream, call, terms).await
        } else {
            over_http1(&mut attempt, upstream, call, terms).await
        }
    };
    let tried = timeout_at(worker.clock.instant(terms.deadline), trying).await;
    match tried {
        Ok(Ok((response, connection))) => {
            let (head, body) = response.into_parts();
            let told = judge(&head, hyper::body::Body::is_end_stream(&body));
            attempt.headed(told);
            Ok(Answer {
                connection: connection.map(|idle| keeps_as_told(idle, &head)),
                outcome: told.unwrap_or(Outcome::Success),
                sent: all_sent(call),
                head,
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
                forget_shared(worker, endpoint);
                Failure::new(Unreachable::AnswerTimedOut, all_sent(call))
            } else {
                Failure::new(Unreachable::ConnectTimedOut, Sent::Nothing)
            };
            attempt.failed(Outcome::Unreachable(failure.why));
            Err(failure)
        }
    }
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

type Tried = Result<(http::Response<Incoming>, Option<Idle>), Failure>;

async fn over_http1(
    attempt: &mut Attempt,
    upstream: &Upstream,
    call: &Call,
    terms: Terms,
) -> Tried {
    let worker = Rc::clone(attempt.worker());
    let endpoint = Arc::clone(attempt.endpoint());
    let kept = if terms.fresh {
        None
    } else {
        worker
            .pool
            .borrow_mut()
            .take(endpoint.id, worker.clock.now())
    };
    let reused = kept.is_some();
    let mut idle = match kept {
        Some(idle) => idle,
        None => {
            let header_bytes = upstream.policy.limits.header_bytes;
            let opening = async {
                let transport = dialled(&worker, &endpoint).await?;
                let opened = dial::http1(transport, header_bytes).await;
                opened.map_err(|error| handshake_failed(&endpoint, &error))
            };
            let sender = connect(upstream, opening).await?;
            let number = worker.pool.borrow_mut().number();
            Pool::fresh(sender, number)
        }
    };
    attempt.on_connection(idle.number);
    let request = http1_request(call, terms.deadline.since(worker.clock.now()));
    let sent_at = worker.clock.now();
    match idle.sender.send_request(request).await {
        Ok(response) => Ok((response, Some(idle))),
        Err(error) => {
            let soon = worker.clock.now().since(sent_at) < STALE_SOON;
            Err(broken(&error, call, reused, reused && soon))
        }
    }
}

async fn over_http2(
    attempt: &mut Attempt,
    upstream: &Upstream,
    call: &Call,
    terms: Terms,
) -> Tried {
    let worker = Rc::clone(attempt.worker());
    let endpoint = Arc::clone(attempt.endpoint());
    if terms.fresh {
        forget_shared(&worker, &endpoint);
    }
    let place = worker.pool.borrow_mut().h2(endpoint.id, worker.clock.now());
    let is_open = |shared: &&Multiplexed| !shared.sender.is_closed();
    let open = place
        .try_lock()
        .ok()
        .and_then(|place| place.as_ref().filter(is_open).cloned());
    let reused = open.is_some();
    let mut shared = match open {
        Some(shared) => shared,
        None => {
            let header_bytes = upstream.policy.limits.header_bytes;
            // Whoever holds the lock dials for all; the others wait no longer than they would dial themselves.
            let opening = async {
                let mut place = place.lock().await;
                if let Some(shared) = place.as_ref().filter(is_open) {
                    return Ok(shared.clone());
                }
                let transport = dialled(&worker, &endpoint).await?;
                let opened = dial::http2(transport, header_bytes).await;
                let sender = opened.map_err(|error| handshake_failed(&endpoint, &error))?;
                let number = worker.pool.borrow_mut().number();
                Ok(place.insert(Multiplexed { sender, number }).clone())
            };
            connect(upstream, opening).await?
        }
    };
    attempt.on_connection(shared.number);
    let request = http2_request(call, terms.deadline.since(worker.clock.now()))?;
    match shared.sender.send_request(request).await {
        Ok(response) => Ok((response, None)),
        Err(error) => Err(broken(&error, call, reused, false)),
    }
}

/// The next request opens another HTTP/2 connection; what is in flight on this one goes on.
fn forget_shared(worker: &Worker, endpoint: &Endpoint) {
    if endpoint.http2 {
        worker.pool.borrow_mut().forget_h2(endpoint.id);
    }
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

fn handshake_failed(endpoint: &Endpoint, error: &hyper::Error) -> Unreachable {
    tracing::debug!(address = %endpoint.key.address, %error, "handshake failed");
    Unreachable::ConnectFailed
}

/// Opens a transport; the caller bounds the time.
pub async fn dialled(worker: &Worker, endpoint: &Endpoint) -> Result<Transport, Unreachable> {
    let opening = worker.connector.borrow_mut().call(Target {
        address: endpoint.key.address,
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

fn http1_request(call: &Call, left: Duration) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::of(call.source.as_ref()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = call.uri.clone();
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    headers.reserve(call.headers.len() + 2);
    headers.insert(header::HOST, call.authority.clone());
    headers.extend(call.headers.clone());
    // Without this, hyper would send no body with methods that seldom have one.
    if call.source.is_some() && !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(
            header::TRANSFER_ENCODING,
            HeaderValue::from_static("chunked"),
        );
    }
    pass_on_time_left(call, headers, left);
    if call.upgrade.is_some() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    request
}

fn http2_request(call: &Call, left: Duration) -> Result<Request<RequestBody>, Failure> {
    let mut request = Request::new(RequestBody::of(call.source.as_ref()));
    *request.method_mut() = call.method.clone();
    *request.version_mut() = Version::HTTP_2;
    let path = call.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder()
        .scheme("http")
        .authority(call.authority.as_bytes())
        .path_and_query(path)
        .build();
    // The authority was checked when the call was read; a path that fits HTTP/1 fits here.
    *request.uri_mut() = uri.map_err(|error| {
        tracing::debug!(%error, "a request line that HTTP/2 cannot carry");
        Failure {
            client_failed: true,
            ..Failure::new(Unreachable::Garbled, Sent::Nothing)
        }
    })?;
    *request.headers_mut() = call.headers.clone();
    request.headers_mut().remove(header::UPGRADE);
    pass_on_time_left(call, request.headers_mut(), left);
    Ok(request)
}

/// A client's `grpc-timeout` goes on as what is left of it.
fn pass_on_time_left(call: &Call, headers: &mut HeaderMap, left: Duration) {
    if call.timeout.is_some() {
        // Eight digits at most (the gRPC protocol); 99,999,999 ms are 27 hours.
        let millis = left.as_millis().clamp(1, 99_999_999);
        if let Ok(value) = HeaderValue::try_from(format!("{millis}m")) {
            headers.insert("grpc-timeout", value);
        }
    }
}

/// Reads hyper's error: what happened, and how much of the request the endpoint may have seen. `died_idle`: it broke
/// so soon after a kept connection was used again that it had been dead before.
fn broken(error: &hyper::Error, call: &Call, reused: bool, died_idle: bool) -> Failure {
    let client_failed = call
        .source
        .as_ref()
        .is_some_and(|source| source.client_failed());
    let h2 = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>());
    let gone_away =
        h2.is_some_and(|error| error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR));
    let refused = h2.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM));
    let (why, sent) = match all_sent(call) {
        // Never written: the connection ended between two requests.
        _ if error.is_canceled() && reused => (Unreachable::Broken, Sent::Stale { body: false }),
        Sent::Replayable if gone_away && reused => {
            (Unreachable::Broken, Sent::Stale { body: false })
        }
        sent if refused || gone_away || error.is_canceled() => (Unreachable::NotProcessed, sent),
        sent if error.is_parse() => (Unreachable::Garbled, sent),
        // Its head went out, so a method that is not idempotent may have had its effect: that counts as a body.
        Sent::Replayable if died_idle => {
            let body = !call.method.is_idempotent() || call.source.is_some();
            (Unreachable::Broken, Sent::Stale { body })
        }
        sent => (Unreachable::Broken, sent),
    };
    tracing::debug!(%error, ?why, ?sent, "no answer");
    Failure {
        client_failed,
        ..Failure::new(why, sent)
    }
}

/// An idle connection rests one second less than the server said it would keep it.
fn keeps_as_told(mut idle: Idle, head: &response::Parts) -> Idle {
    let told = head
        .headers
        .get("keep-alive")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            value
                .split(',')
                .find_map(|part| part.trim().strip_prefix("timeout="))
        })
        .and_then(|seconds| seconds.parse::<u64>().ok());
    if let Some(seconds) = told {
        idle.keeps = Duration::from_secs(seconds.saturating_sub(1)).min(super::pool::IDLE_MAX);
    }
    idle
}
