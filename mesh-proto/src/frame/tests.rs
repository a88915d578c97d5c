use super::*;
use crate::FRAME_BYTES_MAX;
use proptest::prelude::*;
use std::collections::BTreeSet;

const KEY: [u8; 32] = [7; 32];
const OTHER: [u8; 32] = [9; 32];

fn ring(keys: &[[u8; 32]]) -> KeyRing {
    KeyRing::new(keys.iter().copied(), "prod")
}

fn open(opener: &mut Opener, datagram: &[u8]) -> Result<Vec<u8>, Reject> {
    let mut bytes = datagram.to_vec();
    opener
        .open(&mut bytes)
        .map(|opened| opened.payload.to_vec())
}

#[test]
fn a_sealed_datagram_opens_once() {
    let mut sealer = Sealer::new(ring(&[KEY]), 1, boot(5, 77));
    let mut opener = Opener::new(ring(&[KEY]));
    let datagram = sealer.seal(b"hello").expect("fits");
    assert_eq!(open(&mut opener, &datagram), Ok(b"hello".to_vec()));
    assert_eq!(open(&mut opener, &datagram), Err(Reject::Replayed));
}

#[test]
fn datagrams_may_overtake_each_other_within_the_window() {
    let mut sealer = Sealer::new(ring(&[KEY]), 1, 1);
    let mut opener = Opener::new(ring(&[KEY]));
    let early = sealer.seal(b"early").expect("fits");
    let late = sealer.seal(b"late").expect("fits");
    assert!(open(&mut opener, &late).is_ok());
    assert!(open(&mut opener, &early).is_ok());
    let stale = sealer.seal(b"stale").expect("fits");
    for _ in 0..REPLAY_WINDOW {
        let datagram = sealer.seal(b"x").expect("fits");
        assert!(open(&mut opener, &datagram).is_ok());
    }
    assert_eq!(open(&mut opener, &stale), Err(Reject::Replayed));
}

#[test]
fn an_earlier_start_of_a_sender_is_refused() {
    let mut opener = Opener::new(ring(&[KEY]));
    let old = Sealer::new(ring(&[KEY]), 1, boot(5, 9))
        .seal(b"x")
        .expect("fits");
    let new = Sealer::new(ring(&[KEY]), 1, boot(6, 1))
        .seal(b"x")
        .expect("fits");
    assert!(open(&mut opener, &new).is_ok());
    assert_eq!(open(&mut opener, &old), Err(Reject::OldBoot));
}

#[test]
fn a_start_of_no_believable_time_shuts_nobody_out() {
    let mut opener = Opener::new(ring(&[KEY]));
    opener.believe_until(6);
    let mut real = Sealer::new(ring(&[KEY]), 1, boot(6, u64::MAX));
    let absurd = Sealer::new(ring(&[KEY]), 1, u128::MAX)
        .seal(b"x")
        .expect("fits");
    assert_eq!(open(&mut opener, &absurd), Err(Reject::FutureBoot));
    opener.raise(&Floor {
        sender: 1,
        boot: boot(7, 0),
        counter: 0,
    });
    assert!(open(&mut opener, &real.seal(b"a").expect("fits")).is_ok());
    opener.believe_until(7);
    let next = Sealer::new(ring(&[KEY]), 1, boot(7, 0))
        .seal(b"b")
        .expect("fits");
    assert!(open(&mut opener, &next).is_ok());
}

#[test]
fn every_key_of_the_ring_decrypts_and_the_first_encrypts() {
    let mut sealer = Sealer::new(ring(&[KEY]), 1, 1);
    let mut opener = Opener::new(ring(&[OTHER, KEY]));
    assert!(open(&mut opener, &sealer.seal(b"a").expect("fits")).is_ok());
    sealer.replace(ring(&[OTHER, KEY]));
    assert!(open(&mut opener, &sealer.seal(b"b").expect("fits")).is_ok());
    opener.replace(ring(&[KEY]));
    assert_eq!(
        open(&mut opener, &sealer.seal(b"c").expect("fits")),
        Err(Reject::Key)
    );
}

#[test]
fn another_cluster_and_clear_text_are_refused() {
    let mut opener = Opener::new(ring(&[KEY]));
    let foreign = KeyRing::new([KEY], "test");
    let datagram = Sealer::new(foreign, 1, 1).seal(b"x").expect("fits");
    assert_eq!(open(&mut opener, &datagram), Err(Reject::Tag));
    let clear = Sealer::new(ring(&[]), 1, 1).seal(b"x").expect("fits");
    assert_eq!(open(&mut opener, &clear), Err(Reject::Key));
    assert_eq!(open(&mut Opener::new(ring(&[])), &clear), Ok(b"x".to_vec()));
    let elsewhere = KeyRing::new([], "test");
    assert_eq!(open(&mut Opener::new(elsewhere), &clear), Err(Reject::Tag));
}

