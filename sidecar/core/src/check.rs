//! What a row of active checks comes to: so many passes in a row and it is well, so many failures and it is not.
//!
//! Not here: running a check, and when the next one is due (the sidecar's `active_check.rs`).

use mesh_proto::record::{Health, InstanceState};

/// Counts results in a row of one instance and tells what they come to.
///
/// Before the first `rise` is met the instance is warming: nobody is offered an application that
/// never showed that it works.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    rise: u32,
    fall: u32,
    standing: Standing,
    /// The newest results that agree with each other.
    row: Row,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Neither `rise` nor `fall` was met yet.
    Untold,
    /// `fall` was met before any `rise`.
    NeverWell,
    /// The last threshold met was `rise`.
    Well,
    /// It was well once; then `fall` was met.
    Ill,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Row {
    Passes(u32),
    Failures(u32),
}

impl Verdict {
    /// Nothing is known yet. A threshold of 0 counts as 1.
    pub fn new(rise: u32, fall: u32) -> Verdict {
        Verdict {
            rise: rise.max(1),
            fall: fall.max(1),
            standing: Standing::Untold,
            row: Row::Passes(0),
        }
    }

    /// Nothing checks it: it is taken to be well at once.
    pub fn unchecked() -> Verdict {
        Verdict {
            standing: Standing::Well,
            ..Verdict::new(1, 1)
        }
    }

    /// The same standing under new thresholds, so that a reload takes nobody out.
    pub fn with_thresholds(&self, rise: u32, fall: u32) -> Verdict {
        Verdict {
            standing: self.standing,
            ..Verdict::new(rise, fall)
        }
    }

    /// Takes one result in. True if health or state is another one now.
    pub fn record(&mut self, passed: bool) -> bool {
        let before = self.standing;
        self.row = match (self.row, passed) {
            (Row::Passes(n), true) => Row::Passes(n.saturating_add(1)),
            (Row::Failures(n), false) => Row::Failures(n.saturating_add(1)),
            (_, true) => Row::Passes(1),
            (_, false) => Row::Failures(1),
        };
        match self.row {
            Row::Passes(n) if n >= self.rise => self.standing = Standing::Well,
            Row::Failures(n) if n >= self.fall => {
                self.standing = match before {
                    Standing::Well | Standing::Ill => Standing::Ill,
                    Standing::Untold | Standing::NeverWell => Standing::NeverWell,
                }
            }
            Row::Passes(_) | Row::Failures(_) => {}
        }
        (self.health(), self.state()) != (told_as(before), state_of(before))
    }

    /// Whether it was well at least once: until then checks follow each other quickly.
    pub fn was_well(&self) -> bool {
        matches!(self.standing, Standing::Well | Standing::Ill)
    }

    /// What the results come to. Never `Warning`: no check built so far tells half measures.
    pub fn health(&self) -> Health {
        told_as(self.standing)
    }

    /// Warming before the first `rise`, then up; draining is nothing that a check could say.
    pub fn state(&self) -> InstanceState {
        state_of(self.standing)
    }
}

fn told_as(standing: Standing) -> Health {
    match standing {
        Standing::Well => Health::Passing,
        Standing::Untold | Standing::NeverWell | Standing::Ill => Health::Failing,
    }
}

fn state_of(standing: Standing) -> InstanceState {
    match standing {
        Standing::Untold | Standing::NeverWell => InstanceState::Warming,
        Standing::Well | Standing::Ill => InstanceState::Up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Health::{Failing, Passing};
    use InstanceState::{Up, Warming};

    /// `+` passes, `-` fails.
    fn after(rise: u32, fall: u32, results: &str) -> (Health, InstanceState) {
        let mut verdict = Verdict::new(rise, fall);
        for result in results.chars() {
            verdict.record(result == '+');
        }
        (verdict.health(), verdict.state())
    }

    #[test]
    fn results_in_a_row_come_to_a_verdict() {
        let table = [
            (2, 3, "", (Failing, Warming)),
            (2, 3, "+", (Failing, Warming)),
            (2, 3, "++", (Passing, Up)),
            (2, 3, "+-+", (Failing, Warming)),
            (2, 3, "+-++", (Passing, Up)),
            (2, 3, "---", (Failing, Warming)),
            (2, 3, "-----++", (Passing, Up)),
            (2, 3, "++--", (Passing, Up)),
            (2, 3, "++--+--", (Passing, Up)),
            (2, 3, "++---", (Failing, Up)),
            (2, 3, "++---+", (Failing, Up)),
            (2, 3, "++---+-+", (Failing, Up)),
            (2, 3, "++---++", (Passing, Up)),
            (1, 1, "+-", (Failing, Up)),
            (1, 1, "+-+", (Passing, Up)),
            (0, 0, "", (Failing, Warming)),
            (0, 0, "+", (Passing, Up)),
        ];
        for (rise, fall, results, expected) in table {
            assert_eq!(
                after(rise, fall, results),
                expected,
                "rise {rise}, fall {fall}, results {results:?}"
            );
        }
    }

    #[test]
    fn only_a_change_is_told() {
        let mut verdict = Verdict::new(2, 3);
        let told: Vec<bool> = "---++++---+++"
            .chars()
            .map(|result| verdict.record(result == '+'))
            .collect();
        let expected: Vec<bool> = "....x....x.x.".chars().map(|mark| mark == 'x').collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn new_thresholds_take_nobody_out() {
        let mut verdict = Verdict::new(1, 1);
        verdict.record(true);
        let mut verdict = verdict.with_thresholds(5, 2);
        assert_eq!((verdict.health(), verdict.state()), (Passing, Up));
        assert!(!verdict.record(false));
        assert!(verdict.record(false));
        assert_eq!((verdict.health(), verdict.state()), (Failing, Up));
    }

    #[test]
    fn what_nothing_checks_is_well_at_once() {
        let verdict = Verdict::unchecked();
        assert_eq!((verdict.health(), verdict.state()), (Passing, Up));
    }
}
