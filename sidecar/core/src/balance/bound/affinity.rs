//! What bounded load costs in affinity, beside what it has to cost.

use rand::{RngExt, rngs::StdRng};

use super::*;
use crate::{
    hash::hash_of,
    policy::{Hash, HashKey},
    staging::{Stage, at, dice},
};

/// Draws keys 0.. with a chance in proportion to 1 / (key + 1)^1.1.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(keys: u32) -> Zipf {
        let mut sum = 0.0;
        let sums = (1..=keys).map(|rank| {
            sum += f64::from(rank).powf(-1.1);
            sum
        });
        Zipf(sums.collect())
    }

    fn draw(&self, rng: &mut StdRng) -> u64 {
        let whole = self.0.last().copied().unwrap_or(0.0);
        let at = rng.random::<f64>() * whole;
        self.0.partition_point(|sum| *sum < at) as u64
    }
}

const PICKS: u64 = 50_000;

fn upstream(endpoints: usize) -> Arc<Upstream> {
    let by_user = Hash::by(HashKey::Header("x-user".into()));
    let zones = vec!["a1"; endpoints];
    let upstream = Stage::with(&zones, |policy| policy.hash = Some(by_user)).build(at(0));
    upstream.owners.as_ref().expect("it hashes").table.build();
    upstream
}

/// Share of the requests that reach their key's first owner while `in_flight` are, and the most that any endpoint
/// then has.
fn affinity(endpoints: usize, in_flight: usize) -> (f64, u32) {
    let upstream = upstream(endpoints);
    let owners = upstream.owners.as_ref().expect("it hashes");
    let mut picker = Picker::new(&upstream, &mut dice(1));
    let (mut rng, zipf) = (dice(3), Zipf::new(100_000));
    let mut flying: Vec<Arc<Endpoint>> = Vec::new();
    let (mut at_home, mut most) = (0, 0);
    for i in 0..PICKS {
        if flying.len() == in_flight {
            let over = flying.swap_remove(rng.random_range(0..in_flight));
            over.end(at(i));
        }
        let now_flying = flying.len() as u32 + 1;
        upstream.shared.in_flight.store(now_flying, Relaxed);
        let key = hash_of(&zipf.draw(&mut rng).to_le_bytes());
        let ask = Ask {
            idempotent: true,
            key: Some(key),
            ..Ask::default()
        };
        let pick = picker.pick(&ask, at(i), &mut rng).expect("all are in");
        let first = owners.table.owner(key).expect("there are owners");
        at_home += u64::from(upstream.at(owners.seats[first]).endpoint.id == pick.endpoint.id);
        pick.endpoint.begin(at(i));
        flying.push(Arc::clone(&pick.endpoint));
        most = most.max(pick.endpoint.in_flight());
        assert!(pick.endpoint.in_flight() <= busy_from(&upstream, owners, first).max(8));
    }
    (at_home as f64 / PICKS as f64, most)
}

/// The same in nothing but numbers, by the rule alone: nobody has more than max(8, 1.25 times its share). No rule with this
/// bound can do better than one whose overflow is nobody's burden, as if it went to servers of its own; `is_burden` is
/// false for that.
fn by_the_rule(endpoints: usize, in_flight: usize, is_burden: bool) -> f64 {
    let upstream = upstream(endpoints);
    let table = &upstream.owners.as_ref().expect("it hashes").table;
    let (mut rng, zipf) = (dice(3), Zipf::new(100_000));
    let nobody = endpoints;
    let mut counts = vec![0_u32; endpoints + 1];
    let mut flying: Vec<usize> = Vec::new();
    let mut at_home = 0;
    for _ in 0..PICKS {
        if flying.len() == in_flight {
            counts[flying.swap_remove(rng.random_range(0..in_flight))] -= 1;
        }
        let share = (flying.len() + 1) as f64 / endpoints as f64;
        let most = (1.25 * share).max(8.0).ceil() as u32;
        let key = hash_of(&zipf.draw(&mut rng).to_le_bytes());
        let first = table.owner(key).expect("there are owners");
        let owner = match table.find(key, |owner| counts[owner] < most) {
            Some(owner) if owner == first || is_burden => owner,
            _ => nobody,
        };
        at_home += u64::from(owner == first);
        counts[owner] += 1;
        flying.push(owner);
    }
    at_home as f64 / PICKS as f64
}

#[test]
fn keys_of_uneven_fame_stay_at_home_as_far_as_the_bound_lets_them() {
    for (endpoints, in_flight) in [
        (10, 16),
        (10, 24),
        (10, 32),
        (10, 200),
        (100, 32),
        (100, 200),
    ] {
        let (share, most) = affinity(endpoints, in_flight);
        let rule = by_the_rule(endpoints, in_flight, true);
        let limit = by_the_rule(endpoints, in_flight, false);
        println!(
            "{endpoints} endpoints, {in_flight} in flight: {share:.3} at home, {rule:.3} by the rule, {limit:.3} by any \
             rule with this bound; at most {most} each"
        );
        assert!((share - rule).abs() < 0.01, "{share} instead of {rule}");
        // The most wanted key alone is a seventh of the requests, and with nine others a tenth of the rest comes to its
        // owner too: a fifth of all. Of 32 in flight those are 7 on average, so that 8 are often there already; of 200
        // they are 46, and 25 is the most. Nobody can have 95 % at home then who keeps to the bound.
        assert!(share >= 0.95 || limit < 0.95, "{share} of {limit}");
        assert!(most <= (1.25 * in_flight as f64 / endpoints as f64).max(8.0).ceil() as u32 + 1);
    }
}
