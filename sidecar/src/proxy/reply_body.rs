//! The answer's body on its way to the client, which reports its end, or the tunnel that follows the answer.
//!
//! Not here: how it comes in (`body.rs`), heads (`headers.rs`) and how a tunnel's bytes are relayed (`tunnel.rs`).
//! Nothing is buffered; back-pressure passes through.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};
use mesh_core::{
    moment::Moment,
    outcome::{Outcome, Unreachable},
};
use tokio::time::{Sleep, sleep_until};

use super::{
    attempt::Attempt,
    body::{BodyError, Inflow},
    http1::{encode::Spelled, head::Spelling, wire::Raw},
    http2::stream::Stream,
    patience::{Answering, poll_until},
    pool::Idle,
    tally::Tally,
    worker::Admission,
};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The answer's body.
pub struct ReplyBody {
    kind: Kind,
    spelling: Option<Spelling>,
    last: bool,
    tally: Option<Tally>,
    answering: Option<Answering>,
}

/// What follows an answer that left HTTP: bytes both ways, between the client and this endpoint.
pub struct Tunnel {
    /// The endpoint's end.
    pub endpoint: Exit,
    /// The account, open until the tunnel closes.
    pub settle: Settle,
    /// Longest silence.
    pub idle: Duration,
}

/// How bytes get to an endpoint that left HTTP.
pub enum Exit {
    /// Its whole connection.
    Connection(Raw),
    /// One stream of a connection of HTTP/2.
    Stream(Box<Stream>),
}

enum Kind {
    Empty,
    Full(Option<Bytes>),
    Stream(Box<Streaming>),
    Tunnel(Box<Tunnel>),
}

/// An answer on its way from an endpoint to the client.
pub struct Streaming {
    incoming: Inflow,
    settle: Option<Settle>,
    idle: Duration,
    deadline: Option<Moment>,
    /// When it last moved on; known once it has had to wait.
    progress: Moment,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What is due when the answer's body has ended: the account closed, the connection put back, the place given up.
pub struct Settle {
    /// The try that brought the answer.
    pub attempt: Attempt,
    /// The HTTP/1 connection it came over.
    pub connection: Option<Idle>,
    /// The request's place under the upstream's limit.
    pub admission: Admission,
}

/// How long an answer's body may take.
#[derive(Clone, Copy, Debug)]
pub struct BodyTime {
    /// Longest silence.
    pub idle: Duration,
    /// The request's deadline; `None` for streams.
    pub deadline: Option<Moment>,
}

impl ReplyBody {
    /// Nothing.
    pub fn empty() -> ReplyBody {
        ReplyBody {
            kind: Kind::Empty,
            spelling: None,
            last: false,
            tally: None,
            answering: None,
        }
    }

    /// All of it at once.
    pub fn full(bytes: Bytes) -> ReplyBody {
        ReplyBody {
            kind: Kind::Full(Some(bytes)),
            spelling: None,
            last: false,
            tally: None,
            answering: None,
        }
    }

    /// An endpoint's answer, as it comes.
    pub fn streaming(incoming: Inflow, settle: Settle, time: BodyTime) -> ReplyBody {
        if incoming.is_end_stream() {
            settle.done(None);
            return ReplyBody::empty();
        }
        let streaming = Streaming {
            incoming,
            settle: Some(settle),
            idle: time.idle,
            deadline: time.deadline,
            progress: Moment::START,
            timer: None,
        };
        ReplyBody {
            kind: Kind::Stream(Box::new(streaming)),
            spelling: None,
            last: false,
            tally: None,
            answering: None,
        }
    }

    /// Nothing, and then another protocol.
    pub fn tunnel(tunnel: Tunnel) -> ReplyBody {
        let mut reply = ReplyBody::empty();
        reply.kind = Kind::Tunnel(Box::new(tunnel));
        reply
    }

    /// The tunnel that follows the answer, if one does; its account closes with the head.
    pub fn into_tunnel(mut self) -> Option<Tunnel> {
        match std::mem::replace(&mut self.kind, Kind::Empty) {
            Kind::Tunnel(tunnel) => Some(*tunnel),
            _ => None,
        }
    }

    /// Whether the answer is followed by a tunnel.
    pub fn is_tunnel(&self) -> bool {
        matches!(self.kind, Kind::Tunnel(_))
    }

    /// Lets no other answer follow on an HTTP/1 connection: its client says what cannot be understood.
    pub fn last(mut self) -> ReplyBody {
        self.last = true;
        self
    }

    /// Whether no other answer may follow on an HTTP/1 connection.
    pub fn is_last(&self) -> bool {
        self.last
    }

