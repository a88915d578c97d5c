//! The envelope of datagrams and streams: version, key, sender, counter, tag.
//!
//! Not here: what is inside (`message.rs`), and sockets. A datagram, at most 1,200 bytes:
//! `version u8 | key id u8 | flags u8 | sender u64 | boot u128 | counter u64 | ciphertext | tag 16`.
//! The key of a sender is HKDF(cluster key, sender, boot) and the counter is the nonce: `boot` holds 64 bits drawn at
//! every start, so a machine restored from an image never repeats one. The header and the cluster's name are associated
//! data. Without a key (loopback only) the tag is a checksum over the same bytes: it tells clusters and noise apart, no
//! more.

use std::collections::BTreeMap;

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    digest, hkdf,
};

use crate::{DATAGRAM_BYTES_MAX, FRAME_BYTES_MAX, WIRE_VERSION};

/// Bytes before a datagram's ciphertext.
pub const HEADER_BYTES: usize = 35;

/// Bytes of the tag behind it.
pub const TAG_BYTES: usize = 16;

/// Bytes of items one datagram carries.
pub const PAYLOAD_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - HEADER_BYTES - TAG_BYTES;

/// Bytes each side of a stream sends first: version, key id, flags, salt.
pub const PREAMBLE_BYTES: usize = 35;

/// Senders whose keys and counters are remembered; each has proven that it holds a key.
pub const SENDERS_MAX: usize = 16_384;

/// How far behind the newest counter a late datagram may be.
pub const REPLAY_WINDOW: u64 = 1_024;

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
            Reject::Full => "full",
        }
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
    id: u8,
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
        let keys = keys.into_iter().take(KEYS_MAX).map(|secret| {
            let mut labelled = b"starling key id ".to_vec();
            labelled.extend_from_slice(&secret);
            Key {
                id: digest::digest(&digest::SHA256, &labelled).as_ref()[0],
                prk: salt.extract(&secret),
            }
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
            .filter(|key| key.id == id)
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

fn datagram_key(key: &Key, sender: u64, boot: u128) -> LessSafeKey {
    derive(
        key,
        &[b"datagram", &sender.to_be_bytes(), &boot.to_be_bytes()],
    )
}

// ---- datagrams ----

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

    /// One datagram around `payload`, or `None` if it is longer than [`PAYLOAD_BYTES_MAX`].
    pub fn seal(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return None;
        }
        self.counter = self.counter.checked_add(1)?;
        let mut out = Vec::with_capacity(HEADER_BYTES + payload.len() + TAG_BYTES);
        let id = self.ring.keys.first().map_or(0, |key| key.id);
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

/// Opens what others sent in datagrams.
#[derive(Debug)]
pub struct Opener {
    ring: KeyRing,
    senders: BTreeMap<u64, Sender>,
}

struct Sender {
    boot: u128,
    key_id: u8,
    /// Derived for datagrams of this boot; `None` until the next one after a change of the ring.
    key: Option<LessSafeKey>,
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
    /// The items inside.
    pub payload: &'a [u8],
}

impl Opener {
    /// An opener that knows nobody yet.
    pub fn new(ring: KeyRing) -> Opener {
        Opener {
            ring,
            senders: BTreeMap::new(),
        }
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
            return Ok(Opened { sender, payload });
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
            .filter(|known| known.boot == boot && known.key_id == key_id)
            .and_then(|known| known.key.clone());
        // A tag that fails destroys the bytes, so the rare second key of the same id works on a copy.
        let backup = (candidates.len() > 1).then(|| sealed.to_vec());
        for key in candidates.into_iter().flatten() {
            let derived = match &cached {
                Some(cached) if backup.is_none() => cached.clone(),
                _ => datagram_key(key, sender, boot),
            };
            if let Some(backup) = &backup {
                sealed.copy_from_slice(backup);
            }
            let opened = derived.open_in_place(nonce(counter), Aad::from(&associated), sealed);
            let Ok(length) = opened.map(|payload| payload.len()) else {
                continue;
            };
            self.remember(sender, boot, key_id, derived, counter);
            return Ok(Opened {
                sender,
                payload: &sealed[..length],
            });
        }
        Err(Reject::Tag)
    }

    fn remember(&mut self, sender: u64, boot: u128, key_id: u8, key: LessSafeKey, counter: u64) {
        match self.senders.get_mut(&sender) {
            Some(known) if known.boot == boot => {
                known.key_id = key_id;
                known.key = Some(key);
                known.window.mark(counter);
            }
            _ => {
                let mut window = Window::default();
                window.mark(counter);
                let fresh = Sender {
                    boot,
                    key_id,
                    key: Some(key),
                    window,
                };
                self.senders.insert(sender, fresh);
            }
        }
    }

    /// Forgets senders that are not members any more.
    pub fn retain(&mut self, mut keep: impl FnMut(u64) -> bool) {
        self.senders.retain(|sender, _| keep(*sender));
    }
}

/// Which of the last [`REPLAY_WINDOW`] counters were seen.
#[derive(Clone, Debug)]
struct Window {
    newest: u64,
    seen: [u64; (REPLAY_WINDOW / 64) as usize],
}

impl Default for Window {
    fn default() -> Window {
        Window {
            newest: 0,
            seen: [0; (REPLAY_WINDOW / 64) as usize],
        }
    }
}

impl Window {
    fn place(counter: u64) -> (usize, u64) {
        let slot = counter % REPLAY_WINDOW;
        ((slot / 64) as usize, 1 << (slot % 64))
    }

    fn is_new(&self, counter: u64) -> bool {
        let (word, bit) = Window::place(counter);
        counter > self.newest
            || (self.newest - counter < REPLAY_WINDOW && self.seen[word] & bit == 0)
    }

    fn mark(&mut self, counter: u64) {
        if counter > self.newest {
            // Everything between the old newest and this one leaves the window unseen.
            let gap = (counter - self.newest).min(REPLAY_WINDOW);
            for ahead in 0..gap {
                let (word, bit) = Window::place(counter - ahead);
                self.seen[word] &= !bit;
            }
            self.newest = counter;
        }
        let (word, bit) = Window::place(counter);
        self.seen[word] |= bit;
    }
}

// ---- streams ----
//
// The caller sends its preamble (with 32 random bytes) and, under a key of that salt alone, its hello. Everything after
// is under keys of both sides' salts, so neither side can be made to repeat a nonce, nor be led further than its own
// answer by a replayed stream.

/// What each side sends first, in clear.
pub type Preamble = [u8; PREAMBLE_BYTES];

/// One direction of a stream.
pub struct Half {
    key: Option<LessSafeKey>,
    counter: u64,
}

impl std::fmt::Debug for Half {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Half({} frames)", self.counter)
    }
}

impl Half {
    fn new(key: Option<&Key>, label: &[u8], salts: [&[u8]; 2]) -> Half {
        Half {
            key: key.map(|key| derive(key, &[label, salts[0], salts[1]])),
            counter: 0,
        }
    }

    /// A frame around `payload`: its length (u32) and the sealed bytes; `None` over [`FRAME_BYTES_MAX`].
    pub fn seal(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        if payload.len() > FRAME_BYTES_MAX {
            return None;
        }
        let mut body = payload.to_vec();
        if let Some(key) = &self.key {
            key.seal_in_place_append_tag(nonce(self.counter), Aad::empty(), &mut body)
                .ok()?;
        }
        self.counter += 1;
        let length = u32::try_from(body.len()).ok()?;
        let mut out = Vec::with_capacity(4 + body.len());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&body);
        Some(out)
    }

    /// Opens the bytes behind a frame's length.
    ///
    /// # Errors
    /// `Tag` if they are not the next frame of this stream.
    pub fn open(&mut self, mut body: Vec<u8>) -> Result<Vec<u8>, Reject> {
        if let Some(key) = &self.key {
            let payload = key.open_in_place(nonce(self.counter), Aad::empty(), &mut body);
            let length = payload.map_err(|_| Reject::Tag)?.len();
            body.truncate(length);
        }
        self.counter += 1;
        Ok(body)
    }
}

