//! The laws of picking: weights, distinctness, tiers, canaries, determinism.

use super::*;
use crate::staging::{Stage, at, dice};

const ALL: [Balance; 5] = [
    Balance::LeastResponseTime,
    Balance::RoundRobin,
    Balance::LeastConnections,
    Balance::PowerOfTwo,
    Balance::Random,
];

#[test]
fn every_policy_picks_everybody_and_nobody_twice_for_one_request() {
    for balance in ALL {
        let mut stage = Stage::with(&["a1"; 5], |policy| policy.balance = balance);
        let upstream = stage.build(at(0));
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        let mut tried = Vec::new();
        for _ in 0..5 {
            let ask = Ask {
                tried: &tried,
                ..Ask::default()
            };
            let pick = picker
                .pick(&ask, at(1), &mut rng)
                .expect("some are untried");
            assert!(!tried.contains(&pick.endpoint.id), "{balance:?}");
            tried.push(pick.endpoint.id);
        }
        let ask = Ask {
            tried: &tried,
            ..Ask::default()
        };
        assert!(picker.pick(&ask, at(1), &mut rng).is_none(), "{balance:?}");
    }
}
