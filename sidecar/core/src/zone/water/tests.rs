//! The laws of water-filling: shares add up, nobody is overfilled without need, order does not matter.

use proptest::prelude::*;

use super::*;

/// Zones `0..n`, two to a region.
fn pairs(zones: usize) -> Levels {
    Levels::new(zones, |from, to| match () {
        () if from == to => 0,
        () if from / 2 == to / 2 => 1,
        () => 2,
    })
}

/// Each zone a region of its own.
fn apart(zones: usize) -> Levels {
    Levels::new(zones, |from, to| if from == to { 0 } else { 2 })
}

fn figures(capacity: &[f64], demand: &[f64]) -> Vec<Figures> {
    let both = capacity.iter().zip(demand);
    both.map(|(capacity, demand)| Figures {
        capacity: *capacity,
        demand: *demand,
    })
    .collect()
}

fn filled(figures: &[Figures], levels: &Levels, declared: bool) -> (Fill, Flows) {
    let fill = target(figures, declared);
    let mut flows = Flows::new(figures.len());
    flows.fill(figures, levels, fill, &vec![1.0; figures.len()]);
    (fill, flows)
}

/// What each zone is given, by everybody.
fn loads(figures: &[Figures], flows: &Flows) -> Vec<f64> {
    let zones = 0..figures.len();
    let given = |to: usize| -> f64 {
        let each = zones
            .clone()
            .map(|from| flows.of(from)[to] * figures[from].demand);
        each.sum()
    };
    zones.clone().map(given).collect()
}

fn rounded(shares: &[f64]) -> Vec<u32> {
    shares
        .iter()
        .map(|s| (s * 1_000.0).round() as u32)
        .collect()
}

#[test]
fn the_golden_values_hold() {
    // (capacity, demand, levels, what zone 0 does with its demand in thousandths)
    for (capacity, demand, levels, want) in [
        // Room enough: everybody stays at home, whoever is idle nearby.
        (
            &[100.0, 100.0, 100.0][..],
            &[60.0, 10.0, 0.0][..],
            apart(3),
            &[1000, 0, 0][..],
        ),
        // No demand told: stay at home.
        (
            &[100.0, 100.0, 100.0],
            &[0.0, 0.0, 0.0],
            apart(3),
            &[1000, 0, 0],
        ),
        // Over 70 %: the excess runs to where there is room, in proportion to it (40 and 60).
        (
            &[100.0, 100.0, 100.0],
            &[100.0, 30.0, 10.0],
            apart(3),
            &[700, 120, 180],
        ),
        // Skewed 3:1:1 at 83 % of everything: T = 0.833.
        (
            &[100.0, 100.0, 100.0],
            &[150.0, 50.0, 50.0],
            apart(3),
            &[556, 222, 222],
        ),
        // The region comes first, and takes what it can (60) before the rest of the world.
        (
            &[100.0, 100.0, 100.0, 100.0],
            &[140.0, 10.0, 10.0, 10.0],
            pairs(4),
            &[500, 429, 36, 36],
        ),
        // The own zone is gone.
        (
            &[0.0, 100.0, 100.0],
            &[50.0, 50.0, 50.0],
            apart(3),
            &[0, 500, 500],
        ),
        // One of four endpoints gone, the rest at 67 %: nothing moves.
        (
            &[75.0, 100.0, 100.0],
            &[50.0, 50.0, 50.0],
            apart(3),
            &[1000, 0, 0],
        ),
        // Two of four gone.
        (
            &[50.0, 100.0, 100.0],
            &[50.0, 50.0, 50.0],
            apart(3),
            &[700, 150, 150],
        ),
    ] {
        let figures = figures(capacity, demand);
        let (_, flows) = filled(&figures, &levels, true);
        assert_eq!(rounded(flows.of(0)), want, "{capacity:?} {demand:?}");
    }
}

#[test]
fn in_overload_nobody_drags_the_others_along() {
    let figures = figures(&[100.0, 100.0, 100.0], &[300.0, 20.0, 20.0]);
    let (fill, flows) = filled(&figures, &apart(3), true);
    assert!(fill.overload && fill.load > 1.1);
    let loads = loads(&figures, &flows);
    assert!(
        (loads[1] - 90.0).abs() < 1e-6 && (loads[2] - 90.0).abs() < 1e-6,
        "{loads:?}"
    );
    assert!((loads[0] - 160.0).abs() < 1e-6, "{loads:?}");
    // All alike: everybody sheds at home.
    let (_, flows) = filled(&self::figures(&[100.0; 3], &[110.0; 3]), &apart(3), true);
    assert_eq!(rounded(flows.of(0)), [1000, 0, 0]);
    // What has no home any more has to go somewhere.
    let gone = self::figures(&[0.0, 100.0, 100.0], &[100.0, 100.0, 100.0]);
    assert_eq!(
        rounded(filled(&gone, &apart(3), true).1.of(0)),
        [0, 500, 500]
    );
}

#[test]
fn without_capacities_a_zone_keeps_all_up_to_one_and_four_tenths_of_its_part() {
    let x = |demand: f64| {
        let others = (300.0 - demand) / 2.0;
        let figures = figures(&[100.0; 3], &[demand, others, others]);
        filled(&figures, &apart(3), false).1.of(0)[0]
    };
    assert_eq!(x(100.0), 1.0);
    assert!((x(139.0) - 1.0).abs() < 1e-9);
    assert!((x(200.0) - 0.7).abs() < 1e-9);
    // The unit of the weights is of no matter.
    let heavy = figures(&[7.0; 3], &[200.0, 50.0, 50.0]);
    assert!((filled(&heavy, &apart(3), false).1.of(0)[0] - 0.7).abs() < 1e-9);
}

