//! The envelope of datagrams and streams: version, key, sender, counter, tag.
//!
//! Not here: what is inside (`message.rs`), and sockets. `datagram.rs` and `stream.rs` hold the two. A datagram, at most 1,200 bytes:
//! `version u8 | key id u8 | flags u8 | sender u64 | boot u128 | counter u64 | ciphertext | tag 16`.
//! The key of a sender is HKDF(cluster key, sender, boot) and the counter is the nonce: `boot` holds 64 bits drawn at
//! every start, so a machine restored from an image never repeats one. The header and the cluster's name are associated
//! data. Without a key (loopback only) the tag is a checksum over the same bytes: it tells clusters and noise apart, no
//! more.

use ring::{
    aead::{AES_256_GCM, LessSafeKey, Nonce, UnboundKey},
    digest, hkdf,
};

use crate::DATAGRAM_BYTES_MAX;

mod datagram;
mod stream;
mod window;

pub use self::{
    datagram::{Floor, Opened, Opener, SENDERS_MAX, Sealer, boot},
    stream::{Answered, Call, Half, Preamble, SEALED_FRAME_BYTES_MAX, answer},
    window::REPLAY_WINDOW,
};

/// Bytes before a datagram's ciphertext.
pub const HEADER_BYTES: usize = 35;

/// Bytes of the tag behind it.
pub const TAG_BYTES: usize = 16;

/// Bytes of items one datagram carries.
pub const PAYLOAD_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - HEADER_BYTES - TAG_BYTES;

/// Bytes each side of a stream sends first: version, key id, flags, salt.
pub const PREAMBLE_BYTES: usize = 35;

/// Keys in a ring.
pub const KEYS_MAX: usize = 8;

const SEALED: u8 = 1;

/// Why a datagram or frame was dropped. Never answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// Too short, too long, or an impossible length.
    Malformed,
    /// Another wire version.
    Version,
    /// Sealed with a key that is not in the ring, or sealed while we have none, or in clear while we have one.
    Key,
    /// The tag does not fit: noise, tampering, or another cluster.
    Tag,
    /// Seen before, or too old to tell.
    Replayed,
    /// From an earlier start of its sender.
    OldBoot,
    /// From a start that lies in no believable future.
    FutureBoot,
    /// More senders than the table holds.
    Full,
}

impl Reject {
    /// A word for a metric's label.
    pub fn word(self) -> &'static str {
        match self {
            Reject::Malformed => "malformed",
            Reject::Version => "version",
            Reject::Key => "key",
            Reject::Tag => "tag",
            Reject::Replayed => "replayed",
            Reject::OldBoot => "old_boot",
            Reject::FutureBoot => "future_boot",
            Reject::Full => "full",
        }
    }
}

/// What a key is called where people and other nodes must tell it from another: the first bytes of a hash of it.
///
/// The first of them goes on the wire; two keys of one ring may share it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyId(pub [u8; 4]);

impl KeyId {
    /// The id of a 32-byte key.
    pub fn of(secret: &[u8; 32]) -> KeyId {
        let mut labelled = b"starling key id ".to_vec();
        labelled.extend_from_slice(secret);
        let hash = digest::digest(&digest::SHA256, &labelled);
        KeyId(std::array::from_fn(|at| hash.as_ref()[at]))
    }

    fn short(self) -> u8 {
        self.0[0]
    }
}

/// A text that is no key's id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoKeyId;

impl std::str::FromStr for KeyId {
    type Err = NoKeyId;

    fn from_str(text: &str) -> Result<KeyId, NoKeyId> {
        if text.len() != 8 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoKeyId);
        }
        let number = u32::from_str_radix(text, 16).map_err(|_| NoKeyId)?;
        Ok(KeyId(number.to_be_bytes()))
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// The cluster's keys: the first encrypts, all decrypt; empty means in clear.
#[derive(Clone)]
pub struct KeyRing {
    keys: Vec<Key>,
    cluster: Box<str>,
}

#[derive(Clone)]
struct Key {
    id: KeyId,
    prk: hkdf::Prk,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRing({} keys, hidden)", self.keys.len())
    }
}

impl KeyRing {
    /// A ring of 32-byte keys for one cluster; those beyond [`KEYS_MAX`] are left out.
    pub fn new(keys: impl IntoIterator<Item = [u8; 32]>, cluster: &str) -> KeyRing {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"starling gossip 1");
        let keys = keys.into_iter().take(KEYS_MAX).map(|secret| Key {
            id: KeyId::of(&secret),
            prk: salt.extract(&secret),
        });
        KeyRing {
            keys: keys.collect(),
            cluster: cluster.into(),
        }
    }

    /// Whether everything is said in clear.
    pub fn is_clear(&self) -> bool {
        self.keys.is_empty()
    }

    /// The ids of its keys, the one that encrypts first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys.iter().map(|key| key.id)
    }

    /// The keys a header may mean: those of that id, or none in clear.
    fn candidates(&self, id: u8, flags: u8) -> Result<Vec<Option<&Key>>, Reject> {
        let sealed = flags & SEALED != 0;
        if sealed == self.is_clear() {
            return Err(Reject::Key);
        }
        if !sealed {
            return Ok(vec![None]);
        }
        let found: Vec<_> = self
            .keys
            .iter()
            .filter(|key| key.id.short() == id)
            .map(Some)
            .collect();
        if found.is_empty() {
            Err(Reject::Key)
        } else {
            Ok(found)
        }
    }

    fn associated(&self, header: &[u8]) -> Vec<u8> {
        [header, self.cluster.as_bytes()].concat()
    }

    /// The checksum that stands in for the tag where there is no key.
    fn checksum(&self, header: &[u8], payload: &[u8]) -> [u8; TAG_BYTES] {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [header, self.cluster.as_bytes(), &[0], payload] {
            context.update(part);
        }
        let mut short = [0; TAG_BYTES];
        short.copy_from_slice(&context.finish().as_ref()[..TAG_BYTES]);
        short
    }
}

fn derive(key: &Key, info: &[&[u8]]) -> LessSafeKey {
    let okm = (key.prk.expand(info, &AES_256_GCM))
        .expect("32 bytes are within what HKDF-SHA256 can yield");
    LessSafeKey::new(UnboundKey::from(okm))
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests;
