//! What the gossip task does about sealing: keys as they are ordered, and the counters that newcomers must know.
//!
//! Not here: which order is allowed (`../keys.rs`), and the seal itself (`mesh_proto::frame`).

use std::{path::Path, sync::Arc};

use mesh_core::{
    membership::{CallId, Change},
    mesh::NodeState,
};
use mesh_proto::{
    FRAME_BYTES_MAX,
    codec::{items, put_item},
    frame::{Floor, KeyId, KeyRing},
    member::Member,
    message::{Item, Purpose},
    session::SessionKeys,
};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::Agent;
use crate::{
    config::GossipKey,
    gossip::keys::{Holder, KeyAnswer, KeyFault, KeyOrder, KeyRow, KeyStatus},
};

/// The ring of these keys.
pub(super) fn ring(keys: &[GossipKey], cluster: &str) -> KeyRing {
    KeyRing::new(keys.iter().map(|key| key.0), cluster)
}

/// What cookies of sessions are made with while these keys are in force.
pub(super) fn session_keys(keys: &[GossipKey]) -> Arc<SessionKeys> {
    Arc::new(SessionKeys::new(keys.iter().map(|key| key.0)))
}

impl Agent {
    /// Takes over the configuration's keys.
    pub(super) fn on_keys(&mut self, configured: Vec<GossipKey>) {
        self.keys.configure(configured);
        self.take_keys();
        let keys = self.keys.clone();
        if let Some(directory) = self.state.directory().map(Path::to_owned) {
            self.tasks.spawn_blocking(move || {
                if let Err(error) = keys.keep(&directory) {
                    warn!(path = %directory.display(), %error, "the gossip keys in force were not kept");
                }
            });
        }
    }

    /// Seals and opens with the keys now in force, and tells the others which they are.
    fn take_keys(&mut self) {
        self.ring = ring(self.keys.ring(), &self.cluster);
        self.sealer.replace(self.ring.clone());
        self.opener.replace(self.ring.clone());
        self.key_use.show(self.ring.ids());
        self.session_keys
            .send_replace(session_keys(self.keys.ring()));
        let change = Change::Keys(self.keys.ids());
        self.membership.on_local_change(change, self.clock.now());
    }

    pub(super) fn on_key_order(
        &mut self,
        order: KeyOrder,
        done: oneshot::Sender<Result<KeyAnswer, KeyFault>>,
    ) {
        let others = self.holders();
        let before = self.keys.ids();
        let carried_out = self.keys.order(order, &others);
        // Whoever asked may have gone.
        let said = match carried_out {
            Ok(said) => said,
            Err(fault) => return drop(done.send(Err(fault))),
        };
        let is_changed = before != self.keys.ids();
        if is_changed {
            self.take_keys();
            info!(ring = ?self.keys.ids().iter().map(KeyId::to_string).collect::<Vec<_>>(), "{said}");
        }
        let mut answer = KeyAnswer {
            done: said,
            status: self.key_status(others),
            not_kept: None,
        };
        let (keys, directory) = (
            self.keys.clone(),
            self.state.directory().map(Path::to_owned),
        );
        self.tasks.spawn_blocking(move || {
            answer.not_kept = match directory {
                _ if !is_changed => None,
                None => Some("there is no node.state_dir".into()),
                Some(directory) => (keys.keep(&directory).err())
                    .map(|error| format!("{}: {error}", directory.display())),
            };
            drop(done.send(Ok(answer)));
        });
    }

    /// The other nodes and the keys they tell of.
    fn holders(&self) -> Vec<Holder> {
        let peers = self.membership.peers();
        let holder = |(member, state): (Member, NodeState)| {
            let record = self.membership.record_of(member.id);
            Holder {
                node: record.map_or_else(
                    || format!("{:016x}", member.id),
                    |record| record.name.to_string(),
                ),
                state,
                keys: record
                    .map(|record| record.keys.clone())
                    .filter(|keys| !keys.is_empty()),
            }
        };
        peers.map(holder).collect()
    }

    fn key_status(&self, others: Vec<Holder>) -> KeyStatus {
        let ring = self.keys.ids();
        let row = |id: KeyId| {
            let counts = self.key_use.counts().find(|(key, ..)| *key == id);
            let (_, sealed, opened) = counts.unwrap_or((id, 0, 0));
            KeyRow {
                id,
                held: ring.contains(&id),
                seals: ring.first() == Some(&id),
                configured: self.keys.is_configured(id),
                sealed,
                opened,
            }
        };
        let gone = self.key_use.counts().map(|(id, ..)| id);
        let gone = gone.filter(|id| !ring.contains(id));
        KeyStatus {
            keys: ring.iter().copied().chain(gone).map(row).collect(),
            ordered: self.keys.is_ordered(),
            others,
        }
    }

    // ---- counters ----

    /// Tells a newcomer how far everybody's counters have come, behind whatever the call says by itself: datagrams
    /// older than that are replays, which it could not know.
    pub(super) fn tell_floors(&mut self, call: CallId, hello: &[u8]) {
        let Some(Ok(Item::Hello(hello))) = items(hello).next() else {
            return;
        };
        let is_known = (self.membership.peers())
            .any(|(member, state)| member == hello.from && state != NodeState::Left);
        if hello.purpose != Purpose::Exchange || is_known || self.ring.is_clear() {
            return;
        }
        // First the members, so that nobody is forgotten again for not being one.
        self.carry_out();
        let Some(frames) = self.calls.get(&call) else {
            return;
        };
        let own = self.sealer.floor();
        let others = self
            .opener
            .floors()
            .filter(|floor| floor.sender != hello.from.id);
        for payload in frames_of([own].into_iter().chain(others)) {
            if frames.try_send(payload).is_err() {
                // Full or over: what is left unsaid can be replayed to it, once, and tells it nothing new.
                return;
            }
        }
    }

    /// Takes what a peer says of counters.
    pub(super) fn take_floors(&mut self, payload: &[u8]) {
        let me = self.membership.me().id;
        for item in items(payload) {
            if let Ok(Item::Floor(floor)) = item
                && floor.sender != me
            {
                self.opener.raise(&floor);
            }
        }
    }
}

/// Floors in as many frames as they take.
fn frames_of(floors: impl Iterator<Item = Floor>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut payload = Vec::new();
    for floor in floors {
        let before = payload.len();
        // Far below the bound of an item.
        let _ = put_item(&mut payload, &Item::Floor(floor));
        if payload.len() > FRAME_BYTES_MAX {
            let rest = payload.split_off(before);
            frames.push(std::mem::replace(&mut payload, rest));
        }
    }
    frames.push(payload);
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_proto::frame::SENDERS_MAX;

    #[test]
    fn floors_of_a_full_table_fit_into_frames_and_none_is_lost() {
        let floors = || {
            (0..SENDERS_MAX as u64).map(|sender| Floor {
                sender,
                boot: 7,
                counter: sender + 1,
            })
        };
        let frames = frames_of(floors());
        assert!(frames.iter().all(|frame| frame.len() <= FRAME_BYTES_MAX));
        let told: Vec<_> = frames.iter().flat_map(|frame| items(frame)).collect();
        let expected: Vec<_> = floors().map(|floor| Ok(Item::Floor(floor))).collect();
        assert!(told == expected);
    }
}
