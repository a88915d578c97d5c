use std::net::IpAddr;

use foca::{Codec, Header, Message, State};
use proptest::prelude::*;

use super::*;
use crate::{
    RECORD_BYTES_MAX,
    frame::{Floor, KeyId},
    member::Member,
    message::{Digest, Hello, Item, OwnerDigest, Purpose, Standing},
    record::{
        Body, DemandRecord, Head, Health, InstanceState, NodeRecord, ServiceRecord, WireProtocol,
    },
};

fn member() -> impl Strategy<Value = Member> {
    (any::<u64>(), any::<IpAddr>(), any::<u16>(), any::<u64>()).prop_map(|(id, ip, port, bump)| {
        Member {
            id,
            address: (ip, port).into(),
            bump,
        }
    })
}

fn service() -> impl Strategy<Value = ServiceRecord> {
    let names = ("[a-z]{1,20}", "[a-z0-9-]{0,20}");
    let tags = proptest::collection::btree_map("[a-z]{1,8}", "[a-z0-9.]{0,12}", 0..4);
    (
        names,
        any::<IpAddr>(),
        1u16..,
        any::<Option<u32>>(),
        tags,
        0u8..3,
        0u8..3,
        0u8..3,
    )
        .prop_map(
            |((service, instance), ip, weight, capacity, tags, protocol, health, state)| {
                ServiceRecord {
                    service: service.into(),
                    instance: instance.into(),
                    address: (ip, 80).into(),
                    protocol: [WireProtocol::Http, WireProtocol::Grpc, WireProtocol::Tcp]
                        [usize::from(protocol)],
                    weight,
                    health: [Health::Passing, Health::Warning, Health::Failing]
                        [usize::from(health)],
                    state: [
                        InstanceState::Warming,
                        InstanceState::Up,
                        InstanceState::Draining,
                    ][usize::from(state)],
                    started_at_ms: 5,
                    capacity,
                    tags: tags
                        .into_iter()
                        .map(|(k, v)| (k.into(), v.into()))
                        .collect(),
                }
            },
        )
}

fn head() -> impl Strategy<Value = Head> {
    any::<(u64, u64, u32, u64)>().prop_map(|(owner, epoch, slot, version)| Head {
        owner,
        epoch,
        slot,
        version,
    })
}

fn message() -> impl Strategy<Value = Message<Member>> {
    prop_oneof![
        any::<u8>().prop_map(Message::Ping),
        any::<u8>().prop_map(Message::Ack),
        (member(), any::<u8>()).prop_map(|(target, probe_number)| Message::PingReq {
            target,
            probe_number
        }),
        (member(), any::<u8>()).prop_map(|(origin, probe_number)| Message::IndirectPing {
            origin,
            probe_number
        }),
        (member(), any::<u8>()).prop_map(|(target, probe_number)| Message::IndirectAck {
            target,
            probe_number
        }),
        (member(), any::<u8>()).prop_map(|(origin, probe_number)| Message::ForwardedAck {
            origin,
            probe_number
        }),
        Just(Message::Announce),
        Just(Message::Feed),
        Just(Message::Gossip),
        Just(Message::Broadcast),
        Just(Message::TurnUndead),
    ]
}

