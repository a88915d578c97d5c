//! One request to an endpoint over one connection, up to its answer's head.
//!
//! Not here: which connection (`pool.rs`, `send.rs`) and what follows from how it went (`forward.rs`).

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header, response};
use http_body::Body;

use super::{
    encode::{self, Coding, Outgoing, Unwritten},
    head::{self, Framing},
    incoming::{Received, Upload},
    wire::SharedWire,
};
use crate::proxy::{
    call::Call,
    headers,
    interim::{Interim, TooMany},
    present::Present,
    request_body::RequestBody,
    send::time_left,
};

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The connection was dead before a byte of the request went out.
    Unsent,
    /// It ended or broke before a byte of the answer came.
    Silent,
    /// It ended or broke within the answer's head.
    Cut,
    /// What came is no answer.
    Malformed(head::Fault),
    /// The client broke off its own body.
    Client,
}

/// Sends `call` over `wire` and reads the head of its answer; `left` is the time that a gRPC server is told of.
///
/// # Errors
/// See [`Trouble`]. The connection is of no use afterwards.
pub async fn exchange(
    wire: &SharedWire,
    call: &Call,
    left: Duration,
    header_bytes: usize,
) -> Result<(response::Parts, Received), Trouble> {
    let body = RequestBody::of(call.source.as_ref());
    let coding = write_head(wire, call, &body, left);
    let mut reading = Reading {
        wire,
        call,
        header_bytes,
        seen: 0,
        begun: false,
        interim: Interim::of(call),
    };
    let written = wire.borrow().written();
    let mut sending = Some(Outgoing::new(wire, body, coding));
    let (parts, spelling, framing) = poll_fn(|cx| {
        if let Some(outgoing) = &mut sending {
            match outgoing.poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => sending = None,
                Poll::Ready(Err(Unwritten::Io(_))) => {
                    if wire.borrow().written() == written {
                        return Poll::Ready(Err(Trouble::Unsent));
                    }
                    // It may have answered before it stopped listening.
                    wire.borrow_mut().forsake();
                    sending = None;
                }
                Poll::Ready(Err(Unwritten::Source(_) | Unwritten::Length)) => {
                    return Poll::Ready(Err(Trouble::Client));
                }
            }
        }
        reading.poll(cx)
    })
    .await?;
    let upload = sending.map(|mut outgoing| {
        let wire = Rc::clone(wire);
        let task = tokio::task::spawn_local(async move {
            if poll_fn(|cx| outgoing.poll(cx)).await.is_err() {
                wire.borrow_mut().forsake();
                // The endpoint hears that no more comes; should it have left, nobody is there to hear.
                let _ = poll_fn(|cx| wire.borrow_mut().poll_shutdown(cx)).await;
            }
        });
        Upload(task.abort_handle())
    });
    // An answer without a body is over now, whatever of the request is still to be sent.
    if upload.is_some()
        && framing == Framing::Empty
        && parts.status != StatusCode::SWITCHING_PROTOCOLS
    {
        wire.borrow_mut().forsake();
    }
    Ok((parts, Received::new(wire, spelling, upload)))
}

/// Writes the request's head; how its body is to be written.
fn write_head(wire: &SharedWire, call: &Call, body: &RequestBody, left: Duration) -> Coding {
    let wire = &mut *wire.borrow_mut();
    let output = wire.output();
    let target = match call.uri.path_and_query() {
        Some(target) => target.as_str(),
        None => "/",
    };
    encode::request_line(output, &call.method, target);
    encode::field(output, &header::HOST, &call.authority);
    encode::fields(output, &call.headers, call.spelling.as_ref());
    if let Some(introduction) = &call.introduction {
        output.extend_from_slice(introduction.lines());
    }
    if !call.there.has(Present::REQUEST_ID) {
        encode::field(output, &headers::X_REQUEST_ID, &call.id);
    }
    if let Some(left) = time_left(call, left) {
        encode::field(output, &headers::GRPC_TIMEOUT, &left);
    }
    let length = call
        .headers
        .get(header::CONTENT_LENGTH)
        .map(HeaderValue::as_bytes);
    let coding = match (&call.source, length) {
        (None, Some(_)) => Coding::Empty,
        (None, None) => {
            // A server may want to be told that there is nothing (RFC 9110, 8.6).
            if matches!(call.method, Method::POST | Method::PUT | Method::PATCH) {
                encode::content_length(output, 0);
            }
            Coding::Empty
        }
        (Some(_), Some(_)) => Coding::Length(body.size_hint().exact().unwrap_or(0)),
        (Some(_), None) => {
            encode::chunked(output);
            Coding::Chunked
        }
    };
    if call.upgrade {
        encode::field(output, &header::CONNECTION, &headers::UPGRADE_VALUE);
    }
    output.extend_from_slice(b"\r\n");
    coding
}

/// An answer's head on its way in.
struct Reading<'a> {
    wire: &'a SharedWire,
    call: &'a Call,
    header_bytes: usize,
    seen: usize,
    begun: bool,
    interim: Interim<'a>,
}

type Head = (response::Parts, head::Spelling, Framing);

impl Reading<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Trouble>> {
        self.interim.poll_patience(cx);
        loop {
            match self.take() {
                Ok(None) => {}
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Err(fault) => return Poll::Ready(Err(Trouble::Malformed(fault))),
            }
            let filled = self.wire.borrow_mut().poll_fill(cx);
            match filled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(count)) if count > 0 => self.begun = true,
                Poll::Ready(_) if self.begun => return Poll::Ready(Err(Trouble::Cut)),
                Poll::Ready(_) => return Poll::Ready(Err(Trouble::Silent)),
            }
        }
    }

    /// The head, if what was read holds one; interim answers go to the client meanwhile.
    fn take(&mut self) -> Result<Option<Head>, head::Fault> {
        let wire = &mut *self.wire.borrow_mut();
        loop {
            let input = wire.input();
            if !head::may_be_answer(input) {
                return Err(head::Fault::Malformed("this is no HTTP answer"));
            }
            let Some(end) = head::end_of(input, self.seen)? else {
                if input.len() > self.header_bytes {
                    return Err(head::Fault::TooLarge);
                }
                self.seen = input.len();
                return Ok(None);
            };
            if end > self.header_bytes {
                return Err(head::Fault::TooLarge);
            }
            let block = Bytes::copy_from_slice(&input[..end]);
            let to_head = self.call.method == Method::HEAD;
            let (response, meaning, spelling) =
                head::answer(&block, to_head, wire.buffers().map())?;
            wire.consume(end);
            self.seen = 0;
            let status = response.status();
            let (mut parts, ()) = response.into_parts();
            if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                let keeps = meaning.keep_alive && status != StatusCode::SWITCHING_PROTOCOLS;
                wire.begin_body(meaning.framing, keeps);
                return Ok(Some((parts, spelling, meaning.framing)));
            }
            let there = Present::of(&parts.headers);
            headers::strip_hop_by_hop(&mut parts.headers, there, false);
            let passed = self.interim.pass(status, &parts.headers, Some(&spelling));
            passed.map_err(|TooMany| head::Fault::Malformed("too many interim answers"))?;
        }
    }
}
