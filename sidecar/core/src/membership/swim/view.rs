//! The part of a large mesh that foca looks at.
//!
//! Not here: what is known of everybody (`peers.rs`). foca goes through all its members for every packet and every draw.
//! Of up to [`VIEW_MAX`] it is handed all; of a larger mesh an even sample, so that each member is in as many views as
//! the next, and is probed as often as if everybody looked at everybody. Whoever speaks to us or is news comes in as a
//! guest and stays for a while; whoever is suspected or down stays for as long as foca has to know it.

use std::collections::{BTreeSet, VecDeque};

use foca::{State, Timer};
use mesh_proto::member::Member;
use rand::{
    RngExt,
    rngs::StdRng,
    seq::{IteratorRandom, SliceRandom},
};

use super::{Out, Swim};

/// Living members that foca looks at, guests left out: enough that everybody is in the views of many, and few enough
/// that to go through them takes about a microsecond.
pub const VIEW_MAX: usize = 1_024;

/// Guests that stay: as many come by in about half a minute.
const GUESTS_MAX: usize = 256;

/// A view that is short of so many is filled up.
const SHORT: usize = 32;

/// What foca looks at.
#[derive(Debug)]
pub(super) struct View {
    most: usize,
    /// Somebody is known whom foca does not know.
    is_partial: bool,
    /// In the order they came.
    guests: VecDeque<Guest>,
    rng: StdRng,
}

#[derive(Clone, Copy, Debug)]
struct Guest {
    id: u64,
    /// Nobody knew it before: it takes the place of another for good with the same chance as everybody had.
    is_new: bool,
}

impl View {
    pub fn new(rng: StdRng) -> View {
        View {
            most: VIEW_MAX,
            is_partial: false,
            guests: VecDeque::new(),
            rng,
        }
    }
}

impl Swim {
    /// Lets foca look at so many at most. For simulations of a few nodes that are to behave like many.
    pub fn narrow_view(&mut self, most: usize) {
        self.view.most = most;
    }

    /// Splits members into those that foca is to be handed and those that it need not look at: of the well ones that it
    /// does not know, as many as there is no room for, drawn evenly.
    pub(super) fn choose(
        &mut self,
        members: Vec<foca::Member<Member>>,
    ) -> (Vec<foca::Member<Member>>, Vec<foca::Member<Member>>) {
        let room = self.view.most.saturating_sub(self.foca.num_members());
        if members.len() <= room {
            return (members, Vec::new());
        }
        let all = self.foca.iter_membership_state();
        let known: BTreeSet<u64> = all.map(|member| member.id().id).collect();
        let (mut inside, mut strangers): (Vec<_>, Vec<_>) = members
            .into_iter()
            .partition(|member| member.state() != State::Alive || known.contains(&member.id().id));
        if strangers.len() <= room {
            inside.append(&mut strangers);
            return (inside, strangers);
        }
        let (drawn, rest) = strangers.partial_shuffle(&mut self.view.rng, room);
        inside.extend_from_slice(drawn);
        let outside = rest.to_vec();
        self.view.is_partial = true;
        (inside, outside)
    }

    /// Somebody became a member, or one again.
    pub(super) fn greet(&mut self, id: u64) {
        if self.foca.num_members() > self.view.most {
            self.view.guests.push_back(Guest { id, is_new: true });
        }
    }

    /// Shows foca somebody it has to do with, as it is known here; otherwise foca would take it for news.
    pub fn invite(&mut self, known: foca::Member<Member>) {
        let id = known.id().id;
        if !self.view.is_partial || self.find(id).is_some() {
            return;
        }
        self.show(known);
        self.view.guests.push_back(Guest { id, is_new: false });
    }

    /// Shows foca somebody for good.
    pub fn admit(&mut self, known: foca::Member<Member>) {
        if self.find(known.id().id).is_none() {
            self.show(known);
        }
    }

    /// Whether foca has lost so many of its members that others should take their place.
    pub fn is_short(&self) -> bool {
        self.view.is_partial && self.foca.num_members() + SHORT <= self.view.most
    }

    /// Lets guests go that have been here for long, where foca has enough members. `known` are known in all.
    pub fn dismiss(&mut self, known: usize) {
        for _ in GUESTS_MAX..self.view.guests.len() {
            if self.foca.num_members() <= self.view.most {
                break;
            }
            let Some(guest) = self.view.guests.pop_front() else {
                break;
            };
            let share = self.view.most as f64 / known.max(1) as f64;
            let leaver = if guest.is_new && self.view.rng.random_bool(share.min(1.0)) {
                let well = (self.foca.iter_membership_state())
                    .filter(|member| member.state() == State::Alive);
                well.choose(&mut self.view.rng).cloned()
            } else {
                self.find(guest.id).cloned()
            };
            match leaver.as_ref().map(foca::Member::state) {
                Some(State::Alive)
                    if self.probe_target() != leaver.as_ref().map(|leaver| leaver.id().id) =>
                {
                    leaver.into_iter().for_each(|leaver| self.see_off(&leaver));
                }
                // foca forgets the dead by itself.
                None | Some(State::Down) => {}
                Some(_) => self.view.guests.push_back(Guest {
                    is_new: false,
                    ..guest
                }),
            }
        }
    }

