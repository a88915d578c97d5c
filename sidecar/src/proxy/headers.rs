//! What is stripped from a head on its way through, and what is added.
//!
//! Not here: rules the operator writes; they come with routes.

use std::{cell::RefCell, net::IpAddr, rc::Rc};

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
    },
};
use rand::Rng;

use super::{control, http1::encode, present::Present};
use crate::config::Network;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Longest request id that is taken over from a caller, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// What the names of sidecars in `Via` begin with.
const PSEUDONYM_PREFIX: &str = "starling-";

/// How long an HTTP/1 connection may rest.
pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Who called, from the first proxy on.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// How the first proxy was called.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// What the first proxy was called.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// What is left of a gRPC caller's time.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// `Connection` of a message that leaves HTTP.
pub const UPGRADE_VALUE: HeaderValue = HeaderValue::from_static("upgrade");
/// Correlates one request across hosts.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How often this sidecar's own `Via` may stand in a request: once is a call to oneself.
pub const OWN_VIA_MAX: usize = 1;

/// Callers whose headers a worker keeps: a host has few, and those of another sidecar are one.
const ORIGINS: usize = 64;
/// Authorities whose introductions are kept for one caller.
const AUTHORITIES: usize = 8;

/// What every request of one caller has in common.
#[derive(Debug)]
pub struct Origin {
    /// The client's address; `None` for a Unix socket.
    pub ip: Option<IpAddr>,
    /// It is on this host. Never where a PROXY header said who it is: that may be anybody's loopback address.
    pub is_local: bool,
    is_told: bool,
    /// Its `X-Forwarded-For` element, made once.
    pub forwarded_for: HeaderValue,
    /// Its `Forwarded` `for=` node, made once.
    pub node: Box<str>,
    /// Its own forwarding headers are believed and added to.
    pub trusted: bool,
    /// `https` if it came by TLS, else `http`.
    pub scheme: &'static str,
    /// What was said of its last requests, each where [`slot_of`] the authority says.
    introductions: RefCell<[Option<Rc<Introduction>>; AUTHORITIES]>,
}

/// A worker's origins, so that one caller's next connection finds its headers made. The last one to come keeps a slot.
#[derive(Debug)]
pub struct Origins(RefCell<[Option<Rc<Origin>>; ORIGINS]>);

impl Default for Origins {
    fn default() -> Origins {
        Origins(RefCell::new([const { None }; ORIGINS]))
    }
}

impl Origins {
    /// The origin of a connection from `ip`; see [`Origin::new`].
    pub fn of(&self, ip: Option<IpAddr>, is_told: bool, trusted: bool, secure: bool) -> Rc<Origin> {
        let slot = match ip {
            None => 0,
            Some(IpAddr::V4(ip)) => slot_of(&ip.octets(), ORIGINS),
            Some(IpAddr::V6(ip)) => slot_of(&ip.octets(), ORIGINS),
        };
        let known = &mut self.0.borrow_mut()[slot];
        if let Some(origin) = known
            && origin.is_of(ip, is_told, trusted, secure)
        {
            return Rc::clone(origin);
        }
        let origin = Rc::new(Origin::new(ip, is_told, trusted, secure));
        *known = Some(Rc::clone(&origin));
        origin
    }
}

/// Where in a table of so many `slots`, a power of two, something is kept that is known by `bytes`.
fn slot_of(bytes: &[u8], slots: usize) -> usize {
    let sum = |sum: u32, byte: &u8| sum.rotate_left(5) ^ u32::from(*byte);
    // Multiplied as Fibonacci hashing does, so that the upper bits know of all.
    let mixed = bytes.iter().fold(0, sum).wrapping_mul(0x9e37_79b9);
    (mixed >> 16) as usize & (slots - 1)
}

/// What this sidecar says of a request that came without a word of who called and how: the same for all requests of
/// one caller to one authority, so it is made once, also as HTTP/1 writes it.
#[derive(Debug)]
pub struct Introduction {
    host: HeaderValue,
    fields: [(HeaderName, HeaderValue); 5],
    lines: Vec<u8>,
}

