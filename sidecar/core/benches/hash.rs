//! What consistent hashing costs and how well it deals keys out, on one idle core:
//! `cargo bench -p mesh-core --bench hash`.
//!
//! Not here: the laws themselves (`src/hash/tests.rs`, `src/balance/bound/tests.rs`) and picks without a key
//! (`pick.rs`).

mod ground;

use std::{hint::black_box, sync::Arc, time::Duration};

use mesh_core::{
    balance::{Ask, Picker},
    hash::{Owner, RENDEZVOUS_SLOTS, Table, hash_of, seed_of},
    moment::Moment,
    policy::{Hash, HashKey, HashTable, Weight},
    snapshot::Upstream,
};
use rand::{SeedableRng, rngs::SmallRng};

use ground::{SIZES, timed};

const TABLES: [HashTable; 3] = [HashTable::Rendezvous, HashTable::Ring, HashTable::Maglev];

/// Keys of one measurement; far more than a table has slots in any cache.
const KEYS: usize = 1 << 20;

fn owners(count: usize) -> Vec<Owner> {
    let owner = |i: usize| Owner {
        seed: seed_of(&[b"shop", format!("instance-{i}").as_bytes()]),
        weight: 100.0,
    };
    (0..count).map(owner).collect()
}

fn keys() -> Vec<u64> {
    (0..KEYS as u64)
        .map(|i| hash_of(&i.to_le_bytes()))
        .collect()
}

fn built(
    kind: HashTable,
    owners: Vec<Owner>,
    before: Option<&Arc<Table>>,
) -> (Duration, Arc<Table>) {
    let table = Table::new(kind, owners, before);
    let (spent, ..) = timed(|| table.build());
    (spent, table)
}

fn upstream(kind: HashTable, endpoints: usize) -> Arc<Upstream> {
    let weights = std::iter::repeat_n(Weight::DEFAULT.get(), endpoints);
    let upstream = ground::upstream(weights, |policy| {
        policy.hash = Some(Hash {
            key: HashKey::Path,
            table: kind,
            body_max: 0,
        });
    });
    if let Some(owners) = &upstream.owners {
        owners.table.build();
    }
    upstream
}

/// Nanoseconds per lookup in a built table, and per whole pick of a request with a key; and what either allocated.
fn lookup(kind: HashTable, endpoints: usize, keys: &[u64]) -> (f64, f64, u64) {
    let (_, table) = built(kind, owners(endpoints), None);
    let each = |spent: Duration| spent.as_nanos() as f64 / keys.len() as f64;
    let (looked, by_lookups, _) = timed(|| {
        for key in keys {
            black_box(table.owner(*key));
        }
    });
    let upstream = upstream(kind, endpoints);
    let mut rng = SmallRng::seed_from_u64(1);
    let now = Moment::from_millis(1);
    let mut picker = Picker::new(&upstream, &mut rng);
    // The first pick reads the figures, which is not what is measured.
    picker.pick(&Ask::default(), now, &mut rng);
    let (picked, by_picks, _) = timed(|| {
        for key in keys {
            let ask = Ask {
                key: Some(*key),
                ..Ask::default()
            };
            black_box(picker.choose(&ask, now, &mut rng));
        }
    });
    (each(looked), each(picked), by_lookups + by_picks)
}

fn costs(keys: &[u64]) {
    println!("ns per lookup / per pick with it");
    println!("{:<16}{:>14}{:>14}{:>14}{:>14}", "", 10, 100, 1_000, 10_000);
    let mut allocations = 0;
    for kind in TABLES {
        print!("{:<16}", kind.name());
        for endpoints in SIZES {
            let (looked, picked, allocated) = lookup(kind, endpoints, keys);
            allocations += allocated;
            print!("{:>14}", format!("{looked:.1} / {picked:.1}"));
        }
        println!();
    }
    println!("allocations of all lookups and picks: {allocations}");
    assert_eq!(allocations, 0, "a lookup must not allocate");
}

