//! `starling agent`: runs the sidecar until it is told to go.
//!
//! Not here: what it does meanwhile (`life.rs`) and how it goes (`drain.rs`).

use std::{path::PathBuf, process::ExitCode};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Ended, Exit, Failure};
use crate::{
    config::{self, Loaded},
    life::Life,
    logs,
    metrics::Exporter,
    notify, parent,
    start::StartError,
};

/// Run the sidecar of this host.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The configuration; conf.d/*.toml beside it is read too
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
    /// End when standard input does: for whoever starts sidecars as children
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

/// Runs the command.
///
/// # Errors
/// A faulty configuration (78), or what kept the sidecar from starting (1).
pub fn run(args: &Args) -> Ended {
    logs::start();
    let loaded = config::load(&args.config)?;
    if args.exit_with_parent {
        parent::exit_with_parent().map_err(cannot_start)?;
    }
    let exporter = Exporter::install().map_err(cannot_start)?;
    control_runtime()?.block_on(live(args, loaded, exporter))
}

/// The runtime of the one control thread.
///
/// # Errors
/// The system gives no event queue.
pub fn control_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(cannot_start)
}

/// A failure to start, for reasons that are not the configuration's.
pub fn cannot_start(error: impl std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("the sidecar cannot start: {error}"),
        "",
    )
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Failure {
        Failure::new(Exit::Failed, error.message, error.next)
    }
}

async fn live(args: &Args, loaded: Loaded, exporter: Exporter) -> Ended {
    let mut ends = Ends::new().map_err(cannot_start)?;
    let mut life = Life::start(Some(&args.config), loaded, exporter).await?;
    tokio::select! {
        () = life.live() => tracing::info!("asked to leave"),
        () = ends.next() => tracing::info!("asked to end"),
    }
    notify::tell("STOPPING=1");
    life.end(ends.next()).await;
    Ok(ExitCode::SUCCESS)
}

/// The signals that end a sidecar.
pub struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    /// Takes the signals over from the default handlers.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> std::io::Result<Ends> {
        Ok(Ends {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Ready with the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
