//! What is known of each other node, and the [`Mesh`] made of it.
//!
//! Not here: how it is found out (`swim.rs`, `exchange.rs`) and the records themselves (`catalogue.rs`).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use foca::Identity;
use mesh_proto::member::Member;
use rand::{Rng, RngExt, seq::IteratorRandom};

use super::{
    offers::Offers,
    swim::{FORGET_AFTER, Swim},
};
use crate::{
    catalogue::{Catalogue, Content, OWNERS_MAX, mix},
    mesh::{Demand, Instance, Mesh, Node, NodeState},
    moment::Moment,
};

/// An owner dead for so long is not told to others any more, so that nobody hands it back to one who forgot it.
const DORMANT_AFTER: Duration = FORGET_AFTER.saturating_sub(Duration::from_secs(3_600));

/// Members remembered, dead ones included: whoever holds the key may invent some.
pub const MEMBERS_MAX: usize = OWNERS_MAX;

/// One other node.
///
/// There may be ten thousand of them, so what only a few have is kept apart.
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
    /// It was asked whether it still differs.
    pub asked: bool,
    /// What a stream to it came to while we heard nothing.
    pub evidence: Option<Evidence>,
    /// How long it had been so when we learned it, where others said so, in seconds.
    pub before_s: u32,
    /// Since when.
    pub since: Moment,
    rare: Option<Box<Rare>>,
}

