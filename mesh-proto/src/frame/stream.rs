//! The seal around streams: both sides' salts make a key for each direction, frames count up from zero.
//!
//! Not here: the socket and its deadlines (`sidecar/src/gossip/stream.rs`), and what a stream says (`message.rs`).
//!
//! The caller sends its preamble (with 32 random bytes) and, under a key of that salt alone, its hello. Everything after
//! is under keys of both sides' salts, so neither side can be made to repeat a nonce, nor be led further than its own
//! answer by a replayed stream.

use ring::aead::{Aad, LessSafeKey};

use super::{Key, KeyId, KeyRing, PREAMBLE_BYTES, Reject, SEALED, TAG_BYTES, derive, nonce};
use crate::{FRAME_BYTES_MAX, WIRE_VERSION};

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

/// A stream whose caller holds a key.
#[derive(Debug)]
pub struct Answered {
    /// The caller's first frame.
    pub hello: Vec<u8>,
    /// The key it is sealed with, and so the whole stream; `None` in clear.
    pub key: Option<KeyId>,
    /// To send before anything else.
    pub preamble: Preamble,
    /// Seals what we send.
    pub out: Half,
    /// Opens what the caller sends.
    pub back: Half,
}

/// The answering side: opens a caller's hello.
///
/// `salt` must be drawn anew.
///
/// # Errors
/// Says why the stream must be closed without an answer.
pub fn answer(
    ring: &KeyRing,
    call: &Preamble,
    hello: &[u8],
    salt: [u8; 32],
) -> Result<Answered, Reject> {
    check(call)?;
    for key in ring.candidates(call[1], call[2])? {
        let mut first = Half::new(key, b"hello", [&call[3..], &[]]);
        let Ok(hello) = first.open(hello.to_vec()) else {
            continue;
        };
        let preamble = preamble(key, &salt);
        let (back, out) = both(key, call, &preamble);
        return Ok(Answered {
            hello,
            key: key.map(|key| key.id),
            preamble,
            out,
            back,
        });
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
    bytes[1] = key.map_or(0, |key| key.id.short());
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
