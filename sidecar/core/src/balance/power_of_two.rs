//! The less busy of two distinct draws by weight.
//!
//! Not here: the draw (`random.rs`).

use rand::Rng;

use super::random::Random;

/// The place drawn. Drawing with replacement would pick the busier of two endpoints a quarter of the time.
pub(super) fn draw(
    random: &Random,
    own: impl Fn(usize) -> u32,
    open: impl Fn(usize) -> bool,
    rng: &mut impl Rng,
) -> Option<usize> {
    let first = random.draw(&open, rng)?;
    let second = random.draw(|i| i != first && open(i), rng);
    Some(less_busy(first, second, own))
}

/// The same where everybody is open.
#[inline]
pub(super) fn draw_of_all(
    random: &Random,
    own: impl Fn(usize) -> u32,
    rng: &mut impl Rng,
) -> Option<usize> {
    let (first, second) = random.draw_two_of_all(rng)?;
    Some(less_busy(first, second, own))
}

#[inline]
fn less_busy(first: usize, second: Option<usize>, own: impl Fn(usize) -> u32) -> usize {
    match second {
        Some(second) if own(second) < own(first) => second,
        _ => first,
    }
}
