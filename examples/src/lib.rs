//! Small programs to try a mesh with: a backend that can be made sick, and a load that keeps its own clock.
//!
//! Not here: the sidecar itself, and the live show (`starling demo`).

pub mod backend;
pub mod figures;
pub mod load;

/// A draw from the exponential distribution with mean 1: the time between events that know nothing of each other.
pub(crate) fn exponential(dice: &mut impl rand::RngExt) -> f64 {
    // The draw is below 1, so that the logarithm is finite.
    -(1.0 - dice.random::<f64>()).ln()
}