proptest! {
    #[test]
    fn headers_and_members_survive_the_trip(src in member(), dst in member(), message in message(), incarnation: u16) {
        let header = Header { src, src_incarnation: incarnation, dst, message };
        let mut bytes = Vec::new();
        MemberCodec.encode_header(&header, &mut bytes).expect("fits");
        let standing = foca::Member::new(src, incarnation, State::Suspect);
        MemberCodec.encode_member(&standing, &mut bytes).expect("fits");
        let mut rest = &bytes[..];
        prop_assert_eq!(MemberCodec.decode_header(&mut rest).expect("ours"), header);
        prop_assert_eq!(MemberCodec.decode_member(&mut rest).expect("ours"), standing);
        prop_assert!(rest.is_empty());
        for cut in 0..bytes.len() {
            let mut rest = &bytes[..cut];
            if MemberCodec.decode_header(&mut rest).is_ok() {
                prop_assert!(MemberCodec.decode_member(&mut rest).is_err());
            }
        }
    }

    #[test]
    fn a_record_survives_the_trip(head in head(), service in service()) {
        let body = Body::Service(service);
        let bytes = encode_record(&head, &body).expect("fits");
        prop_assert_eq!(decode_record(&bytes), Ok((head, body)));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
        let _ = decode_record(&bytes);
        prop_assert!(items(&bytes).count() <= bytes.len());
        let _ = MemberCodec.decode_header(&bytes[..]);
        let _ = MemberCodec.decode_member(&bytes[..]);
    }

    #[test]
    fn items_survive_the_trip(member in member(), set: u64, owner in any::<(u64, u64, u64)>()) {
        let said = [
            Item::Hash(set),
            Item::Ask,
            Item::Foca(b"foca"),
            Item::Record(b"record"),
            Item::Hello(Hello { cluster: "prod".into(), from: member, purpose: Purpose::Probe }),
            Item::Welcome { from: member },
            Item::Refused { cluster: "test".into() },
            Item::Digest(Box::new(Digest { members: set, buckets: std::array::from_fn(|i| i as u64) })),
            Item::Standing(Standing { member, incarnation: 3, state: State::Down, down_for_s: 9 }),
            Item::Buckets(set),
            Item::Owner(OwnerDigest { id: owner.0, epoch: owner.1, hash: owner.2 }),
            Item::Want(set),
            Item::Floor(Floor { sender: owner.0, boot: u128::from(owner.1) << 64 | 7, counter: owner.2 }),
            Item::End,
        ];
        let mut bytes = Vec::new();
        for item in &said {
            put_item(&mut bytes, item).expect("fits");
            // An item of a later version in between is skipped.
            bytes.extend_from_slice(&[200, 0, 2, 1, 2]);
        }
        let heard: Result<Vec<_>, _> = items(&bytes).collect();
        prop_assert_eq!(heard.expect("ours"), said);
    }
}

const HEAD: Head = Head {
    owner: 1,
    epoch: 2,
    slot: 3,
    version: 4,
};

#[test]
fn a_member_is_written_whole_or_not_at_all() {
    let standing = foca::Member::alive(Member {
        id: 1,
        address: ([10, 0, 0, 1], 7946).into(),
        bump: 1,
    });
    let mut room = [0u8; 6];
    let mut buf = &mut room[..];
    assert!(MemberCodec.encode_member(&standing, &mut buf).is_err());
    assert_eq!(buf.len(), 6);
}

#[test]
fn fields_and_values_of_a_newer_version_do_not_break_a_record() {
    let node = NodeRecord {
        name: "web-1".into(),
        zone: "a".into(),
        region: "r".into(),
        wire_version: 1,
        left: false,
        floor: 0,
        keys: Box::default(),
    };
    let mut bytes = encode_record(&HEAD, &Body::Node(node.clone())).expect("fits");
    bytes.extend_from_slice(b"a later field");
    assert_eq!(decode_record(&bytes), Ok((HEAD, Body::Node(node))));
    bytes[0] = 99;
    assert_eq!(decode_record(&bytes), Ok((HEAD, Body::Unknown)));
}

#[test]
fn a_record_over_the_bound_is_refused() {
    let tags = (0..60).map(|n| (format!("key{n}").into(), "value".into()));
    let record = ServiceRecord {
        service: "web".into(),
        instance: "web-1".into(),
        address: ([10, 0, 0, 1], 80).into(),
        protocol: WireProtocol::Http,
        weight: 100,
        health: Health::Passing,
        state: InstanceState::Up,
        started_at_ms: 0,
        capacity: None,
        tags: tags.collect(),
    };
    assert_eq!(
        encode_record(&HEAD, &Body::Service(record)),
        Err(CodecError::TooLong)
    );
    assert_eq!(
        decode_record(&[1; RECORD_BYTES_MAX + 1]),
        Err(CodecError::Malformed)
    );
}

#[test]
fn a_node_tells_its_keys_and_an_early_one_told_none() {
    let node = NodeRecord {
        name: "web-1".into(),
        zone: "a".into(),
        region: "r".into(),
        wire_version: 1,
        left: false,
        floor: 0,
        keys: [KeyId([1; 4]), KeyId([2; 4])].into(),
    };
    let bytes = encode_record(&HEAD, &Body::Node(node.clone())).expect("fits");
    assert_eq!(decode_record(&bytes), Ok((HEAD, Body::Node(node.clone()))));
    let early = &bytes[..bytes.len() - 9];
    let keyless = NodeRecord {
        keys: Box::default(),
        ..node
    };
    assert_eq!(decode_record(early), Ok((HEAD, Body::Node(keyless))));
}

// ---- two wire versions mixed ----

