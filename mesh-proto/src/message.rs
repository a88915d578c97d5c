//! What is said in datagrams and on streams: the items, and their framing.
//!
//! Not here: the bytes of an item's body (`codec.rs`) and the seal around them (`frame.rs`).

use crate::{frame::Floor, member::Member};

/// Groups of owners whose hashes are compared first in an exchange.
pub const BUCKETS: usize = 64;

/// One thing said.
#[derive(Clone, PartialEq, Debug)]
pub enum Item<'a> {
    /// A packet of foca's, unread.
    Foca(&'a [u8]),
    /// Hash of what the sender knows: living members and records.
    Hash(u64),
    /// Asks for an answer with the receiver's hash.
    Ask,
    /// One encoded record ([`crate::codec::decode_record`] reads it).
    Record(&'a [u8]),
    /// Opens a stream.
    Hello(Hello),
    /// Accepts it.
    Welcome {
        /// Who answers.
        from: Member,
    },
    /// Refuses it: another cluster.
    Refused {
        /// The refusing side's cluster name.
        cluster: Box<str>,
    },
    /// How the sender's knowledge hashes.
    Digest(Box<Digest>),
    /// One member and how the sender sees it.
    Standing(Standing),
    /// Which buckets the sender tells the owners of, as a bit set.
    Buckets(u64),
    /// One owner's records as the sender has them.
    Owner(OwnerDigest),
    /// Please send this owner's records.
    Want(u64),
    /// How far a sender's counters had come: for whoever joins, so that nothing older can be replayed to it.
    Floor(Floor),
    /// The sender has said everything of this turn.
    End,
}

/// The first words on a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The caller's cluster name; another one is refused before anything merges.
    pub cluster: Box<str>,
    /// Who calls.
    pub from: Member,
    /// What for.
    pub purpose: Purpose,
}

/// What a stream is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Both sides leave with the same members and records.
    Exchange,
    /// Only to see whether the other side answers.
    Probe,
}

/// Hashes that are equal where knowledge is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Digest {
    /// Of the living members.
    pub members: u64,
    /// Of each bucket of owners.
    pub buckets: [u64; BUCKETS],
}

/// One member as the sender sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Who.
    pub member: Member,
    /// SWIM incarnation.
    pub incarnation: u16,
    /// SWIM state.
    pub state: foca::State,
    /// For how long it has been down, in seconds: all are to forget it at about the same time.
    pub down_for_s: u32,
}

/// One owner's records, hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnerDigest {
    /// The owner's id.
    pub id: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Hash of all its records.
    pub hash: u64,
}
