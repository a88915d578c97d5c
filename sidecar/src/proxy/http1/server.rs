//! One client connection of HTTP/1: head in, answer out, in order, until one side has had enough.
//!
//! Not here: what the answer is (`front.rs`, `forward.rs`). One request at a time is under way; what a client sends
//! ahead waits in its socket. A connection that rests costs a task, a timer and no buffer.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body;
use metrics::counter;
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};
use tower::Service;

use super::{
    encode::{self, Coding, Outgoing, Unwritten},
    head::{self, Bounds, Fault, Framing, Meaning},
    incoming::Received,
    wire::{Raw, SharedWire},
};
use crate::proxy::{
    body::{Inflow, ReplyBody},
    connections::reason,
    front::{Caller, Stack, stack},
    headers,
    present::Present,
    reply::{Cause, reply},
    tunnel,
    worker::{Phase, Settings},
};

/// How much of a request that nobody wants any more is read, so that its sender sees the answer before the end.
const UNWANTED_BYTES_MAX: usize = 256 * 1024;
/// How long that may take.
const UNWANTED: Duration = Duration::from_secs(1);
/// Bytes of an unwanted body for which it pays to keep the connection.
const DRAINED_BYTES_MAX: usize = 64 * 1024;

/// Serves the client at the other end of `wire`, some of whose first bytes may have been read; `head_ends`: then its
/// first head must have come.
pub async fn serve(caller: Caller, wire: SharedWire, head_ends: Option<Instant>) {
    let worker = Rc::clone(&caller.worker);
    let mut conversation = Conversation {
        wire,
        settings: worker.settings(),
        stack: stack(caller.clone()),
        caller,
        served: false,
        head_ends,
    };
    let mut phase = worker.common.phase.clone();
    let look = phase.clone();
    let ending = pin!(async move {
        // A channel that is gone ends all the same.
        let _ = phase.wait_for(|phase| *phase == Phase::Ending).await;
    });
    let timer = pin!(sleep_until(
        Instant::now() + conversation.settings.limits.idle
    ));
    let mut waits = Waits {
        timer,
        ending,
        look,
        is_awaited: false,
        is_ending: false,
    };
    loop {
        let after = conversation.turn(&mut waits).await;
        match after {
            After::Next => conversation.caller.entry.ended(),
            After::Close => return,
            After::Linger => return conversation.linger(&mut waits).await,
            After::Tunnel(tunnel) => {
                return tunnel::upgraded(Raw(conversation.wire), *tunnel).await;
            }
        }
    }
}

/// What a connection waits for beside bytes.
struct Waits<'a, E> {
    timer: Pin<&'a mut Sleep>,
    ending: Pin<&'a mut E>,
    /// Tells whether `ending` may have become ready, without the lock that polling it takes.
    look: watch::Receiver<Phase>,
    /// `ending` was polled, so it wakes this task.
    is_awaited: bool,
    is_ending: bool,
}

impl<E: Future<Output = ()>> Waits<'_, E> {
    /// Ready at `due`. The timer is moved later only when it goes off, so waiting for what comes soon costs nothing.
    fn poll_until(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        if self.timer.deadline() > due {
            self.timer.as_mut().reset(due);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }

    fn is_unchanged(&self) -> bool {
        matches!(self.look.has_changed(), Ok(false))
    }

    /// Whether the sidecar is about to end; wakes when it is.
    fn poll_ending(&mut self, cx: &mut Context<'_>) -> bool {
        let is_still_awaited = self.is_awaited && self.is_unchanged();
        if !self.is_ending && !is_still_awaited {
            // A change that comes after this is seen by the poll below, or at the next turn.
            self.look.mark_unchanged();
            self.is_awaited = true;
            self.is_ending = self.ending.as_mut().poll(cx).is_ready();
        }
        self.is_ending
    }
}

/// What follows one request.
enum After {
    /// The next one.
    Next,
    /// Nothing: the connection is of no use to anybody.
    Close,
    /// Nothing, but the client may still be sending.
    Linger,
    /// Another protocol.
    Tunnel(Box<crate::proxy::body::Tunnel>),
}

