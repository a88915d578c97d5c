//! A gRPC check: `grpc.health.v1.Health/Check` over HTTP/2.
//!
//! Not here: the connection and the time limit (`active_check.rs`). The two messages are a string and a number, so
//! their protobuf is written and read by hand (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, header};
use tokio::task::JoinSet;

use super::{Fault, HEAD_BYTES_MAX, Stream};

/// A health answer has two bytes; one with more than this is something else.
const MESSAGE_BYTES_MAX: usize = 1024;
/// The flag and the length before each message.
const PREFIX_BYTES: usize = 5;
/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// Asks over `stream` how `service` is, by this scheme and authority.
///
/// # Errors
/// What came is no gRPC answer, or one that does not say SERVING.
pub(super) async fn ask(
    stream: Box<dyn Stream>,
    service: &str,
    (scheme, host): (&str, &str),
) -> Result<(), Fault> {
    let request = Request::post(format!("{scheme}://{host}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "starling-check")
        .body(())
        .map_err(Fault::Path)?;
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(Fault::Grpc)?;
    // As in an HTTP check: whoever drops this future closes the connection too.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut sender = sender.ready().await.map_err(Fault::Grpc)?;
    let (answer, mut body) = sender.send_request(request, false).map_err(Fault::Grpc)?;
    body.send_data(question(service), true)
        .map_err(Fault::Grpc)?;

    let (head, mut body) = answer.await.map_err(Fault::Grpc)?.into_parts();
    if head.status != StatusCode::OK {
        return Err(Fault::Status(head.status));
    }
    well(&head.headers)?;
    let mut message = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(Fault::Grpc)?;
        message.extend_from_slice(&piece);
        if message.len() > PREFIX_BYTES + MESSAGE_BYTES_MAX {
            return Err(Fault::Garbled("a health answer longer than any"));
        }
        body.flow_control()
            .release_capacity(piece.len())
            .map_err(Fault::Grpc)?;
    }
    match body.trailers().await.map_err(Fault::Grpc)? {
        Some(trailers) => well(&trailers)?,
        None if head.headers.contains_key("grpc-status") => {}
        None => return Err(Fault::Garbled("an answer without grpc-status")),
    }
    match status(&message) {
        Some(SERVING) => Ok(()),
        Some(other) => Err(Fault::NotServing(other)),
        None => Err(Fault::Garbled("what is no health answer")),
    }
}

/// `HealthCheckRequest { string service = 1 }` with its prefix.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(&message);
    framed.freeze()
}

/// Whether headers or trailers carry no `grpc-status` but 0.
fn well(headers: &HeaderMap) -> Result<(), Fault> {
    let word = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match word("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => Err(Fault::GrpcStatus {
            code: code.into(),
            message: word("grpc-message").unwrap_or_default().into(),
        }),
    }
}

/// The status of `HealthCheckResponse { ServingStatus status = 1 }` with its prefix; 0 if it is left out, as protobuf
/// has it. `None`: it is no such message.
pub fn status(framed: &[u8]) -> Option<u64> {
    let (prefix, mut message) = framed.split_at_checked(PREFIX_BYTES)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    // Nothing was said of compression, so a flag other than 0 is against the protocol.
    if prefix[0] != 0 || length as usize != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn put_varint(bytes: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        bytes.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.put_u8(value as u8);
}

/// Takes a number off the front; ten bytes hold any.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((message.len() as u32).to_be_bytes());
        bytes.extend(message);
        bytes
    }

    #[test]
    fn a_question_is_written_as_protobuf_has_it() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        let long = question(&"x".repeat(300));
        assert_eq!(&long[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
    }

    #[test]
    fn an_answer_is_read_whatever_a_later_version_adds_to_it() {
        for (message, expected) in [
            (&b"\x08\x01"[..], Some(1)),
            (b"\x08\x02", Some(2)),
            (b"", Some(0)),
            (b"\x12\x03abc\x08\x01\x19aaaaaaaa\x25aaaa", Some(1)),
            (b"\x08", None),
            (b"\x12\x7fabc", None),
            (b"\x0b", None),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(status(&framed(message)), expected, "{message:?}");
        }
        assert_eq!(status(b"\0\0\0\0\x03\x08\x01"), None, "cut off");
        assert_eq!(status(b"\x01\0\0\0\x02\x08\x01"), None, "compressed");
        assert_eq!(status(b"\0\0"), None);
    }
}
