//! What a connection goes through before its protocol: a PROXY header tells who calls, TLS shakes hands.
//!
//! Not here: accepting it (`listen.rs`), and what is spoken (`front.rs`, `tunnel.rs`).

use std::{io, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use metrics::counter;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{
    front,
    listen::{Door, Place},
    proxy_header::{self, Addresses},
    transport::Transport,
    tunnel,
    worker::Worker,
};
use crate::tls::ServerTls;

impl Door {
    /// Whether whoever comes by it is introduced by a PROXY header.
    fn is_introduced(&self, worker: &Worker) -> bool {
        let name: &str = match self {
            Door::Authority => return false,
            Door::Upstream(name) | Door::Tcp(name) | Door::Udp(name) => name,
            // Those that share a listener agree.
            Door::Tls(leads) => match leads.first() {
                Some((_, name)) => name,
                None => return false,
            },
        };
        let snapshot = worker.snapshot();
        let upstream = snapshot.upstream(name);
        upstream.is_some_and(|upstream| upstream.policy.accept_proxy)
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Its address; `None` behind a Unix socket.
    pub ip: Option<IpAddr>,
    /// What a PROXY header said of it.
    pub told: Option<Addresses>,
}

impl Caller {
    /// Whoever the connection's PROXY header says, who is nobody new if it names none.
    async fn introduced(self, transport: &mut Transport, within: Duration) -> Option<Caller> {
        let read = timeout(within, proxy_header::read(transport)).await;
        let fault = match read {
            Ok(Ok(None)) => return Some(self),
            Ok(Ok(Some(addresses))) => {
                return Some(Caller {
                    ip: Some(addresses.source.ip().to_canonical()),
                    told: Some(addresses),
                });
            }
            Ok(Err(fault)) => fault.to_string(),
            Err(_) => "no PROXY header in time".to_owned(),
        };
        counter!("starling_client_faults_total").increment(1);
        tracing::debug!(peer = ?self.ip, fault, "a connection was closed unheard");
        None
    }
}

/// Serves a connection that a listener accepted: at once, or when it was introduced and has shaken hands.
pub fn serve(
    worker: &Rc<Worker>,
    mut transport: Transport,
    peer: Option<IpAddr>,
    door: Door,
    tls: Option<ServerTls>,
    place: Place,
) {
    let worker = Rc::clone(worker);
    let mut caller = Caller {
        ip: peer,
        told: None,
    };
    let is_introduced = door.is_introduced(&worker);
    if !is_introduced && tls.is_none() {
        return enter(&worker, transport, caller, door, place);
    }
    let within = worker.settings().limits.head;
    tokio::task::spawn_local(async move {
        // The header goes before the handshake, so that whoever sends it needs no key.
        if is_introduced {
            match caller.introduced(&mut transport, within).await {
                Some(introduced) => caller = introduced,
                None => return,
            }
        }
        let Some(tls) = tls else {
            return enter(&worker, transport, caller, door, place);
        };
        match timeout(within, shaken(transport, &tls)).await {
            Ok(Ok(transport)) => enter(&worker, transport, caller, door, place),
            Ok(Err(error)) => {
                counter!("starling_client_faults_total").increment(1);
                tracing::debug!(%error, "a client's TLS handshake failed");
            }
            Err(_) => {
                counter!("starling_client_faults_total").increment(1);
                tracing::debug!("a client dawdled over its TLS handshake");
            }
        }
    });
}

/// Shakes hands as the server.
async fn shaken(transport: Transport, tls: &ServerTls) -> io::Result<Transport> {
    let Transport::Tcp(stream) = transport else {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "TLS is ended on TCP alone",
        ));
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    let stream = acceptor.accept(stream).await?;
    Ok(Transport::Tls(Box::new(stream.into())))
}

fn enter(worker: &Rc<Worker>, transport: Transport, caller: Caller, door: Door, place: Place) {
    let worker = Rc::clone(worker);
    match door {
        Door::Authority => {
            tokio::task::spawn_local(front::serve(worker, transport, caller, None, place));
        }
        Door::Upstream(name) => {
            tokio::task::spawn_local(front::serve(worker, transport, caller, Some(name), place));
        }
        Door::Tcp(name) => {
            let first = Vec::new();
            let serving = tunnel::serve(worker, transport, first, caller, name, place);
            tokio::task::spawn_local(serving);
        }
        Door::Tls(leads) => {
            tokio::task::spawn_local(tunnel::pass(worker, transport, caller, leads, place));
        }
        // No connection comes by such a listener.
        Door::Udp(_) => {}
    }
}
