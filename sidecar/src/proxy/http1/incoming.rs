//! A message as it was received: its body, and how its head was spelled.
//!
//! Not here: reading the body's bytes (`wire.rs`, `decode.rs`).

use std::{
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::task::AbortHandle;

use super::{
    head::Spelling,
    wire::{Raw, SharedWire},
};
use crate::proxy::body::BodyError;

/// A message whose head was read, the rest of it still on its wire.
#[derive(Debug)]
pub struct Received {
    wire: SharedWire,
    /// Which of the wire's messages it is.
    message: u64,
    spelling: Option<Spelling>,
    /// What still sends the request that this answers.
    upload: Option<Upload>,
}

/// A task that sends the rest of a request while its answer comes in already; ends when dropped.
#[derive(Debug)]
pub struct Upload(pub AbortHandle);

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Received {
    /// The message whose head was just read from `wire`.
    pub fn new(wire: &SharedWire, spelling: Spelling, upload: Option<Upload>) -> Received {
        Received {
            message: wire.borrow().message(),
            wire: Rc::clone(wire),
            spelling: Some(spelling),
            upload,
        }
    }

    /// How its head was spelled, and then its trailers once they were read; each once.
    pub fn take_spelling(&mut self) -> Option<Spelling> {
        let of_trailers = || {
            let wire = &mut *self.wire.borrow_mut();
            let is_ours = wire.message() == self.message;
            wire.take_spelling().filter(|_| is_ours)
        };
        self.spelling.take().or_else(of_trailers)
    }

    /// The connection itself, for a protocol that is not HTTP.
    pub fn into_raw(self) -> Raw {
        Raw(self.wire)
    }

    /// Its body's next piece.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.wire.borrow().message() != self.message {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        let polled = self.wire.borrow_mut().poll_body(cx);
        let over = matches!(&polled, Poll::Ready(None)) || self.is_end_stream();
        if let (true, Some(upload)) = (over, &self.upload)
            && !upload.0.is_finished()
        {
            // Whoever answers before the request has ended does not want the rest, and what is half said keeps the
            // connection from being used again.
            self.wire.borrow_mut().forsake();
            self.upload = None;
        }
        polled
    }

    /// Whether its body has ended.
    pub fn is_end_stream(&self) -> bool {
        let wire = self.wire.borrow();
        wire.message() == self.message && wire.body_is_done()
    }

    /// How long its body is.
    pub fn size_hint(&self) -> SizeHint {
        let left = self.wire.borrow().body_left();
        left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}
