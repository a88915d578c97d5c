//! `starling sim gossip`: the gossip of a whole mesh in virtual time, by scenario and seed, measured against targets.
//!
//! Not here: the simulator and its stories (`mesh_core::sim`). Nothing is sent anywhere: all nodes live in this process.

use std::{
    fmt::Write as _,
    io::IsTerminal,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::builder::PossibleValuesParser;
use mesh_core::{
    moment::Moment,
    sim::gossip::{self as sim, Figure, NODES_MAX, Report, Scenario},
};
use serde_json::{Value, json};

use crate::cli::{Ended, Exit, Failure, print};

const EXAMPLES: &str = "\
Examples:
  starling sim gossip --scenario crash --nodes 1000   one story, with its figures and targets
  starling sim gossip --scenario all --nodes 64       every story
  starling sim gossip --scenario table --nodes 10000  the table of all figures that are simulated
  starling sim gossip --scenario feed                 one node of a mesh with 50,000 records
  starling sim gossip --scenario keys --seeds 20      the same story with twenty seeds, from --seed on

Stories:
  idle, hour, crash, change, zones, loss, noise, one-way, deaf, mute, zone-lost, stall, restart, fresh, moved, rolling,
  mass, cloned, clock, versions, keys, partition; --list tells what happens in each

The same seed gives the same run: equal traces prove it. A story that misses a target prints the command that runs it
again. In every story versions must never fall, nothing taken back may return, and no queue may pass its bound. Up to
1,000 nodes know each other's records; beyond, only each other. Use a release build. A crash story of 10,000 nodes
takes about 90 s of a core and 1.4 GB of memory.

Exit codes: 0 all targets met, 1 one missed or something was found wrong, 64 usage.";

/// Nodes of the table's rows for large meshes.
const TABLE_NODES: [usize; 3] = [1_000, 5_000, 10_000];

/// Records one node is fed in the story `feed`, and the share that changes in a minute.
const FEED_RECORDS: usize = 50_000;
const FEED_CHURN: f64 = 0.01;

/// What it may take: bytes of memory, and bytes per second sent.
const FEED_MEMORY_MAX: f64 = 30.0 * 1_024.0 * 1_024.0;
const FEED_BYTES_MAX: f64 = 20_000.0;

/// Virtual time it is fed for.
const FEED_TIME: Duration = Duration::from_secs(120);

/// Between two lines about a run that goes on, where nobody watches.
const PROGRESS: Duration = Duration::from_secs(30);

/// Wall time that 1,000 nodes may take for a minute.
const MINUTE_OF_1000_MAX_S: f64 = 10.0;

/// The arguments of `sim gossip`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The story, or "all", "table", "feed"
    #[arg(long, default_value = "crash", hide_possible_values = true, value_parser = PossibleValuesParser::new(names()))]
    scenario: String,
    /// How many nodes; with "table", at most so many
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=NODES_MAX as i64))]
    nodes: u32,
    /// The dice of the run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Play it with so many seeds, one after the other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    seeds: u32,
    /// Print JSON, one object a line and story
    #[arg(long)]
    json: bool,
    /// Tell what happens in each story and end
    #[arg(long)]
    list: bool,
}

fn names() -> Vec<&'static str> {
    let all = Scenario::ALL.into_iter().map(Scenario::name);
    all.chain(["all", "table", "feed"]).collect()
}

