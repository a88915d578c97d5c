//! A table sorted by id, in parts that copies of it share until one of them is written.
//!
//! Not here: what is kept in it (`catalogue.rs`, `membership/peers.rs`). A copy costs a pointer a part, and a change to one
//! entry costs one part: so a large simulated mesh whose nodes all know the same takes little more memory than one node.

use std::sync::Arc;

use rand::{Rng, RngExt};

/// Entries of a part: few, so that a write to a shared one copies little; many, so that there are few parts to go through.
const PART_MAX: usize = 64;

/// Entries by id.
#[derive(Clone, Debug)]
pub struct Table<T> {
    /// In order of id; none is empty.
    parts: Vec<Part<T>>,
    len: usize,
}

/// What copies share.
#[derive(Clone, Debug)]
struct Part<T> {
    /// The first id, here so that to find a part no other is looked into.
    first: u64,
    entries: Arc<Vec<(u64, T)>>,
}

impl<T> Part<T> {
    fn new(entries: Vec<(u64, T)>) -> Part<T> {
        Part {
            first: entries[0].0,
            entries: Arc::new(entries),
        }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table {
            parts: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Table<T> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The part where an id is or would be, and its place there.
    fn place(&self, id: u64) -> (usize, Result<usize, usize>) {
        let after = self.parts.partition_point(|part| part.first <= id);
        let at = after.saturating_sub(1);
        let place = match self.parts.get(at) {
            Some(part) => part.entries.binary_search_by_key(&id, |(id, _)| *id),
            None => Err(0),
        };
        (at, place)
    }

    /// One entry.
    pub fn get(&self, id: u64) -> Option<&T> {
        match self.place(id) {
            (part, Ok(at)) => Some(&self.parts[part].entries[at].1),
            _ => None,
        }
    }

    /// Whether an id has an entry.
    pub fn contains(&self, id: u64) -> bool {
        self.get(id).is_some()
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let all = self.parts.iter().flat_map(|part| part.entries.iter());
        all.map(|(id, entry)| (*id, entry))
    }

    /// One, drawn evenly.
    pub fn draw(&self, rng: &mut impl Rng) -> Option<(u64, &T)> {
        let places = match self.parts.as_slice() {
            [] => return None,
            [only] => only.entries.len(),
            _ => PART_MAX,
        };
        loop {
            // Every entry is hit as often as the next; parts are more than half full, so that few draws miss.
            let part = &self.parts[rng.random_range(0..self.parts.len())];
            if let Some((id, entry)) = part.entries.get(rng.random_range(0..places)) {
                return Some((*id, entry));
            }
        }
    }
}

impl<T: Clone> Table<T> {
    /// One entry, to change it.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        match self.place(id) {
            (part, Ok(at)) => Some(&mut Arc::make_mut(&mut self.parts[part].entries)[at].1),
            _ => None,
        }
    }

    /// Puts an entry in. Yields the one that was there.
    pub fn insert(&mut self, id: u64, entry: T) -> Option<T> {
        let (part, place) = self.place(id);
        let at = match place {
            Ok(at) => {
                let held = &mut Arc::make_mut(&mut self.parts[part].entries)[at].1;
                return Some(std::mem::replace(held, entry));
            }
            Err(at) => at,
        };
        self.len += 1;
        match self.parts.get_mut(part) {
            None => self.parts.push(Part::new(vec![(id, entry)])),
            // What comes in order fills part after part.
            Some(held) if held.entries.len() == PART_MAX && at == PART_MAX => {
                self.parts.insert(part + 1, Part::new(vec![(id, entry)]));
            }
            Some(held) => {
                let entries = Arc::make_mut(&mut held.entries);
                entries.insert(at, (id, entry));
                held.first = entries[0].0;
                if entries.len() > PART_MAX {
                    let rest = entries.split_off(PART_MAX / 2);
                    self.parts.insert(part + 1, Part::new(rest));
                }
            }
        }
        None
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: u64) -> Option<T> {
        let (part, Ok(at)) = self.place(id) else {
            return None;
        };
        let held = &mut self.parts[part];
        let entries = Arc::make_mut(&mut held.entries);
        let (_, entry) = entries.remove(at);
        match entries.first() {
            Some((first, _)) => held.first = *first,
            None => drop(self.parts.remove(part)),
        }
        self.len -= 1;
        Some(entry)
    }

    /// Gives back memory kept for more, where no copy shares it.
    pub fn shrink(&mut self) {
        self.parts.shrink_to_fit();
        for part in &mut self.parts {
            if let Some(entries) = Arc::get_mut(&mut part.entries) {
                entries.shrink_to_fit();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn same(table: &Table<u32>, map: &BTreeMap<u64, u32>) {
        assert_eq!(table.len(), map.len());
        assert!(table.iter().eq(map.iter().map(|(id, entry)| (*id, entry))));
        for part in &table.parts {
            assert_eq!(part.entries.first().map(|(id, _)| *id), Some(part.first));
            assert!(part.entries.len() <= PART_MAX);
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec((0_u64..400, any::<bool>()), 0..1_500)) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for (count, (id, is_put)) in steps.into_iter().enumerate() {
                if is_put {
                    prop_assert_eq!(table.insert(id, count as u32), map.insert(id, count as u32));
                } else {
                    prop_assert_eq!(table.remove(id), map.remove(&id));
                }
                prop_assert_eq!(table.get(id), map.get(&id));
            }
            same(&table, &map);
        }
    }

    #[test]
    fn a_change_to_one_copy_is_not_seen_in_another_and_copies_one_part() {
        let mut table = Table::default();
        for id in 0..1_000 {
            table.insert(id, 0);
        }
        let before = table.clone();
        *table.get_mut(500).expect("there") = 7;
        assert_eq!((before.get(500), table.get(500)), (Some(&0), Some(&7)));
        let pairs = table.parts.iter().zip(&before.parts);
        let copied = pairs
            .filter(|(a, b)| !Arc::ptr_eq(&a.entries, &b.entries))
            .count();
        assert_eq!(copied, 1);
    }

    #[test]
    fn every_entry_is_drawn_as_often_as_the_next() {
        let mut table = Table::default();
        for id in 0..150 {
            table.insert(id, id);
        }
        let mut rng = StdRng::seed_from_u64(1);
        let mut drawn = BTreeMap::<u64, u32>::new();
        for _ in 0..150 * 200 {
            let (id, entry) = table.draw(&mut rng).expect("not empty");
            assert_eq!(id, *entry);
            *drawn.entry(id).or_default() += 1;
        }
        assert_eq!(drawn.len(), 150);
        assert!(drawn.values().all(|times| (120..280).contains(times)));
    }
}