impl Introduction {
    fn new(origin: &Origin, host: &HeaderValue, via: &HeaderValue) -> Option<Introduction> {
        // A copy, for `host` is a part of its request's whole head.
        let host = &HeaderValue::from_bytes(host.as_bytes()).ok()?;
        let fields = [
            (FORWARDED, origin.forwarded(host)?),
            (X_FORWARDED_FOR, origin.forwarded_for.clone()),
            (X_FORWARDED_PROTO, HeaderValue::from_static(origin.scheme)),
            (X_FORWARDED_HOST, host.clone()),
            (VIA, via.clone()),
        ];
        let mut lines = Vec::new();
        for (name, value) in &fields {
            encode::field(&mut lines, name, value);
        }
        Some(Introduction {
            host: host.clone(),
            fields,
            lines,
        })
    }

    fn is_of(&self, host: &HeaderValue, via: &HeaderValue) -> bool {
        let [.., (_, known_via)] = &self.fields;
        self.host == host && known_via == via
    }

    /// Its fields as lines of an HTTP/1 head.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// Adds its fields to those that came.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.fields {
            headers.append(name, value.clone());
        }
    }
}

impl Origin {
    /// Prepares the headers of connections from `ip`, which a PROXY header told if `is_told`; `secure`: by TLS.
    pub fn new(ip: Option<IpAddr>, is_told: bool, trusted: bool, secure: bool) -> Origin {
        let (text, node) = match ip.map(|ip| ip.to_canonical()) {
            None => ("unknown".to_owned(), "unknown".to_owned()),
            Some(IpAddr::V4(ip)) => (ip.to_string(), ip.to_string()),
            // RFC 7239, section 6: an IPv6 address stands in brackets and quotes.
            Some(IpAddr::V6(ip)) => (ip.to_string(), format!("\"[{ip}]\"")),
        };
        let forwarded_for =
            HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Origin {
            ip,
            is_local: control::is_local(ip) && !is_told,
            is_told,
            forwarded_for,
            node: node.into(),
            trusted,
            scheme: scheme_of(secure),
            introductions: RefCell::default(),
        }
    }

    fn is_of(&self, ip: Option<IpAddr>, is_told: bool, trusted: bool, secure: bool) -> bool {
        (self.ip, self.is_told, self.trusted, self.scheme)
            == (ip, is_told, trusted, scheme_of(secure))
    }

    /// A request's authority as a field; `None` if it cannot be one.
    pub fn host(&self, authority: &str) -> Option<HeaderValue> {
        let introductions = self.introductions.borrow();
        match &introductions[slot_of(authority.as_bytes(), AUTHORITIES)] {
            Some(known) if known.host == authority => Some(known.host.clone()),
            _ => HeaderValue::from_str(authority).ok(),
        }
    }

    /// The `Forwarded` element of a request for `host`; `None` if that is no text.
    fn forwarded(&self, host: &HeaderValue) -> Option<HeaderValue> {
        let text = host.to_str().ok()?;
        let element = format!("for={};host=\"{text}\";proto={}", self.node, self.scheme);
        HeaderValue::try_from(element).ok()
    }

    fn introduction(&self, host: &HeaderValue, via: &HeaderValue) -> Option<Rc<Introduction>> {
        let slot = slot_of(host.as_bytes(), AUTHORITIES);
        let known = &mut self.introductions.borrow_mut()[slot];
        if known.as_ref().is_none_or(|known| !known.is_of(host, via)) {
            *known = Introduction::new(self, host, via).map(Rc::new);
        }
        known.clone()
    }
}

fn scheme_of(secure: bool) -> &'static str {
    if secure { "https" } else { "http" }
}

