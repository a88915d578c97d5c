//! What a caller on this host may ask of its sidecar by `x-starling-*` headers, and the account that it gets.
//!
//! Not here: what is decided, and the account's contents (`mesh_core::explain`). The headers are off unless
//! `outbound.control_headers` is set, and no endpoint ever sees them.

use std::{net::IpAddr, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{FORWARDED, VIA},
};
use mesh_core::{balance::wish::Wish, explain::Account};

use super::headers::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use crate::config::duration;

/// Asks for an account of the decision, in a header of the same name of the answer.
pub const EXPLAIN: HeaderName = HeaderName::from_static("x-starling-explain");
/// The request's time, as the configuration writes it; it can only be less than the upstream's.
const TIMEOUT: HeaderName = HeaderName::from_static("x-starling-timeout");
/// The zone that its endpoint is to stand in.
const ZONE: HeaderName = HeaderName::from_static("x-starling-zone");
/// The name of the one instance that it is for.
const INSTANCE: HeaderName = HeaderName::from_static("x-starling-instance");

/// Headers that say that somebody else stands behind the caller: what a reverse proxy adds in its usual set-up.
const FORWARDING: [HeaderName; 6] = [
    FORWARDED,
    VIA,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PROTO,
    HeaderName::from_static("x-real-ip"),
];

/// Longest account: HTTP servers and clients that read 8 KiB of head in all are still in use.
const ACCOUNT_BYTES_MAX: usize = 6 * 1024;

/// Where one request is to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// To the instance of this name.
    Instance(Box<str>),
    /// Into this zone.
    Zone(Box<str>),
}

impl Place {
    /// The same as the balancer is told it.
    pub fn wish(&self) -> Wish<'_> {
        match self {
            Place::Instance(name) => Wish::Instance(name),
            Place::Zone(name) => Wish::Zone(name),
        }
    }
}

/// What one request asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wishes {
    /// It is to be over in so long.
    pub timeout: Option<Duration>,
    /// An account of the decision comes with the answer.
    pub explain: bool,
    /// It goes nowhere else.
    pub place: Option<Place>,
}

/// A control header that cannot be obeyed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disobeyed;

/// Takes the control headers out of a request and reads them, if they `are_on` and its caller `is_local`, on this host, and
/// speaks for itself.
///
/// A local reverse proxy forwards whatever the Internet sends it, so a request that was forwarded asks for nothing.
///
/// # Errors
/// One that is obeyed cannot be read, or another contradicts it.
pub fn take(are_on: bool, is_local: bool, headers: &mut HeaderMap) -> Result<Wishes, Disobeyed> {
    let mut wishes = Wishes::default();
    if !are_on {
        return Ok(wishes);
    }
    let is_forwarded = FORWARDING.iter().any(|name| headers.contains_key(name));
    let [explain, timeout, zone, instance] =
        [EXPLAIN, TIMEOUT, ZONE, INSTANCE].map(|name| headers.remove(name));
    if !is_local || is_forwarded {
        return Ok(wishes);
    }
    wishes.place = match (zone, instance) {
        (None, None) => None,
        (None, Some(instance)) => Some(Place::Instance(name(&instance)?)),
        (Some(zone), None) => Some(Place::Zone(name(&zone)?)),
        (Some(_), Some(_)) => return Err(Disobeyed),
    };
    wishes.explain = match explain.as_ref().map(HeaderValue::as_bytes) {
        None | Some(b"0") => false,
        Some(b"1") => true,
        Some(_) => return Err(Disobeyed),
    };
    if let Some(timeout) = timeout {
        let written = timeout.to_str().map_err(|_| Disobeyed)?;
        let span = duration(written).filter(|span| !span.is_zero());
        wishes.timeout = Some(span.ok_or(Disobeyed)?);
    }
    Ok(wishes)
}

fn name(value: &HeaderValue) -> Result<Box<str>, Disobeyed> {
    match value.to_str() {
        Ok(name) if !name.is_empty() => Ok(name.into()),
        _ => Err(Disobeyed),
    }
}

/// Whether a caller is on this host; one of a Unix socket has no address.
pub fn is_local(ip: Option<IpAddr>) -> bool {
    ip.is_none_or(|ip| ip.to_canonical().is_loopback())
}

/// Puts the account into an answer's head, shortened until it fits.
pub fn tell(account: &mut Account, headers: &mut HeaderMap) {
    loop {
        let text = serde_json::to_string(account).unwrap_or_default();
        if text.len() <= ACCOUNT_BYTES_MAX {
            // JSON has no control characters of its own and writes those of others as escapes.
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(EXPLAIN, value);
            }
            return;
        }
        if !account.shorten() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        fields.iter().map(field).collect()
    }

    fn from(ip: &str) -> Option<IpAddr> {
        Some(ip.parse().expect("an address"))
    }

    #[test]
    fn only_callers_on_this_host_that_speak_for_themselves_are_obeyed() {
        let fields = [
            ("x-starling-explain", "1"),
            ("x-starling-timeout", "250ms"),
            ("x-starling-zone", "eu-1b"),
        ];
        let obeyed = || Wishes {
            timeout: Some(Duration::from_millis(250)),
            explain: true,
            place: Some(Place::Zone("eu-1b".into())),
        };
        for (ip, want) in [
            (from("127.0.0.1"), obeyed()),
            (from("::1"), obeyed()),
            (None, obeyed()),
            (from("10.0.0.9"), Wishes::default()),
        ] {
            let mut headers = request(&fields);
            assert_eq!(take(true, is_local(ip), &mut headers), Ok(want));
            assert!(headers.is_empty(), "{headers:?}");
        }
        for (name, value) in [
            ("forwarded", "for=203.0.113.9"),
            ("via", "1.1 nginx"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "203.0.113.9"),
        ] {
            let mut headers = request(&fields);
            headers.extend(request(&[(name, value)]));
            let wishes = take(true, true, &mut headers);
            assert_eq!(wishes, Ok(Wishes::default()), "{name}");
            assert_eq!(headers.len(), 1, "{name} alone goes on");
        }
    }

    #[test]
    fn headers_that_are_off_are_like_any_other() {
        let mut headers = request(&[("x-starling-explain", "1")]);
        let wishes = take(false, true, &mut headers);
        assert_eq!((wishes, headers.len()), (Ok(Wishes::default()), 1));
    }

    #[test]
    fn what_cannot_be_obeyed_is_not_passed_over() {
        for field in [
            ("x-starling-explain", "yes"),
            ("x-starling-timeout", "250"),
            ("x-starling-timeout", "0s"),
            ("x-starling-zone", ""),
            ("x-starling-instance", ""),
        ] {
            let mut headers = request(&[field]);
            let wishes = take(true, true, &mut headers);
            assert_eq!(wishes, Err(Disobeyed), "{field:?}");
        }
        let two_places = [("x-starling-zone", "a"), ("x-starling-instance", "b")];
        let wishes = take(true, true, &mut request(&two_places));
        assert_eq!(wishes, Err(Disobeyed), "one may not be in the other");
    }
}
