//! One try over HTTP/2, on a connection shared with others.
//!
//! Not here: HTTP/1 and what both share (`send.rs`), which connections are kept (`pool.rs`), and how a request goes out
//! on one (`http2/client.rs`).

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{HeaderName, Request, Version, header};
use mesh_core::{endpoint::Endpoint, outcome::Unreachable, retry::Sent, snapshot::Upstream};
use tokio::time::timeout;

use super::{Failure, Terms, Tried, all_sent, connect, dialled, listed, over_http1, time_left};
use crate::proxy::{
    attempt::Attempt,
    body::Inflow,
    call::Call,
    connections::{Spoken, UnderWay},
    extended, headers,
    http2::{self, client::Line},
    pool::SharedH2,
    present::Present,
    transport::Transport,
    worker::Worker,
};

/// Fields with another value in each request. In HPACK's table they would push out those that come again, and each would
/// be compared with all that came before it; a value that is called sensitive stays out of it (RFC 7541, 6.2.3).
const NEW_EACH_TIME: [(Present, HeaderName); 3] = [
    (Present::REQUEST_ID, headers::X_REQUEST_ID),
    (Present::GRPC_TIMEOUT, headers::GRPC_TIMEOUT),
    (Present::TRACEPARENT, HeaderName::from_static("traceparent")),
];

/// Sends a request on a connection that has room for it, or on another.
pub async fn over_http2(
    attempt: &mut Attempt,
    upstream: &Upstream,
    call: &Call,
    terms: Terms<'_>,
) -> Tried {
    let worker = Rc::clone(attempt.worker());
    let endpoint = Arc::clone(attempt.endpoint());
    let between = terms.between(upstream, &endpoint);
    if terms.fresh {
        // The next request opens another connection; what is in flight on this one goes on.
        worker.pool.borrow_mut().forget_h2(between);
    }
    let place = worker.pool.borrow_mut().h2(between);
    let open = place.with_room(worker.clock.now());
    // Whether others had it before us: then its end says nothing about the endpoint.
    let (shared, reused) = match open {
        Some(shared) => (shared, true),
        None => {
            // Seldom, so it has no part in the room that every request takes.
            let opening = Box::pin(async {
                let another = another(&worker, upstream, &endpoint, &place, terms);
                if place.least_used().is_none() {
                    return another.await;
                }
                // An endpoint may take no other connection: then a stream has to be waited for, and there must be time.
                let left = terms.deadline.since(worker.clock.now());
                let patience = upstream.policy.timeouts.connect.min(left) / 2;
                let why = match timeout(patience, another).await {
                    Ok(Ok(opened)) => return Ok(opened),
                    Ok(Err(why)) => why,
                    Err(_) => Unreachable::ConnectTimedOut,
                };
                place.cannot_grow(worker.clock.now());
                place.least_used().map(|shared| (shared, true)).ok_or(why)
            });
            connect(upstream, opening).await?
        }
    };
    // Another connection was known to let streams leave HTTP. This one does not, and the endpoint agreed to HTTP/2 where
    // it had the choice, so it can still be asked by HTTP/1.
    if call.upgrade && !endpoint.http2 && !Box::pin(shared.lets_leave()).await {
        return Box::pin(over_http1(attempt, upstream, call, terms)).await;
    }
    ask(attempt, shared, call, terms, reused).await
}

/// Opens another HTTP/2 connection, unless one has room by now or there may be no more; and whether others had it
/// before. Whoever holds the lock dials for all.
async fn another(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: &Arc<Endpoint>,
    place: &SharedH2,
    terms: Terms<'_>,
) -> Result<(Rc<Line>, bool), Unreachable> {
    let _dialling = place.dialling.lock().await;
    let now = worker.clock.now();
    if let Some(shared) = place.with_room(now) {
        return Ok((shared, true));
    }
    if let Some(shared) = place.least_used().filter(|_| !place.may_grow(now)) {
        return Ok((shared, true));
    }
    let header = terms.client.introduction(upstream);
    let transport = dialled(worker, upstream, endpoint, false, header.as_deref()).await?;
    let agreed = transport.agreed_http2();
    if agreed == Some(false) || (agreed.is_none() && !endpoint.http2) {
        // It spoke HTTP/2 before; the next try finds out anew.
        let between = terms.between(upstream, endpoint);
        worker.pool.borrow_mut().disagree_http2(between);
        return Err(Unreachable::ConnectFailed);
    }
    let shared = multiplexed(worker, upstream, endpoint, transport).await?;
    place.add(Rc::clone(&shared));
    Ok((shared, false))
}

