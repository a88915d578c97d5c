//! Raw tables → the checked configuration; every fault is noted, none ends the reading.
//!
//! Not here: how single values are read (`value/`). Each table has its file; `rules.rs` holds what spans tables.

use std::time::Duration;

pub use lease::lease;

use super::{
    Config, Drain,
    fault::Place,
    raw::Files,
    read::{Keys, Sheet},
    value::{Lasting, Wrong},
};

mod balance;
mod endpoints;
mod health;
mod host;
mod lease;
mod outbound;
mod rules;
mod service;
mod tls;
mod upstream;
mod words;

/// Tables that a later version knows.
const TABLES_LATER: [&str; 2] = ["inbound", "chaos"];
/// Most tables of one kind: each upstream holds figures and maybe ports, each service is a record in gossip.
const TABLES_MAX: usize = 1024;

/// Every table with its keys, for rules that look at several.
struct Tables<'a> {
    node: Keys<'a>,
    gossip: Keys<'a>,
    admin: Keys<'a>,
    outbound: Keys<'a>,
    drain: Keys<'a>,
    access_log: Keys<'a>,
    services: Vec<(&'a str, Keys<'a>)>,
    upstreams: Vec<(&'a str, Keys<'a>)>,
}

impl<'a> Tables<'a> {
    fn of(top: &Keys<'a>) -> Tables<'a> {
        let named = |key: &'static str, later: &'static [&'static str]| {
            let tables = top.named(key, later);
            if tables.len() > TABLES_MAX {
                top.wrong(
                    key,
                    format!("{} tables are more than {TABLES_MAX}", tables.len()),
                    "split them over several sidecars",
                );
            }
            tables
        };
        Tables {
            node: top.inner("node", &[]),
            gossip: top.inner("gossip", &[]),
            admin: top.inner("admin", &[]),
            outbound: top.inner("outbound", &["external_allow"]),
            drain: top.inner("drain", &[]),
            access_log: top.inner("access_log", &[]),
            services: named("service", &["allow"]),
            upstreams: named("upstream", &upstream::KEYS_LATER),
        }
    }

    /// Complains of every key that nobody asked for.
    fn done(self) {
        let named = self.services.into_iter().chain(self.upstreams);
        [
            self.node,
            self.gossip,
            self.admin,
            self.outbound,
            self.drain,
            self.access_log,
        ]
        .into_iter()
        .chain(named.map(|(_, keys)| keys))
        .for_each(Keys::done);
    }
}

/// Reads every table; what is wrong is in the sheet, and then the result must not be used.
pub fn check(files: &Files, sheet: &Sheet<'_>) -> Config {
    let start = Place {
        file: files.name.clone(),
        line: 1,
        column: 1,
    };
    let top = Keys::new(sheet, Vec::new(), &files.table, start, &TABLES_LATER);
    let tables = Tables::of(&top);
    let bind = host::gossip_bind(&tables.gossip, top.has("gossip"));
    let node = host::node(&tables.node, bind);
    let services = tables.services.iter();
    let upstreams = tables.upstreams.iter();
    let config = Config {
        gossip: host::gossip(&tables.gossip, bind, &node, tables.node.has("advertise")),
        admin: host::admin(&tables.admin),
        outbound: outbound::outbound(&tables.outbound),
        drain: Drain {
            grace: tables.drain.or("grace", Duration::from_secs(3)),
            timeout: tables.drain.or("timeout", Duration::from_secs(30)),
        },
        access_log: host::access_log(&tables.access_log),
        services: services
            .filter_map(|(name, keys)| service::service(name, keys, &node, health::Whose::Own))
            .collect(),
        upstreams: upstreams
            .map(|(name, keys)| upstream::upstream(name, keys))
            .collect(),
        node,
    };
    rules::judge(&tables, &config);
    tables.done();
    top.done();
    config
}

/// A duration that must leave some time.
fn positive(keys: &Keys<'_>, key: &'static str, default: Duration) -> Duration {
    let duration = keys.or(key, default);
    if duration.is_zero() {
        keys.wrong(
            key,
            "\"0s\" leaves no time",
            "use at least \"1ms\", or drop the line",
        );
    }
    duration
}

/// How long a connection takes requests; not no time at all.
fn connection_age(keys: &Keys<'_>, default: Option<Duration>) -> Option<Duration> {
    let Lasting(age) = keys.or("connection_age", Lasting(default));
    if age.is_some_and(|age| age.is_zero()) {
        keys.wrong(
            "connection_age",
            "\"0s\" leaves a connection no time",
            "use at least \"1s\", or \"never\"",
        );
    }
    age
}

/// A port of 0 is fine to listen on, never to be called at.
fn callable(address: std::net::SocketAddr) -> Result<(), Wrong> {
    if address.ip().is_unspecified() {
        return Err(Wrong::new(
            format!("nobody can call {}", address.ip()),
            "write the address others reach",
        ));
    }
    if address.port() == 0 {
        return Err(Wrong::new(
            "nobody can call port 0",
            "write the port others reach",
        ));
    }
    Ok(())
}
