//! What is known of each other node, and the [`Mesh`] made of it.
//!
//! Not here: how it is found out (`swim.rs`, `exchange.rs`) and the records themselves (`catalogue.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use foca::Identity;
use mesh_proto::member::Member;
use rand::{Rng, seq::IteratorRandom};

use super::{
    offers::Offers,
    swim::{FORGET_AFTER, Swim},
};
use crate::{
    catalogue::{Catalogue, Content, OWNERS_MAX, mix},
    mesh::{Demand, Instance, Mesh, Node, NodeState},
    moment::Moment,
    table::Table,
};

/// An owner dead for so long is not told to others any more, so that nobody hands it back to one who forgot it.
const DORMANT_AFTER: Duration = FORGET_AFTER.saturating_sub(Duration::from_secs(3_600));

/// Members remembered, dead ones included: whoever holds the key may invent some.
pub const MEMBERS_MAX: usize = OWNERS_MAX;

/// One other node.
///
/// There may be ten thousand of them, so what only a few have is kept apart ([`Marks`]).
#[derive(Clone, Debug)]
pub struct Peer {
    /// As SWIM knows it; `None` while only records of it are known.
    pub member: Option<Member>,
    /// SWIM incarnation.
    pub incarnation: u16,
    /// What SWIM says of it.
    pub standing: foca::State,
    /// How it is, goodbyes included.
    pub state: NodeState,
    /// How long it had been so when we learned it, where others said so, in seconds.
    pub before_s: u32,
    /// Since when.
    pub since: Moment,
}

/// What is known of few.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Marks {
    /// Its catalogue differs from ours since then.
    differs: Option<Moment>,
    /// It was asked whether it still differs.
    asked: bool,
    /// The last exchange that we began with it.
    exchanged: Option<Moment>,
    /// The last goodbye heard.
    goodbye: Option<Goodbye>,
    /// What a stream to it came to while we heard nothing.
    evidence: Option<Evidence>,
}

/// A goodbye that a node's records said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Goodbye {
    /// The records' epoch.
    epoch: u64,
    /// Who it was when that was heard. The same node's next identity did not say it.
    member: Member,
}

/// What a stream to a silent peer came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// It answered: only datagrams are lost.
    Answered,
    /// Its host refused: the process is gone, and the network is well.
    Refused,
    /// Nothing came back.
    Silent,
}

impl Peer {
    fn new(now: Moment) -> Peer {
        Peer {
            member: None,
            incarnation: 0,
            standing: foca::State::Down,
            state: NodeState::Down,
            before_s: 0,
            since: now,
        }
    }

    /// As SWIM would have it.
    pub fn as_known(&self) -> Option<foca::Member<Member>> {
        let member = self.member?;
        Some(foca::Member::new(member, self.incarnation, self.standing))
    }

    /// How long it has been as it is.
    pub fn lasts(&self, now: Moment) -> Duration {
        Duration::from_secs(self.before_s.into()) + now.since(self.since)
    }

    /// Whether others are still told of it.
    pub fn is_told(&self, now: Moment) -> bool {
        self.is_active() || self.lasts(now) < DORMANT_AFTER
    }

    /// For how long it has been down, in seconds.
    pub fn down_for_s(&self, now: Moment) -> u32 {
        if self.is_active() {
            return 0;
        }
        u32::try_from(self.lasts(now).as_secs()).unwrap_or(u32::MAX)
    }

    /// Whether SWIM counts it among the living.
    pub fn is_active(&self) -> bool {
        matches!(self.state, NodeState::Alive | NodeState::Suspect)
    }

    /// Whether SWIM would learn anything from an update.
    fn learns_from(&self, update: &foca::Member<Member>) -> bool {
        use foca::State::{Alive, Down, Suspect};
        let Some(member) = self.member else {
            return true;
        };
        if member != *update.id() {
            return update.id().win_addr_conflict(&member);
        }
        let (held, told) = (self.incarnation, update.incarnation());
        match (self.standing, update.state()) {
            (Down, _) => false,
            (_, Down) => true,
            (Alive, Suspect) => told >= held,
            (Alive, Alive) | (Suspect, Alive | Suspect) => told > held,
        }
    }

    /// Whether there is nothing new in how SWIM knows it.
    fn is(&self, known: &foca::Member<Member>, state: NodeState) -> bool {
        let told = (Some(*known.id()), known.incarnation(), known.state(), state);
        told == (self.member, self.incarnation, self.standing, self.state)
    }

    fn hash(&self) -> u64 {
        match self.member {
            Some(member) if self.standing != foca::State::Down => member_hash(&member),
            _ => 0,
        }
    }
}

