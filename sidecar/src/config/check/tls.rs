//! `upstream.*.listen_tls` and `upstream.*.tls`: files named, read, and fit together.
//!
//! Not here: what is in them (`tls.rs`).

use std::path::PathBuf;

use mesh_core::policy::{FixedEndpoint, HttpVersion, Place, Policy, Protocol};
use rustls::pki_types::ServerName;

use crate::{
    config::{
        ListenAddress,
        raw::Value,
        read::Keys,
        value::{self, Setting, Wrong},
    },
    tls::{ClientFiles, ClientTls, Identity, Inside, Oldest, ServerFiles, ServerTls, TlsFault},
};

const VERSIONS: [(&str, Oldest); 2] = [("1.2", Oldest::Tls12), ("1.3", Oldest::Tls13)];

impl Setting for Oldest {
    fn read(value: &Value) -> Result<Oldest, Wrong> {
        value::word(value, &VERSIONS, &[])
    }

    fn show(&self) -> String {
        value::name_of(&VERSIONS, *self)
    }
}

/// A name as certificates have it: of a host, or an address.
struct CertificateName(ServerName<'static>);

impl Setting for CertificateName {
    fn read(value: &Value) -> Result<CertificateName, Wrong> {
        let text = value::text(value, "shop.internal")?;
        match ServerName::try_from(text.to_owned()) {
            Ok(name) => Ok(CertificateName(name)),
            Err(_) => Err(Wrong::new(
                format!("{text:?} is no name that a certificate can have"),
                "write a host name like \"shop.internal\", or an address",
            )),
        }
    }

    fn show(&self) -> String {
        value::quote(&self.0.to_str())
    }
}

/// TLS that ends at the upstream's own listeners.
pub fn listen_tls(
    keys: &Keys<'_>,
    protocol: Protocol,
    listen: &[ListenAddress],
) -> Option<ServerTls> {
    if !keys.has("listen_tls") {
        return None;
    }
    let inside = match protocol {
        Protocol::Http => Inside::EitherHttp,
        Protocol::Tcp => Inside::Bytes,
        Protocol::Udp | Protocol::Tls => {
            has_no_place(keys, "listen_tls", protocol);
            return None;
        }
    };
    if !keys.has("listen") {
        keys.wrong(
            "listen_tls",
            "there is no listener that it could be for",
            "add listen = \"127.0.0.1:7001\", or drop it",
        );
        return None;
    }
    if listen
        .iter()
        .any(|address| !matches!(address, ListenAddress::Tcp(_)))
    {
        keys.wrong(
            "listen_tls",
            "TLS is ended on TCP alone",
            "give the listener an address like \"127.0.0.1:7001\", or drop it",
        );
        return None;
    }
    let inner = keys.inner("listen_tls", &[]);
    let files = server_files(&inner);
    let loaded = files.and_then(|files| {
        let loaded = ServerTls::load(&files, inside);
        loaded.map_err(|fault| complain(&inner, fault)).ok()
    });
    inner.done();
    loaded
}

/// Complains of TLS beside a protocol that leaves no room for ours.
fn has_no_place(keys: &Keys<'_>, key: &'static str, protocol: Protocol) {
    let what = if protocol == Protocol::Udp {
        "TLS protects connections, and datagrams have none"
    } else {
        "protocol = \"tls\" passes the clients' own TLS on, unopened"
    };
    keys.wrong(key, what, "drop it, or write protocol = \"tcp\"");
}

/// `None`, and said why, where a key is missing or wrong.
fn server_files(keys: &Keys<'_>) -> Option<ServerFiles> {
    let cert = needed(keys, "cert", "cert = \"server.pem\"");
    let key = needed(keys, "key", "key = \"server.key\"");
    let client_ca = keys.watched_file("client_ca");
    let crl = keys.watched_file("crl");
    let oldest = oldest(keys);
    if crl.is_some() && client_ca.is_none() {
        keys.wrong(
            "crl",
            "nobody's certificate is asked for, so none can be revoked",
            "add client_ca, or drop the line",
        );
        return None;
    }
    Some(ServerFiles {
        identity: Identity {
            cert: cert?,
            key: key?,
        },
        client_ca,
        crl,
        oldest: oldest?,
    })
}

fn oldest(keys: &Keys<'_>) -> Option<Oldest> {
    if keys.has("min_version") {
        return keys.optional("min_version");
    }
    Some(keys.or("min_version", Oldest::Tls13))
}

/// TLS towards the upstream's endpoints.
pub fn tls(keys: &Keys<'_>, policy: &Policy) -> Option<ClientTls> {
    if !keys.has("tls") {
        return None;
    }
    let inside = match (policy.protocol, policy.http) {
        (Protocol::Tcp, _) => Inside::Bytes,
        (Protocol::Http, HttpVersion::One) => Inside::Http1,
        (Protocol::Http, HttpVersion::Two) => Inside::Http2,
        (Protocol::Http, HttpVersion::Auto) => Inside::EitherHttp,
        (Protocol::Udp | Protocol::Tls, _) => {
            has_no_place(keys, "tls", policy.protocol);
            return None;
        }
    };
    let inner = keys.inner("tls", &[]);
    let files = client_files(&inner, policy);
    let loaded = files.and_then(|files| {
        let loaded = ClientTls::load(&files, inside);
        loaded.map_err(|fault| complain(&inner, fault)).ok()
    });
    inner.done();
    loaded
}

/// `None`, and said why, where a key is missing or wrong.
fn client_files(keys: &Keys<'_>, policy: &Policy) -> Option<ClientFiles> {
    let ca = needed(keys, "ca", "ca = \"/etc/ssl/certs/ca-certificates.crt\"");
    let files = (keys.watched_file("cert"), keys.watched_file("key"));
    let oldest = oldest(keys);
    let named = |endpoint: &FixedEndpoint| matches!(endpoint.place, Place::Name { .. });
    let server_name = match only_name(&policy.endpoints) {
        _ if keys.has("server_name") => {
            let CertificateName(name) = keys.optional("server_name")?;
            Some(name)
        }
        None if policy.endpoints.iter().any(named) => {
            keys.absent(
                "server_name",
                "some endpoints are names and others are not, so none can stand for all",
                "add server_name = \"the name in their certificates\"",
            );
            return None;
        }
        shared => shared,
    };
    let identity = match files {
        (Some(cert), Some(key)) => Some(Identity { cert, key }),
        (None, None) => None,
        (Some(_), None) => {
            keys.wrong("cert", "its key is missing", "add key = \"me.key\"");
            return None;
        }
        (None, Some(_)) => {
            keys.wrong("key", "its certificate is missing", "add cert = \"me.pem\"");
            return None;
        }
    };
    Some(ClientFiles {
        ca: ca?,
        server_name,
        identity,
        oldest: oldest?,
    })
}

/// The name of all endpoints, if they share one.
fn only_name(endpoints: &[FixedEndpoint]) -> Option<ServerName<'static>> {
    let mut hosts = endpoints.iter().map(|endpoint| match &endpoint.place {
        Place::Name { host, .. } => Some(host),
        Place::Address(_) => None,
    });
    let first = hosts.next()??;
    let alike = hosts.all(|host| host == Some(first));
    alike.then(|| ServerName::try_from(first.to_string()).ok())?
}

fn needed(keys: &Keys<'_>, key: &'static str, example: &str) -> Option<PathBuf> {
    if !keys.has(key) {
        keys.absent(key, "the file is not named", format!("add {example}"));
    }
    keys.watched_file(key)
}

fn complain(keys: &Keys<'_>, fault: TlsFault) {
    keys.wrong(fault.key, fault.what, fault.fix);
}
