//! `[node]`, `[gossip]`, `[admin]` and `[access_log]`: who this host is, how it meets the others, how it is asked, what
//! it writes down.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::access_log::Sink;
use crate::config::{
    Admin, GOSSIP_KEYS_MAX, Gossip, GossipKey, Node, Profile, Secret,
    host::is_private,
    raw::Value,
    read::Keys,
    value::{self, Label, Setting, Workers, Wrong},
};

/// The gossip port where none is written.
pub const GOSSIP_PORT: u16 = 7946;
const ADMIN_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7070);
/// Seeds beyond that only make a join noisy: the rest is learned from the first that answers.
const SEEDS_MAX: usize = 64;

/// A host alone gossips with nobody; one with a `[gossip]` table means the network.
pub fn gossip_bind(keys: &Keys<'_>, table_written: bool) -> SocketAddr {
    let ip = if table_written {
        Ipv4Addr::UNSPECIFIED
    } else {
        Ipv4Addr::LOCALHOST
    };
    keys.or("bind", SocketAddr::from((ip, GOSSIP_PORT)))
}

pub fn node(keys: &Keys<'_>, gossip_bind: SocketAddr) -> Node {
    let host = keys.sheet().host;
    let Label(id) = keys.or("id", Label(host.name.as_str().into()));
    let Label(zone) = keys.or("zone", Label("default".into()));
    let Label(region) = keys.or("region", Label(region_of(&zone).into()));
    let cores = if host.cores < 2 { 1 } else { 2 };
    Node {
        id,
        region,
        zone,
        advertise: advertise(keys, gossip_bind),
        state_dir: keys.optional("state_dir"),
        workers: keys.or("workers", Workers(cores)).0,
    }
}

/// The zone without its last letter where that follows a digit: eu-1a lies in eu-1.
fn region_of(zone: &str) -> &str {
    let mut letters = zone.chars().rev();
    match (letters.next(), letters.next()) {
        (Some(last), Some(before)) if last.is_ascii_alphabetic() && before.is_ascii_digit() => {
            &zone[..zone.len() - 1]
        }
        _ => zone,
    }
}

fn advertise(keys: &Keys<'_>, gossip_bind: SocketAddr) -> IpAddr {
    let nowhere = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let bound = gossip_bind.ip();
    if keys.has("advertise") {
        let address = keys.or("advertise", nowhere);
        if address.is_unspecified() || address.is_multicast() {
            keys.wrong(
                "advertise",
                format!("nobody can call {address}"),
                "write the address others reach this host by",
            );
        } else if address.is_loopback() && !bound.is_loopback() {
            keys.wrong(
                "advertise",
                format!(
                    "{address} is this host alone, and gossip.bind {gossip_bind} goes beyond it"
                ),
                "write the address others reach this host by, or bind gossip to \"127.0.0.1:7946\"",
            );
        }
        return address;
    }
    if !bound.is_unspecified() {
        return keys.or("advertise", bound);
    }
    match keys.sheet().host.address {
        Some(address) if is_private(address) => keys.or("advertise", address),
        Some(address) => {
            keys.wrong(
                "advertise",
                format!("the default route's address {address} is not private, so it is not told to others unasked"),
                format!("write advertise = \"{address}\", or a private address of this host"),
            );
            nowhere
        }
        None => {
            keys.wrong(
                "advertise",
                "this host has no default route to take its address from",
                "write the address others reach this host by, such as advertise = \"10.0.0.5\"",
            );
            nowhere
        }
    }
}

pub fn gossip(
    keys: &Keys<'_>,
    bind: SocketAddr,
    node: &Node,
    node_advertise_written: bool,
) -> Gossip {
    // A host bound to one address is reached there, unless somebody said where else.
    let bound_only =
        !bind.ip().is_unspecified() && (bind.ip().is_loopback() || !node_advertise_written);
    let ip = if bound_only {
        bind.ip()
    } else {
        node.advertise
    };
    let advertise = keys.or("advertise", SocketAddr::new(ip, bind.port()));
    if keys.has("advertise")
        && let Err(wrong) = super::callable(advertise)
    {
        keys.wrong("advertise", wrong.what, wrong.fix);
    }
    let join = keys.list::<Seed>("join", Vec::new());
    if join.len() > SEEDS_MAX {
        keys.wrong(
            "join",
            format!("{} seeds are more than {SEEDS_MAX}", join.len()),
            "a few are enough: they know the rest",
        );
    }
    let Label(cluster) = keys.or("cluster", Label("default".into()));
    Gossip {
        bind,
        advertise,
        join: join.into_iter().map(|Seed(seed)| seed).collect(),
        cluster,
        keys: gossip_keys(keys),
        profile: keys.or("profile", Profile::Fast),
    }
}

