//! Everybody in turn, by weight and smoothly: A A B A for 3:1, never A A A B.
//!
//! Not here: who may have a turn; the caller's `open` says. Equal weights go round a ring. With differing ones each has
//! a turn every 1 / weight of a virtual time, earliest first. A heap would find the next of them in O(log n) and miss
//! the cache on the way; here the turns of a whole stretch of that time are sorted at once, which comes to the same
//! order and to a few nanoseconds a turn.

use std::collections::BTreeMap;

/// Fewest turns that are planned at once: with few endpoints, so that planning is not every other pick.
const PLANNED_MIN: usize = 64;

/// The golden ratio's part behind the point: its multiples fall as far from each other as they can.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// Whose turn is next. Places are indices into the tier's members.
#[derive(Debug)]
pub(super) struct RoundRobin {
    /// Last place that had a turn on the ring.
    cursor: usize,
    even: bool,
    /// As last told; 0 has no turn.
    weights: Vec<f32>,
    /// When the next turn is that is not in `plan`, counted from where the plan begins.
    next_at: Vec<f64>,
    /// The turns of one stretch, earliest first.
    plan: Vec<Turn>,
    /// How many of them are over.
    done: usize,
    /// How long the stretch is.
    stretch: f64,
    /// What part of its first step each place waits: spread evenly whatever their number, so that the turns of the light
    /// ones do not fall together and leave the heavy one several in a row, and from another start in every sidecar.
    phase: Vec<f64>,
}

/// One turn: its time in the upper half (the bits of a positive number are in the order of the numbers), its place in
/// the lower, so that sorting is of plain integers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Turn(u64);

impl Turn {
    fn new(at: f64, place: usize) -> Turn {
        Turn(u64::from((at as f32).to_bits()) << 32 | place as u64)
    }

    fn at(self) -> f64 {
        f64::from(f32::from_bits((self.0 >> 32) as u32))
    }

    #[inline]
    fn place(self) -> usize {
        self.0 as u32 as usize
    }
}

impl RoundRobin {
    /// For `n` endpoints, starting where `salt` says: another for each worker of each sidecar.
    pub fn new(n: usize, salt: u64) -> RoundRobin {
        let start = fraction(salt);
        RoundRobin {
            cursor: (salt % n.max(1) as u64) as usize,
            even: true,
            weights: vec![0.0; n],
            next_at: vec![0.0; n],
            // Everyone has at most one turn more in a stretch than its share of it.
            plan: Vec::with_capacity(n + planned(n)),
            done: 0,
            stretch: 0.0,
            phase: (0..n)
                .map(|place| (start + place as f64 * GOLDEN).fract())
                .collect(),
        }
    }

    /// The same turns for a changed membership: `old` and `new` are endpoint ids by place.
    pub fn carried(&self, old: &[u64], new: &[u64], salt: u64) -> RoundRobin {
        let mut next = RoundRobin::new(new.len(), salt);
        next.even = self.even;
        let places: BTreeMap<u64, usize> = new.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        // Whoever had the last turn, or the nearest before it that is still there, marks the place.
        let n = old.len();
        let before = (0..n).map(|back| old[(self.cursor + n - back) % n]);
        if let Some(place) = before.filter_map(|id| places.get(&id)).next() {
            next.cursor = *place;
        }
        let mut ahead = self.next_at.clone();
        self.unplanned(&mut ahead);
        for (place, id) in old.iter().enumerate() {
            if let Some(now_at) = places.get(id) {
                next.weights[*now_at] = self.weights[place];
                next.next_at[*now_at] = ahead[place];
            }
        }
        next
    }

    /// Takes note of changed weights; 0 has no turn.
    pub fn weigh(&mut self, weights: &[f32]) {
        let mut some = weights.iter().filter(|w| **w > 0.0);
        let first = some.next().copied().unwrap_or(1.0);
        self.even = some.all(|w| *w == first);
        if self.weights == weights {
            return;
        }
        let mut ahead = std::mem::take(&mut self.next_at);
        self.unplanned(&mut ahead);
        self.next_at = ahead;
        (self.done, self.stretch) = (0, 0.0);
        self.plan.clear();
        for (place, weight) in weights.iter().enumerate() {
            let before = std::mem::replace(&mut self.weights[place], *weight);
            let at = &mut self.next_at[place];
            if *weight <= 0.0 {
                continue;
            }
            let step = 1.0 / f64::from(*weight);
            *at = if before > 0.0 {
                // Whatever part of the way to its next turn is behind it stays behind it.
                (*at * f64::from(before) * step).min(step)
            } else {
                step * self.phase[place]
            };
        }
    }

    /// Times of the next turns from now on, as if nothing were planned.
    fn unplanned(&self, next_at: &mut [f64]) {
        let rest = self.plan.get(self.done..).unwrap_or_default();
        // Where a plan ends begins the time after it.
        let now = match rest.first() {
            Some(turn) => turn.at(),
            None => self.stretch,
        };
        for turn in rest.iter().rev() {
            next_at[turn.place()] = turn.at();
        }
        for at in next_at {
            *at = (*at - now).max(0.0);
        }
    }

