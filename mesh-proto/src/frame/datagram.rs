//! The seal around datagrams: a key for each sender and start, a counter for a nonce, a window against replays.
//!
//! Not here: what a datagram says (`message.rs`), and the socket.

use std::collections::BTreeMap;

use ring::aead::{Aad, LessSafeKey};

use super::{
    HEADER_BYTES, Key, KeyId, KeyRing, PAYLOAD_BYTES_MAX, Reject, SEALED, TAG_BYTES, derive, nonce,
    window::Window,
};
use crate::{DATAGRAM_BYTES_MAX, WIRE_VERSION};

/// Senders whose keys and counters are remembered; each has proven that it holds a key.
pub const SENDERS_MAX: usize = 16_384;

fn datagram_key(key: &Key, sender: u64, boot: u128) -> LessSafeKey {
    derive(
        key,
        &[b"datagram", &sender.to_be_bytes(), &boot.to_be_bytes()],
    )
}

/// Seals what this process sends in datagrams.
pub struct Sealer {
    ring: KeyRing,
    sender: u64,
    boot: u128,
    key: Option<LessSafeKey>,
    counter: u64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Sealer(sender {:016x}, {} sealed)",
            self.sender, self.counter
        )
    }
}

/// This start's `boot`: later starts compare greater, and no two are alike. `random` must be drawn anew at every start.
pub fn boot(bump: u64, random: u64) -> u128 {
    u128::from(bump) << 64 | u128::from(random)
}

impl Sealer {
    /// A sealer for `sender`; `boot` must never have been used before (see [`boot`]).
    pub fn new(ring: KeyRing, sender: u64, boot: u128) -> Sealer {
        let key = ring.keys.first().map(|key| datagram_key(key, sender, boot));
        Sealer {
            ring,
            sender,
            boot,
            key,
            counter: 0,
        }
    }

    /// Encrypts with another ring from now on; the counter goes on, so that no nonce repeats if a key comes back.
    pub fn replace(&mut self, ring: KeyRing) {
        self.key = (ring.keys.first()).map(|key| datagram_key(key, self.sender, self.boot));
        self.ring = ring;
    }

    /// The key that seals; `None` in clear.
    pub fn key_id(&self) -> Option<KeyId> {
        self.ring.keys.first().map(|key| key.id)
    }

    /// What whoever has not heard us yet must not believe any more: all that is sealed so far.
    pub fn floor(&self) -> Floor {
        Floor {
            sender: self.sender,
            boot: self.boot,
            counter: self.counter,
        }
    }

    /// One datagram around `payload`, or `None` if it is longer than [`PAYLOAD_BYTES_MAX`].
    pub fn seal(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return None;
        }
        self.counter = self.counter.checked_add(1)?;
        let mut out = Vec::with_capacity(HEADER_BYTES + payload.len() + TAG_BYTES);
        let id = self.key_id().map_or(0, KeyId::short);
        out.extend_from_slice(&[WIRE_VERSION, id, u8::from(self.key.is_some()) * SEALED]);
        out.extend_from_slice(&self.sender.to_be_bytes());
        out.extend_from_slice(&self.boot.to_be_bytes());
        out.extend_from_slice(&self.counter.to_be_bytes());
        out.extend_from_slice(payload);
        let (header, body) = out.split_at_mut(HEADER_BYTES);
        let tag: [u8; TAG_BYTES] = match &self.key {
            Some(key) => {
                let aad = Aad::from(self.ring.associated(header));
                let tag = key
                    .seal_in_place_separate_tag(nonce(self.counter), aad, body)
                    .ok()?;
                tag.as_ref().try_into().ok()?
            }
            None => self.ring.checksum(header, body),
        };
        out.extend_from_slice(&tag);
        Some(out)
    }
}

/// How far a sender's counters had come, as somebody saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Floor {
    /// Whose.
    pub sender: u64,
    /// Of which start.
    pub boot: u128,
    /// The highest one seen.
    pub counter: u64,
}

/// Opens what others sent in datagrams.
#[derive(Debug)]
pub struct Opener {
    ring: KeyRing,
    senders: BTreeMap<u64, Sender>,
    /// Of a later start nothing is believed.
    bump_max: u64,
}

#[derive(Default)]
struct Sender {
    boot: u128,
    /// Derived for datagrams of this boot; `None` until the next one, or the next one after a change of the ring.
    key: Option<(KeyId, LessSafeKey)>,
    window: Window,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sender(boot {:032x})", self.boot)
    }
}

/// A datagram that was opened.
#[derive(PartialEq, Eq, Debug)]
pub struct Opened<'a> {
    /// Who sealed it.
    pub sender: u64,
    /// With which key; `None` in clear.
    pub key: Option<KeyId>,
    /// The items inside.
    pub payload: &'a [u8],
}

impl Opener {
    /// An opener that knows nobody yet.
    pub fn new(ring: KeyRing) -> Opener {
        Opener {
            ring,
            senders: BTreeMap::new(),
            bump_max: u64::MAX,
        }
    }

