//! Every decision of a Starling sidecar, as pure, deterministic functions of values, `now` and `rng`.
//!
//! Not here: sockets, clocks, tasks, logs, global dice. The manifest and `clippy.toml` keep it so.

#![forbid(unsafe_code)]

pub mod check;
pub mod mesh;
pub mod moment;
pub mod outcome;
pub mod policy;
