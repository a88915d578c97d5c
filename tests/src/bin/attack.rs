//! Attacks a mesh of real sidecars from outside and prints what came of it; exits with 1 if a claim fails.
//!
//! Not here: the attack (`attack.rs`). `tests/gossip/attack` builds both and starts this.

use std::{process::ExitCode, time::Duration};

use mesh_tests::attack::{self, Plan, Report};

const USAGE: &str = "\
usage: tests/gossip/attack [--rate N] [--seconds N] [--nodes N] [--victims N] [--json]

Starts a mesh of real sidecars on 127.x, sealed with a key, and has a stranger without that key send datagrams to their
gossip ports: overheard ones replayed, cut short, changed, drawn out; made-up ones in a member's name, in nobody's, in
clear, and noise. Meanwhile a service is drained and a sidecar killed. Prints what was sent, read and refused; what came
back; what is seen otherwise than before; memory; and how fast the change and the crash were known, with and without.

  --rate N      datagrams per second, all together (50000)
  --seconds N   how long (30)
  --nodes N     sidecars; one more is killed before the attack to listen in its place (5)
  --victims N   how many of them are attacked (all)
  --json        print one JSON object instead";

/// Resident memory that a sidecar may grow by under attack: its buffers are made by then.
const GROWTH_KIB_MAX: u64 = 2_048;

/// The promises of gossip's profile `fast` (a change, a crash), on a machine that is busy with the attack.
const CHANGE_MS_MAX: u64 = 2_000;
const CRASH_MS_MAX: u64 = 5_500;

#[tokio::main]
async fn main() -> ExitCode {
    let mut plan = Plan {
        nodes: 5,
        victims: usize::MAX,
        rate: 50_000,
        duration: Duration::from_secs(30),
    };
    let mut is_json = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse::<u32>().ok());
        let taken = match word.as_str() {
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--json" => {
                is_json = true;
                Some(())
            }
            "--rate" => number().map(|rate| plan.rate = rate),
            "--seconds" => number().map(|s| plan.duration = Duration::from_secs(s.into())),
            "--nodes" => number().map(|nodes| plan.nodes = nodes as usize),
            "--victims" => number().map(|victims| plan.victims = victims as usize),
            _ => None,
        };
        if taken.is_none() {
            eprintln!("{word}: not understood\n{USAGE}");
            return ExitCode::from(64);
        }
    }
    plan.nodes = plan.nodes.clamp(3, 60);
    plan.victims = plan.victims.clamp(1, plan.nodes);
    let report = attack::run(plan).await;
    if is_json {
        println!("{}", report.to_json());
    } else {
        print(&plan, &report);
    }
    let faults = faults(&report);
    for fault in &faults {
        eprintln!("FAILED: {fault}");
    }
    if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn print(plan: &Plan, report: &Report) {
    let told = |(kind, count): (&&str, &u64)| format!("{count} {kind}");
    let sent: Vec<String> = report.sent.iter().map(told).collect();
    let told = |(reason, count): (&String, &u64)| format!("{count} {reason}");
    let refused: Vec<String> = report.refused.iter().map(told).collect();
    let total: u64 = report.sent.values().sum();
    let [before, most, after] = report.memory_kib;
    println!(
        "{} of {} sidecars attacked for {} s",
        plan.victims,
        plan.nodes,
        plan.duration.as_secs()
    );
    println!(
        "sent           {total} ({:.0}/s): {}",
        report.rate,
        sent.join(", ")
    );
    println!(
        "read           {} ({} were sent to those that lived on, who also talk to each other)",
        report.read, report.aimed
    );
    println!("refused        {}", refused.join(", "));
    println!("answers        {}", report.answers);
    println!("state changes  {}", report.changes.len());
    for change in &report.changes {
        println!("               {change}");
    }
    println!("suspicions     {}", report.suspicions);
    println!(
        "memory         {before} KiB before, {most} at most, {after} after (whoever grew most)"
    );
    println!(
        "processor      {:.2} µs for each datagram read",
        report.cpu_us
    );
    let [calm, attacked] = report.change_ms;
    println!("a change       known to all after {attacked} ms; {calm} ms without the attack");
    let [calm, attacked] = report.crash_ms;
    println!("a crash        known to all after {attacked} ms; {calm} ms without the attack");
}

fn faults(report: &Report) -> Vec<String> {
    let mut faults = Vec::new();
    let mut claim = |holds: bool, fault: String| {
        if !holds {
            faults.push(fault);
        }
    };
    let [before, most, _] = report.memory_kib;
    claim(report.answers == 0, format!("{} answers", report.answers));
    claim(
        report.changes.is_empty(),
        "the mesh is seen otherwise".into(),
    );
    claim(
        most <= before + GROWTH_KIB_MAX,
        format!("memory grew by {} KiB", most.saturating_sub(before)),
    );
    claim(
        report.change_ms[1] <= CHANGE_MS_MAX,
        format!("a change took {} ms", report.change_ms[1]),
    );
    claim(
        report.crash_ms[1] <= CRASH_MS_MAX,
        format!("a crash took {} ms", report.crash_ms[1]),
    );
    faults
}
