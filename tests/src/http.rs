//! The smallest HTTP client a test needs, over TCP or a Unix socket, one connection a call.
//!
//! Not here: load (`examples::load`), and clients that nobody here wrote (curl and others, in the stories).

use std::{fmt, net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// Longest wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// One header as text; empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// A request to be made of `authority` through whoever is connected to.
#[derive(Clone, Debug)]
pub struct Call {
    authority: String,
    target: String,
    method: Method,
    headers: Vec<(String, String)>,
    body: Bytes,
    http2: bool,
}

impl Call {
    /// `GET target` of `authority`; a target with a scheme is sent in absolute form.
    pub fn get(authority: &str, target: &str) -> Call {
        Call {
            authority: authority.into(),
            target: target.into(),
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
            http2: false,
        }
    }

    /// The same with another method and a body.
    pub fn with_body(mut self, method: Method, body: impl Into<Bytes>) -> Call {
        self.method = method;
        self.body = body.into();
        self
    }

    /// The same with one more header.
    pub fn header(mut self, name: &str, value: &str) -> Call {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same over HTTP/2 by prior knowledge.
    pub fn over_http2(mut self) -> Call {
        self.http2 = true;
        self
    }

    /// Makes it over TCP. Errors tell what step failed.
    pub async fn to(&self, address: SocketAddr) -> Result<Answer, String> {
        let stream = TcpStream::connect(address).await.map_err(said("connect"))?;
        self.over(stream).await
    }

    /// Makes it over a Unix socket. Errors tell what step failed.
    pub async fn to_socket(&self, path: &Path) -> Result<Answer, String> {
        let stream = UnixStream::connect(path).await.map_err(said("connect"))?;
        self.over(stream).await
    }

    async fn over<S>(&self, stream: S) -> Result<Answer, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let exchange = async {
            if self.http2 {
                let (mut sender, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                        .await
                        .map_err(said("handshake"))?;
                tokio::spawn(connection);
                whole(sender.send_request(self.request()?).await).await
            } else {
                let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(said("handshake"))?;
                tokio::spawn(connection);
                whole(sender.send_request(self.request()?).await).await
            }
        };
        tokio::time::timeout(ANSWER_WITHIN, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {ANSWER_WITHIN:?}")))
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::builder().method(self.method.clone());
        if self.http2 {
            request = request.uri(format!("http://{}{}", self.authority, self.target));
        } else {
            request = request.uri(&self.target).header("host", &self.authority);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
            .body(Full::new(self.body.clone()))
            .map_err(said("request"))
    }
}

async fn whole(
    response: hyper::Result<http::Response<hyper::body::Incoming>>,
) -> Result<Answer, String> {
    let (head, body) = response.map_err(said("answer"))?.into_parts();
    let body = body.collect().await.map_err(said("answer body"))?;
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.to_bytes(),
    })
}

/// Sends raw bytes and reads until the other side closes or `within` is over; what came back, however odd.
pub async fn raw(address: SocketAddr, bytes: &[u8], within: Duration) -> Vec<u8> {
    let mut back = Vec::new();
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(bytes).await?;
        let mut piece = [0; 4096];
        loop {
            match stream.read(&mut piece).await? {
                0 => return Ok::<(), std::io::Error>(()),
                count => back.extend_from_slice(&piece[..count]),
            }
        }
    };
    // A reset or a silent peer is an answer too: the caller judges what came.
    let _ = tokio::time::timeout(within, talk).await;
    back
}

fn said<E: fmt::Debug>(step: &'static str) -> impl FnOnce(E) -> String {
    move |error| format!("{step}: {error:?}")
}
