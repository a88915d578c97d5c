//! Fewest requests (or connections) in flight by weight: the smallest (in flight + 1) / weight.
//!
//! Not here: who comes first among equals (`tournament.rs`).

/// Above a thousand endpoints, this many are looked at.
pub(super) const BLOCK: usize = 256;

/// With in flight / weight all idle endpoints would tie at 0 and weights would vanish.
pub(super) fn at_rest(weight: f32) -> f32 {
    1.0 / weight
}

#[inline]
pub(super) fn crowding(own: u32) -> f32 {
    own as f32 + 1.0
}
