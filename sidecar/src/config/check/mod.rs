//! Raw tables → the checked configuration; every fault is noted, none ends the reading.
//!
//! Not here: how single values are read (`value.rs`). Each table has its file; `rules.rs` holds what spans tables.

use std::time::Duration;

use super::{
    Check, CheckKind, Config, Drain,
    fault::Place,
    raw::Files,
    read::{Keys, Sheet},
    value::Wrong,
};

mod endpoints;
mod host;
mod outbound;
mod rules;
mod service;
mod upstream;
mod words;

/// Tables that a later version knows.
const TABLES_LATER: [&str; 2] = ["inbound", "chaos"];
/// Most tables of one kind: each upstream holds figures and maybe ports, each service is a record in gossip.
const TABLES_MAX: usize = 1024;

/// Reads every table; what is wrong is in the sheet, and then the result must not be used.
pub fn check(files: &Files, sheet: &Sheet<'_>) -> Config {
    let start = Place {
        file: files.name.clone(),
        line: 1,
        column: 1,
    };
    let top = Keys::new(sheet, Vec::new(), &files.table, start, &TABLES_LATER);
    let node_keys = top.inner("node", &[]);
    let gossip_keys = top.inner("gossip", &[]);
    let admin_keys = top.inner("admin", &[]);
    let outbound_keys = top.inner("outbound", &["external_allow"]);
    let drain_keys = top.inner("drain", &[]);

    let bind = host::gossip_bind(&gossip_keys, top.has("gossip"));
    let node = host::node(&node_keys, bind);
    let gossip = host::gossip(&gossip_keys, bind, &node, node_keys.has("advertise"));
    let admin = host::admin(&admin_keys);
    let outbound = outbound::outbound(&outbound_keys);
    let drain = Drain {
        grace: drain_keys.or("grace", Duration::from_secs(3)),
        timeout: drain_keys.or("timeout", Duration::from_secs(30)),
    };
    let service_tables = top.named("service", &["allow"]);
    let upstream_tables = top.named("upstream", &upstream::KEYS_LATER);
    for (key, count) in [
        ("service", service_tables.len()),
        ("upstream", upstream_tables.len()),
    ] {
        if count > TABLES_MAX {
            top.wrong(
                key,
                format!("{count} tables are more than {TABLES_MAX}"),
                "split them over several sidecars",
            );
        }
    }
    let services: Vec<_> = service_tables
        .iter()
        .map(|(name, keys)| service::service(name, keys, &node))
        .collect();
    let upstreams: Vec<_> = upstream_tables
        .iter()
        .map(|(name, keys)| upstream::upstream(name, keys))
        .collect();

    let config = Config {
        services: services.into_iter().flatten().collect(),
        upstreams,
        node,
        gossip,
        admin,
        outbound,
        drain,
    };
    rules::security(
        &config,
        &gossip_keys,
        &admin_keys,
        &outbound_keys,
        &service_tables,
        &upstream_tables,
    );
    rules::listeners(
        &gossip_keys,
        &admin_keys,
        &outbound_keys,
        &upstream_tables,
        &config,
    );
    rules::instances(&service_tables, &config);
    let tables = [
        node_keys,
        gossip_keys,
        admin_keys,
        outbound_keys,
        drain_keys,
    ];
    let named = service_tables
        .into_iter()
        .chain(upstream_tables)
        .map(|(_, keys)| keys);
    tables
        .into_iter()
        .chain(named)
        .chain([top])
        .for_each(Keys::done);
    config
}

/// The `check` of a service or an upstream.
fn active_check(keys: &Keys<'_>) -> Option<Check> {
    if !keys.has("check") {
        return None;
    }
    let check = keys.inner("check", &["grpc", "exec", "ttl"]);
    let tcp: Option<bool> = check.optional("tcp");
    let http: Option<Box<str>> = check.optional("http");
    if let Some(path) = &http
        && (!path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err())
    {
        check.wrong(
            "http",
            format!("{path:?} is not a path"),
            "write it like \"/healthz\"",
        );
    }
    let kind = match (tcp, http) {
        (Some(true), None) => CheckKind::Tcp,
        (None | Some(false), Some(path)) => CheckKind::Http { path },
        (Some(true), Some(_)) => {
            check.wrong(
                "tcp",
                "a check is either tcp or http",
                "keep http: it sees more",
            );
            CheckKind::Tcp
        }
        (_, None) => {
            let said = ["grpc", "exec", "ttl", "tcp", "http"]
                .iter()
                .any(|key| keys.says("check", key));
            if !said {
                keys.wrong(
                    "check",
                    "the check says nothing to try",
                    "write http = \"/healthz\" or tcp = true",
                );
            } else if tcp == Some(false) {
                check.wrong(
                    "tcp",
                    "the check says nothing to try",
                    "write tcp = true, or drop the check",
                );
            }
            CheckKind::Tcp
        }
    };
    let default = Check::of(kind);
    let checked = Check {
        interval: positive(&check, "interval", default.interval),
        timeout: positive(&check, "timeout", default.timeout),
        fall: check.or("fall", default.fall),
        rise: check.or("rise", default.rise),
        ..default
    };
    check.done();
    Some(checked)
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
