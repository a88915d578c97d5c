//! `[upstream.*]`: what this host calls, and by which rules.

use std::{sync::Arc, time::Duration};

use mesh_core::policy::{
    Balance, Ejection, FixedEndpoint, HttpVersion, Limits, Place, Policy, Protocol, Retry, RetryOn,
    Timeouts, Weight, ZoneMode, Zones,
};
use mesh_proto::record::WireProtocol;

use super::positive;
use crate::config::{
    ListenAddress, Upstream,
    raw::{Raw, Value},
    read::{Keys, table_of},
    value::{self, Bytes, Count, Label, Rate, ServiceName, Setting, Share, Wrong},
};

/// Keys of `[upstream.*]` that a later version knows.
pub const KEYS_LATER: [&str; 8] = [
    "sticky",
    "listen_tls",
    "accept_proxy_protocol",
    "send_proxy_protocol",
    "tls",
    "udp",
    "sni",
    "route",
];
/// Fixed endpoints of one upstream; a name may still resolve to many.
const ENDPOINTS_MAX: usize = 1024;
/// hyper's HTTP/1 parser wants at least 8 KiB of room.
const HEADER_BYTES: std::ops::RangeInclusive<usize> = 8 << 10..=1 << 20;
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
    let protocol = if spoken == WireProtocol::Tcp {
        Protocol::Tcp
    } else {
        Protocol::Http
    };
    let listen: Vec<ListenAddress> = keys.list("listen", Vec::new());
    if protocol == Protocol::Tcp && listen.is_empty() && !keys.has("listen") {
        keys.absent(
            "listen",
            "a tcp upstream has no authority to be found by, so it needs a port of its own",
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
    let check = super::active_check(keys);
    if keys.has("check") && !keys.has("endpoints") {
        keys.wrong(
            "check",
            "instances of the mesh are checked by the sidecar beside them",
            "move it to the [service.*] table of their hosts, or add endpoints",
        );
    }
    let policy = Policy {
        name: table.into(),
        select: select(keys, service.is_some()),
        service,
        protocol,
        http: http_version(keys, spoken),
        balance: balance(keys),
        timeouts: timeouts(keys, protocol),
        retry: retry(keys, protocol),
        ejection: ejection(keys),
        limits: limits(keys),
        zones: zones(keys),
        endpoints,
    };
    per_try_fits(keys, &policy);
    Upstream {
        policy: Arc::new(policy),
        listen,
        check,
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
        WireProtocol::Tcp => {
            refuse_on_tcp(keys, "http");
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

fn refuse_on_tcp(keys: &Keys<'_>, key: &'static str) {
    if keys.has(key) {
        keys.wrong(
            key,
            "a tcp upstream relays bytes and knows no requests",
            "drop it, or write protocol = \"http\"",
        );
    }
}

fn balance(keys: &Keys<'_>) -> Balance {
    match keys.raw("balance") {
        Some(raw) if table_of(raw).is_some() => {
            let inner = keys.inner("balance", &["key", "table"]);
            if !inner.has("policy") {
                inner.absent(
                    "policy",
                    "it names no policy",
                    "write balance = \"least_response_time\"",
                );
            }
            let balance = inner.or("policy", Balance::LeastResponseTime);
            inner.done();
            balance
        }
        _ => keys.or("balance", Balance::LeastResponseTime),
    }
}

fn timeouts(keys: &Keys<'_>, protocol: Protocol) -> Timeouts {
    let default = Timeouts::default();
    let idle = if protocol == Protocol::Tcp {
        TCP_IDLE
    } else {
        default.idle
    };
    Timeouts {
        request: positive(keys, "timeout", default.request),
        connect: positive(keys, "connect_timeout", default.connect),
        idle: positive(keys, "idle_timeout", idle),
    }
}

fn retry(keys: &Keys<'_>, protocol: Protocol) -> Retry {
    let default = Retry::default();
    if protocol == Protocol::Tcp {
        refuse_on_tcp(keys, "retry");
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
        retries: inner.or("retries", default.retries),
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

fn limits(keys: &Keys<'_>) -> Limits {
    let inner = keys.inner("limits", &["body_bytes"]);
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
        endpoint_requests: per_endpoint.optional("requests"),
    };
    per_endpoint.done();
    inner.done();
    limits
}

fn zones(keys: &Keys<'_>) -> Zones {
    let inner = keys.inner("zones", &[]);
    let mode = inner.or("mode", ZoneMode::Priority);
    let order: Vec<Box<str>> = inner
        .list::<Label>("order", Vec::new())
        .into_iter()
        .map(|Label(zone)| zone)
        .collect();
    if mode == ZoneMode::Ignore && !order.is_empty() {
        inner.wrong(
            "order",
            "zones are ignored, so their order says nothing",
            "drop it, or write mode = \"priority\"",
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

/// Whether the mesh's own instances are listed, and the fixed endpoints.
fn endpoints(keys: &Keys<'_>) -> (bool, Vec<FixedEndpoint>) {
    let Some(raw) = keys.raw("endpoints") else {
        return (false, Vec::new());
    };
    let items = match &raw.value {
        Value::List(items) => items.as_slice(),
        _ => std::slice::from_ref(raw),
    };
    if items.is_empty() || items.len() > ENDPOINTS_MAX {
        keys.wrong(
            "endpoints",
            format!("{} endpoints are not 1 to {ENDPOINTS_MAX}", items.len()),
            "write them like [\"10.0.9.1:5432\"], or drop the line to call the mesh service of this name",
        );
        return (false, Vec::new());
    }
    let (mut mesh, mut fixed, mut shown) = (false, Vec::new(), Vec::new());
    for (at, item) in items.iter().enumerate() {
        match endpoint(keys, at, item) {
            Some(Listed::Mesh) => {
                mesh = true;
                shown.push("\"mesh\"".to_owned());
            }
            Some(Listed::Fixed(endpoint)) => {
                if fixed
                    .iter()
                    .any(|known: &FixedEndpoint| known.place == endpoint.place)
                {
                    let wrong = Wrong::new(
                        format!("{} stands there twice", show_place(&endpoint.place)),
                        "keep one of them",
                    );
                    keys.wrong_at(item.place.clone(), "endpoints", wrong);
                }
                shown.push(show_endpoint(&endpoint));
                fixed.push(endpoint);
            }
            None => {}
        }
    }
    keys.note_written("endpoints", format!("[{}]", shown.join(", ")));
    (mesh, fixed)
}

enum Listed {
    Mesh,
    Fixed(FixedEndpoint),
}

fn endpoint(keys: &Keys<'_>, at: usize, item: &Raw) -> Option<Listed> {
    let Some(table) = table_of(item) else {
        let (place, _) = keys.parsed_with("endpoints", item, |value| {
            let text = value::text(value, "10.0.9.1:5432")?;
            if text == "mesh" {
                Ok(None)
            } else {
                place(text).map(Some)
            }
        })?;
        return Some(match place {
            None => Listed::Mesh,
            Some(place) => Listed::Fixed(FixedEndpoint {
                place,
                zone: None,
                weight: Weight::DEFAULT,
                backup: false,
            }),
        });
    };
    let inner = keys.item("endpoints", at, table, item.place.clone());
    let address = inner.optional::<Box<str>>("address");
    if !inner.has("address") {
        inner.absent(
            "address",
            "it does not say where the endpoint is",
            "add address = \"10.0.9.9:5432\"",
        );
    }
    let place = address.and_then(|text| match place(&text) {
        Ok(place) => Some(place),
        Err(wrong) => {
            inner.wrong("address", wrong.what, wrong.fix);
            None
        }
    });
    let zone = inner.optional::<Label>("zone").map(|Label(zone)| zone);
    let weight = inner.optional("weight").unwrap_or(Weight::DEFAULT);
    let backup = inner.optional("backup").unwrap_or(false);
    inner.done();
    Some(Listed::Fixed(FixedEndpoint {
        place: place?,
        zone,
        weight,
        backup,
    }))
}

fn place(text: &str) -> Result<Place, Wrong> {
    let (host, port) = value::host_and_port(text, None)?;
    match host.parse() {
        Ok(ip) => {
            let address = std::net::SocketAddr::new(ip, port);
            super::callable(address)?;
            Ok(Place::Address(address))
        }
        Err(_) => Ok(Place::Name { host, port }),
    }
}

fn show_place(place: &Place) -> String {
    match place {
        Place::Address(address) => value::quote(&address.to_string()),
        Place::Name { host, port } => value::quote(&format!("{host}:{port}")),
    }
}

fn show_endpoint(endpoint: &FixedEndpoint) -> String {
    let plain = endpoint.zone.is_none() && endpoint.weight == Weight::DEFAULT && !endpoint.backup;
    if plain {
        return show_place(&endpoint.place);
    }
    let zone = endpoint.zone.as_ref().map_or(String::new(), |zone| {
        format!(", zone = {}", value::quote(zone))
    });
    let (weight, backup) = (endpoint.weight.get(), endpoint.backup);
    format!(
        "{{ address = {}{zone}, weight = {weight}, backup = {backup} }}",
        show_place(&endpoint.place)
    )
}

/// Repeats allowed: a share of requests, and so many a second beside it.
struct Budget {
    share: f64,
    per_second: f64,
}

impl Setting for Budget {
    fn read(value: &Value) -> Result<Budget, Wrong> {
        let whole = value::text(value, "20% + 3/s")?;
        let (mut share, mut rate) = (None, None);
        for part in whole.split('+') {
            match (Share::parse(part), Rate::parse(part)) {
                (Some(Share(part)), _) if share.is_none() => share = Some(part),
                (_, Some(Rate(part))) if rate.is_none() => rate = Some(part),
                _ => {
                    return Err(Wrong::new(
                        format!("{whole:?} is not a budget"),
                        "write a share of requests and a rate beside it, like \"20% + 3/s\"",
                    ));
                }
            }
        }
        Ok(Budget {
            share: share.unwrap_or(0.0),
            per_second: rate.unwrap_or(0.0),
        })
    }

    fn show(&self) -> String {
        let (percent, rate) = (
            value::rounded(self.share * 100.0),
            value::rounded(self.per_second),
        );
        format!("\"{percent}% + {rate}/s\"")
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    GatewayError,
    ServerError,
    Reset,
    NonIdempotent,
}

struct OnClass(Class);

const CLASSES: [(&str, Class); 4] = [
    ("gateway-error", Class::GatewayError),
    ("5xx", Class::ServerError),
    ("reset", Class::Reset),
    ("non-idempotent", Class::NonIdempotent),
];

impl Setting for OnClass {
    fn read(value: &Value) -> Result<OnClass, Wrong> {
        value::word(value, &CLASSES, &[]).map(OnClass)
    }

    fn show(&self) -> String {
        value::name_of(&CLASSES, self.0)
    }
}

const BALANCES: [(&str, Balance); 5] = [
    ("least_response_time", Balance::LeastResponseTime),
    ("round_robin", Balance::RoundRobin),
    ("least_connections", Balance::LeastConnections),
    ("power_of_two", Balance::PowerOfTwo),
    ("random", Balance::Random),
];

impl Setting for Balance {
    fn read(value: &Value) -> Result<Balance, Wrong> {
        value::word(value, &BALANCES, &["consistent_hash"])
    }

    fn show(&self) -> String {
        value::name_of(&BALANCES, *self)
    }
}

const HTTP_VERSIONS: [(&str, HttpVersion); 3] = [
    ("auto", HttpVersion::Auto),
    ("1", HttpVersion::One),
    ("2", HttpVersion::Two),
];

impl Setting for HttpVersion {
    fn read(value: &Value) -> Result<HttpVersion, Wrong> {
        value::word(value, &HTTP_VERSIONS, &["3"])
    }

    fn show(&self) -> String {
        value::name_of(&HTTP_VERSIONS, *self)
    }
}

const ZONE_MODES: [(&str, ZoneMode); 2] = [
    ("priority", ZoneMode::Priority),
    ("ignore", ZoneMode::Ignore),
];

impl Setting for ZoneMode {
    fn read(value: &Value) -> Result<ZoneMode, Wrong> {
        value::word(value, &ZONE_MODES, &["waterfill"])
    }

    fn show(&self) -> String {
        value::name_of(&ZONE_MODES, *self)
    }
}
