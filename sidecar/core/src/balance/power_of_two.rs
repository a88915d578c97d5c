//! The less busy of two distinct draws by weight.
//!
//! Not here: the draw (`random.rs`).

use rand::Rng;

use super::random::Random;

/// The place drawn. Drawing with replacement would pick the busier of two endpoints a quarter of the time.
pub(super) fn draw(
    random: &mut Random,
    own: impl Fn(usize) -> u32,
    open: impl Fn(usize) -> bool,
    rng: &mut impl Rng,
) -> Option<usize> {
    let first = random.draw(&open, rng)?;
    match random.draw(|i| i != first && open(i), rng) {
        Some(second) if own(second) < own(first) => Some(second),
        _ => Some(first),
    }
}
