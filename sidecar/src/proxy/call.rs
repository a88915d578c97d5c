//! A request's head → the call that the tries make, and its upstream.
//!
//! Not here: what becomes of it (`forward.rs`).

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header, request, uri::Scheme,
};
use http_body::Body;
use mesh_core::{
    explain::{Account, Asked},
    policy::Protocol,
    route::{Target, target},
    session::Session,
    snapshot::Upstream,
};

use super::{
    body::Inflow,
    control,
    front::Caller,
    headers::{self, Introduction, Origin},
    http1::head::Spelling,
    interim::Ear,
    present::Present,
    reply::Cause,
    request_body::Source,
};
use crate::request_key;

/// Longest `grpc-timeout` that is believed.
const GRPC_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// A request as the tries need it: read once, sent as often as it takes.
pub struct Call {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// What `Host` or `:authority` said.
    pub authority: HeaderValue,
    /// The headers to send, hop-by-hop ones gone.
    pub headers: HeaderMap,
    /// What stood in them as they came.
    pub there: Present,
    /// What is sent beside them of who called; `None`: they say it.
    pub introduction: Option<Rc<Introduction>>,
    /// The client's body; `None` if it is empty.
    pub source: Option<Source>,
    /// gRPC is spoken.
    pub grpc: bool,
    /// The client wishes to leave HTTP.
    pub upgrade: bool,
    /// How the client spelled its head, if that is known.
    pub spelling: Option<Spelling>,
    /// Where the client can be told something before the answer; `None` for one that would not understand it.
    pub client: Option<Ear>,
    /// Its id, sent beside its headers unless they came with one.
    pub id: HeaderValue,
    /// Its session, if it has one.
    pub session: Option<Session>,
    /// What it belongs to an endpoint by, hashed.
    pub key: Option<u64>,
    /// The client's own deadline, from `grpc-timeout` or a control header.
    pub timeout: Option<Duration>,
    /// Where the caller wants it.
    pub place: Option<control::Place>,
    /// The account of its decision that the caller asked for.
    pub account: Option<Box<Account>>,
}

impl Call {
    /// Passes an interim answer on to the client.
    pub fn inform(&self, status: StatusCode, headers: &HeaderMap, spelling: Option<&Spelling>) {
        if let Some(client) = &self.client {
            client.tell(status, headers, spelling);
        }
    }

    /// What decides where it goes.
    pub fn asked(&self) -> Asked<'_> {
        Asked {
            session: self.session,
            key: self.key,
            wish: self.place.as_ref().map(control::Place::wish),
        }
    }

    /// Whether the client waits for a word before it sends its body, of which nothing has come.
    pub fn awaits_word(&self) -> bool {
        // It stands only in the head of one that waits.
        self.there.has(Present::EXPECT)
            && self.headers.contains_key(header::EXPECT)
            && (self.source.as_ref()).is_some_and(|source| !source.has_begun())
    }

    /// Tells a client that waits for it to send its body.
    pub fn go_on(&self) {
        if self.there.has(Present::EXPECT) && self.headers.contains_key(header::EXPECT) {
            self.inform(StatusCode::CONTINUE, &HeaderMap::new(), None);
        }
    }
}

/// A request that is refused before any endpoint is asked.
pub struct Refused {
    /// Why.
    pub cause: Cause,
    /// gRPC is spoken.
    pub grpc: bool,
    /// Its id, if it was read so far.
    pub id: Option<HeaderValue>,
}

