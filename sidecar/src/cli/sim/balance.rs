//! `starling sim balance`: many clients and some backends, played with this balancer and with those of others.
//!
//! Not here: the play and its targets (`mesh_core::sim`).

use std::{path::PathBuf, process::ExitCode, time::Duration};

use mesh_core::sim::{
    balance::{
        fleet::Way,
        scenario::{self, Scenario, ZONES},
        tally::{Figures, QUANTILES, Stretch, by_zone},
        verdict::Comparison,
    },
    plot::{self, Chart},
};
use serde_json::{Value, json};

use crate::cli::{
    Ended, Exit, Failure, print,
    table::{self, Column, number, numbers, text, words},
};

/// More runs than this would take hours.
const RUNS_MAX: u64 = 100;

/// One point of a plot.
const STRETCH: Duration = Duration::from_millis(500);

/// A plot shows the shares of up to this many good backends beside those of the bad ones.
const SHARES_SHOWN: usize = 8;

/// The arguments of `sim balance`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Independent clients, each with a picker and figures of its own, send requests to backends with a bounded pool of workers \
 and random service times, in virtual time. Arrivals and service times depend on the seed alone: every policy gets the \
 same load. least_response_time and the other policies of this mesh are the code that a sidecar runs, ejection \
 included; envoy (LEAST_REQUEST with outlier detection), linkerd (peak EWMA, with its breaker or without) and prequal \
 (with error aversion) are written anew from what is published of them, with their defaults. oracle sees every queue \
 and speed, and sends each request where the wait is shortest. The told_ policies are an experiment: \
 least_response_time with servers that tell how busy they are. Nobody retries.

The scenarios named zones_ have three zones, each a third of clients and backends, and news that is half a second or two \
 seconds old: here least_response_time fills zones like water, as a sidecar does unless told otherwise; priority is the \
 same with priority and spill, which is what envoy does as well; envoy_load_aware picks zones by how busy they are. ZONES \
 are the shares of the three, AWAY is what left the zone of its client.

P50 to P99.9 are milliseconds of good answers and of those that never came (which count 2 s); ERRORS is the share that \
 came to nothing, BAD the share sent to slow or failing backends, SPREAD the largest share of a good backend divided \
 by the smallest. TARGET lines say what least_response_time has to reach, and where it never did, the guard that it must \
 not fall behind. Its parameters were chosen on the \
 scenarios that are not called held_back.

Examples:
  starling sim balance --list
  starling sim balance speeds
  starling sim balance all --policy least_response_time --policy envoy --runs 5 --svg all.svg
  starling sim balance --check          every scenario; exits with 1 if one is missed or gets worse")]
pub struct Args {
    /// Which scenarios; all of them if none is named
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// Which policies, any number of times [default: least_response_time and the others' ways]
    #[arg(long, value_name = "POLICY")]
    policy: Vec<String>,
    /// The seed of the first run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs of each, with seeds one after another, counted together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=RUNS_MAX))]
    runs: u64,
    /// Exit with 1 if a target is missed; one that never was reached counts once it is missed by more than its guard
    #[arg(long)]
    check: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw latency, errors and shares over time into this file; takes one scenario
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// List scenarios and policies instead
    #[arg(long)]
    list: bool,
}

const RESULTS: [Column; 9] = [
    words("POLICY", |row| text(row, "policy")),
    numbers("P50", |row| number(row, "p50_ms", 1)),
    numbers("P90", |row| number(row, "p90_ms", 1)),
    numbers("P99", |row| number(row, "p99_ms", 1)),
    numbers("P99.9", |row| number(row, "p999_ms", 1)),
    numbers("OUR P99/ITS", |row| number(row, "p99_ratio", 2)),
    numbers("ERRORS", |row| share(row, "errors")),
    numbers("BAD", |row| share(row, "bad_share")),
    numbers("SPREAD", |row| number(row, "spread", 2)),
];

const ZONED: [Column; 10] = [
    RESULTS[0],
    RESULTS[1],
    RESULTS[2],
    RESULTS[3],
    RESULTS[4],
    RESULTS[5],
    RESULTS[6],
    words("ZONES", zones),
    numbers("AWAY", |row| share(row, "away")),
    RESULTS[8],
];

