//! One active check: does the application accept a connection, or answer `GET path` with 200–399?
//!
//! Not here: what a row of results comes to (`mesh_core::check`) and whose checks are run
//! (`gossip/probe.rs` for the host's own applications, `caller_checks.rs` for fixed endpoints).

use std::{fmt, io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_core::check::Verdict;
use rand::RngExt;
use tokio::{net::TcpStream, task::JoinSet, time::Instant};

use crate::config::{Check, CheckKind};

/// Most bytes of an answer's head; a health page with more is no health page.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of an answer's body that are read, so that the application sees a polite reader.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Between two checks of what was never well yet.
const FIRST_INTERVAL: Duration = Duration::from_millis(250);
/// How long checks may follow each other that quickly; who needs longer to start can wait an interval more.
const FIRST_INTERVAL_UNTIL: Duration = Duration::from_secs(60);
/// Share of the interval by which a pause is longer or shorter, so that checks of many hosts spread.
const JITTER: f64 = 0.1;

/// Why a check did not pass.
#[derive(Debug)]
pub enum Fault {
    /// No verdict within the check's timeout.
    TimedOut,
    /// The connection was not accepted.
    Connect(io::Error),
    /// Connected, but what came was no HTTP answer.
    Http(hyper::Error),
    /// Answered, and not with 200–399.
    Status(StatusCode),
    /// The path cannot be asked for.
    Path(http::Error),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::TimedOut => f.write_str("no answer in time"),
            Fault::Connect(error) => write!(f, "not connected: {error}"),
            Fault::Http(error) => write!(f, "no HTTP answer: {error}"),
            Fault::Status(status) => write!(f, "answered {status}"),
            Fault::Path(error) => write!(f, "path cannot be asked for: {error}"),
        }
    }
}

/// Runs `check` once against `address`; `host` is what the `Host` header says.
///
/// # Errors
/// The first thing that went wrong; [`Fault::TimedOut`] when `check.timeout` is over.
pub async fn once(check: &Check, address: SocketAddr, host: &str) -> Result<(), Fault> {
    let attempt = async {
        let stream = TcpStream::connect(address).await.map_err(Fault::Connect)?;
        match &check.kind {
            CheckKind::Tcp => Ok(()),
            CheckKind::Http { path } => get(stream, path, host).await,
        }
    };
    tokio::time::timeout(check.timeout, attempt)
        .await
        .unwrap_or(Err(Fault::TimedOut))
}

async fn get(stream: TcpStream, path: &str, host: &str) -> Result<(), Fault> {
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "starling-check")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(Fault::Path)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Fault::Http)?;
    // A set rather than a lone task: whoever drops this future (the timeout) closes the connection too.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer = sender.send_request(request).await.map_err(Fault::Http)?;
    let status = answer.status();
    if !(200..400).contains(&status.as_u16()) {
        return Err(Fault::Status(status));
    }
    let mut body = answer.into_body();
    let mut read = 0;
    while read < BODY_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(error)) => return Err(Fault::Http(error)),
            None => break,
        }
    }
    Ok(())
}

