//! `starling completions SHELL`: the shell's completion script on standard output.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Ended, print};

/// The arguments of `completions`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: starling completions bash > /etc/bash_completion.d/starling")]
pub struct Args {
    /// The shell to write for
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "starling", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
