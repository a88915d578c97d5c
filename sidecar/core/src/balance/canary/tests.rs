//! Who is asked to find something out, how often, and who is spared.

use super::*;
use crate::{
    endpoint::Report,
    mesh::NodeState,
    outcome::{Outcome, Unreachable},
    staging::{BALANCES, MS, REPEATABLE, Stage, at, dice, report},
};

const FAULT: Outcome = Outcome::ServerFault { gateway: false };

fn endpoint(upstream: &Upstream, i: usize) -> Arc<Endpoint> {
    let member = upstream.members().nth(i);
    Arc::clone(&member.expect("the member is there").endpoint)
}

/// A request to the `i`th member that is begun and over at once.
fn touch(upstream: &Upstream, i: usize, now: Moment) {
    let endpoint = endpoint(upstream, i);
    endpoint.begin(now);
    endpoint.head_came(now);
    endpoint.end(now);
}

/// Whether any of a second's requests from `now` on finds something out about the first member, which is not waited for.
fn is_tried(picker: &mut Picker, upstream: &Upstream, now: Moment) -> bool {
    let mut rng = dice(1);
    let first = endpoint(upstream, 0).id;
    (0..1_000).any(|i| {
        let pick = picker.pick(&REPEATABLE, now + MS * i, &mut rng);
        pick.is_some_and(|pick| pick.kind == PickKind::Canary && pick.endpoint.id == first)
    })
}

#[test]
fn one_that_asked_to_be_left_alone_is_not_tried_before_its_time() {
    let upstream = Stage::new(&["a1"; 3]).build(at(0));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    report(&upstream, 0, FAULT, 1, at(0));
    let full = Outcome::Overloaded {
        retry_after: Duration::from_secs(300),
    };
    let mut refused = 0;
    // Sixty a second for five minutes and a bit.
    for n in 0..18_600_u64 {
        let now = at(n * 1_000 / 60);
        let pick = picker.pick(&REPEATABLE, now, &mut rng);
        let pick = pick.expect("two are well");
        let is_full = pick.endpoint.id == endpoint(&upstream, 0).id && n < 18_000;
        refused += u32::from(is_full);
        pick.endpoint.begin(now);
        pick.endpoint.head_came(now);
        pick.endpoint.end(now);
        let told = Report {
            outcome: if is_full { full } else { Outcome::Success },
            latency: (!is_full).then_some(MS),
            connection: 1,
            canary: pick.canary,
        };
        upstream.report(&pick.endpoint, &told, now, &mut rng);
    }
    assert_eq!(refused, 1, "the one by which it is known");
    assert!(endpoint(&upstream, 0).load().begun() > at(300_000));
}

#[test]
fn one_at_its_limit_is_not_tried_however_long_its_requests_last() {
    let mut stage = Stage::with(&["a1"; 3], |policy| {
        policy.limits.endpoint_requests = Some(1);
    });
    let upstream = stage.build(at(0));
    (0..3).for_each(|i| touch(&upstream, i, at(0)));
    report(&upstream, 0, FAULT, 1, at(0));
    let streaming = endpoint(&upstream, 0);
    streaming.begin(at(1));
    streaming.head_came(at(1));
    let mut picker = Picker::new(&upstream, &mut dice(1));
    assert!(!is_tried(&mut picker, &upstream, at(20_000)));
    streaming.end(at(21_000));
    assert!(is_tried(&mut picker, &upstream, at(21_000)));
}

#[test]
fn one_that_was_sent_out_is_not_tried_while_it_is_full_or_at_its_limit() {
    let mut stage = Stage::with(&["a1"; 3], |policy| {
        policy.limits.endpoint_requests = Some(1);
    });
    let upstream = stage.build(at(0));
    let full = Outcome::Overloaded {
        retry_after: Duration::from_secs(30),
    };
    report(&upstream, 0, full, 1, at(0));
    for n in 0..5 {
        report(&upstream, 0, FAULT, 1 + n % 2, at(n));
    }
    let out = endpoint(&upstream, 0);
    assert!(out.is_ejected());
    let mut picker = Picker::new(&upstream, &mut dice(1));
    assert!(!is_tried(&mut picker, &upstream, at(20_000)));
    out.begin(at(30_000));
    out.head_came(at(30_000));
    assert!(!is_tried(&mut picker, &upstream, at(31_000)));
    out.end(at(32_000));
    assert!(is_tried(&mut picker, &upstream, at(32_000)));
}

