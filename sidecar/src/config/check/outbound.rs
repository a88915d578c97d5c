//! `[outbound]`: where local applications call the mesh.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::config::{
    ListenAddress, Outbound,
    raw::Value,
    read::Keys,
    value::{self, ServiceName, Setting, Wrong},
};

const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7080);

pub fn outbound(keys: &Keys<'_>) -> Outbound {
    let ServiceName(domain) = keys.or("domain", ServiceName("mesh".into()));
    keys.or("external", External::Refuse);
    Outbound {
        http: keys.list("http", vec![ListenAddress::Tcp(HTTP)]),
        domain,
        undeclared: keys.or("undeclared", Undeclared(true)).0,
        clients: keys.list("clients", Vec::new()),
        connection_age: super::connection_age(keys, None),
        trusted_proxies: keys.list("trusted_proxies", Vec::new()),
        control_headers: keys.or("control_headers", false),
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
