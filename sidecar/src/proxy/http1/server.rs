//! One client connection of HTTP/1: head in, answer out, in order, until one side has had enough.
//!
//! Not here: how an answer is written (`server/exchange.rs`), and what it is (`front.rs`, `forward.rs`). One request at a
//! time is under way; what a client sends ahead waits in its socket. A connection that rests costs a task, a timer and no
//! buffer.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Version};
use metrics::counter;
use tokio::time::Instant;
use tower::Service;

use self::exchange::{Asked, Exchange, Stage};
use super::{
    encode::Unwritten,
    head::{self, Bounds, Fault, Framing, Meaning},
    incoming::Received,
    wire::{Raw, SharedWire, Wire},
};
use crate::proxy::{
    body::Inflow,
    connections::reason,
    front::{Caller, Guarding, Stack, stack},
    headers,
    patience::Timer,
    present::Present,
    reply::{Cause, reply},
    reply_body::{ReplyBody, Tunnel},
    transport::Transport,
    tunnel,
    worker::{Phase, Settings},
};

mod exchange;

/// How much of a request that nobody wants any more is read, so that its sender sees the answer before the end.
const UNWANTED_BYTES_MAX: usize = 256 * 1024;
/// How long that may take.
const UNWANTED: Duration = Duration::from_secs(1);
/// Bytes of an unwanted body for which it pays to keep the connection.
const DRAINED_BYTES_MAX: usize = 64 * 1024;

