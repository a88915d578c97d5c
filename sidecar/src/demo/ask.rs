//! Asks a demo sidecar's admin API.
//!
//! Not here: what is made of the answers (`world.rs`, `script.rs`).

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, task::JoinSet};

/// For one question, connection and all.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Longest answer read: a whole page of metrics fits many times.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// `GET path`, and its answer's body as JSON of that shape.
///
/// # Errors
/// A sentence: not reached, not 200, not of that shape.
pub async fn json<T: DeserializeOwned>(admin: SocketAddr, path: &str) -> Result<T, String> {
    let body = text(admin, path).await?;
    serde_json::from_slice(&body).map_err(|error| format!("http://{admin}{path}: {error}"))
}

/// `GET path`, and its answer's body.
///
/// # Errors
/// A sentence: not reached, not 200.
pub async fn text(admin: SocketAddr, path: &str) -> Result<Bytes, String> {
    let answer = tokio::time::timeout(TIMEOUT, get(admin, path)).await;
    let answer = answer.unwrap_or_else(|_| Err("no answer in time".into()));
    answer.map_err(|error| format!("http://{admin}{path}: {error}"))
}

async fn get(
    admin: SocketAddr,
    path: &str,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(admin).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(path)
        .header(http::header::HOST, admin.to_string())
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    if answer.status() != 200 {
        return Err(format!("answered {}", answer.status()).into());
    }
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
    Ok(body.collect().await?.to_bytes())
}
