//! Water-filling: how the demand of all zones runs into their capacities, nearest first, reckoned for all at once.
//!
//! Not here: where the figures come from (`snapshot/`), how fast shares follow them (`course.rs`), priority with spill
//! (`mod.rs`).
//!
//! Every sidecar reckons the flows of every zone and uses its own zone's row. So two zones that spill at the same time
//! know of each other, and do not overfill a third.

/// A zone with declared capacity is filled to this share of it before it hands anything on.
pub const FULL: f64 = 0.70;

/// Above this load of all zones together nothing more is spilled: the servers shed what is too much, each at home.
pub const OVERLOAD: f64 = 0.90;

/// Where only weights are known, a zone keeps all of its demand until its part of it is this many times its part of
/// the weights.
pub const WEIGHTS_FULL: f64 = 1.4;

/// No zone is this level for another: it is not to be called from there.
pub const NEVER: u8 = u8::MAX;

/// Rounds in which a level is filled. The usual levels need one; only orders written by operators may need more, and
/// what is left then goes on to the next level.
const ROUNDS_MAX: usize = 8;

/// Shares below this are rounding.
pub(super) const TINY: f64 = 1e-9;

/// A zone without demand is reckoned with this part of what all can take: its share is asked for all the same.
const DEMAND_MIN: f64 = 1e-9;

/// What is known of one zone, in requests per second, or in weights for `capacity` where those stand for it.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Figures {
    /// What its endpoints that are well can take.
    pub capacity: f64,
    /// What its applications ask for.
    pub demand: f64,
}

/// How near each zone is to each other one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Levels {
    zones: usize,
    /// Row: from; column: to. 0 is tried first; [`NEVER`].
    level: Vec<u8>,
    count: u8,
}

impl Levels {
    /// Levels of `zones` zones; `level(from, to)` is 0 for the nearest.
    pub fn new(zones: usize, level: impl Fn(usize, usize) -> u8) -> Levels {
        let cells = (0..zones * zones).map(|cell| level(cell / zones, cell % zones));
        let level: Vec<u8> = cells.collect();
        let used = level.iter().filter(|level| **level != NEVER);
        let count = used.max().map_or(0, |highest| highest + 1);
        Levels {
            zones,
            level,
            count,
        }
    }

    /// How near `to` is to `from`.
    pub fn of(&self, from: usize, to: usize) -> u8 {
        self.level[from * self.zones + to]
    }

    /// How many zones there are.
    pub fn zones(&self) -> usize {
        self.zones
    }
}

/// How far zones are filled.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Fill {
    /// Demand of all zones over the capacity of all, ΣD/ΣC; infinite where there is no capacity at all.
    pub load: f64,
    /// T: demand a zone takes per unit of its capacity before it hands on, [`FULL`] or more.
    pub target: f64,
    /// All zones together are over [`OVERLOAD`]: nothing more is spilled.
    pub overload: bool,
}

/// How far zones are filled, from the figures of all; `declared`: capacities are requests per second and no weights.
pub fn target(figures: &[Figures], declared: bool) -> Fill {
    let capacity: f64 = figures.iter().map(|zone| zone.capacity).sum();
    let demand: f64 = figures.iter().map(|zone| zone.demand).sum();
    let load = if capacity > 0.0 {
        demand / capacity
    } else {
        f64::INFINITY
    };
    let (target, overload) = if declared {
        (load.clamp(FULL, OVERLOAD), load > OVERLOAD)
    } else {
        // Where nobody asks for anything, any level will do.
        let level = if demand > 0.0 { load } else { 1.0 };
        (level * WEIGHTS_FULL, false)
    };
    Fill {
        load,
        target,
        overload,
    }
}

/// The flows between all zones, and the room to reckon them in: nothing is allocated after [`Flows::new`].
#[derive(Clone, PartialEq, Debug)]
pub struct Flows {
    zones: usize,
    /// Row: from; column: to. Shares of the demand of `from`.
    share: Vec<f64>,
    /// By zone: share of its demand that is placed nowhere yet.
    excess: Vec<f64>,
    demand: Vec<f64>,
    spare: Vec<f64>,
    wanted: Vec<f64>,
    pull: Vec<f64>,
}

impl Flows {
    /// Room for `zones` zones; no flow yet.
    pub fn new(zones: usize) -> Flows {
        Flows {
            zones,
            share: vec![0.0; zones * zones],
            excess: vec![0.0; zones],
            demand: vec![0.0; zones],
            spare: vec![0.0; zones],
            wanted: vec![0.0; zones],
            pull: vec![0.0; zones],
        }
    }

    /// Shares of `from`'s demand by zone; they add up to 1, or are all 0 where nobody has any capacity.
    pub fn of(&self, from: usize) -> &[f64] {
        &self.share[from * self.zones..(from + 1) * self.zones]
    }

