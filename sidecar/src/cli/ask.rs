//! Asks a running sidecar over its admin API: one connection, one request, one JSON answer.
//!
//! Not here: what is asked (each command's file) and how it is shown (`table.rs`).

use std::{io, path::Path, process::ExitCode, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{Ended, Exit, Failure, print};

/// Where a sidecar under systemd has its socket.
const SOCKET: &str = "/run/starling/admin.sock";
/// Where a sidecar listens if its configuration says nothing.
const ADDRESS: &str = "127.0.0.1:7070";
const PORT: u16 = 7070;
/// To a connection.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// To a whole answer: a little more than the sidecar gives its commands.
const ANSWER_TIME: Duration = Duration::from_secs(35);
/// Largest answer: 100,000 instances have room.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Between two looks of `--watch`.
const WATCH: Duration = Duration::from_secs(1);

/// Which sidecar is asked.
#[derive(clap::Args, Clone, Debug)]
pub struct Admin {
    /// The sidecar's admin address: HOST:PORT or unix:/PATH [default: /run/starling/admin.sock if there, else 127.0.0.1:7070]
    #[arg(long, env = "STARLING_ADMIN", value_name = "ADDR")]
    admin: Option<String>,
    /// The admin token
    #[arg(
        long,
        env = "STARLING_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
}

/// How a listing is shown.
#[derive(clap::Args, Clone, Debug)]
pub struct Listing {
    #[command(flatten)]
    admin: Admin,
    /// Print JSON as the admin API has it
    #[arg(long)]
    json: bool,
    /// Ask again every second
    #[arg(long, short)]
    watch: bool,
}

impl Listing {
    /// Asks for `path` and prints the answer: as it is, or as `draw` has it.
    pub(super) fn show(&self, path: &str, draw: impl Fn(&Value) -> String) -> Result<(), Failure> {
        loop {
            let answer = self.admin.get(path)?;
            let text = if self.json {
                format!("{answer}\n")
            } else {
                draw(&answer)
            };
            if !self.watch {
                return print(&text);
            }
            // From the top left, the rest of the screen cleared; a file or pipe gets the texts one after the other.
            let terminal = io::IsTerminal::is_terminal(&io::stdout()) && !self.json;
            let home = if terminal { "\x1b[H\x1b[J" } else { "" };
            print(&format!("{home}{text}"))?;
            std::thread::sleep(WATCH);
        }
    }
}

impl Admin {
    /// `GET path`.
    ///
    /// # Errors
    /// No sidecar answers (69), or it answers that it will not (1).
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path, &Value::Null)
    }

    /// `POST path`, and prints what was done.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub fn order(&self, path: &str, body: &Value) -> Ended {
        self.tell_done(Method::POST, path, body)
    }

    /// Whether what is said to the sidecar stays on this host: by a socket, or by an address of loopback. A name counts
    /// as another host, `localhost` apart.
    pub fn is_on_this_host(&self) -> bool {
        match Place::of(self.admin.as_deref()) {
            Place::Unix(_) => true,
            Place::Tcp(address) => {
                let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let ip = host.parse::<std::net::IpAddr>();
                host == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
            }
        }
    }

    /// `PUT path`, and prints what was done.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub fn put(&self, path: &str, body: &Value) -> Ended {
        self.tell_done(Method::PUT, path, body)
    }

    fn tell_done(&self, method: Method, path: &str, body: &Value) -> Ended {
        let answer = self.ask(method, path, body)?;
        print(&format!("{}\n", answer["done"].as_str().unwrap_or("done")))?;
        Ok(ExitCode::SUCCESS)
    }

    fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Exit::Failed, format!("no runtime: {error}"), ""))?;
        runtime.block_on(async {
            let place = Place::of(self.admin.as_deref());
            let whole = timeout(ANSWER_TIME, self.exchange(&place, method, path, body));
            match whole.await {
                Ok(answer) => answer,
                Err(_) => Err(place.unreachable("no answer in time")),
            }
        })
    }

    async fn exchange(
        &self,
        place: &Place,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value, Failure> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, place.host())
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| {
                Failure::new(
                    Exit::Usage,
                    format!("{path} cannot be asked for: {error}"),
                    "",
                )
            })?;
        let connected = timeout(CONNECT_TIME, place.connect()).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(place.unreachable(&error.to_string())),
            Err(_) => return Err(place.unreachable("no connection in time")),
        };
        let broken = |error: hyper::Error| place.unreachable(&error.to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let driver = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let bytes = bytes
            .map_err(|error| place.unreachable(&error.to_string()))?
            .to_bytes();
        driver.abort();
        read(place, status, &bytes)
    }
}

