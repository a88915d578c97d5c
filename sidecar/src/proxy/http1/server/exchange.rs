//! One request of HTTP/1 under way: its answer waited for, then written so that its client knows the end of it.
//!
//! Not here: how its head came in, and what the connection does after it (`server.rs`).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};
use http_body::Body;
use metrics::counter;
use tokio::time::Instant;

use super::{After, Conversation};
use crate::proxy::{
    front::Guarding,
    http1::{
        encode::{self, Coding, Outgoing, Unwritten},
        head::Meaning,
        wire::Wire,
    },
    porter::Carrying,
    reply_body::ReplyBody,
};

/// One request under way.
pub struct Exchange {
    /// What its head said.
    pub asked: Asked,
    /// How far it is.
    pub stage: Stage,
}

/// How far a request is.
pub enum Stage {
    /// Its answer is waited for.
    Answering(Guarding<Carrying>),
    /// Its answer is being written.
    Sending(Sending),
}

/// An answer on its way: its head is in the wire's output.
pub struct Sending {
    /// What follows the head.
    pub body: Outgoing<ReplyBody>,
    /// Nothing of HTTP follows on this connection.
    pub close: bool,
    /// Another protocol follows.
    pub leaves: bool,
    /// Bytes that had been written when it was last looked at.
    written: u64,
    /// Until when the client has to take some of it.
    blocked_until: Option<Instant>,
}

impl Conversation<'_, '_> {
    /// Waits for the answer, and writes it.
    pub fn poll_exchange(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange,
    ) -> Poll<Result<(), Unwritten>> {
        let Exchange { asked, stage } = exchange;
        if let Stage::Answering(answering) = stage {
            match ready!(self.poll_answer(cx, answering, asked)) {
                Some(answer) => *stage = Stage::Sending(self.begin_answer(answer, asked)),
                None => return Poll::Ready(Err(client_gone())),
            }
        }
        match stage {
            Stage::Sending(sending) => self.poll_send(cx, sending, asked),
            Stage::Answering(_) => Poll::Pending,
        }
    }

    /// The answer; `None`: the client has gone meanwhile.
    fn poll_answer(
        &self,
        cx: &mut Context<'_>,
        answering: &mut Guarding<Carrying>,
        asked: &Asked,
    ) -> Poll<Option<Response<ReplyBody>>> {
        if let Poll::Ready(Ok(answer)) = Pin::new(answering).poll(cx) {
            return Poll::Ready(Some(answer));
        }
        let wire = &mut *self.wire.borrow_mut();
        let broke = wire.has_output() && matches!(wire.poll_flush(cx), Poll::Ready(Err(_)));
        if broke || asked.has_gone(wire, cx) {
            return Poll::Ready(None);
        }
        Poll::Pending
    }

    /// Writes the answer's head.
    fn begin_answer(&self, answer: Response<ReplyBody>, asked: &Asked) -> Sending {
        let (mut head, mut body) = answer.into_parts();
        let leaves = body.is_tunnel();
        let coding = asked.coding(head.status, &head.headers, &body);
        // Who waits for a word to send its body may send it all the same, or not: nobody knows what comes next.
        let unasked = asked.meaning.expects_continue && !self.wire.borrow().body_is_done();
        let close = !leaves
            && (!asked.meaning.keep_alive
                || coding == Coding::UntilClose
                || unasked
                || body.is_last()
                || says_close(&head.headers));
        if close {
            head.headers.remove(header::CONNECTION);
        }
        self.write_head(&head, &mut body, asked, coding, close);
        self.caller.worker.buffers.take_map(head.headers);
        if coding == Coding::Empty && !leaves {
            body = without(body);
        }
        Sending {
            body: Outgoing::new(self.wire, body, coding),
            close,
            leaves,
            written: 0,
            blocked_until: None,
        }
    }

