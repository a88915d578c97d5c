//! How long a client may rest, and one of HTTP/2 leave unread what we have for it, and take over a request's head.
//!
//! One timer per connection, moved only when it goes off.
//!
//! Not here: what a connection of HTTP/1 waits for (`http1/server.rs`, `http1/server/exchange.rs`), and time limits of
//! the answer (`reply_body.rs`).

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use mesh_core::moment::Moment;
use tokio::time::{Instant, Sleep, sleep_until};

use super::connections::UnderWay;
use crate::{clock::Clock, config::ClientLimits};

/// How long a client that was told to go, and waits for nothing, may take to hang up.
pub const FAREWELL: Duration = Duration::from_secs(10);

/// The one timer of a connection, for whatever it waits for now.
pub struct Timer<'a>(Pin<&'a mut Sleep>);

impl<'a> Timer<'a> {
    /// A timer that goes off when `sleep` is over.
    pub fn new(sleep: Pin<&'a mut Sleep>) -> Timer<'a> {
        Timer(sleep)
    }

    /// When it goes off.
    pub fn due(&self) -> Instant {
        self.0.deadline()
    }

    /// Ready at `due`; see [`poll_until`].
    pub fn poll_until(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        poll_until(self.0.as_mut(), cx, due)
    }
}

/// Ready at `due`. `timer` is moved later only when it goes off, so waiting for what comes soon costs nothing.
pub fn poll_until(mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
    if timer.deadline() > due {
        timer.as_mut().reset(due);
    }
    loop {
        ready!(timer.as_mut().poll(cx));
        if due <= Instant::now() {
            return Poll::Ready(());
        }
        timer.as_mut().reset(due);
    }
}

/// What one client connection is doing. Shared by its writes, its requests and its watch.
#[derive(Debug)]
pub struct Patience {
    clock: Clock,
    /// How long a request's head may take.
    head: Duration,
    /// How long it may rest between requests and before the first, and leave an answer unread.
    idle: Duration,
    answering: AtomicU32,
    idle_since: AtomicU64,
    /// Since when the client has taken no byte of what we have for it; 0: it takes them.
    blocked_since: AtomicU64,
    /// When it took a write last for which it had been waited.
    taken_at: AtomicU64,
    /// Since when a request's head (or trailers) is on its way; 0: none is.
    head_since: AtomicU64,
}

/// Which patience has run out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RanOut {
    /// Nothing was asked for too long.
    Idle,
    /// The client took nothing of its answer for too long.
    Blocked,
    /// A request's head took too long to come.
    Head,
}

/// One request being answered, until dropped.
#[derive(Debug)]
pub struct Answering {
    patience: Arc<Patience>,
    _listed: UnderWay,
}

impl Patience {
    /// A connection at rest.
    pub fn new(clock: Clock, limits: &ClientLimits) -> Arc<Patience> {
        Arc::new(Patience {
            clock,
            head: limits.head,
            idle: limits.idle,
            answering: AtomicU32::new(0),
            idle_since: AtomicU64::new(clock.now().as_nanos()),
            blocked_since: AtomicU64::new(0),
            taken_at: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
        })
    }

    /// The time.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// A request's head is on its way since then, or none is.
    pub fn head_since(&self, since: Option<Moment>) {
        let since = since.map_or(0, |since| since.as_nanos().max(1));
        self.head_since.store(since, Relaxed);
    }