#[test]
fn a_payload_over_the_bound_is_not_sealed() {
    let mut sealer = Sealer::new(ring(&[KEY]), 1, 1);
    let most = sealer.seal(&[0; PAYLOAD_BYTES_MAX]).expect("fits");
    assert_eq!(most.len(), DATAGRAM_BYTES_MAX);
    assert_eq!(sealer.seal(&[0; PAYLOAD_BYTES_MAX + 1]), None);
}

#[test]
fn a_stream_speaks_both_ways_and_refuses_tampering() {
    for keys in [&[KEY][..], &[]] {
        let (call, bytes) = Call::start(&ring(keys), [1; 32], b"hello").expect("fits");
        let (first, frame) = bytes.split_first_chunk::<PREAMBLE_BYTES>().expect("longer");
        let mut answered = answer(&ring(keys), first, &frame[4..], [2; 32]).expect("same ring");
        assert_eq!(answered.hello, b"hello");
        assert_eq!(answered.key, keys.first().map(KeyId::of));
        let (mut mine, mut theirs) = call.answered(&answered.preamble).expect("same ring");
        let back = &mut answered.back;
        let welcome = answered.out.seal(b"welcome").expect("fits");
        assert_eq!(theirs.open(welcome[4..].to_vec()), Ok(b"welcome".to_vec()));
        let mut more = mine.seal(b"more").expect("fits");
        assert_eq!(back.open(more[4..].to_vec()), Ok(b"more".to_vec()));
        more[6] ^= 1;
        if !keys.is_empty() {
            assert_eq!(back.open(more[4..].to_vec()), Err(Reject::Tag));
            assert!(answer(&ring(&[OTHER]), first, &frame[4..], [2; 32]).is_err());
        }
    }
}

#[test]
fn a_replayed_call_cannot_be_continued() {
    let (_, bytes) = Call::start(&ring(&[KEY]), [1; 32], b"hello").expect("fits");
    let (first, frame) = bytes.split_first_chunk::<PREAMBLE_BYTES>().expect("longer");
    let mut answers = [[2; 32], [3; 32]]
        .map(|salt| answer(&ring(&[KEY]), first, &frame[4..], salt).expect("same ring"));
    let one = answers[0].out.seal(b"same words").expect("fits");
    let two = answers[1].out.seal(b"same words").expect("fits");
    assert_ne!(
        one, two,
        "the answering side never seals twice under one key and nonce"
    );
}

proptest! {
    #[test]
    fn garbage_is_refused_and_remembers_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..1400)) {
        for keys in [&[KEY][..], &[]] {
            let mut opener = Opener::new(ring(keys));
            prop_assert!(opener.open(&mut bytes.clone()).is_err());
            prop_assert_eq!(opener.floors().count(), 0);
        }
    }

    #[test]
    fn any_changed_bit_is_noticed(at in 0usize..200, bit in 0u8..8, payload in proptest::collection::vec(any::<u8>(), 1..100)) {
        let mut datagram = Sealer::new(ring(&[KEY]), 1, 1).seal(&payload).expect("fits");
        let at = at % datagram.len();
        datagram[at] ^= 1 << bit;
        prop_assert!(Opener::new(ring(&[KEY])).open(&mut datagram).is_err());
    }
}

#[test]
fn a_key_taken_away_opens_nothing_though_another_has_its_short_id() {
    let id = |key: [u8; 32]| KeyId::of(&key).short();
    let twin = (0u32..100_000)
        .map(|n| {
            let mut key = OTHER;
            key[..4].copy_from_slice(&n.to_be_bytes());
            key
        })
        .find(|key| id(*key) == id(KEY))
        .expect("one byte repeats soon");
    let mut sealer = Sealer::new(ring(&[KEY]), 1, 1);
    let mut opener = Opener::new(ring(&[KEY]));
    let first = sealer.seal(b"a").expect("fits");
    assert!(open(&mut opener, &first).is_ok());
    opener.replace(ring(&[twin]));
    let next = sealer.seal(b"b").expect("fits");
    assert_eq!(open(&mut opener, &next), Err(Reject::Tag));
    opener.replace(ring(&[KEY]));
    assert_eq!(open(&mut opener, &first), Err(Reject::Replayed));
    assert!(open(&mut opener, &next).is_ok());
}