/// What came instead of, or as, a head.
enum Heard {
    Head(Bytes),
    Fault(Fault),
    TooSlow,
    /// Nothing more, and why.
    End(&'static str),
}

struct Conversation {
    wire: SharedWire,
    caller: Caller,
    stack: Stack,
    /// As they were when it began.
    settings: Arc<Settings>,
    /// It has asked for something before.
    served: bool,
    /// When the head that has begun must have come; `None`: none has.
    head_ends: Option<Instant>,
}

impl Conversation {
    /// One request and its answer.
    async fn turn<E: Future<Output = ()>>(&mut self, waits: &mut Waits<'_, E>) -> After {
        let head = match self.head(waits).await {
            Heard::Head(head) => head,
            Heard::End(reason) => {
                self.caller.entry.ends_for(reason, None);
                return After::Close;
            }
            Heard::TooSlow => return self.refuse(Cause::HeadTooSlow, waits).await,
            Heard::Fault(fault) => return self.refuse_fault(fault, waits).await,
        };
        let map = self.caller.worker.buffers.map();
        let (request, meaning, spelling) = match head::request(&head, self.bounds(), map) {
            Ok(read) => read,
            Err(fault) => return self.refuse_fault(fault, waits).await,
        };
        self.served = true;
        self.caller.entry.begins(0);
        self.wire
            .borrow_mut()
            .begin_body(meaning.framing, meaning.keep_alive);
        if request.method() == Method::CONNECT && meaning.framing != Framing::Empty {
            return self
                .refuse_fault(Fault::Malformed("a body behind CONNECT"), waits)
                .await;
        }
        let asked = Asked {
            meaning,
            version: request.version(),
            is_head: request.method() == Method::HEAD,
            is_connect: request.method() == Method::CONNECT,
            may_leave: request.method() == Method::CONNECT
                || (meaning.there.has(Present::UPGRADE) && headers::is_upgrade(request.headers())),
        };
        let received = Received::new(&self.wire, spelling, None);
        let request = request.map(|()| Inflow::Http1(received));
        match self.answered(request, &asked).await {
            Some(answer) => self.answer(answer, &asked, waits).await,
            None => {
                self.caller.entry.ends_for(reason::CLIENT_GONE, None);
                After::Close
            }
        }
    }

