//! An HTTP check: one request on a connection of its own, its answer held against what is expected.
//!
//! Not here: the connection and the time limit (`active_check.rs`).

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::{Fault, HEAD_BYTES_MAX, Stream};
use crate::config::HttpCheck;

/// Most bytes of an answer's body that are read, so that the application sees a polite reader; what a pattern looks
/// for has to stand in them.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Asks over `stream`; `host` is what the `Host` header says.
///
/// # Errors
/// What came is no HTTP answer, or not the one expected.
pub async fn ask(stream: Box<dyn Stream>, check: &HttpCheck, host: &str) -> Result<(), Fault> {
    let request = Request::builder()
        .method(&check.method)
        .uri(&*check.path)
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
    if !check.expects(status.as_u16()) {
        return Err(Fault::Status(status));
    }
    let mut body = answer.into_body();
    let mut kept = Vec::new();
    let mut read = 0;
    while read < BODY_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => {
                let piece = frame.data_ref().map_or(&[][..], Bytes::as_ref);
                read += piece.len();
                if check.body.is_some() {
                    kept.extend_from_slice(piece);
                }
            }
            Some(Err(error)) => return Err(Fault::Http(error)),
            None => break,
        }
    }
    kept.truncate(BODY_BYTES_MAX);
    match &check.body {
        Some(pattern) if !pattern.is_in(&kept) => Err(Fault::Body(pattern.as_str().into())),
        _ => Ok(()),
    }
}
