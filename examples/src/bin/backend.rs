//! A backend to put behind a sidecar: `backend --listen 127.0.0.1:8080 --name one --zone eu-1a`.
//!
//! Not here: what it answers (`examples::backend`).

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::Parser;
use examples::backend::{Backend, Behaviour, Failure};

/// Answers HTTP/1.1 and h2c: `/` who it is, `/headers` what it was sent, `/echo` the body, `/status/503`,
/// `/delay/100` (milliseconds), `/bytes/1024`, `/healthz` (switched by POST to `/healthz/fail` and `/healthz/pass`).
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
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let behaviour = Behaviour {
        delay: Duration::from_millis(arguments.delay_ms),
        failure_share: arguments.fail,
        failure: match arguments.fail_status {
            0 => Failure::Close,
            code => Failure::Status(code),
        },
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
