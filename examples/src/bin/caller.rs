//! A caller that keeps its own clock: `caller --to 127.0.0.1:7080 --authority shop.mesh --rate 1000 --seconds 5`.
//!
//! Not here: the load itself (`examples::load`). Prints one JSON object and exits 1 if a request failed.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::Parser;
use examples::load::{self, Arrivals, Plan};
use http::Method;

/// Sends requests at a fixed rate whether or not earlier ones were answered; latency counts from the due time.
#[derive(Parser)]
struct Arguments {
    /// Who is connected to: a sidecar's outbound port, or a backend; several get the requests in turn.
    #[arg(long, default_value = "127.0.0.1:7080", value_delimiter = ',')]
    to: Vec<SocketAddr>,
    /// The authority asked for.
    #[arg(long, default_value = "shop.mesh")]
    authority: String,
    /// Path and query.
    #[arg(long, default_value = "/")]
    path: String,
    /// The method.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// Bytes of body sent with each request.
    #[arg(long, default_value_t = 0)]
    body_bytes: usize,
    /// Requests per second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// How long, in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Longest wait for one answer, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
    /// The answer header that names a zone.
    #[arg(long, default_value = "x-zone")]
    zone_header: String,
    /// HTTP/2 by prior knowledge.
    #[arg(long)]
    http2: bool,
    /// Requests come due as independent callers make them, not at equal distances.
    #[arg(long)]
    poisson: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Ok(duration) = Duration::try_from_secs_f64(arguments.seconds) else {
        eprintln!("--seconds {} is no length of time", arguments.seconds);
        return ExitCode::from(64);
    };
    let Some(&first) = arguments.to.first() else {
        eprintln!("--to names nobody");
        return ExitCode::from(64);
    };
    let figures = load::run(Plan {
        path: arguments.path,
        method: arguments.method,
        body_bytes: arguments.body_bytes,
        timeout: Duration::from_millis(arguments.timeout_ms),
        zone_header: arguments.zone_header,
        http2: arguments.http2,
        arrivals: if arguments.poisson {
            Arrivals::Poisson
        } else {
            Arrivals::Even
        },
        targets: arguments.to,
        ..Plan::new(first, &arguments.authority).at(arguments.rate, duration)
    })
    .await;
    println!("{}", figures.to_json());
    if figures.failures() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