    /// Says how the endpoint spelled the head.
    pub fn spelled(mut self, spelling: Option<Spelling>) -> ReplyBody {
        self.spelling = spelling;
        self
    }

    /// How the endpoint spelled the head, if that is known; once.
    pub fn take_spelling(&mut self) -> Option<Spelling> {
        self.spelling.take()
    }

    /// Closes `tally` when this body has ended.
    pub fn counted(mut self, tally: Tally) -> ReplyBody {
        self.tally = Some(tally);
        self
    }

    /// Keeps the client connection busy until this body is gone.
    pub fn served(mut self, answering: Answering) -> ReplyBody {
        self.answering = Some(answering);
        self
    }

    fn ended(&mut self) {
        if let Some(tally) = self.tally.take() {
            tally.done();
        }
    }
}

impl Settle {
    /// The body ended well, with these trailers if there were any.
    fn done(self, trailers: Option<&HeaderMap>) {
        let Settle {
            mut attempt,
            connection,
            admission,
        } = self;
        attempt.over(trailers.and_then(grpc_outcome));
        if let Some(connection) = connection {
            let worker = Rc::clone(attempt.worker());
            let now = worker.clock.now();
            worker.pool.borrow_mut().put(connection, now);
        }
        drop(admission);
    }
}

/// The outcome that `grpc-status` tells, in the headers of a trailers-only answer or in trailers.
pub fn grpc_outcome(headers: &HeaderMap) -> Option<Outcome> {
    let code = headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()?;
    Some(Outcome::of_grpc(code))
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match &mut self.kind {
            Kind::Empty | Kind::Tunnel(_) => None,
            Kind::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Kind::Stream(streaming) => ready!(streaming.poll(cx)),
        };
        match &frame {
            Some(Err(error)) => {
                let flag = match error {
                    BodyError::TimedOut => "UT",
                    BodyError::Malformed(_) => "UPE",
                    _ => "UC",
                };
                if let Some(tally) = &mut self.tally {
                    tally.broke(flag);
                }
                self.ended();
            }
            Some(Ok(_)) if self.is_end_stream() => self.ended(),
            Some(Ok(_)) => {}
            None => self.ended(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty | Kind::Tunnel(_) => true,
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Stream(streaming) => streaming.settle.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty | Kind::Tunnel(_) => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Stream(streaming) => streaming.incoming.size_hint(),
        }
    }
}

impl Spelled for ReplyBody {
    fn spelling_of_trailers(&mut self) -> Option<Spelling> {
        match &mut self.kind {
            Kind::Stream(streaming) => streaming.incoming.take_spelling(),
            Kind::Empty | Kind::Full(_) | Kind::Tunnel(_) => None,
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        // Nobody polls a body that says at once that it is over, nor one that answers HEAD.
        if self.is_end_stream() || matches!(self.kind, Kind::Full(_)) {
            self.ended();
        }
    }
}

impl Streaming {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Pending => {
                ready!(self.poll_time(cx));
                self.fail(Unreachable::AnswerTimedOut);
                Poll::Ready(Some(Err(BodyError::TimedOut)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                if self.timer.is_some()
                    && let Some(settle) = &self.settle
                {
                    self.progress = settle.attempt.worker().clock.now();
                }
                if frame.is_trailers() || self.incoming.is_end_stream() {
                    self.finish(frame.trailers_ref());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.fail(match error {
                    BodyError::Malformed(_) => Unreachable::Garbled,
                    _ => Unreachable::Broken,
                });
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.finish(None);
                Poll::Ready(None)
            }
        }
    }

    fn finish(&mut self, trailers: Option<&HeaderMap>) {
        if let Some(settle) = self.settle.take() {
            settle.done(trailers);
        }
    }

    fn fail(&mut self, why: Unreachable) {
        if let Some(mut settle) = self.settle.take() {
            settle.attempt.failed(Outcome::Unreachable(why));
        }
    }

    /// Ready when the body's time is over. A timer is made only once the body has to wait, and moved only when it
    /// goes off, so that a body that flows costs no timer at all.
    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(settle) = &self.settle else {
            return Poll::Pending;
        };
        let clock = settle.attempt.worker().clock;
        if self.timer.is_none() {
            // Until now it never had to wait.
            self.progress = clock.now();
        }
        let silence_ends = self.progress + self.idle;
        let due = self
            .deadline
            .map_or(silence_ends, |deadline| deadline.min(silence_ends));
        let due = clock.instant(due);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        poll_until(timer.as_mut(), cx, due)
    }
}
