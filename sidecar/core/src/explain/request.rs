//! How one request would find its endpoint: who decides in which order, and whose its key is.
//!
//! Not here: what holds for every request (`explain.rs`).

use std::net::SocketAddr;

use serde::Serialize;

use crate::{
    balance::{
        bound::{Hindrance, busy_from, lodging_of, seen_host},
        wish::{Wish, meant, suits},
    },
    moment::Moment,
    policy::Sticky,
    session::{Host, Session},
    upstream::{Owners, Upstream},
};

use super::{algorithm, zone_mode};

/// Owners of a key that are told: those that a table stores.
const OWNERS_TOLD: usize = 3;

/// One request's way.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RequestView {
    /// Who is asked in turn; the first that decides ends it.
    pub order: Vec<Step>,
    /// The first owners of its key; empty without one.
    pub owners: Vec<OwnerView>,
}

/// One of those that may decide.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Step {
    /// Its name.
    pub step: &'static str,
    /// It has a say in this request.
    pub decides: bool,
    /// What it says.
    pub says: String,
}

/// One owner of the request's key.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct OwnerView {
    /// Its instance name.
    pub instance: Box<str>,
    /// Where it is called.
    pub address: SocketAddr,
    /// Its zone.
    pub zone: Box<str>,
    /// Share of all keys that it should own, 0 to 1.
    pub share: f64,
    /// This sidecar's requests in flight there.
    pub in_flight: u32,
    /// Requests in flight from which on its keys go to the next owner.
    pub busy_from: u32,
    /// The request would go there.
    pub called: bool,
    /// Why it is passed over, if it is.
    pub why: Option<&'static str>,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Its session, if it has one.
    pub session: Option<Session>,
    /// Its key, hashed.
    pub key: Option<u64>,
    /// Where its caller wants it.
    pub wish: Option<Wish<'a>>,
}

/// The way of one request at `now`.
pub fn request(upstream: &Upstream, asked: &Asked<'_>, now: Moment) -> RequestView {
    let owners = match (&upstream.owners, asked.key) {
        (Some(owners), Some(key)) => owners_of(upstream, owners, key, asked.wish, now),
        _ => Vec::new(),
    };
    let (is_forced, control) = control_says(upstream, asked.wish);
    let (stays, session) = session_says(upstream, asked, now);
    let stays = stays && !is_forced;
    let owner = owners.iter().find(|owner| owner.called);
    let owned = !is_forced && !stays && owner.is_some();
    let is_free = !is_forced && !stays && !owned;
    let zones = match asked.wish {
        _ if is_forced => "not asked: the caller names its instance".to_owned(),
        Some(Wish::Zone(zone)) => format!("x-starling-zone: nowhere but in {zone}"),
        _ if is_free => format!("{}: see the tiers' shares", zone_mode(&upstream.policy)),
        _ => "not asked: a session or a key stays with its endpoint wherever that is".to_owned(),
    };
    let step = |step, decides, says| Step {
        step,
        decides,
        says,
    };
    let order = vec![
        step("forced instance", is_forced, control),
        step("sticky session", stays, session),
        step("hash key", owned, hash_says(upstream, asked, owner)),
        step("zone", is_free, zones),
        step("algorithm", is_free, algorithm(&upstream.policy).to_owned()),
    ];
    RequestView { order, owners }
}

/// Whether the caller names the instance, and what is to be said of that.
fn control_says(upstream: &Upstream, wish: Option<Wish<'_>>) -> (bool, String) {
    let Some(Wish::Instance(name)) = wish else {
        return (false, "no x-starling-instance".to_owned());
    };
    let says = match meant(upstream, name) {
        Some((endpoint, _)) => {
            let out = upstream
                .out
                .iter()
                .find(|out| out.endpoint.id == endpoint.id);
            let why = out.map(|out| format!(", although it is out ({})", out.why.as_str()));
            format!("x-starling-instance: {name}{}", why.unwrap_or_default())
        }
        None => format!("x-starling-instance: {name}, which nobody knows: 503, flag UH"),
    };
    (true, says)
}

/// Whether the request stays where its session is, and what is to be said of that.
fn session_says(upstream: &Upstream, asked: &Asked<'_>, now: Moment) -> (bool, String) {
    let begins = match &upstream.policy.sticky {
        None => return (false, "none is set".to_owned()),
        Some(Sticky::Cookie { name, .. }) => {
            format!("no cookie {name} that says where: its answer brings one")
        }
        Some(Sticky::SourceIp { .. }) => {
            "no request of this address yet: wherever it goes, later ones go too".to_owned()
        }
    };
    let host = asked
        .session
        .and_then(|session| seen_host(upstream, session, now));
    let Some(host) = host else {
        return (false, begins);
    };
    let instance = &host.endpoint.key.instance;
    let is_tripped = |host: &Host| !host.draining && upstream.tiers[host.tier].live.is_tripped();
    let why_not = |host: &Host| {
        let hindrance = Hindrance::of(upstream, &host.endpoint, now).map(Hindrance::as_str);
        let elsewhere = !suits(asked.wish, &host.endpoint);
        let hindrance = elsewhere
            .then_some("not in the zone asked for")
            .or(hindrance);
        is_tripped(host).then_some("zone tripped").or(hindrance)
    };
    let Some(why) = why_not(host) else {
        let draining = if host.draining {
            ", which is draining"
        } else {
            ""
        };
        return (true, format!("with {instance}{draining}"));
    };
    let is_away = !host.draining && (host.endpoint.is_ejected() || is_tripped(host));
    let lodging = asked.session.filter(|_| is_away);
    let lodging = lodging.and_then(|session| lodging_of(upstream, session));
    match lodging.filter(|lodging| why_not(lodging).is_none()) {
        Some(lodging) => {
            let other = &lodging.endpoint.key.instance;
            let says = format!("with {instance}, which is out ({why}); meanwhile with {other}");
            (true, says)
        }
        None => (false, format!("with {instance}, which is out ({why})")),
    }
}