#[test]
fn two_keys_of_one_short_id_open_side_by_side_and_are_told_apart() {
    let twin = (0u32..)
        .map(|n| {
            let mut key = OTHER;
            key[..4].copy_from_slice(&n.to_be_bytes());
            key
        })
        .find(|key| KeyId::of(key).short() == KeyId::of(&KEY).short())
        .expect("one byte repeats soon");
    let mut opener = Opener::new(ring(&[KEY, twin]));
    let mut sealer = Sealer::new(ring(&[KEY]), 1, 1);
    for keys in [[KEY], [twin], [KEY], [twin]] {
        sealer.replace(ring(&keys));
        let mut datagram = sealer.seal(b"x").expect("fits");
        let opened = opener.open(&mut datagram).expect("in the ring");
        assert_eq!(opened.key, Some(KeyId::of(&keys[0])));
    }
}

#[test]
fn whoever_takes_a_floor_believes_nothing_older() {
    let mut sealer = Sealer::new(ring(&[KEY]), 1, boot(5, 1));
    let old: Vec<_> = (0..3).map(|_| sealer.seal(b"old").expect("fits")).collect();
    let mut seen = Opener::new(ring(&[KEY]));
    assert!(open(&mut seen, &old[1]).is_ok());

    let mut joiner = Opener::new(ring(&[KEY]));
    for floor in seen.floors() {
        joiner.raise(&floor);
    }
    assert_eq!(open(&mut joiner, &old[0]), Err(Reject::Replayed));
    assert_eq!(open(&mut joiner, &old[1]), Err(Reject::Replayed));
    assert!(open(&mut joiner, &old[2]).is_ok());
    // Of a start that is known, what was seen stands: this one was on its way when the floor was told.
    joiner.raise(&Floor {
        counter: 100,
        ..sealer.floor()
    });
    assert!(open(&mut joiner, &sealer.seal(b"next").expect("fits")).is_ok());
    joiner.raise(&Floor {
        sender: 1,
        boot: boot(6, 0),
        counter: 0,
    });
    let earlier = sealer.seal(b"earlier start").expect("fits");
    assert_eq!(open(&mut joiner, &earlier), Err(Reject::OldBoot));
}

#[test]
fn the_table_of_senders_ends() {
    let mut opener = Opener::new(ring(&[KEY]));
    let floor = |sender| Floor {
        sender,
        boot: 1,
        counter: 1,
    };
    for sender in 0..=SENDERS_MAX as u64 {
        opener.raise(&floor(sender));
    }
    assert_eq!(opener.floors().count(), SENDERS_MAX);
    let datagram = Sealer::new(ring(&[KEY]), u64::MAX, 1)
        .seal(b"x")
        .expect("fits");
    assert_eq!(open(&mut opener, &datagram), Err(Reject::Full));
    opener.retain(|sender| sender < 10);
    assert!(open(&mut opener, &datagram).is_ok());
}

