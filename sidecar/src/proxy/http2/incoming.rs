//! A message's body as it comes by a stream of HTTP/2.
//!
//! Not here: its head (`server.rs`, `client.rs`).

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body::{Frame, SizeHint};

use crate::proxy::body::BodyError;

/// A message whose head was read, the rest of it still on its stream.
#[derive(Debug)]
pub struct Received {
    /// `None` for one that has no body, whatever follows on its stream.
    stream: Option<RecvStream>,
    /// Bytes still to come, as far as its head says.
    left: Option<u64>,
    /// Nothing but trailers can follow.
    data_is_over: bool,
}

impl Received {
    /// The body that follows on `stream` behind a head with these fields.
    pub fn new(stream: RecvStream, headers: &HeaderMap) -> Received {
        Received {
            left: length(headers),
            stream: Some(stream),
            data_is_over: false,
        }
    }

    /// No body.
    pub fn empty() -> Received {
        Received {
            stream: None,
            left: None,
            data_is_over: true,
        }
    }

    /// Its next piece. What was read may be sent again by the other side.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(None);
        };
        if !self.data_is_over {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It fails for a stream that has ended, which needs no window.
                    let _ = stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(broken(error)),
                None => self.data_is_over = true,
            }
        }
        match ready!(stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(broken(error)),
        }
    }

    /// Whether its body has ended, trailers included.
    pub fn is_end_stream(&self) -> bool {
        let stream = self.stream.as_ref();
        stream.is_none_or(RecvStream::is_end_stream)
    }

    /// How long its body is.
    pub fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::new(),
        }
    }
}

/// A stream that is ended without an error is an answer that needs no more (RFC 9113, 8.1).
fn broken<T>(error: h2::Error) -> Option<Result<T, BodyError>> {
    (error.reason() != Some(Reason::NO_ERROR)).then_some(Err(BodyError::Http2(error)))
}

/// The one length that a head tells, if it does.
pub fn length(headers: &HeaderMap) -> Option<u64> {
    let mut told = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let digits = value.to_str().ok()?;
        // A sign would be read as part of a number.
        let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let length: u64 = digits.parse().ok().filter(|_| is_plain)?;
        if told.is_some_and(|told| told != length) {
            return None;
        }
        told = Some(length);
    }
    told
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_length_is_one_plain_number() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_LENGTH, HeaderValue::from_static(value));
            }
            length(&headers)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["17"]), Some(17));
        assert_eq!(of(&["17", "17"]), Some(17));
        for unclear in [&["17", "18"][..], &["+17"], &["17, 17"], &[""], &["0x1"]] {
            assert_eq!(of(unclear), None, "{unclear:?}");
        }
    }
}
