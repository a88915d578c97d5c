//! Bytes both ways for what is not HTTP: TCP upstreams, and connections that left HTTP by an upgrade.
//!
//! Not here: how bytes are moved (`relay.rs`), and HTTP bodies (`request_body.rs`, `reply_body.rs`).

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use mesh_core::{
    balance::Ask,
    outcome::{Outcome, Unreachable},
    policy::Protocol,
    retry::{Sent, Tries, Verdict},
    session::Session,
    snapshot::Upstream,
};
use metrics::counter;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{sleep, timeout},
};

use super::{
    attempt::Attempt,
    client_hello::{self, Hello},
    connections::{Entry, Spoken},
    http1::wire::Raw,
    listen::Place,
    relay::{End, relay},
    reply_body::{Exit, Tunnel},
    send::{dialled, listed},
    splice::Lane,
    standby::Standby,
    transport::Transport,
    welcome::Caller,
    worker::{Admission, Worker},
};
use crate::{
    config::{ServerNames, sni},
    request_key,
};

/// Relays a TLS connection, unopened, to the upstream that its server name leads to.
pub async fn pass(
    worker: Rc<Worker>,
    mut client: Transport,
    caller: Caller,
    leads: Arc<[(ServerNames, Box<str>)]>,
    place: Place,
) {
    let mut first = Vec::new();
    let read = timeout(
        worker.settings().limits.head,
        asked_for(&mut client, &mut first),
    )
    .await;
    let name = match read {
        Ok(Ok(name)) => name,
        Ok(Err(why)) => return fault(caller, &why),
        Err(_) => return fault(caller, "no ClientHello in time"),
    };
    match sni::upstream_of(&leads, name.as_deref()) {
        Some(upstream) => serve(worker, client, first, caller, upstream.into(), place).await,
        None => {
            // Told as TLS has it, so that its author finds the mistake; a client that has gone knows it.
            let _ = client.write_all(client_hello::UNRECOGNIZED_NAME).await;
            let _ = client.shutdown().await;
            fault(caller, &format!("no upstream for the server name {name:?}"));
        }
    }
}