/// Runs `check` again and again for as long as it is polled, counting into `verdict`.
///
/// `tell` hears each change of the verdict; it is called before the next check starts.
pub async fn repeat<F: Future<Output = ()>>(
    check: &Check,
    address: SocketAddr,
    host: &str,
    mut verdict: Verdict,
    mut tell: impl FnMut(Verdict) -> F,
) {
    let began = Instant::now();
    let mut last_fault = None;
    loop {
        let due = Instant::now() + pause(check, &verdict, began.elapsed());
        let result = once(check, address, host).await;
        let changed = verdict.record(result.is_ok());
        // The first failure of a row is worth a line; the same fault every two seconds is not.
        match &result {
            Err(fault) if last_fault.as_ref() != Some(&fault.to_string()) => {
                tracing::info!(%address, %fault, "check failed");
                last_fault = Some(fault.to_string());
            }
            Err(_) => {}
            Ok(()) => last_fault = None,
        }
        if changed {
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
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn http(path: &str, timeout_ms: u64) -> Check {
        Check {
            kind: CheckKind::Http { path: path.into() },
            interval: Duration::from_millis(20),
            timeout: Duration::from_millis(timeout_ms),
            fall: 1,
            rise: 1,
        }
    }

    /// Answers every connection with `answer` once it has read a request's head; gives what it read.
    async fn server(answer: Vec<u8>) -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, heads) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let n = stream.read(&mut head).await.unwrap();
                let _ = seen.try_send(String::from_utf8_lossy(&head[..n]).into_owned());
                let _ = stream.write_all(&answer).await;
                if answer.is_empty() {
                    // Silent, but connected, for as long as the caller stays.
                    let _ = stream.read(&mut head).await;
                }
            }
        });
        (address, heads)
    }

    #[tokio::test]
    async fn only_200_to_399_passes() {
        for (status, passes) in [
            ("200 OK", true),
            ("204 No Content", true),
            ("302 Found", true),
            ("399 Odd", true),
            ("400 Bad Request", false),
            ("404 Not Found", false),
            ("503 Service Unavailable", false),
        ] {
            let (address, mut heads) =
                server(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into()).await;
            let result = once(&http("/healthz", 5_000), address, "app:80").await;
            assert_eq!(result.is_ok(), passes, "{status}: {result:?}");
            let head = heads.recv().await.unwrap();
            assert!(head.starts_with("GET /healthz HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("host: app:80\r\n"), "{head}");
        }
    }

    #[tokio::test]
    async fn garbage_silence_and_endless_heads_fail() {
        let (garbage, _heads) = server(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()).await;
        let fault = once(&http("/", 5_000), garbage, "app").await.unwrap_err();
        assert!(matches!(fault, Fault::Http(_)), "{fault:?}");

        let (silent, _heads) = server(Vec::new()).await;
        let fault = once(&http("/", 30), silent, "app").await.unwrap_err();
        assert!(matches!(fault, Fault::TimedOut), "{fault:?}");

        let mut long = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
        long.resize(HEAD_BYTES_MAX * 4, b'a');
        let (endless, _heads) = server(long).await;
        let fault = once(&http("/", 5_000), endless, "app").await.unwrap_err();
        assert!(matches!(fault, Fault::Http(_)), "{fault:?}");
    }

    #[tokio::test]
    async fn a_body_without_end_is_read_to_a_bound() {
        let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        endless.resize(BODY_BYTES_MAX * 8, b'a');
        let (address, _heads) = server(endless).await;
        once(&http("/", 5_000), address, "app").await.unwrap();
    }

    #[tokio::test]
    async fn a_tcp_check_needs_a_listener_only() {
        let check = Check {
            kind: CheckKind::Tcp,
            ..http("", 5_000)
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        once(&check, address, "").await.unwrap();
        drop(listener);
        let fault = once(&check, address, "").await.unwrap_err();
        assert!(matches!(fault, Fault::Connect(_)), "{fault:?}");
    }

    #[test]
    fn checks_are_quick_until_the_first_verdict_and_never_for_ever() {
        let mut check = http("/", 1_000);
        check.interval = Duration::from_secs(2);
        let fresh = Verdict::new(1, 1);
        let mut well = fresh.clone();
        well.record(true);
        for _ in 0..100 {
            let quick = pause(&check, &fresh, Duration::ZERO).as_millis();
            assert!((225..=275).contains(&quick), "{quick}");
            let late = pause(&check, &fresh, FIRST_INTERVAL_UNTIL).as_millis();
            assert!((1800..=2200).contains(&late), "{late}");
            let usual = pause(&check, &well, Duration::ZERO).as_millis();
            assert!((1800..=2200).contains(&usual), "{usual}");
        }
    }
}
