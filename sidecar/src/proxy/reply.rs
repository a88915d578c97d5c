//! Cause → answer: the one table of what the sidecar says itself.
//!
//! Not here: answers of the upstream, which pass through `forward.rs`.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::reply_body::ReplyBody;

/// Why the sidecar answers in the upstream's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// No upstream and no service has that name.
    UnknownService,
    /// Every endpoint is out, or none is known.
    NoEndpoint,
    /// The endpoint refused the connection.
    ConnectRefused,
    /// No connection in time.
    ConnectTimedOut,
    /// The connection failed otherwise.
    ConnectFailed,
    /// Too many requests at once.
    Full,
    /// Too many connections at once.
    Crowded,
    /// The request's time is over.
    TimedOut,
    /// The upstream closed or reset the connection before a whole answer.
    UpstreamBroke,
    /// The upstream sent bytes that are not HTTP.
    UpstreamGarbled,
    /// The client's request makes no sense.
    BadRequest,
    /// The request's head took too long to come.
    HeadTooSlow,
    /// The beginning of the request's body, in which its key is, took too long to come.
    BodyTooSlow,
    /// The request's body is longer than its upstream takes.
    BodyTooLarge,
    /// The request's header block is too large.
    HeadersTooLarge,
    /// The request's path or query is too long.
    UriTooLong,
    /// A name outside the mesh.
    External,
    /// Own `Via` seen twice.
    Loop,
    /// CONNECT for a protocol that nobody here speaks.
    ConnectProtocol,
}

/// One line of the table.
pub struct Line {
    /// HTTP status.
    pub status: StatusCode,
    /// gRPC status.
    pub grpc: u8,
    /// Access-log flag; Envoy's name where it has one.
    pub flag: &'static str,
    /// RFC 9209 error type.
    pub error: &'static str,
    /// What the caller can do.
    pub advice: &'static str,
}

