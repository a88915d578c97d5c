//! The binary `starling`: reads the command line, runs one command, exits with its code.

use std::process::ExitCode;

use clap::Parser;
use sidecar::cli::{self, Cli, Exit};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that went away (`starling --help | head -1`) is no fault of the command line.
            let _ = error.print();
            let asked_for_it = !error.use_stderr();
            return if asked_for_it {
                ExitCode::SUCCESS
            } else {
                Exit::Usage.into()
            };
        }
    };
    match cli::run(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit.into()
        }
    }
}
