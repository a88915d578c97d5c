//! How far each zone is, by our own probes: how long an answer may take, whom to look after and whom to ask first.
//!
//! Not here: the probes themselves (`probing.rs`), and requests, which have a latency of their own (`load.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mesh_proto::member::Member;
use rand::RngExt;

use super::{Membership, Pace, peers::Peers, swim::FANOUT};
use crate::{catalogue::Catalogue, mesh::NodeState};

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

/// Zones with fewer members look after each other: of few, all may die at once.
const NEIGHBOURS_MIN: usize = 4;

/// The zone of members whose record has not come through: nobody can be in it, for a zone has a name.
const UNKNOWN_ZONE: &str = "";

/// Living peers drawn for each that is asked about another.
const HELPERS_DRAWN: usize = 4;

/// Of those asked about a member, so many come from its own zone where there are any: the others see it from elsewhere.
const HELPERS_NEAR: usize = 1;

/// Smoothed round trips to each zone.
#[derive(Default, Debug)]
pub struct Distances {
    zones: BTreeMap<Box<str>, Duration>,
    nearest: Option<Duration>,
}

impl Distances {
    /// Notes how long an answer took.
    pub fn measure(&mut self, zone: &str, took: Duration) {
        if let Some(smoothed) = self.zones.get_mut(zone) {
            *smoothed = (*smoothed * (SMOOTHING - 1) + took) / SMOOTHING;
        } else if self.zones.len() < ZONES_MAX {
            self.zones.insert(zone.into(), took);
        }
        self.nearest = self.zones.values().min().copied();
    }

    /// The smoothed round trip to a zone, once measured.
    pub fn to(&self, zone: &str) -> Option<Duration> {
        self.zones.get(zone).copied()
    }

    /// How long an answer from a zone may take.
    pub fn patience(&self, zone: Option<&str>, pace: &Pace) -> Duration {
        patience(zone.and_then(|zone| self.to(zone)), pace)
    }

    /// How long an answer from the nearest zone may take.
    pub fn patience_with_nearest(&self, pace: &Pace) -> Duration {
        patience(self.nearest, pace)
    }
}

fn patience(round_trip: Option<Duration>, pace: &Pace) -> Duration {
    round_trip.map_or(pace.patience, |round_trip| {
        (round_trip * PATIENCE_ROUND_TRIPS).clamp(PATIENCE_MIN, PATIENCE_MAX)
    })
}

/// Those whom we look after more than others, by id; none where nobody is nearer than others.
pub(super) fn neighbours(peers: &Peers, catalogue: &Catalogue, own_zone: &str) -> Vec<u64> {
    let living = peers.active().map(|(member, _)| member.id);
    let living: Vec<(u64, &str)> = living.map(|id| (id, zone_in(catalogue, id))).collect();
    neighbours_among(&living, own_zone)
}

/// Those of other zones with a suspect who are not suspected themselves, by id.
pub(super) fn alarmed(peers: &Peers, catalogue: &Catalogue, own_zone: &str) -> Vec<u64> {
    let zones = peers
        .suspects()
        .map(|(member, _)| zone_in(catalogue, member.id));
    let zones: BTreeSet<&str> = zones
        .filter(|zone| *zone != UNKNOWN_ZONE && *zone != own_zone)
        .collect();
    let well = peers
        .active()
        .filter(|(_, peer)| peer.state == NodeState::Alive);
    let well = well.map(|(member, _)| member.id);
    well.filter(|id| zones.contains(zone_in(catalogue, *id)))
        .collect()
}

