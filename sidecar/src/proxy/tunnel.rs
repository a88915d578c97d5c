//! Bytes both ways for what is not HTTP: TCP upstreams, and connections that left HTTP by an upgrade.
//!
//! Not here: HTTP bodies (`body.rs`).

use std::{cell::Cell, io, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use mesh_core::{
    balance::Ask,
    moment::Moment,
    outcome::{Outcome, Unreachable},
    retry::{Sent, Tries, Verdict},
    session::Session,
    snapshot::Upstream,
};
use metrics::counter;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{sleep, timeout},
};

use super::{
    attempt::Attempt,
    body::Tunnel,
    client_hello::{self, Hello},
    http1::wire::Raw,
    listen::Place,
    patience::HEAD_READ,
    proxy_header::{self, Addresses},
    send::dialled,
    transport::Transport,
    welcome::Caller,
    worker::{Admission, Worker},
};
use crate::{
    config::{ServerNames, sni},
    request_key,
};

/// Bytes of one direction held between reading and writing them.
const BUFFER_BYTES: usize = 16 * 1024;
/// How long the second direction may stay silent once the first has ended.
const HALF_CLOSED: Duration = Duration::from_secs(30);

/// Relays a TLS connection, unopened, to the upstream that its server name leads to.
pub async fn pass(
    worker: Rc<Worker>,
    mut client: Transport,
    caller: Caller,
    leads: Arc<[(ServerNames, Box<str>)]>,
    place: Place,
) {
    let mut first = Vec::new();
    let read = timeout(HEAD_READ, asked_for(&mut client, &mut first)).await;
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
    name: Box<str>,
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
    let peer = caller.ip;
    if let Ok((mut endpoint, mut attempt)) = reach(&worker, upstream, peer).await {
        if let Some(version) = upstream.policy.send_proxy {
            let addresses = caller.told.or_else(|| Addresses::of(&client));
            let header = proxy_header::write(version, addresses);
            first.splice(..0, header);
        }
        let patience = upstream.policy.timeouts.connect;
        if !matches!(
            timeout(patience, endpoint.write_all(&first)).await,
            Ok(Ok(()))
        ) {
            tracing::debug!(upstream = %name, "an endpoint took nothing of what it was told");
            attempt.failed(Outcome::Unreachable(Unreachable::Broken));
            return;
        }
        drop(first);
        let ended = relay(&worker, client, endpoint, upstream.policy.timeouts.idle).await;
        if let Err(error) = ended {
            tracing::debug!(upstream = %name, %error, "a relayed connection ended early");
        }
        attempt.over(None);
    }
    drop((admission, place));
}

/// Connects to one endpoint after another until one accepts.
///
/// # Errors
/// Why the last one did not; `None` when there was none to ask.
pub async fn reach(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    peer: Option<IpAddr>,
) -> Result<(Transport, Attempt), Option<Unreachable>> {
    let desk = worker.desk(upstream);
    // Of a connection nothing is known but where it comes from, whatever the key.
    let source = peer.map(request_key::of_address);
    let session = source.map(Session::Source);
    let session = session.filter(|_| upstream.policy.sticky.is_some());
    let key = source.filter(|_| upstream.policy.hash.is_some());
    let began = worker.clock.now();
    upstream.shared.budget.request(began);
    let mut tries = Tries::start(&upstream.policy, true, false, began);
    let mut last = None;
    loop {
        let now = worker.clock.now();
        let ask = Ask {
            tried: tries.tried(),
            beyond_tier: tries.beyond_tier(),
            idempotent: true,
            session,
            key,
        };
        let Some(pick) = desk.pick(worker, upstream, &ask, now) else {
            tracing::debug!(upstream = %upstream.policy.name, "no endpoint is left for a connection");
            return Err(last);
        };
        tries.picked(pick.endpoint.id, pick.tier);
        let mut attempt = Attempt::begin(worker, upstream, &pick.endpoint);
        let connected = timeout(
            upstream.policy.timeouts.connect,
            dialled(worker, upstream, &pick.endpoint, false),
        )
        .await;
        let why = match connected {
            Ok(Ok(transport)) => {
                attempt.headed(Some(Outcome::Success));
                desk.meters.attempt(Outcome::Success);
                return Ok((transport, attempt));
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
    let Tunnel {
        endpoint,
        settle,
        idle,
    } = tunnel;
    let worker = Rc::clone(settle.attempt.worker());
    if let Err(error) = relay(&worker, client, endpoint, idle).await {
        tracing::debug!(%error, "an upgraded connection ended early");
    }
    drop(settle);
}

/// Copies both ways until both ends have ended, half-close kept, silence bounded.
async fn relay(
    worker: &Worker,
    client: impl AsyncRead + AsyncWrite,
    endpoint: impl AsyncRead + AsyncWrite,
    idle: Duration,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_endpoint, mut to_endpoint) = tokio::io::split(endpoint);
    let watch = Watch {
        last: Cell::new(worker.clock.now()),
        limit: Cell::new(idle),
    };
    let both = async {
        tokio::try_join!(
            one_way(worker, &watch, &mut from_client, &mut to_endpoint),
            one_way(worker, &watch, &mut from_endpoint, &mut to_client),
        )
    };
    tokio::select! {
        ended = both => ended.map(|_| ()),
        () = watch.silent(worker) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// When a byte last went either way.
struct Watch {
    last: Cell<Moment>,
    limit: Cell<Duration>,
}

impl Watch {
    async fn silent(&self, worker: &Worker) {
        loop {
            let now = worker.clock.now();
            let ends = self.last.get() + self.limit.get();
            if ends <= now {
                return;
            }
            sleep(ends.since(now).min(HALF_CLOSED)).await;
        }
    }
}

async fn one_way(
    worker: &Worker,
    watch: &Watch,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut buffer = vec![0u8; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        watch.last.set(worker.clock.now());
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
        watch.last.set(worker.clock.now());
    }
    watch.last.set(worker.clock.now());
    watch.limit.set(watch.limit.get().min(HALF_CLOSED));
    to.shutdown().await
}
