//! The story of an ejection, its caps and its canary.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    balance::{Ask, PickKind, Picker},
    endpoint::Endpoint,
    mesh::NodeState,
    staging::{MS, Stage, at, dice, report},
    upstream::{Member, Upstream},
};

const REFUSED: Outcome = Outcome::Unreachable(Unreachable::Refused);
const BROKEN: Outcome = Outcome::Unreachable(Unreachable::Broken);
const GATEWAY: Outcome = Outcome::ServerFault { gateway: true };

fn endpoint(upstream: &Upstream, i: usize) -> Arc<Endpoint> {
    let mut members = upstream.members();
    Arc::clone(&members.nth(i).expect("the member is there").endpoint)
}

/// Five failures on two connections.
fn fail(upstream: &Upstream, i: usize, outcome: Outcome, now: Moment) -> Option<Ejected> {
    (0..5).find_map(|n| report(upstream, i, outcome, 1 + n % 2, now + MS * n as u32))
}

#[test]
fn an_ejected_endpoint_returns_by_a_canary_and_a_ramp() {
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    let sick = endpoint(&upstream, 0);
    for n in 0..4 {
        assert_eq!(report(&upstream, 0, GATEWAY, 1 + n % 2, at(n)), None);
    }
    let ejected = report(&upstream, 0, GATEWAY, 1, at(4)).expect("the fifth sends it out");
    assert_eq!((ejected.times, ejected.cause), (1, Cause::Answers));
    assert!(ejected.duration >= 800 * MS && ejected.duration <= 1_200 * MS);

    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let ask = Ask {
        idempotent: true,
        ..Ask::default()
    };
    for i in 0..700 {
        let pick = picker
            .pick(&ask, at(5 + i), &mut rng)
            .expect("others are in");
        assert_ne!(pick.endpoint.id, sick.id);
    }
    // Its time is over: one request goes there, and not a second one before the first came to something.
    let canary = picker.pick(&ask, at(1_300), &mut rng).expect("somebody");
    assert_eq!(
        (canary.endpoint.id, canary.kind),
        (sick.id, PickKind::Canary)
    );
    for _ in 0..100 {
        let pick = picker
            .pick(&ask, at(1_301), &mut rng)
            .expect("others are in");
        assert_ne!(pick.endpoint.id, sick.id);
    }
    // It fails: out for twice as long.
    let again = report(&upstream, 0, GATEWAY, 9, at(1_310)).expect("the canary failed");
    assert_eq!((again.times, again.cause), (2, Cause::Canary));
    assert!(again.duration >= 1_600 * MS && again.duration <= 2_400 * MS);

    let canary = picker.pick(&ask, at(3_800), &mut rng).expect("somebody");
    assert_eq!(canary.endpoint.id, sick.id);
    report(&upstream, 0, Outcome::Success, 9, at(3_810));
    assert!(!sick.is_ejected());
    assert_eq!(sick.ramp(at(3_810)), 0.1);
    assert!((sick.ramp(at(8_810)) - 0.55).abs() < 1e-9);
    assert_eq!(sick.ramp(at(13_810)), 1.0);
}

#[test]
fn a_burst_on_one_connection_is_one_failure() {
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    for n in 0..50 {
        assert_eq!(report(&upstream, 0, BROKEN, 1, at(n)), None);
    }
    assert!(
        report(&upstream, 0, BROKEN, 1, at(100)).is_some(),
        "100 ms apart"
    );
    assert!(
        fail(&upstream, 1, BROKEN, at(0)).is_some(),
        "two connections"
    );
}

#[test]
fn a_success_in_between_starts_the_count_anew() {
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    for n in 0..40 {
        // 20 % failures are no more than the success share allows.
        let outcome = if n % 5 == 4 {
            GATEWAY
        } else {
            Outcome::Success
        };
        assert_eq!(report(&upstream, 0, outcome, n, at(n * 200)), None, "{n}");
    }
}