/// What may happen to a sealer between two datagrams.
#[derive(Clone, Debug)]
enum Step {
    Seal,
    Ring(Vec<[u8; 32]>),
    Start(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let keys = proptest::sample::subsequence(vec![[1; 32], [2; 32], [3; 32]], 1..=3);
    let step = prop_oneof![
        6 => Just(Step::Seal),
        2 => keys.prop_shuffle().prop_map(Step::Ring),
        1 => any::<u64>().prop_map(Step::Start),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn no_key_meets_a_nonce_twice_whatever_happens_to_the_ring(steps in steps()) {
        let mut held = ring(&[KEY]);
        let mut bump = 1;
        let mut sealer = Sealer::new(held.clone(), 1, boot(bump, 0));
        let mut used = BTreeSet::new();
        for step in steps {
            match step {
                Step::Ring(keys) => {
                    held = ring(&keys);
                    sealer.replace(held.clone());
                }
                Step::Start(random) => {
                    bump += 1;
                    sealer = Sealer::new(held.clone(), 1, boot(bump, random));
                }
                Step::Seal => {
                    let key = sealer.key_id().expect("sealed");
                    let datagram = sealer.seal(b"x").expect("fits");
                    // Sender and boot choose the key, the counter is the nonce: bytes 3 to 35 of the header.
                    let header: [u8; 32] = datagram[3..HEADER_BYTES].try_into().expect("as long");
                    prop_assert!(used.insert((key, header)), "{key} met {header:?} twice");
                }
            }
        }
    }

    #[test]
    fn a_stream_cut_short_or_changed_yields_nothing(payload in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..300, bit in 0u8..8) {
        let (call, bytes) = Call::start(&ring(&[KEY]), [1; 32], &payload).expect("fits");
        let (first, frame) = bytes.split_first_chunk::<PREAMBLE_BYTES>().expect("longer");
        let sealed = &frame[4..];
        prop_assert!(answer(&ring(&[KEY]), first, &sealed[..cut % sealed.len()], [2; 32]).is_err());
        let mut changed = sealed.to_vec();
        changed[cut % sealed.len()] ^= 1 << bit;
        prop_assert!(answer(&ring(&[KEY]), first, &changed, [2; 32]).is_err());
        let answered = answer(&ring(&[KEY]), first, sealed, [2; 32]).expect("ours");
        prop_assert_eq!(&answered.hello, &payload);
        let mut preamble = answered.preamble;
        preamble[3 + cut % 32] ^= 1 << bit;
        // A changed salt leads both sides to other keys: the first frame tells.
        let mut out = answered.out;
        let mut theirs = call.answered(&preamble).expect("salts are not checked").1;
        let reply = out.seal(b"welcome").expect("fits");
        prop_assert_eq!(theirs.open(reply[4..].to_vec()), Err(Reject::Tag));
    }

    #[test]
    fn frames_of_a_stream_open_in_order_alone(count in 2usize..6, swap in 0usize..5) {
        let (call, bytes) = Call::start(&ring(&[KEY]), [1; 32], b"").expect("fits");
        let (first, frame) = bytes.split_first_chunk::<PREAMBLE_BYTES>().expect("longer");
        let mut answered = answer(&ring(&[KEY]), first, &frame[4..], [2; 32]).expect("ours");
        let (mut out, _) = call.answered(&answered.preamble).expect("same ring");
        let frames: Vec<_> = (0..count).map(|_| out.seal(b"same words").expect("fits")).collect();
        let swap = swap % (count - 1);
        for (at, frame) in frames.iter().enumerate() {
            if at == swap {
                // One too early, and that is the end of the stream.
                prop_assert_eq!(answered.back.open(frames[at + 1][4..].to_vec()), Err(Reject::Tag));
            }
            prop_assert_eq!(answered.back.open(frame[4..].to_vec()), Ok(b"same words".to_vec()));
            prop_assert_eq!(answered.back.open(frame[4..].to_vec()), Err(Reject::Tag));
        }
    }
}

#[test]
fn a_frame_over_the_bound_is_not_sealed() {
    let (_, bytes) = Call::start(&ring(&[KEY]), [1; 32], &vec![0; FRAME_BYTES_MAX]).expect("fits");
    assert_eq!(bytes.len(), PREAMBLE_BYTES + 4 + SEALED_FRAME_BYTES_MAX);
    assert!(Call::start(&ring(&[KEY]), [1; 32], &vec![0; FRAME_BYTES_MAX + 1]).is_none());
}

// ---- the bytes of wire version 1: a change here shuts out every sidecar that runs already ----

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_of_a_sealed_datagram_of_version_one_stay() {
    let mut sealer = Sealer::new(ring(&[KEY]), 0x0102_0304_0506_0708, boot(0x1112, 0x2122));
    assert_eq!(
        hex(&sealer.seal(b"first").expect("fits")),
        "0168010102030405060708000000000000111200000000000021220000000000000001e2ead2d8e1adf9a1f23df14596c26f8dcc3d90cf11"
    );
    assert_eq!(
        hex(&sealer.seal(b"second").expect("fits")),
        "0168010102030405060708000000000000111200000000000021220000000000000002d8c895c8f1cada65854e1dcb492b862c807a00e48bea"
    );
}

#[test]
fn the_bytes_of_a_clear_datagram_of_version_one_stay() {
    let mut sealer = Sealer::new(ring(&[]), 0x0102_0304_0506_0708, boot(0x1112, 0x2122));
    assert_eq!(
        hex(&sealer.seal(b"first").expect("fits")),
        "01000001020304050607080000000000001112000000000000212200000000000000016669727374aeac32510a20682a9851bdeb330f9f16"
    );
}

#[test]
fn the_bytes_of_a_stream_of_version_one_stay() {
    let (call, bytes) = Call::start(&ring(&[KEY]), [1; 32], b"hello").expect("fits");
    assert_eq!(
        hex(&bytes),
        "016801010101010101010101010101010101010101010101010101010101010101010100000015789347e09cf36761600a8ed9537e10a44435bea47f"
    );
    let (first, frame) = bytes.split_first_chunk::<PREAMBLE_BYTES>().expect("longer");
    let mut answered = answer(&ring(&[KEY]), first, &frame[4..], [2; 32]).expect("ours");
    assert_eq!(
        hex(&answered.preamble),
        "0168010202020202020202020202020202020202020202020202020202020202020202"
    );
    assert_eq!(
        hex(&answered.out.seal(b"welcome").expect("fits")),
        "00000017cc05ed48714db8f8cf1c19730fcc68d68f4f509405edd6"
    );
    let (mut out, _) = call.answered(&answered.preamble).expect("same ring");
    assert_eq!(
        hex(&out.seal(b"records").expect("fits")),
        "00000017433e804a4b5e7cd8a001531b4c98a5934623c7f03d7b51"
    );
}

#[test]
fn the_names_of_keys_stay() {
    assert_eq!(KeyId::of(&KEY).to_string(), "684b304d");
}
