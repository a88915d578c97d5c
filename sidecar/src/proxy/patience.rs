//! How long a client connection may dawdle: over a request's head, and between requests.
//!
//! hyper's own header timer also runs between requests, so it would close every idle connection after the time meant
//! for a head, and it arms a timer per request; this is one timer per connection, moved only when it goes off.
//!
//! Not here: time limits of the answer (`body.rs`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_core::moment::Moment;
use tokio::time::sleep_until;

use crate::clock::Clock;

/// How long a client may take to send a request's head.
pub const HEAD_READ: Duration = Duration::from_secs(10);
/// How long a client connection may rest between requests and before the first, and leave an answer unread.
pub const CLIENT_IDLE: Duration = Duration::from_secs(300);

/// What one client connection is doing. Shared by its reads, its requests and its watch, all on one thread; atomics
/// only because hyper wants connections that can be upgraded to be `Send`.
#[derive(Debug)]
pub struct Patience {
    clock: Clock,
    /// Heads have a beginning here; HTTP/2 sends other frames between requests.
    heads: bool,
    answering: AtomicU32,
    /// When the head now being read began; 0: none is.
    head_since: AtomicU64,
    idle_since: AtomicU64,
    /// Since when the client has taken no byte of what we have for it; 0: it takes them.
    blocked_since: AtomicU64,
}

/// Which patience has run out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RanOut {
    /// A request's head took too long.
    Head,
    /// Nothing was asked for too long.
    Idle,
    /// The client took nothing of its answer for too long.
    Blocked,
}

/// One request being answered, until dropped.
#[derive(Debug)]
pub struct Answering {
    patience: Arc<Patience>,
}

impl Patience {
    /// A connection at rest, its first bytes read already if `begun`.
    pub fn new(clock: Clock, heads: bool, begun: bool) -> Arc<Patience> {
        // A head that begins at the very start counts as beginning a nanosecond later.
        let now = clock.now().as_nanos().max(1);
        Arc::new(Patience {
            clock,
            heads,
            answering: AtomicU32::new(0),
            head_since: AtomicU64::new(if heads && begun { now } else { 0 }),
            idle_since: AtomicU64::new(now),
            blocked_since: AtomicU64::new(0),
        })
    }

    /// Bytes came in.
    pub fn read(&self) {
        if self.heads && self.answering.load(Relaxed) == 0 && self.head_since.load(Relaxed) == 0 {
            self.head_since
                .store(self.clock.now().as_nanos().max(1), Relaxed);
        }
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
    pub fn answer(self: &Arc<Patience>) -> Answering {
        self.head_since.store(0, Relaxed);
        self.answering.fetch_add(1, Relaxed);
        Answering {
            patience: Arc::clone(self),
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
            // A head that begins meanwhile must be noticed in its time.
            let look = due.min(now + HEAD_READ);
            sleep_until(self.clock.instant(look)).await;
        }
    }

    fn due(&self, now: Moment) -> (Moment, RanOut) {
        let head_since = self.head_since.load(Relaxed);
        let blocked_since = self.blocked_since.load(Relaxed);
        if blocked_since > 0 {
            (
                Moment::from_nanos(blocked_since) + CLIENT_IDLE,
                RanOut::Blocked,
            )
        } else if self.answering.load(Relaxed) > 0 {
            (now + HEAD_READ, RanOut::Idle)
        } else if head_since > 0 {
            (Moment::from_nanos(head_since) + HEAD_READ, RanOut::Head)
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

    #[tokio::test(start_paused = true)]
    async fn a_head_has_ten_seconds_and_rest_has_five_minutes() {
        let patience = Patience::new(Clock::new(), true, false);
        let began = Instant::now();
        assert_eq!(patience.run_out().await, RanOut::Idle);
        assert_eq!(began.elapsed().as_secs(), CLIENT_IDLE.as_secs());

        patience.read();
        let began = Instant::now();
        assert_eq!(patience.run_out().await, RanOut::Head);
        assert_eq!(began.elapsed().as_secs(), HEAD_READ.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_must_be_taken() {
        let patience = Patience::new(Clock::new(), true, true);
        let _answering = patience.answer();
        patience.wrote(false);
        patience.wrote(true);
        patience.wrote(false);
        let began = Instant::now();
        assert_eq!(patience.run_out().await, RanOut::Blocked);
        assert_eq!(began.elapsed().as_secs(), CLIENT_IDLE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_as_long_as_it_likes() {
        let patience = Patience::new(Clock::new(), true, true);
        let answering = patience.answer();
        patience.read();
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
