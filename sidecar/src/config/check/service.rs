//! `[service.*]`: what this host offers.

use std::net::SocketAddr;

use mesh_core::policy::Weight;
use mesh_proto::record::WireProtocol;

use super::health::{Whose, active_check};
use crate::config::{
    Node, Service,
    raw::Value,
    read::Keys,
    value::{self, Label, Port, Rate, ServiceName, Setting, Wrong},
};

/// Tags travel in every record, and a record has 512 bytes in all.
const TAGS_BYTES_MAX: usize = 192;

/// One service table; `None` if it does not say where the application is.
pub fn service(table: &str, keys: &Keys<'_>, node: &Node, whose: Whose) -> Option<Service> {
    let service = service_name(table, keys);
    let address = address(keys, node);
    let known_address = address.unwrap_or(SocketAddr::new(node.advertise, 0));

    let instance = format!("{}-{}", node.id, known_address.port());
    let Label(instance) = keys.or("instance", Label(instance.into()));
    let advertise: SocketAddr = keys.or("advertise", known_address);
    if keys.has("advertise")
        && let Err(wrong) = super::callable(advertise)
    {
        keys.wrong("advertise", wrong.what, wrong.fix);
    }
    let capacity = capacity(keys);
    let tags = tags(keys);
    let protocol = keys.or("protocol", WireProtocol::Http);
    let weight = keys.or("weight", Weight::DEFAULT);
    let check = active_check(keys, whose);
    Some(Service {
        table: table.into(),
        service,
        instance,
        address: address?,
        advertise,
        protocol,
        weight,
        capacity,
        tags,
        check,
    })
}

/// Where this sidecar reaches the application; `None` if nothing says so.
fn address(keys: &Keys<'_>, node: &Node) -> Option<SocketAddr> {
    let port = keys.optional("port").map(|Port(port)| port);
    let written: Option<SocketAddr> = keys.optional("address");
    if let Some(address) = written {
        if let Err(wrong) = super::callable(address) {
            keys.wrong("address", wrong.what, wrong.fix);
        }
        if port.is_some() {
            keys.wrong(
                "port",
                "port and address both say where the application is",
                "keep one of them",
            );
        }
    } else if !keys.has("port") && !keys.has("address") {
        keys.absent(
            "port",
            "it does not say where the application listens",
            "add port = 8080, or address = \"10.0.0.5:8080\"",
        );
    }
    written.or(port.map(|port| SocketAddr::new(node.advertise, port)))
}

/// Whole requests per second.
fn capacity(keys: &Keys<'_>) -> Option<u32> {
    let Rate(rate) = keys.optional("capacity")?;
    let whole = rate.round();
    if !(1.0..=f64::from(u32::MAX)).contains(&whole) {
        keys.wrong(
            "capacity",
            "a capacity is at least one request per second",
            "write it like \"500/s\", or drop the line",
        );
    }
    Some(whole as u32)
}

fn tags(keys: &Keys<'_>) -> Vec<(Box<str>, Box<str>)> {
    let tags = keys.words("tags");
    let bytes: usize = tags
        .iter()
        .map(|(name, word)| name.len() + word.len() + 2)
        .sum();
    if bytes > TAGS_BYTES_MAX {
        keys.wrong(
            "tags",
            format!("{bytes} bytes of tags do not fit into a record"),
            format!("keep what callers select by: at most {TAGS_BYTES_MAX} bytes"),
        );
    }
    tags
}

/// `service`, or the table's name where that is a service's name.
pub fn service_name(table: &str, keys: &Keys<'_>) -> Box<str> {
    let default = match ServiceName::parse(table) {
        Ok(name) => name,
        Err(wrong) if !keys.has("service") => {
            keys.wrong(
                "service",
                wrong.what,
                format!("{}; or add service = \"name\"", wrong.fix),
            );
            ServiceName(table.into())
        }
        Err(_) => ServiceName(table.into()),
    };
    let ServiceName(name) = keys.or("service", default);
    name
}

const PROTOCOLS: [(&str, WireProtocol); 5] = [
    ("http", WireProtocol::Http),
    ("grpc", WireProtocol::Grpc),
    ("tcp", WireProtocol::Tcp),
    ("udp", WireProtocol::Udp),
    ("tls", WireProtocol::Tls),
];

impl Setting for WireProtocol {
    fn read(value: &Value) -> Result<WireProtocol, Wrong> {
        if matches!(value, Value::List(_)) {
            return Err(Wrong::later("a list of protocols"));
        }
        value::word(value, &PROTOCOLS, &[])
    }

    fn show(&self) -> String {
        value::name_of(&PROTOCOLS, *self)
    }
}