/// Removes what concerns one connection only (RFC 9110, 7.6.1), and what `Connection` names.
///
/// `TE: trailers` survives, for gRPC; `Upgrade` survives when the caller says that this is an `upgrade`. `there` is what
/// `headers` hold.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, there: Present, upgrade: bool) {
    if !there.has(CONCERNS_ONE_CONNECTION) {
        return;
    }
    if there.has(Present::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(',').map(str::trim))
            // These are words about the connection, not names; Keep-Alive goes in any case.
            .filter(|word| !is_of_persistence(word))
            .filter_map(|name| HeaderName::try_from(name).ok())
            // Naming one of these would take away what the message cannot be understood without.
            .filter(|name| ![HOST, CONTENT_LENGTH, TE, UPGRADE, TRANSFER_ENCODING].contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        HTTP2_SETTINGS,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHORIZATION,
        PROXY_AUTHENTICATE,
        TRANSFER_ENCODING,
    ] {
        headers.remove(name);
    }
    if !upgrade {
        headers.remove(UPGRADE);
    }
    if let Some(te) = headers.remove(TE) {
        let asks_trailers = te.to_str().is_ok_and(|te| {
            te.split(',')
                .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        });
        if asks_trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

fn is_of_persistence(word: &str) -> bool {
    word.eq_ignore_ascii_case("close") || word.eq_ignore_ascii_case("keep-alive")
}

/// What [`strip_hop_by_hop`] looks at.
const CONCERNS_ONE_CONNECTION: Present = Present::HOP_BY_HOP
    .or(Present::CONNECTION)
    .or(Present::KEEP_ALIVE)
    .or(Present::TRANSFER_ENCODING)
    .or(Present::UPGRADE);

/// Removes from a request what must not be repeated: `Expect` where the body comes anyway, `Trailer` without a body.
pub fn strip_answered(
    headers: &mut HeaderMap,
    there: Present,
    has_body: bool,
    expects_continue: bool,
) {
    if !expects_continue && there.has(Present::EXPECT) {
        headers.remove(EXPECT);
    }
    if !has_body && there.has(Present::TRAILER) {
        headers.remove(TRAILER);
    }
}

/// Whether a client waits for `100 Continue` before it sends its body.
pub fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Says of a request who called and how, by `Forwarded`, `X-Forwarded-For`, `-Proto` and `-Host`, and that it came this way,
/// by `Via`. What an untrusted caller said of itself is dropped, what a trusted one said is added to; where nothing is left
/// to add to, the words are returned and still to be added.
pub fn introduce(
    headers: &mut HeaderMap,
    there: Present,
    origin: &Origin,
    host: &HeaderValue,
    via: &HeaderValue,
) -> Option<Rc<Introduction>> {
    let was_told = there.has(Present::FORWARDING);
    if was_told && !origin.trusted {
        for name in [
            FORWARDED,
            X_FORWARDED_FOR,
            X_FORWARDED_PROTO,
            X_FORWARDED_HOST,
        ] {
            headers.remove(name);
        }
    }
    if (!was_told || !origin.trusted)
        && let Some(introduction) = origin.introduction(host, via)
    {
        return Some(introduction);
    }
    if let Some(element) = origin.forwarded(host) {
        headers.append(FORWARDED, element);
    }
    headers.append(X_FORWARDED_FOR, origin.forwarded_for.clone());
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(origin.scheme));
    }
    if !headers.contains_key(X_FORWARDED_HOST) {
        headers.insert(X_FORWARDED_HOST, host.clone());
    }
    headers.append(VIA, via.clone());
    None
}

/// The client's address: the caller's, or, where the caller is a trusted proxy, the last of those it names that is
/// not one itself.
pub fn client(headers: &HeaderMap, origin: &Origin, trusted: &[Network]) -> Option<IpAddr> {
    let named = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let named = named.filter(|_| origin.trusted);
    let named = named.flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b','));
    let address = |text: &[u8]| -> Option<IpAddr> {
        std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
    };
    // What is no address hides whatever stands before it.
    let addresses = named.map_while(address);
    let mut foreign = addresses.filter(|ip| !trusted.iter().any(|net| net.contains(*ip)));
    foreign.next().or(origin.ip)
}

