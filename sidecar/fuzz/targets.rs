//! What is tried on any bytes that a client or an endpoint may send; a panic is a finding.
//!
//! Not here: where the bytes come from: libFuzzer (`fuzz_targets/`), or the corpus and plain dice
//! (`sidecar/tests/fuzz.rs`), which both call these functions.

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Uri};
use mesh_core::{
    hash::hash_of,
    policy::{HashKey, ProxyVersion},
    route::{self, Target},
};
use sidecar::{
    active_check::grpc,
    config::Network,
    proxy::{
        call,
        client_hello::{self, HELLO_BYTES_MAX, Hello},
        detect::{PREFACE, Speaks, detect},
        headers::{self, Origin},
        http1::{
            decode::{Decoder, Step},
            encode,
            head::{self, Framing},
        },
        proxy_header::{self, Addresses, HeaderFault},
    },
    request_key::{self, Source},
};

/// A connection's first bytes: a decision stands whatever follows, and only the preface is HTTP/2.
pub fn detection(input: &[u8]) {
    let mut decided = None;
    for end in 0..=input.len().min(PREFACE.len() + 1) {
        match (detect(&input[..end]), decided) {
            (now, Some(before)) => assert_eq!(now, before),
            (Speaks::Undecided, None) => {}
            (now, None) => decided = Some(now),
        }
    }
    assert_eq!(decided == Some(Speaks::Http2), input.starts_with(PREFACE));
}

/// A PROXY header off the front of a connection: what is read can be written and read again, and nothing behind it is
/// touched.
pub fn proxy_header(input: &[u8]) {
    let Some((Ok(read), left)) = header_of(input) else {
        return;
    };
    assert!(input.ends_with(left));
    for version in [ProxyVersion::One, ProxyVersion::Two] {
        let mut written = proxy_header::write(version, read);
        written.extend_from_slice(b"behind");
        let (again, left) = header_of(&written).expect("all of it is there");
        let again = again.expect("our own");
        assert_eq!(again.map(plain), read.map(plain));
        assert_eq!(left, b"behind");
    }
}

/// Both addresses as what they are: one of IPv4 may come in IPv6's clothes, and be written without them.
fn plain(told: Addresses) -> [SocketAddr; 2] {
    [told.source, told.destination]
        .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

type HeaderRead = Result<Option<Addresses>, HeaderFault>;

/// What is read of `input`, and what is left of it. Bytes in memory are always ready, so there is nothing to wait for.
fn header_of(mut input: &[u8]) -> Option<(HeaderRead, &[u8])> {
    let read = {
        let reading = pin!(proxy_header::read(&mut input));
        match reading.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(read) => read,
            Poll::Pending => return None,
        }
    };
    Some((read, input))
}

/// The first bytes of a TLS connection, however they are cut: the same in the end, and never undecided for long.
pub fn client_hello(input: &[u8]) {
    let whole = client_hello::judge(input);
    if input.len() >= HELLO_BYTES_MAX {
        assert_ne!(whole, Hello::More);
    }
    for end in [input.len() / 3, input.len() / 2] {
        match client_hello::judge(&input[..end]) {
            Hello::More => {}
            Hello::Whole(name) => assert_eq!(whole, Hello::Whole(name)),
            Hello::Garbled(_) => assert!(matches!(whole, Hello::Garbled(_))),
        }
    }
    if let Hello::Whole(Some(name)) = whole {
        assert!(name.len() <= 253 && *name == *name.to_ascii_lowercase());
    }
}

/// As large as a request's head may be, if nothing else is said.
const BOUNDS: head::Bounds = head::Bounds {
    line_bytes: 8 * 1024,
    bytes: 64 * 1024,
    fields: 100,
};

/// A head of HTTP/1, as a request and as an answer: found at the same place however it comes, and what is written of it
/// is read in the same way.
pub fn http1_head(input: &[u8]) {
    let Ok(Some(end)) = head::end_of(input, 0) else {
        return;
    };
    for seen in [end / 3, end / 2, end - 1] {
        assert!(matches!(head::end_of(&input[..end], seen), Ok(Some(found)) if found == end));
    }
    let block = Bytes::copy_from_slice(&input[..end]);
    if let Ok((request, meaning, spelling)) = head::request(&block, BOUNDS, Default::default()) {
        let mut written = Vec::new();
        let target = request.uri().to_string();
        encode::request_line(&mut written, request.method(), &target);
        encode::fields(&mut written, request.headers(), Some(&spelling));
        written.extend_from_slice(b"\r\n");
        let lines = written.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(
            lines,
            request.headers().len() + 2,
            "a field became two lines"
        );
        let _ = meaning;
    }
    for to_head in [false, true] {
        if let Ok((answer, meaning, spelling)) = head::answer(&block, to_head, Default::default()) {
            let mut written = Vec::new();
            encode::status_line(&mut written, answer.status(), Some(&spelling));
            encode::fields(&mut written, answer.headers(), Some(&spelling));
            written.extend_from_slice(b"\r\n");
            let lines = written.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(
                lines,
                answer.headers().len() + 2,
                "a field became two lines"
            );
            assert!(!to_head || meaning.framing == Framing::Empty);
        }
    }
}

