//! What the machine and its shell say to each other: settings, changes, effects, notices and counts.
//!
//! Not here: what the machine makes of them (`mod.rs`).

use std::{net::SocketAddr, time::Duration};

use mesh_proto::{
    frame::KeyId,
    member::Member,
    record::{DemandRecord, ServiceRecord},
};

use super::Pace;
use crate::mesh::NodeState;

/// Who this node is and how it shall behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node as member; its bump is also the epoch of its records.
    pub me: Member,
    /// The cluster's name; another one is refused.
    pub cluster: Box<str>,
    /// The node's name.
    pub name: Box<str>,
    /// Its zone.
    pub zone: Box<str>,
    /// Its region.
    pub region: Box<str>,
    /// How hasty it is.
    pub pace: Pace,
    /// There is somebody to join; until that is done the mesh is not `joined`.
    pub has_seeds: bool,
}

/// A stream, as the machine and its shell call it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CallId(pub(super) u64);

/// What the shell is to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Send a datagram.
    Send {
        /// Where to.
        to: SocketAddr,
        /// Its items, at most [`mesh_proto::frame::PAYLOAD_BYTES_MAX`] bytes.
        payload: Vec<u8>,
    },
    /// Open a stream and send these items first. Its end must be told by [`super::Membership::on_call_end`].
    Dial {
        /// Its name from now on.
        call: CallId,
        /// Where to.
        to: SocketAddr,
        /// The first frame.
        hello: Vec<u8>,
        /// Give up after this.
        within: Duration,
    },
    /// Send a frame on a stream.
    Frame {
        /// Which.
        call: CallId,
        /// Its items, at most [`mesh_proto::FRAME_BYTES_MAX`] bytes.
        payload: Vec<u8>,
    },
    /// Close a stream once everything is sent; it is forgotten here.
    Hang {
        /// Which.
        call: CallId,
    },
    /// We go by this bump now: keep it for the next start.
    Bump(u64),
    /// Something worth a line in the log.
    Notice(Notice),
    /// The goodbye is said: stop.
    Left,
}

/// Something worth a line in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A node is in another state.
    State {
        /// Its id.
        id: u64,
        /// How it is now.
        state: NodeState,
    },
    /// We were taken for dead and came back.
    Renewed,
    /// Nothing is heard any more, or nobody hears us; or that is over.
    Isolated(bool),
    /// Others are heard, and none of them answers: it is we whom nobody hears.
    Unheard,
    /// A stream reaches a member that datagrams do not.
    DatagramsLost {
        /// Its id.
        id: u64,
    },
    /// The other side of a stream belongs to another cluster.
    OtherCluster {
        /// Where it is.
        at: Option<SocketAddr>,
        /// What it calls itself.
        cluster: Box<str>,
    },
    /// A stream was opened to a seed, which closed it without a word.
    Unanswered {
        /// Where it is.
        at: SocketAddr,
    },
    /// A record is over the bound and was not offered.
    TooLong {
        /// Its service.
        service: Box<str>,
        /// Its instance.
        instance: Box<str>,
    },
}

/// What this node changes of itself.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// Offers an instance, or says anew how it is.
    Offer(ServiceRecord),
    /// Takes an instance back.
    Withdraw {
        /// Its service.
        service: Box<str>,
        /// Its name.
        instance: Box<str>,
    },
    /// Holds these gossip keys now, the one it seals with first.
    Keys(Box<[KeyId]>),
    /// Says what our applications ask of a service.
    Demand(DemandRecord),
    /// Takes that back.
    NoDemand {
        /// The service.
        service: Box<str>,
    },
    /// Says goodbye; [`Effect::Left`] follows.
    Leave,
    /// There is nobody else to join.
    Alone,
}

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallEnd {
    /// The other side closed it.
    Closed,
    /// The other host refused the connection.
    Refused,
    /// It could not be opened in time, broke, or said something impossible.
    Failed,
}

/// Counts since the start, for metrics.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Datagrams or frames whose items could not be read.
    pub malformed: u64,
    /// Suspicions seen, ours and others'.
    pub suspicions: u64,
    /// Of those, the ones that the suspect refuted.
    pub refuted: u64,
    /// Of those, the ones that ended with the suspect down.
    pub confirmed: u64,
    /// Exchanges that we began.
    pub exchanges_begun: u64,
    /// Exchanges completed, on either side.
    pub exchanges_done: u64,
    /// Records that were news.
    pub news: u64,
    /// Records refused because a table was full.
    pub refused: u64,
    /// Times we were taken for dead and came back.
    pub renewals: u64,
    /// Members and records refused because their bump lies in no believable future.
    pub absurd: u64,
    /// Probes of ours that nobody answered.
    pub probes_failed: u64,
    /// Probes of ours that were answered, by whatever way.
    pub probes_answered: u64,
    /// Probes of ours to members that we look after more than others.
    pub probes_near: u64,
    /// Opinions of others that agreed with a suspicion of ours.
    pub confirmations: u64,
}
