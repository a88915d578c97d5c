//! Which of the fields that the path asks for stand in a head, told by one look at its names.
//!
//! Not here: what is done with them (`headers.rs`, `forward.rs`). A map of fields hashes a name at every question, and
//! of the thirty or so that a request and its answer are asked, nearly all are for something that is not there.

use http::{HeaderMap, HeaderName};

/// A set of fields: those of a head, or those asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Present(u32);

impl Present {
    /// `Connection`.
    pub const CONNECTION: Present = Present(1);
    /// `Content-Length`.
    pub const CONTENT_LENGTH: Present = Present(1 << 1);
    /// `Content-Type`.
    pub const CONTENT_TYPE: Present = Present(1 << 2);
    /// `Cookie`.
    pub const COOKIE: Present = Present(1 << 3);
    /// `Expect`.
    pub const EXPECT: Present = Present(1 << 4);
    /// `Forwarded`, `X-Forwarded-For`, `X-Forwarded-Proto` or `X-Forwarded-Host`.
    pub const FORWARDING: Present = Present(1 << 5);
    /// `grpc-timeout`.
    pub const GRPC_TIMEOUT: Present = Present(1 << 6);
    /// Fields that concern one connection only, `Connection` and those above apart.
    pub const HOP_BY_HOP: Present = Present(1 << 7);
    /// `Host`.
    pub const HOST: Present = Present(1 << 8);
    /// `Keep-Alive`.
    pub const KEEP_ALIVE: Present = Present(1 << 9);
    /// What says that a request was tried before.
    pub const PREVIOUS_ATTEMPTS: Present = Present(1 << 10);
    /// `X-Request-Id`.
    pub const REQUEST_ID: Present = Present(1 << 11);
    /// `Retry-After`.
    pub const RETRY_AFTER: Present = Present(1 << 12);
    /// `traceparent`.
    pub const TRACEPARENT: Present = Present(1 << 13);
    /// `Trailer`.
    pub const TRAILER: Present = Present(1 << 14);
    /// `Transfer-Encoding`.
    pub const TRANSFER_ENCODING: Present = Present(1 << 15);
    /// `Upgrade`.
    pub const UPGRADE: Present = Present(1 << 16);
    /// `Via`.
    pub const VIA: Present = Present(1 << 17);

    /// Those that stand in `headers`.
    pub fn of(headers: &HeaderMap) -> Present {
        let none = Present::default();
        headers.keys().fold(none, |seen, name| seen.and(name))
    }

    /// With another field.
    pub fn and(self, name: &HeaderName) -> Present {
        self.or(Present::named(name.as_str()))
    }

    /// The fields of both.
    pub const fn or(self, other: Present) -> Present {
        Present(self.0 | other.0)
    }

    /// Whether one of `these` is there.
    pub const fn has(self, these: Present) -> bool {
        self.0 & these.0 != 0
    }

    /// The length tells nearly all names apart, so that most need no comparison.
    fn named(name: &str) -> Present {
        match (name.len(), name) {
            (2, "te") => Present::HOP_BY_HOP,
            (3, "via") => Present::VIA,
            (4, "host") => Present::HOST,
            (6, "cookie") => Present::COOKIE,
            (6, "expect") => Present::EXPECT,
            (7, "trailer") => Present::TRAILER,
            (7, "upgrade") => Present::UPGRADE,
            (9, "forwarded") => Present::FORWARDING,
            (10, "connection") => Present::CONNECTION,
            (10, "keep-alive") => Present::KEEP_ALIVE,
            (11, "retry-after") => Present::RETRY_AFTER,
            (11, "traceparent") => Present::TRACEPARENT,
            (12, "content-type") => Present::CONTENT_TYPE,
            (12, "grpc-timeout") => Present::GRPC_TIMEOUT,
            (12, "x-request-id") => Present::REQUEST_ID,
            (14, "content-length") => Present::CONTENT_LENGTH,
            (14, "http2-settings") => Present::HOP_BY_HOP,
            (15, "x-forwarded-for") => Present::FORWARDING,
            (16, "proxy-connection") => Present::HOP_BY_HOP,
            (16, "x-forwarded-host") => Present::FORWARDING,
            (17, "transfer-encoding") => Present::TRANSFER_ENCODING,
            (17, "x-forwarded-proto") => Present::FORWARDING,
            (18, "proxy-authenticate") => Present::HOP_BY_HOP,
            (19, "proxy-authorization") => Present::HOP_BY_HOP,
            (21, "x-envoy-attempt-count") => Present::PREVIOUS_ATTEMPTS,
            (26, "grpc-previous-rpc-attempts") => Present::PREVIOUS_ATTEMPTS,
            _ => Present::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::*;

    #[test]
    fn a_head_has_what_stands_in_it_and_nothing_else() {
        let mut headers = HeaderMap::new();
        assert_eq!(Present::of(&headers), Present::default());
        for name in [header::HOST, header::TE, header::ACCEPT] {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        let seen = Present::of(&headers);
        assert_eq!(seen, Present::HOST.or(Present::HOP_BY_HOP));
        assert!(seen.has(Present::VIA.or(Present::HOST)));
        assert!(!seen.has(Present::VIA));
    }

    /// A name of the wrong length in the table would never be found.
    #[test]
    fn every_name_that_is_looked_for_is_found() {
        let names = "te via host cookie expect trailer upgrade forwarded connection keep-alive retry-after traceparent \
            content-type grpc-timeout x-request-id content-length http2-settings x-forwarded-for proxy-connection \
            x-forwarded-host transfer-encoding x-forwarded-proto proxy-authenticate proxy-authorization \
            x-envoy-attempt-count grpc-previous-rpc-attempts";
        for name in names.split_whitespace() {
            assert_ne!(Present::named(name), Present::default(), "{name}");
        }
    }
}
