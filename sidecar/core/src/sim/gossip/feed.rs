//! One real core among modelled peers: what a node of a large mesh needs, without simulating the whole mesh.
//!
//! Not here: whole meshes (`mod.rs`). The peers are modelled so: they answer every probe, agree with the core about
//! everything, hand it each change once, and tell it as many rumours as it tells them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use foca::{Codec, Header, Message};
use mesh_proto::{
    DATAGRAM_BYTES_MAX,
    codec::{MemberCodec, encode_record, items, put_item},
    frame::PAYLOAD_BYTES_MAX,
    member::Member,
    message::{Item, Standing},
    record::{Body, Head, InstanceState, NODE_SLOT, NodeRecord},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{address, id, service};
use crate::{
    membership::{Effect, Membership, Pace, Settings},
    moment::Moment,
};

/// Records of each modelled peer, its own included.
const RECORDS_EACH: usize = 10;

/// Bytes of a datagram's envelope.
const ENVELOPE: usize = DATAGRAM_BYTES_MAX - PAYLOAD_BYTES_MAX;

/// What a node of a large mesh came to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Fed {
    /// Peers it knows.
    pub members: usize,
    /// Records it holds.
    pub records: usize,
    /// Changes it was told.
    pub changes: usize,
    /// Changes it took over.
    pub news: u64,
    /// Bytes per second it sent, envelope included.
    pub sent_per_s: f64,
    /// Bytes per second it was sent.
    pub received_per_s: f64,
}

struct Peers {
    core: Membership,
    me: Member,
    rng: StdRng,
    sent: usize,
    received: usize,
    versions: BTreeMap<(usize, usize), u64>,
}

/// Feeds one core with `records` records, of which `churn` (a share) change per minute, for a span of virtual time.
///
/// `full` is called once everything is known and before anything changes: that is when memory is worth measuring.
pub fn feed(
    records: usize,
    churn: f64,
    span: Duration,
    seed: u64,
    full: impl FnOnce(&Membership),
) -> Fed {
    let count = records / RECORDS_EACH;
    let mut peers = Peers::new(count, seed);
    let start = Moment::from_millis(1_000);
    full(&peers.core);
    let news_before = peers.core.counts.news;
    let changes_per_s = records as f64 * churn / 60.0;
    let step = Duration::from_millis(10);
    let (mut due, mut changes, mut now) = (0.0, 0, start);
    while now.since(start) < span {
        now = now + step;
        due += changes_per_s * step.as_secs_f64();
        while due >= 1.0 {
            due -= 1.0;
            changes += 1;
            peers.change(count, now);
        }
        if now >= peers.core.next_timer() {
            peers.core.on_timer(now);
        }
        peers.answer(now);
    }
    let seconds = span.as_secs_f64();
    Fed {
        members: peers.core.peers().count(),
        records: peers.core.backlog().0,
        changes,
        news: peers.core.counts.news - news_before,
        sent_per_s: peers.sent as f64 / seconds,
        received_per_s: peers.received as f64 / seconds,
    }
}

impl Peers {
    fn new(count: usize, seed: u64) -> Peers {
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Moment::from_millis(1_000);
        let me = member(0);
        let settings = Settings {
            me,
            cluster: "prod".into(),
            name: "core".into(),
            zone: "a".into(),
            region: "r".into(),
            pace: Pace::FAST,
            has_seeds: true,
        };
        let mut core = Membership::new(settings, &mut rng, now);
        let standings: Vec<Standing> = (1..=count)
            .map(|index| Standing {
                member: member(index),
                incarnation: 0,
                state: foca::State::Alive,
                down_for_s: 0,
            })
            .collect();
        core.acquaint(&standings, &[], now);
        let mut peers = Peers {
            core,
            me,
            rng,
            sent: 0,
            received: 0,
            versions: BTreeMap::new(),
        };
        for owner in 1..=count {
            let told: Vec<Arc<[u8]>> = (0..RECORDS_EACH)
                .filter_map(|slot| peers.record(owner, slot))
                .collect();
            peers.core.acquaint(&[], &told, now);
        }
        while peers.core.poll().is_some() {}
        peers
    }

