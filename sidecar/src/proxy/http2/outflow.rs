//! A message's body on its way out by a stream of HTTP/2, as fast as the other side takes it.
//!
//! Not here: where the body comes from (`request_body.rs`, `reply_body.rs`).

use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::proxy::{body::BodyError, patience::poll_until};

/// A body and the stream it leaves by.
pub struct Outflow<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Read, and waiting for room in the other side's window; `true`: nothing follows.
    held: Option<(Bytes, bool)>,
    has_begun: bool,
    unread: Unread,
}

/// The least that the other side has to take of a body in the time that it may leave one unread: whoever opens its window
/// by a byte now and then would have it for ever.
const TAKEN_BYTES_MIN: usize = 64 * 1024;

/// How long the other side may leave pieces unread that wait for its window.
struct Unread {
    max: Option<Duration>,
    /// When it has been left too long; `None`: nothing waits.
    due: Option<Instant>,
    /// How long pieces have waited since enough was taken, and what was taken meanwhile.
    waited: Duration,
    taken_bytes: usize,
    /// Made once something has to wait, and moved only when it goes off.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Unread {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(max) = self.max else {
            return Poll::Pending;
        };
        let left = max.saturating_sub(self.waited);
        let due = *self.due.get_or_insert_with(|| Instant::now() + left);
        let timer = (self.timer).get_or_insert_with(|| Box::pin(sleep_until(due)));
        poll_until(timer.as_mut(), cx, due)
    }

    /// A piece that waited, or would have, has found room.
    fn taken(&mut self, bytes: usize) {
        if let (Some(due), Some(max)) = (self.due.take(), self.max) {
            self.waited = max.saturating_sub(due.saturating_duration_since(Instant::now()));
        }
        self.taken_bytes += bytes;
        if self.taken_bytes >= TAKEN_BYTES_MIN {
            (self.waited, self.taken_bytes) = (Duration::ZERO, 0);
        }
    }
}

/// Why a body was not sent whole.
#[derive(Debug)]
pub enum Broken {
    /// It broke off itself, which its stream was told.
    Body(BodyError),
    /// Its stream ended: the other side wants no more of it, or is gone.
    Stream(h2::Error),
    /// The other side left it unread for too long, and its stream was ended.
    Unread,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Body(error) => error.fmt(f),
            Broken::Stream(error) => error.fmt(f),
            Broken::Unread => f.write_str("the other side left it unread for too long"),
        }
    }
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Broken {
        Broken::Stream(error)
    }
}

impl<B> Outflow<B>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    /// Sends `body` by `stream`, whose head was sent; pieces of it may wait for the other side's window for `unread_max` in
    /// all before `TAKEN_BYTES_MIN` of them are taken.
    pub fn new(body: B, stream: SendStream<Bytes>, unread_max: Option<Duration>) -> Outflow<B> {
        Outflow {
            body,
            stream,
            held: None,
            has_begun: false,
            unread: Unread {
                max: unread_max,
                due: None,
                waited: Duration::ZERO,
                taken_bytes: 0,
                timer: None,
            },
        }
    }

    /// Sends what there is and what there is room for; ready at the end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            if self.held.is_some() {
                if self.poll_room(cx)?.is_pending() {
                    ready!(self.unread.poll(cx));
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(Broken::Unread));
                }
                if let Some((data, is_last)) = self.held.take() {
                    self.unread.taken(data.len());
                    self.stream.send_data(data, is_last)?;
                    if is_last {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                // Whoever wants no more of it must not have to wait for more of it to say so.
                let reason = ready!(self.stream.poll_reset(cx))?;
                return Poll::Ready(Err(Broken::Stream(reason.into())));
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let is_last = self.body.is_end_stream();
                        self.pass(data, is_last)?;
                        if is_last && self.held.is_none() {
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Err(other) => {
                        if let Ok(trailers) = other.into_trailers() {
                            self.stream.reserve_capacity(0);
                            self.stream.send_trailers(trailers)?;
                            return Poll::Ready(Ok(()));
                        }
                    }
                },
                Some(Err(error)) => {
                    self.stream.send_reset(reason_of(&error));
                    return Poll::Ready(Err(Broken::Body(error)));
                }
                None => {
                    self.stream.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Sends a piece at once if it is the first, for most bodies have no other, and so one piece of each stream may wait
    /// in it; a later one waits for room.
    fn pass(&mut self, data: Bytes, is_last: bool) -> Result<(), h2::Error> {
        if data.is_empty() || !self.has_begun {
            self.has_begun |= !data.is_empty();
            return self.stream.send_data(data, is_last);
        }
        // No more than a byte is asked for: what one stream has asked for is kept from the others until it is used.
        self.stream.reserve_capacity(1);
        self.held = Some((data, is_last));
        Ok(())
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(room) => room?,
                None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
            };
        }
        Poll::Ready(Ok(()))
    }
}

/// What the other side is told of a body that broke off: what we were told of it, if that was by HTTP/2.
fn reason_of(error: &BodyError) -> Reason {
    if let BodyError::TooLarge = error {
        return Reason::CANCEL;
    }
    let told = error.source().and_then(|error| error.downcast_ref());
    let told = told.and_then(h2::Error::reason);
    told.unwrap_or(Reason::INTERNAL_ERROR)
}
