//! The one file that names bincode; beside it, the bytes of members and foca's packets, of records, and of items.
//!
//! Not here: what the values mean (`member.rs`, `record.rs`, `message.rs`). Every decode is bounded.

mod items;
mod packets;
mod records;

// The files beside this one take what they derive from here.
use bincode::{Decode, Encode, config};

pub use self::{
    items::{ITEM_HEAD_BYTES, Items, items, put_item},
    packets::MemberCodec,
    records::{decode_head, decode_record, encode_record},
};

/// No decode allocates more than this, whatever the input claims. A tag of two bytes claims 48, the strings' own size,
/// so this is far above the bytes of the longest record.
const DECODE_BYTES_MAX: usize = 16 * 1_024;

const CONFIG: config::Configuration<
    config::BigEndian,
    config::Varint,
    config::Limit<DECODE_BYTES_MAX>,
> = config::standard()
    .with_big_endian()
    .with_limit::<DECODE_BYTES_MAX>();

/// Bytes that cannot be read, or a value that cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodecError {
    /// Truncated, over a bound, or not what it claims to be.
    Malformed,
    /// The value takes more bytes than its bound or the space left.
    TooLong,
}

impl std::fmt::Display for CodecError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CodecError::Malformed => "malformed bytes",
            CodecError::TooLong => "too long for the wire",
        })
    }
}

impl std::error::Error for CodecError {}

fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::encode_to_vec(value, CONFIG).map_err(|_| CodecError::TooLong)
}

/// Writes a value to the front of `bytes`. Yields how many it took.
fn encode_into<T: Encode>(value: &T, bytes: &mut [u8]) -> Result<usize, CodecError> {
    bincode::encode_into_slice(value, bytes, CONFIG).map_err(|_| CodecError::TooLong)
}

/// Reads a value from the front of `bytes`; what follows it may be fields of a newer version.
fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<(T, usize), CodecError> {
    bincode::decode_from_slice(bytes, CONFIG).map_err(|_| CodecError::Malformed)
}

#[cfg(test)]
mod tests;
