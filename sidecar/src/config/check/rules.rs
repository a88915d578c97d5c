//! What spans tables: what may face the network, who listens where, who is who.

use std::net::SocketAddr;

use mesh_core::policy::{HashKey, Place as EndpointPlace, Protocol};
use mesh_proto::record::WireProtocol;

use super::Tables;
use crate::config::{
    Config, ListenAddress, Service, Upstream, fault::Place, read::Keys, value::Setting,
};

/// Holds every rule against the configuration; what breaks one is complained of where it is written.
pub fn judge(tables: &Tables<'_>, config: &Config) {
    gossip_is_guarded(tables, config);
    seeds_are_in_reach(tables, config);
    admin_is_guarded(tables, config);
    listeners_name_their_clients(tables, config);
    services_are_in_reach(tables, config);
    let taken = listeners_are_apart(tables, config);
    nobody_calls_himself(tables, config, &taken);
    instances_are_apart(tables, config);
    callers_are_known(tables, config);
}

/// Every service with its keys.
fn services<'t>(
    tables: &'t Tables<'_>,
    config: &'t Config,
) -> impl Iterator<Item = (&'t Keys<'t>, &'t Service)> {
    tables.services.iter().filter_map(|(name, keys)| {
        let mut all = config.services.iter();
        Some((keys, all.find(|service| *service.table == **name)?))
    })
}

/// Every upstream with its keys.
fn upstreams<'t>(
    tables: &'t Tables<'_>,
    config: &'t Config,
) -> impl Iterator<Item = (&'t Keys<'t>, &'t Upstream)> {
    let keys = tables.upstreams.iter().map(|(_, keys)| keys);
    keys.zip(&config.upstreams)
}

fn gossip_is_guarded(tables: &Tables<'_>, config: &Config) {
    let (keys, bind) = (&tables.gossip, config.gossip.bind);
    if !bind.ip().is_loopback() && !keys.has("key") && !keys.has("keys") {
        keys.absent(
            "key",
            format!("gossip on {bind} goes beyond this host, and without a key anybody could join"),
            "make one with `starling key new > /etc/starling/gossip.key` and write \
             key = \"file:/etc/starling/gossip.key\", or bind = \"127.0.0.1:7946\"",
        );
    }
}

fn seeds_are_in_reach(tables: &Tables<'_>, config: &Config) {
    let bind = config.gossip.bind;
    let beyond = config.gossip.join.iter().find(|seed| {
        let address = seed.parse::<SocketAddr>();
        address.is_ok_and(|address| !address.ip().is_loopback())
    });
    if let Some(seed) = beyond.filter(|_| bind.ip().is_loopback()) {
        tables.gossip.wrong(
            "join",
            format!("{seed} cannot be reached from gossip.bind {bind}, which stays on this host"),
            "bind gossip to \"0.0.0.0:7946\" or an address of this host",
        );
    }
}

fn admin_is_guarded(tables: &Tables<'_>, config: &Config) {
    let bind = config.admin.bind;
    if !bind.ip().is_loopback() && !tables.admin.has("token") {
        tables.admin.absent(
            "token",
            format!("admin on {bind} can be reached from other hosts and has no token"),
            "write token = \"file:/etc/starling/admin.token\" (`starling key new` makes one), \
             or bind = \"127.0.0.1:7070\"",
        );
    }
}

fn listeners_name_their_clients(tables: &Tables<'_>, config: &Config) {
    if tables.outbound.has("clients") {
        return;
    }
    open_without_clients(&tables.outbound, "http", &config.outbound.http);
    for (keys, upstream) in upstreams(tables, config) {
        open_without_clients(keys, "listen", &upstream.listen);
    }
}