/// A chunked body, read whole and byte by byte: the same data, the same end or the same refusal.
pub fn chunks(input: &[u8]) {
    let whole = decoded(input, usize::MAX);
    for piece in [1, 7] {
        assert_eq!(decoded(input, piece), whole);
    }
}

/// The data of a chunked body that comes `piece` bytes at a time, how many bytes it took, and whether it ended; `None`:
/// it is malformed.
fn decoded(input: &[u8], piece: usize) -> Option<(Vec<u8>, usize, bool)> {
    let mut decoder = Decoder::new(Framing::Chunked);
    let (mut data, mut from, mut to) = (Vec::new(), 0, piece.min(input.len()));
    loop {
        match decoder.next(&input[from..to]).ok()? {
            Step::Data { skip, take } => {
                from += skip;
                data.extend_from_slice(&input[from..from + take]);
                from += take;
            }
            Step::End { skip, .. } => return Some((data, from + skip, true)),
            Step::More { skip } => {
                from += skip;
                if to == input.len() {
                    return Some((data, from, false));
                }
                to = to.saturating_add(piece).min(input.len());
            }
        }
    }
}

/// An authority: what it means is a part of it, and a name of the mesh means the same again with the mesh's domain.
pub fn authority(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match route::target(text, "mesh") {
        None => {}
        Some(Target::External(name)) => assert!(text.contains(name) && !name.contains('@')),
        Some(Target::Mesh(name)) => {
            assert!(text.contains(name) && !name.is_empty() && !name.contains([':', '@', '/']));
            if name.len() < route::AUTHORITY_BYTES_MAX - 20 {
                let whole = format!("{name}.mesh:7080");
                assert_eq!(route::target(&whole, "mesh"), Some(Target::Mesh(name)));
            }
        }
    }
}

/// `X-Forwarded-For` of a caller that is believed and of one that is not: the latter's never counts, and of the former's
/// only an address that it names, which is no proxy's.
pub fn forwarded_for(input: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let mut fields = HeaderMap::new();
    fields.insert("x-forwarded-for", value);
    let caller = IpAddr::from([10, 0, 0, 1]);
    let proxies = [Network {
        address: IpAddr::from([10, 0, 0, 0]),
        bits: 8,
    }];
    let client = |trusted| {
        let origin = Origin::new(Some(caller), false, trusted, false);
        headers::client(&fields, &origin, &proxies)
    };
    assert_eq!(client(false), Some(caller));
    let found = client(true).expect("the caller at least");
    if found != caller {
        assert!(!proxies[0].contains(found));
        let mut parts = input.split(|byte| *byte == b',');
        let names = |part: &[u8]| {
            std::str::from_utf8(part.trim_ascii()).is_ok_and(|t| t.parse() == Ok(found))
        };
        assert!(parts.any(names), "nobody named {found}");
    }
}

/// Keys of requests in cookies and queries: what is found stands there behind its name.
pub fn keys(input: &[u8]) {
    let source = Source::default();
    let root = Uri::from_static("/");
    if let Ok(value) = HeaderValue::from_bytes(input) {
        let mut fields = HeaderMap::new();
        fields.insert("cookie", value);
        let found = request_key::cookie(&fields, "id");
        let hash = request_key::of_request(&HashKey::Cookie("id".into()), &fields, &root, source);
        assert_eq!(hash, found.filter(|value| !value.is_empty()).map(hash_of));
        if let Some(found) = found {
            let pair = [b"id=", found].concat();
            assert!(!found.contains(&b';') && input.windows(pair.len()).any(|part| part == pair));
        }
    }
    let written = std::str::from_utf8(input).ok();
    let Some(uri) = written.and_then(|text| format!("/?{text}").parse::<Uri>().ok()) else {
        return;
    };
    let fields = HeaderMap::new();
    let hash = request_key::of_request(&HashKey::Query("id".into()), &fields, &uri, source);
    let mut pairs = uri.query().unwrap_or_default().split('&');
    let first = pairs.find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == "id"));
    let value = first.map(|(_, value)| value.as_bytes());
    assert_eq!(hash, value.filter(|value| !value.is_empty()).map(hash_of));
}

/// `grpc-timeout`: up to eight digits and a unit, and nothing else.
pub fn grpc_timeout(input: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let digits = input
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let is_sound = (1..=8).contains(&digits)
        && matches!(input[digits..], [b'H' | b'M' | b'S' | b'm' | b'u' | b'n']);
    assert_eq!(call::grpc_timeout(&value).is_some(), is_sound);
}

/// An answer of gRPC's health service: a field that nobody knows changes nothing, and a cut one is no answer.
pub fn grpc_health(input: &[u8]) {
    let Some(status) = grpc::status(input) else {
        return;
    };
    let mut more = input.to_vec();
    // Field 15 with three bytes.
    more.extend_from_slice(&[0x7a, 3, 1, 2, 3]);
    let length = (more.len() - 5) as u32;
    more[1..5].copy_from_slice(&length.to_be_bytes());
    assert_eq!(grpc::status(&more), Some(status));
    more.pop();
    assert_eq!(grpc::status(&more), None);
}
