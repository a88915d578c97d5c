use std::collections::BTreeMap;

use mesh_proto::record::WireProtocol;
use proptest::prelude::*;

use super::*;

fn head(owner: u64, epoch: u64, slot: u32, version: u64) -> Head {
    Head {
        owner,
        epoch,
        slot,
        version,
    }
}

fn node(floor: u64) -> Body {
    Body::Node(NodeRecord {
        name: "n".into(),
        zone: "a".into(),
        region: "r".into(),
        wire_version: 1,
        left: false,
        floor,
        keys: Box::default(),
    })
}

fn service(weight: u16) -> Body {
    Body::Service(ServiceRecord {
        service: "web".into(),
        instance: "web-1".into(),
        address: ([10, 0, 0, 1], 80).into(),
        protocol: WireProtocol::Http,
        weight,
        health: Health::Passing,
        state: InstanceState::Up,
        started_at_ms: 1,
        capacity: None,
        tags: BTreeMap::new(),
    })
}

/// What one owner does in its life.
#[derive(Clone, Debug)]
enum Act {
    Write(u32),
    Remove(u32),
    Bury,
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1u32..5).prop_map(Act::Write),
        2 => (1u32..5).prop_map(Act::Remove),
        1 => Just(Act::Bury),
        1 => Just(Act::Restart),
    ];
    proptest::collection::vec(act, 1..25)
}

/// Every record the owner writes in that life, in order: what others may hear in any order, and any number of times.
fn history(owner: u64, acts: &[Act]) -> Vec<Vec<u8>> {
    let (mut epoch, mut version) = (1, 0);
    let mut living = BTreeMap::new();
    let mut written = Vec::new();
    for act in acts {
        let mut write = |slot, body: Body| {
            version += 1;
            written.push(encode_record(&head(owner, epoch, slot, version), &body).expect("fits"));
        };
        match act {
            Act::Write(slot) => {
                living.insert(*slot, 100);
                write(*slot, service(100));
            }
            Act::Remove(slot) => {
                living.remove(slot);
                write(*slot, Body::Tombstone);
            }
            Act::Bury => {
                for slot in living.keys() {
                    write(*slot, service(100));
                }
                let floor = version - living.len() as u64;
                version += 1;
                written.push(
                    encode_record(&head(owner, epoch, NODE_SLOT, version), &node(floor))
                        .expect("fits"),
                );
            }
            Act::Restart => {
                living.clear();
                epoch += 1;
                version = 0;
            }
        }
    }
    written
}

fn view(catalogue: &Catalogue) -> Vec<(u64, u64, u32, u64)> {
    let owners = catalogue.owners();
    owners
        .flat_map(|(id, owner)| {
            owner
                .entries()
                .map(move |(slot, entry)| (id, owner.epoch, slot, entry.version))
        })
        .collect()
}

fn fill<'a>(records: impl IntoIterator<Item = &'a Vec<u8>>) -> Catalogue {
    let mut catalogue = Catalogue::default();
    for bytes in records {
        catalogue.apply(bytes).expect("ours");
    }
    catalogue
}