#[test]
fn answered_failures_and_silence_are_counted_apart() {
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    for n in 0..4 {
        assert_eq!(report(&upstream, 0, GATEWAY, n + 1, at(n)), None);
        assert_eq!(report(&upstream, 0, BROKEN, n + 1, at(n)), None);
    }
    let ejected = report(&upstream, 0, BROKEN, 9, at(9)).expect("the fifth silence");
    assert_eq!(ejected.cause, Cause::Silence);
}

#[test]
fn a_success_share_below_four_fifths_sends_out_after_ten_samples() {
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    let mut ejected = None;
    let mut samples = 0;
    while ejected.is_none() {
        let outcome = if samples % 3 == 2 {
            GATEWAY
        } else {
            Outcome::Success
        };
        ejected = report(&upstream, 0, outcome, samples, at(samples * 10));
        samples += 1;
    }
    assert_eq!(ejected.map(|e| e.cause), Some(Cause::SuccessShare));
    assert!((10..=12).contains(&samples), "{samples}");
}

#[test]
fn at_most_half_are_sent_out_but_refused_ones_do_not_count() {
    let upstream = Stage::new(&["a1"; 6]).build(at(0));
    for i in 0..3 {
        assert!(fail(&upstream, i, GATEWAY, at(0)).is_some());
    }
    assert_eq!(fail(&upstream, 3, GATEWAY, at(0)), None);
    assert!(fail(&upstream, 3, REFUSED, at(10)).is_some());
    assert!(fail(&upstream, 4, REFUSED, at(10)).is_some());
    assert_eq!(fail(&upstream, 5, REFUSED, at(10)), None, "never the last");
}

#[test]
fn a_suspected_host_that_cannot_be_connected_to_goes_at_once_and_takes_no_place() {
    const TIMED_OUT: Outcome = Outcome::Unreachable(Unreachable::ConnectTimedOut);
    let mut stage = Stage::new(&["a1"; 6]);
    stage.build(at(0));
    for i in 0..3 {
        stage.state(i, NodeState::Suspect, at(1));
    }
    let upstream = stage.build(at(1));
    // A well host may fail to be reached now and then; an answer, even a bad one, confirms no suspicion.
    assert_eq!(report(&upstream, 3, TIMED_OUT, 0, at(2)), None);
    assert_eq!(report(&upstream, 0, GATEWAY, 1, at(2)), None);
    for (i, outcome) in [REFUSED, TIMED_OUT, REFUSED].into_iter().enumerate() {
        let ejected = report(&upstream, i, outcome, 0, at(3)).expect("confirmed");
        assert_eq!(ejected.cause, Cause::Confirmed);
    }
    let counted = |m: &Member| m.endpoint.trial.counts_as_ejected();
    assert_eq!(upstream.members().filter(|m| counted(m)).count(), 0);
    assert!(fail(&upstream, 3, GATEWAY, at(10)).is_some());
    assert!(fail(&upstream, 4, GATEWAY, at(10)).is_some());
    assert_eq!(fail(&upstream, 5, REFUSED, at(20)), None, "never the last");
}

#[test]
fn a_sick_one_whose_canary_is_refused_frees_its_place() {
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    let first = fail(&upstream, 0, GATEWAY, at(0)).expect("sent out");
    assert!(fail(&upstream, 1, GATEWAY, at(0)).is_some());
    assert_eq!(fail(&upstream, 2, GATEWAY, at(0)), None, "half are out");
    let over = at(4) + first.duration;
    assert!(endpoint(&upstream, 0).trial.claim_canary(over));
    assert!(report(&upstream, 0, REFUSED, 0, over).is_some());
    assert!(fail(&upstream, 2, GATEWAY, over + MS).is_some());
}