/// A member as part of the sum that tells whether two nodes know the same ones.
///
/// Of the living only: who is down is forgotten by each at a time of its own. Suspects count as alive, for suspicions
/// come and go without an exchange.
pub fn member_hash(member: &Member) -> u64 {
    mix(member.id ^ mix(member.bump))
}

/// All other nodes, by id.
///
/// Copies share what they have in common.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    peers: Table<Peer>,
    marks: BTreeMap<u64, Marks>,
    active: usize,
    suspects: BTreeSet<u64>,
    down: BTreeSet<u64>,
    differing: BTreeSet<u64>,
    living_hash: u64,
}

impl Peers {
    /// One of them.
    pub fn get(&self, id: u64) -> Option<&Peer> {
        self.peers.get(id)
    }

    /// One of them, to note something.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Peer> {
        self.peers.get_mut(id)
    }

    /// What a member that knows the same knows, `other`: all of it but itself, and the one whose table this is.
    pub fn of_another(&self, owner: Member, other: u64, now: Moment) -> Peers {
        let mut peers = self.clone();
        if let Some(peer) = peers.peers.remove(other).filter(|peer| peer.is_active()) {
            peers.active -= 1;
            peers.living_hash = peers.living_hash.wrapping_sub(peer.hash());
        }
        let peer = Peer {
            member: Some(owner),
            standing: foca::State::Alive,
            state: NodeState::Alive,
            ..Peer::new(now)
        };
        peers.active += 1;
        peers.living_hash = peers.living_hash.wrapping_add(peer.hash());
        peers.peers.insert(owner.id, peer);
        peers
    }

    /// Gives back memory kept for more.
    pub fn shrink(&mut self) {
        self.peers.shrink();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Peer)> {
        self.peers.iter()
    }

    /// The living.
    pub fn active(&self) -> impl Iterator<Item = (Member, &Peer)> {
        let living = self.peers.iter().filter(|(_, peer)| peer.is_active());
        living.filter_map(|(_, peer)| Some((peer.member?, peer)))
    }

    /// How many of the living are not suspected.
    pub fn well(&self) -> usize {
        self.active - self.suspects.len()
    }

    /// How many are living.
    pub fn living(&self) -> usize {
        self.active
    }

    /// Whether any is living.
    pub fn has_active(&self) -> bool {
        self.active > 0
    }

    /// Those suspected.
    pub fn suspects(&self) -> impl Iterator<Item = (Member, &Peer)> {
        self.few(&self.suspects)
    }

    /// Those down, goodbyes left out.
    pub fn down(&self) -> impl Iterator<Item = (Member, &Peer)> {
        self.few(&self.down)
    }

    /// Those whose catalogue differed when last heard.
    pub fn differing(&self) -> impl Iterator<Item = (Member, &Peer)> {
        self.few(&self.differing)
    }

    fn few<'a>(&'a self, ids: &'a BTreeSet<u64>) -> impl Iterator<Item = (Member, &'a Peer)> {
        let known = ids.iter().filter_map(|id| self.get(*id));
        known.filter_map(|peer| Some((peer.member?, peer)))
    }

    fn marks(&self, id: u64) -> Marks {
        self.marks.get(&id).copied().unwrap_or_default()
    }

    /// Notes something of one; what says nothing is not kept.
    fn mark(&mut self, id: u64, note: impl FnOnce(&mut Marks)) {
        let mut marks = self.marks(id);
        note(&mut marks);
        if marks == Marks::default() {
            self.marks.remove(&id);
        } else if self.peers.contains(id) {
            self.marks.insert(id, marks);
        }
    }

    /// Since when a peer's catalogue differs from ours.
    pub fn differs(&self, id: u64) -> Option<Moment> {
        self.marks(id).differs
    }

    /// Notes since when a peer's catalogue differs, or that it does not.
    pub fn set_differs(&mut self, id: u64, differs: Option<Moment>) {
        if differs.is_some() {
            if self.peers.contains(id) {
                self.differing.insert(id);
                self.mark(id, |marks| marks.differs = differs);
            }
        } else if self.differing.remove(&id) {
            self.mark(id, |marks| (marks.differs, marks.asked) = (None, false));
        }
    }

    /// Whether a peer was asked whether it still differs.
    pub fn is_asked(&self, id: u64) -> bool {
        self.marks(id).asked
    }

    /// Notes that it was.
    pub fn set_asked(&mut self, id: u64) {
        self.mark(id, |marks| marks.asked = true);
    }

    /// The last exchange that we began with a peer.
    pub fn exchanged(&self, id: u64) -> Option<Moment> {
        self.marks(id).exchanged
    }

    /// Notes an exchange that we begin.
    pub fn set_exchanged(&mut self, id: u64, now: Moment) {
        self.mark(id, |marks| marks.exchanged = Some(now));
    }

    /// What a stream to a peer came to while we heard nothing.
    pub fn evidence(&self, id: u64) -> Option<Evidence> {
        self.marks(id).evidence
    }

    /// Notes what a stream came to.
    pub fn set_evidence(&mut self, id: u64, evidence: Evidence) {
        self.mark(id, |marks| marks.evidence = Some(evidence));
    }

    /// We hear again: what streams came to counts no more.
    pub fn forget_evidence(&mut self) {
        for marks in self.marks.values_mut() {
            marks.evidence = None;
        }
    }

    /// Sum of [`member_hash`] over the living.
    pub fn living_hash(&self) -> u64 {
        self.living_hash
    }

    /// Whether SWIM would learn anything from an update. A stranger is not let in where the table is full.
    pub fn learns_from(&self, update: &foca::Member<Member>) -> bool {
        match self.get(update.id().id) {
            Some(peer) => peer.learns_from(update),
            None => self.peers.len() < MEMBERS_MAX,
        }
    }

    /// Some of the living, drawn evenly.
    pub fn some_active(&self, count: usize, rng: &mut impl Rng) -> Vec<Member> {
        let mut drawn = Vec::with_capacity(count);
        if self.active < 4 * count || self.active * 2 < self.peers.len() {
            return self.active().map(|(member, _)| member).sample(rng, count);
        }
        // At least half are living and few are wanted: a draw succeeds more often than not.
        while drawn.len() < count {
            let peer = self.peers.draw(rng).map(|(_, peer)| peer);
            let member = peer.filter(|peer| peer.is_active());
            match member.and_then(|peer| peer.member) {
                Some(member) if !drawn.contains(&member) => drawn.push(member),
                _ => {}
            }
        }
        drawn
    }

    /// Takes over what SWIM and the records say of some nodes; of those `outside` SWIM's view, what others said. Yields those whose state changed.
    pub fn refresh(
        &mut self,
        ids: &mut Vec<u64>,
        outside: &[foca::Member<Member>],
        swim: &Swim,
        catalogue: &Catalogue,
        now: Moment,
    ) -> Vec<(u64, NodeState)> {
        let me = swim.me().id;
        ids.sort_unstable();
        ids.dedup();
        let mut changed = Vec::new();
        for known in swim.members_of(ids).into_iter().chain(outside) {
            let id = known.id().id;
            if id == me {
                continue;
            }
            if let Some(state) = self.note(known, said(catalogue, id), now) {
                changed.push((id, state));
            }
        }
        // Records alone make nobody alive: a node is told of once SWIM knows it.
        for id in ids.drain(..) {
            if id != me && !self.peers.contains(id) && catalogue.owner(id).is_some() {
                self.peers.insert(id, Peer::new(now));
            }
        }
        changed
    }

    /// Takes over what SWIM says of one. Yields its state if that changed.
    fn note(
        &mut self,
        known: &foca::Member<Member>,
        said: Option<Said>,
        now: Moment,
    ) -> Option<NodeState> {
        let id = known.id().id;
        let has_left = self.has_left(*known.id(), said);
        if !self.peers.contains(id) {
            self.peers.insert(id, Peer::new(now));
        }
        let state = match known.state() {
            _ if has_left => NodeState::Left,
            foca::State::Alive => NodeState::Alive,
            foca::State::Suspect => NodeState::Suspect,
            foca::State::Down => NodeState::Down,
        };
        if self.peers.get(id).is_some_and(|peer| peer.is(known, state)) {
            // Not even looked at to be changed: what copies share stays shared.
            return None;
        }
        let peer = self.peers.get_mut(id)?;
        self.living_hash = self.living_hash.wrapping_sub(peer.hash());
        self.active -= usize::from(peer.is_active() && peer.member.is_some());
        let is_changed = peer.state != state || peer.member.is_none();
        if is_changed {
            peer.state = state;
            peer.since = now;
            peer.before_s = 0;
        }
        peer.member = Some(*known.id());
        peer.incarnation = known.incarnation();
        peer.standing = known.state();
        self.living_hash = self.living_hash.wrapping_add(peer.hash());
        self.active += usize::from(peer.is_active());
        for (is_one, few) in [
            (state == NodeState::Suspect, &mut self.suspects),
            (state == NodeState::Down, &mut self.down),
        ] {
            if is_one {
                few.insert(id);
            } else {
                few.remove(&id);
            }
        }
        is_changed.then_some(state)
    }

    /// Whether `member` said goodbye, by what the catalogue has of its node now or had earlier.
    fn has_left(&mut self, member: Member, said: Option<Said>) -> bool {
        let goodbye = self.marks(member.id).goodbye;
        let new = match (said, goodbye) {
            // Heard again, it is of whoever said it.
            (Some(Said { epoch, left: true }), held) => {
                let held = held.filter(|goodbye| goodbye.epoch == epoch);
                held.or(Some(Goodbye { epoch, member }))
            }
            // A goodbye outlives the record that said it, but not the records of its node's next start.
            (Some(Said { epoch, left: false }), held) => {
                held.filter(|goodbye| goodbye.epoch > epoch)
            }
            (None, held) => held,
        };
        if new != goodbye {
            self.marks.entry(member.id).or_default().goodbye = new;
        }
        new.is_some_and(|goodbye| goodbye.member == member)
    }

    /// Forgets whoever is gone for long. Yields whether anybody was.
    pub fn sweep(&mut self, swim: &Swim, catalogue: &mut Catalogue, now: Moment) -> bool {
        let known: BTreeSet<u64> = swim.members().map(|member| member.id().id).collect();
        let mut is_changed = false;
        let mut forgotten = Vec::new();
        for (id, peer) in self.peers.iter().filter(|(_, peer)| !peer.is_active()) {
            let gone_for = peer.lasts(now);
            if gone_for >= DORMANT_AFTER {
                catalogue.set_dormant(id, true);
            }
            if gone_for >= FORGET_AFTER && catalogue.owner(id).is_some() {
                catalogue.forget(id);
                is_changed = true;
            }
            // SWIM forgets by a clock of its own; until then we remember that it is old.
            if gone_for >= FORGET_AFTER && !known.contains(&id) {
                forgotten.push(id);
            }
        }
        for id in forgotten {
            self.peers.remove(id);
            self.marks.remove(&id);
            self.down.remove(&id);
            self.differing.remove(&id);
        }
        is_changed
    }

    /// Whether others are still told of this one.
    pub fn is_told(&self, id: u64, now: Moment) -> bool {
        self.get(id).is_none_or(|peer| peer.is_told(now))
    }

    /// Everything known, as the snapshot wants it.
    pub fn mesh(&self, swim: &Swim, catalogue: &Catalogue, offers: &Offers) -> Mesh {
        let me = swim.me();
        let own = offers.node();
        let mut mesh = Mesh::default();
        mesh.nodes.push(Arc::new(Node {
            id: me.id,
            name: own.name.clone(),
            address: me.address,
            zone: own.zone.clone(),
            region: own.region.clone(),
            state: if own.left {
                NodeState::Left
            } else {
                NodeState::Alive
            },
            since: Moment::START,
            incarnation: 0,
        }));
        let taken: BTreeSet<_> = self.active().map(|(member, _)| member.address).collect();
        for (id, peer) in self.iter() {
            let Some(node) = catalogue.owner(id).and_then(|owner| owner.node.as_ref()) else {
                continue;
            };
            let Some(member) = peer.member else {
                continue;
            };
            // Somebody else lives at a dead node's address: it was started anew without its old id.
            if !peer.is_active()
                && (taken.contains(&member.address) || member.address == me.address)
            {
                continue;
            }
            mesh.nodes.push(Arc::new(Node {
                id,
                name: node.name.clone(),
                address: member.address,
                zone: node.zone.clone(),
                region: node.region.clone(),
                state: peer.state,
                since: peer.since,
                incarnation: peer.incarnation.into(),
            }));
        }
        let mut nodes: Vec<_> = mesh.nodes.iter().collect();
        nodes.sort_by_key(|node| node.id);
        let (mut instances, mut demands) = (Vec::new(), Vec::new());
        for node in nodes {
            let Some(owner) = catalogue.owner(node.id) else {
                continue;
            };
            let first = instances.len();
            for (_, entry) in owner.entries() {
                match &entry.content {
                    Content::Service(record) => instances.push(Instance {
                        node: node.clone(),
                        epoch: owner.epoch,
                        record: record.clone(),
                        version: entry.version,
                    }),
                    Content::Demand(record) => demands.push(Demand {
                        node: node.clone(),
                        record: record.clone(),
                    }),
                    Content::Node(_) | Content::Tombstone | Content::Unknown => {}
                }
            }
            instances[first..].sort_by(|a, b| {
                (&a.record.service, &a.record.instance)
                    .cmp(&(&b.record.service, &b.record.instance))
            });
        }
        // Nodes were gone through by id, and the sort is stable.
        demands.sort_by(|a, b| a.record.service.cmp(&b.record.service));
        (mesh.instances, mesh.demands) = (instances, demands);
        mesh
    }
}

/// What a node's own record says of its presence.
struct Said {
    epoch: u64,
    left: bool,
}

fn said(catalogue: &Catalogue, id: u64) -> Option<Said> {
    let owner = catalogue.owner(id)?;
    let left = owner.node.as_ref()?.left;
    Some(Said {
        epoch: owner.epoch,
        left,
    })
}
