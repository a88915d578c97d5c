//! Small programs to try a mesh with: a backend that can be made sick, and a load that keeps its own clock.
//!
//! Not here: the sidecar itself, and the live show (`starling demo`).

pub mod backend;
pub mod figures;
pub mod load;
