//! `starling status`: how this sidecar is.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Ended,
    ask::Listing,
    table::{span, text},
};

/// The arguments of `status`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  starling status
  starling status --admin 10.0.0.7:7070
  starling status --json | jq .ready")]
pub struct Args {
    #[command(flatten)]
    listing: Listing,
}

pub(super) fn run(args: &Args) -> Ended {
    args.listing.show("/v1/status", told)?;
    Ok(ExitCode::SUCCESS)
}

fn told(status: &Value) -> String {
    let of = |key: &str| text(status, key);
    let since = status["uptime_ms"].as_u64().map_or_else(String::new, span);
    let lines = [
        ("node", format!("{} ({})", of("node"), of("id"))),
        ("zone", format!("{}, region {}", of("zone"), of("region"))),
        (
            "cluster",
            format!("{}, as {}", of("cluster"), of("advertise")),
        ),
        ("is", standing(status).to_owned()),
        ("since", since),
        ("members", members(status)),
        ("offers", format!("{} instances of its own", of("offers"))),
        ("services", format!("{} in the mesh", of("services"))),
        ("calls", format!("{} upstreams", of("upstreams"))),
        (
            "version",
            format!("{}, process {}", of("version"), of("pid")),
        ),
    ];
    lines
        .iter()
        .map(|(name, value)| format!("{name:<9} {value}\n"))
        .collect()
}

fn standing(status: &Value) -> &'static str {
    match (status["ready"] == true, status["joined"] == true) {
        (true, _) if status["isolated"] == true => {
            "ready, but cut off from the other nodes: what is known may be stale"
        }
        (true, _) => "ready",
        (_, false) => "not ready: not joined yet",
        _ => "not ready: starting, or on the way out",
    }
}

fn members(status: &Value) -> String {
    let states = status["members"].as_object();
    let some = states
        .into_iter()
        .flatten()
        .filter(|(_, count)| count.as_u64() != Some(0));
    let words: Vec<String> = some
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    words.join(", ")
}
