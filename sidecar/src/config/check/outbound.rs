//! `[outbound]`: where local applications call the mesh.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
};

use crate::config::{
    ClientLimits, ListenAddress, Outbound,
    raw::Value,
    read::Keys,
    value::{self, Bytes, ServiceName, Setting, Wrong},
};

/// Connections of each listener, unless it is told otherwise.
const CONNECTIONS: u32 = 10_000;
/// A path shorter than this is no rarity; a longer line than that is held for every connection that sends one.
const REQUEST_LINE_BYTES: RangeInclusive<usize> = 1024..=64 * 1024;
/// Browsers send twenty; each costs a comparison with all others of its head at worst.
const HEADERS: RangeInclusive<usize> = 16..=1_000;
/// Streams of one connection of HTTP/2: each may hold a piece of its answer.
const STREAMS: RangeInclusive<usize> = 1..=1_000;

const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7080);

pub fn outbound(keys: &Keys<'_>) -> Outbound {
    let ServiceName(domain) = keys.or("domain", ServiceName("mesh".into()));
    keys.or("external", External::Refuse);
    let (connections, limits) = limits(keys);
    Outbound {
        http: keys.list("http", vec![ListenAddress::Tcp(HTTP)]),
        domain,
        undeclared: keys.or("undeclared", Undeclared(true)).0,
        clients: keys.list("clients", Vec::new()),
        connection_age: super::connection_age(keys, None),
        connections,
        limits,
        trusted_proxies: keys.list("trusted_proxies", Vec::new()),
        control_headers: keys.or("control_headers", false),
    }
}

/// Connections of each listener, and what clients may have and take.
fn limits(keys: &Keys<'_>) -> (u32, ClientLimits) {
    let default = ClientLimits::default();
    let inner = keys.inner("limits", &[]);
    let per_client = inner.inner("per_client", &[]);
    let Bytes(line) = inner.or("request_line_bytes", Bytes(default.request_line_bytes));
    within(
        &inner,
        "request_line_bytes",
        line,
        REQUEST_LINE_BYTES,
        |bytes| Bytes(bytes).show(),
    );
    let headers = inner.or("headers", default.headers as u32) as usize;
    within(&inner, "headers", headers, HEADERS, |count| {
        count.to_string()
    });
    let streams = inner.or("streams", default.streams);
    within(&inner, "streams", streams as usize, STREAMS, |count| {
        count.to_string()
    });
    let connections = inner.or("connections", CONNECTIONS);
    let limits = ClientLimits {
        all_connections: inner.optional("all_connections"),
        client_connections: per_client.optional("connections"),
        streams,
        headers,
        request_line_bytes: line,
        head: super::positive(keys, "head_timeout", default.head),
        idle: super::positive(keys, "idle_timeout", default.idle),
    };
    per_client.done();
    inner.done();
    (connections, limits)
}

fn within(
    keys: &Keys<'_>,
    key: &'static str,
    value: usize,
    range: RangeInclusive<usize>,
    show: impl Fn(usize) -> String,
) {
    if !range.contains(&value) {
        keys.wrong(
            key,
            format!("{} is out of range", show(value)),
            format!("use {} to {}", show(*range.start()), show(*range.end())),
        );
    }
}

struct Undeclared(bool);

const UNDECLARED: [(&str, bool); 2] = [("allow", true), ("refuse", false)];

impl Setting for Undeclared {
    fn read(value: &Value) -> Result<Undeclared, Wrong> {
        value::word(value, &UNDECLARED, &[]).map(Undeclared)
    }

    fn show(&self) -> String {
        value::name_of(&UNDECLARED, self.0)
    }
}

/// What becomes of names outside the mesh; a list of allowed ones comes later.
#[derive(Clone, Copy, PartialEq)]
enum External {
    Refuse,
}

const EXTERNAL: [(&str, External); 1] = [("refuse", External::Refuse)];

impl Setting for External {
    fn read(value: &Value) -> Result<External, Wrong> {
        value::word(value, &EXTERNAL, &["allow"])
    }

    fn show(&self) -> String {
        value::name_of(&EXTERNAL, *self)
    }
}
