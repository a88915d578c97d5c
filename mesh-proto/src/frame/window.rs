//! The replay window: which of a sender's last counters were seen.
//!
//! Not here: whose counters they are, and whether a datagram is genuine (`datagram.rs`).

/// How far behind the newest counter a late datagram may be.
pub const REPLAY_WINDOW: u64 = 1_024;

const WORDS: usize = (REPLAY_WINDOW / 64) as usize;

/// Which of the last [`REPLAY_WINDOW`] counters were seen.
#[derive(Clone, Debug)]
pub(super) struct Window {
    newest: u64,
    seen: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Window {
        Window {
            newest: 0,
            seen: [0; WORDS],
        }
    }
}

impl Window {
    /// A window in which `newest` and everything before it counts as seen.
    pub fn above(newest: u64) -> Window {
        Window {
            newest,
            seen: [u64::MAX; WORDS],
        }
    }

    /// The highest counter seen.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    fn place(counter: u64) -> (usize, u64) {
        let slot = counter % REPLAY_WINDOW;
        ((slot / 64) as usize, 1 << (slot % 64))
    }

    /// Whether `counter` was not seen, and is not too old to tell.
    pub fn is_new(&self, counter: u64) -> bool {
        let (word, bit) = Window::place(counter);
        counter > self.newest
            || (self.newest - counter < REPLAY_WINDOW && self.seen[word] & bit == 0)
    }

    /// Notes `counter` as seen.
    pub fn mark(&mut self, counter: u64) {
        if counter > self.newest {
            // Everything between the old newest and this one leaves the window unseen.
            let gap = (counter - self.newest).min(REPLAY_WINDOW);
            for ahead in 0..gap {
                let (word, bit) = Window::place(counter - ahead);
                self.seen[word] &= !bit;
            }
            self.newest = counter;
        }
        let (word, bit) = Window::place(counter);
        self.seen[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Counters as a network delivers them: mostly near the newest, now and then far away, some of them twice.
    fn arrivals() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![
            8 => -40i64..40,
            2 => -(REPLAY_WINDOW as i64) - 3..REPLAY_WINDOW as i64 + 3,
            1 => -5_000i64..5_000,
        ];
        (1u64..10_000, proptest::collection::vec(step, 1..600)).prop_map(|(first, steps)| {
            let mut at = first;
            steps
                .into_iter()
                .map(|step| {
                    at = at.saturating_add_signed(step).max(1);
                    at
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn the_window_says_what_a_list_of_all_counters_would(counters in arrivals()) {
            let mut window = Window::default();
            let mut seen = BTreeSet::new();
            for counter in counters {
                let newest = seen.last().copied().unwrap_or(0);
                let is_old = counter + REPLAY_WINDOW <= newest;
                prop_assert_eq!(window.is_new(counter), !is_old && !seen.contains(&counter), "{}", counter);
                if window.is_new(counter) {
                    window.mark(counter);
                    seen.insert(counter);
                    prop_assert!(!window.is_new(counter));
                    prop_assert_eq!(Some(&window.newest()), seen.last());
                }
            }
        }

        #[test]
        fn nothing_at_or_below_a_floor_is_new(floor: u64, below in 0u64..3_000, above in 1u64..3_000) {
            let mut window = Window::above(floor);
            prop_assert!(!window.is_new(floor.saturating_sub(below)));
            if let Some(next) = floor.checked_add(above) {
                prop_assert!(window.is_new(next));
                window.mark(next);
                prop_assert!(!window.is_new(next));
                prop_assert!(!window.is_new(floor.saturating_sub(below)));
            }
        }
    }

    #[test]
    fn the_last_counter_of_all_is_not_the_end_of_the_window() {
        let mut window = Window::above(u64::MAX - 1);
        window.mark(u64::MAX);
        assert!(!window.is_new(u64::MAX) && !window.is_new(0));
    }
}
