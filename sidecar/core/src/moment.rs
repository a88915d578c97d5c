//! Time as nanoseconds since the process started; nobody here reads a clock.
//!
//! Not here: wall time, which only records carry (Unix milliseconds, handed in by the shell).

use std::{
    ops::{Add, Sub},
    time::Duration,
};

/// A point in monotonic time: nanoseconds since the sidecar started. `u64` lasts 584 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Moment(u64);

impl Moment {
    /// The moment the process started.
    pub const START: Moment = Moment(0);

    /// The moment `nanos` nanoseconds after the start.
    pub const fn from_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }

    /// The moment `millis` milliseconds after the start.
    pub const fn from_millis(millis: u64) -> Moment {
        Moment(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time since `earlier`; zero if `earlier` lies ahead.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Moment(self.0.saturating_add(nanos))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    /// Earlier by `span`, not before the start.
    fn sub(self, span: Duration) -> Moment {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Moment(self.0.saturating_sub(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_never_wrap() {
        assert_eq!(Moment::START - Duration::from_secs(1), Moment::START);
        assert_eq!(
            Moment::from_nanos(u64::MAX) + Duration::MAX,
            Moment::from_nanos(u64::MAX)
        );
        assert_eq!(Moment::START.since(Moment::from_nanos(5)), Duration::ZERO);
    }
}
