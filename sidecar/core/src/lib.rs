//! Every decision of a Starling sidecar, as pure, deterministic functions of values, `now` and `rng`.
//!
//! Not here: sockets, clocks, tasks, logs, global dice. The manifest and `clippy.toml` keep it so.

#![forbid(unsafe_code)]

pub mod balance;
pub mod catalogue;
pub mod check;
pub mod endpoint;
pub mod explain;
pub mod hash;
pub mod load;
pub mod membership;
pub mod mesh;
pub mod moment;
pub mod outcome;
pub mod outlier;
pub mod policy;
pub mod retry;
pub mod route;
pub mod session;
pub mod sim;
pub mod snapshot;
mod table;
pub mod upstream;
pub mod zone;

#[cfg(test)]
mod staging;
