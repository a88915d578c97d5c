//! Rendezvous by weight: every owner draws a lot for every slot, and the best lots own it.
//!
//! Not here: what becomes of an owner that is out. The slots are a fixed number, so keys move only with the owners
//! (Thaler and Ravishankar, 1998; by weight: Schindelhauer and Schomaker, 2005).

use super::{
    NOBODY, Owner,
    function::{minus_ln, mix, nth},
};

/// Slots of every table, never derived from the number of owners: another number would move nearly every key.
pub const SLOTS: usize = 1 << SLOT_BITS;

const SLOT_BITS: u32 = 18;

/// Owners stored for each slot: the next two are asked when the first is out or busy.
const STORED: usize = 3;

/// The stored owners of every slot. Nearly every lookup ends with the best one, so those stand apart: half a megabyte
/// stays in a core's cache where three times as much would not.
#[derive(Debug)]
pub(super) struct Slots {
    best: Box<[u16]>,
    /// Who comes after it, in order.
    next: Box<[[u16; STORED - 1]]>,
}

/// The best lots of one slot so far, best first.
type Best = [(f64, u16); STORED];

const NONE_YET: Best = [(f64::INFINITY, NOBODY); STORED];

impl Slots {
    /// The slots of `owners`, who are in the order of their seeds; `known` are those of other owners, from which
    /// the difference is worked out if that is less.
    pub fn new(owners: &[Owner], known: Option<(&[Owner], &Slots)>) -> Slots {
        let change = known.map(|(before, slots)| (Change::new(before, owners), slots));
        match change.filter(|(change, _)| change.is_small(owners.len())) {
            Some((change, slots)) => change.applied(slots, owners),
            None => Slots::of((0..SLOTS as u64).map(|slot| all(owners, slot))),
        }
    }

    fn of(owners: impl Iterator<Item = [u16; STORED]>) -> Slots {
        let (best, next): (Vec<u16>, Vec<[u16; STORED - 1]>) =
            owners.map(|[best, next @ ..]| (best, next)).unzip();
        Slots {
            best: best.into(),
            next: next.into(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = [u16; STORED]> {
        let slots = self.best.iter().zip(&self.next);
        slots.map(|(best, [second, third])| [*best, *second, *third])
    }

    /// The owner of `key`; [`NOBODY`] if there are none.
    #[inline]
    pub fn first(&self, key: u64) -> u16 {
        self.best[slot_of(key) as usize]
    }

    pub fn owners(&self, key: u64) -> [u16; STORED] {
        let slot = slot_of(key) as usize;
        let [second, third] = self.next[slot];
        [self.best[slot], second, third]
    }
}

/// The best owner of `key` that `open` takes, worked out from all of them.
pub(super) fn best(
    owners: &[Owner],
    key: u64,
    mut open: impl FnMut(usize) -> bool,
) -> Option<usize> {
    let slot = slot_of(key);
    let open = (0..owners.len()).filter(|owner| open(*owner));
    let lots = open.map(|owner| (lot(&owners[owner], slot), owner));
    let best = lots.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    best.map(|(_, owner)| owner)
}

#[inline]
fn slot_of(key: u64) -> u64 {
    key >> (u64::BITS - SLOT_BITS)
}

/// An owner's lot for a slot: exponential with a mean of 1 / weight, and the smallest wins, so that everyone wins
/// in proportion to its weight.
fn lot(owner: &Owner, slot: u64) -> f64 {
    minus_ln(draw(owner, slot)) / owner.weight
}

/// Above 0, at most 1.
fn draw(owner: &Owner, slot: u64) -> f64 {
    const UNIT: f64 = 1.0 / (1_u64 << 53) as f64;
    ((mix(owner.seed ^ nth(slot)) >> 11) + 1) as f64 * UNIT
}

fn all(owners: &[Owner], slot: u64) -> [u16; STORED] {
    let mut best = NONE_YET;
    for number in 0..owners.len() {
        enter(&mut best, owners, number, slot);
    }
    best.map(|(_, owner)| owner)
}

/// Enters the lot of owner `number` if it is among the best.
fn enter(best: &mut Best, owners: &[Owner], number: usize, slot: u64) {
    let owner = &owners[number];
    let drawn = draw(owner, slot);
    // −ln x is at least 1 − x: most are told to be too late without a logarithm.
    if 1.0 - drawn > best[STORED - 1].0 * owner.weight {
        return;
    }
    let mut entry = (minus_ln(drawn) / owner.weight, number as u16);
    for place in best {
        if entry.0 < place.0 || (entry.0 == place.0 && entry.1 < place.1) {
            std::mem::swap(place, &mut entry);
        }
    }
}

/// What differs between two lists of owners.
struct Change {
    /// New number by old one; [`NOBODY`] for whom a slot has to be worked out anew: he is gone or lighter.
    renumbered: Vec<u16>,
    /// New numbers of those that may win slots: they are new or heavier.
    entrants: Vec<usize>,
    gone: usize,
}

impl Change {
    fn new(before: &[Owner], after: &[Owner]) -> Change {
        let mut change = Change {
            renumbered: Vec::with_capacity(before.len()),
            entrants: Vec::new(),
            gone: 0,
        };
        let mut next = 0;
        for old in before {
            while next < after.len() && after[next].seed < old.seed {
                change.entrants.push(next);
                next += 1;
            }
            let stayed = after.get(next).filter(|new| new.seed == old.seed);
            let number = match stayed {
                Some(new) if new.weight >= old.weight => next as u16,
                _ => NOBODY,
            };
            change.gone += usize::from(number == NOBODY);
            if let Some(new) = stayed {
                if new.weight != old.weight {
                    change.entrants.push(next);
                }
                next += 1;
            }
            change.renumbered.push(number);
        }
        change.entrants.extend(next..after.len());
        change
    }

    /// Whether working out the difference is less than working out everything: an entrant draws for every slot,
    /// one that is gone leaves three in every so many slots for which all draw.
    fn is_small(&self, owners: usize) -> bool {
        self.entrants.len() + STORED * (self.gone + 1) < owners
    }

    fn applied(&self, before: &Slots, owners: &[Owner]) -> Slots {
        let slots = before.iter().zip(0_u64..);
        Slots::of(slots.map(|(old, slot)| self.slot(&old, owners, slot)))
    }

    fn slot(&self, old: &[u16; STORED], owners: &[Owner], slot: u64) -> [u16; STORED] {
        let mut best = NONE_YET;
        for number in old.iter().filter(|number| **number != NOBODY) {
            match self.renumbered[usize::from(*number)] {
                NOBODY => return all(owners, slot),
                number => enter(&mut best, owners, usize::from(number), slot),
            }
        }
        for number in &self.entrants {
            if best.iter().all(|(_, owner)| usize::from(*owner) != *number) {
                enter(&mut best, owners, *number, slot);
            }
        }
        best.map(|(_, owner)| owner)
    }
}
