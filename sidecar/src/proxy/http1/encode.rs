//! Heads and bodies → bytes on a wire.
//!
//! Not here: which headers are sent (`headers.rs`, `forward.rs`).

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body::{Body, Frame};

use super::{head::Spelling, wire::SharedWire};
use crate::proxy::body::BodyError;

/// How a body is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coding {
    /// There is none.
    Empty,
    /// So many bytes, as the head said.
    Length(u64),
    /// Chunks.
    Chunked,
    /// As it is; the connection's end is its end.
    UntilClose,
}

/// Writes a request line.
pub fn request_line(output: &mut Vec<u8>, method: &Method, target: &str) {
    output.extend_from_slice(method.as_str().as_bytes());
    output.push(b' ');
    output.extend_from_slice(target.as_bytes());
    output.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Writes a status line; with the reason of the standard if the answer's own is not known.
pub fn status_line(output: &mut Vec<u8>, status: StatusCode, spelling: Option<&Spelling>) {
    output.extend_from_slice(b"HTTP/1.1 ");
    output.extend_from_slice(status.as_str().as_bytes());
    output.push(b' ');
    let standard = || status.canonical_reason().unwrap_or_default().as_bytes();
    output.extend_from_slice(spelling.map_or_else(standard, Spelling::reason));
    output.extend_from_slice(b"\r\n");
}

/// Writes all fields, their names as they were written where that is known.
pub fn fields(output: &mut Vec<u8>, headers: &HeaderMap, spelling: Option<&Spelling>) {
    let mut after = 0;
    for (name, value) in headers {
        let name = match spelling {
            Some(spelling) => spelling.of(name, &mut after),
            None => name.as_str().as_bytes(),
        };
        line(output, name, value.as_bytes());
    }
}

/// Writes one field.
pub fn field(output: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    line(output, name.as_str().as_bytes(), value.as_bytes());
}

/// Writes `Content-Length`.
pub fn content_length(output: &mut Vec<u8>, length: u64) {
    field(output, &header::CONTENT_LENGTH, &HeaderValue::from(length));
}

/// Writes `Transfer-Encoding: chunked`.
pub fn chunked(output: &mut Vec<u8>) {
    output.extend_from_slice(b"transfer-encoding: chunked\r\n");
}

fn line(output: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    output.extend_from_slice(name);
    output.extend_from_slice(b": ");
    output.extend_from_slice(value);
    output.extend_from_slice(b"\r\n");
}

/// Why a body was not written whole.
#[derive(Debug)]
pub enum Unwritten {
    /// The connection it goes to broke.
    Io(io::Error),
    /// Where it comes from broke.
    Source(BodyError),
    /// It is longer or shorter than its head said.
    Length,
}

/// A body that may know how its trailers were spelled.
pub trait Spelled {
    /// How, once they were read.
    fn spelling_of_trailers(&mut self) -> Option<Spelling>;
}

/// A body on its way onto a wire, behind a head that is in the wire's output already.
#[derive(Debug)]
pub struct Outgoing<B> {
    wire: SharedWire,
    body: B,
    coding: Coding,
    /// A chunk's data was written, its line end not yet.
    in_chunk: bool,
    ended: bool,
}

impl<B> Outgoing<B>
where
    B: Body<Data = Bytes, Error = BodyError> + Spelled + Unpin,
{
    /// At its beginning.
    pub fn new(wire: &SharedWire, body: B, coding: Coding) -> Outgoing<B> {
        Outgoing {
            wire: Rc::clone(wire),
            body,
            coding,
            in_chunk: false,
            ended: false,
        }
    }

    /// What it was made of, in exchange for another.
    pub fn replace_body(&mut self, other: B) -> B {
        std::mem::replace(&mut self.body, other)
    }

    /// Moves it on: gathers what is there, writes, and so on until all is written.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Unwritten>> {
        loop {
            let waits = match self.gather(cx) {
                Ok(is_full) => !is_full,
                Err(broke) => {
                    // What stood back is said all the same: a cut answer is one, and nobody may take it for none.
                    let _ = self.wire.borrow_mut().poll_flush_now(cx);
                    return Poll::Ready(Err(broke));
                }
            };
            ready!(self.wire.borrow_mut().poll_flush(cx)).map_err(Unwritten::Io)?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// Fills the wire's output; `false`: the body has to be waited for.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<bool, Unwritten> {
        while !self.ended && !self.wire.borrow().is_full() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => {
                    // Many clients hand a chunk on only once they have seen its line end.
                    if std::mem::take(&mut self.in_chunk) {
                        self.wire.borrow_mut().output().extend_from_slice(b"\r\n");
                    }
                    return Ok(false);
                }
                Poll::Ready(None) => self.end(None)?,
                Poll::Ready(Some(Err(error))) => return Err(Unwritten::Source(error)),
                Poll::Ready(Some(Ok(frame))) => self.frame(frame)?,
            }
        }
        Ok(true)
    }

    fn frame(&mut self, frame: Frame<Bytes>) -> Result<(), Unwritten> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(other) => return self.end(other.into_trailers().ok()),
        };
        if !data.has_remaining() {
            return Ok(());
        }
        let wire = &mut *self.wire.borrow_mut();
        match &mut self.coding {
            Coding::Empty => return Err(Unwritten::Length),
            Coding::Length(left) => {
                *left = left
                    .checked_sub(data.len() as u64)
                    .ok_or(Unwritten::Length)?;
            }
            Coding::Chunked => {
                let output = wire.output();
                if self.in_chunk {
                    output.extend_from_slice(b"\r\n");
                }
                chunk_line(output, data.len());
                self.in_chunk = true;
            }
            Coding::UntilClose => {}
        }
        wire.push(data);
        Ok(())
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Unwritten> {
        self.ended = true;
        match self.coding {
            Coding::Length(left) if left > 0 => return Err(Unwritten::Length),
            Coding::Length(_) | Coding::Empty | Coding::UntilClose => {}
            Coding::Chunked => {
                let spelling = self.body.spelling_of_trailers();
                let wire = &mut *self.wire.borrow_mut();
                let output = wire.output();
                if self.in_chunk {
                    output.extend_from_slice(b"\r\n");
                }
                output.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    fields(output, &trailers, spelling.as_ref());
                }
                output.extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }
}

fn chunk_line(output: &mut Vec<u8>, size: usize) {
    let mut digits = [0; 16];
    let mut from = digits.len();
    let mut left = size;
    while left > 0 {
        from -= 1;
        digits[from] = b"0123456789abcdef"[left & 0xf];
        left >>= 4;
    }
    output.extend_from_slice(&digits[from..]);
    output.extend_from_slice(b"\r\n");
}