/// What is known of few.
#[derive(Clone, Default, Debug)]
struct Rare {
    differs: Option<Moment>,
    exchanged: Option<Moment>,
    /// The last goodbye heard.
    goodbye: Option<Goodbye>,
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
            asked: false,
            evidence: None,
            before_s: 0,
            since: now,
            rare: None,
        }
    }

    /// Whether `member` said goodbye, by what the catalogue has of its node now or had earlier.
    fn has_left(&mut self, member: Member, said: Option<Said>) -> bool {
        let goodbye = self.rare.as_ref().and_then(|rare| rare.goodbye);
        if let Some(Said { epoch, left }) = said {
            let is_known = goodbye.is_some_and(|goodbye| goodbye.epoch == epoch);
            match (left, is_known, goodbye) {
                (true, false, _) => self.rare().goodbye = Some(Goodbye { epoch, member }),
                // A goodbye outlives the record that said it, but not the records of its node's next start.
                (false, _, Some(goodbye)) if goodbye.epoch <= epoch => self.rare().goodbye = None,
                _ => {}
            }
        }
        let goodbye = self.rare.as_ref().and_then(|rare| rare.goodbye);
        goodbye.is_some_and(|goodbye| goodbye.member == member)
    }

    /// How long it has been as it is.
    pub fn lasts(&self, now: Moment) -> Duration {
        Duration::from_secs(self.before_s.into()) + now.since(self.since)
    }

    /// Whether SWIM counts it among the living.
    pub fn is_active(&self) -> bool {
        matches!(self.state, NodeState::Alive | NodeState::Suspect)
    }

    /// The last exchange that we began with it.
    pub fn exchanged(&self) -> Option<Moment> {
        self.rare.as_ref()?.exchanged
    }

    /// Its catalogue differs from ours since then.
    pub fn differs(&self) -> Option<Moment> {
        self.rare.as_ref()?.differs
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
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
#[derive(Debug, Default)]
pub struct Peers {
    /// Sorted by id: a place is found in few steps, and drawn by dice in one.
    peers: Vec<(u64, Peer)>,
    active: usize,
    suspects: BTreeSet<u64>,
    down: BTreeSet<u64>,
    differing: BTreeSet<u64>,
    living_hash: u64,
}

impl Peers {
    fn place(&self, id: u64) -> Result<usize, usize> {
        self.peers.binary_search_by_key(&id, |(id, _)| *id)
    }

    /// One of them.
    pub fn get(&self, id: u64) -> Option<&Peer> {
        self.place(id).ok().map(|at| &self.peers[at].1)
    }

    /// One of them, to note something.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Peer> {
        self.place(id).ok().map(|at| &mut self.peers[at].1)
    }

    /// Gives back memory kept for more.
    pub fn shrink(&mut self) {
        self.peers.shrink_to_fit();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Peer)> {
        self.peers.iter().map(|(id, peer)| (*id, peer))
    }

    /// All, to note something.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Peer)> {
        self.peers.iter_mut().map(|(id, peer)| (*id, peer))
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

    /// Notes since when a peer's catalogue differs, or that it does not.
    pub fn set_differs(&mut self, id: u64, differs: Option<Moment>) {
        let Ok(at) = self.place(id) else {
            return;
        };
        let peer = &mut self.peers[at].1;
        if differs.is_some() {
            self.differing.insert(id);
            peer.rare().differs = differs;
        } else if self.differing.remove(&id) {
            peer.rare().differs = None;
            peer.asked = false;
        }
    }

    /// Notes an exchange that we begin.
    pub fn set_exchanged(&mut self, id: u64, now: Moment) {
        if let Some(peer) = self.get_mut(id) {
            peer.rare().exchanged = Some(now);
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
            let (_, peer) = &self.peers[rng.random_range(0..self.peers.len())];
            match peer.member {
                Some(member) if peer.is_active() && !drawn.contains(&member) => drawn.push(member),
                _ => {}
            }
        }
        drawn
    }

    /// Takes over what SWIM and the records say of some nodes. Yields those whose state changed.
    pub fn refresh(
        &mut self,
        ids: &mut Vec<u64>,
        swim: &Swim,
        catalogue: &Catalogue,
        now: Moment,
    ) -> Vec<(u64, NodeState)> {
        let me = swim.me().id;
        ids.sort_unstable();
        ids.dedup();
        let mut changed = Vec::new();
        for known in swim.members_of(ids) {
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
            if let Err(at) = self.place(id)
                && id != me
                && catalogue.owner(id).is_some()
            {
                self.peers.insert(at, (id, Peer::new(now)));
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
        let at = self.place(id).unwrap_or_else(|at| {
            self.peers.insert(at, (id, Peer::new(now)));
            at
        });
        let peer = &mut self.peers[at].1;
        self.living_hash = self.living_hash.wrapping_sub(peer.hash());
        self.active -= usize::from(peer.is_active() && peer.member.is_some());
        let state = match known.state() {
            _ if peer.has_left(*known.id(), said) => NodeState::Left,
            foca::State::Alive => NodeState::Alive,
            foca::State::Suspect => NodeState::Suspect,
            foca::State::Down => NodeState::Down,
        };
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

    /// Forgets whoever is gone for long. Yields whether anybody was.
    pub fn sweep(&mut self, swim: &Swim, catalogue: &mut Catalogue, now: Moment) -> bool {
        let known: BTreeSet<u64> = swim.members().map(|member| member.id().id).collect();
        let mut is_changed = false;
        self.peers.retain(|(id, peer)| {
            if peer.is_active() {
                return true;
            }
            let gone_for = peer.lasts(now);
            if gone_for >= DORMANT_AFTER {
                catalogue.set_dormant(*id, true);
            }
            if gone_for >= FORGET_AFTER && catalogue.owner(*id).is_some() {
                catalogue.forget(*id);
                is_changed = true;
            }
            // SWIM forgets by a clock of its own; until then we remember that it is old.
            let is_kept = gone_for < FORGET_AFTER || known.contains(id);
            if !is_kept {
                self.down.remove(id);
                self.differing.remove(id);
            }
            is_kept
        });
        is_changed
    }

    /// Whether others are still told of this one.
    pub fn is_told(&self, id: u64, now: Moment) -> bool {
        self.get(id)
            .is_none_or(|peer| peer.is_active() || peer.lasts(now) < DORMANT_AFTER)
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
