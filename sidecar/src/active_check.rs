//! One active check: what is tried, and what came of it.
//!
//! Not here: what a row of results comes to (`mesh_core::check`) and whose checks are run
//! (`gossip/probe.rs` for the host's own applications, `caller_checks.rs` for fixed endpoints). One file a kind.

use std::{fmt, io, net::SocketAddr, process::ExitStatus, time::Duration};

use ::http::StatusCode;
use mesh_core::check::Verdict;
use mesh_proto::record::Health;
use rand::RngExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::TlsConnector;

use crate::{
    config::{Check, CheckKind},
    tls::{self, ClientTls},
};

mod exec;
pub mod grpc;
mod http;
pub mod ttl;

/// Most bytes of an answer's head; a health page with more is no health page.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Between two checks of what was never well yet.
const FIRST_INTERVAL: Duration = Duration::from_millis(250);
/// How long checks may follow each other that quickly; who needs longer to start can wait an interval more.
const FIRST_INTERVAL_UNTIL: Duration = Duration::from_secs(60);
/// Share of the interval by which a pause is longer or shorter, so that checks of many hosts spread.
const JITTER: f64 = 0.1;

/// Who is checked, and how whoever asks anything there has to begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// Where.
    pub address: SocketAddr,
    /// What the `Host` header says.
    pub host: Box<str>,
    /// TLS to be begun there.
    pub tls: Option<ClientTls>,
    /// What goes before anything else, if it expects a PROXY header.
    pub introduction: Vec<u8>,
}

impl Subject {
    /// Whoever speaks in the clear, and to everybody.
    pub fn in_the_clear(address: SocketAddr, host: &str) -> Subject {
        Subject {
            address,
            host: host.into(),
            tls: None,
            introduction: Vec::new(),
        }
    }

    async fn connected(&self) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(&self.introduction).await?;
        Ok(stream)
    }

    /// A connection on which `inside` is spoken next.
    async fn opened(&self, inside: fn(ClientTls) -> ClientTls) -> Result<Box<dyn Stream>, Fault> {
        let stream = self.connected().await.map_err(Fault::Connect)?;
        let Some(tls) = self.tls.clone().map(inside) else {
            return Ok(Box::new(stream));
        };
        let name = tls.server_name;
        let name = name.unwrap_or_else(|| tls::name_of(self.address.ip()));
        let shaken = TlsConnector::from(tls.config).connect(name, stream).await;
        Ok(Box::new(shaken.map_err(Fault::Tls)?))
    }
}

/// What a check asks over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a check found out about an application that does not fail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// It is well.
    Well,
    /// It serves, and could be better; what it said of that.
    Warning(String),
}

/// Why a check did not pass.
#[derive(Debug)]
pub enum Fault {
    /// No verdict within the check's timeout.
    TimedOut,
    /// The connection was not accepted.
    Connect(io::Error),
    /// Connected, but no hands were shaken.
    Tls(io::Error),
    /// Connected, but what came was no HTTP answer.
    Http(hyper::Error),
    /// Answered with a status that is not expected.
    Status(StatusCode),
    /// Answered, and this pattern is not in the body.
    Body(Box<str>),
    /// The path or authority cannot be asked for.
    Path(::http::Error),
    /// Connected, but what came was no HTTP/2 answer.
    Grpc(h2::Error),
    /// The health service answered with a gRPC status other than 0.
    GrpcStatus {
        /// The status.
        code: Box<str>,
        /// What it says.
        message: Box<str>,
    },
    /// The health service answered with this `ServingStatus`.
    NotServing(u64),
    /// Something against the protocol came.
    Garbled(&'static str),
    /// The program cannot be run.
    Spawn(io::Error),
    /// The program ended with 2 or more, or by a signal.
    Exit {
        /// How.
        status: ExitStatus,
        /// The first line it said.
        said: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::TimedOut => f.write_str("no answer in time"),
            Fault::Connect(error) => write!(f, "not connected: {error}"),
            Fault::Tls(error) => write!(f, "no TLS: {error}"),
            Fault::Http(error) => write!(f, "no HTTP answer: {error}"),
            Fault::Status(status) => write!(f, "answered {status}"),
            Fault::Body(pattern) => write!(f, "answered a body without {pattern:?}"),
            Fault::Path(error) => write!(f, "path cannot be asked for: {error}"),
            Fault::Grpc(error) => write!(f, "no gRPC answer: {error}"),
            Fault::GrpcStatus { code, message } => {
                let meaning = match &**code {
                    "5" => " (it knows no service of that name)",
                    "12" => " (it has no health service)",
                    _ => "",
                };
                write!(f, "answered gRPC status {code}{meaning} {message}")
            }
            Fault::NotServing(status) => {
                let name = match status {
                    0 => "UNKNOWN",
                    2 => "NOT_SERVING",
                    3 => "SERVICE_UNKNOWN",
                    _ => "a status that is not known here",
                };
                write!(f, "says {name}")
            }
            Fault::Garbled(what) => write!(f, "sent {what}"),
            Fault::Spawn(error) => write!(f, "the program cannot be run: {error}"),
            Fault::Exit { status, said } => write!(f, "{status}: {said}"),
        }
    }
}

