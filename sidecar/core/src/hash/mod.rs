//! Which endpoint owns a key: tables that every sidecar of the mesh comes to alike.
//!
//! Not here: what makes up a key (the sidecar's `request_key.rs`), and what becomes of an owner that is out or busy
//! (`balance/bound.rs`).
//!
//! A table knows its owners by a seed (a hash of what names them) and a weight, and nothing of when or in which order
//! they came: two sidecars that know the same owners give the same answer.

mod function;
mod maglev;
mod rendezvous;
mod ring;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::policy::HashTable;

pub use function::{hash_of, seed_of};
pub use maglev::ENTRIES as MAGLEV_ENTRIES;
pub use rendezvous::SLOTS as RENDEZVOUS_SLOTS;

/// Most owners of one table: their numbers fit 16 bits, the last of which means nobody.
pub const OWNERS_MAX: usize = u16::MAX as usize;

/// Nobody, where the number of an owner stands.
const NOBODY: u16 = u16::MAX;

/// One owner of keys.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Owner {
    /// What names it, hashed by [`seed_of`].
    pub seed: u64,
    /// Its share of the keys relative to others, above 0.
    pub weight: f64,
}

/// Who owns which key. Cheap to make; [`Table::build`] does the work, on any thread.
#[derive(Debug)]
pub struct Table {
    kind: HashTable,
    owners: Vec<Owner>,
    weight: f64,
    built: OnceLock<Built>,
    /// A table of which most is still true.
    before: Mutex<Option<Arc<Table>>>,
}

#[derive(Debug)]
enum Built {
    Rendezvous(rendezvous::Slots),
    Ring(ring::Ring),
    Maglev(maglev::Entries),
}

impl Table {
    /// A table of `owners`, in any order. At most [`OWNERS_MAX`] of them, the ones of the smallest seeds, own keys.
    ///
    /// With `previous` it is that very table if nothing changed, and is built from it if little did.
    pub fn new(
        kind: HashTable,
        mut owners: Vec<Owner>,
        previous: Option<&Arc<Table>>,
    ) -> Arc<Table> {
        owners.sort_by(|a, b| a.seed.cmp(&b.seed).then(a.weight.total_cmp(&b.weight)));
        owners.truncate(OWNERS_MAX);
        let previous = previous.filter(|table| table.kind == kind);
        if let Some(table) = previous.filter(|table| table.owners == owners) {
            return Arc::clone(table);
        }
        let before = previous.and_then(|table| {
            if table.is_built() {
                Some(Arc::clone(table))
            } else {
                let before = table.before.lock();
                before.unwrap_or_else(PoisonError::into_inner).clone()
            }
        });
        Arc::new(Table {
            kind,
            weight: owners.iter().map(|owner| owner.weight).sum(),
            owners,
            built: OnceLock::new(),
            before: Mutex::new(before),
        })
    }

    /// Whether [`Table::build`] is done.
    pub fn is_built(&self) -> bool {
        self.built.get().is_some()
    }

    /// Whether a lookup says the same before [`Table::build`] is done as after it, at a higher price; else it does that
    /// work itself.
    pub fn answers_unbuilt(&self) -> bool {
        self.kind == HashTable::Rendezvous
    }

    /// Does the work that makes a lookup one read. Until then a rendezvous table answers the same from all its
    /// owners, and the others are built by whoever asks first.
    pub fn build(&self) {
        self.get();
        // Whoever built it from that table is done with it.
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        *before = None;
    }

    fn get(&self) -> &Built {
        self.built.get_or_init(|| match self.kind {
            HashTable::Rendezvous => {
                let before = self.before.lock();
                let before = before.unwrap_or_else(PoisonError::into_inner).clone();
                let known = before.as_deref().and_then(|table| match table.built.get() {
                    Some(Built::Rendezvous(slots)) => Some((&table.owners[..], slots)),
                    _ => None,
                });
                Built::Rendezvous(rendezvous::Slots::new(&self.owners, known))
            }
            HashTable::Ring => Built::Ring(ring::Ring::new(&self.owners)),
            HashTable::Maglev => Built::Maglev(maglev::Entries::new(&self.owners)),
        })
    }

    /// The number of the owner of `key`: its place among [`Table::owners`]; `None` if there are no owners.
    #[inline]
    pub fn owner(&self, key: u64) -> Option<usize> {
        self.find(key, |_| true)
    }

    /// The first owner of `key` that `open` takes, in the order in which they own it. `open` may be asked about one
    /// of them more than once.
    #[inline]
    pub fn find(&self, key: u64, mut open: impl FnMut(usize) -> bool) -> Option<usize> {
        let first = self.built.get().map_or(NOBODY, |built| match built {
            Built::Rendezvous(slots) => slots.first(key),
            Built::Ring(ring) => ring.first(key),
            Built::Maglev(entries) => entries.first(key),
        });
        // Nearly always it ends here.
        if first != NOBODY && open(usize::from(first)) {
            return Some(usize::from(first));
        }
        self.search(key, open)
    }

    /// The same whoever comes first, built or not.
    fn search(&self, key: u64, mut open: impl FnMut(usize) -> bool) -> Option<usize> {
        if self.owners.is_empty() {
            return None;
        }
        if self.answers_unbuilt() && !self.is_built() {
            return rendezvous::best(&self.owners, key, open);
        }
        // To learn from every place of a ring or of Maglev's table that nobody is in takes a thousand times as long.
        if !self.answers_unbuilt() && !(0..self.owners.len()).any(&mut open) {
            return None;
        }
        match self.get() {
            Built::Rendezvous(slots) => {
                let stored = slots.owners(key);
                let mut owners = stored.iter().filter(|owner| **owner != NOBODY);
                match owners.find(|owner| open(usize::from(**owner))) {
                    Some(owner) => Some(usize::from(*owner)),
                    None if self.owners.len() <= stored.len() => None,
                    None => rendezvous::best(&self.owners, key, open),
                }
            }
            Built::Ring(ring) => ring.find(key, open),
            Built::Maglev(entries) => entries.find(key, open),
        }
    }

    /// The first `count` owners of `key`, in their order.
    pub fn order(&self, key: u64, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = Vec::new();
        while order.len() < count
            && let Some(next) = self.find(key, |owner| !order.contains(&owner))
        {
            order.push(next);
        }
        order
    }

    /// The owners, by seed.
    pub fn owners(&self) -> &[Owner] {
        &self.owners
    }

    /// The share of the keys that owner number `owner` should have, 0 to 1.
    pub fn share(&self, owner: usize) -> f64 {
        self.owners[owner].weight / self.weight
    }
}

#[cfg(test)]
mod tests;
