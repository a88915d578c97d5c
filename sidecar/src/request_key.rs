//! What of a request makes it belong to an endpoint: its key and its session, read where they stand, nothing copied.
//!
//! Not here: whose which key is (`mesh_core::hash`), and where sessions are (`mesh_core::session`).

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderValue, Uri,
    header::{CONTENT_ENCODING, CONTENT_TYPE, COOKIE},
};
use mesh_core::{
    hash::hash_of,
    policy::{HashKey, Sticky},
    session::Session,
    snapshot::Upstream,
};
use mesh_proto::session::Token;

use crate::json_field;

/// Who asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source<'a> {
    /// The client's address; `None` for one of a Unix socket.
    pub client: Option<IpAddr>,
    /// The service that calls: the one that this host offers, for callers on it.
    pub service: Option<&'a str>,
}

/// The hash of a request's key; `None` if the request has none, or an empty one, or if it is in the body.
pub fn of_request(
    key: &HashKey,
    headers: &HeaderMap,
    uri: &Uri,
    source: Source<'_>,
) -> Option<u64> {
    let bytes = match key {
        HashKey::SourceIp | HashKey::SourceService => return of_source(key, source),
        HashKey::Json(_) => return None,
        HashKey::Header(name) => headers.get(&**name)?.as_bytes(),
        HashKey::Cookie(name) => cookie(headers, name)?,
        HashKey::Query(name) => parameter(uri.query()?, name)?.as_bytes(),
        HashKey::Path => uri.path().as_bytes(),
    };
    (!bytes.is_empty()).then(|| hash_of(bytes))
}

/// The hash of the key of a connection or a flow, of which nothing is known but where it comes from.
pub fn of_source(key: &HashKey, source: Source<'_>) -> Option<u64> {
    match key {
        HashKey::SourceService => source.service.map(|service| hash_of(service.as_bytes())),
        _ => source.client.map(of_address),
    }
}

/// The hash of the key that `pointer` leads to in a body that begins with `bytes`, which are all of it if it `is_whole`.
pub fn of_body(pointer: &str, bytes: &[u8], is_whole: bool) -> Option<u64> {
    let value = json_field::find(bytes, pointer, is_whole)?;
    (!value.is_empty()).then(|| hash_of(value.as_bytes()))
}

/// Whether a head says that its body is JSON that can be read as it comes.
pub fn brings_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let kind = kind
        .and_then(|text| text.split(';').next())
        .unwrap_or("")
        .trim();
    let (_, subtype) = kind.split_once('/').unwrap_or(("", ""));
    let subtype = subtype.to_ascii_lowercase();
    // gRPC has a frame around each of its documents, and a stream of them may have no end.
    let is_one = !subtype.starts_with("grpc") && !subtype.starts_with("stream+");
    let is_json = subtype == "json" || subtype.ends_with("+json") && is_one;
    is_json && !headers.contains_key(CONTENT_ENCODING)
}

/// What a request says of its session; `None` if it has none yet, or nobody looks at it.
pub fn session(sticky: &Sticky, headers: &HeaderMap, client: Option<IpAddr>) -> Option<Session> {
    match sticky {
        Sticky::Cookie { name, .. } => {
            let token = Token::read(cookie(headers, name)?)?;
            Some(Session::Token(token))
        }
        Sticky::SourceIp { .. } => client.map(of_address).map(Session::Source),
    }
}

/// The cookie that keeps a client with the endpoint of this id; `None` where cookies do not, or it has it already.
pub fn new_cookie(
    upstream: &Upstream,
    endpoint: u64,
    session: Option<Session>,
) -> Option<HeaderValue> {
    let Some(Sticky::Cookie { name, ttl }) = &upstream.policy.sticky else {
        return None;
    };
    let token = upstream.hosts.as_ref()?.by_id(endpoint)?.token()?;
    if session == Some(Session::Token(token)) {
        return None;
    }
    let mut text = format!("{name}={token}; Path=/; HttpOnly; SameSite=Lax");
    if let Some(ttl) = ttl {
        // A browser counts whole seconds, and takes 0 for an order to forget.
        text += &format!("; Max-Age={}", ttl.as_secs().max(1));
    }
    HeaderValue::try_from(text).ok()
}

/// The hash of a client's address; an IPv4 address mapped into IPv6 is the IPv4 address.
pub fn of_address(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(ip) => hash_of(&ip.octets()),
        IpAddr::V6(ip) => hash_of(&ip.octets()),
    }
}

/// The value of the first cookie of this name.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let fields = headers.get_all(COOKIE).into_iter();
    let mut pairs = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?;
        value.strip_prefix(b"=")
    })
}

/// The value of the first query parameter of this name, as it is written.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&');
    pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_key_is_found_and_a_missing_one_is_missing() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("ann"));
        headers.insert("x-empty", HeaderValue::from_static(""));
        headers.append(COOKIE, HeaderValue::from_static("a=1; uid=ann"));
        headers.append(COOKIE, HeaderValue::from_static("late=ann; uid=bob"));
        let uri = Uri::from_static("/ann?idx=2&id=ann&empty=");
        let source = Source {
            client: Some(IpAddr::from([10, 0, 0, 1])),
            service: Some("ann"),
        };
        let ann = Some(hash_of(b"ann"));
        let header = |name: &str| HashKey::Header(name.into());
        let cookie = |name: &str| HashKey::Cookie(name.into());
        let query = |name: &str| HashKey::Query(name.into());
        for (key, want) in [
            (header("x-user"), ann),
            (header("x-empty"), None),
            (header("x-none"), None),
            (cookie("uid"), ann),
            (cookie("late"), ann),
            (cookie("ui"), None),
            (query("id"), ann),
            (query("empty"), None),
            (query("d"), None),
            (HashKey::Path, Some(hash_of(b"/ann"))),
            (HashKey::SourceIp, Some(hash_of(&[10, 0, 0, 1]))),
            (HashKey::SourceService, ann),
            (HashKey::Json("/user".into()), None),
        ] {
            assert_eq!(of_request(&key, &headers, &uri, source), want, "{key}");
        }
        for key in [HashKey::SourceIp, HashKey::SourceService] {
            let nobody = of_request(&key, &headers, &uri, Source::default());
            assert_eq!(nobody, None, "a Unix socket has no address");
        }
    }

    #[test]
    fn a_key_in_a_body_is_the_same_as_in_a_header() {
        let body = br#"{"user": "ann", "id": 7, "none": ""}"#;
        assert_eq!(of_body("/user", body, true), Some(hash_of(b"ann")));
        assert_eq!(of_body("/id", body, true), Some(hash_of(b"7")));
        assert_eq!(of_body("/none", body, true), None);
        for (kind, is_json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/merge-patch+json", true),
            ("application/x-ndjson", false),
            ("application/grpc+json", false),
            ("application/stream+json", false),
            ("text/plain", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            assert_eq!(brings_json(&headers), is_json, "{kind}");
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            assert!(!brings_json(&headers));
        }
    }

    #[test]
    fn an_address_is_the_same_in_both_notations() {
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(of_address(mapped), of_address([10, 0, 0, 1].into()));
    }
}
