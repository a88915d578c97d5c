//! The fuzz targets without libFuzzer: the seed corpus, then mutations of it for a while.
//!
//! Not here: the targets (`mesh-proto/fuzz/targets.rs`) and the dice (`mesh-proto/fuzz/dice.rs`, which tells how long
//! each target is tried). `FUZZ_WRITE_CORPUS=1` writes the seed corpus anew.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use foca::{Codec, Header, Message, State};
use mesh_proto::{
    codec::{MemberCodec, encode_record, put_item},
    frame::{Call, Floor, KeyId, Sealer, boot},
    member::Member,
    message::{BUCKETS, Digest, Hello, Item, OwnerDigest, Purpose, Standing},
    record::{Body, Head, Health, InstanceState, NodeRecord, ServiceRecord, WireProtocol},
};

#[path = "../fuzz/dice.rs"]
mod dice;
#[path = "../fuzz/targets.rs"]
mod targets;

use dice::Target;

const TARGETS: [(&str, Target); 3] = [
    ("datagram", targets::datagram),
    ("record", targets::record),
    ("stream", targets::stream),
];

fn corpus(target: &str) -> PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    top.join("fuzz/corpus").join(target)
}

// ---- the seeds: one of everything that can be said ----

fn member(id: u64) -> Member {
    Member {
        id,
        address: ([10, 0, 0, 1], 7946).into(),
        bump: 0x0304,
    }
}