    /// Share of `from`'s demand that stays at its nearest level.
    pub fn nearest(&self, from: usize, levels: &Levels) -> f64 {
        let row = self.of(from).iter().enumerate();
        row.filter(|(to, _)| levels.of(from, *to) == 0)
            .map(|(_, share)| share)
            .sum()
    }

    /// Reckons all flows: level by level, each for all zones before the next.
    ///
    /// A zone gives at most `nearest_max` of its demand to its own nearest level (1: as much as goes in), and what
    /// this holds back from there is reserved for it.
    pub fn fill(&mut self, figures: &[Figures], levels: &Levels, fill: Fill, nearest_max: &[f64]) {
        debug_assert!(figures.len() == self.zones && nearest_max.len() == self.zones);
        let capacity: f64 = figures.iter().map(|zone| zone.capacity).sum();
        self.share.fill(0.0);
        if capacity <= 0.0 {
            return;
        }
        let least = capacity * fill.target * DEMAND_MIN;
        self.excess.fill(1.0);
        for (zone, figures) in figures.iter().enumerate() {
            self.demand[zone] = figures.demand.max(least);
            self.spare[zone] = figures.capacity * fill.target;
        }
        for level in 0..levels.count {
            self.fill_level(level, levels);
            if level == 0 {
                self.hold_back(levels, nearest_max);
            }
        }
        for (from, most) in nearest_max.iter().enumerate() {
            if self.excess[from] > TINY {
                self.place_rest(from, figures, levels, fill.overload, *most);
            }
        }
    }

    /// What each zone could not place runs into the spare room of its zones of this level, in proportion to it.
    fn fill_level(&mut self, level: u8, levels: &Levels) {
        let zones = self.zones;
        for _ in 0..ROUNDS_MAX {
            self.wanted.fill(0.0);
            for from in 0..zones {
                let reached = (0..zones).filter(|to| levels.of(from, *to) == level);
                let room: f64 = reached.clone().map(|to| self.spare[to]).sum();
                let amount = self.excess[from] * self.demand[from];
                let asks = self.excess[from] > TINY && room > 0.0;
                self.pull[from] = if asks { amount / room } else { 0.0 };
                for to in reached {
                    self.wanted[to] += self.pull[from] * self.spare[to];
                }
            }
            let mut is_short = false;
            for from in (0..zones).filter(|from| self.pull[*from] > 0.0) {
                for to in (0..zones).filter(|to| levels.of(from, *to) == level) {
                    let granted = (self.spare[to] / self.wanted[to]).min(1.0);
                    is_short |= granted < 1.0;
                    let share = self.pull[from] * self.spare[to] * granted / self.demand[from];
                    if share > 0.0 {
                        self.share[from * zones + to] += share;
                        self.excess[from] -= share;
                    }
                }
            }
            for (spare, wanted) in self.spare.iter_mut().zip(&self.wanted) {
                *spare = (*spare - wanted).max(0.0);
            }
            if !is_short {
                return;
            }
        }
    }

    fn hold_back(&mut self, levels: &Levels, nearest_max: &[f64]) {
        for (from, most) in nearest_max.iter().enumerate() {
            let placed = self.nearest(from, levels);
            if placed > *most {
                for to in (0..self.zones).filter(|to| levels.of(from, *to) == 0) {
                    self.share[from * self.zones + to] *= most / placed;
                }
                self.excess[from] += placed - most;
            }
        }
    }

    /// Nobody has room for the rest of `from`'s demand: in overload it stays where it is, else it goes to whoever has
    /// any capacity, in proportion to that.
    fn place_rest(
        &mut self,
        from: usize,
        figures: &[Figures],
        levels: &Levels,
        overload: bool,
        nearest_max: f64,
    ) {
        let near = |to: usize| levels.of(from, to) == 0;
        let far = |to: usize| !matches!(levels.of(from, to), 0 | NEVER);
        if overload {
            let room = (nearest_max - self.nearest(from, levels)).max(0.0);
            self.spread(from, self.excess[from].min(room), figures, near);
        }
        self.spread(from, self.excess[from], figures, far);
        self.spread(from, self.excess[from], figures, near);
    }

    fn spread(
        &mut self,
        from: usize,
        share: f64,
        figures: &[Figures],
        reached: impl Fn(usize) -> bool,
    ) {
        let among = (0..self.zones).filter(|to| reached(*to));
        let capacity: f64 = among.clone().map(|to| figures[to].capacity).sum();
        if share <= 0.0 || capacity <= 0.0 {
            return;
        }
        for to in among {
            self.share[from * self.zones + to] += share * figures[to].capacity / capacity;
        }
        self.excess[from] -= share;
    }
}

#[cfg(test)]
mod tests;