/// Request head → upstream and call.
///
/// # Errors
/// It is not to be forwarded; why.
pub fn read(
    caller: &Caller,
    request: Request<Inflow>,
    upstream: impl FnOnce(&str) -> Option<Arc<Upstream>>,
) -> Result<(Arc<Upstream>, Call), Refused> {
    let worker = &caller.worker;
    let settings = worker.settings();
    let there = Present::of(request.headers());
    let grpc = there.has(Present::CONTENT_TYPE) && is_grpc(request.headers());
    let refused = |cause| Refused {
        cause,
        grpc,
        id: None,
    };
    let (mut parts, mut body) = request.into_parts();
    // What follows the body of such a request would have to be told from the other protocol's first bytes.
    let upgrade = parts.version == Version::HTTP_11
        && there.has(Present::UPGRADE)
        && body.is_end_stream()
        && headers::is_upgrade(&parts.headers);
    let own = caller
        .upstream
        .as_deref()
        .map(|name| (name, &*settings.domain));
    let authority =
        authority(&parts, &caller.origin, own).ok_or_else(|| refused(Cause::BadRequest))?;
    let text = authority.to_str().map_err(|_| refused(Cause::BadRequest))?;
    let name = match (&caller.upstream, target(text, &settings.domain)) {
        (_, None) => return Err(refused(Cause::BadRequest)),
        (Some(name), Some(_)) => name,
        (None, Some(Target::Mesh(name))) => name,
        (None, Some(Target::External(_))) => return Err(refused(Cause::External)),
    };
    let found = upstream(name)
        .filter(|upstream| upstream.policy.protocol == Protocol::Http)
        .ok_or_else(|| refused(Cause::UnknownService))?;
    if header_bytes(&parts.headers) > found.policy.limits.header_bytes {
        return Err(refused(Cause::HeadersTooLarge));
    }
    let body_bytes = found.policy.limits.body_bytes;
    if body_bytes.is_some_and(|max| body.size_hint().lower() > max) {
        return Err(refused(Cause::BodyTooLarge));
    }

    let are_on = settings.control_headers;
    let wishes = control::take(are_on, caller.origin.is_local, &mut parts.headers)
        .map_err(|control::Disobeyed| refused(Cause::BadRequest))?;
    let client = || headers::client(&parts.headers, &caller.origin, &settings.trusted_proxies);
    let sticky = found.policy.sticky.as_ref();
    let session = sticky.and_then(|sticky| request_key::session(sticky, &parts.headers, client()));
    if sticky.is_some() {
        caller.entry.stays(session);
    }
    let hash = found.policy.hash.as_ref();
    let key = hash.and_then(|hash| {
        let source = request_key::Source {
            client: client(),
            service: settings.service_of(caller.origin.is_local),
        };
        request_key::of_request(&hash.key, &parts.headers, &parts.uri, source)
    });
    let spelling = body.take_spelling();
    let connection = caller
        .client
        .clone()
        .filter(|_| parts.version != Version::HTTP_10);
    let source = Source::new(body, body_bytes);
    let timeout = if grpc {
        parts
            .headers
            .get(headers::GRPC_TIMEOUT)
            .and_then(grpc_timeout)
    } else {
        None
    };
    let timeout = [timeout, wishes.timeout].into_iter().flatten().min();
    let account = wishes.explain.then(|| {
        let wish = wishes.place.as_ref().map(control::Place::wish);
        let asked = Asked { session, key, wish };
        Box::new(Account::new(&found, &asked, worker.clock.now()))
    });
    let waits =
        connection.is_some() && source.is_some() && headers::expects_continue(&parts.headers);
    headers::strip_hop_by_hop(&mut parts.headers, there, upgrade);
    // What `Connection` named is gone.
    let there = if there.has(Present::CONNECTION) {
        Present::of(&parts.headers)
    } else {
        there
    };
    headers::strip_answered(&mut parts.headers, there, source.is_some(), waits);
    headers::join_cookies(&mut parts.headers, there);
    let via = settings.via.of(parts.version);
    let fields = &mut parts.headers;
    let introduction = headers::introduce(fields, there, &caller.origin, &authority, via);
    let id = headers::request_id(&mut parts.headers, there, &mut *worker.rng.borrow_mut());
    if there.has(Present::HOST) {
        parts.headers.remove(header::HOST);
    }
    let call = Call {
        uri: origin_form(&parts.uri),
        method: parts.method,
        headers: parts.headers,
        there,
        introduction,
        authority,
        source,
        grpc,
        upgrade,
        spelling,
        client: connection,
        id,
        session,
        key,
        timeout,
        place: wishes.place,
        account,
    };
    Ok((found, call))
}

/// The one authority of a request; `None` when there is none, more than one, or two that disagree. `own`: the upstream
/// whose own listener it came by, and the mesh's domain: there HTTP/1.0 need not say (RFC 9112, 3.2), and means it.
fn authority(
    parts: &request::Parts,
    origin: &Origin,
    own: Option<(&str, &str)>,
) -> Option<HeaderValue> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    match (parts.uri.authority(), host) {
        (Some(absolute), Some(host)) => {
            let (host_text, absolute) = (host.to_str().ok()?, absolute.as_str());
            if host_text.eq_ignore_ascii_case(absolute) {
                return Some(host.clone());
            }
            // The target's own is the one that counts (RFC 9112, 3.2.2).
            let port = default_port(parts.uri.scheme()?)?;
            let (host, target) = (without(port, host_text), without(port, absolute));
            let same = host.eq_ignore_ascii_case(target);
            same.then(|| origin.host(absolute)).flatten()
        }
        (Some(absolute), None) => origin.host(absolute.as_str()),
        (None, Some(host)) => Some(host.clone()),
        (None, None) => {
            let (name, domain) = own.filter(|_| parts.version == Version::HTTP_10)?;
            HeaderValue::try_from(format!("{name}.{domain}")).ok()
        }
    }
}

