//! The demo without a terminal: converge, steady load, kill a zone, revive it; each claim measured.
//!
//! Not here: the processes (`world.rs`), the load (`load.rs`), the sums (`ledger.rs`).

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::{
    AUTHORITY, ZONE_NAMES, ZONES, ask,
    ledger::{Figures, Ledger},
    load::Load,
    world::{ENDPOINTS, LOOK, MEMBERS, World},
};
use crate::cli::Failure;

/// The zone that is killed: the client's own, which serves all of its requests until then.
const KILLED: usize = 0;
/// Of load, before anything is killed.
const STEADY: Duration = Duration::from_secs(5);
/// Of load after the kill, at the least.
const AFTER_KILL_MIN: Duration = Duration::from_secs(3);
/// Until a phase that does not come to its end is given up.
const PHASE_MAX: Duration = Duration::from_secs(15);
/// Until a revived zone that does not get its share back is given up.
const RETURN_MAX: Duration = Duration::from_secs(60);
/// Of load after the share is back.
const SETTLED: Duration = Duration::from_secs(2);

// What is claimed.
const CONVERGED_MS_MAX: f64 = 3_000.0;
const OWN_ZONE_SHARE_MIN: f64 = 0.95;
const FAILOVER_MS_MAX: f64 = 300.0;
const DETECTED_MS_MAX: f64 = 5_500.0;
const SHARE_BACK_MIN: f64 = 0.95;
/// A share that returns by a ramp never rises by more than this from one second to the next.
const RAMP_STEP_MAX: f64 = 0.25;

/// What the script came to.
#[derive(Debug)]
pub struct Report {
    /// One JSON object.
    pub figures: Value,
    /// No claim is false.
    pub all_true: bool,
}

/// When what happened, on the ledger's clock.
#[derive(Default, Debug)]
struct Times {
    /// How long the sidecars took to meet, from the first process on.
    converged: Option<Duration>,
    steady_end: Duration,
    killed: Duration,
    detected: Option<Duration>,
    revived: Duration,
    whole: Option<Duration>,
    end: Duration,
}

/// Runs all phases; says on standard error how far it is.
///
/// # Errors
/// A process could not be started or ended by itself.
pub async fn run(rate: u32) -> Result<Report, Failure> {
    let began = Instant::now();
    let mut world = World::start().await?;
    let converged = world.until_whole(PHASE_MAX).await?.then(|| began.elapsed());
    match converged {
        Some(took) => eprintln!(
            "converged in {} ms: {MEMBERS} members, {ENDPOINTS} endpoints",
            took.as_millis()
        ),
        None => eprintln!("not converged within {PHASE_MAX:?}; going on regardless"),
    }
    let retried_before = retries(&world).await;
    let load = Load::start(world.outbound(), AUTHORITY, rate);
    let times = Times {
        converged,
        ..phases(&mut world, &load).await?
    };
    let retried_after = retries(&world).await;
    let ledger = load.stop().await;
    let retried = retried_before
        .zip(retried_after)
        .map(|(before, after)| after - before);
    let report = report(rate, &times, &ledger, retried);
    if !report.all_true {
        eprintln!(
            "a claim is false; the sidecars' logs stay in {}",
            world.keep().display()
        );
    }
    Ok(report)
}

async fn phases(world: &mut World, load: &Load) -> Result<Times, Failure> {
    let mut times = Times::default();
    sleep(STEADY).await;
    times.steady_end = load.now();
    eprintln!(
        "steady: {}",
        told(&load.ledger().between(Duration::ZERO, times.steady_end))
    );

    times.killed = load.at(world.kill(KILLED).await);
    eprintln!("killed zone {} with all its processes", ZONE_NAMES[KILLED]);
    times.detected = until(load, PHASE_MAX, async || world.is_seen_down(KILLED).await).await;
    let stay = (times.killed + AFTER_KILL_MIN).saturating_sub(load.now());
    sleep(stay).await;
    times.revived = load.now();
    eprintln!(
        "without it: {}",
        told(&load.ledger().between(times.killed, times.revived))
    );

    world.revive(KILLED).await?;
    eprintln!("revived zone {}", ZONE_NAMES[KILLED]);
    times.whole = world.until_whole(PHASE_MAX).await?.then(|| load.now());
    until(load, RETURN_MAX, async || {
        let now = load.now();
        let last = now.saturating_sub(Duration::from_secs(1));
        let share = load.ledger().between(last, now).shares()[KILLED];
        share >= SHARE_BACK_MIN
    })
    .await;
    sleep(SETTLED).await;
    times.end = load.now();
    eprintln!(
        "with it again: {}",
        told(&load.ledger().between(times.revived, times.end))
    );
    Ok(times)
}