    /// The next version of one record.
    fn record(&mut self, owner: usize, slot: usize) -> Option<Arc<[u8]>> {
        let version = self.versions.entry((owner, slot)).or_insert(slot as u64);
        *version += RECORDS_EACH as u64;
        let head = Head {
            owner: id(owner),
            epoch: 1,
            slot: slot as u32,
            version: *version,
        };
        let body = if head.slot == NODE_SLOT {
            Body::Node(NodeRecord {
                name: format!("node-{owner}").into(),
                zone: "a".into(),
                region: "r".into(),
                wire_version: mesh_proto::WIRE_VERSION,
                left: false,
                floor: 0,
                keys: Box::default(),
            })
        } else {
            let mut record = service(owner, InstanceState::Up);
            record.service = format!("service-{slot}").into();
            record.weight = u16::try_from(1 + *version % 1_000).unwrap_or(1);
            Body::Service(record)
        };
        Some(encode_record(&head, &body).ok()?.into())
    }

    /// Somebody changes a record, and somebody tells the core.
    fn change(&mut self, count: usize, now: Moment) {
        let owner = 1 + self.rng.random_range(0..count);
        let slot = 1 + self.rng.random_range(0..RECORDS_EACH - 1);
        if let Some(record) = self.record(owner, slot) {
            self.tell(owner, &[Item::Record(&record)], now);
        }
    }

    fn tell(&mut self, from: usize, said: &[Item<'_>], now: Moment) {
        let mut payload = Vec::new();
        for item in said {
            // Everything said here came in a datagram or fits one.
            let _ = put_item(&mut payload, item);
        }
        self.received += payload.len() + ENVELOPE;
        self.core.on_datagram(&payload, id(from), now);
        // They know what the core knows now.
        let mut hash = Vec::new();
        let _ = put_item(&mut hash, &Item::Hash(self.core.hash()));
        self.received += hash.len();
        self.core.on_datagram(&hash, id(from), now);
    }

    /// Carries out what the core wants, and answers as its peers would.
    fn answer(&mut self, now: Moment) {
        while let Some(effect) = self.core.poll() {
            let Effect::Send { to, payload } = effect else {
                continue;
            };
            self.sent += payload.len() + ENVELOPE;
            let Some(peer) = (1..).find(|index| address(*index) == to) else {
                continue;
            };
            let mut answers = Vec::new();
            for item in items(&payload).flatten() {
                match item {
                    Item::Foca(packet) => answers.extend(self.pong(packet)),
                    // As many rumours come back as go out: every node is told as much as it tells.
                    Item::Record(bytes) => {
                        let by = peer % 1_000 + 1;
                        self.tell(by, &[Item::Record(bytes)], now);
                    }
                    _ => {}
                }
            }
            for packet in answers {
                self.tell(peer, &[Item::Foca(&packet)], now);
            }
        }
    }

    /// What a peer answers to a probe, and its own probe: every node is probed as often as it probes.
    fn pong(&self, packet: &[u8]) -> Vec<Vec<u8>> {
        let Ok(header) = MemberCodec.decode_header(packet) else {
            return Vec::new();
        };
        let Message::Ping(number) = header.message else {
            return Vec::new();
        };
        let messages = [Message::Ack(number), Message::Ping(number)];
        let packets = messages.into_iter().filter_map(|message| {
            let answer = Header {
                src: header.dst,
                src_incarnation: 0,
                dst: self.me,
                message,
            };
            let mut packet = Vec::new();
            MemberCodec.encode_header(&answer, &mut packet).ok()?;
            packet.extend_from_slice(&[0, 0]);
            Some(packet)
        });
        packets.collect()
    }
}

fn member(index: usize) -> Member {
    Member {
        id: id(index),
        address: address(index),
        bump: 1,
    }
}
