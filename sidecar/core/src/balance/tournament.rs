//! Who costs least, as a tournament: a changed cost plays again only the matches on its way to the final.
//!
//! Not here: what a cost is made of (the file of the policy), and arrays too long for it (`costs.rs`).

use super::round_robin::fraction;

/// Most contestants: their numbers fit [`PLACE_BITS`].
pub(super) const CONTESTANTS_MAX: usize = 1 << PLACE_BITS;

const PLACE_BITS: u32 = 10;

/// Turns that can be told apart.
const TURNS_MAX: u32 = 1 << (u32::BITS - PLACE_BITS);

/// Nobody: dearer than whom no pick may choose.
const NOBODY: Entry = Entry(u64::MAX);

/// A contestant's cost, its turn and its place, from the upper half down: comparing entries compares costs (the bits of
/// positive numbers are in the order of the numbers), and among equal ones the turns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Entry(u64);

impl Entry {
    #[inline]
    fn new(cost: f32, turn: u32, place: usize) -> Entry {
        Entry(u64::from(cost.to_bits()) << 32 | u64::from(turn << PLACE_BITS) | place as u64)
    }

    #[inline]
    fn cost(self) -> f32 {
        f32::from_bits((self.0 >> 32) as u32)
    }

    #[inline]
    fn turn(self) -> u32 {
        self.0 as u32 >> PLACE_BITS
    }

    #[inline]
    fn place(self) -> usize {
        self.0 as usize & (CONTESTANTS_MAX - 1)
    }
}

/// Among those that cost the same goes first who has waited longest for a turn. By chance would do as well, but needs
/// dice for each pick; and by who was chosen longest ago would be whoever is slow.
#[derive(Debug)]
pub(super) struct Tournament {
    /// The winner of match `i` stands at `i`, those who played it at `2 * i` and `2 * i + 1`; the final is match 1, and
    /// from `first` on stand the contestants.
    winners: Vec<Entry>,
    first: usize,
    /// The next turn.
    turn: u32,
}

impl Tournament {
    /// `count` contestants that no pick may choose yet, their first turns in an order that `salt` shuffles.
    pub fn new(count: usize, salt: u64) -> Tournament {
        let first = count.next_power_of_two();
        let mut winners = vec![NOBODY; 2 * first];
        for place in 0..count {
            let dice = fraction(salt.wrapping_add(place as u64));
            let turn = (dice * CONTESTANTS_MAX as f64) as u32;
            winners[first + place] = Entry::new(f32::INFINITY, turn, place);
        }
        Tournament {
            winners,
            first,
            turn: CONTESTANTS_MAX as u32,
        }
    }

    /// The cost of the one at `place`.
    #[inline]
    pub fn of(&self, place: usize) -> f32 {
        self.winners[self.first + place].cost()
    }

    /// Changes a cost; [`Tournament::settle`] has to follow before the next pick.
    #[inline]
    pub fn set(&mut self, place: usize, cost: f32) {
        let entry = &mut self.winners[self.first + place];
        *entry = Entry::new(cost, entry.turn(), place);
    }

    /// The same for one that waits for a turn from now on.
    #[inline]
    pub fn queue(&mut self, place: usize, cost: f32) {
        self.winners[self.first + place] = Entry::new(cost, self.next_turn(), place);
    }

    #[inline]
    fn next_turn(&mut self) -> u32 {
        if self.turn == TURNS_MAX {
            self.forget_old_turns();
        }
        self.turn += 1;
        self.turn - 1
    }

    /// Plays all matches again.
    pub fn settle(&mut self) {
        for at in (1..self.first).rev() {
            self.winners[at] = self.winners[2 * at].min(self.winners[2 * at + 1]);
        }
    }

    /// The one at `place` was chosen, which makes its cost another one.
    #[inline]
    pub fn chosen(&mut self, place: usize, cost: f32) {
        let mut winner = Entry::new(cost, self.next_turn(), place);
        let mut at = self.first + place;
        self.winners[at] = winner;
        while at > 1 {
            winner = winner.min(self.winners[at ^ 1]);
            at /= 2;
            self.winners[at] = winner;
        }
    }

    /// The place of the least cost; `None` if all are infinite.
    #[inline]
    pub fn cheapest(&self) -> Option<usize> {
        let winner = self.winners[1];
        (winner < Entry::new(f32::INFINITY, 0, 0)).then(|| winner.place())
    }

    /// Takes over whose turn it was: `places` tells the old place of each new one.
    pub fn carry(&mut self, before: &Tournament, places: impl Iterator<Item = Option<usize>>) {
        self.turn = before.turn;
        for (place, old) in places.enumerate() {
            if let Some(old) = old {
                let turn = before.winners[before.first + old].turn();
                self.winners[self.first + place] = Entry::new(f32::INFINITY, turn, place);
            }
        }
    }

    /// Once in millions of turns: whoever waits since the earlier half of them ties.
    #[cold]
    fn forget_old_turns(&mut self) {
        for entry in self.winners[self.first..]
            .iter_mut()
            .filter(|e| **e != NOBODY)
        {
            let turn = entry.turn().saturating_sub(TURNS_MAX / 2);
            *entry = Entry::new(entry.cost(), turn, entry.place());
        }
        self.turn = TURNS_MAX / 2;
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equals(count: usize) -> Tournament {
        let mut tournament = Tournament::new(count, 7);
        (0..count).for_each(|place| tournament.set(place, 1.0));
        tournament.settle();
        tournament
    }

    fn next(tournament: &mut Tournament) -> usize {
        let place = tournament.cheapest().expect("all are open");
        tournament.chosen(place, 1.0);
        place
    }

    #[test]
    fn turns_go_on_when_their_numbers_begin_anew() {
        let mut tournament = equals(5);
        let order: Vec<usize> = (0..5).map(|_| next(&mut tournament)).collect();
        // As if millions of picks had been made.
        tournament.turn = TURNS_MAX - 3;
        for place in &order {
            tournament.chosen(*place, 1.0);
        }
        assert!(tournament.turn < TURNS_MAX);
        let again: Vec<usize> = (0..5).map(|_| next(&mut tournament)).collect();
        assert_eq!(again, order);
    }

    #[test]
    fn turns_are_carried_to_where_their_owners_stand_now() {
        let mut before = equals(4);
        let order: Vec<usize> = (0..4).map(|_| next(&mut before)).collect();
        let mut after = Tournament::new(5, 99);
        // Place 0 is new, and everybody else is one further.
        after.carry(&before, (0..5_usize).map(|place| place.checked_sub(1)));
        (0..5).for_each(|place| after.set(place, 1.0));
        after.settle();
        assert_eq!(next(&mut after), 0, "it was never chosen");
        let rest: Vec<usize> = (0..4).map(|_| next(&mut after) - 1).collect();
        assert_eq!(rest, order);
    }
}
