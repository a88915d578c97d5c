//! How many of a tier's requests its lighter endpoints may have together, however quick they are.
//!
//! Not here: what a cost is made of (`least_response_time.rs`). Where nothing is in flight the quickest endpoint would
//! get every request, whatever it weighs; a tier whose endpoints all weigh the same is left to that.

use crate::upstream::Member;

/// The endpoints of one tier by weight.
#[derive(Debug)]
pub(super) struct Portions {
    /// Places, the lightest first; empty where all weigh the same.
    order: Vec<usize>,
}

impl Portions {
    pub fn new(members: &[Member]) -> Portions {
        let weight = |place: &usize| members[*place].weight;
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by(|a, b| weight(a).total_cmp(&weight(b)));
        if order.first().map(weight) == order.last().map(weight) {
            order = Vec::new();
        }
        Portions { order }
    }

    /// The weight up to which the endpoints together were asked more than their part; 0 where none were.
    ///
    /// Those that weigh `w` or less have a right to what `w` is of `claim`, the weight of the heaviest less what its
    /// illness or youth takes from it: where one that is quicker than all others would get every request, half its
    /// weight leaves it half of them. If they are many, their share by weight is more than that, and is theirs too.
    /// `used` are the requests of late, `weight` those of whoever may be called with their ramp; index = place.
    pub fn overdrawn(
        &self,
        members: &[Member],
        used: impl Fn(usize) -> f32,
        weight: &[f32],
        claim: f64,
    ) -> f64 {
        let figures = |place: usize| match weight[place] {
            open if open > 0.0 => (f64::from(used(place)), f64::from(open)),
            _ => (0.0, 0.0),
        };
        let add = |sum: (f64, f64), place: &usize| {
            let (used, weight) = figures(*place);
            (sum.0 + used, sum.1 + weight)
        };
        let (all_used, all_weight) = self.order.iter().fold((0.0, 0.0), add);
        let (mut over, mut so_far) = (0.0, (0.0, 0.0));
        for (at, place) in self.order.iter().enumerate() {
            so_far = add(so_far, place);
            let each = members[*place].weight;
            let next = self.order.get(at + 1).map(|next| members[*next].weight);
            let part = (each / claim).max(so_far.1 / all_weight);
            if next.is_some_and(|next| next > each) && so_far.0 > part * all_used {
                over = each;
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staging::{Stage, at};

    /// The weight that is over for endpoints of these weights that were asked so often, where the heaviest is well.
    fn over(weights: &[u16], used: &[f32]) -> f64 {
        let mut stage = Stage::new(&vec!["a1"; weights.len()]);
        for (i, weight) in weights.iter().enumerate() {
            stage.record(i, |record| record.weight = *weight);
        }
        let upstream = stage.build(at(0));
        let members = &upstream.tiers[0].members;
        let weight: Vec<f32> = members.iter().map(|m| m.weight as f32).collect();
        let claim = members.iter().map(|m| m.weight).fold(0.0, f64::max);
        Portions::new(members).overdrawn(members, |place| used[place], &weight, claim)
    }

    #[test]
    fn lighter_endpoints_have_a_right_to_their_part_of_the_heaviest_or_of_the_whole() {
        assert_eq!(over(&[50, 100], &[50.0, 50.0]), 0.0);
        assert_eq!(over(&[50, 100], &[51.0, 49.0]), 50.0);
        // Three of four: 60 % by weight.
        assert_eq!(over(&[50, 50, 50, 100], &[20.0, 20.0, 20.0, 40.0]), 0.0);
        assert_eq!(over(&[50, 50, 50, 100], &[61.0, 0.0, 0.0, 39.0]), 50.0);
        // Whoever weighs less pays for the lighter together with those of its own weight.
        assert_eq!(over(&[25, 50, 100], &[20.0, 40.0, 40.0]), 50.0);
        assert_eq!(over(&[25, 50, 100], &[30.0, 10.0, 60.0]), 25.0);
        assert_eq!(over(&[25, 50, 100], &[10.0, 30.0, 60.0]), 0.0);
        // The heaviest may have all, and so may everybody where all weigh the same.
        assert_eq!(over(&[50, 100], &[0.0, 100.0]), 0.0);
        assert_eq!(over(&[100, 100], &[100.0, 0.0]), 0.0);
        assert_eq!(over(&[100], &[100.0]), 0.0);
        assert_eq!(over(&[50, 100], &[0.0, 0.0]), 0.0);
    }

    #[test]
    fn who_may_not_be_called_has_no_part_and_an_ill_heavy_one_claims_little() {
        let mut stage = Stage::new(&["a1"; 3]);
        for (i, weight) in [50, 100, 1_000].into_iter().enumerate() {
            stage.record(i, |record| record.weight = weight);
        }
        let upstream = stage.build(at(0));
        let members = &upstream.tiers[0].members;
        let portions = Portions::new(members);
        let used = [60.0, 40.0, 9.0];
        let used = |place: usize| used[place];
        let over = |claim| portions.overdrawn(members, used, &[50.0, 100.0, 0.0], claim);
        assert_eq!([over(100.0), over(50.0)], [50.0, 0.0]);
    }
}
