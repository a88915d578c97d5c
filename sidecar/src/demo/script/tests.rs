//! The claims against made-up runs: one that went well, and one for each thing that can go wrong.

use super::*;
use crate::demo::ledger::Sample;

/// One request each 10 ms; `zone` says who answers what is due at a given time, and how late.
fn ledger(seconds: u64, answer: impl Fn(Duration) -> (Option<usize>, Duration)) -> Ledger {
    let mut samples: Vec<Sample> = (0..seconds * 100)
        .map(|n| {
            let due = Duration::from_millis(n * 10);
            let (zone, after) = answer(due);
            let done = due + after;
            Sample {
                due,
                sent: due,
                done,
                zone,
            }
        })
        .collect();
    samples.sort_by_key(|sample| sample.done);
    let mut ledger = Ledger::default();
    for sample in samples {
        ledger.record(sample, sample.zone.is_none().then(|| "refused".to_owned()));
    }
    ledger
}

fn times() -> Times {
    let s = Duration::from_secs;
    Times {
        converged: Some(s(1)),
        steady_end: s(5),
        killed: s(5),
        detected: Some(s(8)),
        revived: s(9),
        whole: Some(s(10)),
        end: s(40),
    }
}

/// Zone a until the kill, then b, then a's share grows by 5 % each second.
fn well(due: Duration) -> (Option<usize>, Duration) {
    let zone = match due.as_secs() {
        0..5 => 0,
        5..9 => 1,
        now => {
            let turn = due.subsec_millis() / 10;
            usize::from(u64::from(turn) >= (now - 9) * 5)
        }
    };
    (Some(zone), Duration::from_millis(1))
}

fn false_claims(report: &Report) -> Vec<String> {
    let claims = report.figures["claims"].as_array().unwrap().iter();
    let wrong = claims.filter(|claim| claim["pass"] == json!(false));
    wrong
        .map(|claim| claim["claim"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_run_without_a_lost_request_makes_all_claims_true() {
    let report = report(100, &times(), &ledger(40, well), Some(3.0));
    assert_eq!(false_claims(&report), Vec::<String>::new());
    assert!(report.all_true);
    assert_eq!(report.figures["detected_ms"], json!(3000.0));
    assert_eq!(
        report.figures["zone_share"]["during"],
        json!({ "a": 0.0, "b": 1.0, "c": 0.0 })
    );
    assert_eq!(report.figures["zone_share"]["after"]["a"], json!(1.0));
}

#[test]
fn each_thing_that_goes_wrong_makes_its_own_claim_false() {
    let s = Duration::from_secs;
    let slow = Times {
        converged: Some(s(4)),
        ..times()
    };
    let apart = Times {
        converged: None,
        ..times()
    };
    let late = Times {
        detected: Some(s(11)),
        ..times()
    };
    let never = Times {
        detected: None,
        ..times()
    };
    let fails_at = |when: u64| {
        move |due: Duration| match well(due) {
            (_, after) if due == s(when) => (None, after),
            answer => answer,
        }
    };
    let slow_failover = |due: Duration| match well(due) {
        (zone, _) if due.as_secs() == 5 && due.subsec_millis() < 400 => {
            (zone, Duration::from_millis(500))
        }
        answer => answer,
    };
    let at_once = |due: Duration| match well(due) {
        (_, after) if due >= s(12) => (Some(0), after),
        answer => answer,
    };
    let never_back = |due: Duration| match well(due) {
        (_, after) if due >= s(12) => (Some(1), after),
        answer => answer,
    };
    let table: [(&str, Report); 8] = [
        ("converged_ms", report(100, &slow, &ledger(40, well), None)),
        ("converged_ms", report(100, &apart, &ledger(40, well), None)),
        ("detected_ms", report(100, &late, &ledger(40, well), None)),
        ("detected_ms", report(100, &never, &ledger(40, well), None)),
        (
            "failover_ms",
            report(100, &times(), &ledger(40, slow_failover), None),
        ),
        (
            "share_step_per_second",
            report(100, &times(), &ledger(40, at_once), None),
        ),
        (
            "own_zone_share_after",
            report(100, &times(), &ledger(40, never_back), None),
        ),
        (
            "steady_requests",
            report(200, &times(), &ledger(40, well), None),
        ),
    ];
    for (claim, report) in &table {
        let wrong = false_claims(report);
        assert!(
            !report.all_true && wrong.len() == 1 && wrong[0].starts_with(claim),
            "{claim}: {wrong:?}"
        );
    }
    for (when, claim) in [
        (2, "steady_failed"),
        (6, "failed_after_kill"),
        (20, "failed_after_revival"),
    ] {
        let report = report(100, &times(), &ledger(40, fails_at(when)), None);
        assert_eq!(
            false_claims(&report),
            [format!("{claim} = 0"), "failed = 0".to_owned()]
        );
    }
}
