//! Everybody in turn, by weight and smoothly: A A B A for 3:1, never A A A B.
//!
//! Not here: who may have a turn; the caller's `open` says. Equal weights go round a ring; differing ones are an
//! earliest-deadline-first queue, each turn 1 / weight after the one before.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap},
};

/// Whose turn is next. Places are indices into the tier's members.
#[derive(Debug)]
pub(super) struct RoundRobin {
    /// Last place that had a turn on the ring.
    cursor: usize,
    even: bool,
    /// Virtual time of the last turn by weight.
    clock: f64,
    turns: BinaryHeap<Reverse<Turn>>,
    /// A random number of each place, so that sidecars differ in who comes first.
    phase: Vec<f64>,
    /// Who has a turn ahead; kept so that a refresh allocates nothing.
    queued: Vec<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    at: f64,
    /// Longer steps go first among equals: the rare one must not be put off by the frequent one.
    step: f64,
    place: usize,
}

impl PartialEq for Turn {
    fn eq(&self, other: &Turn) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Turn) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Turn) -> Ordering {
        let at = self.at.total_cmp(&other.at);
        at.then(other.step.total_cmp(&self.step))
            .then(self.place.cmp(&other.place))
    }
}

impl RoundRobin {
    /// For endpoints of these ids, starting where `salt` says: another for each worker of each sidecar.
    pub fn new(ids: &[u64], salt: u64) -> RoundRobin {
        let n = ids.len();
        RoundRobin {
            cursor: (salt % n.max(1) as u64) as usize,
            even: true,
            clock: 0.0,
            turns: BinaryHeap::with_capacity(n),
            phase: ids.iter().map(|id| fraction(salt ^ id)).collect(),
            queued: vec![false; n],
        }
    }

    /// The same turns for a changed membership: `old` and `new` are endpoint ids by place.
    pub fn carried(&self, old: &[u64], new: &[u64], salt: u64) -> RoundRobin {
        let mut next = RoundRobin::new(new, salt);
        next.even = self.even;
        next.clock = self.clock;
        let places: BTreeMap<u64, usize> = new.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        // Whoever had the last turn, or the nearest before it that is still there, marks the place.
        let n = old.len();
        let before = (0..n).map(|back| old[(self.cursor + n - back) % n]);
        if let Some(place) = before.filter_map(|id| places.get(&id)).next() {
            next.cursor = *place;
        }
        for Reverse(turn) in &self.turns {
            if let Some(place) = places.get(&old[turn.place]) {
                next.turns.push(Reverse(Turn {
                    place: *place,
                    ..*turn
                }));
            }
        }
        next
    }

    /// Takes note of changed weights; 0 has no turn.
    pub fn weigh(&mut self, weights: &[f32]) {
        let mut some = weights.iter().filter(|w| **w > 0.0);
        let first = some.next().copied().unwrap_or(1.0);
        self.even = some.all(|w| *w == first);
        if self.even {
            self.turns.clear();
            return;
        }
        self.queued.fill(false);
        for Reverse(turn) in &self.turns {
            self.queued[turn.place] = true;
        }
        for (place, weight) in weights.iter().enumerate() {
            if *weight > 0.0 && !self.queued[place] {
                let step = 1.0 / f64::from(*weight);
                let at = self.clock + step * self.phase[place];
                self.turns.push(Reverse(Turn { at, step, place }));
            }
        }
    }

    /// The place whose turn it is, and its turn is over.
    pub fn next(&mut self, weights: &[f32], open: impl Fn(usize) -> bool) -> Option<usize> {
        let n = weights.len();
        if self.even {
            for _ in 0..n {
                self.cursor = if self.cursor + 1 < n {
                    self.cursor + 1
                } else {
                    0
                };
                if open(self.cursor) {
                    return Some(self.cursor);
                }
            }
            return None;
        }
        for _ in 0..2 * self.turns.len() {
            let mut first = self.turns.peek_mut()?;
            let Turn { at, place, .. } = first.0;
            if weights[place] <= 0.0 {
                // It comes back into the queue when it has weight again.
                std::collections::binary_heap::PeekMut::pop(first);
                continue;
            }
            let step = 1.0 / f64::from(weights[place]);
            let next = at.max(self.clock) + step;
            *first = Reverse(Turn {
                at: next,
                step,
                place,
            });
            drop(first);
            if open(place) {
                self.clock = self.clock.max(at);
                return Some(place);
            }
        }
        None
    }
}

/// A number from 0 to 1 that looks random (the finalizer of splitmix64).
fn fraction(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
