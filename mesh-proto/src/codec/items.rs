//! Bytes of items: kind, length and body, so that whoever does not know a kind can skip it.
//!
//! Not here: which items a datagram or a turn of a stream holds (the core).

use bytes::{Buf, BufMut};

use super::{
    CodecError, Decode, Encode, decode, encode,
    packets::{WireMember, WireStanding},
};
use crate::{
    frame::Floor,
    message::{BUCKETS, Digest, Hello, Item, OwnerDigest, Purpose},
};

/// Bytes before an item's body: kind and length.
pub const ITEM_HEAD_BYTES: usize = 3;

/// Bytes of a floor's body.
const FLOOR_BYTES: usize = 32;

mod kind {
    pub const FOCA: u8 = 1;
    pub const HASH: u8 = 2;
    pub const ASK: u8 = 3;
    pub const RECORD: u8 = 4;
    pub const HELLO: u8 = 16;
    pub const WELCOME: u8 = 17;
    pub const REFUSED: u8 = 18;
    pub const DIGEST: u8 = 19;
    pub const STANDING: u8 = 20;
    pub const BUCKETS: u8 = 21;
    pub const OWNER: u8 = 22;
    pub const WANT: u8 = 23;
    pub const END: u8 = 24;
    pub const FLOOR: u8 = 25;
}

#[derive(Encode, Decode)]
struct WireHello {
    cluster: String,
    from: WireMember,
    purpose: u8,
}

/// Appends an item to a datagram or frame under construction.
///
/// # Errors
/// `TooLong` if the body does not fit its length field; nothing is appended then.
pub fn put_item(out: &mut Vec<u8>, item: &Item<'_>) -> Result<(), CodecError> {
    match item {
        Item::Foca(bytes) => put_raw(out, kind::FOCA, bytes),
        Item::Hash(hash) => put_raw(out, kind::HASH, &hash.to_be_bytes()),
        Item::Ask => put_raw(out, kind::ASK, &[]),
        Item::Record(bytes) => put_raw(out, kind::RECORD, bytes),
        Item::Hello(hello) => {
            let wire = WireHello {
                cluster: hello.cluster.to_string(),
                from: (&hello.from).into(),
                purpose: match hello.purpose {
                    Purpose::Exchange => 0,
                    Purpose::Probe => 1,
                },
            };
            put_raw(out, kind::HELLO, &encode(&wire)?)
        }
        Item::Welcome { from } => put_raw(out, kind::WELCOME, &encode(&WireMember::from(from))?),
        Item::Refused { cluster } => put_raw(out, kind::REFUSED, &encode(&cluster.to_string())?),
        Item::Digest(digest) => {
            let mut bytes = Vec::with_capacity(8 * (BUCKETS + 1));
            bytes.put_u64(digest.members);
            for hash in digest.buckets {
                bytes.put_u64(hash);
            }
            put_raw(out, kind::DIGEST, &bytes)
        }
        Item::Standing(standing) => {
            put_raw(out, kind::STANDING, &encode(&WireStanding::from(standing))?)
        }
        Item::Buckets(set) => put_raw(out, kind::BUCKETS, &set.to_be_bytes()),
        Item::Owner(owner) => put_raw(
            out,
            kind::OWNER,
            &encode(&(owner.id, owner.epoch, owner.hash))?,
        ),
        Item::Want(id) => put_raw(out, kind::WANT, &id.to_be_bytes()),
        Item::Floor(floor) => {
            let mut bytes = Vec::with_capacity(FLOOR_BYTES);
            bytes.put_u64(floor.sender);
            bytes.put_u128(floor.boot);
            bytes.put_u64(floor.counter);
            put_raw(out, kind::FLOOR, &bytes)
        }
        Item::End => put_raw(out, kind::END, &[]),
    }
}

fn put_raw(out: &mut Vec<u8>, kind: u8, body: &[u8]) -> Result<(), CodecError> {
    let length = u16::try_from(body.len()).map_err(|_| CodecError::TooLong)?;
    out.put_u8(kind);
    out.put_u16(length);
    out.put_slice(body);
    Ok(())
}

/// The items of a datagram or frame, unknown kinds left out. Ends after the first malformed one.
pub fn items(bytes: &[u8]) -> Items<'_> {
    Items { rest: bytes }
}

/// Iterator of [`items`].
#[derive(Debug)]
pub struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, CodecError>;

    fn next(&mut self) -> Option<Result<Item<'a>, CodecError>> {
        while !self.rest.is_empty() {
            let Some((kind, body, rest)) = split_item(self.rest) else {
                self.rest = &[];
                return Some(Err(CodecError::Malformed));
            };
            self.rest = rest;
            match decode_item(kind, body) {
                Ok(None) => continue,
                Ok(Some(item)) => return Some(Ok(item)),
                Err(error) => {
                    self.rest = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

fn split_item(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, high, low], rest) = bytes.split_first_chunk()?;
    let (body, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
    Some((kind, body, rest))
}

fn decode_u64(body: &[u8]) -> Result<u64, CodecError> {
    let head = body.first_chunk().ok_or(CodecError::Malformed)?;
    Ok(u64::from_be_bytes(*head))
}

fn decode_item(kind: u8, body: &[u8]) -> Result<Option<Item<'_>>, CodecError> {
    Ok(Some(match kind {
        kind::FOCA => Item::Foca(body),
        kind::HASH => Item::Hash(decode_u64(body)?),
        kind::ASK => Item::Ask,
        kind::RECORD => Item::Record(body),
        kind::HELLO => {
            let (wire, _) = decode::<WireHello>(body)?;
            Item::Hello(Hello {
                cluster: wire.cluster.into(),
                from: wire.from.into(),
                purpose: match wire.purpose {
                    0 => Purpose::Exchange,
                    1 => Purpose::Probe,
                    _ => return Err(CodecError::Malformed),
                },
            })
        }
        kind::WELCOME => Item::Welcome {
            from: decode::<WireMember>(body)?.0.into(),
        },
        kind::REFUSED => Item::Refused {
            cluster: decode::<String>(body)?.0.into(),
        },
        kind::DIGEST => Item::Digest(Box::new(decode_digest(body)?)),
        kind::STANDING => Item::Standing(decode::<WireStanding>(body)?.0.try_into()?),
        kind::BUCKETS => Item::Buckets(decode_u64(body)?),
        kind::OWNER => {
            let ((id, epoch, hash), _) = decode::<(u64, u64, u64)>(body)?;
            Item::Owner(OwnerDigest { id, epoch, hash })
        }
        kind::WANT => Item::Want(decode_u64(body)?),
        kind::END => Item::End,
        kind::FLOOR => Item::Floor(decode_floor(body)?),
        _ => return Ok(None),
    }))
}

fn decode_digest(mut body: &[u8]) -> Result<Digest, CodecError> {
    if body.len() < 8 * (BUCKETS + 1) {
        return Err(CodecError::Malformed);
    }
    let members = body.get_u64();
    Ok(Digest {
        members,
        buckets: std::array::from_fn(|_| body.get_u64()),
    })
}

fn decode_floor(mut body: &[u8]) -> Result<Floor, CodecError> {
    if body.len() < FLOOR_BYTES {
        return Err(CodecError::Malformed);
    }
    Ok(Floor {
        sender: body.get_u64(),
        boot: body.get_u128(),
        counter: body.get_u64(),
    })
}