#[test]
fn one_that_refuses_connections_is_asked_again_soon_however_often_it_was_gone() {
    let upstream = Stage::new(&["a1"; 3]).build(at(0));
    let gone = endpoint(&upstream, 0);
    let mut now = at(0);
    for _ in 0..20 {
        let first = fail(&upstream, 0, REFUSED, now).expect("it is sent out");
        assert_eq!((first.times, first.gone), (1, true));
        assert!(first.duration <= 1_200 * MS, "{first:?}");
        let mut last = first;
        for _ in 0..4 {
            now = now + last.duration + 10 * MS;
            assert!(gone.trial.claim_canary(now));
            last = report(&upstream, 0, REFUSED, 0, now).expect("the canary failed");
            assert!(last.duration <= GONE_MAX.mul_f64(1.0 + JITTER), "{last:?}");
        }
        now = now + last.duration + 10 * MS;
        assert!(gone.trial.claim_canary(now));
        report(&upstream, 0, Outcome::Success, 1, now);
        assert!(!gone.is_ejected());
        now = now + Duration::from_secs(5);
    }
    // Nor is it less patiently dealt with when it falls ill.
    let ill = fail(&upstream, 0, GATEWAY, now).expect("it is sent out");
    assert!(ill.times == 1 && ill.duration <= 1_200 * MS, "{ill:?}");
}

#[test]
fn one_that_broke_its_connections_because_it_ended_is_taken_for_gone() {
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    let ended = endpoint(&upstream, 0);
    let mut now = at(0);
    for _ in 0..6 {
        let ejected = fail(&upstream, 0, BROKEN, now).expect("sent out");
        assert_eq!((ejected.times, ejected.gone), (1, false));
        assert!(ended.trial.counts_as_ejected());
        now = now + 100 * MS;
        upstream.refused(&ended, now, &mut dice(3));
        assert!(!ended.trial.counts_as_ejected(), "it frees its place");
        let left = ended.ejected_for(now).expect("it is still out");
        assert!(left <= 1_200 * MS, "{left:?}");
        now = now + left;
        assert!(ended.trial.claim_canary(now));
        report(&upstream, 0, Outcome::Success, 1, now);
        now = now + Duration::from_secs(5);
    }
    // Refusing one connection sends nobody out.
    upstream.refused(&ended, now, &mut dice(3));
    assert!(!ended.is_ejected());
}

#[test]
fn whoever_found_everybody_else_gone_finds_out_about_those_sent_out() {
    let upstream = Stage::new(&["a1"; 3]).build(at(0));
    let [out, also_out, last] = [0, 1, 2].map(|i| endpoint(&upstream, i));
    let until = at(4)
        + fail(&upstream, 0, GATEWAY, at(0))
            .expect("sent out")
            .duration;
    assert!(fail(&upstream, 1, REFUSED, at(0)).is_some());
    assert_eq!(fail(&upstream, 2, REFUSED, at(10)), None, "never the last");

    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut pick = |tried: &[u64], now| {
        let ask = Ask {
            tried,
            idempotent: true,
            ..Ask::default()
        };
        picker.pick(&ask, now, &mut rng)
    };
    let now = at(20);
    assert_eq!(pick(&[], now).map(|p| p.endpoint.id), Some(last.id));
    let tried = [last.id];
    assert!(!upstream.awaits_verdict(&tried, now));
    let first = pick(&tried, now).expect("one finds out");
    assert_eq!((first.endpoint.id, first.kind), (out.id, PickKind::Panic));
    let second = pick(&tried, now).expect("another finds out about the other");
    assert_eq!(second.endpoint.id, also_out.id);
    assert!(pick(&tried, now).is_none(), "one request each");
    assert!(upstream.awaits_verdict(&tried, now));

    // That it is ill is known: a canary before its time makes it no worse.
    assert_eq!(report(&upstream, 0, GATEWAY, 1, now), None);
    assert_eq!(out.ejected_for(now), Some(until.since(now)));
    assert!(!upstream.awaits_verdict(&[last.id, also_out.id], now));
    report(&upstream, 1, Outcome::Success, 1, now);
    for _ in 0..50 {
        let pick = pick(&tried, now).expect("one is back");
        assert_eq!(
            (pick.endpoint.id, pick.kind),
            (also_out.id, PickKind::Usual)
        );
    }
}