fn gossip_keys(keys: &Keys<'_>) -> Vec<GossipKey> {
    if keys.has("key") && keys.has("keys") {
        keys.wrong(
            "key",
            "key and keys say the same thing twice",
            "keep keys = [\"new\", \"old\"]",
        );
    }
    let mut ring = Vec::new();
    for name in ["key", "keys"] {
        for (raw, text) in keys.secrets(name) {
            match text.parse::<GossipKey>() {
                Ok(key) => ring.push(key),
                Err(_) => keys.wrong_at(
                    raw.place,
                    name,
                    Wrong::new(
                        "this is not a gossip key of 64 hex digits",
                        "make one with `starling key new`",
                    ),
                ),
            }
        }
    }
    if ring.len() > GOSSIP_KEYS_MAX {
        keys.wrong(
            "keys",
            format!("{} keys are more than {GOSSIP_KEYS_MAX}", ring.len()),
            "drop the ones nobody encrypts with",
        );
    }
    ring
}

pub fn admin(keys: &Keys<'_>) -> Admin {
    let socket = keys.optional::<Socket>("socket");
    let token = keys.secret("token");
    if let Some(token) = &token {
        // What a header may carry, and more than anybody tries out.
        let well = token.len() >= 16 && token.bytes().all(|byte| byte.is_ascii_graphic());
        if !well {
            keys.wrong(
                "token",
                "a token has at least 16 printable characters and no spaces",
                "make one with `starling key new`",
            );
        }
    }
    Admin {
        bind: keys.or("bind", ADMIN_BIND),
        socket: socket.map(|Socket(path)| path),
        token: token.map(|token| Secret(token.into())),
    }
}

/// `[access_log]`; none without a path.
pub fn access_log(keys: &Keys<'_>) -> Option<Sink> {
    keys.optional::<Sink>("path")
}

impl Setting for Sink {
    fn read(value: &Value) -> Result<Sink, Wrong> {
        let example = "/var/log/starling/access.jsonl";
        let text = value::text(value, example)?;
        match text {
            "-" => Ok(Sink::Stdout),
            path if path.starts_with('/') => Ok(Sink::File(path.into())),
            other => Err(Wrong::new(
                format!("{other:?} is not a whole path"),
                format!("write it like {example:?}, or \"-\" for standard output"),
            )),
        }
    }

    fn show(&self) -> String {
        match self {
            Sink::Stdout => value::quote("-"),
            Sink::File(path) => value::quote(&path.display().to_string()),
        }
    }
}

/// A seed with its port.
struct Seed(Box<str>);

impl Setting for Seed {
    fn read(value: &Value) -> Result<Seed, Wrong> {
        let text = value::text(value, "10.0.0.11:7946")?;
        let (host, port) = value::host_and_port(text, Some(GOSSIP_PORT))?;
        Ok(Seed(
            if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            }
            .into(),
        ))
    }

    fn show(&self) -> String {
        value::quote(&self.0)
    }
}

/// The path of the admin socket.
struct Socket(std::path::PathBuf);

impl Setting for Socket {
    fn read(value: &Value) -> Result<Socket, Wrong> {
        let text = value::text(value, "/run/starling/admin.sock")?;
        value::socket_path(text.strip_prefix("unix:").unwrap_or(text)).map(Socket)
    }

    fn show(&self) -> String {
        value::quote(&self.0.display().to_string())
    }
}

const PROFILES: [(&str, Profile); 2] = [("fast", Profile::Fast), ("calm", Profile::Calm)];

impl Setting for Profile {
    fn read(value: &Value) -> Result<Profile, Wrong> {
        value::word(value, &PROFILES, &[])
    }

    fn show(&self) -> String {
        value::name_of(&PROFILES, *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_the_zone_without_its_letter() {
        for (zone, region) in [
            ("eu-1a", "eu-1"),
            ("eu-west", "eu-west"),
            ("a", "a"),
            ("1b", "1"),
            ("zone1", "zone1"),
        ] {
            assert_eq!(region_of(zone), region);
        }
    }
}