fn open_without_clients(keys: &Keys<'_>, key: &'static str, listen: &[ListenAddress]) {
    let open = listen.iter().find(
        |address| matches!(address, ListenAddress::Tcp(at) | ListenAddress::Udp(at) if !at.ip().is_loopback()),
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

fn services_are_in_reach(tables: &Tables<'_>, config: &Config) {
    for (keys, service) in services(tables, config) {
        is_in_reach(keys, service, config);
    }
}

fn is_in_reach(keys: &Keys<'_>, service: &Service, config: &Config) {
    if !config.gossip.bind.ip().is_loopback() && service.advertise.ip().is_loopback() {
        let written = keys.has("advertise");
        keys.wrong(
            if written { "advertise" } else { "address" },
            format!(
                "other hosts would be sent to {}, which is themselves",
                service.advertise
            ),
            "let the application listen on the host's address and write port = …, \
             or keep gossip on loopback (an [inbound] door is not in this version)",
        );
    }
}

/// The rules that also hold for a service which is registered while the sidecar runs.
pub fn judge_leased(keys: &Keys<'_>, service: &Service, config: &Config) {
    is_in_reach(keys, service, config);
    let mut own = vec![
        taken("gossip.bind", ListenAddress::Tcp(config.gossip.bind)),
        taken("gossip.bind", ListenAddress::Udp(config.gossip.bind)),
        taken("admin.bind", ListenAddress::Tcp(config.admin.bind)),
    ];
    let outbound = config.outbound.http.iter().cloned();
    own.extend(outbound.map(|address| taken("outbound.http", address)));
    for upstream in &config.upstreams {
        let key = format!("upstream.{}.listen", upstream.policy.name);
        let addresses = upstream.listen.iter().cloned();
        own.extend(addresses.map(|address| taken(&key, address)));
    }
    is_no_circle(keys, service, &own);
}

fn taken(key: &str, address: ListenAddress) -> Taken {
    let key = key.to_owned();
    Taken { address, key }
}

/// A socket somebody listens on.
struct Taken {
    address: ListenAddress,
    key: String,
}

fn listeners_are_apart(tables: &Tables<'_>, config: &Config) -> Vec<Taken> {
    let mut taken: Vec<Taken> = Vec::new();
    let mut take = |keys: &Keys<'_>, key: &'static str, address: ListenAddress| {
        let before = taken
            .iter()
            .find(|before| collide(&before.address, &address));
        if let Some(before) = before {
            keys.wrong(
                key,
                format!("{} is taken by {} already", address.show(), before.key),
                "choose another port or path for one of them",
            );
            return;
        }
        let key = keys.path(key);
        taken.push(Taken { address, key });
    };
    take(
        &tables.gossip,
        "bind",
        ListenAddress::Tcp(config.gossip.bind),
    );
    let (keys, bind) = (&tables.gossip, config.gossip.bind);
    take(keys, "bind", ListenAddress::Udp(bind));
    take(&tables.admin, "bind", ListenAddress::Tcp(config.admin.bind));
    if let Some(socket) = &config.admin.socket {
        take(&tables.admin, "socket", ListenAddress::Unix(socket.clone()));
    }
    for address in &config.outbound.http {
        take(&tables.outbound, "http", address.clone());
    }
    let mut shared: Vec<&ListenAddress> = Vec::new();
    for (keys, upstream) in upstreams(tables, config) {
        for address in &upstream.listen {
            let by_name = upstream.policy.protocol == Protocol::Tls;
            if by_name && shared.contains(&address) {
                continue;
            }
            take(keys, "listen", address.clone());
            if by_name {
                shared.push(address);
            }
        }
    }
    names_are_apart(tables, config);
    taken
}

/// Upstreams that share a listener share no server name, and expect the same of who calls.
fn names_are_apart(tables: &Tables<'_>, config: &Config) {
    let mut seen: Vec<&Upstream> = Vec::new();
    for (keys, upstream) in upstreams(tables, config) {
        for other in &seen {
            let shared = other.listen.iter().find(|at| upstream.listen.contains(at));
            let Some(address) = shared else {
                continue;
            };
            let name = &other.policy.name;
            if let Some(twice) = upstream.sni.iter().find(|names| other.sni.contains(names)) {
                keys.wrong(
                    "sni",
                    format!("{} at {address} leads to {name} already", twice.show()),
                    "give each name to one of them",
                );
            }
            if other.policy.accept_proxy != upstream.policy.accept_proxy {
                keys.wrong(
                    "accept_proxy_protocol",
                    format!("{address} is shared with {name}, which says otherwise"),
                    "say the same in both: it is read before anybody's name",
                );
            }
        }
        if upstream.policy.protocol == Protocol::Tls {
            seen.push(upstream);
        }
    }
}

fn nobody_calls_himself(tables: &Tables<'_>, config: &Config, taken: &[Taken]) {
    for (keys, upstream) in upstreams(tables, config) {
        for endpoint in &upstream.policy.endpoints {
            if let EndpointPlace::Address(address) = endpoint.place
                && let Some(own) = listener_at(taken, address, upstream.policy.protocol)
            {
                keys.wrong(
                    "endpoints",
                    circle(address, own),
                    "write the server's own address",
                );
            }
        }
    }
    for (keys, service) in services(tables, config) {
        is_no_circle(keys, service, taken);
    }
}

fn is_no_circle(keys: &Keys<'_>, service: &Service, taken: &[Taken]) {
    let protocol = match service.protocol {
        WireProtocol::Udp => Protocol::Udp,
        _ => Protocol::Tcp,
    };
    if let Some(own) = listener_at(taken, service.address, protocol) {
        let written = keys.has("address");
        keys.wrong(
            if written { "address" } else { "port" },
            circle(service.address, own),
            "write the application's own port",
        );
    }
}

fn circle(address: SocketAddr, own: &Taken) -> String {
    format!(
        "{address} is this sidecar's own {}: calls would go round in a circle",
        own.key
    )
}

fn listener_at(taken: &[Taken], address: SocketAddr, protocol: Protocol) -> Option<&Taken> {
    // Whoever listens everywhere listens on loopback too; other hosts may use the same port number.
    taken.iter().find(|taken| {
        let own = match &taken.address {
            ListenAddress::Tcp(own) if protocol != Protocol::Udp => own,
            ListenAddress::Udp(own) if protocol == Protocol::Udp => own,
            _ => return false,
        };
        *own == address
            || (own.port() == address.port()
                && own.ip().is_unspecified()
                && address.ip().is_loopback())
    })
}

/// Whether the kernel would refuse the second of two listeners.
fn collide(a: &ListenAddress, b: &ListenAddress) -> bool {
    match (a, b) {
        (ListenAddress::Tcp(a), ListenAddress::Tcp(b))
        | (ListenAddress::Udp(a), ListenAddress::Udp(b)) => {
            let same_host = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
            a.port() == b.port() && a.port() != 0 && same_host
        }
        (ListenAddress::Unix(a), ListenAddress::Unix(b)) => a == b,
        _ => false,
    }
}

/// No two instances of a service share a name.
fn instances_are_apart(tables: &Tables<'_>, config: &Config) {
    let mut seen: Vec<(&str, &str, Place)> = Vec::new();
    for (keys, service) in services(tables, config) {
        let (name, instance) = (&*service.service, &*service.instance);
        let place = keys.place("instance");
        match seen.iter().find(|(n, i, _)| (*n, *i) == (name, instance)) {
            None => seen.push((name, instance, place)),
            Some((.., first)) => keys.wrong(
                "instance",
                format!("the instance {instance} of {name} stands at {first} already"),
                "give each instance its own name or port",
            ),
        }
    }
}

/// Where keys are the services that call, this host is one service: nobody could tell the callers apart.
fn callers_are_known(tables: &Tables<'_>, config: &Config) {
    let by_caller = |upstream: &Upstream| {
        let hash = upstream.policy.hash.as_ref();
        hash.is_some_and(|hash| hash.key == HashKey::SourceService)
    };
    if config.only_service().is_some() {
        return;
    }
    let many = if config.services.is_empty() {
        "no service"
    } else {
        "several services"
    };
    for (keys, _) in upstreams(tables, config).filter(|(_, upstream)| by_caller(upstream)) {
        keys.inner("balance", &[]).wrong(
            "key",
            format!("this host offers {many}, so nobody can tell which one calls"),
            "offer one service in a [service.*] table of this host, or take another key",
        );
    }
}
