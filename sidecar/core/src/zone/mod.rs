//! Which endpoints a request may use: tiers, their shares, how shares move, and when a whole tier is ill.
//!
//! Not here: which endpoint of a tier is picked (`balance/`), and who belongs to a tier (`snapshot.rs`). This file has
//! priority with spill and what all modes share; water-filling, the default, stands in `water.rs` (the shares),
//! `course.rs` (how fast they are followed), `demand.rs` and `capacity.rs` (what is told to others).

pub mod capacity;
pub mod course;
pub mod demand;
pub mod water;

use std::time::Duration;

use crate::{moment::Moment, upstream::Tier};

/// A tier carries its whole load while at least 1/1.4 = 71 % of it is well.
pub const OVERPROVISION: f64 = 1.4;

/// How far back the largest number of well endpoints counts as what a tier should have.
pub const HISTORY: Duration = Duration::from_secs(600);

/// How fast a tier gains share, in parts of the whole per second: a cold zone is not flooded.
pub const GAIN_PER_SECOND: f64 = 0.05;

/// Failures within this time count together for a zone trip.
pub const TRIP_WINDOW: Duration = Duration::from_secs(1);

/// Fewest bad endpoints that trip a tier; one alone is an endpoint's trouble and not its zone's.
pub const TRIP_BAD_MIN: usize = 2;

/// Share of the requests that finds out whether a tripped tier is well again.
pub const TRIP_CANARY_SHARE: f64 = 0.01;

/// How well a tier is, as a multiple of what it takes to carry its whole load; at most 1.
///
/// `total` is what it should have. A tier that never had anybody has no health.
pub fn health(well: u32, total: u32) -> f64 {
    if total == 0 {
        return 0.0;
    }
    (OVERPROVISION * f64::from(well) / f64::from(total)).min(1.0)
}

/// Shares of the load by priority with spill: each tier takes what it is well enough for, the next one the rest.
///
/// `shares[i]` for `healths[i]`, both 0 to 1. They add up to 1 unless nobody is well at all. The rule is what
/// Envoy does for its priority levels, on exact numbers instead of whole percents.
pub fn spill(healths: &[f64], shares: &mut [f64]) {
    let norm = healths.iter().sum::<f64>().min(1.0);
    let mut left = 1.0_f64;
    for (share, health) in shares.iter_mut().zip(healths) {
        *share = if norm > 0.0 {
            (health / norm).min(left)
        } else {
            0.0
        };
        left -= *share;
    }
}

/// Moves `shares` to where [`spill`] wants them after `elapsed`: a loss at once, a gain at
/// [`GAIN_PER_SECOND`], except that what one tier lost may be taken over at once by those after it.
pub fn follow(healths: &[f64], shares: &mut [f64], elapsed: Duration) {
    let norm = healths.iter().sum::<f64>().min(1.0);
    if norm <= 0.0 {
        return;
    }
    let step = GAIN_PER_SECOND * elapsed.as_secs_f64();
    let (mut left, mut freed) = (1.0_f64, 0.0_f64);
    for (share, health) in shares.iter_mut().zip(healths) {
        let want = (health / norm).min(left);
        let next = if want <= *share {
            freed += *share - want;
            want
        } else {
            let next = want.min(*share + step + freed);
            freed = (freed - (next - *share)).max(0.0);
            next
        };
        *share = next;
        left -= next;
    }
    // What nobody may take slowly, somebody has to take at once.
    for (share, health) in shares.iter_mut().zip(healths) {
        let more = (health / norm - *share).clamp(0.0, left.max(0.0));
        *share += more;
        left -= more;
    }
}

/// Takes the load off backup tiers while any other tier has anybody well.
pub fn spare_backups(tiers: &[Tier], healths: &mut [f64]) {
    let usual = tiers.iter().zip(&*healths).filter(|(tier, _)| !tier.backup);
    if usual.map(|(_, health)| *health).sum::<f64>() > 0.0 {
        for (tier, health) in tiers.iter().zip(healths) {
            *health = if tier.backup { 0.0 } else { *health };
        }
    }
}

/// Whether this many bad endpoints of a tier make the whole tier ill.
pub fn trips(bad: usize, all: usize) -> bool {
    bad >= TRIP_BAD_MIN && bad * 2 >= all
}

/// How many well endpoints a tier had, so that a crashed one still counts and one that left does not.
///
/// A value: each snapshot carries on from the one before.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct History {
    /// Times and counts, the counts falling strictly: only what may still become the maximum is kept.
    samples: Vec<(Moment, u32)>,
}

impl History {
    /// The history after `well` endpoints were counted at `now`, `left` of those counted before having left
    /// gracefully.
    pub fn next(&self, well: u32, left: u32, now: Moment) -> History {
        let mut samples: Vec<(Moment, u32)> = Vec::with_capacity(self.samples.len() + 1);
        let older = self.samples.iter();
        let fewer = older.map(|(at, count)| (*at, count.saturating_sub(left)));
        for (at, count) in fewer.chain([(now, well)]) {
            // A count keeps the time it was first taken, because that is when the larger one before it ended.
            if count >= well && samples.last().is_none_or(|(_, last)| count < *last) {
                samples.push((at, count));
            }
        }
        let mut history = History { samples };
        history.expire(now);
        history
    }

