//! Virtual time: many sidecars against backends, or among each other, that misbehave by script and seed, for tests and
//! `starling sim`.
//!
//! Not here: any decision. The decisions that are simulated are the real ones of the other rooms.

pub mod balance;
pub mod gossip;
pub mod plot;
