//! The admin API's sockets: binds them, accepts with a limit, reads a bounded request, answers it.
//!
//! Not here: who may ask (`guard.rs`) and what is answered (`routes.rs`).

use std::{
    fmt, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{Counter, counter};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::JoinHandle,
};

use super::{
    State,
    guard::{self, Way},
    routes::{self, Asked, Reply},
};
use crate::config::Admin;

/// Connections served at once; one more is closed unheard.
pub const CONNECTIONS_MAX: usize = 128;
/// Bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 16 << 10;
/// Bytes of a request's head, and hyper's least.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Time for a request's head, idle time before it included.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Time for a request's body.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Pause after the kernel has no descriptor left for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Who may write by the socket: its owner and its group.
const SOCKET_MODE: u32 = 0o660;

/// Why the admin API could not start: what was tried, and the next step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartError {
    /// What was tried, on whom, and what came of it.
    pub message: String,
    /// The next step.
    pub next: String,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.next)
    }
}

impl std::error::Error for StartError {}

/// A running admin API; dropping it closes the sockets and removes the socket's file.
#[derive(Debug)]
pub struct Serving {
    /// Where it is reached, the port filled in.
    pub address: std::net::SocketAddr,
    socket: Option<PathBuf>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Some(socket) = &self.socket {
            // Gone already is as good.
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Binds the configured address and socket, and answers there until the result is dropped.
///
/// # Errors
/// An address or a path that cannot be bound.
pub async fn start(admin: &Admin, state: State) -> Result<Serving, StartError> {
    let bind = admin.bind;
    let cannot = |error: &io::Error, next: &str| StartError {
        message: format!("cannot listen on {bind} (admin.bind): {error}"),
        next: next.to_owned(),
    };
    let tcp = TcpListener::bind(bind)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => cannot(
                &error,
                "another sidecar may run here: `ss -ltnp` tells; choose another admin.bind",
            ),
            io::ErrorKind::AddrNotAvailable => cannot(
                &error,
                "that address is not of this host: `ip address` lists those that are",
            ),
            _ => cannot(&error, "choose another admin.bind"),
        })?;
    let address = tcp
        .local_addr()
        .map_err(|error| cannot(&error, "choose another admin.bind"))?;
    let unix = match &admin.socket {
        Some(path) => Some(bind_socket(path).await?),
        None => None,
    };
    let server = Server {
        state,
        slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        limit: refused("limit"),
        malformed: refused("malformed"),
    };
    let mut tasks = vec![
        server.state.metrics.upkeep(),
        tokio::spawn(server.clone().over_tcp(tcp)),
    ];
    if let Some(unix) = unix {
        tasks.push(tokio::spawn(server.over_socket(unix)));
    }
    tracing::info!(%address, socket = ?admin.socket, "admin API listening");
    Ok(Serving {
        address,
        socket: admin.socket.clone(),
        tasks,
    })
}

/// Binds a Unix socket, in place of one whose sidecar is gone.
async fn bind_socket(path: &Path) -> Result<UnixListener, StartError> {
    let shown = path.display();
    let cannot = |what: String, next: &str| StartError {
        message: format!("cannot listen on {shown} (admin.socket): {what}"),
        next: next.to_owned(),
    };
    let stale =
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if stale {
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            return Err(cannot(
                "a sidecar answers there".to_owned(),
                "stop it, or choose another admin.socket",
            ));
        }
        std::fs::remove_file(path).map_err(|error| {
            cannot(
                error.to_string(),
                "remove the file left by a sidecar that is gone",
            )
        })?;
    }
    let listener = UnixListener::bind(path).map_err(|error| {
        let next = match error.kind() {
            io::ErrorKind::NotFound => "create its directory (systemd: RuntimeDirectory=starling)",
            io::ErrorKind::PermissionDenied => "let the sidecar's user write to its directory",
            _ => "choose another admin.socket",
        };
        cannot(error.to_string(), next)
    })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(|error| cannot(error.to_string(), "choose another admin.socket"))?;
    Ok(listener)
}

fn refused(reason: &'static str) -> Counter {
    counter!("starling_admin_refused_total", "reason" => reason)
}

#[derive(Clone)]
struct Server {
    state: State,
    slots: Arc<Semaphore>,
    limit: Counter,
    malformed: Counter,
}

impl Server {
    async fn over_tcp(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.take(stream, Way::Tcp(peer.ip())),
                Err(error) => pause(&error).await,
            }
        }
    }

    async fn over_socket(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.take(stream, Way::Socket),
                Err(error) => pause(&error).await,
            }
        }
    }

    /// Serves a connection in a task of its own, or closes it when there are too many.
    fn take<S>(&self, stream: S, way: Way)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            self.limit.increment(1);
            return;
        };
        let server = self.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let state = server.state.clone();
            let service = service_fn(move |request| {
                let state = state.clone();
                async move { Ok::<_, std::convert::Infallible>(respond(&state, way, request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await
                && (error.is_parse() || error.is_timeout() || error.is_incomplete_message())
            {
                server.malformed.increment(1);
                tracing::debug!(%error, ?way, "admin request refused");
            }
        });
    }
}

/// Out of descriptors the listener stays readable: without a pause this would be a busy loop.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "the admin API cannot accept");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Reads the rest of a request and answers it.
async fn respond(state: &State, way: Way, request: Request<Incoming>) -> Reply {
    let reply = reply_to(state, way, request).await;
    let code = reply.status().as_str().to_owned();
    counter!("starling_admin_requests_total", "code" => code).increment(1);
    reply
}

async fn reply_to(state: &State, way: Way, request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let verdict = {
        let loaded = state.config.borrow();
        let admin = &loaded.config.admin;
        guard::admit(way, &head.method, &head.headers, admin)
            .and_then(|()| match routes::brings_key(head.uri.path()) {
                true => guard::admit_secret(way),
                false => Ok(()),
            })
            .map_err(|denied| (denied, admin.socket.clone(), admin.token.is_some()))
    };
    if let Err((denied, socket, has_token)) = verdict {
        refused(denied.reason()).increment(1);
        return routes::denied(denied, socket.as_deref(), has_token);
    }
    let body = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let body = match body {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            refused("malformed").increment(1);
            let message =
                format!("the body cannot be read, or has more than {BODY_BYTES_MAX} bytes");
            return routes::fault(
                StatusCode::PAYLOAD_TOO_LARGE,
                &message,
                "send a small JSON object",
            );
        }
        Err(_) => {
            refused("malformed").increment(1);
            return routes::fault(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not come in time",
                "send it at once",
            );
        }
    };
    let asked = Asked {
        method: &head.method,
        path: head.uri.path(),
        query: head.uri.query().unwrap_or(""),
        body: &body,
    };
    routes::answer(state, &asked).await
}
