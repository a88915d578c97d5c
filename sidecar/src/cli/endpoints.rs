//! `starling endpoints SERVICE`: whom this host would call, who is out, and why.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Ended,
    ask::Listing,
    table::{self, Column, number, numbers, percent, span, text, words},
};

/// The arguments of `endpoints`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Tier 0 is the nearest. Success, latency and requests in flight are what this sidecar itself has seen.

Examples:
  starling endpoints payments
  starling endpoints payments --watch
  starling explain payments          the same with shares and costs")]
pub struct Args {
    /// A service, or an upstream of this host
    service: String,
    #[command(flatten)]
    listing: Listing,
}

/// The columns, which `explain` shows too.
pub(super) const COLUMNS: [Column; 10] = [
    words("INSTANCE", |row| text(row, "instance")),
    words("NODE", |row| text(row, "node")),
    words("ADDRESS", |row| text(row, "address")),
    words("ZONE", |row| text(row, "zone")),
    numbers("TIER", |row| text(row, "tier")),
    words("USABLE", |row| {
        if row["usable"] == true { "yes" } else { "no" }.to_owned()
    }),
    words("WHY", why),
    numbers("IN FLIGHT", |row| text(row, "in_flight")),
    numbers("LATENCY MS", |row| number(row, "latency_ms", 2)),
    numbers("SUCCESS", |row| percent(row, "success")),
];

pub(super) fn run(args: &Args) -> Ended {
    let path = format!("/v1/endpoints/{}", super::ask::escaped(&args.service));
    args.listing.show(&path, |rows| {
        table::draw(rows, &COLUMNS, "nobody is known who could be called")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What is said against an endpoint; for how much longer it is out and what for.
fn why(row: &Value) -> String {
    let mut why = text(row, "why");
    match row["ejected_for_ms"].as_u64() {
        Some(0) => why += " (one request may try)",
        Some(left) => why += &format!(" (for {})", span(left)),
        None => {}
    }
    if let Some(because) = row["ejected_because"].as_str() {
        why += &format!(": {because}");
    }
    why
}