impl Cause {
    /// The table's line for this cause.
    pub const fn line(self) -> Line {
        const fn line(
            status: StatusCode,
            grpc: u8,
            flag: &'static str,
            error: &'static str,
            advice: &'static str,
        ) -> Line {
            Line {
                status,
                grpc,
                flag,
                error,
                advice,
            }
        }
        match self {
            Cause::UnknownService => line(
                StatusCode::SERVICE_UNAVAILABLE,
                14,
                "NC",
                "destination_not_found",
                "no service or upstream of this name is known here; `starling services` lists them",
            ),
            Cause::NoEndpoint => line(
                StatusCode::SERVICE_UNAVAILABLE,
                14,
                "UH",
                "destination_unavailable",
                "no endpoint of this service is usable; `starling endpoints NAME` says why",
            ),
            Cause::ConnectRefused => line(
                StatusCode::SERVICE_UNAVAILABLE,
                14,
                "UF",
                "connection_refused",
                "every endpoint tried refused the connection; is the application listening?",
            ),
            Cause::ConnectTimedOut => line(
                StatusCode::GATEWAY_TIMEOUT,
                14,
                "UF",
                "connection_timeout",
                "no endpoint tried accepted a connection in time; see connect_timeout and the network between",
            ),
            Cause::ConnectFailed => line(
                StatusCode::SERVICE_UNAVAILABLE,
                14,
                "UF",
                "destination_ip_unroutable",
                "no endpoint tried could be connected to; the sidecar's log has the system's error",
            ),
            Cause::Full => line(
                StatusCode::SERVICE_UNAVAILABLE,
                14,
                "UO",
                "connection_limit_reached",
                "too many requests at once; see limits of this upstream",
            ),
            Cause::Crowded => line(
                StatusCode::SERVICE_UNAVAILABLE,
                14,
                "UO",
                "connection_limit_reached",
                "too many connections at once; see outbound.limits, and limits of this upstream",
            ),
            Cause::TimedOut => line(
                StatusCode::GATEWAY_TIMEOUT,
                4,
                "UT",
                "http_response_timeout",
                "no answer within the request's timeout; see timeout of this upstream",
            ),
            Cause::UpstreamBroke => line(
                StatusCode::BAD_GATEWAY,
                14,
                "UC",
                "connection_terminated",
                "the endpoint closed the connection before a whole answer",
            ),
            Cause::UpstreamGarbled => line(
                StatusCode::BAD_GATEWAY,
                13,
                "UPE",
                "http_protocol_error",
                "the endpoint's answer was not valid HTTP; does it speak the protocol of its record?",
            ),
            Cause::BadRequest => line(
                StatusCode::BAD_REQUEST,
                3,
                "DPE",
                "http_request_error",
                "the request is malformed or ambiguous",
            ),
            Cause::HeadTooSlow => line(
                StatusCode::REQUEST_TIMEOUT,
                8,
                "DPE",
                "http_request_error",
                "the request's head did not come whole in time; see outbound.head_timeout",
            ),
            Cause::BodyTooSlow => line(
                StatusCode::REQUEST_TIMEOUT,
                8,
                "DPE",
                "http_request_error",
                "the part of the body in which the key is did not come within the request's timeout",
            ),
            Cause::BodyTooLarge => line(
                StatusCode::PAYLOAD_TOO_LARGE,
                8,
                "DPE",
                "http_request_error",
                "the request's body is too large; see limits.body_bytes of this upstream",
            ),
            Cause::HeadersTooLarge => line(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                8,
                "DPE",
                "http_request_error",
                "the request has too many headers, or they are too large; see outbound.limits.headers, and limits.header_bytes of this upstream",
            ),
            Cause::UriTooLong => line(
                StatusCode::URI_TOO_LONG,
                8,
                "DPE",
                "http_request_error",
                "the request line is too long; see outbound.limits.request_line_bytes",
            ),
            Cause::External => line(
                StatusCode::FORBIDDEN,
                7,
                "RBAC",
                "http_request_denied",
                "only names of the mesh are served here, such as payments.mesh",
            ),
            Cause::Loop => line(
                StatusCode::BAD_GATEWAY,
                13,
                "LOOP",
                "proxy_loop_detected",
                "the request came through this sidecar twice already; which upstream points back here?",
            ),
            Cause::ConnectProtocol => line(
                StatusCode::NOT_IMPLEMENTED,
                12,
                "RBAC",
                "http_request_denied",
                "of the protocols that CONNECT may ask for only websocket is served here",
            ),
        }
    }
}

/// Builds the answer for `cause`: gRPC callers get a trailers-only answer, all others a line of text.
pub fn reply(
    cause: Cause,
    grpc: bool,
    node: &str,
    request_id: Option<&HeaderValue>,
) -> Response<ReplyBody> {
    let line = cause.line();
    let mut headers = HeaderMap::with_capacity(6);
    let details = format!(
        "starling-{node}; error={}; details=\"{}{}\"",
        line.error,
        line.flag,
        request_id
            .and_then(|id| id.to_str().ok())
            .map(|id| format!(" {id}"))
            .unwrap_or_default(),
    );
    if let Ok(value) = HeaderValue::try_from(details) {
        headers.insert("proxy-status", value);
    }
    if let Some(id) = request_id {
        headers.insert("x-request-id", id.clone());
    }
    if matches!(cause, Cause::Full | Cause::Crowded) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    let (status, body) = if grpc {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert("grpc-status", HeaderValue::from(u16::from(line.grpc)));
        headers.insert("grpc-message", HeaderValue::from_static(line.advice));
        (StatusCode::OK, ReplyBody::empty())
    } else {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        (line.status, ReplyBody::full(Bytes::from(text(cause))))
    };
    let body = match cause {
        Cause::BadRequest | Cause::BodyTooLarge => body.last(),
        _ => body,
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The line of text that callers of anything but gRPC get for `cause`.
pub fn text(cause: Cause) -> String {
    let line = cause.line();
    format!("{} {}: {}\n", line.status.as_u16(), line.flag, line.advice)
}