fn builds() {
    println!("\nms to build a table: all of it / after one joined / after one left");
    println!("{:<16}{:>22}{:>22}{:>22}", "", 10, 100, 1_000);
    for kind in TABLES {
        print!("{:<16}", kind.name());
        for count in [10, 100, 1_000] {
            let (whole, table) = built(kind, owners(count), None);
            let (joined, larger) = built(kind, owners(count + 1), Some(&table));
            let (left, _) = built(kind, owners(count + 1)[1..].to_vec(), Some(&larger));
            let ms = |spent: Duration| spent.as_secs_f64() * 1e3;
            let told = format!("{:.1} / {:.1} / {:.1}", ms(whole), ms(joined), ms(left));
            print!("{told:>22}");
        }
        println!();
    }
}

/// Largest over mean share of the keys.
fn unevenness(table: &Table, keys: impl Iterator<Item = u64>) -> f64 {
    let mut counts = vec![0_u64; table.owners().len()];
    let mut all = 0_u64;
    for key in keys {
        if let Some(owner) = table.owner(key) {
            counts[owner] += 1;
            all += 1;
        }
    }
    let most = counts.iter().max().copied().unwrap_or(0);
    most as f64 * counts.len() as f64 / all as f64
}

/// Of those keys, how many moved, and how many of them although neither owner is the one that changed.
fn moved(before: &Table, after: &Table, changed: u64, keys: &[u64]) -> (usize, usize) {
    let seed = |table: &Table, key: u64| table.owner(key).map(|owner| table.owners()[owner].seed);
    let pairs = keys
        .iter()
        .map(|key| (seed(before, *key), seed(after, *key)));
    let moves = pairs.filter(|(old, new)| old != new);
    moves.fold((0, 0), |(all, needless), (old, new)| {
        let must = old == Some(changed) || new == Some(changed);
        (all + 1, needless + usize::from(!must))
    })
}

fn quality(keys: &[u64]) {
    println!(
        "\nmax / mean share at 100 / 1,000 owners; of {KEYS} keys, those that move (needlessly) as the 101st"
    );
    println!(
        "joins, leaves, gets twice the weight; keys on which another order of learning differs"
    );
    for kind in TABLES {
        let slots = (0..RENDEZVOUS_SLOTS as u64).map(|slot| slot << 46);
        let even = |count: usize| {
            let (_, table) = built(kind, owners(count), None);
            match kind {
                HashTable::Rendezvous => unevenness(&table, slots.clone()),
                HashTable::Ring | HashTable::Maglev => unevenness(&table, keys.iter().copied()),
            }
        };
        let (few, many) = (even(100), even(1_000));
        let (_, small) = built(kind, owners(100), None);
        let (_, large) = built(kind, owners(101), Some(&small));
        let changed = owners(101)[100].seed;
        let mut heavy = owners(101);
        heavy[100].weight = 200.0;
        let (_, heavy) = built(kind, heavy, Some(&large));
        let (_, left) = built(kind, owners(100), Some(&large));
        let mut stepwise = built(kind, owners(101)[40..].to_vec(), None).1;
        for known in (0..40).rev().step_by(13) {
            stepwise = built(kind, owners(101)[known..].to_vec(), Some(&stepwise)).1;
        }
        stepwise = built(kind, owners(101), Some(&stepwise)).1;
        let tell = |(all, needless): (usize, usize)| format!("{all} ({needless})");
        let differ = moved(&large, &stepwise, 0, keys).0;
        println!(
            "{:<16}{few:.3} / {many:.3}; {}, {}, {}; {differ}",
            kind.name(),
            tell(moved(&small, &large, changed, keys)),
            tell(moved(&large, &left, changed, keys)),
            tell(moved(&large, &heavy, changed, keys)),
        );
    }
}

fn main() {
    let keys = keys();
    costs(&keys);
    builds();
    quality(&keys);
}