/// The ledger cut at the times of the phases.
struct Phases {
    all: Figures,
    steady: Figures,
    during: Figures,
    returning: Figures,
    after: Figures,
    /// The killed zone's share in each second from its revival on.
    ramp: Vec<f64>,
    converged_ms: Option<f64>,
    failover_ms: Option<f64>,
    detected_ms: Option<f64>,
}

impl Phases {
    fn cut(ledger: &Ledger, times: &Times) -> Phases {
        let since_kill = |at: Duration| ms(at.saturating_sub(times.killed));
        let failover = ledger.first_answer(times.killed, |zone| zone != KILLED);
        Phases {
            all: ledger.between(Duration::ZERO, Duration::MAX),
            steady: ledger.between(Duration::ZERO, times.steady_end),
            during: ledger.between(times.killed, times.revived),
            returning: ledger.between(times.revived, times.end),
            after: ledger.between(times.end.saturating_sub(SETTLED), times.end),
            ramp: ramp(ledger, times),
            converged_ms: times.converged.map(ms),
            failover_ms: failover.map(since_kill),
            detected_ms: times.detected.map(since_kill),
        }
    }

    fn claims(&self, rate: u32, times: &Times) -> Claims {
        let due = (times.steady_end.as_secs_f64() * f64::from(rate)) as u64;
        let mut claims = Claims::default();
        claims.at_most("converged_ms", self.converged_ms, CONVERGED_MS_MAX);
        // One less for the request that falls due at the very end of the phase.
        let due = due.saturating_sub(1) as f64;
        claims.at_least("steady_requests", self.steady.requests as f64, due);
        claims.none("steady_failed", self.steady.failed);
        let before = self.steady.shares()[KILLED];
        claims.at_least("own_zone_share_before", before, OWN_ZONE_SHARE_MIN);
        claims.at_most("failover_ms", self.failover_ms, FAILOVER_MS_MAX);
        claims.none("failed_after_kill", self.during.failed);
        claims.at_most("detected_ms", self.detected_ms, DETECTED_MS_MAX);
        claims.none("failed_after_revival", self.returning.failed);
        let after = self.after.shares()[KILLED];
        claims.at_least("own_zone_share_after", after, SHARE_BACK_MIN);
        let step = steepest(&self.ramp);
        claims.at_most("share_step_per_second", Some(step), RAMP_STEP_MAX);
        claims.none("failed", self.all.failed);
        claims
    }
}

/// The figures and the claims, from nothing but what was measured.
fn report(rate: u32, times: &Times, ledger: &Ledger, retried: Option<f64>) -> Report {
    let phases = Phases::cut(ledger, times);
    let claims = phases.claims(rate, times);
    let whole = times.whole.map(|at| ms(at.saturating_sub(times.revived)));
    let silence = ms(ledger.longest_silence(times.killed, times.revived));
    let figures = json!({
        "members": MEMBERS,
        "endpoints": ENDPOINTS,
        "rate_per_s": rate,
        "requests": phases.all.requests,
        "failed": phases.all.failed,
        "faults": ledger.faults(),
        "retried": retried,
        "converged_ms": phases.converged_ms.map(tenth),
        "failover_ms": phases.failover_ms.map(tenth),
        "detected_ms": phases.detected_ms.map(tenth),
        "whole_again_ms": whole.map(tenth),
        "silence_after_kill_ms": tenth(silence),
        "p50_ms": hundredth(phases.steady.quantile_ms(0.5)),
        "p99_ms": hundredth(phases.steady.quantile_ms(0.99)),
        "p99_after_kill_ms": hundredth(phases.during.quantile_ms(0.99)),
        "max_after_kill_ms": hundredth(phases.during.quantile_ms(1.0)),
        "p99_after_revival_ms": hundredth(phases.returning.quantile_ms(0.99)),
        // High figures here say that this machine had no time for the client: then the others say little.
        "client_late_p99_ms": hundredth(phases.all.late_ms(0.99)),
        "client_late_max_ms": hundredth(phases.all.late_ms(1.0)),
        "zone_share": {
            "before": shares(&phases.steady),
            "during": shares(&phases.during),
            "after": shares(&phases.after),
            "return_by_second": phases.ramp.iter().copied().map(hundredth).collect::<Vec<_>>(),
        },
        "claims": claims.told,
    });
    Report {
        figures,
        all_true: !claims.any_false,
    }
}

