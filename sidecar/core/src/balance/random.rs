//! By chance and weight, in constant time: Walker's alias table (Vose's construction, 1991).
//!
//! Not here: who may be drawn; the caller's `open` says.

use rand::{Rng, RngExt};

/// Draws before an open place is looked for in order; closed ones are few, or the scan is short.
const DRAWS_MAX: usize = 8;

/// An alias table over weights.
#[derive(Debug, Default)]
pub(super) struct Random {
    weights: Vec<f32>,
    /// Chance that a slot keeps its draw, and who gets it otherwise.
    slots: Vec<(f32, u32)>,
    even: bool,
    small: Vec<u32>,
    large: Vec<u32>,
}

impl Random {
    /// Builds the table anew if the weights changed.
    pub fn weigh(&mut self, weights: &[f32]) {
        if self.weights == weights {
            return;
        }
        self.weights.clear();
        self.weights.extend_from_slice(weights);
        self.even = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let n = weights.len();
        let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        self.slots.clear();
        self.small.clear();
        self.large.clear();
        if sum <= 0.0 {
            return;
        }
        for (i, weight) in weights.iter().enumerate() {
            let part = (f64::from(*weight) * n as f64 / sum) as f32;
            self.slots.push((part, i as u32));
            let pile = if part < 1.0 {
                &mut self.small
            } else {
                &mut self.large
            };
            pile.push(i as u32);
        }
        while let (Some(poor), Some(rich)) = (self.small.pop(), self.large.pop()) {
            self.slots[poor as usize].1 = rich;
            let left = self.slots[rich as usize].0 - (1.0 - self.slots[poor as usize].0);
            self.slots[rich as usize].0 = left;
            let pile = if left < 1.0 {
                &mut self.small
            } else {
                &mut self.large
            };
            pile.push(rich);
        }
        // Whoever is left over is whole but for rounding.
        for rest in self.small.drain(..).chain(self.large.drain(..)) {
            self.slots[rest as usize].0 = 1.0;
        }
    }

    /// A place by weight; everybody is open.
    #[inline]
    pub fn draw_of_all(&self, rng: &mut impl Rng) -> Option<usize> {
        (!self.slots.is_empty()).then(|| self.place(rng))
    }

    /// Two distinct places by weight; the second is `None` where there is only one. Everybody is open.
    #[inline]
    pub fn draw_two_of_all(&self, rng: &mut impl Rng) -> Option<(usize, Option<usize>)> {
        let n = self.slots.len() as u64;
        if !self.even || n < 2 {
            let first = self.draw_of_all(rng)?;
            return Some((first, self.draw(|place| place != first, rng)));
        }
        let dice = rng.next_u64();
        let first = ((dice >> 32) * n) >> 32;
        // One place less to choose from, and those from the first on are one further.
        let second = (u64::from(dice as u32) * (n - 1)) >> 32;
        let second = second + u64::from(second >= first);
        Some((first as usize, Some(second as usize)))
    }

    /// A place by weight among those that `open` allows.
    pub fn draw(&self, open: impl Fn(usize) -> bool, rng: &mut impl Rng) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        for _ in 0..DRAWS_MAX {
            let place = self.place(rng);
            if open(place) {
                return Some(place);
            }
        }
        self.draw_among_open(open, rng)
    }

    #[inline]
    fn place(&self, rng: &mut impl Rng) -> usize {
        let n = self.slots.len() as u64;
        let dice = rng.next_u64();
        // The upper half chooses the slot (multiply and shift is even to one in 2^32 / n), the lower its chance.
        let slot = (((dice >> 32) * n) >> 32) as usize;
        if self.even {
            return slot;
        }
        let (keep, other) = self.slots[slot];
        if ((dice as u32 >> 8) as f32) < keep * (1 << 24) as f32 {
            slot
        } else {
            other as usize
        }
    }

    fn draw_among_open(&self, open: impl Fn(usize) -> bool, rng: &mut impl Rng) -> Option<usize> {
        let places = || (0..self.weights.len()).filter(|i| open(*i));
        let sum: f32 = places().map(|i| self.weights[i]).sum();
        let mut at = rng.random::<f32>() * sum;
        let mut last = None;
        for i in places() {
            last = Some(i);
            at -= self.weights[i];
            if at < 0.0 {
                break;
            }
        }
        last
    }
}
