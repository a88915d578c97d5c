//! The codec alone: heads and chunks as bytes, anything thrown at it, cut anywhere.

use std::{cell::RefCell, future::poll_fn, rc::Rc};

use bytes::Bytes;
use http::{HeaderMap, Version, header};
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use tokio::{io::duplex, task::LocalSet};

use super::{
    decode::{Decoder, Step},
    head::{self, AnswerHead, Bounds, Fault, Framing, RequestHead},
    wire::{BUFFER_BYTES, Buffers, Wire},
};
use crate::proxy::transport::Transport;

const BOUNDS: Bounds = Bounds {
    line_bytes: 8 * 1024,
    bytes: 64 * 1024,
    fields: 100,
};

fn request(text: &str) -> Result<RequestHead, Fault> {
    head::request(
        &Bytes::copy_from_slice(text.as_bytes()),
        BOUNDS,
        HeaderMap::new(),
    )
}

fn answer(text: &str) -> Result<AnswerHead, Fault> {
    let head = Bytes::copy_from_slice(text.as_bytes());
    head::answer(&head, false, HeaderMap::new())
}

#[test]
fn a_head_ends_at_its_empty_line_however_it_is_cut() {
    let whole = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
    let end = whole.len() - b"rest".len();
    for cut in 0..=whole.len() {
        let found = head::end_of(&whole[..cut], 0).expect("sound lines");
        assert_eq!(found, (cut >= end).then_some(end), "cut at {cut}");
        let later = head::end_of(whole, cut.min(end - 1)).expect("sound lines");
        assert_eq!(later, Some(end), "looked at {cut} bytes before");
    }
    assert!(head::end_of(b"GET / HTTP/1.1\nHost: a\n\n", 0).is_err());
}