/// Serves the client at the other end of `wire`, some of whose first bytes may have been read; `head_ends`: then its
/// first head must have come.
///
/// What waits here is held by every connection that rests: what is large and seldom needed is boxed, and what is only
/// handed on stays out of it.
pub async fn serve(
    caller: &Caller,
    wire: &SharedWire,
    timer: &mut Timer<'_>,
    head_ends: Option<Instant>,
) {
    let mut conversation = Conversation {
        wire,
        settings: caller.worker.settings(),
        stack: stack(caller.clone()),
        caller,
        head_ends,
        timer,
    };
    loop {
        match conversation.turn().await {
            After::Next => caller.entry.ended(),
            After::Close => return,
            After::Linger => return conversation.linger().await,
            After::Tunnel(tunnel) => {
                return Box::pin(tunnel::upgraded(Raw(Rc::clone(wire)), *tunnel)).await;
            }
        }
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
    Tunnel(Box<Tunnel>),
}

/// What came instead of, or as, a head.
enum Heard {
    Head(Bytes),
    Fault(Fault),
    TooSlow,
    /// Nothing more, and why.
    End(&'static str),
}

struct Conversation<'a, 't> {
    wire: &'a SharedWire,
    caller: &'a Caller,
    stack: Stack,
    /// As they were when it began.
    settings: Arc<Settings>,
    /// When the head that has begun must have come; `None`: none was waited for.
    head_ends: Option<Instant>,
    timer: &'a mut Timer<'t>,
}

impl Conversation<'_, '_> {
    /// One request and its answer.
    async fn turn(&mut self) -> After {
        let heard = self.head().await;
        let mut exchange = match self.begin(heard) {
            Some(exchange) => exchange,
            None => return After::Close,
        };
        let sent = poll_fn(|cx| self.poll_exchange(cx, &mut exchange)).await;
        let asked = &exchange.asked;
        if let Err(broken) = sent {
            let (word, detail) = end_of(&broken);
            self.caller.entry.ends_for(word, detail);
            return asked.after_cut();
        }
        let Stage::Sending(sending) = &mut exchange.stage else {
            return After::Close;
        };
        if sending.leaves {
            return match sending.body.replace_body(ReplyBody::empty()).into_tunnel() {
                Some(tunnel) => After::Tunnel(Box::new(tunnel)),
                None => {
                    self.caller.entry.ends_for(reason::CLIENT_GONE, None);
                    After::Close
                }
            };
        }
        // Who still sends this request's body elsewhere must not take the next one's for it.
        self.wire.borrow_mut().disown();
        let unread = !self.wire.borrow().body_is_done();
        match (sending.close, unread) {
            (false, false) => After::Next,
            (false, true) if self.drained().await => After::Next,
            (true, false) if asked.is_last && !self.is_tls() && self.wire.borrow_mut().rests() => {
                self.caller.entry.ends_for(self.end_of_well(), None);
                After::Close
            }
            // The client may have sent more by now: a socket closed with bytes unread is reset, which may overtake
            // the answer.
            (_, _) => {
                self.caller.entry.ends_for(self.end_of_well(), None);
                After::Linger
            }
        }
    }

    /// Sends what was heard on its way; `None`: nothing was.
    fn begin(&mut self, heard: Heard) -> Option<Exchange> {
        let fault = match heard {
            Heard::Head(head) => match self.begin_request(&head) {
                Ok(exchange) => return Some(exchange),
                Err(fault) => fault,
            },
            Heard::Fault(fault) => fault,
            Heard::TooSlow => return Some(self.refuse(Cause::HeadTooSlow)),
            Heard::End(reason) => {
                self.caller.entry.ends_for(reason, None);
                return None;
            }
        };
        tracing::debug!(%fault, "a request was refused unread");
        Some(self.refuse(match fault {
            Fault::Malformed(_) => Cause::BadRequest,
            Fault::LineTooLong => Cause::UriTooLong,
            Fault::TooLarge => Cause::HeadersTooLarge,
        }))
    }

    fn begin_request(&mut self, head: &Bytes) -> Result<Exchange, Fault> {
        let map = self.caller.worker.buffers.map();
        let (request, meaning, spelling) = head::request(head, self.bounds(), map)?;
        self.caller.entry.begins(0);
        self.wire
            .borrow_mut()
            .begin_body(meaning.framing, meaning.keep_alive);
        let is_connect = request.method() == Method::CONNECT;
        if is_connect && meaning.framing != Framing::Empty {
            return Err(Fault::Malformed("a body behind CONNECT"));
        }
        let asked = Asked {
            is_last: !meaning.keep_alive,
            meaning,
            version: request.version(),
            is_head: request.method() == Method::HEAD,
            is_connect,
            may_leave: is_connect
                || (meaning.there.has(Present::UPGRADE) && headers::is_upgrade(request.headers())),
            is_refused: false,
        };
        let received = Received::new(self.wire, spelling, None);
        let request = request.map(|()| Inflow::Http1(received));
        Ok(Exchange {
            asked,
            stage: Stage::Answering(self.stack.call(request)),
        })
    }

    /// Answers what was not understood, and ends: nobody knows where the next request would begin.
    fn refuse(&self, cause: Cause) -> Exchange {
        (self.caller.entry).ends_for(reason::CLIENT_FAULT, Some(cause.line().flag.to_owned()));
        counter!("starling_client_faults_total").increment(1);
        counter!("starling_requests_refused_total", "flag" => cause.line().flag).increment(1);
        self.wire.borrow_mut().begin_body(Framing::Empty, false);
        let answer = reply(cause, false, &self.caller.worker.settings().node, None);
        Exchange {
            asked: Asked {
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
                is_last: false,
                is_refused: true,
            },
            stage: Stage::Answering(Guarding::Refused(Some(Box::new(answer)))),
        }
    }

    /// Waits for a request's head.
    async fn head(&mut self) -> Heard {
        let mut seen = 0;
        let limits = &self.settings.limits;
        let (rest_ends, head) = (Instant::now() + limits.idle, limits.head);
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
            if self.caller.worker.is_ending(cx, &self.caller.entry) && !begun {
                return Poll::Ready(Heard::End(reason::LEAVING));
            }
            let due = if begun {
                *head_ends.get_or_insert_with(|| Instant::now() + head)
            } else {
                rest_ends
            };
            ready!(self.timer.poll_until(cx, due));
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
    fn take(&self, wire: &mut Wire, seen: usize) -> Result<Option<Bytes>, Fault> {
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

    /// Whether its end has to be said inside TLS too: without that an answer that ends with its connection was cut
    /// short (RFC 9112, 9.8).
    fn is_tls(&self) -> bool {
        let is_tls = self.caller.entry.carrier(Transport::is_tls);
        is_tls.unwrap_or(false)
    }

    /// Why it ends after an answer that was written whole.
    fn end_of_well(&self) -> &'static str {
        let Caller { worker, entry, .. } = self.caller;
        if worker.phase() != Phase::Open {
            reason::LEAVING
        } else if entry.is_over_age(worker.clock.now()) {
            reason::OLD
        } else {
            reason::DONE
        }
    }

    /// Reads a short body that nobody wanted, so that the connection can be kept; whether that succeeded.
    async fn drained(&mut self) -> bool {
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
            ready!(self.timer.poll_until(cx, ends));
            Poll::Ready(false)
        })
        .await
    }

    /// Ends our direction and reads on for a moment: a socket closed with bytes unread is reset, and a reset may
    /// overtake the answer.
    async fn linger(&mut self) {
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
            self.timer.poll_until(cx, ends)
        })
        .await;
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