/// A word as part of a path or query.
pub(super) fn escaped(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    word.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// The answer's JSON, or what it says against the question.
fn read(place: &Place, status: StatusCode, bytes: &[u8]) -> Result<Value, Failure> {
    let value = serde_json::from_slice::<Value>(bytes).map_err(|_| {
        let message = format!("what answers at {place} is no sidecar (HTTP {status})");
        Failure::new(
            Exit::Unreachable,
            message,
            "name a sidecar's admin address with --admin ADDR",
        )
    })?;
    if status.is_success() {
        return Ok(value);
    }
    let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let message = match word("error") {
        told if told.is_empty() => format!("the sidecar at {place} answers HTTP {status}"),
        told => told,
    };
    Err(Failure::new(Exit::Failed, message, word("next")))
}

/// Where a sidecar is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    Tcp(String),
    Unix(String),
}

impl Place {
    fn of(written: Option<&str>) -> Place {
        match written {
            Some(written) => Place::parse(written),
            None if Path::new(SOCKET).exists() => Place::Unix(SOCKET.to_owned()),
            None => Place::Tcp(ADDRESS.to_owned()),
        }
    }

    fn parse(written: &str) -> Place {
        if let Some(path) = written.strip_prefix("unix:") {
            return Place::Unix(path.to_owned());
        }
        if written.starts_with('/') {
            return Place::Unix(written.to_owned());
        }
        let address = written
            .strip_prefix("http://")
            .unwrap_or(written)
            .trim_end_matches('/');
        let has_port = match address.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V6(ip)) => return Place::Tcp(format!("[{ip}]:{PORT}")),
            Ok(_) => false,
            Err(_) => address
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok()),
        };
        Place::Tcp(if has_port {
            address.to_owned()
        } else {
            format!("{address}:{PORT}")
        })
    }

    fn host(&self) -> &str {
        match self {
            Place::Tcp(address) => address,
            Place::Unix(_) => "localhost",
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Place::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Place::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::new(
            Exit::Unreachable,
            format!("no sidecar answers at {self}: {why}"),
            "start one with `starling agent --config FILE`, or say where it is: --admin HOST:PORT or --admin unix:/PATH",
        )
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Tcp(address) => f.write_str(address),
            Place::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_its_port_out() {
        for (written, place) in [
            ("10.0.0.5", Place::Tcp("10.0.0.5:7070".into())),
            ("web-1", Place::Tcp("web-1:7070".into())),
            ("http://web-1:7171/", Place::Tcp("web-1:7171".into())),
            ("::1", Place::Tcp("[::1]:7070".into())),
            ("[::1]:71", Place::Tcp("[::1]:71".into())),
            ("unix:/run/a.sock", Place::Unix("/run/a.sock".into())),
            ("/run/a.sock", Place::Unix("/run/a.sock".into())),
        ] {
            assert_eq!(Place::parse(written), place);
        }
    }

    #[test]
    fn a_socket_and_loopback_are_on_this_host_and_the_rest_is_not() {
        for (written, is_here) in [
            ("unix:/run/a.sock", true),
            ("127.0.0.1", true),
            ("http://127.0.0.1:7171/", true),
            ("localhost:71", true),
            ("::1", true),
            ("[::1]:71", true),
            ("10.0.0.5", false),
            ("[fd00::1]:71", false),
            ("web-1", false),
            ("127.0.0.1.evil.example:7070", false),
        ] {
            let admin = Admin {
                admin: Some(written.into()),
                token: None,
            };
            assert_eq!(admin.is_on_this_host(), is_here, "{written}");
        }
    }

    #[test]
    fn a_sidecar_that_is_not_there_is_code_69_with_a_next_step() {
        let admin = Admin {
            admin: Some("unix:/does/not/exist.sock".into()),
            token: None,
        };
        let failure = admin.get("/v1/status").unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(
            failure.message.contains("unix:/does/not/exist.sock"),
            "{failure}"
        );
        assert!(failure.next.contains("--admin"), "{failure}");
    }

    #[test]
    fn a_refusal_is_told_with_the_sidecars_own_next_step() {
        let place = Place::Tcp(ADDRESS.into());
        let body = br#"{"error": "nobody may do this yet", "next": "add a socket"}"#;
        let failure = read(&place, StatusCode::FORBIDDEN, body).unwrap_err();
        assert_eq!(
            (failure.exit, &*failure.next),
            (Exit::Failed, "add a socket")
        );
        let failure = read(&place, StatusCode::OK, b"<html>").unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
    }
}
