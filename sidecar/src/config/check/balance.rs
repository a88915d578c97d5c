//! `upstream.*.balance` and `sticky`: the algorithm, and by what requests belong to endpoints before it has a say.
//!
//! Not here: what is decided by them (`mesh-core`).

use std::time::Duration;

use mesh_core::policy::{Balance, Hash, HashKey, HashTable, Protocol, Sticky};

use super::{positive, words::BALANCES};
use crate::{
    config::{
        ListenAddress,
        raw::Value,
        read::{Keys, table_of},
        value::{self, Bytes, Setting, Wrong},
    },
    json_field,
};

/// Longest name of a header, cookie or query parameter that is a key.
const KEY_NAME_BYTES_MAX: usize = 128;

/// How long an address is remembered after its last request, unless told otherwise.
const SOURCE_TTL: Duration = Duration::from_secs(3_600);

const KEYS: &str = "write \"source_ip\", \"source_service\", \"header:NAME\", \"cookie:NAME\", \"query:NAME\", \"path\" \
                    or \"json:/POINTER\"";

/// How much of a body may be looked at: no more than is kept of it for another try anyway.
const BODY_BYTES: std::ops::RangeInclusive<usize> = 1 << 10..=64 << 10;

/// What `policy` may say.
#[derive(Clone, Copy, PartialEq)]
enum Algorithm {
    Plain(Balance),
    ConsistentHash,
}

impl Setting for Algorithm {
    fn read(value: &Value) -> Result<Algorithm, Wrong> {
        value::word(value, &algorithms(), &[])
    }

    fn show(&self) -> String {
        value::name_of(&algorithms(), *self)
    }
}

fn algorithms() -> Vec<(&'static str, Algorithm)> {
    let plain = BALANCES.map(|(name, balance)| (name, Algorithm::Plain(balance)));
    let hash = ("consistent_hash", Algorithm::ConsistentHash);
    plain.into_iter().chain([hash]).collect()
}

/// The algorithm, and what comes before it; `listen` are the upstream's own listeners.
pub fn balance(
    keys: &Keys<'_>,
    protocol: Protocol,
    listen: &[ListenAddress],
) -> (Balance, Option<Hash>) {
    let default = Algorithm::Plain(Balance::LeastResponseTime);
    let is_table = keys
        .raw("balance")
        .is_some_and(|raw| table_of(raw).is_some());
    let algorithm = if is_table {
        let inner = keys.inner("balance", &[]);
        if !inner.has("policy") {
            inner.absent(
                "policy",
                "it names no policy",
                "write balance = \"least_response_time\"",
            );
        }
        match inner.or("policy", default) {
            Algorithm::Plain(balance) => {
                for key in ["key", "table", "body_max"]
                    .into_iter()
                    .filter(|key| inner.has(key))
                {
                    inner.wrong(
                        key,
                        "only consistent_hash has one",
                        "drop it, or write policy = \"consistent_hash\"",
                    );
                }
                inner.done();
                Algorithm::Plain(balance)
            }
            Algorithm::ConsistentHash => {
                let hash = hash(&inner, protocol, listen);
                inner.done();
                return (Balance::LeastResponseTime, hash);
            }
        }
    } else {
        keys.or("balance", default)
    };
    match algorithm {
        Algorithm::Plain(balance) => (balance, None),
        Algorithm::ConsistentHash => {
            keys.wrong(
                "balance",
                "consistent_hash does not say by what",
                "write balance = { policy = \"consistent_hash\", key = \"header:x-user\" }",
            );
            (Balance::LeastResponseTime, None)
        }
    }
}

fn hash(inner: &Keys<'_>, protocol: Protocol, listen: &[ListenAddress]) -> Option<Hash> {
    let table = inner.or("table", HashTable::Rendezvous);
    let Some(key) = inner.optional::<HashKey>("key") else {
        if !inner.has("key") {
            inner.absent("key", "consistent_hash does not say by what", KEYS);
        }
        return None;
    };
    let is_seen = matches!(key, HashKey::SourceIp | HashKey::SourceService);
    if protocol != Protocol::Http && !is_seen {
        inner.wrong(
            "key",
            format!("a tcp upstream relays bytes and sees no {key}"),
            "write key = \"source_ip\"",
        );
    }
    if key == HashKey::SourceIp {
        one_address(inner, "key", protocol, listen);
    }
    let body_max = body_max(inner, &key);
    Some(Hash {
        key,
        table,
        body_max,
    })
}

/// How much of a body is waited for where the key is in it.
fn body_max(inner: &Keys<'_>, key: &HashKey) -> usize {
    if !matches!(key, HashKey::Json(_)) {
        if inner.has("body_max") {
            inner.wrong(
                "body_max",
                format!("{key} is not in the body"),
                "drop it, or write key = \"json:/user/id\"",
            );
        }
        return Hash::BODY_MAX;
    }
    let Bytes(most) = inner.or("body_max", Bytes(Hash::BODY_MAX));
    if !BODY_BYTES.contains(&most) {
        let (least, last) = (Bytes(*BODY_BYTES.start()), Bytes(*BODY_BYTES.end()));
        inner.wrong(
            "body_max",
            format!("{} is out of range", Bytes(most).show()),
            format!("use {} to {}", least.show(), last.show()),
        );
    }
    most
}