    /// Believes no start of a later bump than this from now on; at first any is believed.
    ///
    /// A sender's later start shuts out its earlier ones. Without a bound, whoever holds the key could use up all
    /// starts of a sender with one datagram or floor, and shut it out for ever.
    pub fn believe_until(&mut self, bump_max: u64) {
        self.bump_max = bump_max;
    }

    fn believes(&self, boot: u128) -> bool {
        boot >> 64 <= u128::from(self.bump_max)
    }

    /// Decrypts with another ring from now on. Counters seen stay, so nothing can be replayed across the change.
    pub fn replace(&mut self, ring: KeyRing) {
        self.ring = ring;
        for known in self.senders.values_mut() {
            // Derived from a key that may be taken away, while another one goes by the same short id.
            known.key = None;
        }
    }

    /// Opens a datagram in place.
    ///
    /// # Errors
    /// Says why it must be dropped; nothing is remembered of a datagram whose tag does not fit.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Reject> {
        if datagram.len() < HEADER_BYTES + TAG_BYTES || datagram.len() > DATAGRAM_BYTES_MAX {
            return Err(Reject::Malformed);
        }
        let (header, sealed) = datagram.split_at_mut(HEADER_BYTES);
        let [version, key_id, flags] = *header.first_chunk().ok_or(Reject::Malformed)?;
        if version != WIRE_VERSION {
            return Err(Reject::Version);
        }
        let number = |range: std::ops::Range<usize>| {
            header[range]
                .iter()
                .fold(0u128, |sum, byte| sum << 8 | u128::from(*byte))
        };
        let sender = number(3..11) as u64;
        let boot = number(11..27);
        let counter = number(27..35) as u64;
        let candidates = self.ring.candidates(key_id, flags)?;
        if flags & SEALED == 0 {
            let payload_bytes = sealed.len() - TAG_BYTES;
            let (payload, tag) = sealed.split_at(payload_bytes);
            if tag != self.ring.checksum(header, payload) {
                return Err(Reject::Tag);
            }
            return Ok(Opened {
                sender,
                key: None,
                payload,
            });
        }
        if !self.believes(boot) {
            return Err(Reject::FutureBoot);
        }
        let known = self.senders.get(&sender);
        if known.is_some_and(|known| boot < known.boot) {
            return Err(Reject::OldBoot);
        }
        if known.is_some_and(|known| known.boot == boot && !known.window.is_new(counter)) {
            return Err(Reject::Replayed);
        }
        if known.is_none() && self.senders.len() >= SENDERS_MAX {
            return Err(Reject::Full);
        }
        let associated = self.ring.associated(header);
        let cached = known
            .filter(|known| known.boot == boot)
            .and_then(|known| known.key.clone());
        // A tag that fails destroys the bytes, so the rare second key of the same short id works on a copy.
        let backup = (candidates.len() > 1).then(|| sealed.to_vec());
        for key in candidates.into_iter().flatten() {
            let derived = match &cached {
                Some((id, cached)) if *id == key.id => cached.clone(),
                _ => datagram_key(key, sender, boot),
            };
            if let Some(backup) = &backup {
                sealed.copy_from_slice(backup);
            }
            let opened = derived.open_in_place(nonce(counter), Aad::from(&associated), sealed);
            let Ok(length) = opened.map(|payload| payload.len()) else {
                continue;
            };
            let id = key.id;
            self.remember(sender, boot, (id, derived), counter);
            return Ok(Opened {
                sender,
                key: Some(id),
                payload: &sealed[..length],
            });
        }
        Err(Reject::Tag)
    }

    fn remember(&mut self, sender: u64, boot: u128, key: (KeyId, LessSafeKey), counter: u64) {
        let known = self.senders.entry(sender).or_default();
        if known.boot != boot {
            *known = Sender {
                boot,
                ..Sender::default()
            };
        }
        known.key = Some(key);
        known.window.mark(counter);
    }

    /// How far each sender's counters were seen here, for whoever has not heard them yet.
    pub fn floors(&self) -> impl Iterator<Item = Floor> + '_ {
        self.senders.iter().map(|(sender, known)| Floor {
            sender: *sender,
            boot: known.boot,
            counter: known.window.newest(),
        })
    }

    /// Believes nothing at or below `floor` from a sender of which no later start is known. Where the same start is
    /// known, what was seen of it stands: datagrams on their way would be lost otherwise.
    ///
    /// Only a holder of the key may be asked for one, and that one could speak in the sender's name just as well.
    pub fn raise(&mut self, floor: &Floor) {
        let known = self.senders.get(&floor.sender);
        let is_later = known.is_none_or(|known| known.boot < floor.boot);
        let has_room = known.is_some() || self.senders.len() < SENDERS_MAX;
        if is_later && has_room && self.believes(floor.boot) && !self.ring.is_clear() {
            let fresh = Sender {
                boot: floor.boot,
                key: None,
                window: Window::above(floor.counter),
            };
            self.senders.insert(floor.sender, fresh);
        }
    }

    /// Forgets senders that are not members any more.
    pub fn retain(&mut self, mut keep: impl FnMut(u64) -> bool) {
        self.senders.retain(|sender, _| keep(*sender));
    }
}
