//! `[upstream.*]`: what this host calls, and by which rules.

use std::{sync::Arc, time::Duration};

use mesh_core::policy::{
    Ejection, HttpVersion, Limits, Policy, Protocol, ProxyVersion, Retry, RetryOn, SUBSET,
    Timeouts, Udp, ZoneMode, Zones,
};
use mesh_proto::record::WireProtocol;

use super::{
    balance::{balance, sticky},
    endpoints::endpoints,
    health::{Whose, active_check},
    positive,
    words::{Budget, Class, OnClass},
};
use crate::config::{
    ListenAddress, ServerNames, Upstream,
    read::Keys,
    value::{Bytes, Count, Label, Lasting, Retries, ServiceName, Setting, Share},
};

/// Keys of `[upstream.*]` that a later version knows.
pub const KEYS_LATER: [&str; 1] = ["route"];
/// Fewest endpoints of a subset: of fewer there is nothing to choose, and the loss of two would be the loss of a zone.
const SUBSET_MIN: u32 = 16;
/// hyper's HTTP/1 parser wants at least 8 KiB of room.
const HEADER_BYTES: std::ops::RangeInclusive<usize> = 8 << 10..=1 << 20;
/// A flow has no end that anybody could see but its silence.
const UDP_IDLE: Duration = Duration::from_secs(60);
/// Server names of one upstream.
const NAMES_MAX: usize = 1024;
/// Flows at once: each holds a descriptor and about 2 KiB.
const FLOWS_MAX: u32 = 1 << 20;
/// Connections relayed without HTTP are often idle for good reason (databases, brokers).
const TCP_IDLE: Duration = Duration::from_secs(3_600);

pub fn upstream(table: &str, keys: &Keys<'_>) -> Upstream {
    if let Err(wrong) = ServiceName::parse(table) {
        keys.wrong(
            "service",
            wrong.what,
            format!("rename the table: {}", wrong.fix),
        );
    }
    let spoken = keys.or("protocol", WireProtocol::Http);
    let protocol = match spoken {
        WireProtocol::Http | WireProtocol::Grpc => Protocol::Http,
        WireProtocol::Tcp => Protocol::Tcp,
        WireProtocol::Udp => Protocol::Udp,
        WireProtocol::Tls => Protocol::Tls,
    };
    let listen = listen(keys, protocol);
    if protocol != Protocol::Http && listen.is_empty() && !keys.has("listen") {
        keys.absent(
            "listen",
            "an upstream of tcp, udp or tls has no authority to be found by, so it needs a port of its own",
            "add listen = \"127.0.0.1:7001\"",
        );
    }
    let (mesh_listed, endpoints) = endpoints(keys);
    let service = if keys.has("endpoints") && !mesh_listed && !keys.has("service") {
        None
    } else {
        let ServiceName(name) = keys.or("service", ServiceName(table.into()));
        Some(name)
    };
    let check = active_check(keys, Whose::Caller);
    if keys.has("check") && !keys.has("endpoints") {
        keys.wrong(
            "check",
            "instances of the mesh are checked by the sidecar beside them",
            "move it to the [service.*] table of their hosts, or add endpoints",
        );
    }
    let (balance, hash) = balance(keys, protocol, &listen);
    let policy = Policy {
        name: table.into(),
        select: select(keys, service.is_some()),
        service,
        protocol,
        http: http_version(keys, spoken),
        balance,
        hash,
        sticky: sticky(keys, protocol, &listen),
        timeouts: timeouts(keys, protocol),
        udp: udp(keys, protocol),
        accept_proxy: accept_proxy(keys, protocol),
        send_proxy: send_proxy(keys, protocol),
        retry: retry(keys, protocol),
        ejection: ejection(keys),
        limits: limits(keys, protocol),
        zones: zones(keys),
        subset: subset(keys),
        endpoints,
    };
    per_try_fits(keys, &policy);
    subset_has_a_say(keys, &policy);
    let listen_tls = super::tls::listen_tls(keys, protocol, &listen);
    let tls = super::tls::tls(keys, &policy);
    Upstream {
        policy: Arc::new(policy),
        listen,
        sni: sni(keys, protocol),
        check,
        listen_tls,
        tls,
    }
}