    /// Plans the turns of the next stretch, which is as long as to give about everyone one turn.
    fn plan(&mut self) {
        let all: f64 = self.weights.iter().map(|w| f64::from(*w)).sum();
        self.plan.clear();
        self.done = 0;
        if all <= 0.0 {
            return;
        }
        let behind = std::mem::replace(&mut self.stretch, planned(self.weights.len()) as f64 / all);
        for (place, weight) in self.weights.iter().enumerate() {
            if *weight <= 0.0 {
                continue;
            }
            let step = 1.0 / f64::from(*weight);
            let mut at = self.next_at[place] - behind;
            while at < self.stretch {
                self.plan.push(Turn::new(at.max(0.0), place));
                at += step;
            }
            self.next_at[place] = at;
        }
        self.plan.sort_unstable();
    }

    /// The next place where all weights are equal and all are open.
    #[inline]
    fn step(&mut self) -> usize {
        self.cursor += 1;
        if self.cursor >= self.weights.len() {
            self.cursor = 0;
        }
        self.cursor
    }

    #[inline]
    fn turn(&mut self) -> Option<usize> {
        if self.done == self.plan.len() {
            self.plan();
        }
        let turn = self.plan.get(self.done)?;
        self.done += 1;
        Some(turn.place())
    }

    /// The place whose turn it is, and its turn is over; everybody is open.
    #[inline]
    pub fn next_of_all(&mut self) -> Option<usize> {
        if self.even {
            Some(self.step())
        } else {
            self.turn()
        }
    }

    /// The place whose turn it is among those that `open` allows, and its turn is over.
    pub fn next(&mut self, open: impl Fn(usize) -> bool) -> Option<usize> {
        let n = self.weights.len();
        if self.even {
            return (0..n).map(|_| self.step()).find(|place| open(*place));
        }
        // Not even a whole plan need have a turn of the only one that is open, if the others weigh far more.
        for _ in 0..self.plan.capacity() {
            let place = self.turn()?;
            if open(place) {
                return Some(place);
            }
        }
        (0..n).map(|_| self.step()).find(|place| open(*place))
    }
}

/// Turns that are planned at once for `n` endpoints.
fn planned(n: usize) -> usize {
    n.max(PLANNED_MIN)
}

/// A number from 0 to 1 that looks random (the finalizer of splitmix64).
pub(super) fn fraction(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whose turns they are for `turns` of them, by looking for the earliest each time.
    fn one_by_one(weights: &[f32], phase: &[f64], turns: usize) -> Vec<usize> {
        let step = |place: usize| 1.0 / f64::from(weights[place]);
        let mut at: Vec<f64> = (0..weights.len()).map(|i| phase[i] * step(i)).collect();
        let mut earliest = || {
            let place = (0..at.len()).min_by(|a, b| at[*a].total_cmp(&at[*b]))?;
            at[place] += step(place);
            Some(place)
        };
        (0..turns).map_while(|_| earliest()).collect()
    }

    #[test]
    fn planned_turns_are_those_of_an_earliest_deadline_queue() {
        for weights in [vec![3.0, 1.0], vec![1.0, 7.0, 50.0, 1_000.0], vec![0.1; 3]] {
            let mut turns = RoundRobin::new(weights.len(), 7);
            turns.weigh(&weights);
            turns.even = false;
            let want = one_by_one(&weights, &turns.phase, 1_000);
            let got: Vec<usize> = (0..1_000).map_while(|_| turns.next_of_all()).collect();
            assert_eq!(got, want, "{weights:?}");
        }
    }

    #[test]
    fn light_ones_come_between_the_turns_of_a_heavy_one_wherever_they_start() {
        for salt in 0..200 {
            let mut turns = RoundRobin::new(4, salt);
            turns.weigh(&[300.0, 100.0, 100.0, 100.0]);
            let turns: Vec<usize> = (0..60).map_while(|_| turns.next_of_all()).collect();
            let in_a_row = turns.windows(3).any(|w| w.iter().all(|place| *place == 0));
            assert!(!in_a_row, "{salt}: {turns:?}");
        }
    }

    #[test]
    fn a_change_of_weights_gives_nobody_a_turn_too_many() {
        let mut turns = RoundRobin::new(4, 7);
        let mut counts = [0.0; 4];
        let mut due = [0.0; 4];
        for round in 0..500_u16 {
            let weights = [100.0, 300.0, 100.0 + f32::from(round), 10.0];
            turns.weigh(&weights);
            let sum: f32 = weights.iter().sum();
            for _ in 0..7 {
                counts[turns.next_of_all().expect("all have weight")] += 1.0;
                for (due, weight) in due.iter_mut().zip(weights) {
                    *due += weight / sum;
                }
            }
        }
        let off = counts.iter().zip(due).map(|(got, due)| got - due);
        assert!(
            off.into_iter().all(|off| off.abs() < 2.0),
            "{counts:?} {due:?}"
        );
    }

    #[test]
    fn the_only_open_one_is_found_however_little_it_weighs() {
        let mut turns = RoundRobin::new(3, 7);
        turns.weigh(&[1.0, 65_535.0, 65_535.0]);
        assert_eq!(turns.next(|place| place == 0), Some(0));
        assert_eq!(turns.next(|_| false), None);
    }
}