    /// Waits for a request's head.
    async fn head<E: Future<Output = ()>>(&mut self, waits: &mut Waits<'_, E>) -> Heard {
        let mut seen = 0;
        let limits = self.settings.limits;
        let rest_ends = Instant::now() + limits.idle;
        let mut head_ends = self.head_ends.take();
        poll_fn(|cx| {
            loop {
                let wire = &mut *self.wire.borrow_mut();
                let input = wire.input();
                if input.len() > seen {
                    match self.take(wire, seen) {
                        Ok(Some(head)) => return Poll::Ready(Heard::Head(head)),
                        Ok(None) => seen = wire.input().len(),
                        Err(fault) => return Poll::Ready(Heard::Fault(fault)),
                    }
                }
                match wire.poll_fill(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => {
                        return Poll::Ready(Heard::End(reason::CLIENT_GONE));
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            let begun = seen > 0;
            // Who has asked for nothing yet was heard out before this connection came here.
            if waits.poll_ending(cx) && !begun {
                return Poll::Ready(Heard::End(reason::LEAVING));
            }
            let due = if begun {
                *head_ends.get_or_insert_with(|| Instant::now() + limits.head)
            } else {
                rest_ends
            };
            ready!(waits.poll_until(cx, due));
            Poll::Ready(if begun {
                Heard::TooSlow
            } else {
                Heard::End(reason::IDLE)
            })
        })
        .await
    }

    /// How large a head may be.
    fn bounds(&self) -> Bounds {
        let limits = &self.settings.limits;
        Bounds {
            line_bytes: limits.request_line_bytes,
            bytes: self.settings.header_bytes,
            fields: limits.headers,
        }
    }

    /// The head, if what was read holds one.
    fn take(&self, wire: &mut super::wire::Wire, seen: usize) -> Result<Option<Bytes>, Fault> {
        let input = wire.input();
        match head::end_of(input, seen)? {
            Some(end) if end > self.settings.header_bytes + self.bounds().line_bytes => {
                head::check_unfinished(input, self.bounds())?;
                Err(Fault::TooLarge)
            }
            Some(end) => {
                let head = Bytes::copy_from_slice(&input[..end]);
                wire.consume(end);
                Ok(Some(head))
            }
            None => head::check_unfinished(input, self.bounds()).map(|()| None),
        }
    }

    /// Waits for the answer; `None`: the client has gone meanwhile.
    async fn answered(
        &mut self,
        request: Request<Inflow>,
        asked: &Asked,
    ) -> Option<Response<ReplyBody>> {
        let mut answering = self.stack.call(request);
        poll_fn(|cx| {
            if let Poll::Ready(Ok(answer)) = Pin::new(&mut answering).poll(cx) {
                return Poll::Ready(Some(answer));
            }
            let wire = &mut *self.wire.borrow_mut();
            if wire.has_output()
                && let Poll::Ready(Err(_)) = wire.poll_flush(cx)
            {
                return Poll::Ready(None);
            }
            if asked.has_gone(wire, cx) {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await
    }

    /// Writes the answer.
    async fn answer<E: Future<Output = ()>>(
        &mut self,
        answer: Response<ReplyBody>,
        asked: &Asked,
        waits: &mut Waits<'_, E>,
    ) -> After {
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
        if leaves {
            let flushed = poll_fn(|cx| self.wire.borrow_mut().poll_flush(cx)).await;
            return match (flushed, body.into_tunnel()) {
                (Ok(()), Some(tunnel)) => After::Tunnel(Box::new(tunnel)),
                _ => {
                    self.caller.entry.ends_for(reason::CLIENT_GONE, None);
                    After::Close
                }
            };
        }
        let body = if coding == Coding::Empty {
            without(body)
        } else {
            body
        };
        if let Err(broken) = self.write_body(body, coding, asked, waits).await {
            let (word, detail) = end_of(&broken);
            self.caller.entry.ends_for(word, detail);
            return After::Close;
        }
        // Who still sends this request's body elsewhere must not take the next one's for it.
        self.wire.borrow_mut().disown();
        let unread = !self.wire.borrow().body_is_done();
        match (close, unread) {
            (false, false) => After::Next,
            (false, true) if self.drained(waits).await => After::Next,
            // The client may have sent more by now: a socket closed with bytes unread is reset, which may overtake
            // the answer.
            (_, _) => {
                self.caller.entry.ends_for(self.end_of_well(), None);
                After::Linger
            }
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

    /// Writes the body; whatever goes wrong now can only be told by breaking off.
    async fn write_body<E: Future<Output = ()>>(
        &mut self,
        body: ReplyBody,
        coding: Coding,
        asked: &Asked,
        waits: &mut Waits<'_, E>,
    ) -> Result<(), Unwritten> {
        let mut outgoing = Outgoing::new(&self.wire, body, coding);
        let mut written = 0;
        let mut blocked_until = None;
        poll_fn(|cx| {
            match outgoing.poll(cx) {
                Poll::Ready(done) => return Poll::Ready(done),
                Poll::Pending => {}
            }
            let wire = &mut *self.wire.borrow_mut();
            if !wire.has_output() {
                blocked_until = None;
                if asked.has_gone(wire, cx) {
                    return Poll::Ready(Err(Unwritten::Io(io::ErrorKind::BrokenPipe.into())));
                }
                return Poll::Pending;
            }
            // The client has to take something of its answer now and then.
            if wire.written() != written {
                written = wire.written();
                blocked_until = None;
            }
            let due =
                *blocked_until.get_or_insert_with(|| Instant::now() + self.settings.limits.idle);
            ready!(waits.poll_until(cx, due));
            counter!("starling_client_faults_total").increment(1);
            Poll::Ready(Err(Unwritten::Io(io::ErrorKind::TimedOut.into())))
        })
        .await
    }

    /// Why it ends after an answer that was written whole.
    fn end_of_well(&self) -> &'static str {
        let Caller { worker, entry, .. } = &self.caller;
        if worker.phase() != Phase::Open {
            reason::LEAVING
        } else if entry.is_over_age(worker.clock.now()) {
            reason::OLD
        } else {
            reason::DONE
        }
    }

    async fn refuse_fault<E: Future<Output = ()>>(
        &mut self,
        fault: Fault,
        waits: &mut Waits<'_, E>,
    ) -> After {
        tracing::debug!(%fault, "a request was refused unread");
        let cause = match fault {
            Fault::Malformed(_) => Cause::BadRequest,
            Fault::LineTooLong => Cause::UriTooLong,
            Fault::TooLarge => Cause::HeadersTooLarge,
        };
        self.refuse(cause, waits).await
    }

    /// Answers what was not understood, and ends: nobody knows where the next request would begin.
    async fn refuse<E: Future<Output = ()>>(
        &mut self,
        cause: Cause,
        waits: &mut Waits<'_, E>,
    ) -> After {
        (self.caller.entry).ends_for(reason::CLIENT_FAULT, Some(cause.line().flag.to_owned()));
        counter!("starling_client_faults_total").increment(1);
        counter!("starling_requests_refused_total", "flag" => cause.line().flag).increment(1);
        let asked = Asked {
            meaning: Meaning {
                framing: Framing::Empty,
                keep_alive: false,
                expects_continue: false,
                there: Present::default(),
            },
            version: Version::HTTP_11,
            is_head: false,
            is_connect: false,
            may_leave: true,
        };
        self.wire.borrow_mut().begin_body(Framing::Empty, false);
        let answer = reply(cause, false, &self.caller.worker.settings().node, None);
        match self.answer(answer, &asked, waits).await {
            After::Close => After::Linger,
            after => after,
        }
    }

    /// Reads a short body that nobody wanted, so that the connection can be kept; whether that succeeded.
    async fn drained<E: Future<Output = ()>>(&mut self, waits: &mut Waits<'_, E>) -> bool {
        let ends = Instant::now() + UNWANTED;
        let mut left = DRAINED_BYTES_MAX;
        poll_fn(|cx| {
            loop {
                match self.wire.borrow_mut().poll_body(cx) {
                    Poll::Pending => break,
                    Poll::Ready(None) => return Poll::Ready(true),
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                    Poll::Ready(Some(Ok(frame))) => {
                        let size = frame.data_ref().map_or(0, Bytes::len);
                        match left.checked_sub(size) {
                            Some(rest) => left = rest,
                            None => return Poll::Ready(false),
                        }
                    }
                }
            }
            ready!(waits.poll_until(cx, ends));
            Poll::Ready(false)
        })
        .await
    }

    /// Ends our direction and reads on for a moment: a socket closed with bytes unread is reset, and a reset may
    /// overtake the answer.
    async fn linger<E: Future<Output = ()>>(self, waits: &mut Waits<'_, E>) {
        let ends = Instant::now() + UNWANTED;
        let mut left = UNWANTED_BYTES_MAX;
        let mut shut = false;
        poll_fn(|cx| {
            let wire = &mut *self.wire.borrow_mut();
            if !shut {
                shut = match wire.poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => false,
                };
            }
            loop {
                let unread = wire.input().len();
                wire.consume(unread);
                match wire.poll_fill(cx) {
                    Poll::Ready(Ok(count)) if count > 0 && count <= left => left -= count,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            waits.poll_until(cx, ends)
        })
        .await;
    }
}

/// What a request said of itself that its answer depends on.
struct Asked {
    meaning: Meaning,
    version: Version,
    is_head: bool,
    is_connect: bool,
    /// What follows may be another protocol, so the end of the client's direction is none of the request.
    may_leave: bool,
}

impl Asked {
    /// Whether the client has gone, looked at only where nothing else reads its bytes.
    fn has_gone(&self, wire: &mut super::wire::Wire, cx: &mut Context<'_>) -> bool {
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

/// Why a connection ends whose answer was not written whole.
fn end_of(broken: &Unwritten) -> (&'static str, Option<String>) {
    match broken {
        Unwritten::Io(error) if error.kind() == io::ErrorKind::TimedOut => (
            reason::CLIENT_FAULT,
            Some("it left an answer unread".to_owned()),
        ),
        Unwritten::Io(_) => (reason::CLIENT_GONE, None),
        Unwritten::Source(error) => (reason::ENDPOINT_BROKE, Some(error.to_string())),
        Unwritten::Length => (reason::ENDPOINT_BROKE, None),
    }
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
