//! Real seals in a simulated network: what a node sends is sealed, and what it hears is opened, as the sidecar does it.
//!
//! Not here: the seals themselves (`mesh_proto::frame`), and when keys are changed (`story/upgrades.rs`).

use std::collections::BTreeMap;

use mesh_proto::frame::{
    self, Answered, Call, Half, KeyId, KeyRing, Opener, PREAMBLE_BYTES, Preamble, Reject, Sealer,
};

use crate::membership::CallId;

/// A gossip key.
pub type Key = [u8; 32];

/// A frame's length stands before it.
const FRAME_HEAD_BYTES: usize = 4;

/// What one node seals and opens with.
#[derive(Debug)]
pub struct Lock {
    cluster: Box<str>,
    ring: KeyRing,
    sealer: Sealer,
    opener: Opener,
    /// Calls that wait for the answer's preamble.
    calls: BTreeMap<CallId, Call>,
    /// Datagrams opened, by key.
    pub opened: BTreeMap<KeyId, u64>,
    /// Datagrams, hellos and frames that could not be opened, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
}

/// Both directions of a stream, as one end holds them.
#[derive(Debug)]
pub struct Halves {
    out: Half,
    back: Half,
}

impl Lock {
    /// For one start of a node; `boot` is never to be used twice.
    pub fn new(keys: &[Key], cluster: &str, sender: u64, boot: u128) -> Lock {
        let ring = KeyRing::new(keys.iter().copied(), cluster);
        Lock {
            cluster: cluster.into(),
            sealer: Sealer::new(ring.clone(), sender, boot),
            opener: Opener::new(ring.clone()),
            ring,
            calls: BTreeMap::new(),
            opened: BTreeMap::new(),
            rejected: BTreeMap::new(),
        }
    }

    /// Holds these keys from now on, and seals with the first.
    pub fn replace(&mut self, keys: &[Key]) {
        self.ring = KeyRing::new(keys.iter().copied(), &self.cluster);
        self.sealer.replace(self.ring.clone());
        self.opener.replace(self.ring.clone());
    }

    fn reject(&mut self, reason: Reject) {
        *self.rejected.entry(reason.word()).or_default() += 1;
    }

    /// A datagram around a payload.
    pub fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        // Payloads are bounded by what a datagram carries, and counters do not come to their end here.
        self.sealer.seal(payload).unwrap_or_default()
    }

    /// What a datagram says, and who sealed it.
    pub fn open(&mut self, datagram: &[u8]) -> Option<(Vec<u8>, u64)> {
        let mut bytes = datagram.to_vec();
        match self.opener.open(&mut bytes) {
            Ok(opened) => {
                let (payload, sender) = (opened.payload.to_vec(), opened.sender);
                if let Some(key) = opened.key {
                    *self.opened.entry(key).or_default() += 1;
                }
                Some((payload, sender))
            }
            Err(reason) => {
                self.reject(reason);
                None
            }
        }
    }

    /// The first bytes of a stream that we open.
    pub fn call(&mut self, call: CallId, salt: Key, hello: &[u8]) -> Vec<u8> {
        let Some((waiting, bytes)) = Call::start(&self.ring, salt, hello) else {
            return Vec::new();
        };
        self.calls.insert(call, waiting);
        bytes
    }

    /// The first bytes of a stream that another opened: its hello, our preamble, and our end.
    pub fn answer(&mut self, bytes: &[u8], salt: Key) -> Option<(Vec<u8>, Preamble, Halves)> {
        let (preamble, sealed) = bytes.split_first_chunk::<PREAMBLE_BYTES>()?;
        let answered = frame::answer(&self.ring, preamble, sealed.get(FRAME_HEAD_BYTES..)?, salt);
        match answered {
            Ok(Answered {
                hello,
                preamble,
                out,
                back,
                ..
            }) => Some((hello, preamble, Halves { out, back })),
            Err(reason) => {
                self.reject(reason);
                None
            }
        }
    }

    /// The answer's preamble is there: our end of the stream.
    pub fn answered(&mut self, call: CallId, preamble: &Preamble) -> Option<Halves> {
        match self.calls.remove(&call)?.answered(preamble) {
            Ok((out, back)) => Some(Halves { out, back }),
            Err(reason) => {
                self.reject(reason);
                None
            }
        }
    }

    /// A call that nobody answered.
    pub fn forget(&mut self, call: CallId) {
        self.calls.remove(&call);
    }

    /// A frame could not be opened.
    pub fn reject_frame(&mut self) {
        self.reject(Reject::Tag);
    }
}

impl Halves {
    /// A frame around a payload.
    pub fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        self.out.seal(payload).unwrap_or_default()
    }

    /// What a frame says.
    pub fn open(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let body = frame.get(FRAME_HEAD_BYTES..)?;
        self.back.open(body.to_vec()).ok()
    }
}
