//! How one request would find its endpoint: who decides in which order, and whose its key is.
//!
//! Not here: what holds for every request (`explain.rs`).

use std::net::SocketAddr;

use serde::Serialize;

use crate::{
    balance::bound::{Hindrance, busy_from, seen_host},
    moment::Moment,
    policy::Sticky,
    session::Session,
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
pub struct Asked {
    /// Its session, if it has one.
    pub session: Option<Session>,
    /// Its key, hashed.
    pub key: Option<u64>,
}

/// The way of one request at `now`.
pub fn request(upstream: &Upstream, asked: &Asked, now: Moment) -> RequestView {
    let owners = match (&upstream.owners, asked.key) {
        (Some(owners), Some(key)) => owners_of(upstream, owners, key, now),
        _ => Vec::new(),
    };
    let (stays, session) = session_says(upstream, asked, now);
    let owner = owners.iter().find(|owner| owner.called);
    let owned = !stays && owner.is_some();
    let is_free = !stays && !owned;
    let zones = if is_free {
        format!("{}: see the tiers' shares", zone_mode(&upstream.policy))
    } else {
        "not asked: a session or a key stays with its endpoint wherever that is".to_owned()
    };
    let step = |step, decides, says| Step {
        step,
        decides,
        says,
    };
    let no_control = "x-starling-instance is not in this version".to_owned();
    let order = vec![
        step("forced instance", false, no_control),
        step("sticky session", stays, session),
        step("hash key", owned, hash_says(upstream, asked, owner)),
        step("zone", is_free, zones),
        step("algorithm", is_free, algorithm(&upstream.policy).to_owned()),
    ];
    RequestView { order, owners }
}

/// Whether the request stays where its session is, and what is to be said of that.
fn session_says(upstream: &Upstream, asked: &Asked, now: Moment) -> (bool, String) {
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
    let is_tripped = !host.draining && upstream.tiers[host.tier].live.is_tripped();
    let hindrance = Hindrance::of(upstream, &host.endpoint, now).map(Hindrance::as_str);
    match is_tripped.then_some("zone tripped").or(hindrance) {
        Some(why) => (false, format!("with {instance}, which is out ({why})")),
        None if host.draining => (true, format!("with {instance}, which is draining")),
        None => (true, format!("with {instance}")),
    }
}

fn hash_says(upstream: &Upstream, asked: &Asked, owner: Option<&OwnerView>) -> String {
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

fn owners_of(upstream: &Upstream, owners: &Owners, key: u64, now: Moment) -> Vec<OwnerView> {
    let hindrance = |owner: usize| Hindrance::of_owner(upstream, owners, owner, now);
    let is_tripped = |owner: usize| upstream.tiers[owners.seats[owner].tier].live.is_tripped();
    let open = |owner: usize| hindrance(owner).is_none() && !is_tripped(owner);
    let may = |owner: usize| {
        matches!(hindrance(owner), None | Some(Hindrance::Busy)) && !is_tripped(owner)
    };
    let called = owners.table.find(key, open);
    let called = called.or_else(|| owners.table.find(key, may));
    let mut told = owners.table.order(key, OWNERS_TOLD);
    told.extend(called.filter(|owner| !told.contains(owner)));
    let view = |owner: usize| {
        let endpoint = &upstream.at(owners.seats[owner]).endpoint;
        let hindrance = hindrance(owner).map(Hindrance::as_str);
        OwnerView {
            instance: endpoint.key.instance.clone(),
            address: endpoint.key.address,
            zone: endpoint.zone.clone(),
            share: owners.table.share(owner),
            in_flight: endpoint.in_flight(),
            busy_from: busy_from(upstream, owners, owner),
            called: called == Some(owner),
            why: is_tripped(owner).then_some("zone tripped").or(hindrance),
        }
    };
    told.into_iter().map(view).collect()
}