/// Whether and by what clients stay with an endpoint.
pub fn sticky(keys: &Keys<'_>, protocol: Protocol, listen: &[ListenAddress]) -> Option<Sticky> {
    if !keys.has("sticky") {
        return None;
    }
    let inner = keys.inner("sticky", &[]);
    let cookie = inner.optional::<CookieName>("cookie");
    let by_source = inner.optional::<bool>("source_ip").unwrap_or(false);
    let sticky = match (cookie, by_source) {
        (Some(_), true) => {
            inner.wrong(
                "source_ip",
                "a session goes by a cookie or by an address",
                "keep one of the two",
            );
            None
        }
        (Some(CookieName(name)), false) => {
            if protocol != Protocol::Http {
                inner.wrong(
                    "cookie",
                    "a tcp or udp upstream relays bytes and sees no cookies",
                    "write source_ip = true",
                );
            }
            let ttl = inner
                .has("ttl")
                .then(|| positive(&inner, "ttl", SOURCE_TTL));
            Some(Sticky::Cookie { name, ttl })
        }
        (None, true) => {
            one_address(&inner, "source_ip", protocol, listen);
            let ttl = positive(&inner, "ttl", SOURCE_TTL);
            Some(Sticky::SourceIp { ttl })
        }
        (None, false) => {
            if !inner.has("cookie") {
                keys.wrong(
                    "sticky",
                    "it does not say by what clients stay",
                    "write cookie = \"starling\" or source_ip = true, or drop it",
                );
            }
            // Asked for, so that it is not unknown.
            let _ = inner.has("ttl");
            None
        }
    };
    inner.done();
    sticky
}

/// The name of a cookie.
struct CookieName(Box<str>);

impl Setting for CookieName {
    fn read(value: &Value) -> Result<CookieName, Wrong> {
        let text = value::text(value, "starling")?;
        let fits =
            !text.is_empty() && text.len() <= KEY_NAME_BYTES_MAX && text.bytes().all(is_token_byte);
        if fits {
            return Ok(CookieName(text.into()));
        }
        let fix = "use letters, digits and signs such as \"-\" and \"_\", at most 128";
        Err(Wrong::new(
            format!("{text:?} cannot be a cookie's name"),
            fix,
        ))
    }

    fn show(&self) -> String {
        value::quote(&self.0)
    }
}

/// Warns where every caller has the same address, so that all of them would be sent to one endpoint.
pub fn one_address(
    keys: &Keys<'_>,
    key: &'static str,
    protocol: Protocol,
    listen: &[ListenAddress],
) {
    let is_local = |address: &ListenAddress| match address {
        ListenAddress::Tcp(address) | ListenAddress::Udp(address) => address.ip().is_loopback(),
        ListenAddress::Unix(_) => true,
    };
    // Without a port of its own it is called by name, through listeners that this table does not tell of.
    let by_name_only = listen.is_empty() && protocol == Protocol::Http;
    if !by_name_only && listen.iter().all(is_local) {
        keys.warn(
            key,
            "every caller of a loopback listener has the same address, so all of them go to one endpoint",
            "take another key, or listen where other hosts call",
        );
    }
}

impl Setting for HashKey {
    fn read(value: &Value) -> Result<HashKey, Wrong> {
        let text = value::text(value, "header:x-user")?;
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        let name_of = |well: bool| {
            let fits = well && !name.is_empty() && name.len() <= KEY_NAME_BYTES_MAX;
            let wrong = || Wrong::new(format!("{text:?} names no {kind}"), KEYS);
            fits.then(|| Box::<str>::from(name)).ok_or_else(wrong)
        };
        let token = || name.bytes().all(is_token_byte);
        match (kind, text.contains(':')) {
            ("source_ip", false) => Ok(HashKey::SourceIp),
            ("path", false) => Ok(HashKey::Path),
            ("header", _) => {
                let name = name_of(token())?;
                Ok(HashKey::Header(name.to_ascii_lowercase().into()))
            }
            ("cookie", _) => name_of(token()).map(HashKey::Cookie),
            ("query", _) => name_of(!name.contains(['=', '&', '#', ' '])).map(HashKey::Query),
            ("source_service", false) => Ok(HashKey::SourceService),
            ("json", _) if json_field::is_pointer(name) => name_of(true).map(HashKey::Json),
            ("json", _) => Err(Wrong::new(
                format!("{text:?} points to nothing"),
                "write \"json:/user/id\": a slash before each step, ~1 for a slash and ~0 for a ~ in one",
            )),
            ("none", false) => Err(Wrong::new("\"none\" leaves nothing to hash by", KEYS)),
            _ => Err(Wrong::new(format!("{text:?} is no key"), KEYS)),
        }
    }

    fn show(&self) -> String {
        value::quote(&self.to_string())
    }
}

/// What names of headers and cookies are made of (RFC 9110, 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

const TABLES: [(&str, HashTable); 6] = [
    (HashTable::Rendezvous.name(), HashTable::Rendezvous),
    (HashTable::Ring.name(), HashTable::Ring),
    (HashTable::Maglev.name(), HashTable::Maglev),
    // Without a version: the newest.
    ("rendezvous", HashTable::Rendezvous),
    ("ring", HashTable::Ring),
    ("maglev", HashTable::Maglev),
];

impl Setting for HashTable {
    fn read(value: &Value) -> Result<HashTable, Wrong> {
        value::word(value, &TABLES, &[])
    }

    fn show(&self) -> String {
        value::name_of(&TABLES, *self)
    }
}
