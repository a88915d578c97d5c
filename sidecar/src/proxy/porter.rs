//! The path's future, kept from request to request: it is large, and to make room for it each time costs more than
//! much of what it does.
//!
//! Not here: the path itself (`forward.rs`).

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use http::{Method, Request, Response};

use super::{
    body::Inflow, connect::connect, extended, forward::forward, front::Caller,
    reply_body::ReplyBody,
};

/// Porters that a worker keeps for the next requests; more are made when more requests are under way.
const SPARE_MAX: usize = 1024;
/// Those that it keeps though no request has needed them lately.
const IDLE_MAX: usize = 16;

/// A worker's porters that carry nothing now.
#[derive(Default)]
pub struct Porters {
    spare: RefCell<Vec<Porter>>,
    /// The fewest there were since they were last looked through: so many were not needed.
    fewest: Cell<usize>,
}

/// Carries one request after another down the path, and its answer back.
struct Porter {
    hands: Rc<Hands>,
    /// Never over.
    walk: Pin<Box<dyn Future<Output = ()>>>,
}

/// What a porter is given and what it brings.
#[derive(Default)]
struct Hands {
    request: Cell<Option<(Caller, Request<Inflow>)>>,
    answer: Cell<Option<Response<ReplyBody>>>,
}

impl Porters {
    /// Sends a request on its way.
    pub fn send(&self, caller: Caller, request: Request<Inflow>) -> Carrying {
        let kept = {
            let spare = &mut *self.spare.borrow_mut();
            let kept = spare.pop();
            self.fewest.set(self.fewest.get().min(spare.len()));
            kept
        };
        let porter = kept.unwrap_or_else(Porter::new);
        let home = Rc::clone(&caller.worker.porters);
        porter.hands.request.set(Some((caller, request)));
        Carrying {
            porter: Some(porter),
            home,
        }
    }

    fn take(&self, porter: Porter) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_MAX {
            spare.push(porter);
        }
    }

    /// Lets go of porters that have carried nothing since the last time; called once a second.
    pub fn sweep(&self) {
        let spare = &mut *self.spare.borrow_mut();
        let idle = self.fewest.get().saturating_sub(IDLE_MAX);
        spare.truncate(spare.len().saturating_sub(idle));
        self.fewest.set(spare.len());
    }
}

impl Porter {
    fn new() -> Porter {
        let hands = Rc::<Hands>::default();
        let walk = walk(Rc::clone(&hands));
        Porter {
            hands,
            walk: Box::pin(walk),
        }
    }
}

async fn walk(hands: Rc<Hands>) {
    loop {
        let (caller, request) = poll_fn(|_| match hands.request.take() {
            Some(given) => Poll::Ready(given),
            None => Poll::Pending,
        })
        .await;
        let answer = if let Some(protocol) = extended::protocol_of(&request) {
            // Seldom, so it has no part in the room that every request takes.
            Box::pin(extended::connect(&caller, protocol, request)).await
        } else if request.method() == Method::CONNECT {
            connect(&caller, &request).await
        } else {
            forward(&caller, request).await
        };
        hands.answer.set(Some(answer));
    }
}

/// A request under way; its answer, once it is there. Dropped before, it is broken off, and its porter with it.
pub struct Carrying {
    porter: Option<Porter>,
    home: Rc<Porters>,
}

impl Future for Carrying {
    type Output = Result<Response<ReplyBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(porter) = &mut self.porter else {
            return Poll::Pending;
        };
        // It says nothing when it comes back: what it brings is in its hands.
        let _ = porter.walk.as_mut().poll(cx);
        let Some(answer) = porter.hands.answer.take() else {
            return Poll::Pending;
        };
        if let Some(porter) = self.porter.take() {
            self.home.take(porter);
        }
        Poll::Ready(Ok(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a request's way through the sidecar takes in memory, in bytes; kept for each that is under way.
    const WALK_BYTES_MAX: usize = 4 * 1024;

    #[test]
    fn a_request_under_way_takes_little_room() {
        let walk = walk(Rc::default());
        let bytes = size_of_val(&walk);
        println!("{bytes} B");
        assert!(bytes <= WALK_BYTES_MAX, "{bytes} B");
    }
}
