//! What speaks against an endpoint: its outcomes second by second, and its failures in a row.
//!
//! Not here: what follows from them (`../outlier.rs`).

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    endpoint::Report,
    moment::Moment,
    outcome::{Outcome, Unreachable},
};

/// Seconds over which the success share is judged.
pub(super) const WINDOW_SECONDS: usize = 10;

/// Failures this far apart are two events even on one connection.
const APART: Duration = Duration::from_millis(100);

/// Outcomes by second, packed.
#[derive(Debug, Default)]
pub(super) struct Window([AtomicU64; WINDOW_SECONDS]);

/// Failures, and whether they are more than one burst.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Run {
    pub count: u32,
    pub first: Moment,
    connection: u64,
    pub apart: bool,
}

impl Window {
    /// One more outcome.
    pub(super) fn count(&self, well: bool, now: Moment) {
        let second = second(now);
        let slot = &self.0[second as usize % WINDOW_SECONDS];
        let _ = slot.fetch_update(Relaxed, Relaxed, |packed| {
            let (held, good, bad) = unpack(packed);
            let (good, bad) = if held == second { (good, bad) } else { (0, 0) };
            Some(if well {
                pack(second, (good + 1).min(COUNT_MAX), bad)
            } else {
                pack(second, good, (bad + 1).min(COUNT_MAX))
            })
        });
    }

    /// How many went well and how many did not, of those that are young enough.
    pub(super) fn tally(&self, now: Moment) -> (u32, u32) {
        let newest = second(now);
        let mut sum = (0, 0);
        for slot in &self.0 {
            let (held, good, bad) = unpack(slot.load(Relaxed));
            if newest.saturating_sub(held) < WINDOW_SECONDS as u64 {
                sum = (sum.0 + good, sum.1 + bad);
            }
        }
        sum
    }

    pub(super) fn clear(&self) {
        for slot in &self.0 {
            slot.store(0, Relaxed);
        }
    }
}

impl Run {
    /// One more failure.
    pub(super) fn add(&mut self, report: &Report, now: Moment) {
        let refused = report.outcome == Outcome::Unreachable(Unreachable::Refused);
        if self.count == 0 {
            (self.first, self.connection) = (now, report.connection);
        } else {
            let other = report.connection != 0
                && self.connection != 0
                && report.connection != self.connection;
            // Every refusal is the kernel's own word, so two of them are two events.
            self.apart |= refused || other || now.since(self.first) >= APART;
        }
        self.count = self.count.saturating_add(1);
    }
}

/// Seconds since the start, from 1: an empty slot holds 0.
fn second(now: Moment) -> u64 {
    now.as_nanos() / 1_000_000_000 + 1
}

/// Bits of each count, which leaves 30 for the second: a process that runs for 34 years is not foreseen.
const COUNT_BITS: u32 = 17;

/// Outcomes of one kind that are told apart in a second; beyond it the share is a little off.
const COUNT_MAX: u32 = (1 << COUNT_BITS) - 1;

fn pack(second: u64, good: u32, bad: u32) -> u64 {
    second << (2 * COUNT_BITS) | u64::from(good) << COUNT_BITS | u64::from(bad)
}

fn unpack(packed: u64) -> (u64, u32, u32) {
    let part = |shift: u32| (packed >> shift) as u32 & COUNT_MAX;
    (packed >> (2 * COUNT_BITS), part(COUNT_BITS), part(0))
}
