//! Bodies on their way in, from a client or an endpoint, and why one ends early.
//!
//! Not here: their way on, which is the request's (`request_body.rs`) or the answer's (`reply_body.rs`).

use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{
    ahead::Ahead,
    http1::{
        head::{Fault, Spelling},
        incoming::Received,
    },
    http2::{self, stream::Stream},
};

/// Why a body ended early.
#[derive(Debug)]
pub enum BodyError {
    /// The stream of HTTP/2 that it came by, or its connection, broke.
    Http2(h2::Error),
    /// The connection broke.
    Io(io::Error),
    /// The connection ended before the body did.
    Cut,
    /// Its chunks or trailers are malformed.
    Malformed(Fault),
    /// The time of the request, or of silence within it, is over.
    TimedOut,
    /// Bytes already sent cannot be sent again: a mistake of this crate if it is ever seen.
    NotKept,
    /// Another try sends the body now.
    Superseded,
    /// The client broke off its body during an earlier try.
    ClientGone,
    /// It is longer than its upstream takes.
    TooLarge,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::Http2(error) => error.fmt(f),
            BodyError::Io(error) => error.fmt(f),
            BodyError::Cut => f.write_str("the connection ended before the body did"),
            BodyError::Malformed(fault) => fault.fmt(f),
            BodyError::TimedOut => f.write_str("no byte of the body came in time"),
            BodyError::NotKept => f.write_str("the body was too long to be sent again"),
            BodyError::Superseded => f.write_str("another try sends the body now"),
            BodyError::ClientGone => f.write_str("the client broke off its body"),
            BodyError::TooLarge => f.write_str("the body is longer than its upstream takes"),
        }
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BodyError::Http2(error) => Some(error),
            BodyError::Io(error) => Some(error),
            BodyError::Cut
            | BodyError::Malformed(_)
            | BodyError::TimedOut
            | BodyError::NotKept
            | BodyError::Superseded
            | BodyError::ClientGone
            | BodyError::TooLarge => None,
        }
    }
}

impl From<io::Error> for BodyError {
    fn from(error: io::Error) -> BodyError {
        BodyError::Io(error)
    }
}

/// A body on its way in, from a client or an endpoint.
#[derive(Debug)]
pub enum Inflow {
    /// HTTP/1.
    Http1(Received),
    /// HTTP/2.
    Http2(http2::incoming::Received),
    /// None: the endpoint has agreed that its stream of HTTP/2 leaves HTTP.
    Left(Box<Stream>),
    /// One whose beginning was looked at.
    Ahead(Box<Ahead>),
}

impl Inflow {
    /// How the head was spelled, and then the trailers, if that is known; each once.
    pub fn take_spelling(&mut self) -> Option<Spelling> {
        match self {
            Inflow::Http1(received) => received.take_spelling(),
            Inflow::Http2(_) | Inflow::Left(_) => None,
            Inflow::Ahead(ahead) => ahead.rest_mut().take_spelling(),
        }
    }
}

impl Body for Inflow {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Inflow::Http1(received) => received.poll_frame(cx),
            Inflow::Http2(received) => received.poll_frame(cx),
            Inflow::Left(_) => Poll::Ready(None),
            Inflow::Ahead(ahead) => ahead.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Inflow::Http1(received) => received.is_end_stream(),
            Inflow::Http2(received) => received.is_end_stream(),
            Inflow::Left(_) => true,
            Inflow::Ahead(ahead) => ahead.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Inflow::Http1(received) => received.size_hint(),
            Inflow::Http2(received) => received.size_hint(),
            Inflow::Left(_) => SizeHint::with_exact(0),
            Inflow::Ahead(ahead) => ahead.size_hint(),
        }
    }
}
