//! The laws of the tables: agreement, least movement, evenness, and the same answer however they were built.

use super::*;

const ALL: [HashTable; 3] = [HashTable::Rendezvous, HashTable::Ring, HashTable::Maglev];

fn owners(count: usize) -> Vec<Owner> {
    let name = |i: usize| format!("instance-{i}");
    let owner = |i| Owner {
        seed: seed_of(&[b"shop", name(i).as_bytes()]),
        weight: 100.0,
    };
    (0..count).map(owner).collect()
}

fn table(kind: HashTable, owners: &[Owner]) -> Arc<Table> {
    let table = Table::new(kind, owners.to_vec(), None);
    table.build();
    table
}

fn keys(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|i| hash_of(&i.to_le_bytes()))
}

/// The seed of a key's owner.
fn home(table: &Table, key: u64) -> u64 {
    table.owners()[table.owner(key).expect("there are owners")].seed
}

/// Largest share over mean share.
fn unevenness(table: &Table, key_count: u64) -> f64 {
    let mut counts = vec![0_u64; table.owners().len()];
    for key in keys(key_count) {
        counts[table.owner(key).expect("there are owners")] += 1;
    }
    let most = counts.iter().max().copied().unwrap_or(0);
    most as f64 * counts.len() as f64 / key_count as f64
}

/// Keys of `count` whose owner differs although neither the old nor the new one is among `changed`, and all whose
/// owner differs.
fn moved(before: &Table, after: &Table, changed: &[u64], count: u64) -> (u64, u64) {
    let (mut needless, mut all) = (0, 0);
    for key in keys(count) {
        let (old, new) = (home(before, key), home(after, key));
        all += u64::from(old != new);
        needless += u64::from(old != new && !changed.contains(&old) && !changed.contains(&new));
    }
    (needless, all)
}

#[test]
fn two_sidecars_that_learned_the_owners_in_other_orders_agree_on_every_key() {
    let mut owners = owners(50);
    for (i, owner) in owners.iter_mut().enumerate() {
        owner.weight = 50.0 + i as f64;
    }
    for kind in ALL {
        let ours = table(kind, &owners);
        // The other one learned half of them first, the rest one by one from the end, and met two who left again.
        let mut known: Vec<Owner> = owners[..25].to_vec();
        known.extend(self::owners(60)[58..].iter().copied());
        let mut theirs = table(kind, &known);
        let step = |known: &[Owner], theirs: &mut Arc<Table>| {
            *theirs = Table::new(kind, known.to_vec(), Some(theirs));
            theirs.build();
        };
        for owner in owners[25..].iter().rev() {
            known.insert(known.len() / 2, *owner);
            if known.len().is_multiple_of(5) {
                step(&known, &mut theirs);
            }
        }
        known.retain(|owner| owners.contains(owner));
        step(&known, &mut theirs);
        let order = |table: &Table, key| -> Vec<u64> {
            let order = table.order(key, 3);
            order
                .iter()
                .map(|owner| table.owners()[*owner].seed)
                .collect()
        };
        for key in keys(20_000) {
            assert_eq!(order(&ours, key), order(&theirs, key), "{kind:?}");
        }
    }
}

#[test]
fn a_rendezvous_table_answers_the_same_before_it_is_built_and_however_it_was() {
    let owners = owners(12);
    let unbuilt = Table::new(HashTable::Rendezvous, owners.clone(), None);
    let built = table(HashTable::Rendezvous, &owners);
    for key in keys(5_000) {
        assert_eq!(unbuilt.order(key, 12), built.order(key, 12));
    }
    assert!(!unbuilt.is_built());
    // Weights up and down, one gone, one new: worked out from the table before, and all at once.
    let mut changed = owners[1..].to_vec();
    changed[2].weight = 150.0;
    changed[5].weight = 50.0;
    changed.push(self::owners(13)[12]);
    let mut table = built;
    for some in [&changed[..11], &changed[..], &owners[..]] {
        table = Table::new(HashTable::Rendezvous, some.to_vec(), Some(&table));
        table.build();
        let afresh = self::table(HashTable::Rendezvous, some);
        for key in keys(5_000) {
            assert_eq!(table.order(key, 3), afresh.order(key, 3));
        }
    }
}

#[test]
fn only_keys_of_those_that_changed_move() {
    for kind in [HashTable::Rendezvous, HashTable::Ring] {
        let owners = owners(40);
        let before = table(kind, &owners[..39]);
        let mut heavier = owners[..39].to_vec();
        heavier[7].weight = 250.0;
        let mut lighter = owners[..39].to_vec();
        lighter[7].weight = 30.0;
        for (what, after, changed) in [
            ("one joins", owners.clone(), owners[39].seed),
            ("one leaves", owners[1..39].to_vec(), owners[0].seed),
            ("one gets heavier", heavier, owners[7].seed),
            ("one gets lighter", lighter, owners[7].seed),
        ] {
            let after = Table::new(kind, after, Some(&before));
            after.build();
            let (needless, all) = moved(&before, &after, &[changed], 100_000);
            println!("{}, {what}: {all} of 100,000 keys move", kind.name());
            assert_eq!(needless, 0, "{kind:?}: {what}");
            assert!((500..12_000).contains(&all), "{kind:?}: {what}: {all}");
        }
    }
}

