//! Who has not answered for a while: an endpoint, a zone, a machine that stood still.
//!
//! Not here: failures that were told (`zones.rs`, `../canary/`).

use super::*;

/// A request to the `i`th member is begun and answered.
fn answer(upstream: &Upstream, i: usize, now: Moment) {
    let member = upstream.members().nth(i).expect("the member is there");
    member.endpoint.begin(now);
    member.endpoint.load().head_came(now);
    report(upstream, i, Outcome::Success, 1, now);
    member.endpoint.load().end();
}

#[test]
fn where_requests_are_thick_an_endpoint_that_went_quiet_comes_last() {
    let firsts = |busy: usize| -> BTreeSet<u64> {
        let picks = (0..40).map(|seed| {
            let upstream = Stage::new(&["a1"; 4]).build(at(0));
            for i in 0..4 {
                let quiet = i == 3;
                let answered = at(if quiet { 950 } else { 1_000 });
                answer(&upstream, i, answered);
            }
            for member in upstream.members().take(busy) {
                member.endpoint.begin(at(1_000));
            }
            let mut rng = dice(seed);
            let mut picker = Picker::new(&upstream, &mut rng);
            let pick = picker.pick(&REPEATABLE, at(1_005), &mut rng);
            let first = pick.expect("all are in").endpoint.id;
            let place = upstream.members().position(|m| m.endpoint.id == first);
            place.expect("it is one of them") as u64
        });
        picks.collect()
    };
    assert_eq!(firsts(2), BTreeSet::from([2]));
    // Nothing in flight anywhere: that nobody answers says nothing.
    assert_eq!(firsts(0), BTreeSet::from([0, 1, 2, 3]));
    // One in flight at each of the others, and it is worth a try.
    let upstream = Stage::new(&["a1"; 4]).build(at(0));
    for i in 0..4 {
        answer(&upstream, i, at(900 + i as u64));
    }
    for member in upstream.members().take(3) {
        member.endpoint.begin(at(1_000));
    }
    let quiet = upstream
        .members()
        .nth(3)
        .expect("there are four")
        .endpoint
        .id;
    let mut rng = dice(1);
    let pick = Picker::new(&upstream, &mut rng).pick(&REPEATABLE, at(1_005), &mut rng);
    assert_eq!(pick.expect("all are in").endpoint.id, quiet);
}

#[test]
fn an_endpoint_that_went_quiet_is_asked_again_after_a_second() {
    let is_asked = |now: u64| {
        (0..40).any(|seed| {
            let upstream = Stage::new(&["a1"; 4]).build(at(0));
            for i in 0..4 {
                let answered = if i == 3 { 950 } else { now - 1 };
                answer(&upstream, i, at(answered));
            }
            for member in upstream.members().take(2) {
                member.endpoint.begin(at(now));
            }
            let quiet = upstream.members().nth(3).expect("there are four");
            let mut rng = dice(seed);
            let pick = Picker::new(&upstream, &mut rng).pick(&REPEATABLE, at(now), &mut rng);
            pick.expect("all are in").endpoint.id == quiet.endpoint.id
        })
    };
    assert!(!is_asked(1_500));
    assert!(is_asked(2_000));
}

#[test]
fn a_zone_that_falls_silent_is_left_within_a_second() {
    let upstream = Stage::new(&["a1", "a1", "b1", "b1"]).build(at(0));
    for i in 0..4 {
        report(&upstream, i, Outcome::Success, 1, at(0));
    }
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut last_local = 0;
    for i in 0..3_000 {
        let pick = picker
            .pick(&REPEATABLE, at(i), &mut rng)
            .expect("all are in");
        pick.endpoint.begin(at(i));
        if pick.tier == 0 {
            last_local = i;
        } else {
            pick.endpoint.head_came(at(i));
            pick.endpoint.end(at(i));
        }
    }
    assert!((800..900).contains(&last_local), "{last_local}");
}

#[test]
fn a_machine_that_stood_still_for_seconds_does_not_blame_its_zone() {
    let upstream = Stage::new(&["a1", "a1", "b1", "b1"]).build(at(0));
    for i in 0..4 {
        report(&upstream, i, Outcome::Success, 1, at(0));
    }
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let picked = |picker: &mut Picker, rng: &mut StdRng, now: Moment| {
        let pick = picker.pick(&REPEATABLE, now, rng).expect("all are in");
        pick.endpoint.begin(now);
        pick
    };
    let mut waiting: Vec<Pick> = (0..20)
        .map(|i| picked(&mut picker, &mut rng, at(i * 10)))
        .collect();
    // Of the answers that came meanwhile none is read before the next few picks.
    for i in 0..5 {
        waiting.push(picked(&mut picker, &mut rng, at(3_000 + i)));
    }
    for pick in &waiting {
        pick.endpoint.head_came(at(3_005));
        pick.endpoint.end(at(3_005));
    }
    for i in 0..500 {
        waiting.push(picked(&mut picker, &mut rng, at(3_006 + i)));
    }
    assert!(waiting.iter().all(|pick| pick.tier == 0));
}

#[test]
fn clients_that_lose_patience_do_not_hide_a_silence() {
    let upstream = Stage::new(&["a1", "b1"]).build(at(0));
    for i in 0..2 {
        report(&upstream, i, Outcome::Success, 1, at(0));
    }
    let mut rng = dice(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    let mut local = Vec::new();
    for i in 0..60 {
        // One request at a time, given up after 200 ms.
        let (began, over) = (at(i * 250), at(i * 250 + 200));
        let pick = picker
            .pick(&REPEATABLE, began, &mut rng)
            .expect("both are in");
        pick.endpoint.begin(began);
        picker.pick(&REPEATABLE, over, &mut rng);
        if pick.tier == 0 {
            local.push(i);
            pick.endpoint.gave_up(over);
            upstream.cancelled(&pick.endpoint, None, 200 * MS, over);
        } else {
            pick.endpoint.head_came(began);
        }
        pick.endpoint.end(over);
    }
    // Given up, they raise the latency to 200 ms, and 20 times that is a silence; then one in a while finds out.
    let late = local.iter().filter(|i| **i >= 20).count();
    assert!(local.len() <= 30 && late <= 8, "{local:?}");
}
