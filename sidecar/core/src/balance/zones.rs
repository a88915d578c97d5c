//! One worker's shares of the tiers, by whichever rule its upstream follows.
//!
//! Not here: the rules (`zone/`), and the draw of a tier (`mod.rs`).

use std::time::Duration;

use crate::{
    upstream::{Tier, Upstream, Water},
    zone::{self, course::Course, water::Figures},
};

/// How shares came about so far.
#[derive(Debug)]
pub(super) enum Current {
    /// Priority with spill, or no zones at all.
    Spill {
        /// Room for the healths of one refresh.
        healths: Vec<f64>,
    },
    /// Water-filling.
    Flow {
        course: Box<Course>,
        /// Room for the figures of one refresh.
        figures: Vec<Figures>,
    },
}

/// What a tier can do now, as its column was read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    /// What its well members carry of the whole load, 0 to 1; 0 while it is tripped.
    pub health: f64,
    /// Capacity of its well members; 0 while it is tripped.
    pub capacity: f64,
}

impl Current {
    /// Fresh for an upstream: its first shares are taken over without a ramp.
    pub fn new(upstream: &Upstream) -> Current {
        match &upstream.water {
            None => Current::Spill {
                healths: Vec::with_capacity(upstream.tiers.len()),
            },
            Some(water) => Current::Flow {
                course: Box::new(course(water)),
                figures: Vec::with_capacity(water.zones.len()),
            },
        }
    }

    /// Goes on from the zones of `before` with those of a newer snapshot.
    pub fn carried(&self, before: &Upstream, upstream: &Upstream) -> Current {
        // Until a first exchange is done, what comes to be known was there before.
        let was_joined = before.water.as_ref().is_some_and(|water| water.joined);
        match (self, &upstream.water) {
            (Current::Flow { course, .. }, Some(water)) if was_joined => {
                let names = water.zones.iter().map(|zone| &*zone.name);
                Current::Flow {
                    course: Box::new(course.carried(
                        names,
                        water.own,
                        water.levels.clone(),
                        water.declared,
                    )),
                    figures: Vec::with_capacity(water.zones.len()),
                }
            }
            _ => Current::new(upstream),
        }
    }

    /// Moves `shares`, one a tier, to where `states` want them.
    pub fn follow(
        &mut self,
        upstream: &Upstream,
        states: &[State],
        shares: &mut [f64],
        elapsed: Duration,
    ) {
        match (self, &upstream.water) {
            (Current::Flow { course, figures }, Some(water)) => {
                read(water, states, figures);
                let flows = course.follow(figures, elapsed);
                spread(&upstream.tiers, water, flows, states, shares);
            }
            (Current::Spill { healths }, _) => {
                healths.clear();
                healths.extend(states.iter().map(|state| state.health));
                spill(&upstream.tiers, healths, shares, elapsed);
            }
            // Made for this very upstream, which had water then.
            (Current::Flow { .. }, None) => {}
        }
    }
}

fn course(water: &Water) -> Course {
    let names = water.zones.iter().map(|zone| &*zone.name);
    Course::new(names, water.own, water.levels.clone(), water.declared)
}

fn spill(tiers: &[Tier], healths: &mut [f64], shares: &mut [f64], elapsed: Duration) {
    zone::spare_backups(tiers, healths);
    if shares.iter().any(|share| share.is_nan()) {
        zone::spill(healths, shares);
    } else {
        zone::follow(healths, shares, elapsed);
    }
}

fn read(water: &Water, states: &[State], figures: &mut Vec<Figures>) {
    figures.clear();
    figures.extend(water.zones.iter().map(|zone| Figures {
        capacity: zone.tier.map_or(0.0, |tier| states[tier].capacity),
        demand: zone.demand,
    }));
}

fn spread(tiers: &[Tier], water: &Water, flows: &[f64], states: &[State], shares: &mut [f64]) {
    shares.fill(0.0);
    for (zone, share) in water.zones.iter().zip(flows) {
        if let Some(tier) = zone.tier {
            shares[tier] = *share;
        }
    }
    if let Some(last) = tiers.last()
        && last.backup
        && shares.iter().all(|share| *share <= 0.0)
        && states[tiers.len() - 1].capacity > 0.0
    {
        shares[tiers.len() - 1] = 1.0;
    }
}
