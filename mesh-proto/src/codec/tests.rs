use super::*;
use foca::Codec;
use proptest::prelude::*;

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
fn the_bytes_of_version_one_stay() {
    let bytes = encode_record(&HEAD, &Body::Tombstone).expect("fits");
    assert_eq!(bytes, [3, 1, 2, 3, 4]);
    let demand = Body::Demand(DemandRecord {
        service: "web".into(),
        per_second: 120,
    });
    let bytes = encode_record(&HEAD, &demand).expect("fits");
    assert_eq!(bytes, [4, 1, 2, 3, 4, 3, b'w', b'e', b'b', 120]);
    assert_eq!(decode_record(&bytes), Ok((HEAD, demand)));
    let mut out = Vec::new();
    put_item(&mut out, &Item::Hash(0x0102)).expect("fits");
    assert_eq!(out, [2, 0, 8, 0, 0, 0, 0, 0, 0, 1, 2]);
}