proptest! {
    #[test]
    fn any_order_and_any_repetition_merge_to_the_same(
        lives in (acts(), acts()),
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 0..200),
    ) {
        let records = [history(1, &lives.0), history(2, &lives.1)].concat();
        // Two owners that only ever restart write nothing, and of nothing there is only one order.
        prop_assume!(!records.is_empty());
        let straight = fill(&records);
        let twice = fill(records.iter().chain(&records));
        let backward = fill(records.iter().rev());
        let mixed = fill(order.iter().map(|index| index.get(&records)).chain(&records));
        for other in [&twice, &backward, &mixed] {
            prop_assert_eq!(view(&straight), view(other));
            prop_assert_eq!(straight.hash(), other.hash());
            prop_assert_eq!(straight.buckets(), other.buckets());
            prop_assert_eq!(straight.len(), other.len());
        }
    }

    #[test]
    fn two_catalogues_that_tell_each_other_all_become_one(
        lives in (acts(), acts()),
        split in any::<proptest::sample::Index>(),
    ) {
        let records = [history(1, &lives.0), history(2, &lives.1)].concat();
        let (left, right) = records.split_at(split.index(records.len() + 1));
        let (mut a, mut b) = (fill(left), fill(right));
        let told = |catalogue: &Catalogue| -> Vec<Arc<[u8]>> {
            let owners = catalogue.owners().flat_map(|(_, owner)| owner.entries());
            owners.map(|(_, entry)| entry.bytes.clone()).collect()
        };
        let (from_a, from_b) = (told(&a), told(&b));
        from_b.iter().for_each(|bytes| { a.apply(bytes).expect("ours"); });
        from_a.iter().for_each(|bytes| { b.apply(bytes).expect("ours"); });
        prop_assert_eq!(a.hash(), b.hash());
        prop_assert_eq!(view(&a), view(&b));
        prop_assert_eq!(view(&a), view(&fill(&records)));
    }

    #[test]
    fn merging_is_associative_commutative_and_idempotent(
        lives in (acts(), acts()),
        holders in proptest::collection::vec(1u8..8, 60),
    ) {
        // Each record is held by one or more of three nodes, as a bit set tells.
        let records = [history(1, &lives.0), history(2, &lives.1)].concat();
        let of = |node: u8| -> Vec<Vec<u8>> {
            let held = records.iter().enumerate();
            let held = held.filter(|(at, _)| holders[at % holders.len()] & (1 << node) != 0);
            held.map(|(_, bytes)| bytes.clone()).collect()
        };
        let merged = |into: Vec<Vec<u8>>, other: Vec<Vec<u8>>| -> Vec<Vec<u8>> {
            let catalogue = fill(into.iter().chain(&other));
            let owners = catalogue.owners().flat_map(|(_, owner)| owner.entries());
            owners.map(|(_, entry)| entry.bytes.to_vec()).collect()
        };
        let (a, b, c) = (of(0), of(1), of(2));
        let left = merged(merged(a.clone(), b.clone()), c.clone());
        let right = merged(a.clone(), merged(b.clone(), c.clone()));
        prop_assert_eq!(&left, &right);
        prop_assert_eq!(merged(a.clone(), b.clone()), merged(b, a.clone()));
        let once = merged(a, Vec::new());
        prop_assert_eq!(&merged(once.clone(), once.clone()), &once);
    }

    #[test]
    fn different_catalogues_hash_differently(life in acts()) {
        let records = history(1, &life);
        let mut seen = BTreeMap::new();
        let mut catalogue = Catalogue::default();
        for bytes in &records {
            catalogue.apply(bytes).expect("ours");
            let held = seen.insert(catalogue.hash(), view(&catalogue));
            prop_assert!(held.is_none_or(|held| held == view(&catalogue)));
        }
    }
}

#[test]
fn a_higher_epoch_replaces_everything() {
    let mut catalogue = Catalogue::default();
    for slot in 1..4 {
        catalogue
            .write(head(1, 1, slot, u64::from(slot)), service(1))
            .expect("fits");
    }
    catalogue.write(head(1, 2, 1, 1), service(1)).expect("fits");
    assert_eq!(catalogue.len(), 1);
    let old = encode_record(&head(1, 1, 2, 99), &service(1)).expect("fits");
    assert_eq!(catalogue.apply(&old), Ok(Applied::Stale));
}

#[test]
fn what_is_not_understood_is_kept_and_told_on() {
    let mut bytes = encode_record(&head(1, 1, 9, 1), &Body::Tombstone).expect("fits");
    bytes[0] = 77;
    bytes.extend_from_slice(b"of a version to come");
    let mut catalogue = Catalogue::default();
    assert!(matches!(catalogue.apply(&bytes), Ok(Applied::News(_))));
    let (_, entry) = catalogue
        .owner(1)
        .expect("kept")
        .entries()
        .next()
        .expect("kept");
    assert_eq!(
        (&*entry.bytes, &entry.content),
        (&bytes[..], &Content::Unknown)
    );
}

#[test]
fn a_forgotten_or_dormant_owner_leaves_no_trace_in_the_hash() {
    let mut catalogue = Catalogue::default();
    let empty = catalogue.hash();
    catalogue.write(head(1, 1, 1, 1), service(1)).expect("fits");
    let held = catalogue.hash();
    catalogue.set_dormant(1, true);
    assert_eq!((catalogue.hash(), catalogue.digest(1)), (empty, None));
    catalogue.set_dormant(1, false);
    assert_eq!(catalogue.hash(), held);
    catalogue.forget(1);
    assert_eq!((catalogue.hash(), catalogue.len()), (empty, 0));
}

#[test]
fn an_owner_cannot_fill_the_table() {
    let mut catalogue = Catalogue::default();
    for slot in 0..SLOTS_MAX as u32 + 10 {
        catalogue
            .write(head(1, 1, slot + 1, 1), service(1))
            .expect("fits");
    }
    assert_eq!(catalogue.len(), SLOTS_MAX);
}

#[test]
fn failing_draining_and_gone_are_urgent() {
    assert!(!is_urgent(&service(1)) && is_urgent(&Body::Tombstone));
    let Body::Service(mut record) = service(1) else {
        unreachable!("made so above");
    };
    record.health = Health::Failing;
    assert!(is_urgent(&Body::Service(record)));
}