    fn probe_target(&self) -> Option<u64> {
        self.probe.map(|probe| probe.target.id)
    }

    fn find(&self, id: u64) -> Option<&foca::Member<Member>> {
        let mut all = self.foca.iter_membership_state();
        all.find(|member| member.id().id == id)
    }

    /// What foca says about it is nothing new to anybody.
    fn show(&mut self, known: foca::Member<Member>) {
        let mut unheard = Out::default();
        let _ = (self.foca).apply_many([known].into_iter(), false, &mut unheard);
        self.out.timers.append(&mut unheard.timers);
    }

    /// foca forgets nobody but the dead, so whoever is to go is dead for it, for the shortest moment.
    fn see_off(&mut self, member: &foca::Member<Member>) {
        let mut unheard = Out::default();
        let gone = foca::Member::new(*member.id(), member.incarnation(), State::Down);
        let _ = (self.foca).apply_many([gone].into_iter(), false, &mut unheard);
        let forgotten = Timer::RemoveDown(*member.id());
        let _ = self.foca.handle_timer(forgotten, &mut unheard);
        self.view.is_partial = true;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::{membership::Pace, moment::Moment};

    const NOW: Moment = Moment::from_millis(1_000);

    fn member(id: u64) -> Member {
        Member {
            id,
            address: ([10, 0, (id / 250) as u8, (id % 250) as u8], 7946).into(),
            bump: 1,
        }
    }

    fn swim(most: usize) -> Swim {
        let mut swim = Swim::new(member(0), Pace::FAST, StdRng::seed_from_u64(1));
        swim.narrow_view(most);
        swim
    }

    fn alive(ids: std::ops::Range<u64>) -> Vec<foca::Member<Member>> {
        ids.map(|id| foca::Member::alive(member(id))).collect()
    }

    #[test]
    fn of_many_an_even_sample_is_looked_at() {
        let mut views = vec![0; 201];
        for seed in 0..200 {
            let mut swim = Swim::new(member(0), Pace::FAST, StdRng::seed_from_u64(seed));
            swim.narrow_view(20);
            swim.apply(alive(1..201), false, NOW);
            assert_eq!((swim.active(), swim.take_outside().len()), (20, 180));
            for seen in swim.members() {
                views[seen.id().id as usize] += 1;
            }
        }
        // 20 on average; a share of 1 in 10,000 is beyond four deviations.
        assert!(
            views[1..].iter().all(|times| (3..=40).contains(times)),
            "{views:?}"
        );
    }

    #[test]
    fn a_guest_leaves_without_a_word_once_there_are_enough() {
        let mut swim = swim(20);
        swim.apply(alive(1..101), false, NOW);
        let outside = swim.take_outside();
        let mut touched = Vec::new();
        swim.take();
        swim.take_touched(&mut touched);
        let base: BTreeSet<u64> = swim.members().map(|member| member.id().id).collect();
        for _ in 0..10 {
            for known in &outside {
                swim.invite(known.clone());
            }
            // Strangers who come in by packet are guests as well.
            let fresh = foca::Member::alive(member(1_000));
            swim.apply(vec![fresh], true, NOW);
        }
        assert_eq!(swim.active(), 101, "there is room for so many guests");
        let many = GUESTS_MAX as u64;
        for known in alive(2_000..2_000 + many) {
            swim.invite(known);
        }
        swim.dismiss(101 + GUESTS_MAX);
        let most = 20 + GUESTS_MAX;
        // The place the newcomer took may have been a guest's, which then leaves before its turn.
        assert!((most - 1..=most).contains(&swim.active()));
        let left: BTreeSet<u64> = swim.members().map(|member| member.id().id).collect();
        assert!(
            base.difference(&left).count() <= 1,
            "none or one gave its place to the newcomer"
        );
        let (packets, news) = swim.take();
        assert!(packets.is_empty());
        assert_eq!(news.len(), 1, "only the newcomer is news: {news:?}");
    }

    #[test]
    fn a_suspect_guest_stays_and_a_lost_place_is_filled() {
        let mut swim = swim(20);
        swim.apply(alive(1..101), false, NOW);
        let outside = swim.take_outside();
        let suspect = *outside[0].id();
        swim.apply(
            vec![foca::Member::new(suspect, 0, State::Suspect)],
            true,
            NOW,
        );
        for known in alive(2_000..2_000 + 2 * GUESTS_MAX as u64) {
            swim.invite(known);
        }
        swim.dismiss(101);
        let seen = swim.find(suspect.id).map(foca::Member::state);
        assert_eq!(seen, Some(State::Suspect));
        assert!(!swim.is_short());
    }
}
