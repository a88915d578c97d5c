//! The costs of one tier, and who costs least.
//!
//! Not here: what a cost is made of (the file of the policy).

use rand::Rng;

use super::tournament::{CONTESTANTS_MAX, Tournament};

/// Numbers that are compared at once.
const LANES: usize = 16;

/// Above this many endpoints a pick looks at a random stretch only.
const SCAN_MAX: usize = 1_000;

const _: () = assert!(SCAN_MAX <= CONTESTANTS_MAX);

/// Index = place in the tier's members; infinite for whom no pick may choose.
#[derive(Debug)]
pub(super) enum Costs {
    Few(Tournament),
    Many(Vec<f32>),
}

impl Costs {
    /// Infinite ones; `salt` shuffles who comes first among equals.
    pub fn new(count: usize, salt: u64) -> Costs {
        if count <= SCAN_MAX {
            Costs::Few(Tournament::new(count, salt))
        } else {
            Costs::Many(vec![f32::INFINITY; count])
        }
    }

    #[inline]
    pub fn of(&self, place: usize) -> f32 {
        match self {
            Costs::Few(few) => few.of(place),
            Costs::Many(all) => all[place],
        }
    }

    /// Changes one; [`Costs::settle`] has to follow before the next pick.
    #[inline]
    pub fn set(&mut self, place: usize, cost: f32) {
        match self {
            Costs::Few(few) => few.set(place, cost),
            Costs::Many(all) => all[place] = cost,
        }
    }

    /// The same for one that comes last among equals from now on.
    #[inline]
    pub fn queue(&mut self, place: usize, cost: f32) {
        match self {
            Costs::Few(few) => few.queue(place, cost),
            Costs::Many(all) => all[place] = cost,
        }
    }

    /// Makes changes count.
    #[inline]
    pub fn settle(&mut self) {
        if let Costs::Few(few) = self {
            few.settle();
        }
    }

    /// The one at `place` was chosen, which makes its cost another one.
    #[inline]
    pub fn chosen(&mut self, place: usize, cost: f32) {
        match self {
            Costs::Few(few) => few.chosen(place, cost),
            Costs::Many(all) => all[place] = cost,
        }
    }

    /// Takes over who comes first among equals: `places` tells the old place of each new one.
    pub fn carry(&mut self, before: &Costs, places: impl Iterator<Item = Option<usize>>) {
        if let (Costs::Few(few), Costs::Few(before)) = (self, before) {
            few.carry(before, places);
        }
    }

    /// The place of the least cost; `None` if all are infinite. Long arrays are sampled by one random stretch.
    #[inline]
    pub fn cheapest(&self, stretch: usize, rng: &mut impl Rng) -> Option<usize> {
        match self {
            Costs::Few(few) => few.cheapest(),
            Costs::Many(all) => {
                // Multiply and shift: even to one in 2^32 / n, and without a division.
                let start = ((u64::from(rng.next_u32()) * all.len() as u64) >> 32) as usize;
                let sampled = cheapest_of_stretch(all, start, stretch);
                sampled.or_else(|| cheapest_of_stretch(all, start, all.len()))
            }
        }
    }
}

/// The place of the least of `stretch` costs from `start` on, round the end; the first of those that cost the same.
fn cheapest_of_stretch(all: &[f32], start: usize, stretch: usize) -> Option<usize> {
    let n = all.len();
    let head = &all[start..(start + stretch).min(n)];
    let tail = &all[..(start + stretch).saturating_sub(n)];
    let wanted = least(head).min(least(tail));
    if wanted == f32::INFINITY {
        return None;
    }
    let found = place_of(wanted, head).map(|place| start + place);
    found.or_else(|| place_of(wanted, tail))
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
    fn the_cheapest_is_found_wherever_it_is() {
        let mut rng = dice(1);
        for count in [0, 1, 2, 15, 16, 17, 64, 65, 130, 1_000] {
            let mut costs = Costs::new(count, 7);
            assert_eq!(costs.cheapest(64, &mut rng), None, "{count}");
            for place in 0..count {
                costs.set(place, rng.random_range(2.0..3.0));
            }
            costs.settle();
            for _ in 0..50.min(count * 50) {
                let place = rng.random_range(0..count);
                let before = costs.of(place);
                costs.chosen(place, 1.0);
                assert_eq!(costs.cheapest(64, &mut rng), Some(place), "{count}");
                costs.chosen(place, before);
            }
        }
    }

    #[test]
    fn equals_take_turns_in_another_order_for_each_salt() {
        let mut orders = std::collections::BTreeSet::new();
        for salt in 0..20 {
            let mut costs = Costs::new(65, salt);
            (0..65).for_each(|place| costs.set(place, 1.0));
            costs.settle();
            let mut turn = || {
                let place = costs.cheapest(64, &mut dice(1)).expect("all are open");
                costs.chosen(place, 1.0);
                place
            };
            let order: Vec<usize> = (0..65).map(|_| turn()).collect();
            let everybody: std::collections::BTreeSet<&usize> = order.iter().collect();
            assert_eq!(everybody.len(), 65);
            let again: Vec<usize> = (0..65).map(|_| turn()).collect();
            assert_eq!(order, again);
            orders.insert(order);
        }
        assert_eq!(orders.len(), 20);
    }

    #[test]
    fn a_long_array_is_sampled_and_searched_whole_if_the_sample_is_closed() {
        let mut rng = dice(2);
        let mut costs = Costs::new(5_000, 7);
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