#[test]
fn whoever_only_found_the_others_at_their_limit_asks_nobody_sent_out() {
    let mut stage = Stage::with(&["a1"; 3], |policy| {
        policy.limits.endpoint_requests = Some(1);
    });
    let upstream = stage.build(at(0));
    assert!(fail(&upstream, 0, REFUSED, at(0)).is_some());
    for i in [1, 2] {
        endpoint(&upstream, i).begin(at(5));
    }
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    assert!(picker.pick(&Ask::default(), at(10), &mut rng).is_none());
    assert!(upstream.is_full());
}

#[test]
fn of_two_one_may_go_and_of_one_none() {
    let upstream = Stage::new(&["a1"; 2]).build(at(0));
    assert!(fail(&upstream, 0, GATEWAY, at(0)).is_some());
    assert_eq!(fail(&upstream, 1, GATEWAY, at(0)), None);
    let alone = Stage::new(&["a1"]).build(at(0));
    assert_eq!(fail(&alone, 0, REFUSED, at(0)), None);
}

#[test]
fn a_count_of_zero_turns_ejection_off() {
    let mut stage = Stage::with(&["a1"; 4], |policy| policy.ejection.consecutive = 0);
    let upstream = stage.build(at(0));
    for n in 0..100 {
        assert_eq!(report(&upstream, 0, REFUSED, n, at(n * 10)), None);
    }
}

#[test]
fn times_out_grow_to_a_minute_and_shrink_with_good_conduct() {
    let upstream = Stage::new(&["a1"; 2]).build(at(0));
    let sick = endpoint(&upstream, 0);
    let mut now = at(0);
    let mut last = fail(&upstream, 0, GATEWAY, now).expect("sent out");
    for _ in 0..10 {
        now = now + last.duration + 10 * MS;
        assert!(sick.trial.claim_canary(now));
        last = report(&upstream, 0, GATEWAY, 1, now).expect("the canary failed");
        assert!(last.duration <= Duration::from_secs(72));
    }
    assert!(last.duration >= Duration::from_secs(48));
    now = now + last.duration;
    assert!(sick.trial.claim_canary(now));
    report(&upstream, 0, Outcome::Success, 1, now);
    now = now + Duration::from_secs(60 * 9);
    let milder = fail(&upstream, 0, GATEWAY, now).expect("sent out");
    assert!(
        milder.duration <= Duration::from_millis(4_800),
        "{milder:?}"
    );
}

#[test]
fn without_repeatable_requests_any_request_becomes_the_canary_a_little_later() {
    let upstream = Stage::new(&["a1"; 2]).build(at(0));
    let out = fail(&upstream, 0, GATEWAY, at(0)).expect("sent out");
    let sick = endpoint(&upstream, 0);
    let over = at(4) + out.duration;
    assert!(sick.trial.awaits_canary(true, over));
    assert!(!sick.trial.awaits_canary(false, over));
    assert!(sick.trial.awaits_canary(false, over + ANY_CANARY_AFTER));
}

#[test]
fn a_canary_whose_client_went_away_makes_room_for_another() {
    let upstream = Stage::new(&["a1"; 2]).build(at(0));
    let out = fail(&upstream, 0, GATEWAY, at(0)).expect("sent out");
    let sick = endpoint(&upstream, 0);
    let over = at(4) + out.duration;
    assert!(sick.trial.claim_canary(over));
    assert!(!sick.trial.claim_canary(over + MS));
    let canary = sick.trial.canary_under_way();
    upstream.cancelled(&sick, canary, MS, over + 2 * MS);
    assert!(sick.trial.claim_canary(over + 3 * MS));
    // Even one that was never heard of again.
    assert!(sick.trial.claim_canary(over + CANARY_LOST * 2));
}

/// Tells the first member what came of an attempt that was no canary.
fn report_another(upstream: &Upstream, outcome: Outcome, now: Moment) -> Option<Ejected> {
    let report = Report {
        outcome,
        latency: None,
        connection: 1,
        canary: None,
    };
    upstream.report(&endpoint(upstream, 0), &report, now, &mut dice(7))
}

