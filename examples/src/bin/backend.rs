//! A backend to put behind a sidecar: `backend --listen 127.0.0.1:8080 --name one --zone eu-1a`.
//!
//! Not here: what it answers (`examples::backend`).

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::Parser;
use examples::backend::{Backend, Behaviour, Failure, Flips, Spread, Stalls, Work};

/// Answers HTTP/1.1 and h2c: `/` who it is, `/headers` what it was sent, `/echo` the body, `/status/503`,
/// `/delay/100` (milliseconds), `/bytes/1024`, `/healthz` (switched by POST to `/healthz/fail` and `/healthz/pass`),
/// `/healthz/served` how many requests came.
#[derive(Parser)]
struct Arguments {
    /// Address and port; port 0 takes a free one and prints it.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Told in the answer header x-backend.
    #[arg(long, default_value = "backend")]
    name: String,
    /// Told in the answer header x-zone.
    #[arg(long, default_value = "default")]
    zone: String,
    /// Milliseconds waited before each answer.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Share of requests that fail, 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    fail: f64,
    /// Status of the failing ones; 0 closes the connection without an answer.
    #[arg(long, default_value_t = 503)]
    fail_status: u16,
    /// Requests worked on at a time, the others wait; 0: all at once, without work.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Mean milliseconds of work on one request, when there are workers.
    #[arg(long, default_value_t = 10.0)]
    work_ms: f64,
    /// All work takes the same time, instead of exponentially distributed times.
    #[arg(long)]
    constant: bool,
    /// Mean seconds between two times in which nothing is worked on; 0: never.
    #[arg(long, default_value_t = 0.0)]
    stall_every_s: f64,
    /// Length of such a time in milliseconds.
    #[arg(long, default_value_t = 300)]
    stall_ms: u64,
    /// Seconds between two changes of speed, to --flip-work-ms and back; 0: never.
    #[arg(long, default_value_t = 0.0)]
    flip_every_s: f64,
    /// Mean milliseconds of work after the first change.
    #[arg(long, default_value_t = 10.0)]
    flip_work_ms: f64,
}

impl Arguments {
    /// Errors with what is wrong with a number.
    fn work(&self) -> Result<Option<Work>, String> {
        if self.workers == 0 {
            return Ok(None);
        }
        let time = |seconds: f64, name: &str| {
            Duration::try_from_secs_f64(seconds).map_err(|error| format!("--{name}: {error}"))
        };
        let spread = if self.constant {
            Spread::Constant
        } else {
            Spread::Exponential
        };
        let mut work = Work::new(
            self.workers,
            time(self.work_ms / 1000.0, "work-ms")?,
            spread,
        );
        if self.stall_every_s > 0.0 {
            work.stalls = Some(Stalls {
                every: time(self.stall_every_s, "stall-every-s")?,
                length: Duration::from_millis(self.stall_ms),
            });
        }
        if self.flip_every_s > 0.0 {
            work.flips = Some(Flips {
                every: time(self.flip_every_s, "flip-every-s")?,
                mean: time(self.flip_work_ms / 1000.0, "flip-work-ms")?,
            });
        }
        Ok(Some(work))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let work = match arguments.work() {
        Ok(work) => work,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(64);
        }
    };
    let behaviour = Behaviour {
        delay: Duration::from_millis(arguments.delay_ms),
        failure_share: arguments.fail,
        failure: match arguments.fail_status {
            0 => Failure::Close,
            code => Failure::Status(code),
        },
        work,
        ..Behaviour::well(&arguments.name, &arguments.zone)
    };
    match Backend::start(arguments.listen, behaviour).await {
        Ok(backend) => {
            println!("{} listens on {}", arguments.name, backend.address());
            backend.finished().await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot listen on {}: {error}", arguments.listen);
            ExitCode::FAILURE
        }
    }
}
