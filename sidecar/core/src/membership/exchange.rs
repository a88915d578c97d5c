//! Exchanges over streams: two nodes leave with the same members and records; and probes over streams.
//!
//! Not here: which stream is a socket (`sidecar/src/gossip/stream.rs`), and how members are seen (`standings.rs`). The turns,
//! each ended by `End`:
//! 1. caller: hello, digest (the first frame, so it holds no more);
//! 2. answerer: welcome, digest, members if they differ, owners of the buckets that differ;
//! 3. caller: members if they differ, records the answerer lacks, wishes for those the caller lacks;
//! 4. answerer: the records wished for.
//!
//! Both sides name themselves in turns 3 and 4, since either may have learned in between that it was taken for dead.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_proto::{
    EXCHANGE_BYTES_MAX, FRAME_BYTES_MAX,
    codec::{ITEM_HEAD_BYTES, decode_head, items, put_item},
    member::Member,
    message::{BUCKETS, Digest, Hello, Item, OwnerDigest, Purpose, Standing},
};

use super::{
    CallEnd, CallId, Effect, Membership, Notice,
    peers::{Evidence, member_hash},
};
use crate::{catalogue::OWNERS_MAX, mesh::Stream, moment::Moment};

/// What an exchange is begun for. Each has a bound of its own, so that hosts that swallow every call (dead ones, old
/// seeds) leave room for repairs among the living.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// To meet whoever is at an address.
    Join,
    /// To become alike with a living peer.
    Repair,
    /// To see whether a peer that is down is back.
    Retry,
}

impl Reason {
    /// How many may be under way, and how long each may take.
    fn bounds(self) -> (usize, Duration) {
        match self {
            Reason::Join => (16, Duration::from_secs(10)),
            Reason::Repair => (4, Duration::from_secs(10)),
            Reason::Retry => (3, Duration::from_secs(3)),
        }
    }
}

/// Probes by stream under way.
const PROBES_OUT_MAX: usize = 8;

/// Addresses remembered as our own.
const MIRRORS_MAX: usize = 16;

/// Exchanges that others have begun and that are not over; the shell refuses more streams than that anyway.
const CALLS_IN_MAX: usize = 16;

/// Records told in one exchange: an eighth of its bytes is left for members, digests and seals.
const RECORDS_BYTES_MAX: usize = EXCHANGE_BYTES_MAX / 8 * 7;

/// Streams under way at once, of all kinds and both sides; those that hang up are forgotten at once.
pub(super) const CALLS_MAX: usize = 16 + 4 + 3 + PROBES_OUT_MAX + 2 * CALLS_IN_MAX;

/// A probe that takes longer is taken for silence.
const PROBE_TIME: Duration = Duration::from_secs(1);

/// One stream under way.
#[derive(Debug)]
pub(super) struct Call {
    side: Side,
    /// Why we began it, if it is an exchange that we began.
    reason: Option<Reason>,
    /// Who is at the other end, once known.
    peer: Option<Member>,
    at: Option<SocketAddr>,
    /// Records learned are news to others too: not where a newcomer learns everything at once.
    spread: bool,
    digest: Digest,
    heard: Heard,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    /// We called; turn 2 is awaited.
    Asking,
    /// We called and said turn 3; turn 4 is awaited.
    Wanting,
    /// We were called and said turn 2; turn 3 is awaited.
    Answering,
    /// We called to see whether anybody answers.
    Probing,
}

/// What was heard in the turn under way.
#[derive(Default, Debug)]
struct Heard {
    digest: Option<Digest>,
    standings: Vec<Standing>,
    buckets: u64,
    owners: Vec<OwnerDigest>,
    wants: BTreeSet<u64>,
}

/// What one item of a stream means for it.
enum Turn {
    Goes,
    Ends,
    Breaks,
}

impl Membership {
    /// Joins whoever is at this address, if nobody known is.
    pub fn join(&mut self, at: SocketAddr, now: Moment) {
        let is_known = self.peers.active().any(|(member, _)| member.address == at);
        if !is_known && at != self.me().address {
            self.dial_exchange(Reason::Join, at, None, now);
        }
    }

    /// Whether we met ourselves at this address.
    pub fn is_self(&self, at: SocketAddr) -> bool {
        self.mirrors.contains(&at)
    }

    fn new_call(&mut self, side: Side, peer: Option<Member>, at: Option<SocketAddr>) -> CallId {
        self.calls_made += 1;
        let id = CallId(self.calls_made);
        let call = Call {
            side,
            reason: None,
            peer,
            at,
            spread: self.joined,
            digest: self.digest(),
            heard: Heard::default(),
        };
        self.calls.insert(id, call);
        id
    }

