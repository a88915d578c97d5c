//! What spans tables: what may face the network, who listens where, who is who.

use std::net::SocketAddr;

use mesh_core::policy::Place as EndpointPlace;

use crate::config::{
    Config, ListenAddress,
    fault::Place,
    read::Keys,
    value::{Setting, Wrong},
};

type Named<'a> = [(&'a str, Keys<'a>)];

/// What faces the network must be guarded.
pub fn security(
    config: &Config,
    gossip: &Keys<'_>,
    admin: &Keys<'_>,
    outbound: &Keys<'_>,
    services: &Named<'_>,
    upstreams: &Named<'_>,
) {
    let bind = config.gossip.bind;
    if !bind.ip().is_loopback() && !gossip.has("key") && !gossip.has("keys") {
        gossip.absent(
            "key",
            format!("gossip on {bind} goes beyond this host, and without a key anybody could join"),
            "make one with `starling key new > /etc/starling/gossip.key` and write key = \"file:/etc/starling/gossip.key\", \
             or bind = \"127.0.0.1:7946\"",
        );
    }
    if bind.ip().is_loopback() {
        let beyond = config.gossip.join.iter().find(|seed| {
            let address = seed.parse::<SocketAddr>();
            address.is_ok_and(|address| !address.ip().is_loopback())
        });
        if let Some(seed) = beyond {
            gossip.wrong(
                "join",
                format!(
                    "{seed} cannot be reached from gossip.bind {bind}, which stays on this host"
                ),
                "bind gossip to \"0.0.0.0:7946\" or an address of this host",
            );
        }
    }
    let bind = config.admin.bind;
    if !bind.ip().is_loopback() && !admin.has("token") {
        admin.absent(
            "token",
            format!("admin on {bind} can be reached from other hosts and has no token"),
            "write token = \"file:/etc/starling/admin.token\" (`starling key new` makes one), or bind = \"127.0.0.1:7070\"",
        );
    }
    if config.outbound.clients.is_empty() && !outbound.has("clients") {
        open_without_clients(outbound, "http", &config.outbound.http);
        for (name, keys) in upstreams {
            if let Some(upstream) = config
                .upstreams
                .iter()
                .find(|upstream| *upstream.policy.name == **name)
            {
                open_without_clients(keys, "listen", &upstream.listen);
            }
        }
    }
    if !config.gossip.bind.ip().is_loopback() {
        for (name, keys) in services {
            let own = config
                .services
                .iter()
                .find(|service| *service.table == **name);
            if let Some(service) = own.filter(|service| service.advertise.ip().is_loopback()) {
                let key = if keys.has("advertise") {
                    "advertise"
                } else {
                    "address"
                };
                keys.wrong(
                    key,
                    format!(
                        "other hosts would be sent to {}, which is themselves",
                        service.advertise
                    ),
                    "let the application listen on the host's address and write port = …, \
                     or keep gossip on loopback (an [inbound] door is not in this version)",
                );
            }
        }
    }
}

fn open_without_clients(keys: &Keys<'_>, key: &'static str, listen: &[ListenAddress]) {
    let open = listen.iter().find(
        |address| matches!(address, ListenAddress::Tcp(address) if !address.ip().is_loopback()),
    );
    if let Some(address) = open {
        keys.wrong(
            key,
            format!(
                "{} can be called from other hosts, and nobody is named who may",
                address.show()
            ),
            "add clients = [\"172.26.64.0/20\"] to [outbound], or listen on 127.0.0.1",
        );
    }
}

/// A socket somebody listens on.
struct Taken {
    address: ListenAddress,
    key: String,
}

