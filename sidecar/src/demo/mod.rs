//! Three zones on one machine, and the truth about them: `starling demo`.
//!
//! Real sidecars and backends as processes, a client with an open-loop load, and either a live view
//! (`live.rs`) or a script whose claims are measured (`script.rs`). Not here: anything a sidecar does.

use std::{
    io::{IsTerminal, stdin},
    process::ExitCode,
};

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Ended, Exit, Failure, print};

mod ask;
pub mod backend;
mod ledger;
mod live;
mod load;
mod script;
mod world;

/// Zones of the demo.
const ZONES: usize = 3;
/// Their names; the client's sidecar is in the first.
const ZONE_NAMES: [&str; ZONES] = ["a", "b", "c"];
/// Backends in each zone, every one with a sidecar of its own.
const BACKENDS_PER_ZONE: usize = 2;
/// What the backends serve and the client calls.
const SERVICE: &str = "web";
/// The authority by which the client calls it.
const AUTHORITY: &str = "web.mesh";

/// The arguments of `demo`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  starling demo            live view; 1, 2, 3 kill or revive a zone, q quits
  starling demo --script   kill and revive a zone under load, figures as JSON, exit 1 if a claim is false")]
pub struct Args {
    /// No terminal: run the phases, print one JSON object, exit non-zero if a claim is false
    #[arg(long)]
    script: bool,
    /// Requests per second of the client
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
}

/// Runs the demo to its end.
///
/// # Errors
/// A process that could not be started, or an interruption; a false claim is the exit code 1, not an error.
pub fn run(args: &Args) -> Ended {
    if !args.script && !stdin().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "the live view needs a terminal on standard input",
            "starling demo --script runs without one and prints the figures as JSON",
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("no runtime: {error}"), ""))?;
    runtime.block_on(async {
        tokio::select! {
            ended = watch_or_script(args) => ended,
            why = interrupted() => Err(why),
        }
    })
}

async fn watch_or_script(args: &Args) -> Ended {
    if !args.script {
        live::run(args.rate).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = script::run(args.rate).await?;
    print(&format!("{:#}\n", report.figures))?;
    Ok(if report.all_true {
        ExitCode::SUCCESS
    } else {
        Exit::Failed.into()
    })
}

/// Returns at the first SIGINT, SIGTERM or SIGHUP; whoever runs beside it is dropped then, processes and all.
async fn interrupted() -> Failure {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let [Ok(mut int), Ok(mut term), Ok(mut hup)] = kinds.map(signal) else {
        // Without handlers the signals keep their own meaning, and the children end with this process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
        _ = hup.recv() => {}
    }
    Failure::new(Exit::Failed, "demo interrupted", "")
}