    /// The largest count of the last 10 minutes.
    pub fn total(&self) -> u32 {
        self.samples.first().map_or(0, |(_, count)| *count)
    }

    /// When [`History::total`] would fall if nothing else changed.
    pub fn changes_at(&self) -> Option<Moment> {
        match &self.samples[..] {
            [_, (until, _), ..] => Some(*until + HISTORY),
            _ => None,
        }
    }

    fn expire(&mut self, now: Moment) {
        // A count holds until the sample after it was taken.
        while let [_, (until, _), ..] = &self.samples[..]
            && now.since(*until) >= HISTORY
        {
            self.samples.remove(0);
        }
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    fn percents(shares: &[f64]) -> Vec<u32> {
        shares.iter().map(|s| (s * 100.0).round() as u32).collect()
    }

    fn spilled(well_of_hundred: &[u32]) -> Vec<u32> {
        let healths: Vec<f64> = well_of_hundred.iter().map(|w| health(*w, 100)).collect();
        let mut shares = vec![0.0; healths.len()];
        spill(&healths, &mut shares);
        percents(&shares)
    }

    #[test]
    fn load_spills_by_the_golden_values() {
        for (well, want) in [
            (&[100, 100][..], &[100, 0][..]),
            (&[72, 100], &[100, 0]),
            (&[71, 100], &[99, 1]),
            (&[50, 100], &[70, 30]),
            (&[25, 100], &[35, 65]),
            (&[25, 25], &[50, 50]),
            (&[5, 65], &[7, 93]),
            (&[0, 100], &[0, 100]),
            (&[0, 0], &[0, 0]),
            (&[10, 0], &[100, 0]),
            (&[25, 25, 100], &[35, 35, 30]),
            (&[0, 50, 100], &[0, 70, 30]),
        ] {
            assert_eq!(spilled(well), want, "well: {well:?}");
        }
    }

    #[test]
    fn a_tier_without_anybody_is_not_well() {
        assert_eq!(health(0, 0), 0.0);
        assert_eq!(health(1, 2), 0.7);
    }

    #[test]
    fn a_lost_tier_is_replaced_at_once_and_returns_in_twenty_seconds() {
        let mut shares = [1.0, 0.0, 0.0];
        follow(&[0.0, 1.0, 1.0], &mut shares, Duration::ZERO);
        assert_eq!(percents(&shares), [0, 100, 0]);
        let mut seconds = 0;
        while shares[0] < 1.0 {
            let before = shares[0];
            follow(&[1.0, 1.0, 1.0], &mut shares, Duration::from_secs(1));
            assert!(shares[0] - before <= GAIN_PER_SECOND + 1e-9);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            seconds += 1;
        }
        assert!((20..=21).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_second_loss_goes_to_the_third_tier_and_not_to_the_one_still_cold() {
        let mut shares = [0.1, 0.9, 0.0];
        follow(&[1.0, 0.0, 1.0], &mut shares, Duration::from_secs(1));
        assert_eq!(percents(&shares), [15, 0, 85]);
        // With nobody else left, cold or not, it takes all.
        follow(&[1.0, 0.0, 0.0], &mut shares, Duration::ZERO);
        assert_eq!(percents(&shares), [100, 0, 0]);
    }

    #[test]
    fn a_crashed_endpoint_counts_for_ten_minutes() {
        let at = Moment::from_millis;
        let history = History::default().next(3, 0, at(0)).next(2, 0, at(5_000));
        assert_eq!(history.total(), 3);
        let history = history.next(2, 0, at(7_000));
        assert_eq!(history.changes_at(), Some(at(605_000)));
        assert_eq!(history.next(2, 0, at(600_000)).total(), 3);
        assert_eq!(history.next(2, 0, at(605_000)).total(), 2);
    }

    #[test]
    fn one_that_left_gracefully_counts_no_longer() {
        let at = Moment::from_millis;
        let full = History::default().next(4, 0, at(0));
        assert_eq!(full.next(3, 1, at(1_000)).total(), 3);
        // A crash, then a goodbye of another.
        let crashed = full.next(3, 0, at(1_000));
        assert_eq!(crashed.next(2, 1, at(2_000)).total(), 3);
    }

    #[test]
    fn a_replaced_endpoint_counts_once() {
        let at = Moment::from_millis;
        let history = History::default()
            .next(3, 0, at(0))
            .next(2, 0, at(1_000))
            .next(3, 0, at(2_000));
        assert_eq!(history.total(), 3);
    }

    #[test]
    fn half_of_a_tier_and_at_least_two_trip_it() {
        assert!(!trips(1, 1));
        assert!(!trips(1, 2));
        assert!(trips(2, 2));
        assert!(trips(2, 4));
        assert!(!trips(2, 5));
    }
}
