//! What is tried on any bytes that a client or an endpoint may send; a panic is a finding.
//!
//! Not here: where the bytes come from: libFuzzer (`fuzz_targets/`), or the corpus and plain dice
//! (`sidecar/tests/fuzz.rs`), which both call these functions.

use std::{
    net::SocketAddr,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use mesh_core::policy::ProxyVersion;
use sidecar::proxy::{
    client_hello::{self, HELLO_BYTES_MAX, Hello},
    detect::{PREFACE, Speaks, detect},
    http1::{
        decode::{Decoder, Step},
        encode,
        head::{self, Framing},
    },
    proxy_header::{self, Addresses, HeaderFault},
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
