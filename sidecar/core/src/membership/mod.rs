//! foca, its guards, records and exchanges as one machine without sockets or clocks: datagrams, stream messages, timers
//! and local changes in; effects out.
//!
//! Not here: sockets, sealing and files (`sidecar/src/gossip`). The same machine runs in the simulator of the tests.
//!
//! Members are found and lost by SWIM (`swim.rs`). Records spread as rumours beside it (`rumours.rs`), and whatever
//! rumours miss is repaired by exchanges over streams (`exchange.rs`): every datagram carries a hash of what the
//! sender knows, and two peers that differ for a second compare.

mod acquaintance;
mod doubts;
mod exchange;
mod hearing;
mod near;
mod offers;
mod packet;
mod peers;
mod remarks;
mod repair;
mod rumours;
mod swim;
mod telling;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use foca::OwnedNotification;
use mesh_proto::{
    codec::{CodecError, decode_head, items},
    frame::KeyId,
    member::Member,
    message::Item,
    record::{DemandRecord, Head, NODE_SLOT, NodeRecord, ServiceRecord},
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use self::{
    doubts::Doubt,
    exchange::Call,
    near::Distances,
    offers::Offers,
    packet::Packet,
    peers::{MEMBERS_MAX, Peer, Peers},
    remarks::Streams,
    repair::{BACKSTOP_IN_TROUBLE, RETRY_DOWN},
    rumours::{RUMOURS_MAX, Rumours},
    swim::{FANOUT, Swim, Watch},
    telling::Words,
};
pub use self::{peers::member_hash, swim::Pace};
use crate::{
    catalogue::{Applied, Catalogue, RECORDS_MAX, mix},
    mesh::{Mesh, NodeState},
    moment::Moment,
};

/// News is told, and everything regular looked after, this often.
pub const TICK: Duration = Duration::from_millis(100);

/// Goodbye is told for so long before SWIM hears of it, and for [`LEAVE_TIME`] in all.
const GOODBYE_TIME: Duration = Duration::from_millis(200);
const LEAVE_TIME: Duration = Duration::from_millis(1_200);

/// Between two looks for what may be forgotten.
const SWEEP: Duration = Duration::from_secs(60);

/// Questions about suspects answered for one datagram; whoever asks asks about one.
const QUESTIONS_MAX: usize = 4;

/// A bump is the clock of its node at a start, in Unix milliseconds. One further ahead of ours than this, a hundred
/// years, is believed by nobody: whoever holds the key could otherwise use up all bumps of a node, and lock it out. It
/// is so wide because our own clock may stand at 1970.
const BUMP_AHEAD_MAX_MS: u64 = 100 * 365 * 24 * 3_600 * 1_000;

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
pub struct CallId(u64);

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
    /// Open a stream and send these items first. Its end must be told by [`Membership::on_call_end`].
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

/// The machine.
#[derive(Debug)]
pub struct Membership {
    settings: Settings,
    swim: Swim,
    peers: Peers,
    catalogue: Catalogue,
    offers: Offers,
    streams: Streams,
    suspects: BTreeSet<u64>,
    rumours: Rumours,
    calls: BTreeMap<CallId, Call>,
    /// Addresses at which we met ourselves.
    mirrors: Vec<SocketAddr>,
    calls_made: u64,
    rng: StdRng,
    started: Moment,
    /// Nodes of which SWIM or the records may know something new.
    touched: Vec<u64>,
    distances: Distances,
    doubts: Vec<Doubt>,
    effects: VecDeque<Effect>,
    /// Something in the mesh is not as last told.
    changed: bool,
    joined: bool,
    /// The last datagram from anybody, or the moment somebody was there to hear.
    heard: Moment,
    /// Who sent it.
    last_heard: Option<u64>,
    /// The last word on a stream.
    heard_on_stream: Moment,
    /// The last answer to anything that we said.
    answered: Moment,
    /// Questions since then to those heard.
    greetings: u32,
    greet_at: Moment,
    isolated: bool,
    leaving: Option<Moment>,
    tick_at: Moment,
    told_at: Moment,
    nudge_at: Moment,
    consult_at: Moment,
    /// The newest of our incarnations that was suspected.
    refuted: Option<u16>,
    /// It was said that only streams get through.
    loss_told: bool,
    exchange_at: Moment,
    /// No exchange over a difference is begun before this.
    repair_at: Moment,
    retry_at: Moment,
    sweep_at: Moment,
    evidence_at: Moment,
    /// Counts for metrics.
    pub counts: Counts,
}

impl Membership {
    /// A node that knows nobody yet. `rng` seeds all its dice.
    pub fn new(settings: Settings, rng: &mut impl Rng, now: Moment) -> Membership {
        let node = NodeRecord {
            name: settings.name.clone(),
            zone: settings.zone.clone(),
            region: settings.region.clone(),
            wire_version: mesh_proto::WIRE_VERSION,
            left: false,
            floor: 0,
            keys: Box::default(),
        };
        let me = settings.me;
        let mut membership = Membership {
            swim: Swim::new(me, settings.pace, StdRng::from_rng(rng)),
            peers: Peers::default(),
            catalogue: Catalogue::default(),
            offers: Offers::new(me.id, me.bump, node),
            streams: Streams::default(),
            suspects: BTreeSet::new(),
            rumours: Rumours::default(),
            calls: BTreeMap::new(),
            mirrors: Vec::new(),
            calls_made: 0,
            rng: StdRng::from_rng(rng),
            started: now,
            touched: Vec::new(),
            distances: Distances::default(),
            doubts: Vec::new(),
            effects: VecDeque::new(),
            changed: true,
            joined: !settings.has_seeds,
            heard: now,
            last_heard: None,
            heard_on_stream: now,
            answered: now,
            greetings: 0,
            greet_at: now,
            isolated: false,
            leaving: None,
            tick_at: now + TICK,
            told_at: now,
            nudge_at: now,
            consult_at: now,
            refuted: None,
            loss_told: false,
            exchange_at: now + BACKSTOP_IN_TROUBLE,
            repair_at: now,
            retry_at: now + RETRY_DOWN,
            sweep_at: now + SWEEP,
            evidence_at: now,
            counts: Counts::default(),
            settings,
        };
        membership.say(now);
        membership
    }

    /// The next thing to do, oldest first. Ask until there is none after every call.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether the mesh changed since the last time this was asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The mesh as it stands.
    pub fn mesh(&self) -> Mesh {
        Mesh {
            isolated: self.isolated,
            joined: self.joined,
            remarks: self.remarks(),
            ..self.peers.mesh(&self.swim, &self.catalogue, &self.offers)
        }
    }

    /// This node as SWIM knows it now.
    pub fn me(&self) -> Member {
        self.swim.me()
    }

    /// Other nodes and how they are, those that nobody offered a record of included.
    pub fn peers(&self) -> impl Iterator<Item = (Member, NodeState)> + '_ {
        self.peers
            .iter()
            .filter_map(|(_, peer)| Some((peer.member?, peer.state)))
    }

    /// What another node says of itself; `None` if that has not come through yet.
    pub fn record_of(&self, id: u64) -> Option<&NodeRecord> {
        self.catalogue.owner(id)?.node.as_deref()
    }

    /// How another node is seen; `None` if it was never heard of.
    pub fn state_of(&self, id: u64) -> Option<NodeState> {
        let peer = self.peers.get(id)?;
        peer.member.map(|_| peer.state)
    }

    /// All records.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The epoch and the highest version known of a node's records.
    pub fn version_of(&self, id: u64) -> Option<(u64, u64)> {
        let owner = self.catalogue.owner(id)?;
        Some((owner.epoch, owner.version_max()))
    }

    /// When this machine was made.
    pub fn started(&self) -> Moment {
        self.started
    }

    /// The name of a queue that grew over its bound: there must never be one.
    pub fn overfull(&self) -> Option<&'static str> {
        let bounds = [
            (self.rumours.len() > RUMOURS_MAX, "the rumours"),
            (self.calls.len() > exchange::CALLS_MAX, "the streams"),
            (self.doubts.len() > doubts::DOUBTS_MAX, "the doubts"),
            (self.catalogue.len() > RECORDS_MAX, "the records"),
            (self.peers.len() > 2 * MEMBERS_MAX, "the members"),
        ];
        bounds
            .into_iter()
            .find_map(|(is_over, name)| is_over.then_some(name))
    }

    /// Whether somebody else is there.
    pub fn has_company(&self) -> bool {
        self.swim.active() > 0
    }

    /// The hash of everything known, members and services: equal on nodes that know the same.
    pub fn hash(&self) -> u64 {
        mix(self.catalogue.hash() ^ self.members_hash())
    }

    /// Suspicions that began with a probe of ours.
    pub fn originated(&self) -> u64 {
        self.swim.originated()
    }

    /// Records held and rumours waiting.
    pub fn backlog(&self) -> (usize, usize) {
        (self.catalogue.len(), self.rumours.len())
    }

    /// When [`Membership::on_timer`] wants to be called next.
    pub fn next_timer(&self) -> Moment {
        // Whoever leaves probes nobody any more.
        let probes = self.swim.next_timer().filter(|_| self.leaving.is_none());
        probes.map_or(self.tick_at, |at| at.min(self.tick_at))
    }

    /// Takes in the items of a datagram; its seal says that `sender` sent it.
    pub fn on_datagram(&mut self, payload: &[u8], sender: u64, now: Moment) {
        if sender == self.settings.me.id {
            return;
        }
        let news_before = self.counts.news;
        let mut is_heard = false;
        let mut is_question = false;
        let mut questions = 0;
        for item in items(payload) {
            if item.is_ok() && !std::mem::replace(&mut is_heard, true) {
                self.hear(sender, now);
                self.settle_doubts(sender);
            }
            match item {
                Ok(Item::Hash(hash)) => self.compare(sender, hash, now),
                Ok(Item::Foca(packet)) if self.leaving.is_none() => self.on_packet(packet, now),
                Ok(Item::Record(bytes)) => self.take_in(bytes, true, now),
                Ok(Item::Standing(standing)) if standing.member == self.me() => {
                    self.refute(standing, now);
                }
                Ok(Item::Standing(standing)) if standing.state != foca::State::Suspect => {}
                Ok(Item::Standing(standing)) if is_question => {
                    questions += 1;
                    if questions <= QUESTIONS_MAX {
                        self.on_question(standing, sender, now);
                    }
                }
                Ok(Item::Standing(standing)) => self.on_agreement(&standing, sender, now),
                // Once is enough: one datagram shall not make us send many.
                Ok(Item::Ask) if std::mem::replace(&mut is_question, true) => {}
                Ok(Item::Ask) => {
                    if let Some(member) = self.peers.get(sender).and_then(|peer| peer.member) {
                        self.send(&member, Words::none());
                    }
                }
                // Words of streams.
                Ok(_) => {}
                Err(_) => self.counts.malformed += 1,
            }
        }
        self.refresh(now);
        if self.counts.news > news_before {
            self.tell_soon(now);
        }
    }

    fn on_packet(&mut self, bytes: &[u8], now: Moment) {
        let Ok(mut packet) = Packet::read(bytes) else {
            self.counts.malformed += 1;
            return;
        };
        let (src, incarnation) = (packet.header.src, packet.header.src_incarnation);
        let source = foca::Member::new(src, incarnation, foca::State::Alive);
        let learns_source = self.peers.learns_from(&source);
        let known = self.peers.get(src.id);
        let (is_stranger, known) = (known.is_none(), known.and_then(Peer::as_known));
        if !self.is_credible(&src, now) || (is_stranger && !learns_source) {
            return;
        }
        let me = self.settings.me.id;
        let told = packet.updates.len();
        let mut updates = std::mem::take(&mut packet.updates);
        updates.retain(|update| {
            update.id().id == me
                || (self.peers.learns_from(update) && self.is_credible(update.id(), now))
        });
        self.touched.extend(learns_source.then_some(src.id));
        self.touched
            .extend(updates.iter().map(|update| update.id().id));
        packet.updates = updates;
        if let Some(known) = known {
            self.swim.invite(known);
        }
        let rewritten = (packet.updates.len() < told).then(|| packet.write());
        let bytes = rewritten.as_deref().unwrap_or(bytes);
        if self.swim.on_packet(&packet.header, bytes, now).is_err() {
            self.counts.malformed += 1;
        }
        match packet.header.message {
            foca::Message::Ack(_) => {
                // A late one too: the way is open.
                self.hear_answer(&src);
                self.be_heard(now);
            }
            foca::Message::ForwardedAck { .. } => self.be_heard(now),
            _ => {}
        }
        if let Some((member, took)) = self.swim.take_round_trip() {
            let owner = self.catalogue.owner(member.id);
            if let Some(node) = owner.and_then(|owner| owner.node.as_ref()) {
                self.distances.measure(&node.zone, took);
            }
        }
        self.settle(now);
    }

    /// The last bump that lies in a believable future: nothing of a later one is to be taken from anybody.
    pub fn bump_max(&self, now: Moment) -> u64 {
        let age = u64::try_from(now.since(self.started).as_millis()).unwrap_or(u64::MAX);
        let ahead = self.settings.me.bump.saturating_add(age);
        ahead.saturating_add(BUMP_AHEAD_MAX_MS)
    }

    fn believes(&self, bump: u64, now: Moment) -> bool {
        bump <= self.bump_max(now)
    }

    fn is_credible(&mut self, member: &Member, now: Moment) -> bool {
        let is_credible = self.believes(member.bump, now);
        self.counts.absurd += u64::from(!is_credible);
        is_credible
    }

    /// How ill we are by our own probes: 0 well, 8 at worst. The worse, the slower we probe.
    pub fn score(&self) -> u32 {
        self.swim.score()
    }

    /// Handles every timer that is due. The sockets must be drained first, or a stall makes others look dead.
    pub fn on_timer(&mut self, now: Moment) {
        let trust = self.trust(now);
        if self.leaving.is_none() {
            let patience = |member: &Member| {
                let zone = self
                    .catalogue
                    .owner(member.id)
                    .and_then(|owner| owner.node.as_ref());
                let zone = zone.map(|node| &*node.zone);
                self.distances.patience(zone, &self.settings.pace)
            };
            let watch = Watch {
                trust,
                witnesses: self.witnesses(now),
                patience: &patience,
                near: &|| near::neighbours(&self.peers, &self.catalogue, &self.settings.zone),
                is_alarmed: self.is_alarmed(),
                alarmed: &|| near::alarmed(&self.peers, &self.catalogue, &self.settings.zone),
            };
            for silent in self.swim.on_timer(&watch, now) {
                self.dial_probe(silent, now);
                let helpers = self.helpers(&silent);
                self.swim.seek_help(&silent, &helpers);
            }
            self.counts.probes_answered = self.swim.probes_answered;
            self.counts.probes_failed = self.swim.probes_failed;
            self.counts.probes_near = self.swim.probes_near;
            self.settle(now);
        }
        if now >= self.tick_at {
            self.tick_at = now + TICK;
            self.tick(now);
        }
    }

    /// Changes something of this node.
    pub fn on_local_change(&mut self, change: Change, now: Moment) {
        match change {
            Change::Offer(record) => {
                let (service, instance) = (record.service.clone(), record.instance.clone());
                if self.offers.offer(record).is_err() {
                    let notice = Notice::TooLong { service, instance };
                    self.effects.push_back(Effect::Notice(notice));
                }
            }
            Change::Withdraw { service, instance } => {
                self.offers.withdraw(&service, &instance, now)
            }
            Change::Keys(keys) => self.offers.set_keys(keys),
            Change::Demand(record) => {
                // Without a slot left the others reckon without it, as with a service asked for next to nothing.
                let _ = self.offers.demand(record);
            }
            Change::NoDemand { service } => self.offers.forget_demand(&service, now),
            Change::Leave => {
                if self.leaving.is_none() {
                    self.offers.leave();
                    self.leaving = Some(now);
                }
            }
            Change::Alone => {
                self.joined = true;
                self.changed = true;
            }
        }
        self.tell_soon(now);
    }

    /// What comes alone is said (and passed on) at once, what comes in a flood once a tick.
    fn tell_soon(&mut self, now: Moment) {
        if now.since(self.told_at) >= TICK {
            self.say(now);
            self.tell(now);
        }
    }

    fn tick(&mut self, now: Moment) {
        self.check_hearing(now);
        self.offers.bury(now);
        self.say(now);
        if self.leaving.is_none() {
            self.swim.gossip(now);
            self.settle(now);
        }
        self.tell(now);
        self.nudge_suspects(now);
        self.look_after_remarks(now);
        self.consult(now);
        self.look_after_doubts(now);
        self.look_after_differences(now);
        self.look_after_view();
        self.look_after_exchanges(now);
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP;
            self.changed |= self.peers.sweep(&self.swim, &mut self.catalogue, now);
        }
        self.go_on_leaving(now);
    }

    /// Merges a record that somebody told.
    fn take_in(&mut self, bytes: &[u8], spread: bool, now: Moment) {
        match self.merge(bytes, now) {
            Ok(Applied::News(news)) => {
                self.counts.news += 1;
                self.changed = true;
                let owner = news.head.owner;
                if news.head.slot == NODE_SLOT || self.peers.get(owner).is_none() {
                    self.touched.push(owner);
                }
                if spread {
                    self.rumours.push(&news.head, bytes.into(), news.urgent);
                }
            }
            Ok(Applied::Stale) => {}
            Ok(Applied::Full) => self.counts.refused += 1,
            Err(_) => self.counts.malformed += 1,
        }
    }

    fn merge(&mut self, bytes: &[u8], now: Moment) -> Result<Applied, CodecError> {
        let head = decode_head(bytes)?;
        if !self.believes(head.epoch, now) {
            self.counts.absurd += 1;
            return Ok(Applied::Stale);
        }
        if head.owner == self.settings.me.id {
            self.defend(&head);
            return Ok(Applied::Stale);
        }
        if self.catalogue.is_stale(&head, bytes) {
            return Ok(Applied::Stale);
        }
        self.catalogue.apply(bytes)
    }

    /// Only we write our records. One that we did not write is of a later start whose memory we lost: rise above it.
    fn defend(&mut self, head: &Head) {
        if self.offers.is_beyond(head) {
            self.offers.rise_above(head.epoch);
            self.effects
                .push_back(Effect::Bump(self.offers.epoch.max(self.me().bump)));
        }
    }

    /// After every call of foca: its packets out, its news noted.
    fn settle(&mut self, now: Moment) {
        self.carry_packets();
        self.refresh(now);
    }

    /// Sends what foca wants sent.
    fn carry_packets(&mut self) {
        let (packets, news) = self.swim.take();
        for notification in &news {
            if let OwnedNotification::Rejoin(member) = notification {
                self.counts.renewals += 1;
                self.effects.push_back(Effect::Bump(member.bump));
                self.effects.push_back(Effect::Notice(Notice::Renewed));
            }
        }
        for (to, packet) in packets {
            self.send(&to, Words::foca(&packet));
        }
    }

    /// Takes over what SWIM and the records say of the nodes touched.
    fn refresh(&mut self, now: Moment) {
        self.swim.take_touched(&mut self.touched);
        let outside = self.swim.take_outside();
        if self.touched.is_empty() && outside.is_empty() {
            return;
        }
        let had_company = self.peers.has_active();
        let (swim, catalogue) = (&self.swim, &self.catalogue);
        let changed = (self.peers).refresh(&mut self.touched, &outside, swim, catalogue, now);
        self.swim.set_size(self.peers.living() + 1);
        for (id, state) in changed {
            self.changed = true;
            self.counts.suspicions += u64::from(state == NodeState::Suspect);
            self.count_end(id, state);
            if state != NodeState::Suspect {
                self.effects
                    .push_back(Effect::Notice(Notice::State { id, state }));
            }
            if state == NodeState::Alive || state == NodeState::Suspect {
                self.catalogue.set_dormant(id, false);
            }
        }
        if !had_company {
            // There was nobody to hear until now.
            self.heard = self.heard.max(now);
            (self.answered, self.greetings) = (self.answered.max(now), 0);
        }
    }

    /// Keeps what foca looks at of a large mesh at its size.
    fn look_after_view(&mut self) {
        self.swim.dismiss(self.peers.living());
        if self.swim.is_short() {
            for member in self.peers.some_active(FANOUT, &mut self.rng) {
                let known = self.peers.get(member.id).and_then(Peer::as_known);
                known.into_iter().for_each(|known| self.swim.admit(known));
            }
        }
    }

    /// Counts how suspicions end.
    fn count_end(&mut self, id: u64, state: NodeState) {
        match state {
            NodeState::Suspect => drop(self.suspects.insert(id)),
            _ if !self.suspects.remove(&id) => {}
            NodeState::Alive => self.counts.refuted += 1,
            NodeState::Down => self.counts.confirmed += 1,
            NodeState::Left => {}
        }
    }

    // ---- leaving ----

    fn go_on_leaving(&mut self, now: Moment) {
        let Some(since) = self.leaving else {
            return;
        };
        let told = now.since(since);
        if self.swim.active() == 0 || told >= LEAVE_TIME {
            self.effects.push_back(Effect::Left);
        } else if told >= GOODBYE_TIME {
            // foca says it to three members once; repeated, it reaches everybody.
            self.swim.leave(now);
            let (packets, _) = self.swim.take();
            for (to, packet) in packets {
                self.send(&to, Words::foca(&packet));
            }
        }
    }

    /// A random span of up to a tenth of `span`, so that nodes started together do not act together.
    fn jitter(&mut self, span: Duration) -> Duration {
        span.mul_f64(self.rng.random_range(0.0..0.1))
    }
}

#[cfg(test)]
mod tests;
