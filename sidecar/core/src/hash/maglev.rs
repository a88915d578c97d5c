//! Maglev's table: owners take turns in claiming entries, each along a way of its own.
//!
//! Not here: what becomes of an owner that is out. A change of owners moves a few keys more than it must; the table
//! is small, and the shares are even (Eisenbud et al., 2016; weights as Envoy takes them, by turns missed).

use super::{
    NOBODY, Owner,
    function::{mix, nth},
};

/// Entries of every table: a prime, so that every step leads through all of them.
pub const ENTRIES: usize = 65_537;

/// Whose each entry is.
#[derive(Debug)]
pub(super) struct Entries(Box<[u16]>);

/// One owner's way through the entries.
struct Way {
    at: usize,
    step: usize,
    /// Turns it is entitled to, less those it had, in parts of the heaviest owner's.
    credit: f64,
}

impl Entries {
    pub fn new(owners: &[Owner]) -> Entries {
        let mut entries = vec![NOBODY; ENTRIES];
        let heaviest = owners.iter().map(|o| o.weight).fold(0.0, f64::max);
        let way = |owner: &Owner| Way {
            at: (mix(owner.seed ^ nth(0)) % ENTRIES as u64) as usize,
            step: (mix(owner.seed ^ nth(1)) % (ENTRIES as u64 - 1)) as usize + 1,
            credit: 0.0,
        };
        let mut ways: Vec<Way> = owners.iter().map(way).collect();
        let mut left = if owners.is_empty() { 0 } else { ENTRIES };
        while left > 0 {
            for (number, (way, owner)) in ways.iter_mut().zip(owners).enumerate() {
                way.credit += owner.weight / heaviest;
                if way.credit < 1.0 || left == 0 {
                    continue;
                }
                way.credit -= 1.0;
                while entries[way.at] != NOBODY {
                    way.at = (way.at + way.step) % ENTRIES;
                }
                entries[way.at] = number as u16;
                left -= 1;
            }
        }
        Entries(entries.into())
    }

    /// Whose the key's entry is; [`NOBODY`] if there are no owners.
    #[inline]
    pub fn first(&self, key: u64) -> u16 {
        self.0[(key % ENTRIES as u64) as usize]
    }

    /// The first owner from the key's entry on that `open` takes.
    pub fn find(&self, key: u64, mut open: impl FnMut(usize) -> bool) -> Option<usize> {
        let (before, after) = self.0.split_at((key % ENTRIES as u64) as usize);
        let owners = after.iter().chain(before);
        owners
            .map(|owner| usize::from(*owner))
            .find(|owner| open(*owner))
    }
}