#[derive(Default)]
struct Claims {
    told: Vec<Value>,
    any_false: bool,
}

impl Claims {
    fn at_most(&mut self, figure: &str, measured: Option<f64>, limit: f64) {
        let pass = measured.is_some_and(|measured| measured <= limit);
        self.tell(json!({ "claim": format!("{figure} <= {limit}"), "measured": measured.map(hundredth), "pass": pass }), pass);
    }

    fn at_least(&mut self, figure: &str, measured: f64, limit: f64) {
        let pass = measured >= limit;
        self.tell(json!({ "claim": format!("{figure} >= {limit}"), "measured": hundredth(measured), "pass": pass }), pass);
    }

    fn none(&mut self, figure: &str, measured: u64) {
        let pass = measured == 0;
        self.tell(
            json!({ "claim": format!("{figure} = 0"), "measured": measured, "pass": pass }),
            pass,
        );
    }

    fn tell(&mut self, claim: Value, pass: bool) {
        self.any_false |= !pass;
        self.told.push(claim);
    }
}

/// The killed zone's share in each whole second from the revival to the end.
fn ramp(ledger: &Ledger, times: &Times) -> Vec<f64> {
    let second = Duration::from_secs(1);
    let seconds = times.end.saturating_sub(times.revived).as_secs() as u32;
    let starts = (0..seconds).map(|n| times.revived + second * n);
    starts
        .map(|from| ledger.between(from, from + second).shares()[KILLED])
        .collect()
}

/// The largest rise from one second to the next, the first counted from nothing.
fn steepest(ramp: &[f64]) -> f64 {
    let before = std::iter::once(0.0).chain(ramp.iter().copied());
    let rises = before.zip(ramp).map(|(before, now)| now - before);
    rises.fold(0.0, f64::max)
}

/// Asks `is_so` again and again while the load runs; when it was so, or `None` after `limit`.
async fn until(
    load: &Load,
    limit: Duration,
    mut is_so: impl AsyncFnMut() -> bool,
) -> Option<Duration> {
    let give_up = Instant::now() + limit;
    while Instant::now() < give_up {
        if is_so().await {
            return Some(load.now());
        }
        sleep(LOOK).await;
    }
    None
}

/// The retries that the client's sidecar has counted; `None` if it does not say.
async fn retries(world: &World) -> Option<f64> {
    let metrics = ask::text(world.client_admin(), "/metrics").await.ok()?;
    let metrics = String::from_utf8_lossy(&metrics);
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("starling_retries_total"));
    Some(
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum(),
    )
}

fn told(figures: &Figures) -> String {
    let shares = figures.shares();
    let zones =
        (0..ZONES).map(|zone| format!("{} {:.0} %", ZONE_NAMES[zone], shares[zone] * 100.0));
    format!(
        "{} requests, {} failed, p50 {:.2} ms, p99 {:.2} ms; {}",
        figures.requests,
        figures.failed,
        figures.quantile_ms(0.5),
        figures.quantile_ms(0.99),
        zones.collect::<Vec<_>>().join(", ")
    )
}

fn shares(figures: &Figures) -> Value {
    let shares = ZONE_NAMES.iter().zip(figures.shares());
    let shares: Map<String, Value> = shares
        .map(|(zone, share)| ((*zone).to_owned(), json!(hundredth(share))))
        .collect();
    shares.into()
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn tenth(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

fn hundredth(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests;
