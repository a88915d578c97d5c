//! One frame looked at behind the head of an answer of gRPC, before the head goes on: trailers that come without a message
//! may say that the call failed, and then it can still be made elsewhere.
//!
//! Not here: whether it is (`mesh_core::retry`), and whose calls are worth the look (`send.rs`).

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use mesh_core::outcome::Outcome;
use tokio::time::{Instant, timeout_at};

use super::{
    body::{BodyError, Inflow},
    reply_body::grpc_outcome,
};

/// How long a head waits for what follows it. A server that has failed says so in the same breath, so this need only
/// outlast its scheduler and what the network scatters; one that streams may have nothing to say for hours behind its
/// head, and its client is not to notice the wait.
pub const LOOK_MAX: Duration = Duration::from_millis(20);

/// A body whose first frame was looked at, and stands in front of the rest as it came.
#[derive(Debug)]
pub struct Ahead {
    /// Until it is read.
    front: Option<Result<Frame<Bytes>, BodyError>>,
    /// How long the body is with it.
    hint: SizeHint,
    rest: Inflow,
}

/// Waits for a body's first frame, until then at most. Yields the whole body, and the outcome if trailers that tell one are
/// all there is.
pub async fn look(mut body: Inflow, until: Instant) -> (Inflow, Option<Outcome>) {
    let hint = body.size_hint();
    let first = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
    let Ok(Some(frame)) = timeout_at(until, first).await else {
        return (body, None);
    };
    let trailers = frame.as_ref().ok().and_then(Frame::trailers_ref);
    let told = trailers.and_then(grpc_outcome);
    let ahead = Ahead {
        front: Some(frame),
        hint,
        rest: body,
    };
    (Inflow::Ahead(Box::new(ahead)), told)
}

impl Ahead {
    /// The body behind what was looked at: it knows how everything was spelled.
    pub fn rest_mut(&mut self) -> &mut Inflow {
        &mut self.rest
    }

    /// Its next piece.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.front.take() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    /// Whether it has ended.
    pub fn is_end_stream(&self) -> bool {
        self.front.is_none() && self.rest.is_end_stream()
    }

    /// How long it is.
    pub fn size_hint(&self) -> SizeHint {
        match self.front {
            // What the rest says now leaves the front out, trailers even as if there were none.
            Some(_) => self.hint,
            None => self.rest.size_hint(),
        }
    }
}