/// Runs `check` once.
///
/// # Errors
/// The first thing that went wrong; [`Fault::TimedOut`] when `check.timeout` is over.
pub async fn once(check: &Check, subject: &Subject) -> Result<Finding, Fault> {
    let _turn = match check.kind {
        CheckKind::Exec { .. } => exec::turn().await,
        _ => None,
    };
    tokio::time::timeout(check.timeout, attempt(&check.kind, subject))
        .await
        .unwrap_or(Err(Fault::TimedOut))
}

async fn attempt(kind: &CheckKind, subject: &Subject) -> Result<Finding, Fault> {
    let host = &*subject.host;
    match kind {
        CheckKind::Tcp => subject
            .connected()
            .await
            .map(drop)
            .map_err(Fault::Connect)?,
        CheckKind::Http(check) => {
            let stream = subject.opened(ClientTls::speaking_http1).await?;
            http::ask(stream, check, host).await?;
        }
        CheckKind::Grpc { service } => {
            let stream = subject.opened(ClientTls::speaking_http2).await?;
            let scheme = if subject.tls.is_some() {
                "https"
            } else {
                "http"
            };
            grpc::ask(stream, service, (scheme, host)).await?;
        }
        CheckKind::Exec { command } => return exec::run(command, subject.address, host).await,
        // Nobody asks for it: whoever holds the check listens instead.
        CheckKind::Ttl { .. } => return Err(Fault::TimedOut),
    }
    Ok(Finding::Well)
}

/// Runs `check` again and again for as long as it is polled, counting into `verdict`.
///
/// `tell` hears each change of the verdict; it is called before the next check starts.
pub async fn repeat<F: Future<Output = ()>>(
    check: &Check,
    subject: &Subject,
    mut verdict: Verdict,
    mut tell: impl FnMut(Verdict) -> F,
) {
    let began = Instant::now();
    let mut last_said = None;
    loop {
        let due = Instant::now() + pause(check, &verdict, began.elapsed());
        let (health, said) = match once(check, subject).await {
            Ok(Finding::Well) => (Health::Passing, None),
            Ok(Finding::Warning(said)) => (Health::Warning, Some(said)),
            Err(fault) => (Health::Failing, Some(fault.to_string())),
        };
        // The first failure of a row is worth a line; the same fault every two seconds is not.
        if said != last_said
            && let Some(said) = &said
        {
            let result = match health {
                Health::Warning => "check warns",
                _ => "check failed",
            };
            tracing::info!(address = %subject.address, said, "{result}");
        }
        last_said = said;
        if verdict.record(health) {
            tell(verdict.clone()).await;
        }
        tokio::time::sleep_until(due).await;
    }
}

fn pause(check: &Check, verdict: &Verdict, since_start: Duration) -> Duration {
    let interval = if !verdict.was_well() && since_start < FIRST_INTERVAL_UNTIL {
        check.interval.min(FIRST_INTERVAL)
    } else {
        check.interval
    };
    interval.mul_f64(rand::rng().random_range(1.0 - JITTER..=1.0 + JITTER))
}

#[cfg(test)]
mod tests;
