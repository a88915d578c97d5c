//! One request to one endpoint over a kept or a new connection, up to the answer's head.
//!
//! Not here: what follows from how it went (`forward.rs`, `mesh_core::retry`).

use std::{error::Error, io, rc::Rc, sync::Arc};

use http::{HeaderValue, Request, Uri, Version, header, response};
use hyper::{body::Incoming, client::conn::http1};
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

/// Makes one try, and closes its account unless there is an answer.
pub async fn once(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    endpoint: &Arc<Endpoint>,
    call: &Call,
    deadline: Moment,
) -> Result<Answer, Failure> {
    let mut attempt = Attempt::begin(worker, upstream, endpoint);
    let trying = async {
        if endpoint.http2 {
            over_http2(&mut attempt, upstream, call).await
        } else {
            over_http1(&mut attempt, upstream, call).await
        }
    };
    let tried = timeout_at(worker.clock.instant(deadline), trying).await;
    let replayable = call
        .source
        .as_ref()
        .is_none_or(|source| source.is_replayable());
    match tried {
        Ok(Ok((response, connection))) => {
            let (head, body) = response.into_parts();
            let told = judge(&head, hyper::body::Body::is_end_stream(&body));
            attempt.headed(told);
            let outcome = told.unwrap_or(Outcome::Success);
            let connection = connection.map(|idle| keeps_as_told(idle, &head));
            let sent = if replayable {
                Sent::Replayable
            } else {
                Sent::Gone
            };
            Ok(Answer {
                head,
                body,
                attempt,
                connection,
                outcome,
                sent,
            })
        }
        Ok(Err(failure)) => {
            // A dead idle connection says nothing of the endpoint, a client that gave up says nothing of anybody.
            let nobodys_fault = failure.client_failed || failure.full;
            if !nobodys_fault && !matches!(failure.sent, Sent::Stale { .. }) {
                attempt.failed(Outcome::Unreachable(failure.why));
            }
            Err(failure)
        }
        Err(_) => {
            attempt.failed(Outcome::Unreachable(Unreachable::AnswerTimedOut));
            let sent = if replayable {
                Sent::Replayable
            } else {
                Sent::Gone
            };
            Err(Failure::new(Unreachable::AnswerTimedOut, sent))
        }
    }
}

type Tried = Result<(http::Response<Incoming>, Option<Idle>), Failure>;

async fn over_http1(attempt: &mut Attempt, upstream: &Upstream, call: &Call) -> Tried {
    let worker = Rc::clone(attempt.worker());
    let endpoint = Arc::clone(attempt.endpoint());
    let kept = worker
        .pool
        .borrow_mut()
        .take(endpoint.id, worker.clock.now());
    let reused = kept.is_some();
    let mut idle = match kept {
        Some(idle) => idle,
        None => {
            let sender = connect(&worker, upstream, &endpoint, async |transport, bytes| {
                dial::http1(transport, bytes).await
            })
            .await?;
            let number = worker.pool.borrow_mut().number();
            Pool::fresh(sender, number)
        }
    };
    attempt.on_connection(idle.number);
    let request = http1_request(call);
    match send_http1(&mut idle.sender, request).await {
        Ok(response) => Ok((response, Some(idle))),
        Err(error) => Err(broken(&error, call, reused)),
    }
}

async fn send_http1(
    sender: &mut http1::SendRequest<RequestBody>,
    request: Request<RequestBody>,
) -> hyper::Result<http::Response<Incoming>> {
    sender.send_request(request).await
}

async fn over_http2(attempt: &mut Attempt, upstream: &Upstream, call: &Call) -> Tried {
    let worker = Rc::clone(attempt.worker());
    let endpoint = Arc::clone(attempt.endpoint());
    let place = worker.pool.borrow_mut().h2(endpoint.id, worker.clock.now());
    let (mut shared, reused) = {
        let mut place = place.lock().await;
        match place.as_ref().filter(|shared| !shared.sender.is_closed()) {
            Some(shared) => (shared.clone(), true),
            None => {
                let sender = connect(&worker, upstream, &endpoint, async |transport, bytes| {
                    dial::http2(transport, bytes).await
                })
                .await?;
                let number = worker.pool.borrow_mut().number();
                let shared = Multiplexed { sender, number };
                *place = Some(shared.clone());
                (shared, false)
            }
        }
    };
    attempt.on_connection(shared.number);
    let request = http2_request(call)?;
    match shared.sender.send_request(request).await {
        Ok(response) => Ok((response, None)),
        Err(error) => Err(broken(&error, call, reused)),
    }
}

/// Opens a connection within the connect timeout.
async fn connect<S>(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: &Endpoint,
    handshake: impl AsyncFnOnce(Transport, usize) -> hyper::Result<S>,
) -> Result<S, Failure> {
    let failed = |why| Failure::new(why, Sent::Nothing);
    let Some(_place) = Admission::pending(upstream) else {
        return Err(Failure {
            full: true,
            ..failed(Unreachable::ConnectFailed)
        });
    };
    let header_bytes = upstream.policy.limits.header_bytes;
    let opening = async {
        let transport = dialled(worker, endpoint).await?;
        handshake(transport, header_bytes).await.map_err(|error| {
            tracing::debug!(address = %endpoint.key.address, %error, "handshake failed");
            Unreachable::ConnectFailed
        })
    };
    match timeout(upstream.policy.timeouts.connect, opening).await {
        Ok(Ok(sender)) => Ok(sender),
        Ok(Err(why)) => Err(failed(why)),
        Err(_) => Err(failed(Unreachable::ConnectTimedOut)),
    }
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

fn http1_request(call: &Call) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::of(call.source.as_ref()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = call.uri.clone();
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    headers.reserve(call.headers.len() + 2);
    headers.insert(header::HOST, call.authority.clone());
    headers.extend(call.headers.clone());
    if call.upgrade.is_some() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    request
}

fn http2_request(call: &Call) -> Result<Request<RequestBody>, Failure> {
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
    Ok(request)
}

/// Reads hyper's error: what happened, and how much of the request the endpoint may have seen.
fn broken(error: &hyper::Error, call: &Call, reused: bool) -> Failure {
    let client_failed = call
        .source
        .as_ref()
        .is_some_and(|source| source.client_failed());
    let replayable = call
        .source
        .as_ref()
        .is_none_or(|source| source.is_replayable());
    let h2 = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>());
    let not_processed = h2.is_some_and(|error| {
        error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
    });
    let why = if not_processed || error.is_canceled() {
        Unreachable::NotProcessed
    } else if error.is_parse() {
        Unreachable::Garbled
    } else {
        Unreachable::Broken
    };
    let sent = match why {
        _ if !replayable => Sent::Gone,
        Unreachable::NotProcessed => Sent::Replayable,
        // Its head went out, so a method that is not idempotent may have had its effect: that counts as a body.
        Unreachable::Broken if reused && h2.is_none() => Sent::Stale {
            body: !call.method.is_idempotent() || call.source.is_some(),
        },
        _ => Sent::Replayable,
    };
    tracing::debug!(%error, ?why, reused, "no answer");
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
        idle.keeps =
            std::time::Duration::from_secs(seconds.saturating_sub(1)).min(super::pool::IDLE_MAX);
    }
    idle
}
