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
mod intake;
mod interface;
mod near;
mod offers;
mod packet;
mod peers;
mod remarks;
mod repair;
mod rumours;
mod standings;
mod swim;
mod telling;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use foca::OwnedNotification;
use mesh_proto::{member::Member, record::NodeRecord};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use self::{
    doubts::Doubt,
    exchange::Call,
    near::Distances,
    offers::Offers,
    peers::{MEMBERS_MAX, Peer, Peers},
    remarks::Streams,
    repair::{BACKSTOP_IN_TROUBLE, RETRY_DOWN},
    rumours::{RUMOURS_MAX, Rumours},
    swim::{FANOUT, Swim, Watch},
    telling::Words,
};
pub use self::{
    interface::{CallEnd, CallId, Change, Counts, Effect, Notice, Settings},
    peers::member_hash,
    swim::Pace,
};
use crate::{
    catalogue::{Catalogue, RECORDS_MAX, mix},
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