fn packets() -> Vec<(String, Vec<u8>)> {
    let (target, origin, probe_number) = (member(3), member(4), 9);
    let messages = [
        Message::Ping(9),
        Message::Ack(9),
        Message::PingReq {
            target,
            probe_number,
        },
        Message::IndirectPing {
            origin,
            probe_number,
        },
        Message::IndirectAck {
            target,
            probe_number,
        },
        Message::ForwardedAck {
            origin,
            probe_number,
        },
        Message::Announce,
        Message::Feed,
        Message::Gossip,
        Message::Broadcast,
        Message::TurnUndead,
    ];
    let packet = |message: Message<Member>| {
        let name = format!("{message:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default();
        let header = Header {
            src: member(1),
            src_incarnation: 2,
            dst: member(2),
            message: message.clone(),
        };
        let mut bytes = Vec::new();
        let mut codec = MemberCodec;
        codec.encode_header(&header, &mut bytes).expect("fits");
        for state in [State::Alive, State::Suspect, State::Down] {
            let member = foca::Member::new(member(5), 2, state);
            codec.encode_member(&member, &mut bytes).expect("fits");
        }
        (format!("foca_{}", name.to_lowercase()), bytes)
    };
    messages.map(packet).into()
}

fn records() -> Vec<(String, Vec<u8>)> {
    let head = Head {
        owner: 1,
        epoch: 2,
        slot: 3,
        version: 300,
    };
    let node = NodeRecord {
        name: "web-1".into(),
        zone: "eu-1a".into(),
        region: "eu-1".into(),
        wire_version: 1,
        left: true,
        floor: 300,
        keys: [KeyId([1, 2, 3, 4]), KeyId([5, 6, 7, 8])].into(),
    };
    let service = ServiceRecord {
        service: "web".into(),
        instance: "web-8080".into(),
        address: "[fd00::1]:8080".parse().expect("an address"),
        protocol: WireProtocol::Grpc,
        weight: 100,
        health: Health::Failing,
        state: InstanceState::Draining,
        started_at_ms: 1_700_000_000_000,
        capacity: Some(500),
        tags: [("version".into(), "2".into())].into(),
    };
    let bodies = [
        ("node", Body::Node(node)),
        ("service", Body::Service(service)),
        ("tombstone", Body::Tombstone),
    ];
    let record = |(name, body)| {
        let bytes = encode_record(&head, &body).expect("fits");
        (String::from(name), bytes)
    };
    let mut seeds: Vec<_> = bodies.map(record).into();
    let mut later = seeds[2].1.clone();
    later[0] = 99;
    later.extend_from_slice(b"of a later version");
    seeds.push(("later".into(), later));
    seeds
}

/// Everything that is no packet and no record.
fn words() -> Vec<(&'static str, Item<'static>)> {
    let hello = |purpose| {
        Item::Hello(Hello {
            cluster: "prod".into(),
            from: member(1),
            purpose,
        })
    };
    let digest = Digest {
        members: 5,
        buckets: std::array::from_fn::<_, BUCKETS, _>(|at| at as u64),
    };
    let standing = Standing {
        member: member(1),
        incarnation: 3,
        state: State::Down,
        down_for_s: 9,
    };
    let owner = OwnerDigest {
        id: 1,
        epoch: 2,
        hash: 3,
    };
    let floor = Floor {
        sender: 1,
        boot: 2,
        counter: 3,
    };
    vec![
        ("hash", Item::Hash(0x0102)),
        ("ask", Item::Ask),
        ("hello", hello(Purpose::Exchange)),
        ("probe", hello(Purpose::Probe)),
        ("welcome", Item::Welcome { from: member(1) }),
        (
            "refused",
            Item::Refused {
                cluster: "test".into(),
            },
        ),
        ("digest", Item::Digest(Box::new(digest))),
        ("standing", Item::Standing(standing)),
        ("buckets", Item::Buckets(6)),
        ("owner", Item::Owner(owner)),
        ("want", Item::Want(7)),
        ("floor", Item::Floor(floor)),
        ("end", Item::End),
    ]
}

fn said(items: &[Item<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        put_item(&mut bytes, item).expect("fits");
    }
    bytes
}

/// The seeds of each target, by file name.
fn seeds() -> BTreeMap<(&'static str, String), Vec<u8>> {
    let mut seeds = BTreeMap::new();
    let (packets, records, words) = (packets(), records(), words());
    for (name, packet) in &packets {
        let heard = [Item::Hash(1), Item::Foca(packet)];
        seeds.insert(("datagram", name.clone()), said(&heard));
    }
    for (name, record) in &records {
        seeds.insert(("record", name.clone()), record.clone());
        for target in ["datagram", "stream"] {
            let name = format!("record_{name}");
            seeds.insert((target, name), said(&[Item::Record(record), Item::End]));
        }
    }
    for (name, item) in words {
        seeds.insert(("stream", name.into()), said(&[item]));
    }
    let payload = said(&[Item::Hash(1), Item::Foca(&packets[0].1)]);
    for (name, sealed) in [("sealed", true), ("clear", false)] {
        let mut sealer = Sealer::new(targets::ring(sealed), 1, boot(5, 6));
        let datagram = sealer.seal(&payload).expect("fits");
        seeds.insert(("datagram", format!("wire_{name}")), datagram);
        let (_, call) = Call::start(&targets::ring(sealed), [3; 32], &payload).expect("fits");
        // The hello's length stands between the two; the target takes preamble and hello.
        let stream = [&call[..35], &call[39..]].concat();
        seeds.insert(("stream", format!("wire_{name}")), stream);
    }
    seeds
}

#[test]
fn the_corpus_holds_one_of_everything_that_is_said() {
    let write = std::env::var_os("FUZZ_WRITE_CORPUS").is_some();
    for ((target, name), bytes) in seeds() {
        let path = corpus(target).join(&name);
        if write {
            fs::create_dir_all(corpus(target)).expect("the source can be written");
            fs::write(&path, &bytes).expect("the source can be written");
        }
        assert!(
            fs::read(&path).is_ok_and(|held| held == bytes),
            "{} is not what is said today; FUZZ_WRITE_CORPUS=1 writes it anew, and think of the sidecars that run already",
            path.display()
        );
    }
}

#[test]
fn nothing_that_others_may_send_is_more_than_refused() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    dice::try_all(&TARGETS, &top.join("fuzz/corpus"));
}
