//! The only reader of the clock: monotonic moments for decisions, Unix time for records.
//!
//! Not here: timers (tokio's) and what is decided by the time (`mesh-core`).

use std::time::{SystemTime, UNIX_EPOCH};

use mesh_core::moment::Moment;
use tokio::time::Instant;

/// The process's one clock: made once at the start, copied to whoever needs the time.
///
/// Monotonic readings come from tokio's clock, so that a test with paused time moves them too.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose `Moment::START` is now.
    #[expect(
        clippy::new_without_default,
        reason = "a default clock would hide that there must be one only"
    )]
    pub fn new() -> Clock {
        Clock {
            start: Instant::now(),
        }
    }

    /// Monotonic time since the clock was made.
    pub fn now(&self) -> Moment {
        let nanos = self.start.elapsed().as_nanos();
        Moment::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Wall time: milliseconds since 1970 (0 before it).
    pub fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |span| {
            u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
        })
    }

    /// The tokio instant at which `moment` comes: what a timer sleeps until.
    pub fn instant(&self, moment: Moment) -> Instant {
        self.start + moment.since(Moment::START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn moments_follow_tokios_clock() {
        let clock = Clock::new();
        assert_eq!(clock.now(), Moment::START);
        tokio::time::advance(Duration::from_millis(5)).await;
        assert_eq!(clock.now(), Moment::from_millis(5));
        assert_eq!(clock.instant(clock.now()), Instant::now());
    }
}
