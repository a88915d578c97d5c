//! What the default policy has to reach in a scenario, and whether it does.
//!
//! Not here: the play, and how it is told (`starling sim balance`).

use super::{
    fleet::Way,
    play,
    scenario::Scenario,
    tally::{Figures, Tally},
};
use crate::policy::Balance;

/// One scenario played with several ways.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What was played.
    pub scenario: Scenario,
    /// What came of it, by way.
    pub results: Vec<(Way, Tally)>,
}

/// One target.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Verdict {
    /// What is measured.
    pub what: &'static str,
    /// What came of it.
    pub value: f64,
    /// The most it is asked to be.
    pub most: f64,
    /// Where that was never reached: the most it may be without having got worse.
    pub guard: Option<f64>,
}

impl Verdict {
    /// Whether it was reached.
    pub fn is_met(&self) -> bool {
        self.value <= self.most
    }

    /// Whether it was reached, or else has not got worse where it never was.
    pub fn is_kept(&self) -> bool {
        self.value <= self.guard.map_or(self.most, |guard| guard.max(self.most))
    }
}

impl Comparison {
    /// Plays `scenario` once with every way and every seed from `seed` on.
    pub fn play(scenario: Scenario, ways: &[Way], seed: u64, runs: u64) -> Comparison {
        let results = ways.iter().map(|way| {
            let mut tally = play(&scenario, *way, seed);
            for more in 1..runs {
                tally.add(play(&scenario, *way, seed + more));
            }
            (*way, tally)
        });
        Comparison {
            results: results.collect(),
            scenario,
        }
    }

    /// The numbers of one way, if it was played.
    pub fn figures(&self, way: Way) -> Option<Figures> {
        let found = self.results.iter().find(|(played, _)| *played == way);
        found.map(|(_, tally)| tally.figures())
    }

    /// p99 of the default policy as a multiple of that of `other`.
    pub fn p99_ratio(&self, other: Way) -> Option<f64> {
        let ours = self.figures(Way::Starling(Balance::LeastResponseTime))?;
        let theirs = self.figures(other)?;
        Some(ours.quantiles_ms[2] / theirs.quantiles_ms[2])
    }

    /// The targets that can be judged from what was played.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let targets = &self.scenario.targets;
        let ours = self.figures(Way::Starling(Balance::LeastResponseTime));
        let verdict = |what, value: Option<f64>, most: Option<f64>| {
            Some(Verdict {
                what,
                value: value?,
                most: most?,
                guard: None,
            })
        };
        let to_oracle = verdict(
            "p99 / oracle's",
            self.p99_ratio(Way::Oracle),
            targets.to_oracle,
        );
        let to_oracle = to_oracle.map(|verdict| Verdict {
            guard: targets.to_oracle_guard,
            ..verdict
        });
        let verdicts = [
            verdict(
                "p99 / Envoy's",
                self.p99_ratio(Way::Envoy),
                Some(targets.to_envoy),
            ),
            to_oracle,
            verdict(
                "share to the bad",
                ours.map(|f| f.bad_share),
                targets.bad_share,
            ),
            verdict("errors", ours.map(|f| f.errors), targets.errors),
        ];
        verdicts.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::balance::scenario::all;

    #[test]
    fn what_misses_its_target_all_along_is_kept_until_it_gets_worse() {
        let verdict = |value, guard| Verdict {
            what: "p99 / oracle's",
            value,
            most: 1.5,
            guard,
        };
        let said = |verdict: Verdict| (verdict.is_met(), verdict.is_kept());
        assert_eq!(said(verdict(1.4, None)), (true, true));
        assert_eq!(said(verdict(1.6, None)), (false, false));
        assert_eq!(said(verdict(1.6, Some(2.0))), (false, true));
        assert_eq!(said(verdict(2.1, Some(2.0))), (false, false));
    }

    #[test]
    fn six_scenarios_are_guarded_where_the_oracle_is_out_of_reach() {
        let all = all();
        let guarded = all.iter().filter(|s| s.targets.to_oracle_guard.is_some());
        let names: Vec<&str> = guarded.map(|scenario| scenario.name).collect();
        let tuned = ["all", "stalls", "flips"];
        let held_back = ["all_held_back", "stalls_held_back", "flips_held_back"];
        assert_eq!(names, [tuned, held_back].concat());
    }
}
