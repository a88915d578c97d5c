//! How far each zone is, by our own probes: how long an answer may take, and whom to ask first.
//!
//! Not here: the probes themselves (`swim.rs`), and requests, which have a latency of their own (`load.rs`).

use std::{collections::BTreeMap, time::Duration};

use mesh_proto::member::Member;
use rand::RngExt;

use super::{Membership, Pace};

/// Zones remembered; a mesh with more measures those it met first.
const ZONES_MAX: usize = 256;

/// An answer may take this many round trips.
const PATIENCE_ROUND_TRIPS: u32 = 3;

/// Never less: a busy machine answers late.
const PATIENCE_MIN: Duration = Duration::from_millis(150);

/// Never more: no link that anybody would put a mesh over is slower.
const PATIENCE_MAX: Duration = Duration::from_secs(1);

/// Share of the newest figure in the smoothed one, as TCP has it (RFC 6298).
const SMOOTHING: u32 = 8;

/// Living peers drawn, of whom the nearest is taken.
const CANDIDATES: usize = 4;

/// One in so many times anybody is taken, so that zones do not drift apart.
const ANYBODY_ONE_IN: u32 = 4;

/// Smoothed round trips to each zone.
#[derive(Default, Debug)]
pub struct Distances {
    zones: BTreeMap<Box<str>, Duration>,
}

impl Distances {
    /// Notes how long an answer took.
    pub fn measure(&mut self, zone: &str, took: Duration) {
        if let Some(smoothed) = self.zones.get_mut(zone) {
            *smoothed = (*smoothed * (SMOOTHING - 1) + took) / SMOOTHING;
        } else if self.zones.len() < ZONES_MAX {
            self.zones.insert(zone.into(), took);
        }
    }

    /// The smoothed round trip to a zone, once measured.
    pub fn to(&self, zone: &str) -> Option<Duration> {
        self.zones.get(zone).copied()
    }

    /// How long an answer from a zone may take.
    pub fn patience(&self, zone: Option<&str>, pace: &Pace) -> Duration {
        let round_trip = zone.and_then(|zone| self.to(zone));
        round_trip.map_or(pace.patience, |round_trip| {
            (round_trip * PATIENCE_ROUND_TRIPS).clamp(PATIENCE_MIN, PATIENCE_MAX)
        })
    }
}

impl Membership {
    /// Smoothed round trips to each zone, by our own probes.
    pub fn round_trips(&self) -> impl Iterator<Item = (&str, Duration)> {
        let zones = self.distances.zones.iter();
        zones.map(|(zone, took)| (&**zone, *took))
    }

    /// Whether a member is in our own zone, as far as its record came through.
    pub(super) fn is_near(&self, member: &Member) -> bool {
        let node = self.record_of(member.id);
        node.is_some_and(|node| node.zone == self.settings.zone)
    }

    /// A living peer, mostly a near one.
    pub(super) fn draw_near(&mut self) -> Option<Member> {
        let drawn = self.peers.some_active(CANDIDATES, &mut self.rng);
        if self.rng.random_range(0..ANYBODY_ONE_IN) == 0 {
            return drawn.first().copied();
        }
        let distance = |member: &Member| {
            let zone = self.record_of(member.id).map(|node| &*node.zone);
            let measured = zone.and_then(|zone| self.distances.to(zone));
            (!self.is_near(member), measured.unwrap_or(Duration::MAX))
        };
        drawn.into_iter().min_by_key(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_the_distance_within_its_bounds() {
        let ms = Duration::from_millis;
        let mut distances = Distances::default();
        assert_eq!(
            distances.patience(Some("b"), &Pace::FAST),
            Pace::FAST.patience
        );
        for (took, patience) in [(1, 150), (80, 240), (900, 1_000)] {
            let mut distances = Distances::default();
            distances.measure("b", ms(took));
            assert_eq!(distances.patience(Some("b"), &Pace::FAST), ms(patience));
        }
        distances.measure("b", ms(80));
        distances.measure("b", ms(160));
        assert_eq!(distances.to("b"), Some(ms(90)));
    }

    #[test]
    fn zones_are_bounded() {
        let mut distances = Distances::default();
        for zone in 0..2 * ZONES_MAX {
            distances.measure(&zone.to_string(), Duration::from_millis(1));
        }
        assert_eq!(distances.zones.len(), ZONES_MAX);
    }
}