#[test]
fn what_a_request_says_of_its_body_is_read_in_one_way() {
    let framing = |fields: &str| {
        request(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
            .map(|(_, meaning, _)| meaning.framing)
    };
    assert_eq!(framing(""), Ok(Framing::Empty));
    assert_eq!(framing("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
    assert_eq!(framing("Content-Length: 0\r\n"), Ok(Framing::Empty));
    assert_eq!(framing("Content-Length: 5, 5\r\n"), Ok(Framing::Length(5)));
    assert_eq!(
        framing("TRANSFER-encoding: Chunked\r\n"),
        Ok(Framing::Chunked)
    );
    for bad in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: \r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
    ] {
        assert!(framing(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn names_keep_their_case_and_values_their_bytes() {
    let (request, _, spelling) =
        request("GET / HTTP/1.1\r\nHost: a\r\nX-ABC:  one \r\nx-low: 2\r\nX-Abc: three\r\n\r\n")
            .expect("sound");
    let mut after = 0;
    let names: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| {
            (
                spelling.of(name, &mut after).to_vec(),
                value.as_bytes().to_vec(),
            )
        })
        .collect();
    let expected: [(&[u8], &[u8]); 4] = [
        (b"Host", b"a"),
        (b"X-ABC", b"one"),
        (b"X-Abc", b"three"),
        (b"x-low", b"2"),
    ];
    assert_eq!(names.len(), expected.len());
    for (got, wanted) in names.iter().zip(expected) {
        assert_eq!((&got.0[..], &got.1[..]), wanted);
    }
}

#[test]
fn connections_are_kept_as_both_versions_say() {
    let keeps = |line: &str, fields: &str| {
        let text = format!("GET / {line}\r\nHost: a\r\n{fields}\r\n");
        request(&text).expect("sound").1.keep_alive
    };
    assert!(keeps("HTTP/1.1", ""));
    assert!(!keeps("HTTP/1.1", "Connection: x, Close\r\n"));
    assert!(!keeps("HTTP/1.0", ""));
    assert!(keeps("HTTP/1.0", "Connection: Keep-Alive\r\n"));
}

#[test]
fn an_answer_has_the_body_that_its_status_allows() {
    let read = |line: &str, fields: &str| {
        answer(&format!("{line}\r\n{fields}\r\n"))
            .map(|(_, meaning, _)| (meaning.framing, meaning.keep_alive))
    };
    let ok = "HTTP/1.1 200 OK";
    assert_eq!(
        read(ok, "Content-Length: 3\r\n"),
        Ok((Framing::Length(3), true))
    );
    assert_eq!(read(ok, ""), Ok((Framing::UntilClose, false)));
    assert_eq!(
        read("HTTP/1.1 200", "Transfer-Encoding: chunked\r\n"),
        Ok((Framing::Chunked, true))
    );
    assert_eq!(
        read("HTTP/1.1 304 ", "Content-Length: 3\r\n"),
        Ok((Framing::Empty, true))
    );
    assert_eq!(
        read("HTTP/1.1 204 No", "Content-Length: 3\r\n"),
        Ok((Framing::Empty, false))
    );
    for (line, fields) in [
        ("HTTP/1.1 20 OK", ""),
        ("HTTP/1.1 2000", ""),
        ("HTTP/2 200 OK", ""),
        ("HTTP/1.1  200 OK", ""),
        (ok, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
        (ok, "A : b\r\n"),
        (ok, " folded\r\n"),
        ("HTTP/1.0 200 OK", "Transfer-Encoding: chunked\r\n"),
    ] {
        assert!(read(line, fields).is_err(), "{line} {fields:?}");
    }
}

/// Everything a decoder says of `input`, fed whole or in pieces of `piece` bytes: the data, and whether it ended well,
/// broke, or waits; the end with the number of bytes used.
fn decoded(
    framing: Framing,
    input: &[u8],
    piece: usize,
) -> (Vec<u8>, Result<Option<usize>, Fault>) {
    let mut decoder = Decoder::new(framing);
    let (mut data, mut at, mut to) = (Vec::new(), 0, piece.min(input.len()));
    loop {
        match decoder.next(&input[at..to]) {
            Err(fault) => return (data, Err(fault)),
            Ok(Step::Data { skip, take }) => {
                assert!(
                    take > 0 && at + skip + take <= to,
                    "a step beyond its input"
                );
                data.extend_from_slice(&input[at + skip..at + skip + take]);
                at += skip + take;
            }
            Ok(Step::More { skip }) => {
                at += skip;
                assert!(at <= to, "a step beyond its input");
                if to == input.len() {
                    return (data, Ok(None));
                }
                to = (to + piece).min(input.len());
            }
            Ok(Step::End { skip, .. }) => return (data, Ok(Some(at + skip))),
        }
    }
}

#[test]
fn chunks_are_read_alike_however_they_are_cut() {
    let body = b"5\r\nhello\r\n1;a=b\r\n \r\n0A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nGET";
    let whole = decoded(Framing::Chunked, body, body.len());
    assert_eq!(whole.0, b"hello 0123456789");
    assert_eq!(whole.1, Ok(Some(body.len() - 3)));
    for piece in 1..body.len() {
        assert_eq!(
            decoded(Framing::Chunked, body, piece),
            whole,
            "{piece} at a time"
        );
    }
}

#[test]
fn chunks_that_could_be_read_in_two_ways_are_refused() {
    for bad in [
        &b"\r\n"[..],
        b"g\r\n",
        b"-1\r\n",
        b"0x5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhello\n",
        b"5\r\nhelloo\r\n",
        b"5\r\nhell\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n",
        b"5;a\0b\r\nhello\r\n",
        b"5;a\nb\r\nhello\r\n",
        b"ffffffffffffffff\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"0\r\n folded: 1\r\n\r\n",
        b"0\r\nX: 1\n\r\n",
    ] {
        let (_, end) = decoded(Framing::Chunked, bad, bad.len());
        assert!(end.is_err(), "{:?}: {end:?}", String::from_utf8_lossy(bad));
    }
    let long = [b"5;".to_vec(), vec![b'x'; 5000]].concat();
    assert!(decoded(Framing::Chunked, &long, 100).1.is_err());
    let flood = b"1;0123456789012345678901234567890123456789\r\nx\r\n".repeat(1000);
    assert!(decoded(Framing::Chunked, &flood, flood.len()).1.is_err());
    let trailers = [
        &b"0\r\n"[..],
        &b"x: yyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(2000),
    ]
    .concat();
    assert!(decoded(Framing::Chunked, &trailers, 999).1.is_err());
}

/// Bytes that get deep into a parser: pieces of sound messages, shuffled, cut and bent.
fn bent(rng: &mut SmallRng) -> Vec<u8> {
    const PIECES: [&[u8]; 26] = [
        b"GET / HTTP/1.1\r\n",
        b"POST http://a.mesh/x?y HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 6\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nX: 1\r\n\r\n",
        b"ffff",
        b";ext=1",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 100 Continue\r\n\r\n",
        b"Connection: close\r\n",
        b"X: \xff\xfe\r\n",
        b"Expect: 100-continue\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
    ];
    let mut bytes = Vec::new();
    for _ in 0..rng.random_range(1..12) {
        bytes.extend_from_slice(PIECES[rng.random_range(0..PIECES.len())]);
    }
    for _ in 0..rng.random_range(0..3) {
        let at = rng.random_range(0..bytes.len());
        bytes[at] = rng.next_u32() as u8;
    }
    let cut = rng.random_range(0..=bytes.len());
    bytes.truncate(cut.max(1));
    bytes
}

/// What holds for any bytes at all; also a fuzzer's way in.
fn laws_hold_for(bytes: &[u8]) {
    for framing in [Framing::Chunked, Framing::Length(7), Framing::UntilClose] {
        let whole = decoded(framing, bytes, bytes.len().max(1));
        let bitwise = decoded(framing, bytes, 1);
        assert!(bitwise.0.starts_with(&whole.0) || whole.0.starts_with(&bitwise.0));
        if let (Ok(Some(one)), Ok(other)) = (&whole.1, &bitwise.1) {
            assert_eq!(
                (Some(*one), &whole.0),
                (*other, &bitwise.0),
                "cutting changed the body"
            );
        }
    }
    let Ok(Some(end)) = head::end_of(bytes, 0) else {
        return;
    };
    let block = Bytes::copy_from_slice(&bytes[..end]);
    let _ = head::answer(&block, false, HeaderMap::new());
    let Ok((request, meaning, spelling)) = head::request(&block, BOUNDS, HeaderMap::new()) else {
        return;
    };
    let headers = request.headers();
    assert!(headers.get_all(header::HOST).iter().count() <= 1);
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    assert_eq!(chunked, meaning.framing == Framing::Chunked);
    assert!(!(chunked && headers.contains_key(header::CONTENT_LENGTH)));
    assert!(request.version() == Version::HTTP_10 || headers.contains_key(header::HOST));
    let mut after = 0;
    for (name, value) in headers {
        assert!(
            spelling
                .of(name, &mut after)
                .eq_ignore_ascii_case(name.as_str().as_bytes())
        );
        let harmless = |byte: &u8| !matches!(byte, b'\r' | b'\n' | 0);
        assert!(value.as_bytes().iter().all(harmless));
    }
}

#[test]
fn any_bytes_are_read_soundly_or_refused() {
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..20_000 {
        laws_hold_for(&bent(&mut rng));
    }
}

/// What became of two connections of one turn, each of which had so many bytes to write: `r` where one was read, `w`
/// where it was written.
async fn turn(bytes: usize) -> String {
    let told = Rc::new(RefCell::new(String::new()));
    let turns = LocalSet::new();
    let buffers = Rc::<Buffers>::default();
    for _ in 0..2 {
        let (told, buffers) = (Rc::clone(&told), Rc::clone(&buffers));
        turns.spawn_local(async move {
            let (ours, theirs) = duplex(4 * BUFFER_BYTES);
            let wire = Wire::new(Transport::Pipe(ours), &buffers);
            told.borrow_mut().push('r');
            wire.borrow_mut().output().resize(bytes, b'x');
            let written = poll_fn(|cx| wire.borrow_mut().poll_flush(cx)).await;
            written.expect("the pipe has room");
            told.borrow_mut().push('w');
            drop(theirs);
        });
    }
    turns.await;
    told.take()
}

#[tokio::test]
async fn what_is_short_is_written_when_all_others_of_the_turn_have_been_read() {
    assert_eq!(turn(100).await, "rrww");
    assert_eq!(turn(BUFFER_BYTES).await, "rwrw", "long ones gather nothing");
}
