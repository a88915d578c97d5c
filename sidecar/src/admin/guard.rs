//! Who may ask what: loopback reads, the socket and the token write, and no web page of another origin does either.
//!
//! Not here: the answers themselves (`routes.rs`).

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, Method, header};
use ring::digest::{SHA256, digest};

use crate::config::Admin;

/// How a request came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By the Unix socket: whoever may open the file may do everything.
    Socket,
    /// By TCP, from this address.
    Tcp(IpAddr),
}

/// Why a request is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denied {
    /// The Host is a name this sidecar does not go by: a page whose name was bent to loopback.
    Host,
    /// The request was sent by a page of another origin.
    Origin,
    /// A token is asked for, and none or a wrong one came.
    Token,
    /// It would change something, and the configuration has no way to say who may.
    Write,
    /// It brings a key, which would cross a network in clear.
    Clear,
}

impl Denied {
    /// The label on the counter.
    pub const fn reason(self) -> &'static str {
        match self {
            Denied::Host => "host",
            Denied::Origin => "origin",
            Denied::Token => "token",
            Denied::Write => "write",
            Denied::Clear => "clear",
        }
    }
}

/// Lets a request pass, or says why not.
pub fn admit(way: Way, method: &Method, headers: &HeaderMap, admin: &Admin) -> Result<(), Denied> {
    let Way::Tcp(peer) = way else {
        return Ok(());
    };
    let host = headers.get(header::HOST);
    if !same_origin(headers, host) {
        return Err(Denied::Origin);
    }
    let token = admin.token.as_ref().map(|secret| &*secret.0);
    let given = bearer(headers);
    if let (Some(token), Some(given)) = (token, given) {
        return if equal(token, given) {
            Ok(())
        } else {
            Err(Denied::Token)
        };
    }
    let reads = *method == Method::GET || *method == Method::HEAD;
    match token {
        _ if !peer.to_canonical().is_loopback() => Err(Denied::Token),
        _ if !goes_by(host) => Err(Denied::Host),
        _ if reads => Ok(()),
        Some(_) => Err(Denied::Token),
        None => Err(Denied::Write),
    }
}

/// Refuses from another host what may only be said on this one: over TCP everybody on the way reads along.
pub fn admit_secret(way: Way) -> Result<(), Denied> {
    match way {
        Way::Tcp(peer) if !peer.to_canonical().is_loopback() => Err(Denied::Clear),
        _ => Ok(()),
    }
}

/// Whether the request comes from a page of ours, or from no page at all. Browsers put `Origin` on every request
/// that is not a plain navigation, and `Sec-Fetch-Site` on all.
fn same_origin(headers: &HeaderMap, host: Option<&HeaderValue>) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if site.is_some_and(|site| site == b"cross-site" || site == b"same-site") {
        return false;
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let authority = origin.as_bytes().strip_prefix(b"http://");
    match (authority, host) {
        (Some(authority), Some(host)) => authority.eq_ignore_ascii_case(host.as_bytes()),
        _ => false,
    }
}

/// Whether the Host is an address or localhost: a name that resolves to loopback today may be anybody's.
fn goes_by(host: Option<&HeaderValue>) -> bool {
    // HTTP/1.0 knows no Host, and no browser speaks it.
    let Some(host) = host else {
        return true;
    };
    let Some(authority) = host
        .to_str()
        .ok()
        .and_then(|host| host.parse::<http::uri::Authority>().ok())
    else {
        return false;
    };
    let name = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let name = name.to_ascii_lowercase();
    // Browsers and resolvers keep all of .localhost on this host (RFC 6761).
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Compares in a time that tells nothing of where two tokens differ, nor of their length.
fn equal(a: &str, b: &str) -> bool {
    let (a, b) = (digest(&SHA256, a.as_bytes()), digest(&SHA256, b.as_bytes()));
    let differences = a
        .as_ref()
        .iter()
        .zip(b.as_ref())
        .fold(0, |sum, (a, b)| sum | (a ^ b));
    differences == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const LOCAL: Way = Way::Tcp(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    const REMOTE: Way = Way::Tcp(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7)));

    fn admin(token: Option<&str>) -> Admin {
        Admin {
            bind: "127.0.0.1:7070".parse().unwrap(),
            socket: None,
            token: token.map(|token| Secret(token.into())),
        }
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn reads_are_open_on_loopback_and_writes_are_not() {
        let none = headers(&[("host", "127.0.0.1:7070")]);
        for (way, method, token, verdict) in [
            (LOCAL, Method::GET, None, Ok(())),
            (LOCAL, Method::POST, None, Err(Denied::Write)),
            (LOCAL, Method::POST, Some("t"), Err(Denied::Token)),
            (Way::Socket, Method::POST, None, Ok(())),
            (REMOTE, Method::GET, None, Err(Denied::Token)),
            (REMOTE, Method::GET, Some("t"), Err(Denied::Token)),
        ] {
            assert_eq!(
                admit(way, &method, &none, &admin(token)),
                verdict,
                "{way:?} {method}"
            );
        }
    }

    #[test]
    fn the_right_token_opens_every_door() {
        let right = headers(&[
            ("host", "web-1.internal:7070"),
            ("authorization", "Bearer secret"),
        ]);
        let wrong = headers(&[
            ("host", "web-1.internal:7070"),
            ("authorization", "Bearer secre"),
        ]);
        for way in [LOCAL, REMOTE] {
            assert_eq!(
                admit(way, &Method::POST, &right, &admin(Some("secret"))),
                Ok(())
            );
            assert_eq!(
                admit(way, &Method::GET, &wrong, &admin(Some("secret"))),
                Err(Denied::Token)
            );
        }
        assert_eq!(
            admit(LOCAL, &Method::POST, &right, &admin(None)),
            Err(Denied::Host)
        );
    }

    #[test]
    fn a_key_is_taken_on_its_own_host_alone() {
        let mapped = Way::Tcp("::ffff:127.0.0.1".parse().unwrap());
        for (way, verdict) in [
            (Way::Socket, Ok(())),
            (LOCAL, Ok(())),
            (mapped, Ok(())),
            (REMOTE, Err(Denied::Clear)),
        ] {
            assert_eq!(admit_secret(way), verdict, "{way:?}");
        }
    }

    #[test]
    fn a_page_of_another_origin_reads_nothing() {
        for (lines, verdict) in [
            (headers(&[("host", "evil.example:7070")]), Err(Denied::Host)),
            (
                headers(&[
                    ("host", "localhost:7070"),
                    ("origin", "http://evil.example"),
                ]),
                Err(Denied::Origin),
            ),
            (
                headers(&[("host", "localhost:7070"), ("origin", "null")]),
                Err(Denied::Origin),
            ),
            (
                headers(&[("host", "localhost:7070"), ("sec-fetch-site", "cross-site")]),
                Err(Denied::Origin),
            ),
            (
                headers(&[
                    ("host", "localhost:7070"),
                    ("origin", "http://localhost:7070"),
                ]),
                Ok(()),
            ),
            (headers(&[("host", "[::1]:7070")]), Ok(())),
            (headers(&[]), Ok(())),
        ] {
            assert_eq!(
                admit(LOCAL, &Method::GET, &lines, &admin(None)),
                verdict,
                "{lines:?}"
            );
        }
    }
}
