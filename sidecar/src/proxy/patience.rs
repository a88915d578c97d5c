//! How long a client connection of HTTP/2 may rest, and leave unread what we have for it.
//!
//! One timer per connection, moved only when it goes off.
//!
//! Not here: the same for HTTP/1, where heads have a time too (`http1/server.rs`), and time limits of the answer
//! (`body.rs`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_core::moment::Moment;
use tokio::time::sleep_until;

use super::connections::UnderWay;
use crate::clock::Clock;

/// How long a client may take to send a request's head.
pub const HEAD_READ: Duration = Duration::from_secs(10);
/// How long a client connection may rest between requests and before the first, and leave an answer unread.
pub const CLIENT_IDLE: Duration = Duration::from_secs(300);

/// What one client connection is doing. Shared by its writes, its requests and its watch.
#[derive(Debug)]
pub struct Patience {
    clock: Clock,
    answering: AtomicU32,
    idle_since: AtomicU64,
    /// Since when the client has taken no byte of what we have for it; 0: it takes them.
    blocked_since: AtomicU64,
}

/// Which patience has run out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RanOut {
    /// Nothing was asked for too long.
    Idle,
    /// The client took nothing of its answer for too long.
    Blocked,
}

/// One request being answered, until dropped.
#[derive(Debug)]
pub struct Answering {
    patience: Arc<Patience>,
    _listed: UnderWay,
}

impl Patience {
    /// A connection at rest.
    pub fn new(clock: Clock) -> Arc<Patience> {
        Arc::new(Patience {
            clock,
            answering: AtomicU32::new(0),
            idle_since: AtomicU64::new(clock.now().as_nanos()),
            blocked_since: AtomicU64::new(0),
        })
    }

    /// A write was taken (`true`) or has to wait for the client.
    pub fn wrote(&self, taken: bool) {
        let blocked_since = self.blocked_since.load(Relaxed);
        if taken && blocked_since != 0 {
            self.blocked_since.store(0, Relaxed);
        } else if !taken && blocked_since == 0 {
            self.blocked_since
                .store(self.clock.now().as_nanos().max(1), Relaxed);
        }
    }

    /// A whole head came in; its answer has ended when the result is dropped.
    pub fn answer(self: &Arc<Patience>, listed: UnderWay) -> Answering {
        self.answering.fetch_add(1, Relaxed);
        Answering {
            patience: Arc::clone(self),
            _listed: listed,
        }
    }

    /// Ready when the client has dawdled too long.
    pub async fn run_out(&self) -> RanOut {
        loop {
            let now = self.clock.now();
            let (due, what) = self.due(now);
            if due <= now {
                return what;
            }
            // A write that blocks meanwhile must be noticed in its time.
            let look = due.min(now + HEAD_READ);
            sleep_until(self.clock.instant(look)).await;
        }
    }

    fn due(&self, now: Moment) -> (Moment, RanOut) {
        let blocked_since = self.blocked_since.load(Relaxed);
        if blocked_since > 0 {
            (
                Moment::from_nanos(blocked_since) + CLIENT_IDLE,
                RanOut::Blocked,
            )
        } else if self.answering.load(Relaxed) > 0 {
            (now + HEAD_READ, RanOut::Idle)
        } else {
            (
                Moment::from_nanos(self.idle_since.load(Relaxed)) + CLIENT_IDLE,
                RanOut::Idle,
            )
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let patience = &self.patience;
        if patience.answering.fetch_sub(1, Relaxed) == 1 {
            patience
                .idle_since
                .store(patience.clock.now().as_nanos(), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::*;
    use crate::proxy::{connections::Connections, transport::Transport};

    /// A request under way on a connection of its own.
    fn listed() -> UnderWay {
        let (pipe, _) = tokio::io::duplex(1);
        let connections = Connections::new(Clock::new());
        UnderWay::on(&connections.client(Transport::Pipe(pipe), None, None, CLIENT_IDLE))
    }

    #[tokio::test(start_paused = true)]
    async fn rest_has_five_minutes() {
        let patience = Patience::new(Clock::new());
        let began = Instant::now();
        assert_eq!(patience.run_out().await, RanOut::Idle);
        assert_eq!(began.elapsed().as_secs(), CLIENT_IDLE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_must_be_taken() {
        let patience = Patience::new(Clock::new());
        let _answering = patience.answer(listed());
        patience.wrote(false);
        patience.wrote(true);
        patience.wrote(false);
        let began = Instant::now();
        assert_eq!(patience.run_out().await, RanOut::Blocked);
        assert_eq!(began.elapsed().as_secs(), CLIENT_IDLE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_as_long_as_it_likes() {
        let patience = Patience::new(Clock::new());
        let answering = patience.answer(listed());
        let watch = tokio::spawn({
            let patience = Arc::clone(&patience);
            async move { patience.run_out().await }
        });
        advance(Duration::from_secs(3600)).await;
        tokio::task::yield_now().await;
        assert!(!watch.is_finished());
        let ended = Instant::now();
        drop(answering);
        assert_eq!(watch.await.unwrap(), RanOut::Idle);
        assert!(ended.elapsed() >= CLIENT_IDLE);
    }
}