    fn dial(
        &mut self,
        side: Side,
        reason: Option<Reason>,
        at: SocketAddr,
        peer: Option<Member>,
        within: Duration,
    ) {
        let call = self.new_call(side, peer, Some(at));
        if let Some(call) = self.calls.get_mut(&call) {
            call.reason = reason;
        }
        let purpose = if side == Side::Probing {
            Purpose::Probe
        } else {
            Purpose::Exchange
        };
        let hello = Item::Hello(Hello {
            cluster: self.settings.cluster.clone(),
            from: self.me(),
            purpose,
        });
        let mut said = vec![hello];
        if purpose == Purpose::Exchange {
            said.push(Item::Digest(Box::new(self.digest())));
        }
        let mut frame = Vec::new();
        // A name and a digest are far below a frame's bound.
        if said.iter().all(|item| put_item(&mut frame, item).is_ok()) {
            self.effects.push_back(Effect::Dial {
                call,
                to: at,
                hello: frame,
                within,
            });
        }
    }

    pub(super) fn dial_exchange(
        &mut self,
        reason: Reason,
        at: SocketAddr,
        peer: Option<Member>,
        now: Moment,
    ) {
        let (most, within) = reason.bounds();
        let alike = self
            .calls
            .values()
            .filter(|call| call.reason == Some(reason));
        let is_called = |call: &Call| call.reason.is_some() && call.at == Some(at);
        if self.leaving.is_some() || alike.count() >= most || self.calls.values().any(is_called) {
            return;
        }
        if let Some(peer) = peer {
            self.peers.set_exchanged(peer.id, now);
        }
        self.counts.exchanges_begun += 1;
        self.dial(Side::Asking, Some(reason), at, peer, within);
    }

    /// Calls a member that did not answer a datagram.
    pub(super) fn dial_probe(&mut self, peer: Member, _now: Moment) {
        let probes = || {
            self.calls
                .values()
                .filter(|call| call.side == Side::Probing)
        };
        if probes().count() < PROBES_OUT_MAX && !probes().any(|call| call.peer == Some(peer)) {
            self.dial(Side::Probing, None, peer.address, Some(peer), PROBE_TIME);
        }
    }

    // ---- what the shell tells of streams ----

    /// Somebody opened a stream; `hello` is its first frame. `None`: close it without a word.
    pub fn on_call(&mut self, hello: &[u8], now: Moment) -> Option<CallId> {
        let answering = self
            .calls
            .values()
            .filter(|call| call.side == Side::Answering);
        if answering.count() >= CALLS_IN_MAX || self.leaving.is_some() {
            return None;
        }
        let mut said = items(hello);
        let Some(Ok(Item::Hello(hello))) = said.next() else {
            self.counts.malformed += 1;
            return None;
        };
        if hello.from.id == self.settings.me.id && hello.from != self.me() {
            return None;
        }
        let call = self.new_call(Side::Answering, Some(hello.from), None);
        if hello.cluster != self.settings.cluster {
            let cluster = self.settings.cluster.clone();
            self.frames(call, [Item::Refused { cluster }]);
            self.hang(call);
            let notice = Notice::OtherCluster {
                at: Some(hello.from.address),
                cluster: hello.cluster,
            };
            self.effects.push_back(Effect::Notice(notice));
            return Some(call);
        }
        // Nothing is learned from a hello: it may be a replay. Whoever says the third turn is there now, for that is
        // sealed with a number of ours.
        let welcome = Item::Welcome { from: self.me() };
        if hello.from == self.me() {
            self.frames(call, [welcome]);
            self.hang(call);
            return Some(call);
        }
        let theirs = said.find_map(|item| match item {
            Ok(Item::Digest(digest)) => Some(digest),
            _ => None,
        });
        let (Purpose::Exchange, Some(theirs)) = (hello.purpose, theirs) else {
            self.frames(call, [welcome]);
            self.hang(call);
            return Some(call);
        };
        let ours = self.digest();
        let differing = differing(&ours, &theirs);
        let mut turn = vec![
            welcome,
            Item::Digest(Box::new(ours.clone())),
            Item::Buckets(differing),
        ];
        if ours.members != theirs.members {
            turn.extend(self.standings(now).map(Item::Standing));
        }
        turn.extend(self.catalogue.digests(differing).map(Item::Owner));
        turn.push(Item::End);
        self.frames(call, turn);
        Some(call)
    }