fn select(keys: &Keys<'_>, of_mesh: bool) -> Vec<(Box<str>, Box<str>)> {
    let select = keys.inner("select", &[]);
    let tags = select.words("tags");
    if !tags.is_empty() && !of_mesh {
        keys.wrong(
            "select",
            "fixed endpoints have no tags to select by",
            "drop it, or add service = \"name\" or the endpoint \"mesh\"",
        );
    }
    select.done();
    tags
}

fn http_version(keys: &Keys<'_>, spoken: WireProtocol) -> HttpVersion {
    match spoken {
        WireProtocol::Tcp | WireProtocol::Udp | WireProtocol::Tls => {
            refuse_without_http(keys, "http");
            HttpVersion::Auto
        }
        WireProtocol::Http => keys.or("http", HttpVersion::Auto),
        WireProtocol::Grpc => {
            let http = keys.or("http", HttpVersion::Two);
            if http == HttpVersion::One {
                keys.wrong(
                    "http",
                    "gRPC needs HTTP/2",
                    "drop the line, or write http = \"2\"",
                );
            }
            http
        }
    }
}

/// Where it listens: at UDP ports where datagrams are spoken.
fn listen(keys: &Keys<'_>, protocol: Protocol) -> Vec<ListenAddress> {
    let listen: Vec<ListenAddress> = keys.list("listen", Vec::new());
    if protocol != Protocol::Udp {
        return listen;
    }
    let of_udp = |address| match address {
        ListenAddress::Tcp(address) | ListenAddress::Udp(address) => {
            Some(ListenAddress::Udp(address))
        }
        ListenAddress::Unix(_) => {
            keys.wrong(
                "listen",
                "datagrams do not come by a Unix socket here",
                "write an address like \"127.0.0.1:5300\"",
            );
            None
        }
    };
    listen.into_iter().filter_map(of_udp).collect()
}

/// `udp = { … }`.
fn udp(keys: &Keys<'_>, protocol: Protocol) -> Udp {
    let default = Udp::default();
    if protocol != Protocol::Udp {
        if keys.has("udp") {
            keys.wrong(
                "udp",
                "only a udp upstream has flows",
                "drop it, or write protocol = \"udp\"",
            );
        }
        return default;
    }
    let inner = keys.inner("udp", &[]);
    let udp = Udp {
        replies: inner.or("replies", Count(default.replies)).0,
        flows_max: inner.or("max_flows", default.flows_max),
    };
    if udp.flows_max > FLOWS_MAX {
        inner.wrong(
            "max_flows",
            format!(
                "{} flows are more than a host has descriptors for",
                udp.flows_max
            ),
            format!("use at most {FLOWS_MAX}"),
        );
    }
    // `timeouts` reads it.
    inner.has("idle");
    inner.done();
    udp
}

/// The names that lead here; all of them, if none is written.
fn sni(keys: &Keys<'_>, protocol: Protocol) -> Vec<ServerNames> {
    if protocol != Protocol::Tls {
        if keys.has("sni") {
            keys.wrong(
                "sni",
                "only an upstream that passes TLS through is found by server name",
                "drop it, or write protocol = \"tls\"",
            );
        }
        return Vec::new();
    }
    let names = keys.list("sni", vec![ServerNames::Others]);
    if names.len() > NAMES_MAX {
        keys.wrong(
            "sni",
            format!("{} names are more than {NAMES_MAX}", names.len()),
            "split them over several upstreams",
        );
    }
    names
}

fn accept_proxy(keys: &Keys<'_>, protocol: Protocol) -> bool {
    let accept = keys.or("accept_proxy_protocol", false);
    let no_connections = protocol == Protocol::Udp || !keys.has("listen");
    if accept && no_connections {
        keys.wrong(
            "accept_proxy_protocol",
            "this upstream has no listener of its own that takes connections",
            "add listen = \"127.0.0.1:7001\", or drop it",
        );
    }
    accept
}