/// One of each, with its fields far from zero.
fn every_item() -> [Item<'static>; 14] {
    let member = Member {
        id: 0x0102,
        address: ([10, 0, 0, 1], 7946).into(),
        bump: 0x0304,
    };
    [
        Item::Hash(0x0102),
        Item::Ask,
        Item::Foca(b"foca"),
        Item::Record(b"record"),
        Item::Hello(Hello {
            cluster: "prod".into(),
            from: member,
            purpose: Purpose::Probe,
        }),
        Item::Welcome { from: member },
        Item::Refused {
            cluster: "test".into(),
        },
        Item::Digest(Box::new(Digest {
            members: 5,
            buckets: std::array::from_fn(|at| at as u64),
        })),
        Item::Standing(Standing {
            member,
            incarnation: 3,
            state: State::Down,
            down_for_s: 9,
        }),
        Item::Buckets(6),
        Item::Owner(OwnerDigest {
            id: 1,
            epoch: 2,
            hash: 3,
        }),
        Item::Want(7),
        Item::Floor(Floor {
            sender: 1,
            boot: 2,
            counter: 3,
        }),
        Item::End,
    ]
}

#[test]
fn a_longer_body_of_a_newer_version_is_read_as_far_as_it_is_known() {
    for item in every_item() {
        // What these carry is handed on as it is; its own reader skips the end of it.
        if matches!(item, Item::Foca(_) | Item::Record(_)) {
            continue;
        }
        let mut bytes = Vec::new();
        put_item(&mut bytes, &item).expect("fits");
        let length = u16::from_be_bytes([bytes[1], bytes[2]]) + 5;
        bytes[1..3].copy_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(b"later");
        put_item(&mut bytes, &Item::Ask).expect("fits");
        let heard: Result<Vec<_>, _> = items(&bytes).collect();
        assert_eq!(heard.expect("readable"), [item, Item::Ask]);
    }
}

#[test]
fn a_longer_header_or_member_of_a_newer_version_does_not_spoil_the_packet() {
    let member = |id| Member {
        id,
        address: ([10, 0, 0, 1], 7946).into(),
        bump: 1,
    };
    let header = Header {
        src: member(1),
        src_incarnation: 2,
        dst: member(3),
        message: Message::Gossip,
    };
    let mut packet = Vec::new();
    MemberCodec
        .encode_header(&header, &mut packet)
        .expect("fits");
    packet[0] += 5;
    packet.extend_from_slice(b"later");
    let standings = [
        foca::Member::alive(member(4)),
        foca::Member::down(member(5)),
    ];
    for standing in &standings {
        let at = packet.len();
        MemberCodec
            .encode_member(standing, &mut packet)
            .expect("fits");
        packet[at] += 5;
        packet.extend_from_slice(b"later");
    }
    let mut rest = &packet[..];
    assert_eq!(MemberCodec.decode_header(&mut rest), Ok(header));
    for standing in standings {
        assert_eq!(MemberCodec.decode_member(&mut rest), Ok(standing));
    }
    assert!(rest.is_empty());
}

#[test]
fn every_truncated_item_is_told_and_nothing_after_it_is_read() {
    for item in every_item() {
        let mut bytes = Vec::new();
        put_item(&mut bytes, &item).expect("fits");
        for cut in 1..bytes.len() {
            let heard: Vec<_> = items(&bytes[..cut]).collect();
            assert_eq!(heard, [Err(CodecError::Malformed)], "{item:?} cut at {cut}");
        }
    }
}

#[test]
fn an_item_over_what_its_length_can_say_is_not_written() {
    let mut out = Vec::new();
    let long = vec![0; usize::from(u16::MAX) + 1];
    assert_eq!(
        put_item(&mut out, &Item::Record(&long)),
        Err(CodecError::TooLong)
    );
    assert!(out.is_empty());
    put_item(&mut out, &Item::Record(&long[1..])).expect("fits");
}

// ---- the bytes of wire version 1: a change here shuts out every sidecar that runs already ----

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_of_the_items_of_version_one_stay() {
    let golden = [
        "0200080000000000000102",
        "030000",
        "010004666f6361",
        "0400067265636f7264",
        "1000140470726f64fb0102000a000001fb1f0afb030401",
        "11000efb0102000a000001fb1f0afb0304",
        "1200050474657374",
        "13020800000000000000050000000000000000000000000000000100000000000000020000000000000003000000000000000400000000000000050000000000000006000000000000000700000000000000080000000000000009000000000000000a000000000000000b000000000000000c000000000000000d000000000000000e000000000000000f0000000000000010000000000000001100000000000000120000000000000013000000000000001400000000000000150000000000000016000000000000001700000000000000180000000000000019000000000000001a000000000000001b000000000000001c000000000000001d000000000000001e000000000000001f0000000000000020000000000000002100000000000000220000000000000023000000000000002400000000000000250000000000000026000000000000002700000000000000280000000000000029000000000000002a000000000000002b000000000000002c000000000000002d000000000000002e000000000000002f0000000000000030000000000000003100000000000000320000000000000033000000000000003400000000000000350000000000000036000000000000003700000000000000380000000000000039000000000000003a000000000000003b000000000000003c000000000000003d000000000000003e000000000000003f",
        "140011fb0102000a000001fb1f0afb0304030209",
        "1500080000000000000006",
        "160003010203",
        "1700080000000000000007",
        "1900200000000000000001000000000000000000000000000000020000000000000003",
        "180000",
    ];
    for (item, golden) in every_item().iter().zip(golden) {
        let mut out = Vec::new();
        put_item(&mut out, item).expect("fits");
        assert_eq!(hex(&out), golden, "{item:?}");
    }
}