/// Reads until the server name is known; what was read is left in `first`.
async fn asked_for(
    client: &mut Transport,
    first: &mut Vec<u8>,
) -> Result<Option<Box<str>>, String> {
    let mut room = [0; 2048];
    loop {
        match client_hello::judge(first) {
            Hello::Whole(name) => return Ok(name),
            Hello::Garbled(why) => return Err(format!("no TLS: {why}")),
            Hello::More => {}
        }
        match client.read(&mut room).await {
            Ok(0) => return Err("it ended before its ClientHello".to_owned()),
            Ok(count) => first.extend_from_slice(&room[..count]),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn fault(caller: Caller, why: &str) {
    counter!("starling_client_faults_total").increment(1);
    tracing::debug!(peer = ?caller.ip, why, "a connection was closed unheard");
}

/// Relays one client connection to an endpoint of `name`, which gets `first` before anything that is still to be read.
pub async fn serve(
    worker: Rc<Worker>,
    client: Transport,
    mut first: Vec<u8>,
    caller: Caller,
    name: Arc<str>,
    place: Place,
) {
    let snapshot = worker.snapshot();
    let Some(upstream) = snapshot.upstream(&name) else {
        tracing::debug!(upstream = %name, "a connection for an upstream that is gone");
        return;
    };
    let Some(admission) = Admission::in_flight(upstream) else {
        tracing::debug!(upstream = %name, "too many connections at once; see limits of this upstream");
        return;
    };
    let idle = upstream.policy.timeouts.idle;
    let connections = &worker.connections;
    let client = connections.client(client, caller.told, Some(&name), idle);
    let spoken = match upstream.policy.protocol {
        Protocol::Tls => Spoken::Tls,
        _ => Spoken::Bytes,
    };
    client.speaks(spoken);
    // What was read to find the way is the client's too.
    client.received(first.len());
    // It goes before a handshake, and with the first bytes where there is none.
    let before = client.introduction(upstream).filter(|header| {
        let shakes_hands = worker.settings().tls.contains_key(&*name);
        if !shakes_hands {
            first.splice(..0, header.iter().copied());
        }
        shakes_hands
    });
    let reached = reach(&worker, upstream, caller.ip, before.as_deref());
    if let Ok((mut endpoint, mut attempt)) = reached.await {
        if let Some(entry) = endpoint.entry() {
            client.relays(entry, spoken, idle);
        }
        let lane = endpoint.entry().and_then(|to| Lane::between(&client, to));
        let patience = upstream.policy.timeouts.connect;
        if !matches!(
            timeout(patience, endpoint.write_all(&first)).await,
            Ok(Ok(()))
        ) {
            tracing::debug!(upstream = %name, "an endpoint took nothing of what it was told");
            attempt.failed(Outcome::Unreachable(Unreachable::Broken));
            return ended(&client, &End::Endpoint(io::ErrorKind::BrokenPipe.into()));
        }
        drop(first);
        let outage = (worker.outages).watch(upstream, attempt.endpoint().key.address);
        let relayed = Transport::Listed(Rc::clone(&client));
        let timeouts = &upstream.policy.timeouts;
        let end = relay(&worker, relayed, endpoint, lane, timeouts, &outage).await;
        ended(&client, &end);
        attempt.over(None);
    } else {
        ended(&client, &End::Unreachable);
    }
    drop((admission, place));
}

/// Connects to one endpoint after another until one accepts; each is told `header` before any handshake.
///
/// # Errors
/// Why the last one did not; `None` when there was none to ask.
pub async fn reach(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    peer: Option<IpAddr>,
    header: Option<&[u8]>,
) -> Result<(Transport, Attempt), Option<Unreachable>> {
    let desk = worker.desk(upstream);
    // Of a connection nothing is known but where it comes from, whatever the key.
    let session = peer.map(request_key::of_address).map(Session::Source);
    let session = session.filter(|_| upstream.policy.sticky.is_some());
    let key = worker.key_of_source(upstream, peer);
    let began = worker.clock.now();
    upstream.shared.budget.request(began);
    let mut tries = Tries::start(&upstream.policy, true, false, began);
    let mut last = None;
    let mut standby = Standby::default();
    loop {
        let now = worker.clock.now();
        let ask = Ask {
            tried: tries.tried(),
            beyond_tier: tries.beyond_tier(),
            idempotent: true,
            session,
            key,
            wish: None,
        };
        let Some(pick) = desk.pick(worker, upstream, &ask, now) else {
            if standby
                .a_verdict(worker, upstream, tries.tried(), tries.deadline())
                .await
            {
                continue;
            }
            tracing::debug!(upstream = %upstream.policy.name, "no endpoint is left for a connection");
            return Err(last);
        };
        standby.leave();
        tries.picked(pick.endpoint.id, pick.tier);
        let mut attempt = Attempt::begin(worker, upstream, &pick.endpoint, pick.canary);
        let connected = timeout(
            upstream.policy.timeouts.connect,
            dialled(worker, upstream, &pick.endpoint, false, header),
        )
        .await;
        let why = match connected {
            Ok(Ok(transport)) => {
                attempt.headed(Some(Outcome::Success));
                desk.meters.attempt(Outcome::Success);
                let entry = listed(worker, upstream, &pick.endpoint, transport);
                return Ok((Transport::Listed(entry), attempt));
            }
            Ok(Err(why)) => why,
            Err(_) => Unreachable::ConnectTimedOut,
        };
        last = Some(why);
        let outcome = Outcome::Unreachable(why);
        attempt.failed(outcome);
        desk.meters.attempt(outcome);
        let verdict = {
            let rng = &mut *worker.rng.borrow_mut();
            let budget = &upstream.shared.budget;
            tries.verdict(
                outcome,
                Sent::Nothing,
                budget,
                &upstream.policy,
                worker.clock.now(),
                rng,
            )
        };
        match verdict {
            Verdict::Answer => return Err(last),
            Verdict::Again { after } => {
                desk.meters.retry();
                if !after.is_zero() {
                    sleep(after).await;
                }
            }
        }
    }
}

/// Relays a client connection that left HTTP to the endpoint that agreed to it.
pub async fn upgraded(client: Raw, tunnel: Tunnel) {
    match client.entry() {
        Some(entry) => left_http(client, &entry, tunnel).await,
        None => tracing::debug!("a connection that is not listed cannot leave HTTP"),
    }
}

/// Relays one stream of a client's HTTP/2 connection, `client`, to the endpoint that agreed to it.
pub async fn streamed(stream: impl AsyncRead + AsyncWrite + Unpin, client: &Entry, tunnel: Tunnel) {
    let attempt = &tunnel.settle.attempt;
    let (connections, address) = (&attempt.worker().connections, client.client_address());
    let entry = connections.flow(
        Spoken::Bytes,
        address,
        attempt.upstream(),
        attempt.endpoint(),
    );
    let counted = Counted {
        stream,
        entry: Rc::clone(&entry),
    };
    left_http(counted, &entry, tunnel).await;
}

async fn left_http(client: impl AsyncRead + AsyncWrite, entry: &Rc<Entry>, tunnel: Tunnel) {
    let Tunnel {
        endpoint,
        settle,
        idle,
    } = tunnel;
    let attempt = &settle.attempt;
    let worker = Rc::clone(attempt.worker());
    let outage = (worker.outages).watch(attempt.upstream(), attempt.endpoint().key.address);
    let timeouts = &attempt.upstream().policy.timeouts;
    let end = match endpoint {
        Exit::Connection(endpoint) => {
            let mut lane = None;
            if let Some(endpoint) = endpoint.entry() {
                entry.relays(&endpoint, Spoken::Bytes, idle);
                lane = Lane::between(entry, &endpoint);
            }
            relay(&worker, client, endpoint, lane, timeouts, &outage).await
        }
        Exit::Stream(endpoint) => {
            entry.leads_to(attempt.upstream(), attempt.endpoint());
            entry.speaks(Spoken::Bytes);
            entry.rests_for(idle);
            relay(&worker, client, endpoint, None, timeouts, &outage).await
        }
    };
    ended(entry, &end);
    drop(settle);
}

/// A stream that counts its bytes in its place of the table.
struct Counted<S> {
    stream: S,
    entry: Rc<Entry>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.entry.received(buf.filled().len() - before);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        if let Ok(count) = written {
            self.entry.sent(count);
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Has the log tell why `entry` ends.
fn ended(entry: &Entry, end: &End) {
    tracing::debug!(connection = entry.id, ?end, "a relayed connection ended");
    entry.ends_for(end.reason(), end.detail());
}