fn send_proxy(keys: &Keys<'_>, protocol: Protocol) -> Option<ProxyVersion> {
    let version = keys.optional("send_proxy_protocol");
    if version.is_some() && protocol == Protocol::Udp {
        keys.wrong(
            "send_proxy_protocol",
            "datagrams have no connection that could begin with it",
            "drop it",
        );
    }
    version
}

fn refuse_without_http(keys: &Keys<'_>, key: &'static str) {
    if keys.has(key) {
        keys.wrong(
            key,
            "an upstream of tcp, udp or tls relays bytes and knows no requests",
            "drop it, or write protocol = \"http\"",
        );
    }
}

fn timeouts(keys: &Keys<'_>, protocol: Protocol) -> Timeouts {
    let default = Timeouts::default();
    let Lasting(endpoint_grace) = keys.or("endpoint_grace", Lasting(default.endpoint_grace));
    if protocol == Protocol::Udp {
        for key in [
            "timeout",
            "connect_timeout",
            "idle_timeout",
            "half_close_timeout",
        ] {
            if keys.has(key) {
                keys.wrong(
                    key,
                    "datagrams know neither requests nor connections",
                    "drop it; udp = { idle = \"60s\" } says when a flow is over",
                );
            }
        }
        return Timeouts {
            idle: positive(&keys.inner("udp", &[]), "idle", UDP_IDLE),
            endpoint_grace,
            ..default
        };
    }
    let idle = match protocol {
        Protocol::Tcp | Protocol::Tls => TCP_IDLE,
        Protocol::Http | Protocol::Udp => default.idle,
    };
    Timeouts {
        request: positive(keys, "timeout", default.request),
        connect: positive(keys, "connect_timeout", default.connect),
        idle: positive(keys, "idle_timeout", idle),
        half_closed: positive(keys, "half_close_timeout", default.half_closed),
        endpoint_grace,
        connection_age: age(keys, protocol, default.connection_age),
    }
}

/// What is relayed whole ends with its client, whatever its age.
fn age(keys: &Keys<'_>, protocol: Protocol, default: Option<Duration>) -> Option<Duration> {
    if protocol == Protocol::Http {
        return super::connection_age(keys, default);
    }
    refuse_without_http(keys, "connection_age");
    None
}

fn retry(keys: &Keys<'_>, protocol: Protocol) -> Retry {
    let default = Retry::default();
    if protocol != Protocol::Http {
        refuse_without_http(keys, "retry");
        return Retry {
            retries: 0,
            ..default
        };
    }
    let inner = keys.inner("retry", &["hedge"]);
    let mut on = RetryOn::default();
    for OnClass(class) in inner.list("on", vec![OnClass(Class::GatewayError)]) {
        match class {
            Class::GatewayError => on.gateway_error = true,
            Class::ServerError => on.server_error = true,
            Class::Reset => on.reset = true,
            Class::NonIdempotent => on.non_idempotent = true,
        }
    }
    let Budget { share, per_second } = inner.or(
        "budget",
        Budget {
            share: default.budget_share,
            per_second: default.budget_per_second,
        },
    );
    let retry = Retry {
        retries: inner.or("retries", Retries(default.retries)).0,
        on,
        per_try: inner.optional("per_try_timeout"),
        budget_share: share,
        budget_per_second: per_second,
    };
    inner.done();
    retry
}

/// One attempt must have some time, and not more than the whole request.
fn per_try_fits(keys: &Keys<'_>, policy: &Policy) {
    let Some(per_try) = policy.retry.per_try else {
        return;
    };
    let request = policy.timeouts.request;
    let retry = keys.inner("retry", &[]);
    if per_try.is_zero() {
        let inherited = request.show();
        retry.wrong(
            "per_try_timeout",
            "\"0s\" leaves an attempt no time",
            format!("use at least \"1ms\", or drop the line to leave it the whole {inherited}"),
        );
    } else if per_try > request && !request.is_zero() {
        retry.wrong(
            "per_try_timeout",
            format!(
                "{} is longer than the whole request's timeout {}",
                per_try.show(),
                request.show()
            ),
            "make it shorter, or the timeout longer",
        );
    }
}

