//! Requests whose caller says where they are to go: to one instance, or into one zone.
//!
//! Not here: who may say so (the sidecar's `proxy/control.rs`).

use std::sync::Arc;

use crate::{
    endpoint::Endpoint,
    moment::Moment,
    upstream::{Upstream, Why},
};

use super::{Ask, Pick, PickKind, Picker};

/// Where a caller wants its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish<'a> {
    /// At the instance of this name, whatever is said against it; nowhere else.
    Instance(&'a str),
    /// In this zone, whatever its share; nowhere else.
    Zone(&'a str),
}

/// Whether an endpoint is where the wish wants the request.
pub(crate) fn suits(wish: Option<Wish<'_>>, endpoint: &Endpoint) -> bool {
    match wish {
        None => true,
        Some(Wish::Instance(name)) => *endpoint.key.instance == *name,
        Some(Wish::Zone(zone)) => *endpoint.zone == *zone,
    }
}

/// The endpoint that a caller means by an instance's name, and the index of its tier. Whoever may be called comes before
/// whoever is out, and the tags that the upstream selects are not for a caller to lift.
pub fn meant<'a>(upstream: &'a Upstream, name: &str) -> Option<(&'a Arc<Endpoint>, usize)> {
    let is_meant = |endpoint: &Endpoint| suits(Some(Wish::Instance(name)), endpoint);
    let members = upstream
        .seats()
        .map(|seat| (&upstream.at(seat).endpoint, seat.tier));
    let out = upstream
        .out
        .iter()
        .filter(|out| out.why != Why::NotSelected);
    let out = out.map(|out| (&out.endpoint, out.tier.unwrap_or(0)));
    members.chain(out).find(|(endpoint, _)| is_meant(endpoint))
}

impl Picker {
    /// The instance that the caller means, if it was not tried in vain and has room. Nothing is found out by it: one that
    /// was sent out does not come back for its answers.
    pub(super) fn forced(&mut self, name: &str, ask: &Ask<'_>, now: Moment) -> Option<Pick> {
        self.asked += u64::from(ask.tried.is_empty());
        self.take_note(now);
        let limit = self.upstream.policy.limits.endpoint_requests;
        let (endpoint, tier) = meant(&self.upstream, name)?;
        let has_room = limit.is_none_or(|limit| endpoint.in_flight() < limit);
        (has_room && !ask.tried.contains(&endpoint.id)).then(|| Pick {
            endpoint: Arc::clone(endpoint),
            tier,
            kind: PickKind::Usual,
            patience: None,
            canary: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        hash::hash_of,
        outcome::{Outcome, Unreachable},
        policy::{Balance, Hash, HashKey, ZoneMode},
        staging::{Stage, at, dice, report},
    };

    fn ask(wish: Wish<'_>) -> Ask<'_> {
        Ask {
            wish: Some(wish),
            ..Ask::default()
        }
    }

    #[test]
    fn a_request_goes_to_the_instance_it_names_whatever_speaks_against_it() {
        let mut stage = Stage::new(&["a1", "a1", "b1"]);
        stage.record(1, |record| {
            record.health = mesh_proto::record::Health::Failing
        });
        let upstream = stage.build(at(0));
        for n in 0..5 {
            let refused = Outcome::Unreachable(Unreachable::Refused);
            report(&upstream, 0, refused, 0, at(n));
        }
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        for name in ["shop-0", "shop-1", "shop-2"] {
            let pick = picker.pick(&ask(Wish::Instance(name)), at(10), &mut rng);
            let pick = pick.expect("it is known");
            assert_eq!(&*pick.endpoint.key.instance, name);
            let tried = [pick.endpoint.id];
            let again = Ask {
                tried: &tried,
                ..ask(Wish::Instance(name))
            };
            assert!(
                picker.pick(&again, at(10), &mut rng).is_none(),
                "and nowhere else"
            );
        }
        let nobody = picker.pick(&ask(Wish::Instance("shop-9")), at(10), &mut rng);
        assert!(nobody.is_none());
        // What it answers there is no proof of its return.
        report(&upstream, 0, Outcome::Success, 1, at(11));
        let sick = upstream.members().next().expect("it is a member");
        assert!(sick.endpoint.is_ejected());
    }

    #[test]
    fn a_request_stays_in_the_zone_it_names_under_every_policy() {
        for balance in [
            Balance::LeastResponseTime,
            Balance::RoundRobin,
            Balance::LeastConnections,
            Balance::PowerOfTwo,
            Balance::Random,
        ] {
            for zones_matter in [true, false] {
                let zones = ["a1", "a1", "b1", "c1", "b1", "c1"];
                let mut stage = Stage::with(&zones, |policy| {
                    policy.balance = balance;
                    if !zones_matter {
                        policy.zones.mode = ZoneMode::Ignore;
                    }
                });
                let upstream = stage.build(at(0));
                let mut rng = dice(1);
                let mut picker = Picker::new(&upstream, &mut rng);
                let mut used = BTreeSet::new();
                for i in 0..40 {
                    let pick = picker.pick(&ask(Wish::Zone("b1")), at(i), &mut rng);
                    used.insert(pick.expect("two are there").endpoint.key.instance.clone());
                }
                let used: Vec<&str> = used.iter().map(|name| &**name).collect();
                assert_eq!(used, ["shop-2", "shop-4"], "{balance:?}");
                assert!(
                    picker
                        .pick(&ask(Wish::Zone("z9")), at(50), &mut rng)
                        .is_none()
                );
            }
        }
    }

    #[test]
    fn a_zone_that_is_asked_for_comes_before_keys_and_keys_decide_within_it() {
        let mut stage = Stage::with(&["a1", "b1", "b1", "b1"], |policy| {
            policy.hash = Some(Hash::by(HashKey::Path));
        });
        let upstream = stage.build(at(0));
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        let mut homes = BTreeSet::new();
        for key in 0..50_u64 {
            let wanted = Ask {
                key: Some(hash_of(&key.to_le_bytes())),
                ..ask(Wish::Zone("b1"))
            };
            let mut home = || {
                picker
                    .pick(&wanted, at(1), &mut rng)
                    .expect("three are there")
                    .endpoint
            };
            let first = home();
            assert_eq!((&*first.zone, first.id), ("b1", home().id));
            homes.insert(first.id);
        }
        assert_eq!(homes.len(), 3);
    }
}
