//! What a client is told before its answer (1xx): what the endpoint says, and the word to send its body.
//!
//! Not here: how an endpoint's words are read (`http1/client.rs`, `http2/client.rs`).

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Response, StatusCode};
use tokio::time::{Sleep, sleep};

use super::{
    call::Call,
    http1::{encode, head::Spelling, wire::SharedWire},
};

/// Interim answers (1xx) to one request that are passed on; a server that sends more is not well.
pub const INTERIM_MAX: u32 = 16;
/// How long a client that waits for `100 Continue` is left to the endpoint's own word. Many servers read on without a
/// word, and whoever asks them may not wait for ever (RFC 9110, 10.1.1); curl and Go wait as long.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Where a client can be told something before its answer.
#[derive(Clone)]
pub enum Ear {
    /// A connection of HTTP/1.1, which writes it at its next turn.
    Http1(SharedWire),
    /// A connection of HTTP/2.
    Http2(Rc<Notes>),
}

/// What a stream of HTTP/2 is to be told before its answer. All streams of a connection share it: a request goes on only
/// in its stream's turn, at whose end nothing is left in here.
#[derive(Default)]
pub struct Notes(RefCell<Vec<Response<()>>>);

impl Notes {
    /// Everything that was noted, in its order.
    pub fn take(&self) -> Vec<Response<()>> {
        self.0.take()
    }
}

impl Ear {
    /// Tells the client.
    pub fn tell(&self, status: StatusCode, headers: &HeaderMap, spelling: Option<&Spelling>) {
        match self {
            Ear::Http1(wire) => {
                let wire = &mut *wire.borrow_mut();
                let output = wire.output();
                encode::status_line(output, status, spelling);
                encode::fields(output, headers, spelling);
                output.extend_from_slice(b"\r\n");
            }
            Ear::Http2(notes) => {
                let mut note = Response::new(());
                *note.status_mut() = status;
                *note.headers_mut() = headers.clone();
                notes.0.borrow_mut().push(note);
            }
        }
    }
}

/// An endpoint said more before its answer than is passed on.
#[derive(Debug)]
pub struct TooMany;

/// What an endpoint says of a call before it answers.
pub struct Interim<'a> {
    call: &'a Call,
    passed: u32,
    /// The client still waits for the word to send its body.
    is_awaited: bool,
    /// Goes off once it has waited long enough; made when the request has gone out.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Interim<'_> {
    /// Nothing was said yet.
    pub fn of(call: &Call) -> Interim<'_> {
        Interim {
            call,
            passed: 0,
            is_awaited: call.awaits_word(),
            patience: None,
        }
    }

    /// Passes on what the endpoint said.
    ///
    /// # Errors
    /// It has said too much.
    pub fn pass(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        spelling: Option<&Spelling>,
    ) -> Result<(), TooMany> {
        self.passed += 1;
        if self.passed > INTERIM_MAX {
            return Err(TooMany);
        }
        self.is_awaited &= status != StatusCode::CONTINUE;
        self.call.inform(status, headers, spelling);
        Ok(())
    }

    /// Tells a client that waits to send its body, once the endpoint that has the request's head has left it waiting
    /// for long enough.
    pub fn poll_patience(&mut self, cx: &mut Context<'_>) {
        if !self.is_awaited {
            return;
        }
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(sleep(CONTINUE_WAIT)));
        if let Poll::Ready(()) = patience.as_mut().poll(cx) {
            self.is_awaited = false;
            // One that has not waited needs no word.
            if self.call.awaits_word() {
                self.call.go_on();
            }
        }
    }
}