    /// A frame came on a stream.
    pub fn on_stream_message(&mut self, id: CallId, frame: &[u8], now: Moment) {
        self.heard_on_stream = now;
        self.be_heard(now);
        for item in items(frame) {
            let Some(call) = self.calls.get_mut(&id) else {
                break;
            };
            let (spread, peer) = (call.spread, call.peer);
            let turn = match item {
                Ok(Item::Record(bytes)) => {
                    let owner = decode_head(bytes).ok().map(|head| head.owner);
                    let is_from_owner = owner.is_some() && owner == peer.map(|peer| peer.id);
                    self.take_in(bytes, spread || is_from_owner, now);
                    Turn::Goes
                }
                Ok(item) => self.on_item(id, item, now),
                Err(_) => Turn::Breaks,
            };
            match turn {
                Turn::Goes => {}
                Turn::Ends => self.on_turn(id, now),
                Turn::Breaks => {
                    self.counts.malformed += 1;
                    self.hang(id);
                }
            }
        }
        self.refresh(now);
    }

    /// A stream is over that we did not hang up.
    pub fn on_call_end(&mut self, id: CallId, end: CallEnd, now: Moment) {
        let Some(call) = self.calls.remove(&id) else {
            return;
        };
        if let (Some(Reason::Join), CallEnd::Closed, Some(at), None) =
            (call.reason, end, call.at, call.peer)
        {
            self.effects
                .push_back(Effect::Notice(Notice::Unanswered { at }));
        }
        let Some(peer) = call.peer.filter(|_| call.side == Side::Probing) else {
            return;
        };
        let (evidence, stream) = match end {
            CallEnd::Refused => (Evidence::Refused, Stream::Refused),
            CallEnd::Closed | CallEnd::Failed => (Evidence::Silent, Stream::Silent),
        };
        self.streams.note(peer.id, stream, now);
        if self.is_deaf(now) {
            self.peers.set_evidence(peer.id, evidence);
        }
    }

    fn on_item(&mut self, id: CallId, item: Item<'_>, now: Moment) -> Turn {
        let Some(call) = self.calls.get_mut(&id) else {
            return Turn::Breaks;
        };
        let heard = &mut call.heard;
        match item {
            Item::Welcome { from } if call.side == Side::Probing => {
                self.on_probe_answered(from, now);
                self.hang(id);
            }
            Item::Welcome { from } if from.id == self.settings.me.id => {
                // We called ourselves by an address that we did not know for ours.
                let at = call.at.filter(|_| self.mirrors.len() < MIRRORS_MAX);
                self.mirrors.extend(at);
                self.hang(id);
            }
            Item::Welcome { from } if call.side == Side::Asking => call.peer = Some(from),
            Item::Refused { cluster } => {
                let notice = Notice::OtherCluster {
                    at: call.at,
                    cluster,
                };
                self.effects.push_back(Effect::Notice(notice));
                self.hang(id);
            }
            Item::Digest(digest) => heard.digest = Some(*digest),
            Item::Buckets(set) => heard.buckets = set,
            Item::Standing(standing) if heard.standings.len() < OWNERS_MAX => {
                heard.standings.push(standing)
            }
            Item::Owner(owner) if heard.owners.len() < OWNERS_MAX => heard.owners.push(owner),
            Item::Want(owner) if heard.wants.len() < OWNERS_MAX => {
                heard.wants.insert(owner);
            }
            Item::Standing(_) | Item::Owner(_) | Item::Want(_) => return Turn::Breaks,
            Item::End => return Turn::Ends,
            _ => {}
        }
        Turn::Goes
    }

    fn on_probe_answered(&mut self, from: Member, now: Moment) {
        self.swim.answered(&from, now);
        self.settle(now);
        // Started again, and so far from whom it joined that nobody here was told: the mesh may be in two parts.
        let again = foca::Member::new(from, 0, foca::State::Alive);
        if self.believes(from.bump, now) && self.peers.learns_from(&again) {
            self.dial_exchange(Reason::Repair, from.address, Some(from), now);
        }
        if self.peers.get(from.id).is_some() {
            self.peers.set_evidence(from.id, Evidence::Answered);
            self.streams.note(from.id, Stream::Answered, now);
        }
        if self.is_deaf(now) && !self.loss_told {
            self.loss_told = true;
            self.effects
                .push_back(Effect::Notice(Notice::DatagramsLost { id: from.id }));
        }
        self.set_isolated(false);
    }