#[test]
fn what_is_held_back_from_a_zone_is_reserved_for_it() {
    // Zone 0 comes back cold: it may have 10 % of its demand so far, and zone 1 spills at the same time.
    let figures = figures(&[100.0, 100.0, 100.0], &[40.0, 100.0, 10.0]);
    let mut flows = Flows::new(3);
    flows.fill(
        &figures,
        &apart(3),
        target(&figures, true),
        &[0.1, 1.0, 1.0],
    );
    assert!((flows.of(0)[0] - 0.1).abs() < 1e-9);
    // Of the 70 that it is filled to, 40 are its own, whoever uses them meanwhile.
    let foreign = flows.of(1)[0] * 100.0;
    assert!((9.0..=30.0).contains(&foreign), "{foreign}");
}

#[test]
fn an_order_for_everybody_fills_its_first_zone_for_all_together() {
    let levels = Levels::new(3, |_, to| to as u8);
    let figures = figures(&[100.0; 3], &[60.0, 60.0, 60.0]);
    let (_, flows) = filled(&figures, &levels, true);
    let loads = loads(&figures, &flows);
    assert_eq!(rounded(&loads), [70_000, 70_000, 40_000]);
    assert_eq!(flows.of(0), flows.of(2));
}

fn any_figures() -> impl Strategy<Value = Vec<Figures>> {
    let capacity = prop_oneof![1 => Just(0.0), 8 => 1.0..1_000.0];
    let demand = prop_oneof![1 => Just(0.0), 8 => 1.0..1_000.0];
    let zone = (capacity, demand).prop_map(|(capacity, demand)| Figures { capacity, demand });
    proptest::collection::vec(zone, 1..9)
}

fn any_levels(zones: usize) -> impl Strategy<Value = Levels> {
    (0..3u8).prop_map(move |kind| match kind {
        0 => apart(zones),
        1 => pairs(zones),
        _ => Levels::new(zones, |_, to| to as u8),
    })
}

fn case() -> impl Strategy<Value = (Vec<Figures>, Levels)> {
    any_figures().prop_flat_map(|figures| {
        let zones = figures.len();
        (Just(figures), any_levels(zones))
    })
}

proptest! {
    #[test]
    fn shares_add_up_to_one_and_none_goes_to_who_has_nothing((figures, levels) in case(), declared: bool) {
        let (_, flows) = filled(&figures, &levels, declared);
        let has_any = figures.iter().any(|zone| zone.capacity > 0.0);
        for from in 0..figures.len() {
            let sum: f64 = flows.of(from).iter().sum();
            prop_assert!((sum - if has_any { 1.0 } else { 0.0 }).abs() < 1e-6, "{sum}");
            for (share, zone) in flows.of(from).iter().zip(&figures) {
                prop_assert!(*share >= -1e-9 && (zone.capacity > 0.0 || *share <= 1e-9));
            }
        }
    }

    #[test]
    fn no_zone_is_filled_over_its_target_where_that_can_be_avoided((figures, levels) in case(), declared: bool) {
        let (fill, flows) = filled(&figures, &levels, declared);
        if fill.load.is_finite() && !fill.overload {
            for (load, zone) in loads(&figures, &flows).iter().zip(&figures) {
                let most = fill.target * zone.capacity;
                prop_assert!(*load <= most * (1.0 + 1e-6) + 1e-3, "{load} over {most}: {figures:?}");
            }
        }
    }

    #[test]
    fn in_overload_no_zone_is_filled_over_its_target_by_others(figures in any_figures()) {
        let levels = apart(figures.len());
        let (fill, flows) = filled(&figures, &levels, true);
        let homeless = figures.iter().any(|zone| zone.demand > 0.0 && zone.capacity <= 0.0);
        if fill.overload && fill.load.is_finite() && !homeless {
            for (to, load) in loads(&figures, &flows).iter().enumerate() {
                let own = flows.of(to)[to] * figures[to].demand;
                let foreign = load - own;
                let most = fill.target * figures[to].capacity;
                prop_assert!(foreign <= 1e-3 || *load <= most * (1.0 + 1e-6) + 1e-3);
            }
        }
    }

    #[test]
    fn nobody_spills_who_has_room_at_home(figures in any_figures()) {
        let (fill, flows) = filled(&figures, &apart(figures.len()), true);
        for (at, zone) in figures.iter().enumerate() {
            if zone.capacity > 0.0 && zone.demand <= fill.target * zone.capacity {
                prop_assert!((flows.of(at)[at] - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn every_order_of_the_zones_comes_to_the_same(figures in any_figures(), seed: u64) {
        let zones = figures.len();
        // Region by position, so the permuted zones take their regions along.
        let mut order: Vec<usize> = (0..zones).collect();
        order.sort_by_key(|at| crate::catalogue::mix(seed ^ *at as u64));
        let permuted: Vec<Figures> = order.iter().map(|at| figures[*at]).collect();
        let plain = pairs(zones);
        let levels = Levels::new(zones, |from, to| plain.of(order[from], order[to]));
        let (_, flows) = filled(&figures, &plain, true);
        let (_, other) = filled(&permuted, &levels, true);
        for (from, old_from) in order.iter().enumerate() {
            for (to, old_to) in order.iter().enumerate() {
                let (a, b) = (other.of(from)[to], flows.of(*old_from)[*old_to]);
                prop_assert!((a - b).abs() < 1e-6, "{a} {b}");
            }
        }
    }
}