    /// A write was taken (`true`) or has to wait for the client.
    pub fn wrote(&self, taken: bool) {
        let blocked_since = self.blocked_since.load(Relaxed);
        if taken && blocked_since != 0 {
            self.taken_at.store(self.clock.now().as_nanos(), Relaxed);
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
        self.over(Moment::START, self.idle).await
    }

    /// The same from now on for a client that is told to go: what is being answered has its time, and then rest is
    /// soon over.
    pub async fn run_out_of_farewell(&self) -> RanOut {
        self.over(self.clock.now(), FAREWELL).await
    }

    /// Ready when the client has rested for `rest`, not counting what was before `from`, or left an answer unread for
    /// too long.
    async fn over(&self, from: Moment, rest: Duration) -> RanOut {
        loop {
            let now = self.clock.now();
            let (due, what) = self.due(from, rest, now);
            if due <= now {
                return what;
            }
            // A write that blocks meanwhile must be noticed in its time, and so must a head that begins.
            let look = due.min(now + self.head);
            sleep_until(self.clock.instant(look)).await;
        }
    }

    fn due(&self, from: Moment, rest: Duration, now: Moment) -> (Moment, RanOut) {
        let head_since = self.head_since.load(Relaxed);
        let other = self.due_without_head(from, rest, now);
        // While a write waits, nothing may be read, and the rest of a head may have come long ago.
        if head_since == 0 || self.blocked_since.load(Relaxed) > 0 {
            return other;
        }
        let since = head_since.max(self.taken_at.load(Relaxed));
        let head = (Moment::from_nanos(since) + self.head, RanOut::Head);
        if head.0 < other.0 { head } else { other }
    }

    fn due_without_head(&self, from: Moment, rest: Duration, now: Moment) -> (Moment, RanOut) {
        let is_answering = self.answering.load(Relaxed) > 0;
        let blocked_since = self.blocked_since.load(Relaxed);
        if blocked_since > 0 {
            let patience = if is_answering { self.idle } else { rest };
            let since = Moment::from_nanos(blocked_since).max(from);
            (since + patience, RanOut::Blocked)
        } else if is_answering {
            (now + self.head, RanOut::Idle)
        } else {
            let since = Moment::from_nanos(self.idle_since.load(Relaxed)).max(from);
            (since + rest, RanOut::Idle)
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
    use tokio::{
        task::JoinHandle,
        time::{Instant, advance},
    };

    use super::*;
    use crate::proxy::{connections::Connections, transport::Transport};

    fn idle() -> Duration {
        ClientLimits::default().idle
    }

    /// A request under way on a connection of its own.
    fn listed() -> UnderWay {
        let (pipe, _) = tokio::io::duplex(1);
        let connections = Connections::new(Clock::new());
        UnderWay::on(&connections.client(Transport::Pipe(pipe), None, None, idle()))
    }

    /// Waits beside what goes on until the client has dawdled too long.
    fn watched(patience: &Arc<Patience>) -> JoinHandle<RanOut> {
        let patience = Arc::clone(patience);
        tokio::spawn(async move { patience.run_out().await })
    }

    /// The head under way may take its whole time from now on, and no more.
    async fn has_a_heads_time_left(watch: JoinHandle<RanOut>) {
        let began = Instant::now();
        assert_eq!(watch.await.unwrap(), RanOut::Head);
        assert_eq!(
            began.elapsed().as_secs(),
            ClientLimits::default().head.as_secs()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn rest_has_five_minutes() {
        let patience = Patience::new(Clock::new(), &ClientLimits::default());
        let began = Instant::now();
        assert_eq!(patience.run_out().await, RanOut::Idle);
        assert_eq!(began.elapsed().as_secs(), idle().as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_must_be_taken() {
        let patience = Patience::new(Clock::new(), &ClientLimits::default());
        let _answering = patience.answer(listed());
        patience.wrote(false);
        patience.wrote(true);
        patience.wrote(false);
        let began = Instant::now();
        assert_eq!(patience.run_out().await, RanOut::Blocked);
        assert_eq!(began.elapsed().as_secs(), idle().as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_told_to_go_has_its_answer_and_then_ten_seconds() {
        let patience = Patience::new(Clock::new(), &ClientLimits::default());
        advance(idle() / 2).await;
        let began = Instant::now();
        assert_eq!(patience.run_out_of_farewell().await, RanOut::Idle);
        assert_eq!(began.elapsed(), FAREWELL, "rest before it does not count");

        let answering = patience.answer(listed());
        let watch = tokio::spawn({
            let patience = Arc::clone(&patience);
            async move { patience.run_out_of_farewell().await }
        });
        advance(Duration::from_secs(3600)).await;
        tokio::task::yield_now().await;
        assert!(!watch.is_finished());
        // The last of it goes out, and the goodbye behind it finds no room.
        drop(answering);
        patience.wrote(false);
        let ended = Instant::now();
        assert_eq!(watch.await.unwrap(), RanOut::Blocked);
        assert!(ended.elapsed() <= FAREWELL + ClientLimits::default().head);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_ten_seconds_whatever_else_goes_on() {
        for is_answering in [false, true] {
            let patience = Patience::new(Clock::new(), &ClientLimits::default());
            let _answering = is_answering.then(|| patience.answer(listed()));
            let watch = watched(&patience);
            tokio::task::yield_now().await;
            advance(Duration::from_secs(7)).await;
            patience.head_since(Some(patience.now()));
            patience.head_since(None);
            advance(Duration::from_secs(7)).await;
            patience.head_since(Some(patience.now()));
            has_a_heads_time_left(watch).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_anew_once_we_are_read_from_and_read_again() {
        let patience = Patience::new(Clock::new(), &ClientLimits::default());
        let _answering = patience.answer(listed());
        let watch = watched(&patience);
        let begun = patience.now();
        patience.head_since(Some(begun));
        patience.wrote(false);
        for _ in 0..60 {
            advance(Duration::from_secs(1)).await;
            tokio::task::yield_now().await;
        }
        assert!(!watch.is_finished());
        patience.wrote(true);
        // What is read then still began when it did.
        patience.head_since(Some(begun));
        has_a_heads_time_left(watch).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_as_long_as_it_likes() {
        let patience = Patience::new(Clock::new(), &ClientLimits::default());
        let answering = patience.answer(listed());
        let watch = watched(&patience);
        advance(Duration::from_secs(3600)).await;
        tokio::task::yield_now().await;
        assert!(!watch.is_finished());
        let ended = Instant::now();
        drop(answering);
        assert_eq!(watch.await.unwrap(), RanOut::Idle);
        assert!(ended.elapsed() >= idle());
    }
}
