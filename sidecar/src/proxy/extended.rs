//! WebSocket over one stream of HTTP/2 (extended CONNECT, RFC 8441), and what it is as an upgrade of HTTP/1: on its way
//! down the path every request for one is such an upgrade.
//!
//! Not here: plain CONNECT (`connect.rs`), where a request goes (`forward.rs`), and the bytes that follow (`tunnel.rs`).

use h2::ext::Protocol;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE},
    response,
};
use rand::Rng;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::{
    body::Inflow,
    forward::forward,
    front::Caller,
    headers::UPGRADE_VALUE,
    reply::{Cause, reply},
    reply_body::ReplyBody,
};

/// The protocol that is understood.
const WEBSOCKET: &str = "websocket";
/// What a server of HTTP/1 proves its understanding with (RFC 6455, 1.3).
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The letters of base64 (RFC 4648, section 4).
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What is asked for by a CONNECT that is more than a CONNECT.
pub fn protocol_of(request: &Request<Inflow>) -> Option<Protocol> {
    request.extensions().get::<Protocol>().cloned()
}

/// Asks an endpoint to leave HTTP for `protocol`; the answer is 200 with the tunnel behind it, or says why not.
pub async fn connect(
    caller: &Caller,
    protocol: Protocol,
    mut request: Request<Inflow>,
) -> Response<ReplyBody> {
    let node = caller.worker.settings().node.clone();
    if protocol.as_str() != WEBSOCKET {
        return reply(Cause::ConnectProtocol, false, &node, None);
    }
    let key = key(&mut *caller.worker.rng.borrow_mut());
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    headers.insert(CONNECTION, UPGRADE_VALUE);
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    headers.insert(SEC_WEBSOCKET_KEY, header(&key));
    let mut answer = forward(caller, request).await;
    match answer.status() {
        StatusCode::SWITCHING_PROTOCOLS if has_agreed(answer.headers(), &key) => {
            let headers = answer.headers_mut();
            let of_http1: [HeaderName; 3] = [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT];
            for name in of_http1 {
                headers.remove(name);
            }
            *answer.status_mut() = StatusCode::OK;
            answer
        }
        // Here 200 would mean that the endpoint has agreed.
        status if status == StatusCode::SWITCHING_PROTOCOLS || status.is_success() => {
            reply(Cause::UpstreamGarbled, false, &node, None)
        }
        _ => answer,
    }
}

/// Whether a head of HTTP/1 asks to leave HTTP for what a stream of HTTP/2 can leave it for.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let to = headers.get(UPGRADE).map(HeaderValue::as_bytes);
    to.is_some_and(|to| to.eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
        && headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// Turns a request for a WebSocket by HTTP/1 into one by HTTP/2.
pub fn into_connect(request: &mut Request<()>) {
    *request.method_mut() = Method::CONNECT;
    let headers = request.headers_mut();
    headers.remove(UPGRADE);
    headers.remove(SEC_WEBSOCKET_KEY);
    let protocol = Protocol::from_static(WEBSOCKET);
    request.extensions_mut().insert(protocol);
}

/// Turns the answer of an endpoint of HTTP/2 that has agreed to `asked` into one of HTTP/1.
pub fn agreed(head: &mut response::Parts, asked: &HeaderMap) {
    head.status = StatusCode::SWITCHING_PROTOCOLS;
    let key = asked
        .get(SEC_WEBSOCKET_KEY)
        .and_then(|key| key.to_str().ok());
    let headers = &mut head.headers;
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    headers.insert(
        SEC_WEBSOCKET_ACCEPT,
        header(&accept_of(key.unwrap_or_default())),
    );
}

/// Whether an endpoint has understood what it was asked (RFC 6455, 4.1).
fn has_agreed(headers: &HeaderMap, key: &str) -> bool {
    let to = headers.get(UPGRADE).map(HeaderValue::as_bytes);
    let accept = headers.get(SEC_WEBSOCKET_ACCEPT);
    to.is_some_and(|to| to.eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
        && accept.is_some_and(|accept| accept.as_bytes() == accept_of(key).as_bytes())
}

fn key(rng: &mut impl Rng) -> String {
    let mut nonce = [0; 16];
    rng.fill_bytes(&mut nonce);
    base64(&nonce)
}

fn accept_of(key: &str) -> String {
    let text = format!("{key}{WEBSOCKET_GUID}");
    base64(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref())
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            if at <= three.len() {
                text.push(char::from(BASE64[(bits >> (18 - 6 * at)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_standard_comes_out() {
        // RFC 6455, 1.3, and RFC 4648, section 10.
        assert_eq!(
            accept_of("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn an_answer_to_another_key_is_no_agreement() {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, header(&accept_of("mine")));
        assert!(has_agreed(&headers, "mine"));
        assert!(!has_agreed(&headers, "yours"));
        headers.remove(UPGRADE);
        assert!(!has_agreed(&headers, "mine"));
    }
}
