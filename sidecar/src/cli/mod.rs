//! The command line: what can be said, and which file answers it. One file a command.
//!
//! Not here: the sidecar itself. Most commands ask a running one over its admin API.

use std::{fmt, io::Write, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{config::Faults, demo};

mod agent;
mod ask;
mod check;
mod completions;
mod conns;
mod drain;
mod endpoints;
mod explain;
mod heartbeat;
mod key;
mod leave;
mod members;
mod reload;
mod run;
mod services;
mod sim;
mod status;
mod table;

const EXAMPLES: &str = "\
Examples:
  starling demo                      three zones on this machine: kill one and watch
  starling key new                   make the key that all sidecars of a mesh share
  starling check --print             every fault of the configuration, or what it comes to
  starling members --watch           who is in the mesh, once a second
  starling endpoints payments        whom this host would call, who is out, and why
  starling conns --client 10.0.0.7   who that client is connected to, and how well
  starling explain payments GET /    the decisions for one request, with their numbers
  starling drain checkout --wait     take a service of this host out of rotation
  starling sim balance speeds        the balancer against Envoy's, Linkerd's and others, in virtual time

Commands that ask a sidecar take --admin ADDR (or STARLING_ADMIN and STARLING_TOKEN), listings --json and --watch.

Exit codes: 0 done, 1 failed, 64 usage, 69 sidecar unreachable, 78 configuration.";

/// The whole command line.
#[derive(Parser, Debug)]
#[command(
    name = "starling",
    version,
    about = "A client-side service mesh for hosts without Kubernetes: one sidecar a host, no servers.",
    after_help = EXAMPLES,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One command a variant; its file holds its arguments and its `run`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the sidecar of this host
    Agent(agent::Args),
    /// Tell every fault of a configuration at once
    Check(check::Args),
    /// Print shell completions
    Completions(completions::Args),
    /// Three zones on this machine under load: see failover for yourself
    Demo(demo::Args),
    /// One backend of the demo
    #[command(hide = true)]
    DemoBackend(demo::backend::Args),
    /// Take instances of this host out of service
    Drain(drain::DrainArgs),
    /// Put drained instances back into service
    Undrain(drain::OrderArgs),
    /// Say how an instance of this host is, for checks of the kind ttl
    Heartbeat(heartbeat::Args),
    /// Drain this sidecar, leave the mesh and end
    Leave(leave::Args),
    /// Read the configuration again
    Reload(reload::Args),
    /// Show how this sidecar is
    Status(status::Args),
    /// List who is in the mesh
    Members(members::Args),
    /// List what the mesh offers
    Services(services::Args),
    /// List whom this host would call, who is out and why
    Endpoints(endpoints::Args),
    /// List connections: who is connected to whom, since when, with how many bytes
    Conns(conns::Args),
    /// Explain the decisions for one request
    Explain(explain::Args),
    /// Make gossip keys, and change the one in use without a gap
    #[command(subcommand)]
    Key(key::Command),
    /// Run a sidecar and its application together
    Run(run::Args),
    /// Play what this build decides against backends and networks that misbehave, in virtual time
    #[command(subcommand)]
    Sim(sim::Command),
}

/// What every command comes to: the code to exit with, or what went wrong.
pub type Ended = Result<ExitCode, Failure>;

/// Runs one command to its end.
///
/// # Errors
/// What was tried, on whom, and the next step, with the exit code it calls for.
pub fn run(command: Command) -> Ended {
    match command {
        Command::Agent(args) => agent::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::DemoBackend(args) => demo::backend::run(&args),
        Command::Drain(args) => drain::drain(&args),
        Command::Undrain(args) => drain::undrain(&args),
        Command::Heartbeat(args) => heartbeat::run(&args),
        Command::Leave(args) => leave::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Members(args) => members::run(&args),
        Command::Services(args) => services::run(&args),
        Command::Endpoints(args) => endpoints::run(&args),
        Command::Conns(args) => conns::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Key(command) => key::run(&command),
        Command::Run(args) => run::run(&args),
        Command::Sim(command) => sim::run(&command),
    }
}

/// The exit codes that scripts rely on (`sysexits.h` names them).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Tried and not done: 1.
    Failed,
    /// The command line makes no sense: 64.
    Usage,
    /// No sidecar answers: 69.
    Unreachable,
    /// The configuration has faults: 78.
    Configuration,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Failed => 1,
            Exit::Usage => 64,
            Exit::Unreachable => 69,
            Exit::Configuration => 78,
        })
    }
}

impl From<Faults> for Failure {
    /// Every fault on a line of its own, as an editor or a script can follow it.
    fn from(faults: Faults) -> Failure {
        let count = faults.count();
        let noun = if count == 1 { "fault" } else { "faults" };
        Failure::new(
            Exit::Configuration,
            format!("the configuration has {count} {noun}\n{faults}"),
            "",
        )
    }
}

/// Why a command did not do what it was asked to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The code to exit with.
    pub exit: Exit,
    /// What was tried, on whom, and what came of it.
    pub message: String,
    /// The next step, if one is known; may be empty.
    pub next: String,
}

impl Failure {
    /// A failure with its next step.
    pub fn new(exit: Exit, message: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure {
            exit,
            message: message.into(),
            next: next.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "starling: {}", self.message)?;
        if !self.next.is_empty() {
            write!(f, "\n  {}", self.next)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Writes to standard output. A reader that went away (`| head`) ends the command well; a full disk does not.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(
            Exit::Failed,
            format!("cannot write to standard output: {error}"),
            "",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_failure_tells_its_next_step() {
        let failure = Failure::new(Exit::Failed, "tried", "do this");
        assert_eq!(failure.to_string(), "starling: tried\n  do this");
    }
}