fn zone_in(catalogue: &Catalogue, id: u64) -> &str {
    let node = catalogue.owner(id).and_then(|owner| owner.node.as_ref());
    node.map_or(UNKNOWN_ZONE, |node| &*node.zone)
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

    /// Whether somebody of another zone is suspected: its whole zone may be gone, with all who look after it.
    pub(super) fn is_alarmed(&self) -> bool {
        let mut suspects = self.peers.suspects();
        suspects.any(|(member, _)| !self.is_near(&member))
    }

    /// Living peers to ask about another: those in its zone know best, and one elsewhere may reach it where we do not.
    pub(super) fn helpers(&mut self, about: &Member) -> Vec<Member> {
        let mut drawn = (self.peers).some_active(FANOUT * HELPERS_DRAWN, &mut self.rng);
        drawn.retain(|helper| {
            let peer = self.peers.get(helper.id);
            helper.id != about.id && peer.is_some_and(|peer| peer.state == NodeState::Alive)
        });
        let zone = zone_in(&self.catalogue, about.id);
        let is_by_it =
            |helper: &Member| zone != UNKNOWN_ZONE && zone_in(&self.catalogue, helper.id) == zone;
        let (mut helpers, mut others): (Vec<_>, Vec<_>) = drawn.into_iter().partition(is_by_it);
        // Whoever is near us is likely to see what we see.
        others.sort_by_key(|helper| self.is_near(helper));
        let rest = helpers.split_off(helpers.len().min(HELPERS_NEAR));
        helpers.extend(others.into_iter().chain(rest));
        helpers.truncate(FANOUT);
        helpers
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

/// Those whom we look after, by id, of all the living with their zones: our zone. Members of small zones look after each
/// other, with those whose zone is unknown; where these are few too, together with the smallest of the other zones.
/// Whoever knows the same members draws up the same groups. None where all are in one.
fn neighbours_among(living: &[(u64, &str)], own_zone: &str) -> Vec<u64> {
    let mut counts = BTreeMap::from([(own_zone, 1)]);
    for (_, zone) in living {
        *counts.entry(*zone).or_insert(0) += 1;
    }
    let is_large = |zone: &str| zone != UNKNOWN_ZONE && counts[zone] >= NEIGHBOURS_MIN;
    let small = counts.iter().filter(|(zone, _)| !is_large(zone));
    let small: usize = small.map(|(_, count)| count).sum();
    let large = counts.iter().filter(|(zone, _)| is_large(zone));
    let host = large.min_by_key(|(zone, count)| (**count, **zone));
    let host = host.filter(|_| small < NEIGHBOURS_MIN);
    let group = |zone| match host {
        _ if is_large(zone) => Some(zone),
        Some((host, _)) => Some(*host),
        None => None,
    };
    let ours = group(own_zone);
    let near = living.iter().filter(|(_, zone)| group(*zone) == ours);
    let near: Vec<u64> = near.map(|(id, _)| *id).collect();
    if near.len() == living.len() {
        return Vec::new();
    }
    near
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

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

    #[test]
    fn members_of_a_zone_look_after_each_other_and_nobody_is_left_to_few() {
        let mut dice = StdRng::seed_from_u64(1);
        for _ in 0..300 {
            let names = ["a", "b", "c", "d", UNKNOWN_ZONE];
            let count = dice.random_range(1..40);
            let zones: Vec<(u64, &str)> = (0..count)
                .map(|id| {
                    (
                        id,
                        names[dice.random_range(0..names.len()) / dice.random_range(1..3)],
                    )
                })
                .collect();
            let near: Vec<Vec<u64>> = (0..zones.len())
                .map(|me| {
                    let mut others = zones.clone();
                    let (_, own) = others.remove(me);
                    neighbours_among(&others, own)
                })
                .collect();
            for (me, neighbours) in near.iter().enumerate() {
                let is_told = neighbours.is_empty() || neighbours.len() + 1 >= NEIGHBOURS_MIN;
                assert!(is_told, "{zones:?}: {me} has only {neighbours:?}");
                for other in neighbours {
                    assert!(
                        near[*other as usize].contains(&(me as u64)),
                        "{zones:?}: {me}, {other}"
                    );
                }
                let alike = zones
                    .iter()
                    .filter(|(_, zone)| *zone == zones[me].1 && *zone != UNKNOWN_ZONE);
                let is_near = |id: &u64| *id == me as u64 || neighbours.contains(id);
                let is_apart = !neighbours.is_empty();
                assert!(
                    !is_apart || alike.clone().all(|(id, _)| is_near(id)),
                    "{zones:?}: {me}"
                );
            }
        }
    }
}