    fn write_head(
        &self,
        head: &http::response::Parts,
        body: &mut ReplyBody,
        asked: &Asked,
        coding: Coding,
        close: bool,
    ) {
        let spelling = body.take_spelling();
        let wire = &mut *self.wire.borrow_mut();
        let output = wire.output();
        encode::status_line(output, head.status, spelling.as_ref());
        encode::fields(output, &head.headers, spelling.as_ref());
        if !head.headers.contains_key(header::DATE) {
            encode::field(output, &header::DATE, &self.caller.worker.date());
        }
        match coding {
            Coding::Length(length) if !head.headers.contains_key(header::CONTENT_LENGTH) => {
                encode::content_length(output, length);
            }
            Coding::Chunked => encode::chunked(output),
            _ => {}
        }
        if close {
            encode::field(
                output,
                &header::CONNECTION,
                &HeaderValue::from_static("close"),
            );
        } else if asked.version == Version::HTTP_10 && !body.is_tunnel() {
            let stays = HeaderValue::from_static("keep-alive");
            encode::field(output, &header::CONNECTION, &stays);
        }
        output.extend_from_slice(b"\r\n");
    }

    /// Writes what follows the head.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut Sending,
        asked: &Asked,
    ) -> Poll<Result<(), Unwritten>> {
        if sending.leaves {
            return self
                .wire
                .borrow_mut()
                .poll_flush(cx)
                .map_err(|_| client_gone());
        }
        if let Poll::Ready(written) = sending.body.poll(cx) {
            return Poll::Ready(written);
        }
        let wire = &mut *self.wire.borrow_mut();
        if !wire.has_output() {
            sending.blocked_until = None;
            return if asked.has_gone(wire, cx) {
                Poll::Ready(Err(client_gone()))
            } else {
                Poll::Pending
            };
        }
        // The client has to take something of its answer now and then.
        if wire.written() != sending.written {
            sending.written = wire.written();
            sending.blocked_until = None;
        }
        let patience = || Instant::now() + self.settings.limits.idle;
        let due = *sending.blocked_until.get_or_insert_with(patience);
        ready!(self.timer.poll_until(cx, due));
        counter!("starling_client_faults_total").increment(1);
        Poll::Ready(Err(Unwritten::Io(io::ErrorKind::TimedOut.into())))
    }
}

/// What a request said of itself that its answer depends on.
pub struct Asked {
    /// What its head says of its connection and its body.
    pub meaning: Meaning,
    /// Its version of HTTP/1.
    pub version: Version,
    /// Its method is HEAD.
    pub is_head: bool,
    /// Its method is CONNECT.
    pub is_connect: bool,
    /// What follows may be another protocol, so the end of the client's direction is none of the request.
    pub may_leave: bool,
    /// The client itself says that it sends nothing more.
    pub is_last: bool,
    /// Nobody knows what it said.
    pub is_refused: bool,
}

impl Asked {
    /// What follows an answer that could not be written.
    pub fn after_cut(&self) -> After {
        if self.is_refused {
            After::Linger
        } else {
            After::Close
        }
    }

    /// Whether the client has gone, looked at only where nothing else reads its bytes.
    fn has_gone(&self, wire: &mut Wire, cx: &mut Context<'_>) -> bool {
        if self.may_leave {
            return false;
        }
        if !wire.body_is_done() {
            wire.await_body_end(cx);
            return false;
        }
        if !wire.input().is_empty() {
            return false;
        }
        matches!(wire.poll_fill(cx), Poll::Ready(Ok(0) | Err(_)))
    }

    /// How the answer's body is written, so that this client knows its end.
    fn coding(&self, status: StatusCode, headers: &HeaderMap, body: &ReplyBody) -> Coding {
        let without_body = self.is_head
            || (self.is_connect && status.is_success())
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        if without_body {
            return Coding::Empty;
        }
        let told = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        match told.or(body.size_hint().exact()) {
            Some(length) => Coding::Length(length),
            None if self.version == Version::HTTP_11 => Coding::Chunked,
            None => Coding::UntilClose,
        }
    }
}

fn client_gone() -> Unwritten {
    Unwritten::Io(io::ErrorKind::BrokenPipe.into())
}

fn says_close(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONNECTION)
        .is_some_and(|value| value.as_bytes() == b"close")
}

/// The same answer to somebody who takes no body: its account is closed as if it had been read.
fn without(body: ReplyBody) -> ReplyBody {
    drop(body);
    ReplyBody::empty()
}