/// No two listeners share an address, and nothing this sidecar calls is its own listener.
pub fn listeners(
    gossip: &Keys<'_>,
    admin: &Keys<'_>,
    outbound: &Keys<'_>,
    upstreams: &Named<'_>,
    config: &Config,
) {
    let mut taken: Vec<Taken> = Vec::new();
    let mut take = |keys: &Keys<'_>, key: &'static str, address: ListenAddress| {
        if let Some(before) = taken
            .iter()
            .find(|before| collide(&before.address, &address))
        {
            keys.wrong(
                key,
                format!("{} is taken by {} already", address.show(), before.key),
                "choose another port or path for one of them",
            );
            return;
        }
        taken.push(Taken {
            address,
            key: keys.path(key),
        });
    };
    take(gossip, "bind", ListenAddress::Tcp(config.gossip.bind));
    take(admin, "bind", ListenAddress::Tcp(config.admin.bind));
    if let Some(socket) = &config.admin.socket {
        take(admin, "socket", ListenAddress::Unix(socket.clone()));
    }
    for address in &config.outbound.http {
        take(outbound, "http", address.clone());
    }
    for (name, keys) in upstreams {
        let upstream = config
            .upstreams
            .iter()
            .find(|upstream| *upstream.policy.name == **name);
        for address in upstream.iter().flat_map(|upstream| &upstream.listen) {
            take(keys, "listen", address.clone());
        }
    }
    for (name, keys) in upstreams {
        let upstream = config
            .upstreams
            .iter()
            .find(|upstream| *upstream.policy.name == **name);
        for endpoint in upstream
            .iter()
            .flat_map(|upstream| &upstream.policy.endpoints)
        {
            if let EndpointPlace::Address(address) = endpoint.place
                && let Some(own) = listener_at(&taken, address)
            {
                keys.wrong(
                    "endpoints",
                    format!(
                        "{address} is this sidecar's own {}: calls would go round in a circle",
                        own.key
                    ),
                    "write the server's own address",
                );
            }
        }
    }
}

fn listener_at(taken: &[Taken], address: SocketAddr) -> Option<&Taken> {
    // Whoever listens everywhere listens on loopback too; other hosts may use the same port number.
    taken.iter().find(|taken| match &taken.address {
        ListenAddress::Tcp(own) => {
            *own == address
                || (own.port() == address.port()
                    && own.ip().is_unspecified()
                    && address.ip().is_loopback())
        }
        ListenAddress::Unix(_) => false,
    })
}

/// Whether the kernel would refuse the second of two listeners.
fn collide(a: &ListenAddress, b: &ListenAddress) -> bool {
    match (a, b) {
        (ListenAddress::Tcp(a), ListenAddress::Tcp(b)) => {
            let same_host = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
            a.port() == b.port() && a.port() != 0 && same_host
        }
        (ListenAddress::Unix(a), ListenAddress::Unix(b)) => a == b,
        _ => false,
    }
}

/// No two instances of a service share a name, and no application stands where this sidecar listens.
pub fn instances(services: &Named<'_>, config: &Config) {
    let own: Vec<SocketAddr> = config
        .outbound
        .http
        .iter()
        .chain(
            config
                .upstreams
                .iter()
                .flat_map(|upstream| &upstream.listen),
        )
        .filter_map(|address| match address {
            ListenAddress::Tcp(address) => Some(*address),
            ListenAddress::Unix(_) => None,
        })
        .chain([config.admin.bind])
        .collect();
    let mut seen: Vec<(&str, &str, Place)> = Vec::new();
    for (name, keys) in services {
        let Some(service) = config
            .services
            .iter()
            .find(|service| *service.table == **name)
        else {
            continue;
        };
        let key = if keys.has("address") {
            "address"
        } else {
            "port"
        };
        if own.contains(&service.address) {
            keys.wrong(
                key,
                format!("{} is where this sidecar listens itself", service.address),
                "write the application's own port",
            );
        }
        let twice = seen.iter().find(|(known, instance, _)| {
            (*known, *instance) == (&service.service, &service.instance)
        });
        if let Some((_, _, first)) = twice {
            let what = format!(
                "the instance {} of {} stands at {first} already",
                service.instance, service.service
            );
            keys.wrong_at(
                keys.place("instance"),
                "instance",
                Wrong::new(what, "give each instance its own name or port"),
            );
        } else {
            seen.push((&service.service, &service.instance, keys.place("instance")));
        }
    }
}
