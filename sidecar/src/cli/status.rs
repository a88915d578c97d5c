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
    let members = status["members"].as_object();
    let members: Vec<String> = members
        .into_iter()
        .flatten()
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let standing = match (status["ready"] == true, status["joined"] == true) {
        (true, _) if status["isolated"] == true => {
            "ready, but nothing is heard of others: what is known may be stale"
        }
        (true, _) => "ready",
        (_, false) => "not ready: not joined yet",
        _ => "not ready: starting, or on the way out",
    };
    let lines = [
        (
            "node",
            format!("{} ({})", text(status, "node"), text(status, "id")),
        ),
        (
            "zone",
            format!(
                "{}, region {}",
                text(status, "zone"),
                text(status, "region")
            ),
        ),
        (
            "cluster",
            format!(
                "{}, as {}",
                text(status, "cluster"),
                text(status, "advertise")
            ),
        ),
        ("is", standing.to_owned()),
        (
            "since",
            status["uptime_ms"].as_u64().map_or_else(String::new, span),
        ),
        ("members", members.join(", ")),
        (
            "offers",
            format!("{} instances of its own", text(status, "offers")),
        ),
        (
            "services",
            format!(
                "{} in the mesh, {} can be called",
                text(status, "services"),
                text(status, "upstreams")
            ),
        ),
        (
            "version",
            format!(
                "{}, process {}",
                text(status, "version"),
                text(status, "pid")
            ),
        ),
    ];
    lines
        .iter()
        .map(|(name, value)| format!("{name:<9} {value}\n"))
        .collect()
}