fn ejection(keys: &Keys<'_>) -> Ejection {
    let inner = keys.inner("ejection", &[]);
    let default = Ejection::default();
    let ejection = Ejection {
        consecutive: inner.or("consecutive", Count(default.consecutive)).0,
        success_below: inner.or("success_below", Share(default.success_below)).0,
        base: positive(&inner, "base", default.base),
        max: positive(&inner, "max", default.max),
        max_ejected: inner.or("max_ejected", Share(default.max_ejected)).0,
    };
    if ejection.base > ejection.max {
        let key = if inner.has("base") { "base" } else { "max" };
        inner.wrong(
            key,
            format!(
                "base {} is longer than max {}",
                ejection.base.show(),
                ejection.max.show()
            ),
            "base is the first time out and max the longest: make base the shorter one",
        );
    }
    inner.done();
    ejection
}

fn limits(keys: &Keys<'_>, protocol: Protocol) -> Limits {
    let inner = keys.inner("limits", &[]);
    let default = Limits::default();
    let per_endpoint = inner.inner("per_endpoint", &["connections", "pending"]);
    let Bytes(header_bytes) = inner.or("header_bytes", Bytes(default.header_bytes));
    if !HEADER_BYTES.contains(&header_bytes) {
        inner.wrong(
            "header_bytes",
            format!("{} is out of range", Bytes(header_bytes).show()),
            format!(
                "use {} to {}",
                Bytes(*HEADER_BYTES.start()).show(),
                Bytes(*HEADER_BYTES.end()).show()
            ),
        );
    }
    let limits = Limits {
        connections: inner.or("connections", default.connections),
        requests: inner.or("requests", default.requests),
        pending: inner.or("pending", default.pending),
        header_bytes,
        body_bytes: body_bytes(&inner, protocol),
        endpoint_requests: per_endpoint.optional("requests"),
    };
    per_endpoint.done();
    inner.done();
    limits
}

/// How long a request's body may be. Nothing stands for no limit, so that 0 is left for bodies that nobody wants.
fn body_bytes(inner: &Keys<'_>, protocol: Protocol) -> Option<u64> {
    if protocol != Protocol::Http {
        refuse_without_http(inner, "body_bytes");
        return None;
    }
    let Bytes(bytes) = inner.optional("body_bytes")?;
    u64::try_from(bytes).ok()
}

fn zones(keys: &Keys<'_>) -> Zones {
    let inner = keys.inner("zones", &[]);
    let mode = inner.or("mode", ZoneMode::Waterfill);
    let order: Vec<Box<str>> = inner
        .list::<Label>("order", Vec::new())
        .into_iter()
        .map(|Label(zone)| zone)
        .collect();
    if mode == ZoneMode::Ignore && !order.is_empty() {
        inner.wrong(
            "order",
            "zones are ignored, so their order says nothing",
            "drop it, or write mode = \"waterfill\"",
        );
    }
    if let Some(twice) = order
        .iter()
        .enumerate()
        .find(|(at, zone)| order[..*at].contains(zone))
    {
        inner.wrong(
            "order",
            format!("{:?} stands there twice", twice.1),
            "name each zone once",
        );
    }
    inner.done();
    Zones { mode, order }
}

/// Most endpoints of one tier that are called from here; 0 for all.
fn subset(keys: &Keys<'_>) -> Option<u32> {
    let Count(most) = keys.or("subset", Count(SUBSET));
    if (1..SUBSET_MIN).contains(&most) {
        keys.wrong(
            "subset",
            format!("{most} are too few to choose from, and too few to lose one of"),
            format!("use at least {SUBSET_MIN}, or 0 to call all of them"),
        );
    }
    (most > 0).then_some(most)
}

fn subset_has_a_say(keys: &Keys<'_>, policy: &Policy) {
    if policy.hash.is_some() && policy.subset.is_some() && keys.has("subset") {
        keys.wrong(
            "subset",
            "a key may belong to any endpoint, so where keys decide all of them are called",
            "drop it, or take another balance",
        );
    }
}