    fn on_turn(&mut self, id: CallId, now: Moment) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        let heard = std::mem::take(&mut call.heard);
        let (side, spread, ours) = (call.side, call.spread, call.digest.clone());
        self.take_standings(&heard.standings, spread, now);
        match side {
            Side::Asking => {
                let (mut turn, offered) = self.third_turn(&ours, &heard, now);
                turn.extend(offered.iter().map(|bytes| Item::Record(bytes)));
                turn.push(Item::End);
                self.frames(id, turn);
                if let Some(call) = self.calls.get_mut(&id) {
                    call.side = Side::Wanting;
                }
            }
            Side::Answering => {
                let mut turn = vec![Item::Standing(self.own_standing())];
                let records = self.records(heard.wants.iter().copied());
                turn.extend(records.iter().map(|bytes| Item::Record(bytes)));
                turn.push(Item::End);
                self.frames(id, turn);
                self.complete(id, now);
            }
            Side::Wanting => self.complete(id, now),
            Side::Probing => self.hang(id),
        }
    }

    /// What the caller says once it knows how the answerer's knowledge differs, and the records it offers.
    fn third_turn(
        &self,
        ours: &Digest,
        heard: &Heard,
        now: Moment,
    ) -> (Vec<Item<'static>>, Vec<Arc<[u8]>>) {
        let mut turn = vec![Item::Standing(self.own_standing())];
        if heard
            .digest
            .as_ref()
            .is_some_and(|theirs| theirs.members != ours.members)
        {
            turn.extend(self.standings(now).map(Item::Standing));
        }
        let theirs: BTreeMap<u64, OwnerDigest> = heard
            .owners
            .iter()
            .map(|owner| (owner.id, *owner))
            .collect();
        for owner in theirs
            .values()
            .filter(|owner| owner.id != self.settings.me.id)
        {
            let held = self.catalogue.digest(owner.id);
            let is_wanted = held.is_none_or(|held| {
                held.epoch < owner.epoch || (held.epoch == owner.epoch && held.hash != owner.hash)
            });
            if is_wanted && self.peers.is_told(owner.id, now) {
                turn.push(Item::Want(owner.id));
            }
        }
        let offered = self.catalogue.digests(heard.buckets).filter(|held| {
            theirs.get(&held.id).is_none_or(|theirs| {
                theirs.epoch < held.epoch
                    || (theirs.epoch == held.epoch && theirs.hash != held.hash)
            })
        });
        (turn, self.records(offered.map(|held| held.id)))
    }

    fn complete(&mut self, id: CallId, now: Moment) {
        let peer = self.calls.get(&id).and_then(|call| call.peer);
        if let Some(peer) = peer {
            self.peers.set_differs(peer.id, None);
        }
        self.counts.exchanges_done += 1;
        self.exchange_at = self.exchange_at.max(now + self.backstop(now));
        self.changed |= !self.joined;
        self.joined = true;
        self.hang(id);
    }

    fn hang(&mut self, id: CallId) {
        if self.calls.remove(&id).is_some() {
            self.effects.push_back(Effect::Hang { call: id });
        }
    }

    /// Queues items on a stream, in as many frames as they take.
    fn frames<'a>(&mut self, call: CallId, said: impl IntoIterator<Item = Item<'a>>) {
        let mut payload = Vec::new();
        for item in said {
            let before = payload.len();
            // Nothing said here is near the bound of an item.
            let _ = put_item(&mut payload, &item);
            if payload.len() > FRAME_BYTES_MAX {
                let rest = payload.split_off(before);
                let full = std::mem::replace(&mut payload, rest);
                self.effects.push_back(Effect::Frame {
                    call,
                    payload: full,
                });
            }
        }
        self.effects.push_back(Effect::Frame { call, payload });
    }

    // ---- what is told ----

    /// What these owners say, as far as it fits into one exchange; the next one carries the rest.
    pub(super) fn records(&self, owners: impl Iterator<Item = u64>) -> Vec<Arc<[u8]>> {
        let mut bytes = 0;
        owners
            .filter_map(|owner| self.catalogue.owner(owner))
            .flat_map(|owner| owner.entries().map(|(_, entry)| entry.bytes.clone()))
            .take_while(|record| {
                bytes += record.len() + ITEM_HEAD_BYTES;
                bytes <= RECORDS_BYTES_MAX
            })
            .collect()
    }

    fn digest(&self) -> Digest {
        Digest {
            members: self.members_hash(),
            buckets: self.catalogue.buckets(),
        }
    }

    /// The hash of the living members, ourselves included.
    pub(super) fn members_hash(&self) -> u64 {
        let others = self.peers.living_hash();
        others.wrapping_add(member_hash(&self.me()))
    }
}

/// The buckets in which two digests differ, as a bit set.
fn differing(ours: &Digest, theirs: &Digest) -> u64 {
    let pairs = ours.buckets.iter().zip(&theirs.buckets).enumerate();
    pairs.fold(0, |set, (at, (a, b))| set | u64::from(a != b) << at)
}

const _: () = assert!(BUCKETS <= 64, "a bit set of buckets is a u64");
