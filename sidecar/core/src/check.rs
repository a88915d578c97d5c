//! What a row of active checks comes to: so many results in a row that are better or worse, and the health changes.
//!
//! Not here: running a check, and when the next one is due (the sidecar's `active_check/`).

use mesh_proto::record::{Health, InstanceState};

/// Counts results in a row of one instance and tells what they come to.
///
/// Before the first `rise` is met the instance is warming: nobody is offered an application that
/// never showed that it works. A warning is good enough to be offered, and not as good as a pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    rise: u32,
    fall: u32,
    standing: Standing,
    row: Row,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Neither `rise` nor `fall` was met yet.
    Untold,
    /// `fall` was met before any `rise`.
    NeverWell,
    /// It was well once, and this is what the last threshold met made of it.
    Known(Health),
}

/// The newest results that all speak for a change in the same direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Row {
    Empty,
    /// So many better than the standing, and the worst of them.
    Better(u32, Health),
    /// So many worse, and the best of them.
    Worse(u32, Health),
}

impl Verdict {
    /// Nothing is known yet. A threshold of 0 counts as 1.
    pub fn new(rise: u32, fall: u32) -> Verdict {
        Verdict {
            rise: rise.max(1),
            fall: fall.max(1),
            standing: Standing::Untold,
            row: Row::Empty,
        }
    }

    /// Nothing checks it: it is taken to be well at once.
    pub fn unchecked() -> Verdict {
        Verdict {
            standing: Standing::Known(Health::Passing),
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
    pub fn record(&mut self, result: Health) -> bool {
        let before = self.standing;
        self.row = self.row.with(result, before);
        match self.row {
            Row::Better(n, worst) if n >= self.rise => self.settle(Standing::Known(worst)),
            Row::Worse(n, best) if n >= self.fall => self.settle(match before {
                Standing::Known(_) => Standing::Known(best),
                Standing::Untold | Standing::NeverWell => Standing::NeverWell,
            }),
            Row::Empty | Row::Better(..) | Row::Worse(..) => {}
        }
        (self.health(), self.state()) != (told_as(before), state_of(before))
    }

    fn settle(&mut self, standing: Standing) {
        self.standing = standing;
        self.row = Row::Empty;
    }

    /// Whether it was well at least once: until then checks follow each other quickly.
    pub fn was_well(&self) -> bool {
        matches!(self.standing, Standing::Known(_))
    }

    /// What the results come to.
    pub fn health(&self) -> Health {
        told_as(self.standing)
    }

    /// Warming before the first `rise`, then up; draining is nothing that a check could say.
    pub fn state(&self) -> InstanceState {
        state_of(self.standing)
    }
}

impl Row {
    fn with(self, result: Health, standing: Standing) -> Row {
        // Where nothing is known yet, a failure is news as much as anything better is.
        let standard = match standing {
            Standing::Untold => rank(Health::Failing) + 1,
            Standing::NeverWell => rank(Health::Failing),
            Standing::Known(health) => rank(health),
        };
        let (better, worse) = (rank(result) > standard, rank(result) < standard);
        match self {
            Row::Better(n, worst) if better => {
                let worst = if rank(result) < rank(worst) {
                    result
                } else {
                    worst
                };
                Row::Better(n.saturating_add(1), worst)
            }
            Row::Worse(n, best) if worse => {
                let best = if rank(result) > rank(best) {
                    result
                } else {
                    best
                };
                Row::Worse(n.saturating_add(1), best)
            }
            _ if better => Row::Better(1, result),
            _ if worse => Row::Worse(1, result),
            _ => Row::Empty,
        }
    }
}

/// Steps of two, so that there is room for a standing between them.
fn rank(health: Health) -> u8 {
    match health {
        Health::Failing => 0,
        Health::Warning => 2,
        Health::Passing => 4,
    }
}

fn told_as(standing: Standing) -> Health {
    match standing {
        Standing::Known(health) => health,
        Standing::Untold | Standing::NeverWell => Health::Failing,
    }
}

fn state_of(standing: Standing) -> InstanceState {
    match standing {
        Standing::Untold | Standing::NeverWell => InstanceState::Warming,
        Standing::Known(_) => InstanceState::Up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Health::{Failing, Passing, Warning};
    use InstanceState::{Up, Warming};

    /// `+` passes, `~` warns, `-` fails.
    fn result(letter: char) -> Health {
        match letter {
            '+' => Passing,
            '~' => Warning,
            _ => Failing,
        }
    }

    fn after(rise: u32, fall: u32, results: &str) -> (Health, InstanceState) {
        let mut verdict = Verdict::new(rise, fall);
        for letter in results.chars() {
            verdict.record(result(letter));
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
            (2, 3, "~~", (Warning, Up)),
            (2, 3, "+~", (Warning, Up)),
            (2, 3, "-~+", (Warning, Up)),
            (2, 3, "~~+", (Warning, Up)),
            (2, 3, "~~++", (Passing, Up)),
            (2, 3, "++~~", (Passing, Up)),
            (2, 3, "++~~+~~", (Passing, Up)),
            (2, 3, "++~~~", (Warning, Up)),
            (2, 3, "++-~-", (Warning, Up)),
            (2, 3, "++~~~---", (Failing, Up)),
            (2, 3, "++---~+", (Warning, Up)),
            (2, 3, "++---~+++", (Passing, Up)),
            (1, 1, "+~-~+", (Passing, Up)),
            (1, 1, "+~", (Warning, Up)),
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
        let told: Vec<bool> = "---++++---+++~~~++"
            .chars()
            .map(|letter| verdict.record(result(letter)))
            .collect();
        let expected: Vec<bool> = "....x....x.x...x.x"
            .chars()
            .map(|mark| mark == 'x')
            .collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn new_thresholds_take_nobody_out() {
        let mut verdict = Verdict::new(1, 1);
        verdict.record(Passing);
        let mut verdict = verdict.with_thresholds(5, 2);
        assert_eq!((verdict.health(), verdict.state()), (Passing, Up));
        assert!(!verdict.record(Failing));
        assert!(verdict.record(Failing));
        assert_eq!((verdict.health(), verdict.state()), (Failing, Up));
    }

    #[test]
    fn what_nothing_checks_is_well_at_once() {
        let verdict = Verdict::unchecked();
        assert_eq!((verdict.health(), verdict.state()), (Passing, Up));
    }
}
