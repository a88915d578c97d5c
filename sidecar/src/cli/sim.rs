//! `starling sim …`: what this build decides, in virtual time. One file a simulator.
//!
//! Not here: the simulators themselves (`mesh_core`). None of them needs a sidecar, a network or a clock.

mod balance;
mod gossip;

use super::Ended;

/// What can be simulated.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// The balancer beside those of others: latency, errors, shares
    Balance(balance::Args),
    /// The gossip of many nodes: crashes, changes, partitions, restarts, against their targets
    Gossip(gossip::Args),
}

pub(super) fn run(command: &Command) -> Ended {
    match command {
        Command::Balance(args) => balance::run(args),
        Command::Gossip(args) => gossip::run(args),
    }
}
