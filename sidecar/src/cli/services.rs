//! `starling services`: what the mesh offers, as its owners say it.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Ended,
    ask::Listing,
    table::{self, Column, numbers, text, words},
};

/// The arguments of `services`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
This is what each owner says of its own instances. Whether this host would use them, and why not: `starling endpoints`.

Examples:
  starling services
  starling services --json | jq -r '.[].service' | sort -u")]
pub struct Args {
    #[command(flatten)]
    listing: Listing,
}

const COLUMNS: [Column; 9] = [
    words("SERVICE", |row| text(row, "service")),
    words("INSTANCE", |row| text(row, "instance")),
    words("NODE", node),
    words("ZONE", |row| text(row, "zone")),
    words("ADDRESS", |row| text(row, "address")),
    words("PROTOCOL", |row| text(row, "protocol")),
    numbers("WEIGHT", |row| text(row, "weight")),
    words("HEALTH", health),
    words("TAGS", tags),
];

pub(super) fn run(args: &Args) -> Ended {
    args.listing.show("/v1/services", |rows| {
        table::draw(rows, &COLUMNS, "nobody offers anything yet")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The node, and how it is unless it is well.
fn node(row: &Value) -> String {
    match row["node_state"].as_str() {
        Some("alive") | None => text(row, "node"),
        Some(state) => format!("{} ({state})", text(row, "node")),
    }
}

/// What the checks say, and where in its life the instance is unless that is the usual.
fn health(row: &Value) -> String {
    match row["state"].as_str() {
        Some("up") | None => text(row, "health"),
        Some(state) => format!("{} ({state})", text(row, "health")),
    }
}

fn tags(row: &Value) -> String {
    let tags = row["tags"].as_object();
    let words = tags
        .into_iter()
        .flatten()
        .map(|(name, word)| format!("{name}={}", word.as_str().unwrap_or_default()));
    words.collect::<Vec<_>>().join(",")
}
