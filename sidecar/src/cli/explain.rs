//! `starling explain UPSTREAM`: the chain of decisions for one request, in words and numbers.

use std::{net::IpAddr, process::ExitCode};

use http::uri::PathAndQuery;
use serde_json::Value;

use super::{
    Ended, Exit, Failure,
    ask::{Listing, escaped},
    endpoints,
    table::{self, Column, number, numbers, percent, text, words},
};

/// The arguments of `explain`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The cost is what the policy compares within a tier, the smallest being called next. For least_response_time its factors \
 are latency, requests of this sidecar in flight by weight, success share, stall, ramp, evenness (below 1 for who was \
 asked less than its share lately: it sets near ties apart), quiet (over 1 for who has not answered for a while, \
 although requests come thick) and sated (over 1 for who weighs less than others, is idle and has had its part of the \
 requests); for least_connections (in flight + 1) by weight; for power_of_two those in flight. The \
 other policies compare nothing.

Examples:
  starling explain payments
  starling explain payments POST /v1/charge
  starling explain carts GET /cart -H 'x-user: ann'
  starling explain orders POST /orders --body '{\"customer\": 17}'")]
pub struct Args {
    /// An upstream: a table of this host's configuration, or a service of the mesh
    upstream: String,
    /// The request's method
    #[arg(default_value = "GET")]
    method: String,
    /// The request's path, or its whole URL
    #[arg(default_value = "/")]
    url: String,
    /// A header of the request; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The client's address
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// The request's body, where keys are in it
    #[arg(long, value_name = "JSON")]
    body: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

const TIERS: [Column; 8] = [
    numbers("TIER", |row| text(row, "tier")),
    words("NAME", |row| text(row, "name")),
    words("ZONE", |row| text(row, "zone")),
    numbers("SHARE", |row| percent(row, "share")),
    numbers("TARGET", |row| percent(row, "target")),
    words("WELL", |row| {
        format!("{} of {}", text(row, "well"), text(row, "total"))
    }),
    numbers("CARRIES", |row| percent(row, "health")),
    words("NOTE", |row| {
        let mut notes = Vec::new();
        if row["tripped"] == true {
            notes.push("tripped: canaries only".to_owned());
        }
        if row["backup"] == true {
            notes.push("backup".to_owned());
        }
        let (members, callable) = (&row["members"], &row["callable"]);
        if members.as_u64() < callable.as_u64() {
            notes.push(format!("our subset: {members} of {callable}"));
        }
        notes.join(", ")
    }),
];

const ZONES: [Column; 8] = [
    words("ZONE", |row| {
        let own = if row["own"] == true { " (own)" } else { "" };
        text(row, "zone") + own
    }),
    numbers("C", |row| number(row, "capacity", 0)),
    numbers("D", |row| number(row, "demand", 0)),
    numbers("T*C", |row| number(row, "filled", 0)),
    numbers("KEEPS x", |row| percent(row, "local")),
    numbers("OUR TARGET", |row| percent(row, "target")),
    numbers("NOW", |row| percent(row, "share")),
    words("NOTE", |row| {
        let silent = row["silent_ms"].as_u64().unwrap_or(0) / 1_000;
        match (&*text(row, "told"), row["tripped"] == true) {
            (_, true) => "tripped: counts as lost here, canaries only".to_owned(),
            ("frozen", _) => format!("frozen: silent for {silent} s, its last figures stand"),
            ("hosts", _) => format!("silent for {silent} s: D by its number of hosts"),
            _ if row["tier"].is_null() => "no endpoint of its own".to_owned(),
            _ => String::new(),
        }
    }),
];

const COSTS: [Column; 12] = [
    words("INSTANCE", |row| text(row, "instance")),
    numbers("TIER", |row| text(row, "tier")),
    numbers("COST", |row| cost(&row["cost"])),
    numbers("LATENCY MS", |row| number(&row["cost"], "latency_ms", 2)),
    numbers("IN FLIGHT", |row| text(&row["cost"], "own")),
    numbers("SUCCESS", |row| percent(&row["cost"], "success")),
    numbers("STALL", |row| number(&row["cost"], "stall", 1)),
    numbers("RAMP", |row| percent(&row["cost"], "ramp")),
    numbers("WEIGHT", |row| number(&row["cost"], "weight", 0)),
    numbers("EVENNESS", |row| number(&row["cost"], "evenness", 2)),
    numbers("QUIET", |row| number(&row["cost"], "quiet", 1)),
    numbers("SATED", |row| number(&row["cost"], "sated", 1)),
];

const ORDER: [Column; 3] = [
    words("WHO", |row| text(row, "step")),
    words("DECIDES", |row| {
        if row["decides"] == true { "yes" } else { "" }.to_owned()
    }),
    words("SAYS", |row| text(row, "says")),
];

const OWNERS: [Column; 8] = [
    words("INSTANCE", |row| text(row, "instance")),
    words("ADDRESS", |row| text(row, "address")),
    words("ZONE", |row| text(row, "zone")),
    numbers("SHARE OF KEYS", |row| percent(row, "share")),
    numbers("IN FLIGHT", |row| text(row, "in_flight")),
    numbers("BUSY FROM", |row| text(row, "busy_from")),
    words("CALLED", |row| {
        if row["called"] == true { "yes" } else { "" }.to_owned()
    }),
    words("WHY NOT", |row| text(row, "why")),
];

pub(super) fn run(args: &Args) -> Ended {
    let method = args.method.to_ascii_uppercase();
    let url: http::Uri = args.url.parse().map_err(|_| {
        let next = "write a path such as /v1/charge, or a whole URL";
        Failure::new(Exit::Usage, format!("{:?} is not a URL", args.url), next)
    })?;
    let asked = url.path_and_query().map_or("/", PathAndQuery::as_str);
    let (upstream, asked) = (escaped(&args.upstream), escaped(asked));
    let mut path = format!(
        "/v1/explain/{upstream}?method={}&path={asked}",
        escaped(&method)
    );
    for header in &args.headers {
        path += &format!("&header={}", escaped(header));
    }
    if let Some(client) = args.client {
        path += &format!("&client={}", escaped(&client.to_string()));
    }
    if let Some(body) = &args.body {
        path += &format!("&body={}", escaped(body));
    }
    args.listing.show(&path, told)?;
    Ok(ExitCode::SUCCESS)
}

/// Small costs are told with a digit more.
fn cost(factors: &Value) -> String {
    let digits = if factors["cost"].as_f64().is_some_and(|cost| cost < 100.0) {
        2
    } else {
        0
    };
    number(factors, "cost", digits)
}

/// The chain, from the route to the candidates.
fn told(answer: &Value) -> String {
    let request = &answer["request"];
    let mut story = format!(
        "{} {} to {}, found by {}\n",
        text(request, "method"),
        text(request, "path"),
        text(answer, "upstream"),
        text(request, "route"),
    );
    story += &format!(
        "  service {}, balance {}, zones {}, timeout {} ms\n  repeats once an endpoint may have seen it: {}; a failed connection is tried elsewhere at once\n",
        text(answer, "service"),
        text(answer, "balance"),
        text(answer, "zones"),
        text(request, "timeout_ms"),
        text(request, "retries"),
    );
    story += &format!(
        "  in the last 10 s: {} requests, {} retries\n",
        text(answer, "requests_10s"),
        text(answer, "retries_10s"),
    );
    if answer["panic"] == true {
        story +=
            "  PANIC: too many hosts vanished at once, so the last known ones are still called\n";
    }
    story += "\nWho decides, in this order\n";
    story += &table::draw(&answer["order"], &ORDER, "nobody");
    if answer["owners"]
        .as_array()
        .is_some_and(|owners| !owners.is_empty())
    {
        story += "\nOwners of its key, first come first called\n";
        story += &table::draw(&answer["owners"], &OWNERS, "nobody");
    }
    let list = |keep: fn(&Value) -> bool| {
        let all = answer["endpoints"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        Value::Array(all.iter().filter(|row| keep(row)).cloned().collect())
    };
    story += "\nTiers, nearest first\n";
    story += &table::draw(&answer["tiers"], &TIERS, "none");
    if let Some(water) = answer.get("water").filter(|water| !water.is_null()) {
        story += &poured(water);
    }
    story += "\nCandidates\n";
    story += &table::draw(
        &list(|row| row["usable"] == true),
        &COSTS,
        "nobody: a request would be answered 503, flag UH",
    );
    story += "\nEverybody known\n";
    story += &table::draw(&answer["endpoints"], &endpoints::COLUMNS, "nobody");
    story
}

/// The formula's inputs, zone by zone.
fn poured(water: &Value) -> String {
    let mut story = format!(
        "\nZones: C capacity in {}, D demand in requests per second, each zone kept up to T*C\n  load D/C of all {}, T {}, so x = min(1, T*C/D) of our zone is {}\n",
        text(water, "capacity_unit"),
        number(water, "load", 3),
        number(water, "target", 3),
        percent(water, "local"),
    );
    if water["overload"] == true {
        story += "  OVERLOAD: nothing more is spilled, the servers shed what is too much\n";
    }
    story + &table::draw(&water["zones"], &ZONES, "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_story_names_candidates_and_who_is_out() {
        let answer = serde_json::json!({
            "request": {"method": "GET", "path": "/", "route": "its own table", "timeout_ms": 2000, "retries": 1},
            "upstream": "pay", "service": "pay", "balance": "least_response_time", "zones": "priority",
            "water": {"capacity_unit": "requests per second", "load": 0.5, "target": 0.7, "overload": false, "local": 0.875,
                "zones": [
                    {"zone": "z", "own": true, "tier": 0, "capacity": 100.0, "demand": 80.0, "filled": 70.0, "local": 0.875,
                        "told": "fresh", "silent_ms": null, "tripped": false, "target": 0.875, "share": 0.9},
                    {"zone": "y", "own": false, "tier": 2, "capacity": 100.0, "demand": 20.0, "filled": 70.0, "local": 1.0,
                        "told": "frozen", "silent_ms": 12_500, "tripped": false, "target": 0.125, "share": 0.1},
                ]},
            "panic": true, "requests_10s": 5, "retries_10s": 0,
            "tiers": [{"tier": 0, "name": "zone", "share": 1.0, "target": 1.0, "members": 1, "callable": 2, "well": 1,
                "total": 2, "health": 0.7, "tripped": false, "backup": false}],
            "endpoints": [
                {"instance": "a", "node": "n", "address": "10.0.0.1:80", "zone": "z", "tier": 0, "usable": true,
                    "why": null, "in_flight": 1, "latency_ms": 1.25, "success": 1.0, "ejected_for_ms": null,
                    "cost": {"latency_ms": 1.25, "own": 1, "success": 1.0, "stall": 1.0, "ramp": 1.0, "weight": 100.0,
                        "evenness": 0.83, "quiet": 1.0, "sated": 8.0, "cost": 64951.9}},
                {"instance": "b", "node": "n", "address": "10.0.0.2:80", "zone": "z", "tier": 0, "usable": false,
                    "why": "ejected", "in_flight": 0, "latency_ms": null, "success": 0.5, "ejected_for_ms": 1500,
                    "ejected_because": "too small a share of successes", "cost": null},
            ],
        });
        let story = told(&answer);
        for part in [
            "GET / to pay, found by its own table",
            "PANIC",
            "T 0.700, so x = min(1, T*C/D) of our zone is 87",
            "z (own)",
            "frozen: silent for 12 s",
            "1 of 2",
            "our subset: 1 of 2",
            "64952",
            "EVENNESS",
            "0.83",
            "SATED",
            "ejected (for 1.5s): too small a share of successes",
        ] {
            assert!(story.contains(part), "{part}\n{story}");
        }
    }
}
