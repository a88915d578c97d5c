//! Bodies both ways: the request's with a bounded replay for another try, the answer's that reports its end.
//!
//! Not here: heads (`headers.rs`). Nothing is buffered beyond the replay; back-pressure passes through.

use std::{
    cell::RefCell,
    error::Error,
    fmt,
    future::poll_fn,
    io,
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
    ahead::Ahead,
    attempt::Attempt,
    http1::{
        encode::Spelled,
        head::{Fault, Spelling},
        incoming::Received,
        wire::Raw,
    },
    http2::{self, stream::Stream},
    patience::{Answering, poll_until},
    pool::Idle,
    tally::Tally,
    worker::Admission,
};

/// Bytes of a request's body kept for another try; a longer one is not repeated once sent.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

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

/// The client's body, shared by the tries that send it.
#[derive(Clone)]
pub struct Source {
    state: Rc<RefCell<SourceState>>,
}

struct SourceState {
    incoming: Inflow,
    hint: SizeHint,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// Data frames read from the client so far.
    frames: usize,
    /// Which try may read on; an earlier one may still hold its body while its answer is looked at.
    turn: u64,
    trailers: Option<HeaderMap>,
    /// How they were spelled, if that is known.
    spelling: Option<Spelling>,
    over: bool,
    lost: bool,
    client_failed: bool,
    /// Bytes that may still come; `None`: any number.
    bytes_left: Option<u64>,
    /// More came.
    is_too_large: bool,
    /// No try has begun, so whatever comes has to be kept.
    awaits_beginning: bool,
}

impl Source {
    /// `None` for a body known to be empty. One that turns out longer than `bytes_max` ends early, as the client's fault.
    pub fn new(incoming: Inflow, bytes_max: Option<u64>) -> Option<Source> {
        if incoming.is_end_stream() {
            return None;
        }
        let hint = incoming.size_hint();
        let state = SourceState {
            incoming,
            hint,
            kept: Vec::new(),
            kept_bytes: 0,
            frames: 0,
            turn: 0,
            trailers: None,
            spelling: None,
            over: false,
            lost: false,
            client_failed: false,
            bytes_left: bytes_max,
            is_too_large: false,
            awaits_beginning: false,
        };
        Some(Source {
            state: Rc::new(RefCell::new(state)),
        })
    }

    /// Whether another try can still send the whole body.
    pub fn is_replayable(&self) -> bool {
        !self.state.borrow().lost
    }

    /// Whether all of the body has come.
    pub fn is_whole(&self) -> bool {
        let state = self.state.borrow();
        !state.client_failed && (state.over || state.incoming.is_end_stream())
    }

    /// Whether anything of the body has come.
    pub fn has_begun(&self) -> bool {
        let state = self.state.borrow();
        state.frames > 0 || state.over
    }

    /// Waits until so many bytes of the body have come, or all there are, and yields them and whether they are all. Every
    /// try sends them too.
    pub async fn beginning(&self, bytes_max: usize) -> (Vec<u8>, bool) {
        poll_fn(|cx| {
            let state = &mut *self.state.borrow_mut();
            state.awaits_beginning = true;
            while state.kept_bytes < bytes_max && !state.over {
                // What failed is told to whoever sends the body.
                let _ = ready!(state.poll_next(cx));
            }
            state.awaits_beginning = false;
            let mut bytes = state.kept.concat();
            let is_whole = state.over && !state.client_failed && bytes.len() <= bytes_max;
            bytes.truncate(bytes_max);
            Poll::Ready((bytes, is_whole))
        })
        .await
    }

    /// Takes the body away from every try so far: from now on only a new one reads it.
    pub fn supersede(&self) {
        self.state.borrow_mut().turn += 1;
    }

    /// Whether more of it came than its upstream takes.
    pub fn is_too_large(&self) -> bool {
        self.state.borrow().is_too_large
    }

    /// Whether the client itself broke off its body, or made too much of it.
    pub fn client_failed(&self) -> bool {
        self.state.borrow().client_failed
    }
}