/// How often `pseudonym` stands in `Via`.
pub fn own_via_count(headers: &HeaderMap, pseudonym: &str) -> usize {
    headers
        .get_all(VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter(|hop| hop.split_whitespace().nth(1) == Some(pseudonym))
        .count()
}

/// Appends this hop to `Via`, with the version the message was received in.
pub fn add_via(headers: &mut HeaderMap, version: Version, via: &Via) {
    headers.append(VIA, via.of(version).clone());
}

/// This sidecar's `Via` elements, made once.
#[derive(Clone, Debug)]
pub struct Via {
    /// The name this sidecar goes by.
    pub pseudonym: Box<str>,
    one: HeaderValue,
    two: HeaderValue,
}

impl Via {
    /// `starling-` and the node's name.
    pub fn new(node: &str) -> Via {
        let pseudonym = format!("{PSEUDONYM_PREFIX}{node}");
        let value = |version: &str| {
            HeaderValue::try_from(format!("{version} {pseudonym}"))
                .unwrap_or_else(|_| HeaderValue::from_static("1.1 starling"))
        };
        Via {
            one: value("1.1"),
            two: value("2"),
            pseudonym: pseudonym.into(),
        }
    }

    /// The element of a message that was received in `version`.
    pub fn of(&self, version: Version) -> &HeaderValue {
        match version {
            Version::HTTP_2 => &self.two,
            _ => &self.one,
        }
    }
}

/// Whether the server at the other end of an answer's connection is a Starling: whoever sent it stands last in `Via`.
pub fn is_of_starling(headers: &HeaderMap) -> bool {
    let last = headers.get_all(VIA).iter().next_back();
    let last = last.and_then(|value| value.to_str().ok()?.rsplit(',').next());
    last.and_then(|element| element.split_whitespace().nth(1))
        .is_some_and(|name| name.starts_with(PSEUDONYM_PREFIX))
}

/// The request's id: the caller's if it is sound, else 16 random bytes in hex, which take a bad one's place; where there
/// was none, they are still to be added.
pub fn request_id(headers: &mut HeaderMap, there: Present, rng: &mut impl Rng) -> HeaderValue {
    if there.has(Present::REQUEST_ID)
        && let Some(id) = headers.get(X_REQUEST_ID)
    {
        let sound = !id.is_empty()
            && id.len() <= REQUEST_ID_BYTES_MAX
            && id.as_bytes().iter().all(u8::is_ascii_graphic);
        if sound {
            return id.clone();
        }
    }
    let mut random = [0; 16];
    rng.fill_bytes(&mut random);
    let mut text = [0; 32];
    for (digits, byte) in text.chunks_exact_mut(2).zip(random) {
        digits[0] = HEX[usize::from(byte >> 4)];
        digits[1] = HEX[usize::from(byte & 0xf)];
    }
    let id = HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("0"));
    if there.has(Present::REQUEST_ID) {
        headers.insert(X_REQUEST_ID, id.clone());
    }
    id
}

/// Whether a request head asks to leave HTTP for another protocol on this connection (RFC 9110, 7.8).
///
/// `h2c` does not count: it is HTTP still, and RFC 9113 took that upgrade back.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let other = |value: &HeaderValue| {
        !value.is_empty()
            && value.to_str().is_ok_and(|names| {
                !names
                    .split(',')
                    .any(|name| name.trim().eq_ignore_ascii_case("h2c"))
            })
    };
    headers.get(UPGRADE).is_some_and(other)
        && headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Joins the `Cookie` fields that HTTP/2 may split into the one that HTTP/1 knows (RFC 9113, 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap, there: Present) {
    if !there.has(Present::COOKIE) {
        return;
    }
    let name = http::header::COOKIE;
    if headers.get_all(&name).iter().nth(1).is_none() {
        return;
    }
    let parts: Vec<&[u8]> = headers
        .get_all(&name)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(name, joined);
    }
}

#[cfg(test)]
mod tests;
