//! A ring of points, many for each owner: a key belongs to whoever has the first point from its own on.
//!
//! Not here: what becomes of an owner that is out (Karger et al., 1997).

use super::{
    NOBODY, Owner,
    function::{mix, nth},
};

/// Points of an owner of weight [`USUAL_WEIGHT`]; more even out the shares, and take memory.
const POINTS: f64 = 160.0;

/// The weight of whoever does not say otherwise.
const USUAL_WEIGHT: f64 = 100.0;

/// Points of all owners together, 10 bytes each; where weights ask for more, everybody gets half as many until they
/// fit.
const POINTS_MAX: f64 = (1 << 22) as f64;

/// The points in their order round the ring.
#[derive(Debug)]
pub(super) struct Ring {
    points: Vec<u64>,
    /// Whose point it is.
    owners: Vec<u16>,
    /// The first point at or after every 2^`shift`-th place: about one point is looked at for a key.
    starts: Vec<u32>,
    shift: u32,
}

impl Ring {
    pub fn new(owners: &[Owner]) -> Ring {
        let mut per_weight = POINTS / USUAL_WEIGHT;
        let count = |owner: &Owner, per_weight: f64| (owner.weight * per_weight).round().max(1.0);
        let total = |per_weight| owners.iter().map(|o| count(o, per_weight)).sum::<f64>();
        while total(per_weight) > POINTS_MAX {
            per_weight /= 2.0;
        }
        let mut pairs: Vec<(u64, u16)> = Vec::new();
        for (number, owner) in owners.iter().enumerate() {
            let count = count(owner, per_weight) as u64;
            pairs.extend((0..count).map(|i| (mix(owner.seed ^ nth(i)), number as u16)));
        }
        pairs.sort_unstable();
        let bits = pairs.len().next_power_of_two().trailing_zeros().max(1);
        let shift = u64::BITS - bits;
        let mut starts = Vec::with_capacity(1 << bits);
        let mut at = 0;
        for place in 0_u64..1 << bits {
            while at < pairs.len() && pairs[at].0 < place << shift {
                at += 1;
            }
            starts.push(at as u32);
        }
        let (points, owners) = pairs.into_iter().unzip();
        Ring {
            points,
            owners,
            starts,
            shift,
        }
    }

    /// The owner of the first point from `key` on; [`NOBODY`] if there are none.
    #[inline]
    pub fn first(&self, key: u64) -> u16 {
        let owner = self.owners.get(self.point(key)).or(self.owners.first());
        owner.copied().unwrap_or(NOBODY)
    }

    /// The first point from `key` on; their number behind the last one.
    #[inline]
    fn point(&self, key: u64) -> usize {
        let mut at = self.starts[(key >> self.shift) as usize] as usize;
        while at < self.points.len() && self.points[at] < key {
            at += 1;
        }
        at
    }

    /// The owner of the first point from `key` on that `open` takes.
    pub fn find(&self, key: u64, mut open: impl FnMut(usize) -> bool) -> Option<usize> {
        let (before, after) = self.owners.split_at(self.point(key));
        let owners = after.iter().chain(before);
        owners
            .map(|owner| usize::from(*owner))
            .find(|owner| open(*owner))
    }
}