#[test]
fn what_comes_of_requests_that_were_under_way_before_is_no_verdict() {
    const TIMED_OUT: Outcome = Outcome::Unreachable(Unreachable::AnswerTimedOut);
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    let hung = endpoint(&upstream, 0);
    let out = fail(&upstream, 0, TIMED_OUT, at(0)).expect("sent out");
    let over = at(4) + out.duration;
    assert!(hung.trial.claim_canary(over));
    for n in 1..5 {
        let now = over + MS * n;
        assert_eq!(report_another(&upstream, TIMED_OUT, now), None);
        report_another(&upstream, Outcome::Success, now);
        upstream.cancelled(&hung, None, MS, now);
        assert!(hung.is_ejected(), "its canary has not answered yet");
        assert!(!hung.trial.claim_canary(now), "one at a time");
    }
    let again = report(&upstream, 0, TIMED_OUT, 1, over + 10 * MS).expect("the canary failed");
    assert_eq!((again.times, again.cause), (2, Cause::Canary));
    let over = over + 10 * MS + again.duration;
    assert!(hung.trial.claim_canary(over));
    report_another(&upstream, TIMED_OUT, over + MS);
    assert_eq!(
        report(&upstream, 0, Outcome::Success, 1, over + 2 * MS),
        None
    );
    assert!(!hung.is_ejected());
}

/// Claims the first member's canary.
fn claimed(upstream: &Upstream, now: Moment) -> Option<Canary> {
    let sick = endpoint(upstream, 0);
    assert!(sick.trial.claim_canary(now));
    sick.trial.canary_under_way()
}

/// Tells the first member what came of `canary`.
fn report_of(
    upstream: &Upstream,
    canary: Option<Canary>,
    outcome: Outcome,
    now: Moment,
) -> Option<Ejected> {
    let report = Report {
        outcome,
        latency: None,
        connection: 1,
        canary,
    };
    upstream.report(&endpoint(upstream, 0), &report, now, &mut dice(7))
}

#[test]
fn an_endpoint_comes_back_even_if_every_answer_takes_longer_than_a_canary_is_waited_for() {
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    let slow = endpoint(&upstream, 0);
    let out = fail(&upstream, 0, GATEWAY, at(0)).expect("sent out");
    let over = at(4) + out.duration;
    let takes = CANARY_LOST * 4;
    // One more each time that the last was given up for lost; only then is the first heard of.
    let step = CANARY_LOST + MS;
    let sent: Vec<Option<Canary>> = (0..4)
        .map(|n| claimed(&upstream, over + step * n))
        .collect();
    assert!(slow.is_ejected());
    report_of(&upstream, sent[0], Outcome::Success, over + takes);
    assert!(!slow.is_ejected());
    assert_eq!(slow.trial.canary_under_way(), None);
    // What comes of the others is an outcome like any other.
    let later = over + step + takes;
    assert_eq!(report_of(&upstream, sent[1], GATEWAY, later), None);
    assert!(!slow.is_ejected());
}

#[test]
fn the_failure_of_a_slow_canary_counts_and_makes_those_beside_it_void() {
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    let sick = endpoint(&upstream, 0);
    let out = fail(&upstream, 0, GATEWAY, at(0)).expect("sent out");
    let over = at(4) + out.duration;
    let slow = claimed(&upstream, over);
    let later = over + CANARY_LOST * 2;
    let beside = claimed(&upstream, later);
    let again = report_of(&upstream, slow, GATEWAY, later + MS).expect("the canary failed");
    assert_eq!((again.times, again.cause), (2, Cause::Canary));
    let until = later + MS + again.duration;
    assert_eq!(report_of(&upstream, beside, GATEWAY, until), None);
    report_of(&upstream, beside, Outcome::Success, until);
    assert!(sick.is_ejected(), "it was sent before that");
    let newest = claimed(&upstream, until);
    report_of(&upstream, beside, Outcome::Success, until + MS);
    assert!(sick.is_ejected());
    report_of(&upstream, newest, Outcome::Success, until + MS);
    assert!(!sick.is_ejected());
}