/// Speaks HTTP/2 on a connection just opened.
pub async fn multiplexed(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: &Arc<Endpoint>,
    transport: Transport,
) -> Result<Rc<Line>, Unreachable> {
    let entry = listed(worker, upstream, endpoint, transport);
    entry.speaks(Spoken::Http2);
    let header_bytes = upstream.policy.limits.header_bytes;
    let opened = http2::client::open(entry, &worker.buffers, header_bytes).await;
    opened.map_err(|error| {
        tracing::debug!(address = %endpoint.key.address, %error, "handshake failed");
        Unreachable::ConnectFailed
    })
}

/// Sends a request on a shared connection; `reused`: it was open before.
pub async fn ask(
    attempt: &mut Attempt,
    line: Rc<Line>,
    call: &Call,
    terms: Terms<'_>,
    reused: bool,
) -> Tried {
    let worker = Rc::clone(attempt.worker());
    // Nothing was sent yet, so whoever has not said by then what it understands has not taken the connection.
    let leaves =
        call.upgrade && extended::is_websocket(&call.headers) && Box::pin(line.lets_leave()).await;
    attempt.on_stream(line.entry.id, UnderWay::on(&line.entry));
    let left = terms.deadline.since(worker.clock.now());
    let mut request = http2_request(call, &line, left)?;
    if leaves {
        extended::into_connect(&mut request);
        let answered = Box::pin(http2::client::leave(&line, request)).await;
        let (mut head, behind) = answered.map_err(|trouble| broken(&trouble, call, reused))?;
        let body = match behind {
            Ok(stream) => {
                extended::agreed(&mut head, &call.headers);
                Inflow::Left(Box::new(stream))
            }
            Err(received) => Inflow::Http2(received),
        };
        return Ok((head, body, None));
    }
    let answered = match http2::client::send(&line, request, call) {
        Ok(exchange) => exchange.await,
        Err(trouble) => Err(trouble),
    };
    match answered {
        Ok((head, received)) => Ok((head, Inflow::Http2(received), None)),
        Err(trouble) => Err(broken(&trouble, call, reused)),
    }
}

fn http2_request(call: &Call, line: &Line, left: Duration) -> Result<Request<()>, Failure> {
    let mut request = Request::new(());
    *request.method_mut() = call.method.clone();
    *request.version_mut() = Version::HTTP_2;
    let uri = line.uri(&call.authority, call.uri.path_and_query());
    *request.uri_mut() = uri.map_err(|error| {
        tracing::debug!(%error, "a request line that HTTP/2 cannot carry");
        Failure {
            client_failed: true,
            ..Failure::new(Unreachable::Garbled, Sent::Nothing)
        }
    })?;
    *request.headers_mut() = call.headers.clone();
    let fields = request.headers_mut();
    if call.there.has(Present::UPGRADE) {
        fields.remove(header::UPGRADE);
    }
    if let Some(introduction) = &call.introduction {
        introduction.add_to(fields);
    }
    if !call.there.has(Present::REQUEST_ID) {
        fields.append(headers::X_REQUEST_ID, call.id.clone());
    }
    let mut there = call.there.or(Present::REQUEST_ID);
    if let Some(left) = time_left(call, left) {
        fields.insert(headers::GRPC_TIMEOUT, left);
        there = there.or(Present::GRPC_TIMEOUT);
    }
    for (seen, name) in NEW_EACH_TIME {
        if there.has(seen)
            && let Some(value) = fields.get_mut(name)
        {
            value.set_sensitive(true);
        }
    }
    Ok(request)
}

/// Reads what befell a request over HTTP/2, and how much of it the endpoint may have seen.
fn broken(trouble: &http2::client::Trouble, call: &Call, reused: bool) -> Failure {
    use http2::client::Trouble::{Broken, Garbled, Unsent};
    let client_failed = call
        .source
        .as_ref()
        .is_some_and(|source| source.client_failed());
    let refused = |error: &h2::Error| error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let gone_away =
        |error: &h2::Error| error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    let (why, sent) = match (trouble, all_sent(call)) {
        // Never written: the connection ended between two requests.
        (Unsent(_), _) if reused => (Unreachable::Broken, Sent::Stale { body: false }),
        (Broken(error), Sent::Replayable) if gone_away(error) && reused => {
            (Unreachable::Broken, Sent::Stale { body: false })
        }
        (Unsent(_), sent) => (Unreachable::NotProcessed, sent),
        (Broken(error), sent) if refused(error) || gone_away(error) => {
            (Unreachable::NotProcessed, sent)
        }
        (Broken(_), sent) => (Unreachable::Broken, sent),
        (Garbled(_), sent) => (Unreachable::Garbled, sent),
    };
    tracing::debug!(?trouble, ?why, ?sent, "no answer");
    Failure {
        client_failed,
        ..Failure::new(why, sent)
    }
}