pub(super) fn run(args: &Args) -> Ended {
    if args.list {
        for scenario in Scenario::ALL {
            print(&format!("{:10} {}\n", scenario.name(), scenario.about()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let nodes = args.nodes as usize;
    let rows: Vec<(Scenario, usize)> = match args.scenario.as_str() {
        "feed" => return done(feed(args)?),
        "table" => return table(args, nodes),
        "all" => Scenario::ALL.map(|scenario| (scenario, nodes)).to_vec(),
        name => {
            let scenario = Scenario::ALL.into_iter().find(|known| known.name() == name);
            scenario
                .map(|scenario| (scenario, nodes))
                .into_iter()
                .collect()
        }
    };
    let mut holds = true;
    for (scenario, nodes) in rows {
        holds &= play(args, scenario, nodes)?;
    }
    done(holds)
}

fn done(holds: bool) -> Ended {
    if holds {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(
        Exit::Failed,
        "a target was missed, or something was found wrong",
        "the lines marked MISSED and WRONG say what, and the line below them which command runs it again",
    ))
}

/// Every figure of the design that is simulated.
fn table(args: &Args, most: usize) -> Ended {
    let mut rows: Vec<(Scenario, usize)> = Vec::new();
    rows.push((Scenario::Idle, TABLE_NODES[0]));
    for nodes in TABLE_NODES {
        rows.extend([(Scenario::Crash, nodes), (Scenario::Change, nodes)]);
    }
    rows.extend([
        (Scenario::Partition, 64),
        (Scenario::Partition, TABLE_NODES[0]),
    ]);
    rows.extend([
        (Scenario::Rolling, TABLE_NODES[0]),
        (Scenario::Mass, TABLE_NODES[0]),
    ]);
    rows.extend([(Scenario::Hour, 64), (Scenario::Loss, 64)]);
    rows.extend([(Scenario::Stall, 64), (Scenario::Deaf, 64)]);
    rows.extend([(Scenario::Versions, 64), (Scenario::Keys, 64)]);
    // First, while nothing else has left its marks on this process' memory.
    let mut holds = feed(args)?;
    for (scenario, nodes) in rows {
        if nodes <= most {
            holds &= play(args, scenario, nodes)?;
        } else if !args.json {
            print(&format!(
                "{} at {nodes} nodes: not run, add --nodes {nodes}\n",
                scenario.name()
            ))?;
        }
    }
    done(holds)
}

/// Plays one story, with every seed, and prints what it came to.
fn play(args: &Args, scenario: Scenario, nodes: usize) -> Result<bool, Failure> {
    let mut holds = true;
    for seed in (args.seed..).take(args.seeds as usize) {
        holds &= play_seed(args, scenario, nodes, seed)?;
    }
    Ok(holds)
}

fn play_seed(args: &Args, scenario: Scenario, nodes: usize, seed: u64) -> Result<bool, Failure> {
    let began = Instant::now();
    let mut told = began;
    let is_watched = std::io::stderr().is_terminal();
    let pause = if is_watched {
        Duration::from_secs(1)
    } else {
        PROGRESS
    };
    let mut progress = |at: Moment| {
        if told.elapsed() < pause {
            return;
        }
        told = Instant::now();
        let seconds = at.as_nanos() / 1_000_000_000;
        let line = format!(
            "{} · {nodes} nodes: {seconds} s of virtual time",
            scenario.name()
        );
        if is_watched {
            eprint!("\r{line} ");
        } else {
            eprintln!("{line} in {} s", began.elapsed().as_secs());
        }
    };
    let report = sim::run(scenario, nodes, seed, &mut progress);
    if is_watched {
        eprint!("\r\x1b[K");
    }
    let wall = began.elapsed().as_secs_f64();
    let is_timed = scenario == Scenario::Idle && nodes == TABLE_NODES[0] && !cfg!(debug_assertions);
    let is_quick = !is_timed || wall <= MINUTE_OF_1000_MAX_S;
    let text = if args.json {
        format!("{}\n", as_json(&report, wall))
    } else {
        as_text(&report, wall, is_timed)
    };
    print(&text)?;
    Ok(report.holds() && is_quick)
}

fn as_text(report: &Report, wall: f64, is_timed: bool) -> String {
    let mut text = format!(
        "{} · {} nodes · seed {}: {:.0} s in {wall:.1} s, {} events, trace {:016x}\n",
        report.scenario.name(),
        report.nodes,
        report.seed,
        report.virtual_s,
        report.events,
        report.trace
    );
    for figure in &report.figures {
        line(&mut text, figure);
    }
    if is_timed {
        let figure = Figure {
            what: "wall time of a minute, s",
            value: wall,
            target: Some(MINUTE_OF_1000_MAX_S),
        };
        line(&mut text, &figure);
    }
    for fault in &report.faults {
        let _ = writeln!(text, "  WRONG  {fault}");
    }
    if !report.holds() {
        let _ = writeln!(text, "  again: {}", report.replay());
    }
    text
}

fn line(text: &mut String, figure: &Figure) {
    let value = if figure.value.fract() == 0.0 {
        format!("{}", figure.value)
    } else {
        format!("{:.2}", figure.value)
    };
    let verdict = match figure.target {
        None => String::new(),
        Some(target) if figure.holds() => format!("≤ {target}"),
        Some(target) => format!("≤ {target}  MISSED"),
    };
    let _ = writeln!(text, "  {:44} {value:>10}  {verdict}", figure.what);
}

fn as_json(report: &Report, wall: f64) -> Value {
    let figures: Vec<Value> = report.figures.iter().map(figure_json).collect();
    json!({
        "scenario": report.scenario.name(),
        "nodes": report.nodes,
        "seed": report.seed,
        "virtual_s": report.virtual_s,
        "wall_s": wall,
        "events": report.events,
        "trace": format!("{:016x}", report.trace),
        "figures": figures,
        "faults": report.faults,
        "holds": report.holds(),
        "replay": report.replay(),
    })
}

/// A figure that has no value, because what was awaited never came, is null.
fn figure_json(figure: &Figure) -> Value {
    json!({ "what": figure.what, "value": figure.value, "target": figure.target, "holds": figure.holds() })
}

/// One node of a large mesh: what its knowledge takes.
fn feed(args: &Args) -> Result<bool, Failure> {
    let before = resident_bytes();
    let mut after = 0;
    let fed = sim::feed(FEED_RECORDS, FEED_CHURN, FEED_TIME, args.seed, |_| {
        after = resident_bytes();
    });
    let mut figures = vec![
        ("members known", fed.members as f64, None),
        ("records held", fed.records as f64, None),
        ("changes told", fed.changes as f64, None),
        (
            "changes missed",
            fed.changes as f64 - fed.news as f64,
            Some(0.0),
        ),
        (
            "bytes sent per second",
            fed.sent_per_s,
            Some(FEED_BYTES_MAX),
        ),
        ("bytes received per second", fed.received_per_s, None),
    ];
    if before > 0 && after > 0 {
        let grown = after.saturating_sub(before) as f64;
        figures.push((
            "resident memory of the node, bytes",
            grown,
            Some(FEED_MEMORY_MAX),
        ));
    }
    let figures: Vec<Figure> = (figures.into_iter())
        .map(|(what, value, target)| Figure {
            what,
            value,
            target,
        })
        .collect();
    if args.json {
        let told: Vec<Value> = figures.iter().map(figure_json).collect();
        let told = json!({ "scenario": "feed", "seed": args.seed, "figures": told });
        print(&format!("{told}\n"))?;
    } else {
        let mut text = format!(
            "feed · {FEED_RECORDS} records, 1 % changed a minute · seed {}\n",
            args.seed
        );
        figures.iter().for_each(|figure| line(&mut text, figure));
        print(&text)?;
    }
    Ok(figures.iter().all(Figure::holds))
}

/// Resident memory of this process; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    let kib = kib.and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}