#[test]
fn a_maglev_table_moves_few_keys_more_than_it_must() {
    let owners = owners(40);
    let before = table(HashTable::Maglev, &owners[..39]);
    let after = table(HashTable::Maglev, &owners);
    let (needless, all) = moved(&before, &after, &[owners[39].seed], 100_000);
    println!("maglev-1, one joins: {all} of 100,000 keys move, {needless} of them needlessly");
    assert!(needless < 3_000 && all > 2_000, "{needless} of {all}");
}

#[test]
fn shares_are_even() {
    for (count, bound) in [(100, 1.07), (1_000, 1.25)] {
        let table = table(HashTable::Rendezvous, &owners(count));
        // Every slot once: the table's own unevenness, without the luck of keys.
        let mut counts = vec![0_u32; count];
        for slot in 0..RENDEZVOUS_SLOTS as u64 {
            counts[table.owner(slot << 46).expect("there are owners")] += 1;
        }
        let most = counts.iter().max().copied().unwrap_or(0);
        let unevenness = f64::from(most) * count as f64 / RENDEZVOUS_SLOTS as f64;
        println!("rendezvous-1, {count} owners: max/mean {unevenness:.3}");
        assert!(unevenness <= bound, "{count} owners: {unevenness}");
    }
    let owners = owners(100);
    for (kind, bound) in [(HashTable::Ring, 1.3), (HashTable::Maglev, 1.02)] {
        let unevenness = unevenness(&table(kind, &owners), 2_000_000);
        println!("{}, 100 owners: max/mean {unevenness:.3}", kind.name());
        assert!(unevenness <= bound, "{kind:?}: {unevenness}");
    }
}

#[test]
fn shares_follow_weights() {
    let mut owners = owners(4);
    for (owner, weight) in owners.iter_mut().zip([100.0, 200.0, 300.0, 50.0]) {
        owner.weight = weight;
    }
    for kind in ALL {
        let table = table(kind, &owners);
        let mut counts = [0.0; 4];
        for key in keys(100_000) {
            counts[table.owner(key).expect("there are owners")] += 1e-5;
        }
        for (owner, got) in counts.iter().enumerate() {
            let want = table.share(owner);
            assert!(
                (got / want - 1.0).abs() < 0.15,
                "{kind:?}: {got} for {want}"
            );
        }
    }
}

#[test]
fn a_key_whose_owner_is_out_goes_to_the_same_next_one_everywhere() {
    for kind in ALL {
        let owners = owners(6);
        let whole = table(kind, &owners);
        for key in keys(2_000) {
            let order = whole.order(key, 6);
            assert_eq!(order.len(), 6);
            // Even when the three that are stored are out.
            for out in 1..6 {
                let next = whole.find(key, |owner| !order[..out].contains(&owner));
                assert_eq!(next, Some(order[out]), "{kind:?}");
            }
            assert_eq!(whole.find(key, |_| false), None);
            // Out by ejection or gone from the table makes no difference to where its keys go.
            if kind != HashTable::Maglev {
                let first = whole.owners()[order[0]].seed;
                let second = whole.owners()[order[1]].seed;
                let rest: Vec<Owner> = owners.iter().filter(|o| o.seed != first).copied().collect();
                let without = Table::new(kind, rest, None);
                assert_eq!(home(&without, key), second, "{kind:?}");
            }
        }
    }
}

#[test]
fn nobody_owns_anything_where_nobody_is() {
    for kind in ALL {
        let none = table(kind, &[]);
        assert_eq!(none.owner(7), None);
        let one = table(kind, &owners(1));
        assert_eq!(one.order(u64::MAX, 3), [0]);
    }
}

#[test]
fn that_all_owners_are_out_is_found_by_asking_each_a_few_times() {
    for kind in ALL {
        let table = table(kind, &owners(50));
        let mut asked = 0;
        let nobody = |_| {
            asked += 1;
            false
        };
        assert_eq!(table.find(7, nobody), None);
        assert!(asked <= 150, "{kind:?}: {asked}");
    }
}

#[test]
fn a_ring_of_heavy_owners_stays_small() {
    let mut owners = owners(64);
    owners.iter_mut().for_each(|owner| owner.weight = 65_535.0);
    let unevenness = unevenness(&table(HashTable::Ring, &owners), 100_000);
    assert!(unevenness < 1.2, "{unevenness}");
}