#[test]
fn all_that_need_mending_together_get_one_request_in_a_hundred() {
    let upstream = Stage::new(&["a1"; 50]).build(at(0));
    (1..50).for_each(|i| {
        report(&upstream, i, FAULT, 1, at(0));
    });
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    // All 49 are due every five seconds, which would be one request in ten.
    let mut canaries = 0;
    for n in 0..5_000 {
        let now = at(10_000 + n * 10);
        // Whoever is called by the policy stays due all the same.
        let pick = picker.pick(&REPEATABLE, now, &mut rng);
        let pick = pick.expect("all are in");
        if pick.kind == PickKind::Canary {
            canaries += 1;
            pick.endpoint.begin(now);
            pick.endpoint.head_came(now);
            pick.endpoint.end(now);
        }
    }
    assert!((49..=51).contains(&canaries), "{canaries}");
}

/// Ten endpoints that have answered, the first six of which SWIM takes away at once, so that it is not believed.
fn panic(balance: Balance) -> Stage {
    let mut stage = Stage::with(&["a1"; 10], |policy| policy.balance = balance);
    let upstream = stage.build(at(0));
    (0..10).for_each(|i| {
        report(&upstream, i, Outcome::Success, 1, at(0));
    });
    // One is in the middle of a stream.
    endpoint(&upstream, 0).begin(at(1));
    endpoint(&upstream, 0).head_came(at(1));
    (0..6).for_each(|i| stage.state(i, NodeState::Down, at(1_000)));
    stage
}

#[test]
fn one_kept_against_swims_word_gets_one_request_until_it_answers() {
    for balance in BALANCES {
        let mut stage = panic(balance);
        let upstream = stage.build(at(1_000));
        assert!(upstream.panic);
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        let begin = |picker: &mut Picker, rng: &mut _, requests, now| {
            for _ in 0..requests {
                let pick = picker.pick(&REPEATABLE, now, rng).expect("four are sure");
                pick.endpoint.begin(now);
            }
        };
        let in_flight = |i| endpoint(&upstream, i).in_flight();
        begin(&mut picker, &mut rng, 200, at(1_000));
        let doubted = [0, 1, 2, 3, 4, 5].map(in_flight);
        assert_eq!(doubted, [2, 1, 1, 1, 1, 1], "{balance:?}");
        // An answer, be it one that was asked for before, is what was missing.
        report(&upstream, 1, Outcome::Success, 1, at(1_001));
        endpoint(&upstream, 2).answers();
        begin(&mut picker, &mut rng, 200, at(1_010));
        assert!(in_flight(1) > 5 && in_flight(2) > 5, "{balance:?}");
        assert_eq!([3, 4, 5].map(in_flight), [1; 3], "{balance:?}");
        // Nor is there any doubt once SWIM has found it again.
        stage.instances[3].epoch = 1;
        stage.state(3, NodeState::Alive, at(1_020));
        let upstream = stage.build(at(1_020));
        picker.follow(&upstream, at(1_020));
        begin(&mut picker, &mut rng, 200, at(1_020));
        assert!(in_flight(3) > 5, "{balance:?}");
    }
}

#[test]
fn if_swim_took_all_away_nobody_is_refused_for_want_of_an_answer() {
    let mut stage = Stage::new(&["a1", "a1"]);
    stage.build(at(0));
    (0..2).for_each(|i| stage.state(i, NodeState::Down, at(1_000)));
    let upstream = stage.build(at(1_000));
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    for _ in 0..10 {
        let pick = picker.pick(&REPEATABLE, at(1_000), &mut rng);
        let pick = pick.expect("there is nobody else");
        assert_eq!(pick.kind, PickKind::Panic);
        pick.endpoint.begin(at(1_000));
    }
    let in_flight = [0, 1].map(|i| endpoint(&upstream, i).in_flight());
    assert_eq!(in_flight, [5, 5]);
}

#[test]
fn one_sent_out_is_no_less_out_for_being_kept_against_swims_word() {
    let mut stage = panic(Balance::LeastResponseTime);
    let upstream = stage.build(at(1_000));
    for n in 0..5 {
        let refused = Outcome::Unreachable(Unreachable::Refused);
        report(&upstream, 1, refused, 0, at(1_000 + n));
    }
    let out = endpoint(&upstream, 1);
    assert!(out.is_ejected());
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    for n in 0..100 {
        let pick = picker.pick(&REPEATABLE, at(1_010 + n), &mut rng);
        assert_ne!(pick.expect("others are in").endpoint.id, out.id);
    }
}
