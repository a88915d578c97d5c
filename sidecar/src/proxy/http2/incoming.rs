//! A message's body as it comes by a stream of HTTP/2.
//!
//! Not here: its head (`server.rs`, `client.rs`).

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body::{Frame, SizeHint};

use crate::proxy::{body::BodyError, http1::incoming::Upload};

/// A message whose head was read, the rest of it still on its stream.
#[derive(Debug)]
pub struct Received {
    /// `None` for one that has no body, whatever follows on its stream.
    stream: Option<RecvStream>,
    /// Bytes still to come, as far as its head says.
    left: Option<u64>,
    /// Nothing but trailers can follow.
    data_is_over: bool,
    /// What still sends the request that this answers.
    _upload: Option<Upload>,
}

impl Received {
    /// The body that follows on `stream` behind a head with these fields.
    pub fn new(stream: RecvStream, headers: &HeaderMap) -> Received {
        Received {
            left: length(headers),
            stream: Some(stream),
            data_is_over: false,
            _upload: None,
        }
    }

    /// The same, with which the rest of its request ends.
    pub fn with(self, upload: Option<Upload>) -> Received {
        Received {
            _upload: upload,
            ..self
        }
    }

    /// No body.
    pub fn empty() -> Received {
        Received {
            stream: None,
            left: None,
            data_is_over: true,
            _upload: None,
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
                Some(Err(error)) => return Poll::Ready(Some(Err(BodyError::Http2(error)))),
                None => self.data_is_over = true,
            }
        }
        match ready!(stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(Some(Err(BodyError::Http2(error)))),
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

/// Leaves one clear length in a head, or none: h2 lets the same one pass twice, and an empty one.
pub fn tell_length_once(headers: &mut HeaderMap) {
    if !headers.contains_key(CONTENT_LENGTH) {
        return;
    }
    match length(headers) {
        Some(length) if headers.get_all(CONTENT_LENGTH).iter().count() > 1 => {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        Some(_) => {}
        None => drop(headers.remove(CONTENT_LENGTH)),
    }
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
    fn a_length_goes_on_once_or_not_at_all() {
        for (told, left) in [
            (&["17", "17"][..], Some("17")),
            (&["5"], Some("5")),
            (&[""], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in told {
                headers.append(CONTENT_LENGTH, HeaderValue::from_static(value));
            }
            tell_length_once(&mut headers);
            let values: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().collect();
            assert_eq!(values, left.into_iter().collect::<Vec<_>>(), "{told:?}");
        }
    }

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
