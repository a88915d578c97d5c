//! What is known of each other node, and the [`Mesh`] made of it.
//!
//! Not here: how it is found out (`swim.rs`, `exchange.rs`) and the records themselves (`catalogue.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mesh_proto::member::Member;
use rand::{Rng, seq::IteratorRandom};

use super::{
    offers::Offers,
    swim::{FORGET_AFTER, Swim},
};
use crate::{
    catalogue::{Catalogue, Content},
    mesh::{Demand, Instance, Mesh, Node, NodeState},
    moment::Moment,
};

/// An owner dead for so long is not told to others any more, so that nobody hands it back to one who forgot it.
const DORMANT_AFTER: Duration = FORGET_AFTER.saturating_sub(Duration::from_secs(3_600));

/// One other node.
#[derive(Clone, Debug)]
pub struct Peer {
    /// As SWIM knows it; `None` while only records of it are known.
    pub member: Option<Member>,
    /// SWIM incarnation.
    pub incarnation: u16,
    /// How it is, goodbyes included.
    pub state: NodeState,
    /// Since when.
    pub since: Moment,
    /// How long it had been so when we learned it, where others said so.
    pub before: Duration,
    /// Its catalogue differs from ours since then.
    pub differs: Option<Moment>,
    /// It was asked whether it still differs.
    pub asked: bool,
    /// The last exchange that we began with it.
    pub exchanged: Option<Moment>,
    /// What a stream to it came to while we heard nothing.
    pub evidence: Option<Evidence>,
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
            state: NodeState::Down,
            since: now,
            before: Duration::ZERO,
            differs: None,
            asked: false,
            exchanged: None,
            evidence: None,
            goodbye: None,
        }
    }

    /// Whether `member` said goodbye, by what the catalogue has of its node now or had earlier.
    fn has_left(&mut self, member: Member, said: Option<Said>) -> bool {
        if let Some(Said { epoch, left }) = said {
            let is_known = self.goodbye.is_some_and(|goodbye| goodbye.epoch == epoch);
            match (left, is_known) {
                (true, false) => self.goodbye = Some(Goodbye { epoch, member }),
                (true, true) => {}
                // A goodbye outlives the record that said it, but not the records of its node's next start.
                (false, _) => self.goodbye = self.goodbye.filter(|goodbye| goodbye.epoch > epoch),
            }
        }
        self.goodbye.is_some_and(|goodbye| goodbye.member == member)
    }

    /// How long it has been as it is.
    pub fn lasts(&self, now: Moment) -> Duration {
        self.before + now.since(self.since)
    }

    /// Whether SWIM counts it among the living.
    pub fn is_active(&self) -> bool {
        matches!(self.state, NodeState::Alive | NodeState::Suspect)
    }
}

/// All other nodes, by id.
#[derive(Debug, Default)]
pub struct Peers {
    peers: BTreeMap<u64, Peer>,
}

impl Peers {
    /// One of them.
    pub fn get(&self, id: u64) -> Option<&Peer> {
        self.peers.get(&id)
    }

    /// One of them, to note something.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Peer> {
        self.peers.get_mut(&id)
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
        let living = self.peers.values().filter(|peer| peer.is_active());
        living.filter_map(|peer| Some((peer.member?, peer)))
    }

    /// Some of the living, drawn evenly.
    pub fn some_active(&self, count: usize, rng: &mut impl Rng) -> Vec<Member> {
        self.active().map(|(member, _)| member).sample(rng, count)
    }

    /// Takes over what SWIM and the records say. Yields those whose state changed.
    pub fn refresh(
        &mut self,
        swim: &Swim,
        catalogue: &Catalogue,
        me: u64,
        now: Moment,
    ) -> Vec<(u64, NodeState)> {
        let mut changed = Vec::new();
        let mut seen = BTreeSet::new();
        for known in swim.members() {
            let id = known.id().id;
            seen.insert(id);
            let peer = self.peers.entry(id).or_insert_with(|| Peer::new(now));
            let state = match known.state() {
                _ if peer.has_left(*known.id(), said(catalogue, id)) => NodeState::Left,
                foca::State::Alive => NodeState::Alive,
                foca::State::Suspect => NodeState::Suspect,
                foca::State::Down => NodeState::Down,
            };
            if peer.state != state || peer.member.is_none() {
                peer.state = state;
                peer.since = now;
                peer.before = Duration::ZERO;
                changed.push((id, state));
            }
            peer.member = Some(*known.id());
            peer.incarnation = known.incarnation();
        }
        // Records alone make nobody alive: a node is told of once SWIM knows it.
        for (id, _) in catalogue.owners() {
            if id != me && !seen.contains(&id) {
                self.peers.entry(id).or_insert_with(|| Peer::new(now));
            }
        }
        changed
    }

    /// Forgets whoever is gone for long. Yields whether anybody was.
    pub fn sweep(&mut self, swim: &Swim, catalogue: &mut Catalogue, now: Moment) -> bool {
        let known: BTreeSet<u64> = swim.members().map(|member| member.id().id).collect();
        let mut is_changed = false;
        self.peers.retain(|id, peer| {
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
            gone_for < FORGET_AFTER || known.contains(id)
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
