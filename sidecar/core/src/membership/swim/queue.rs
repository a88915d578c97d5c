//! Timers in one queue, ordered by time and then by foca's own order: out of order they break a probe.
//!
//! Not here: what becomes of a timer that is due (`swim.rs`).

use std::cmp::{Ordering, Reverse};

use foca::Timer;
use mesh_proto::member::Member;

use super::Swim;
use crate::moment::Moment;

/// A timer and when it is due.
#[derive(Debug)]
pub(super) struct Due {
    pub at: Moment,
    pub timer: Timer<Member>,
    count: u64,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        (self.at.cmp(&other.at))
            .then(self.timer.cmp(&other.timer))
            .then(self.count.cmp(&other.count))
    }
}

impl Swim {
    pub(super) fn pop_due(&mut self, now: Moment) -> Option<Due> {
        if self.next_timer()? > now {
            return None;
        }
        self.timers.pop().map(|Reverse(due)| due)
    }

    pub(super) fn schedule(&mut self, timer: Timer<Member>, at: Moment) {
        self.timer_count += 1;
        self.timers.push(Reverse(Due {
            at,
            timer,
            count: self.timer_count,
        }));
    }

    /// When the next timer is due.
    pub fn next_timer(&self) -> Option<Moment> {
        self.timers.peek().map(|Reverse(due)| due.at)
    }
}