#[test]
fn the_bytes_of_the_records_of_version_one_stay() {
    let node = NodeRecord {
        name: "web-1".into(),
        zone: "eu-1a".into(),
        region: "eu-1".into(),
        wire_version: 1,
        left: true,
        floor: 300,
        keys: [KeyId([1, 2, 3, 4])].into(),
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
    let demand = DemandRecord {
        service: "web".into(),
        per_second: 120,
    };
    for (body, golden) in [
        (Body::Tombstone, "0301020304"),
        (Body::Demand(demand), "04010203040377656278"),
        (
            Body::Node(node),
            "0101020304057765622d310565752d31610465752d310101fb012c0101020304",
        ),
        (
            Body::Service(service),
            "020102030403776562087765622d3830383001fd000000000000000000000000000001fb1f9001640202fd0000018bcfe5680001fb01f4010776657273696f6e0132",
        ),
    ] {
        let bytes = encode_record(&HEAD, &body).expect("fits");
        assert_eq!(hex(&bytes), golden, "{body:?}");
        assert_eq!(decode_record(&bytes), Ok((HEAD, body)));
    }
}

#[test]
fn the_bytes_of_the_packets_of_version_one_stay() {
    let member = |id| Member {
        id,
        address: ([10, 0, 0, 1], 7946).into(),
        bump: 0x0304,
    };
    let (target, origin, probe_number) = (member(3), member(4), 9);
    let messages = [
        (
            Message::Ping(9),
            "1b01000a000001fb1f0afb03040202000a000001fb1f0afb03040009",
        ),
        (
            Message::Ack(9),
            "1b01000a000001fb1f0afb03040202000a000001fb1f0afb03040109",
        ),
        (
            Message::PingReq {
                target,
                probe_number,
            },
            "2701000a000001fb1f0afb03040202000a000001fb1f0afb03040203000a000001fb1f0afb030409",
        ),
        (
            Message::IndirectPing {
                origin,
                probe_number,
            },
            "2701000a000001fb1f0afb03040202000a000001fb1f0afb03040304000a000001fb1f0afb030409",
        ),
        (
            Message::IndirectAck {
                target,
                probe_number,
            },
            "2701000a000001fb1f0afb03040202000a000001fb1f0afb03040403000a000001fb1f0afb030409",
        ),
        (
            Message::ForwardedAck {
                origin,
                probe_number,
            },
            "2701000a000001fb1f0afb03040202000a000001fb1f0afb03040504000a000001fb1f0afb030409",
        ),
        (
            Message::Announce,
            "1a01000a000001fb1f0afb03040202000a000001fb1f0afb030406",
        ),
        (
            Message::Feed,
            "1a01000a000001fb1f0afb03040202000a000001fb1f0afb030407",
        ),
        (
            Message::Gossip,
            "1a01000a000001fb1f0afb03040202000a000001fb1f0afb030408",
        ),
        (
            Message::Broadcast,
            "1a01000a000001fb1f0afb03040202000a000001fb1f0afb030409",
        ),
        (
            Message::TurnUndead,
            "1a01000a000001fb1f0afb03040202000a000001fb1f0afb03040a",
        ),
    ];
    for (message, golden) in messages {
        let header = Header {
            src: member(1),
            src_incarnation: 2,
            dst: member(2),
            message,
        };
        let mut out = Vec::new();
        MemberCodec.encode_header(&header, &mut out).expect("fits");
        assert_eq!(hex(&out), golden, "{header:?}");
    }
    let mut out = Vec::new();
    let suspect = foca::Member::new(member(1), 2, State::Suspect);
    MemberCodec.encode_member(&suspect, &mut out).expect("fits");
    assert_eq!(hex(&out), "0f01000a000001fb1f0afb0304020100");
}