fn hash_says(upstream: &Upstream, asked: &Asked<'_>, owner: Option<&OwnerView>) -> String {
    let Some(hash) = &upstream.policy.hash else {
        return "none is set".to_owned();
    };
    let (key, table) = (&hash.key, hash.table.name());
    match (asked.key, owner) {
        (None, _) => format!(
            "this request has no {key}, so it falls back to {}",
            algorithm(&upstream.policy)
        ),
        (Some(_), Some(owner)) => {
            format!("{key} by {table} belongs to {}", owner.instance)
        }
        (Some(_), None) => format!("{key} by {table} has no owner that may be called"),
    }
}

fn owners_of(
    upstream: &Upstream,
    owners: &Owners,
    key: u64,
    wish: Option<Wish<'_>>,
    now: Moment,
) -> Vec<OwnerView> {
    let hindrance = |owner: usize| Hindrance::of_owner(upstream, owners, owner, now);
    let elsewhere = |owner: usize| !suits(wish, &upstream.at(owners.seats[owner]).endpoint);
    let is_tripped = |owner: usize| upstream.tiers[owners.seats[owner].tier].live.is_tripped();
    let reached = |owner: usize| !is_tripped(owner) && !elsewhere(owner);
    let open = |owner: usize| hindrance(owner).is_none() && reached(owner);
    let may =
        |owner: usize| matches!(hindrance(owner), None | Some(Hindrance::Busy)) && reached(owner);
    let called = owners.table.find(key, open);
    let called = called.or_else(|| owners.table.find(key, may));
    let mut told = owners.table.order(key, OWNERS_TOLD);
    told.extend(called.filter(|owner| !told.contains(owner)));
    let view = |owner: usize| {
        let endpoint = &upstream.at(owners.seats[owner]).endpoint;
        let hindrance = hindrance(owner).map(Hindrance::as_str);
        let elsewhere = elsewhere(owner).then_some("not in the zone asked for");
        OwnerView {
            instance: endpoint.key.instance.clone(),
            address: endpoint.key.address,
            zone: endpoint.zone.clone(),
            share: owners.table.share(owner),
            in_flight: endpoint.in_flight(),
            busy_from: busy_from(upstream, owners, owner),
            called: called == Some(owner),
            why: (elsewhere.or(is_tripped(owner).then_some("zone tripped"))).or(hindrance),
        }
    };
    told.into_iter().map(view).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        balance::{Ask, Picker},
        outcome::{Outcome, Unreachable},
        staging::{Stage, at, dice, report},
    };

    fn says<'a>(view: &'a RequestView, step: &str) -> (bool, &'a str) {
        let step = view.order.iter().find(|told| told.step == step);
        step.map(|told| (told.decides, &*told.says))
            .expect("it is told")
    }

    #[test]
    fn where_a_session_is_meanwhile_is_told() {
        let ttl = Duration::from_secs(600);
        let mut stage = Stage::with(&["a1"; 3], |policy| {
            policy.sticky = Some(Sticky::SourceIp { ttl });
        });
        let upstream = stage.build(at(0));
        let asked = Asked {
            session: Some(Session::Source(7)),
            ..Asked::default()
        };
        let mut rng = dice(1);
        let mut picker = Picker::new(&upstream, &mut rng);
        let ask = Ask {
            session: asked.session,
            ..Ask::default()
        };
        let mut home = |now| {
            let pick = picker.pick(&ask, now, &mut rng).expect("somebody is in");
            pick.endpoint.key.instance.clone()
        };
        let first = home(at(0));
        let view = request(&upstream, &asked, at(1));
        assert_eq!(
            says(&view, "sticky session"),
            (true, &*format!("with {first}"))
        );
        let mut members = upstream.members();
        let place = members
            .position(|m| m.endpoint.key.instance == first)
            .expect("it is in");
        for n in 0..5 {
            let refused = Outcome::Unreachable(Unreachable::Refused);
            report(&upstream, place, refused, 0, at(n));
        }
        let view = request(&upstream, &asked, at(10));
        let out = format!("with {first}, which is out (ejected)");
        assert_eq!(says(&view, "sticky session"), (false, &*out));
        let second = home(at(10));
        let view = request(&upstream, &asked, at(11));
        let meanwhile = format!("{out}; meanwhile with {second}");
        assert_eq!(says(&view, "sticky session"), (true, &*meanwhile));
    }

    #[test]
    fn what_the_caller_wants_is_told_first() {
        let mut stage = Stage::new(&["a1", "b1"]);
        stage.state(1, crate::mesh::NodeState::Left, at(0));
        let upstream = stage.build(at(0));
        let wish = |wish| Asked {
            wish: Some(wish),
            ..Asked::default()
        };
        for (name, want) in [
            ("shop-0", "x-starling-instance: shop-0"),
            (
                "shop-1",
                "x-starling-instance: shop-1, although it is out (left)",
            ),
            (
                "shop-2",
                "x-starling-instance: shop-2, which nobody knows: 503, flag UH",
            ),
        ] {
            let view = request(&upstream, &wish(Wish::Instance(name)), at(1));
            assert_eq!(says(&view, "forced instance"), (true, want));
            assert!(!says(&view, "algorithm").0);
        }
        let view = request(&upstream, &wish(Wish::Zone("b1")), at(1));
        assert_eq!(
            says(&view, "zone"),
            (true, "x-starling-zone: nowhere but in b1")
        );
        assert_eq!(
            says(&view, "forced instance"),
            (false, "no x-starling-instance")
        );
    }
}
