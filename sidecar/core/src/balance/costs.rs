//! The costs of one tier in an array, and the smallest of each block of them, so that a pick need not read them all.
//!
//! Not here: what a cost is made of (the file of the policy).

use rand::Rng;

/// Costs in one block: two of them and the smallest of a thousand fit the first-level cache many times over.
const BLOCK: usize = 64;

/// Numbers that are compared at once.
const LANES: usize = 16;

/// Above this many endpoints a pick looks at a random stretch only.
const SCAN_MAX: usize = 1_000;

/// Index = place in the tier's members; infinite for whom no pick may choose.
#[derive(Debug)]
pub(super) struct Costs {
    all: Vec<f32>,
    /// The smallest of each block.
    least: Vec<f32>,
    /// Blocks that were changed since `least` was right.
    stale: Vec<bool>,
}

impl Costs {
    pub fn new(count: usize) -> Costs {
        let blocks = count.div_ceil(BLOCK);
        Costs {
            all: vec![f32::INFINITY; count],
            least: vec![f32::INFINITY; blocks],
            stale: vec![false; blocks],
        }
    }

    #[inline]
    pub fn of(&self, place: usize) -> f32 {
        self.all[place]
    }

    /// Changes one; [`Costs::settle`] has to follow before the next pick.
    #[inline]
    pub fn set(&mut self, place: usize, cost: f32) {
        self.all[place] = cost;
        self.stale[place / BLOCK] = true;
    }

    /// Makes the blocks right again.
    #[inline]
    pub fn settle(&mut self) {
        for block in 0..self.stale.len() {
            if self.stale[block] {
                self.settle_block(block);
            }
        }
    }

    /// Changes one and makes its block right again.
    #[inline]
    pub fn set_one(&mut self, place: usize, cost: f32) {
        self.all[place] = cost;
        // Beyond a thousand the blocks are not looked at.
        if self.all.len() <= SCAN_MAX {
            self.settle_block(place / BLOCK);
        } else {
            self.stale[place / BLOCK] = true;
        }
    }

    #[inline]
    fn settle_block(&mut self, block: usize) {
        self.stale[block] = false;
        self.least[block] = least(block_of(&self.all, block));
    }

    /// The place of the least cost, ties broken by where a random start finds the first of them; `None` if all are
    /// infinite. Long arrays are sampled by one random stretch.
    pub fn cheapest(&mut self, stretch: usize, rng: &mut impl Rng) -> Option<usize> {
        let n = self.all.len();
        let start = match n {
            0 => return None,
            1 => 0,
            // Multiply and shift: even to one in 2^32 / n, and without a division.
            _ => ((u64::from(rng.next_u32()) * n as u64) >> 32) as usize,
        };
        if n > SCAN_MAX {
            let sampled = self.cheapest_of_stretch(start, stretch);
            if sampled.is_some() {
                return sampled;
            }
            self.settle();
        }
        let wanted = least(&self.least);
        if wanted == f32::INFINITY {
            return None;
        }
        let first = start / BLOCK;
        let split = start % BLOCK;
        if self.least[first] == wanted {
            let after = place_of(wanted, &block_of(&self.all, first)[split..]);
            if let Some(place) = after {
                return Some(start + place);
            }
        }
        let blocks = (first + 1..self.least.len()).chain(0..=first);
        for block in blocks {
            if self.least[block] == wanted {
                let found = place_of(wanted, block_of(&self.all, block));
                return found.map(|place| block * BLOCK + place);
            }
        }
        None
    }

    fn cheapest_of_stretch(&self, start: usize, stretch: usize) -> Option<usize> {
        let n = self.all.len();
        let head = &self.all[start..(start + stretch).min(n)];
        let tail = &self.all[..(start + stretch).saturating_sub(n)];
        let wanted = least(head).min(least(tail));
        if wanted == f32::INFINITY {
            return None;
        }
        let found = place_of(wanted, head).map(|place| start + place);
        found.or_else(|| place_of(wanted, tail))
    }
}

#[inline]
fn block_of(all: &[f32], block: usize) -> &[f32] {
    &all[block * BLOCK..((block + 1) * BLOCK).min(all.len())]
}

/// The first place of `wanted`, sixteen numbers at a time for the same reason as in [`least`].
#[inline]
fn place_of(wanted: f32, costs: &[f32]) -> Option<usize> {
    let mut chunks = costs.chunks_exact(16);
    let chunk = chunks.position(|chunk| chunk.iter().fold(false, |any, c| any | (*c == wanted)));
    let from = chunk.map_or(costs.len() - costs.len() % 16, |chunk| chunk * 16);
    let found = costs[from..].iter().position(|c| *c == wanted);
    found.map(|place| from + place)
}

/// The smallest number, sixteen lanes at a time so that the compiler can use vector instructions, enough of them to
/// hide their latency.
#[inline]
fn least(costs: &[f32]) -> f32 {
    let smaller = |a: f32, c: f32| if c < a { c } else { a };
    let (chunks, rest) = costs.as_chunks::<LANES>();
    let mut lanes = [f32::INFINITY; LANES];
    for chunk in chunks {
        for (lane, c) in lanes.iter_mut().zip(chunk) {
            *lane = smaller(*lane, *c);
        }
    }
    for (lane, c) in lanes.iter_mut().zip(rest) {
        *lane = smaller(*lane, *c);
    }
    // Halves against each other: one lane after the other would wait for the one before sixteen times.
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = smaller(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    use crate::staging::dice;

    #[test]
    fn the_cheapest_is_found_wherever_it_is_and_ties_are_shared() {
        let mut rng = dice(1);
        for count in [1, 2, 15, 16, 17, 64, 65, 130, 1_000] {
            let mut costs = Costs::new(count);
            assert_eq!(costs.cheapest(64, &mut rng), None, "{count}");
            for place in 0..count {
                costs.set(place, rng.random_range(2.0..3.0));
            }
            costs.settle();
            for _ in 0..50 {
                let place = rng.random_range(0..count);
                let before = costs.of(place);
                costs.set_one(place, 1.0);
                assert_eq!(costs.cheapest(64, &mut rng), Some(place), "{count}");
                costs.set_one(place, before);
            }
        }
        let mut costs = Costs::new(65);
        (0..65).for_each(|place| costs.set(place, 1.0));
        costs.settle();
        let mut counts = [0; 65];
        for _ in 0..65_000 {
            counts[costs.cheapest(64, &mut rng).expect("all are open")] += 1;
        }
        assert!(
            counts.iter().all(|c| (850..1_150).contains(c)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_long_array_is_sampled_and_searched_whole_if_the_sample_is_closed() {
        let mut rng = dice(2);
        let mut costs = Costs::new(5_000);
        costs.set(4_321, 7.0);
        for _ in 0..20 {
            assert_eq!(costs.cheapest(64, &mut rng), Some(4_321));
        }
        (0..5_000).for_each(|place| costs.set(place, 1.0));
        let places: std::collections::BTreeSet<Option<usize>> =
            (0..200).map(|_| costs.cheapest(64, &mut rng)).collect();
        assert!(places.len() > 150, "{}", places.len());
    }
}