/// The longest body a frame's length may announce.
pub const SEALED_FRAME_BYTES_MAX: usize = FRAME_BYTES_MAX + TAG_BYTES;

/// The caller's side of a stream until the answer's preamble is there.
#[derive(Debug)]
pub struct Call {
    ring: KeyRing,
    preamble: Preamble,
}

impl Call {
    /// Starts a call; `salt` must be drawn anew. Yields the bytes to send: preamble and sealed `hello`.
    pub fn start(ring: &KeyRing, salt: [u8; 32], hello: &[u8]) -> Option<(Call, Vec<u8>)> {
        let key = ring.keys.first();
        let preamble = preamble(key, &salt);
        let mut first = Half::new(key, b"hello", [&salt, &[]]);
        let bytes = [&preamble[..], &first.seal(hello)?].concat();
        let call = Call {
            ring: ring.clone(),
            preamble,
        };
        Some((call, bytes))
    }

    /// Both directions, once the answer's preamble is there: ours to send, theirs to open.
    ///
    /// # Errors
    /// `Version` or `Key` if the other side speaks otherwise than we do.
    pub fn answered(self, answer: &Preamble) -> Result<(Half, Half), Reject> {
        check(answer)?;
        let key = self.ring.keys.first();
        if answer[1..3] != self.preamble[1..3] {
            return Err(Reject::Key);
        }
        Ok(both(key, &self.preamble, answer))
    }
}

/// The answering side: opens a caller's hello.
///
/// Yields the hello, our preamble to send first, and both directions: ours to send, theirs to open. `salt` must be drawn
/// anew.
///
/// # Errors
/// Says why the stream must be closed without an answer.
pub fn answer(
    ring: &KeyRing,
    call: &Preamble,
    hello: &[u8],
    salt: [u8; 32],
) -> Result<(Vec<u8>, Preamble, Half, Half), Reject> {
    check(call)?;
    for key in ring.candidates(call[1], call[2])? {
        let mut first = Half::new(key, b"hello", [&call[3..], &[]]);
        let Ok(hello) = first.open(hello.to_vec()) else {
            continue;
        };
        let ours = preamble(key, &salt);
        let (calling, answering) = both(key, call, &ours);
        return Ok((hello, ours, answering, calling));
    }
    Err(Reject::Tag)
}

fn check(preamble: &Preamble) -> Result<(), Reject> {
    if preamble[0] == WIRE_VERSION {
        Ok(())
    } else {
        Err(Reject::Version)
    }
}

fn preamble(key: Option<&Key>, salt: &[u8; 32]) -> Preamble {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[0] = WIRE_VERSION;
    bytes[1] = key.map_or(0, |key| key.id);
    bytes[2] = u8::from(key.is_some()) * SEALED;
    bytes[3..].copy_from_slice(salt);
    bytes
}

/// The caller's direction and the answerer's.
fn both(key: Option<&Key>, call: &Preamble, answer: &Preamble) -> (Half, Half) {
    let salts = [&call[3..], &answer[3..]];
    (
        Half::new(key, b"call", salts),
        Half::new(key, b"answer", salts),
    )
}

#[cfg(test)]
mod tests;
