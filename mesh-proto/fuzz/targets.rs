//! What is tried on any bytes that others may send; a panic is a finding.
//!
//! Not here: where the bytes come from: libFuzzer (`fuzz_targets/`), or the corpus and plain dice
//! (`mesh-proto/tests/fuzz.rs`), which both call these functions.
//!
//! Nobody without the key gets past the seal by chance, so each target tries its input as it is and, sealed by itself,
//! as the word of a member that has gone mad.

use foca::Codec;
use mesh_proto::{
    FRAME_BYTES_MAX, RECORD_BYTES_MAX,
    codec::{CodecError, MemberCodec, decode_record, encode_record, items, put_item},
    frame::{self, Call, KeyRing, Opener, PAYLOAD_BYTES_MAX, PREAMBLE_BYTES, Reject, Sealer, boot},
    message::Item,
    record::Body,
};

/// The key that the corpus is sealed with.
pub const KEY: [u8; 32] = [7; 32];

/// The ring of [`KEY`], or none.
pub fn ring(sealed: bool) -> KeyRing {
    KeyRing::new(sealed.then_some(KEY), "prod")
}

/// A datagram off the wire: as it is, in a ring and in clear; and as what a member seals.
pub fn datagram(input: &[u8]) {
    for sealed in [true, false] {
        let mut opener = Opener::new(ring(sealed));
        let opened = opener.open(&mut input.to_vec()).map(|opened| {
            assert_eq!(opened.key.is_some(), sealed);
            opened.payload.to_vec()
        });
        match opened {
            Ok(payload) => {
                said(&payload);
                let again = opener.open(&mut input.to_vec()).err();
                assert_eq!(again, sealed.then_some(Reject::Replayed));
            }
            Err(_) => assert_eq!(opener.floors().count(), 0, "noise was remembered"),
        }
        let mut sealer = Sealer::new(ring(sealed), 1, boot(2, 3));
        match sealer.seal(input) {
            Some(mut datagram) => {
                let mut opener = Opener::new(ring(sealed));
                let opened = opener.open(&mut datagram).expect("our own");
                assert_eq!(opened.payload, input);
                said(opened.payload);
            }
            None => assert!(input.len() > PAYLOAD_BYTES_MAX),
        }
    }
}

/// One record's bytes, as rumours and exchanges carry them.
pub fn record(input: &[u8]) {
    let Ok((head, body)) = decode_record(input) else {
        return;
    };
    assert!(input.len() <= RECORD_BYTES_MAX);
    match encode_record(&head, &body) {
        Ok(bytes) => assert_eq!(decode_record(&bytes), Ok((head, body))),
        // Kept and relayed as it came; or without the keys that this version puts behind it.
        Err(CodecError::TooLong) => {
            assert!(body == Body::Unknown || input.len() == RECORD_BYTES_MAX)
        }
        Err(CodecError::Malformed) => panic!("what was read cannot be written"),
    }
}

/// A stream off the wire: preamble and hello as they are; and the input as the frames of a member.
pub fn stream(input: &[u8]) {
    for sealed in [true, false] {
        if let Some((preamble, hello)) = input.split_first_chunk::<PREAMBLE_BYTES>()
            && let Ok(mut answered) = frame::answer(&ring(sealed), preamble, hello, [2; 32])
        {
            assert_eq!(answered.key.is_some(), sealed);
            said(&answered.hello);
            let frame = answered.back.open(hello.to_vec());
            assert_eq!(frame.is_err(), sealed, "a frame under the key of the hello");
        }
        let Some((call, bytes)) = Call::start(&ring(sealed), [1; 32], input) else {
            assert!(input.len() > FRAME_BYTES_MAX);
            continue;
        };
        let (preamble, hello) = bytes
            .split_first_chunk::<PREAMBLE_BYTES>()
            .expect("it begins with one");
        let mut answered =
            frame::answer(&ring(sealed), preamble, &hello[4..], [2; 32]).expect("our own");
        assert_eq!(answered.hello, input);
        let (mut out, _) = call.answered(&answered.preamble).expect("the same ring");
        for part in input.split(|byte| *byte == 0xff) {
            let frame = out.seal(part).expect("not longer than the whole");
            let payload = answered.back.open(frame[4..].to_vec()).expect("our own");
            assert_eq!(payload, part);
            said(&payload);
        }
    }
}

/// Reads everything that is said, and says it again.
fn said(payload: &[u8]) {
    let mut count = 0;
    for item in items(payload) {
        count += 1;
        let Ok(item) = item else {
            continue;
        };
        let mut bytes = Vec::new();
        put_item(&mut bytes, &item).expect("it was read from as many bytes or more");
        assert_eq!(items(&bytes).collect::<Vec<_>>(), [Ok(item.clone())]);
        match item {
            Item::Foca(packet) => packet_of_foca(packet),
            Item::Record(bytes) => record(bytes),
            _ => {}
        }
    }
    assert!(count <= payload.len());
}

/// A header and members until one cannot be read: foca goes on no further either.
fn packet_of_foca(mut packet: &[u8]) {
    if let Ok(header) = MemberCodec.decode_header(&mut packet) {
        let mut bytes = Vec::new();
        let written = MemberCodec.encode_header(&header, &mut bytes);
        written.expect("it was read from a few bytes");
        assert_eq!(MemberCodec.decode_header(&bytes[..]), Ok(header));
    }
    while let Ok(member) = MemberCodec.decode_member(&mut packet) {
        let mut bytes = Vec::new();
        let written = MemberCodec.encode_member(&member, &mut bytes);
        written.expect("it was read from a few bytes");
        assert_eq!(MemberCodec.decode_member(&bytes[..]), Ok(member));
    }
}
