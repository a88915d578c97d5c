//! A zone is lost and comes back under load: picks, reports and retries together, as the proxy drives them.
//!
//! Not here: sockets, and requests that overlap; each is over before the next one comes.

use std::sync::Arc;

use rand::rngs::StdRng;

use super::*;
use crate::{
    balance::{Ask, Pick, Picker},
    endpoint::Report,
    mesh::NodeState,
    snapshot::Upstream,
    staging::{Stage, at, dice},
};

/// What an attempt at a host of the lost zone comes to.
#[derive(Clone, Copy)]
enum Loss {
    /// Its processes were killed: the kernel refuses.
    Killed,
    /// Its packets vanish.
    Silent,
}

struct Client {
    upstream: Arc<Upstream>,
    picker: Picker,
    rng: StdRng,
    failed: u32,
    attempts: u32,
    /// Attempts that failed, the last of them at this moment.
    last_error: Moment,
    first_elsewhere: Option<Moment>,
}

impl Client {
    fn new(upstream: &Arc<Upstream>) -> Client {
        let mut rng = dice(11);
        Client {
            upstream: Arc::clone(upstream),
            picker: Picker::new(upstream, &mut rng),
            rng,
            failed: 0,
            attempts: 0,
            last_error: at(0),
            first_elsewhere: None,
        }
    }

    /// One request at `now`; the index of the tier that answered.
    fn request(&mut self, now: Moment, loss: Option<Loss>) -> Option<usize> {
        let upstream = Arc::clone(&self.upstream);
        let (policy, budget) = (&upstream.policy, &upstream.shared.budget);
        let mut tries = Tries::start(policy, true, false, now);
        budget.request(now);
        loop {
            let ask = Ask {
                tried: tries.tried(),
                beyond_tier: tries.beyond_tier(),
                idempotent: true,
                session: None,
                key: None,
                wish: None,
            };
            let Some(pick) = self.picker.pick(&ask, now, &mut self.rng) else {
                self.failed += 1;
                return None;
            };
            tries.picked(pick.endpoint.id, pick.tier);
            let (outcome, sent) = self.attempt(&pick, now, loss);
            if outcome.is_well() {
                if pick.tier > 0 {
                    self.first_elsewhere.get_or_insert(now);
                }
                return Some(pick.tier);
            }
            self.last_error = now;
            let verdict = tries.verdict(outcome, sent, budget, policy, now, &mut self.rng);
            if verdict == Verdict::Answer {
                self.failed += 1;
                return None;
            }
        }
    }

    fn attempt(&mut self, pick: &Pick, now: Moment, loss: Option<Loss>) -> (Outcome, Sent) {
        let endpoint = &*pick.endpoint;
        self.attempts += 1;
        endpoint.begin(now);
        let outcome = match loss {
            Some(loss) if &*endpoint.zone == "a1" => Outcome::Unreachable(match loss {
                Loss::Killed => Unreachable::Refused,
                Loss::Silent => Unreachable::ConnectTimedOut,
            }),
            _ => Outcome::Success,
        };
        if outcome.is_well() {
            endpoint.head_came(now);
        } else {
            endpoint.gave_up(now);
        }
        endpoint.end(now);
        let report = Report {
            outcome,
            latency: outcome.is_well().then_some(Duration::from_millis(2)),
            connection: u64::from(self.attempts),
            canary: pick.canary,
        };
        self.upstream.report(endpoint, &report, now, &mut self.rng);
        (outcome, Sent::Nothing)
    }
}

#[test]
fn a_zone_lost_under_load_loses_no_request_and_returns_by_a_ramp() {
    for (loss, hosts) in [
        (Loss::Killed, 2),
        (Loss::Killed, 1),
        (Loss::Killed, 6),
        (Loss::Silent, 2),
    ] {
        let mut zones = vec!["a1"; hosts];
        zones.extend(["a2", "a2", "b1", "b1"]);
        let mut stage = Stage::new(&zones);
        let mut client = Client::new(&stage.build(at(0)));
        for i in 0..1_000 {
            assert_eq!(client.request(at(i), None), Some(0));
        }
        for i in 1_000..6_000 {
            client.request(at(i), Some(loss));
        }
        assert_eq!(client.failed, 0, "{hosts} hosts");
        let first = client.first_elsewhere.expect("others took over");
        assert!(first.since(at(1_000)) <= Duration::from_millis(300));

        // SWIM finds out, and then they are back as new processes on new boots.
        for i in 0..hosts {
            stage.state(i, NodeState::Down, at(6_000));
        }
        client.upstream = stage.build(at(6_000));
        client.picker.follow(&client.upstream, at(6_000));
        for i in 6_000..10_000 {
            assert_ne!(client.request(at(i), Some(loss)), Some(0));
        }
        for i in 0..hosts {
            stage.state(i, NodeState::Alive, at(10_000));
            stage.instances[i].epoch += 1;
        }
        client.upstream = stage.build(at(10_000));
        client.picker.follow(&client.upstream, at(10_000));
        let shares: Vec<usize> = (10..35)
            .map(|second| {
                let millis = second * 1_000..(second + 1) * 1_000;
                millis
                    .filter(|i| client.request(at(*i), None) == Some(0))
                    .count()
            })
            .collect();
        assert_eq!(client.failed, 0);
        assert!(shares[0] <= 110 && shares[9] <= 600, "{shares:?}");
        assert!(
            shares[21..].iter().all(|count| *count == 1_000),
            "{shares:?}"
        );
    }
}

#[test]
fn a_killed_zone_causes_failed_first_tries_for_less_than_300_ms() {
    let mut stage = Stage::new(&["a1", "a1", "a2", "a2", "b1", "b1"]);
    let mut client = Client::new(&stage.build(at(0)));
    for i in 0..1_000 {
        client.request(at(i), None);
    }
    // Until the first canaries, which are sent on purpose and repeated elsewhere.
    for i in 1_000..1_700 {
        client.request(at(i), Some(Loss::Killed));
    }
    let errors = client.attempts - 1_700;
    let span = client.last_error.since(at(1_000));
    assert!(errors <= 20, "{errors} errors for {span:?}");
    assert_eq!(client.failed, 0);
}
