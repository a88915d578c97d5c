//! How fast a sidecar's shares follow the figures: a loss at once, a gain slowly, and small changes only if they last.
//!
//! Not here: what the shares should be (`water.rs`).

use std::time::Duration;

use super::{
    GAIN_PER_SECOND,
    water::{Figures, Fill, Flows, Levels, TINY, target},
};

/// Figures whose shares differ from those in use by no more than this are not followed at once: they are noise.
pub const DEAD_BAND: f64 = 0.03;

/// What has stood unchanged for so long is no noise: a demand that came to be known better is told once and then stands,
/// and zones would else be filled unevenly by the whole dead-band for as long as it does.
pub const BELIEVED_AFTER: Duration = Duration::from_secs(5);

/// A zone of the figures, as it was reckoned with last.
#[derive(Clone, PartialEq, Debug)]
struct Entered {
    name: Box<str>,
    /// Capacity that has entered so far; at most the true one.
    capacity: f64,
    /// Share of its demand that its nearest level may have.
    nearest: f64,
}

/// One worker's way from figures to shares.
#[derive(Clone, Debug)]
pub struct Course {
    own: usize,
    entered: Vec<Entered>,
    /// As last handed in; nothing was yet while `is_unread`.
    seen: Vec<Figures>,
    is_unread: bool,
    /// As followed: the same, or others that come to nearly the same shares.
    followed: Vec<Figures>,
    declared: bool,
    levels: Levels,
    /// Where `seen` and `followed` would lead in the end.
    aim: Flows,
    aim_followed: Flows,
    /// As used now.
    flows: Flows,
    fill: Fill,
    capacities: Vec<Figures>,
    limits: Vec<f64>,
    /// For how long `seen` has stood although others are followed; `None` where they are followed.
    doubted: Option<Duration>,
    /// Nothing was followed yet: the first figures are taken over as they are.
    is_fresh: bool,
    is_settled: bool,
}

impl Course {
    /// A course for these zones (sorted by name), of which `own` is the one this sidecar stands in.
    pub fn new<'a>(
        names: impl Iterator<Item = &'a str>,
        own: usize,
        levels: Levels,
        declared: bool,
    ) -> Course {
        let entered: Vec<Entered> = names
            .map(|name| Entered {
                name: name.into(),
                capacity: 0.0,
                nearest: 1.0,
            })
            .collect();
        let zones = entered.len();
        let flows = Flows::new(zones);
        Course {
            own,
            seen: vec![Figures::default(); zones],
            is_unread: true,
            followed: vec![Figures::default(); zones],
            capacities: vec![Figures::default(); zones],
            limits: vec![1.0; zones],
            declared,
            levels,
            aim: flows.clone(),
            aim_followed: flows.clone(),
            flows,
            fill: target(&[], declared),
            doubted: None,
            is_fresh: true,
            is_settled: false,
            entered,
        }
    }

    /// A course for other zones that goes on where this one is; a zone that is new begins with nothing.
    pub fn carried<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        own: usize,
        levels: Levels,
        declared: bool,
    ) -> Course {
        let mut next = Course::new(names, own, levels, declared);
        // A capacity in weights says nothing of one in requests per second.
        if self.is_fresh || declared != self.declared {
            return next;
        }
        next.is_fresh = false;
        for (zone, followed) in next.entered.iter_mut().zip(&mut next.followed) {
            if let Some(at) = self.entered.iter().position(|old| old.name == zone.name) {
                zone.clone_from(&self.entered[at]);
                *followed = self.followed[at];
            }
        }
        next.reckon_followed();
        next
    }

    /// Shares of this sidecar's requests by zone after `elapsed`.
    pub fn follow(&mut self, figures: &[Figures], elapsed: Duration) -> &[f64] {
        if self.is_unread || self.seen != figures {
            self.is_unread = false;
            self.seen.copy_from_slice(figures);
            let fill = target(figures, self.declared);
            self.limits.fill(1.0);
            self.aim.fill(figures, &self.levels, fill, &self.limits);
            let at_once = self.is_fresh || self.is_beyond_dead_band();
            self.doubted = (!at_once).then_some(Duration::ZERO);
            if at_once {
                self.believe();
            }
        } else if let Some(stood) = self.doubted {
            let stood = stood + elapsed;
            self.doubted = (stood < BELIEVED_AFTER).then_some(stood);
            if self.doubted.is_none() {
                self.believe();
            }
        }
        if !self.is_settled {
            self.step(elapsed);
        }
        self.flows.of(self.own)
    }

    /// Shares by zone as used now.
    pub fn shares(&self) -> &[f64] {
        self.flows.of(self.own)
    }

    /// What was handed in last is followed from now on.
    fn believe(&mut self) {
        self.followed.copy_from_slice(&self.seen);
        std::mem::swap(&mut self.aim_followed, &mut self.aim);
        self.is_settled = false;
    }

    fn reckon_followed(&mut self) {
        let fill = target(&self.followed, self.declared);
        self.limits.fill(1.0);
        self.aim_followed
            .fill(&self.followed, &self.levels, fill, &self.limits);
    }

    fn is_beyond_dead_band(&self) -> bool {
        let new = self.aim.of(self.own).iter();
        let mut both = new.zip(self.aim_followed.of(self.own));
        // All and nothing are always taken at their word, or a lost zone would keep its last few per cent.
        both.any(|(new, old)| {
            let is_end = |share: f64| share <= TINY || share >= 1.0 - TINY;
            let change = (new - old).abs();
            change > DEAD_BAND || (is_end(*new) && change > TINY)
        })
    }

    fn step(&mut self, elapsed: Duration) {
        let step = GAIN_PER_SECOND * elapsed.as_secs_f64();
        // Where nobody had anything there is nobody to spare the newcomers for.
        let at_once = self.is_fresh || self.entered.iter().all(|zone| zone.capacity <= 0.0);
        for (at, zone) in self.entered.iter_mut().enumerate() {
            let Figures { capacity, demand } = self.followed[at];
            zone.capacity = if at_once {
                capacity
            } else {
                capacity.min(zone.capacity + capacity * step)
            };
            self.capacities[at] = Figures {
                capacity: zone.capacity,
                demand,
            };
            self.limits[at] = if at_once {
                1.0
            } else {
                (zone.nearest + step).min(1.0)
            };
        }
        self.fill = target(&self.capacities, self.declared);
        self.flows
            .fill(&self.capacities, &self.levels, self.fill, &self.limits);
        let mut is_settled = true;
        for (at, zone) in self.entered.iter_mut().enumerate() {
            let placed = self.flows.nearest(at, &self.levels);
            // Where the limit did not bind, the next gain starts from what is placed.
            zone.nearest = placed.min(self.limits[at]);
            is_settled &= zone.capacity >= self.followed[at].capacity;
            is_settled &= placed < self.limits[at] - TINY || self.limits[at] >= 1.0;
        }
        self.is_fresh = false;
        self.is_settled = is_settled;
    }
}

#[cfg(test)]
mod tests;