/// The port that a name without one means, as it stands behind a name (RFC 9110, 4.2.1 and 4.2.2).
fn default_port(scheme: &Scheme) -> Option<&'static str> {
    [(Scheme::HTTP, ":80"), (Scheme::HTTPS, ":443")]
        .into_iter()
        .find_map(|(known, port)| (known == *scheme).then_some(port))
}

/// A name without this port; an empty one says as little (RFC 3986, 3.2.3).
fn without<'a>(port: &str, authority: &'a str) -> &'a str {
    let bare = authority.strip_suffix(port);
    bare.or(authority.strip_suffix(':')).unwrap_or(authority)
}

/// Bytes of a header block as HTTP/1 would write it.
fn header_bytes(headers: &HeaderMap) -> usize {
    let around = ": \r\n".len();
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + around)
        .sum()
}

fn origin_form(uri: &Uri) -> Uri {
    match uri.path_and_query() {
        // An absolute form may go from its host straight to its query (RFC 9112, 3.2.1).
        Some(path) if path.as_str().starts_with('?') => {
            Uri::try_from(format!("/{}", path.as_str())).unwrap_or_else(|_| Uri::from_static("/"))
        }
        Some(path) => Uri::from(path.clone()),
        None => Uri::from_static("/"),
    }
}

/// Whether a head says that gRPC is spoken.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Reads `grpc-timeout` (at most eight digits and a unit); `None` when it is malformed.
pub fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (digits, unit) = value
        .to_str()
        .ok()?
        .split_at_checked(value.len().checked_sub(1)?)?;
    // A number is read with a sign before it, too.
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    Some(timeout.min(GRPC_TIMEOUT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_and_bad_ones_passed_over() {
        let read = |text: &'static str| grpc_timeout(&HeaderValue::from_static(text));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("3S"), Some(Duration::from_secs(3)));
        assert_eq!(read("99999999H"), Some(GRPC_TIMEOUT_MAX));
        for bad in ["", "S", "123456789m", "1x", "-1S", "+1S", "1 S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_host_that_disagrees_with_the_absolute_form_is_no_authority() {
        let parts = |uri: &str, hosts: &[&'static str]| {
            let mut builder = Request::builder().uri(uri);
            for host in hosts {
                builder = builder.header("host", *host);
            }
            builder.body(()).expect("valid").into_parts().0
        };
        let origin = Origin::new(None, false, false, false);
        let authority = |uri, hosts: &[&'static str]| authority(&parts(uri, hosts), &origin, None);
        assert_eq!(
            authority("http://a.mesh/", &["a.mesh"]).expect("same"),
            "a.mesh"
        );
        for (uri, host) in [
            ("http://a.mesh:80/", "a.mesh"),
            ("http://a.mesh/", "A.mesh:80"),
            ("http://a.mesh:/", "a.mesh"),
            ("https://a.mesh:443/", "a.mesh"),
        ] {
            let target = Uri::from_static(uri);
            let told = authority(uri, &[host]).expect("the same");
            assert_eq!(
                Some(told.to_str().expect("text")),
                target.authority().map(|at| at.as_str())
            );
        }
        for (uri, host) in [
            ("http://a.mesh/", "b.mesh"),
            ("http://a.mesh:8080/", "a.mesh"),
            ("http://a.mesh:80/", "a.mesh:8080"),
            ("http://a.mesh:443/", "a.mesh"),
            ("https://a.mesh:80/", "a.mesh"),
        ] {
            assert_eq!(authority(uri, &[host]), None, "{uri} {host}");
        }
        assert_eq!(authority("/", &["a.mesh", "a.mesh"]), None);
        assert_eq!(authority("/", &[]), None);
        // An upstream's own listener knows what HTTP/1.0 means that does not say.
        let own = Some(("shop", "mesh"));
        let mut silent = parts("/", &[]);
        assert_eq!(super::authority(&silent, &origin, own), None);
        silent.version = Version::HTTP_10;
        let told = super::authority(&silent, &origin, own);
        assert_eq!(told.expect("its own"), "shop.mesh");
        assert_eq!(super::authority(&silent, &origin, None), None);
        assert_eq!(
            origin_form(&Uri::from_static("http://a.mesh/x?y=1")),
            "/x?y=1"
        );
        assert_eq!(origin_form(&Uri::from_static("http://a.mesh")), "/");
        assert_eq!(origin_form(&Uri::from_static("http://a.mesh?y=1")), "/?y=1");
    }
}