/// The body of one try.
pub enum RequestBody {
    /// None.
    Empty,
    /// The client's, from its beginning.
    Stream {
        /// Where it comes from.
        source: Source,
        /// Kept frames already sent by this try.
        sent_frames: usize,
        /// Bytes already sent by this try.
        sent_bytes: u64,
        /// Whose turn it was when this try began.
        turn: u64,
        /// Trailers sent.
        done: bool,
    },
}

impl RequestBody {
    /// A body for one more try.
    pub fn of(source: Option<&Source>) -> RequestBody {
        match source {
            None => RequestBody::Empty,
            Some(source) => RequestBody::Stream {
                source: source.clone(),
                sent_frames: 0,
                sent_bytes: 0,
                turn: source.state.borrow().turn,
                done: false,
            },
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let RequestBody::Stream {
            source,
            sent_frames,
            sent_bytes,
            turn,
            done,
        } = &mut *self
        else {
            return Poll::Ready(None);
        };
        let state = &mut *source.state.borrow_mut();
        if let Some(bytes) = state.kept.get(*sent_frames).filter(|_| !state.lost) {
            *sent_frames += 1;
            *sent_bytes += bytes.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        if *turn != state.turn {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if state.client_failed {
            let why = if state.is_too_large {
                BodyError::TooLarge
            } else {
                BodyError::ClientGone
            };
            return Poll::Ready(Some(Err(why)));
        }
        if state.lost && *sent_frames < state.frames {
            return Poll::Ready(Some(Err(BodyError::NotKept)));
        }
        if !state.over
            && let Some(frame) = ready!(state.poll_next(cx))?
        {
            *sent_frames += 1;
            *sent_bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
            return Poll::Ready(Some(Ok(frame)));
        }
        let trailers = state.trailers.clone().filter(|_| !*done);
        *done = true;
        Poll::Ready(trailers.map(|map| Ok(Frame::trailers(map))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Stream {
                source,
                sent_frames,
                done,
                ..
            } => {
                let state = source.state.borrow();
                let all_sent = state.lost || *sent_frames >= state.kept.len();
                let ended = state.over || state.incoming.is_end_stream();
                ended && all_sent && (*done || state.trailers.is_none())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Stream {
                source, sent_bytes, ..
            } => match source.state.borrow().hint.exact() {
                Some(whole) => SizeHint::with_exact(whole.saturating_sub(*sent_bytes)),
                None => SizeHint::new(),
            },
        }
    }
}

impl Spelled for RequestBody {
    fn spelling_of_trailers(&mut self) -> Option<Spelling> {
        match self {
            RequestBody::Empty => None,
            RequestBody::Stream { source, .. } => source.state.borrow().spelling.clone(),
        }
    }
}

impl SourceState {
    /// The client's next data frame, kept for another try while there is room; `None` at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, BodyError>> {
        loop {
            let Some(frame) = ready!(Pin::new(&mut self.incoming).poll_frame(cx)) else {
                self.over = true;
                return Poll::Ready(Ok(None));
            };
            let frame = frame.inspect_err(|_| {
                self.client_failed = true;
                self.over = true;
            })?;
            match frame.into_data() {
                Ok(bytes) => {
                    if !self.takes(bytes.len()) {
                        return Poll::Ready(Err(BodyError::TooLarge));
                    }
                    self.frames += 1;
                    self.keep(&bytes);
                    return Poll::Ready(Ok(Some(Frame::data(bytes))));
                }
                Err(other) => {
                    self.trailers = other.into_trailers().ok();
                    self.spelling = self.incoming.take_spelling();
                }
            }
        }
    }

    /// Whether so many more bytes are still within the limit.
    fn takes(&mut self, bytes: usize) -> bool {
        let Some(left) = self.bytes_left else {
            return true;
        };
        self.bytes_left = left.checked_sub(bytes as u64);
        self.is_too_large = self.bytes_left.is_none();
        if self.is_too_large {
            self.bytes_left = Some(0);
            self.client_failed = true;
            self.over = true;
        }
        !self.is_too_large
    }

    fn keep(&mut self, bytes: &Bytes) {
        if self.lost {
            return;
        }
        if self.awaits_beginning || self.kept_bytes + bytes.len() <= REPLAY_BYTES_MAX {
            self.kept_bytes += bytes.len();
            self.kept.push(bytes.clone());
        } else {
            self.lost = true;
            self.kept = Vec::new();
        }
    }
}

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