pub(super) fn run(args: &Args) -> Ended {
    if args.list {
        print(&list())?;
        return Ok(ExitCode::SUCCESS);
    }
    let scenarios = scenarios(&args.scenarios)?;
    let ways = ways(&args.policy)?;
    if args.svg.is_some() && scenarios.len() != 1 {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "--svg draws one scenario, and {} are to be played",
                scenarios.len()
            ),
            "name one: starling sim balance speeds --svg speeds.svg",
        ));
    }
    let mut all = Vec::new();
    let (mut missed, mut worse) = (0, 0);
    for scenario in scenarios {
        let ways = match &ways {
            Some(ways) => ways,
            None => Way::usual(&scenario),
        };
        let comparison = Comparison::play(scenario, ways, args.seed, args.runs);
        let verdicts = comparison.verdicts();
        missed += verdicts.iter().filter(|v| !v.is_met()).count();
        worse += verdicts.iter().filter(|v| !v.is_kept()).count();
        let seen = as_json(&comparison);
        if args.json {
            all.push(seen);
        } else {
            print(&as_text(&comparison, &seen))?;
        }
        if let Some(file) = &args.svg {
            draw(&comparison, file)?;
        }
    }
    if args.json {
        let whole = json!({
            "seed": args.seed,
            "runs": args.runs,
            "missed": missed,
            "worse": worse,
            "scenarios": all,
        });
        print(&format!("{whole:#}\n"))?;
    }
    if args.check && worse > 0 {
        return Err(Failure::new(
            Exit::Failed,
            format!("{worse} targets were missed that are reached, or by more than their guard"),
            "try other seeds before you blame the code: starling sim balance --runs 5",
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn list() -> String {
    let mut text = "Scenarios:\n".to_owned();
    for scenario in scenario::all() {
        text.push_str(&format!("  {:<26}{}\n", scenario.name, scenario.about));
    }
    text.push_str("Policies:\n");
    for way in Way::ALL {
        text.push_str(&format!("  {}\n", way.name()));
    }
    text
}

fn scenarios(names: &[String]) -> Result<Vec<Scenario>, Failure> {
    if names.is_empty() {
        return Ok(scenario::all());
    }
    let named = |name: &String| scenario::named(name).ok_or_else(|| unknown("scenario", name));
    names.iter().map(named).collect()
}

/// The ways of these names; `None` if none is named.
fn ways(names: &[String]) -> Result<Option<Vec<Way>>, Failure> {
    if names.is_empty() {
        return Ok(None);
    }
    let named = |name: &String| Way::named(name).ok_or_else(|| unknown("policy", name));
    names.iter().map(named).collect::<Result<_, _>>().map(Some)
}

fn unknown(what: &str, name: &str) -> Failure {
    Failure::new(
        Exit::Usage,
        format!("there is no {what} {name:?} to simulate"),
        "starling sim balance --list tells all of them",
    )
}

fn as_json(comparison: &Comparison) -> Value {
    let rows: Vec<Value> = comparison
        .results
        .iter()
        .map(|(way, tally)| row(comparison, *way, &tally.figures()))
        .collect();
    let verdicts: Vec<Value> = comparison
        .verdicts()
        .iter()
        .map(|v| {
            json!({
                "what": v.what,
                "value": v.value,
                "most": v.most,
                "met": v.is_met(),
                "guard": v.guard,
                "kept": v.is_kept(),
            })
        })
        .collect();
    json!({
        "scenario": comparison.scenario.name,
        "about": comparison.scenario.about,
        "held_back": comparison.scenario.is_held_back(),
        "results": rows,
        "targets": verdicts,
    })
}

fn row(comparison: &Comparison, way: Way, figures: &Figures) -> Value {
    let [p50, p90, p99, p999] = figures.quantiles_ms;
    debug_assert_eq!(QUANTILES, [0.5, 0.9, 0.99, 0.999]);
    json!({
        "policy": way.name(),
        "requests": figures.requests,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "p999_ms": p999,
        "p99_ratio": comparison.p99_ratio(way),
        "errors": figures.errors,
        "bad_share": figures.bad_share,
        "spread": figures.spread,
        "zones": figures.zones,
        "away": figures.zones.map(|_| figures.away),
    })
}

/// A share as percent, with digits enough for one in a hundred thousand.
fn share(row: &Value, key: &str) -> String {
    row[key]
        .as_f64()
        .map_or_else(|| "-".to_owned(), |share| format!("{:.3}%", share * 100.0))
}

/// The share of each zone in whole percents.
fn zones(row: &Value) -> String {
    let shares = row["zones"].as_array().into_iter().flatten();
    let shares = shares.filter_map(Value::as_f64);
    let shares: Vec<String> = shares.map(|s| format!("{:.0}", s * 100.0)).collect();
    shares.join("/")
}

fn as_text(comparison: &Comparison, seen: &Value) -> String {
    let scenario = &comparison.scenario;
    let mut text = format!("{}: {}\n", scenario.name, scenario.about);
    let columns = match scenario.zones {
        None => &RESULTS[..],
        Some(_) => &ZONED[..],
    };
    text.push_str(&table::draw(
        &seen["results"],
        columns,
        "nothing was played",
    ));
    for verdict in comparison.verdicts() {
        let said = match (verdict.is_met(), verdict.guard) {
            (true, _) => "met".to_owned(),
            (false, None) => "MISSED".to_owned(),
            (false, Some(guard)) if verdict.is_kept() => {
                format!("MISSED as before, guarded at {guard:.2}")
            }
            (false, Some(guard)) => format!("MISSED, and worse than its guard {guard:.2}"),
        };
        text.push_str(&format!(
            "TARGET {}: {:.4}, at most {} - {said}\n",
            verdict.what, verdict.value, verdict.most
        ));
    }
    text.push('\n');
    text
}

fn draw(comparison: &Comparison, file: &PathBuf) -> Result<(), Failure> {
    let name = comparison.scenario.name;
    let (mut p99, mut errors, mut charts) = (Vec::new(), Vec::new(), Vec::new());
    for (way, tally) in &comparison.results {
        let stretches = tally.stretches(STRETCH);
        let line = |of: &dyn Fn(&Stretch) -> f64| {
            stretches
                .iter()
                .map(|s| (s.at_s, of(s)))
                .collect::<Vec<_>>()
        };
        p99.push((way.name().to_owned(), line(&|s| s.p99_ms)));
        errors.push((way.name().to_owned(), line(&|s| s.errors * 100.0)));
        if comparison.scenario.zones.is_some() {
            charts.push(Chart {
                title: format!("{name}, {}: share of each zone", way.name()),
                x: "seconds",
                y: "%",
                lines: (0..ZONES)
                    .map(|zone| {
                        let share = |s: &Stretch| by_zone(&s.shares)[zone] * 100.0;
                        (format!("zone {zone}"), line(&share))
                    })
                    .collect(),
            });
            continue;
        }
        let backends = comparison.scenario.backends.iter().enumerate();
        let (bad, good): (Vec<_>, Vec<_>) = backends.partition(|(_, backend)| backend.bad);
        let shown = bad.iter().chain(good.iter().take(SHARES_SHOWN));
        let lines = shown.map(|(i, backend)| {
            let word = if backend.bad { "bad " } else { "" };
            (format!("{word}{i}"), line(&|s| s.shares[*i] * 100.0))
        });
        charts.push(Chart {
            title: format!("{name}, {}: share of each backend", way.name()),
            x: "seconds",
            y: "%",
            lines: lines.collect(),
        });
    }
    let over_time = |what: &str, y, lines| Chart {
        title: format!("{name}: {what}"),
        x: "seconds",
        y,
        lines,
    };
    charts.insert(0, over_time("p99 latency", "ms", p99));
    charts.insert(1, over_time("errors", "%", errors));
    std::fs::write(file, plot::svg(&charts)).map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("cannot write {}: {error}", file.display()),
            "name a file in a directory that you may write to",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_knows_are_refused_with_the_next_step() {
        let failure = scenarios(&["nonsense".to_owned()]).expect_err("there is none");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.next.contains("--list"));
        assert!(ways(&["envoy".to_owned(), "nonsense".to_owned()]).is_err());
        assert_eq!(ways(&[]), Ok(None));
    }

    #[test]
    fn a_play_is_told_as_text_json_and_drawing() {
        let mut scenario = scenario::named("failing").expect("it is in the list");
        scenario.clients = 2;
        scenario.load = 0.05;
        scenario.span = Duration::from_secs(6);
        let ways = [
            Way::Starling(mesh_core::policy::Balance::LeastResponseTime),
            Way::Envoy,
        ];
        let comparison = Comparison::play(scenario, &ways, 1, 1);
        let seen = as_json(&comparison);
        let told = as_text(&comparison, &seen);
        assert!(told.contains("least_response_time") && told.contains("TARGET share to the bad"));
        assert_eq!(seen["results"][1]["policy"], "envoy");
        assert_eq!(seen["results"][0]["p99_ratio"], 1.0);
        assert_eq!(seen["targets"].as_array().map(Vec::len), Some(2));
        let list = list();
        assert!(list.contains("speeds_held_back") && list.contains("linkerd_breaker"));
    }
}
