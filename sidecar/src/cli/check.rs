//! `starling check FILE`: every fault of a configuration at once, or what it comes to.

use std::{path::PathBuf, process::ExitCode};

use super::{Ended, Failure, print};
use crate::config;

/// The arguments of `check`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Reads FILE and conf.d/*.toml beside it. Tells every fault with its file, line, key and a fix, and exits with 78; \
 what is allowed and seldom meant is warned about;\
 with --print, a configuration without faults is shown as it takes effect, defaults included, secrets hidden.

Examples:
  starling check
  starling check --print examples/three-zones/a.toml")]
pub struct Args {
    /// The configuration file
    #[arg(value_name = "FILE", default_value = config::PATH)]
    file: PathBuf,
    /// Show the effective configuration, each value with where it came from
    #[arg(long)]
    print: bool,
}

pub(super) fn run(args: &Args) -> Ended {
    let loaded = config::load(&args.file).map_err(Failure::from)?;
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    if args.print {
        print(&loaded.print())?;
    } else {
        let config = &loaded.config;
        print(&format!(
            "{}: no faults ({} services, {} upstreams, from {} files)\n",
            args.file.display(),
            config.services.len(),
            config.upstreams.len(),
            loaded.files.len(),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
