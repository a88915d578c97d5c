//! `starling key new`: a gossip key from the kernel's dice, on standard output.

use std::process::ExitCode;

use rand::{TryRng, rngs::SysRng};

use super::{Ended, Exit, Failure, print};

/// What can be done with keys.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Print a new gossip key: 32 random bytes as 64 hex digits
    #[command(after_help = "\
Example, once, then copy the file to every host:
  (umask 077; starling key new > /etc/starling/gossip.key)
and in starling.toml:
  [gossip]
  key = \"file:/etc/starling/gossip.key\"")]
    New,
}

pub(super) fn run(command: &Command) -> Ended {
    match command {
        Command::New => {
            let mut key = [0; 32];
            SysRng.try_fill_bytes(&mut key).map_err(|error| {
                Failure::new(
                    Exit::Failed,
                    format!("the kernel gives no random bytes: {error}"),
                    "",
                )
            })?;
            print(&format!("{}\n", hex(&key)))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
