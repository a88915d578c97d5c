//! The request's body on its way to endpoints, with a bounded replay for another try.
//!
//! Not here: how it comes in (`body.rs`), and whether there is another try (`mesh_core::retry`). Nothing is buffered
//! beyond the replay; back-pressure passes through.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::{
    body::{BodyError, Inflow},
    http1::{encode::Spelled, head::Spelling},
};

/// Bytes of a request's body kept for another try; a longer one is not repeated once sent.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;

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