#[test]
fn why_one_is_out_is_known_while_it_is_out() {
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    let sick = endpoint(&upstream, 0);
    assert_eq!(sick.ejected_because(), None);
    let out = fail(&upstream, 0, GATEWAY, at(0)).expect("sent out");
    assert_eq!(sick.ejected_because(), Some(Cause::Answers));
    let over = at(4) + out.duration;
    assert!(sick.trial.claim_canary(over));
    report(&upstream, 0, BROKEN, 1, over);
    assert_eq!(sick.ejected_because(), Some(Cause::Canary));
    assert!(fail(&upstream, 1, BROKEN, over).is_some());
    assert_eq!(
        endpoint(&upstream, 1).ejected_because(),
        Some(Cause::Silence)
    );
    let later = over + Duration::from_secs(10);
    assert!(sick.trial.claim_canary(later));
    report(&upstream, 0, Outcome::Success, 1, later);
    assert_eq!(sick.ejected_because(), None);
}

#[test]
fn a_full_endpoint_is_left_alone_for_as_long_as_it_asked() {
    let upstream = Stage::new(&["a1"; 2]).build(at(0));
    let full = Outcome::Overloaded {
        retry_after: Duration::from_secs(3),
    };
    assert_eq!(report(&upstream, 0, full, 1, at(0)), None);
    let alarms = upstream.shared.alarms();
    report(&upstream, 0, full, 1, at(0));
    assert_eq!(upstream.shared.alarms(), alarms, "that is no news");
    let parked = endpoint(&upstream, 0);
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    for i in 0..200 {
        let pick = picker
            .pick(&Ask::default(), at(i * 10), &mut rng)
            .expect("one is free");
        assert_ne!(pick.endpoint.id, parked.id);
    }
    // If all are full, they are asked nevertheless.
    report(&upstream, 1, full, 1, at(2_000));
    assert!(picker.pick(&Ask::default(), at(2_000), &mut rng).is_some());
    let back = (0..100).filter_map(|_| picker.pick(&Ask::default(), at(3_010), &mut rng));
    assert!(back.into_iter().all(|pick| pick.endpoint.id == parked.id));
}

#[test]
fn a_sidecar_that_has_run_for_years_judges_as_one_that_has_just_begun() {
    for days in [0_u64, 194, 195, 3_650] {
        let start = at(days * 86_400_000 + 15_000_000);
        let upstream = Stage::new(&["a1"; 4]).build(start);
        // Two of three go well: never five failures in a row, and a share below four fifths.
        let told = |i: u64| {
            let outcome = if i.is_multiple_of(3) {
                GATEWAY
            } else {
                Outcome::Success
            };
            report(&upstream, 0, outcome, i, start + MS * 200 * i as u32)
        };
        let ejected = (0..30).find_map(told).expect("it is sent out");
        assert_eq!(ejected.cause, Cause::SuccessShare, "after {days} days");
        let sick = endpoint(&upstream, 0);
        let later = start + Duration::from_secs(3_600);
        assert_eq!(sick.trial.window.tally(later), (0, 0), "after {days} days");
    }
}

proptest! {
    #[test]
    fn the_last_endpoint_is_never_sent_out(
        n in 1_usize..6,
        events in proptest::collection::vec((0_usize..6, 0_u8..5, 0_u64..300), 0..300),
    ) {
        let upstream = Stage::new(&vec!["a1"; n]).build(at(0));
        let mut now = at(0);
        for (i, kind, step) in events {
            now = now + MS * step as u32;
            let outcome = match kind {
                0 => Outcome::Success,
                1 => REFUSED,
                2 => BROKEN,
                3 => Outcome::Unreachable(Unreachable::ConnectTimedOut),
                _ => GATEWAY,
            };
            let sick = endpoint(&upstream, i % n);
            if sick.trial.awaits_canary(true, now) {
                sick.trial.claim_canary(now);
            }
            report(&upstream, i % n, outcome, step, now);
            let out = upstream.members().filter(|m| m.endpoint.is_ejected()).count();
            let counted = |m: &&Member| m.endpoint.trial.counts_as_ejected();
            prop_assert!(out < n);
            prop_assert!(upstream.members().filter(counted).count() <= (n / 2).max(1));
        }
    }
}
