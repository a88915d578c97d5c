//! Losses at once, gains slowly, noise not at all.

use super::*;

const TICK: Duration = Duration::from_millis(100);

fn levels() -> Levels {
    Levels::new(3, |from, to| if from == to { 0 } else { 2 })
}

fn figures(capacity: [f64; 3], demand: [f64; 3]) -> Vec<Figures> {
    let both = capacity.into_iter().zip(demand);
    both.map(|(capacity, demand)| Figures { capacity, demand })
        .collect()
}

fn course() -> Course {
    Course::new(["a", "b", "c"].into_iter(), 0, levels(), true)
}

const EVEN: [f64; 3] = [50.0; 3];

#[test]
fn the_first_figures_are_taken_as_they_are() {
    let mut course = course();
    let shares = course.follow(&figures([0.0, 100.0, 100.0], EVEN), Duration::ZERO);
    assert_eq!(shares, [0.0, 0.5, 0.5]);
}

#[test]
fn a_lost_zone_is_left_at_once_and_has_all_again_in_twenty_to_thirty_seconds() {
    let mut course = course();
    let full = figures([100.0; 3], EVEN);
    let lost = figures([0.0, 100.0, 100.0], EVEN);
    assert_eq!(course.follow(&full, Duration::ZERO), [1.0, 0.0, 0.0]);
    assert_eq!(course.follow(&lost, Duration::ZERO), [0.0, 0.5, 0.5]);
    assert_eq!(course.follow(&lost, TICK * 600), [0.0, 0.5, 0.5]);
    let (mut ticks, mut before) = (0, 0.0);
    while course.shares()[0] < 1.0 - 1e-9 {
        let shares = course.follow(&full, TICK);
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(shares[0] - before <= GAIN_PER_SECOND * 0.1 + 1e-9);
        assert!(shares[0] > before, "it stands still at {before}");
        before = shares[0];
        ticks += 1;
        assert!(ticks < 400, "{before}");
    }
    assert!((200..=300).contains(&ticks), "{ticks}");
}

#[test]
fn another_zone_that_returns_is_not_flooded_by_our_spill() {
    // Our zone is at 1.8 times what it can take; b was away.
    let demand = [126.0, 20.0, 20.0];
    let mut course = course();
    course.follow(&figures([100.0, 0.0, 100.0], demand), Duration::ZERO);
    let back = figures([100.0; 3], demand);
    let mut before = 0.0;
    for _ in 0..300 {
        let share = course.follow(&back, TICK)[1];
        // 5 % of b's capacity in a second, of which T is used, in our demand's terms.
        assert!(
            (share - before) * 126.0 <= 100.0 * GAIN_PER_SECOND * 0.1 + 0.2,
            "{share}"
        );
        before = share;
    }
    assert!(before > 0.2, "{before}");
}

#[test]
fn changes_within_the_dead_band_are_not_followed_and_larger_ones_are() {
    let mut course = course();
    let at = |demand: f64| figures([100.0; 3], [demand, 20.0, 20.0]);
    let kept = course.follow(&at(100.0), Duration::ZERO).to_vec();
    assert_eq!(course.follow(&at(103.0), TICK), kept);
    assert_eq!(course.follow(&at(97.0), TICK), kept);
    assert!(course.follow(&at(110.0), TICK)[0] < kept[0] - 0.03);
    // All of it is always followed, or the last few per cent would stay away for ever.
    let mut course = self::course();
    course.follow(&at(71.0), Duration::ZERO);
    assert!(course.shares()[0] < 1.0);
    for _ in 0..20 {
        course.follow(&at(70.0), TICK);
    }
    assert_eq!(course.shares()[0], 1.0);
}

#[test]
fn a_small_change_is_followed_once_it_has_stood() {
    let mut course = course();
    let at = |demand: f64| figures([100.0; 3], [demand, 20.0, 20.0]);
    let kept = course.follow(&at(100.0), Duration::ZERO).to_vec();
    // News that keep changing are noise for as long as they do.
    for tick in 0..200 {
        let noise = if tick % 30 < 15 { 102.0 } else { 98.0 };
        assert_eq!(course.follow(&at(noise), TICK), kept);
    }
    let mut ticks = 0;
    while course.follow(&at(102.0), TICK) == kept {
        ticks += 1;
        assert!(ticks < 100, "{kept:?}");
    }
    assert!(ticks >= 50, "{ticks}");
    assert!((course.shares()[0] - 70.0 / 102.0).abs() < 1e-9);
}

#[test]
fn a_flapping_zone_is_trusted_less_than_it_says() {
    // Ten seconds well, ten seconds lost: it never gets more than half, and never an edge upwards.
    let mut course = course();
    let full = figures([100.0; 3], EVEN);
    course.follow(&full, Duration::ZERO);
    for round in 0..6 {
        for _ in 0..100 {
            course.follow(&figures([0.0, 100.0, 100.0], EVEN), TICK);
        }
        for _ in 0..100 {
            course.follow(&full, TICK);
        }
        assert!(
            course.shares()[0] <= 0.5 + 1e-6,
            "round {round}: {:?}",
            course.shares()
        );
    }
}

#[test]
fn zones_that_come_and_go_keep_the_course_of_the_others() {
    let mut course = course();
    course.follow(&figures([100.0, 100.0, 100.0], EVEN), Duration::ZERO);
    course.follow(&figures([0.0, 100.0, 100.0], EVEN), Duration::ZERO);
    let full = figures([100.0; 3], EVEN);
    for _ in 0..100 {
        course.follow(&full, TICK);
    }
    let half = course.shares()[0];
    assert!((half - 0.5).abs() < 0.02, "{half}");
    // Zone c is forgotten and zone d appears.
    let mut next = course.carried(["a", "b", "d"].into_iter(), 0, levels(), true);
    let shares = next.follow(&full, TICK).to_vec();
    assert!((shares[0] - half).abs() < 0.02, "{shares:?}");
    assert!(shares[2] < 0.05, "{shares:?}");
    // Where weights take the place of capacities, everything is reckoned anew.
    let mut other = course.carried(["a", "b", "c"].into_iter(), 0, levels(), false);
    assert_eq!(other.follow(&full, TICK), [1.0, 0.0, 0.0]);
}

#[test]
fn where_nobody_had_anything_the_first_to_come_gets_all() {
    let mut course = course();
    course.follow(&figures([0.0; 3], EVEN), Duration::ZERO);
    assert_eq!(
        course.follow(&figures([100.0, 0.0, 0.0], EVEN), TICK),
        [1.0, 0.0, 0.0]
    );
}

#[test]
fn nothing_at_all_is_believed_also_right_after_a_change_of_zones() {
    let mut course = course();
    let half = figures([100.0, 100.0, 0.0], [100.0, 0.0, 0.0]);
    assert!(course.follow(&half, Duration::ZERO)[1] > 0.0);
    // Of all that was there, the next snapshot has nothing.
    let mut next = course.carried(["a", "b", "c"].into_iter(), 0, levels(), true);
    let none = figures([0.0; 3], [0.0; 3]);
    assert_eq!(next.follow(&none, TICK), [0.0; 3]);
}
