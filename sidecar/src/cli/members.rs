//! `starling members`: who is in the mesh, as this sidecar sees it.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Ended,
    ask::Listing,
    table::{self, Column, numbers, span, text, words},
};
use crate::clock::Clock;

/// The arguments of `members`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
States: alive answers probes; suspect did not, and may still object; down is declared dead; left said goodbye.
Below the table stands what was tried with each suspect, and whose UDP is blocked while TCP works.

Examples:
  starling members
  starling members --watch
  starling members --json | jq -r '.[] | select(.state == \"down\") | .node'")]
pub struct Args {
    #[command(flatten)]
    listing: Listing,
}

const COLUMNS: [Column; 6] = [
    words("NODE", |row| text(row, "node")),
    words("STATE", |row| text(row, "state")),
    numbers("FOR", age),
    words("ZONE", |row| text(row, "zone")),
    words("ADDRESS", |row| text(row, "addr")),
    words("ID", |row| text(row, "id")),
];

pub(super) fn run(args: &Args) -> Ended {
    args.listing.show("/v1/members", |rows| {
        table::draw(rows, &COLUMNS, "nobody is known yet") + &notes(rows)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// One line for each node of which there is more to say.
fn notes(rows: &Value) -> String {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    rows.iter()
        .filter(|row| row["note"].is_string())
        .map(|row| format!("{}: {}\n", text(row, "node"), text(row, "note")))
        .collect()
}

/// How long a node has been in its state, by this host's clock.
fn age(row: &Value) -> String {
    let now = Clock::new().unix_ms();
    row["since_ms"]
        .as_u64()
        .map_or_else(|| "-".to_owned(), |since| span(now.saturating_sub(since)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_said_of_a_node_stands_below_the_table() {
        let rows = serde_json::json!([
            {"node": "a"},
            {"node": "b", "note": "UDP is lost"},
        ]);
        assert_eq!(notes(&rows), "b: UDP is lost\n");
    }
}
