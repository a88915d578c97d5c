use super::*;
use proptest::prelude::*;

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
        let (hello, reply, mut out, mut back) =
            answer(&ring(keys), first, &frame[4..], [2; 32]).expect("same ring");
        assert_eq!(hello, b"hello");
        let (mut mine, mut theirs) = call.answered(&reply).expect("same ring");
        let welcome = out.seal(b"welcome").expect("fits");
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
    let one = answers[0].2.seal(b"same words").expect("fits");
    let two = answers[1].2.seal(b"same words").expect("fits");
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
            prop_assert!(opener.senders.is_empty());
        }
    }

    #[test]
    fn any_changed_bit_is_noticed(at in 0usize..200, bit in 0u8..8, payload in proptest::collection::vec(any::<u8>(), 1..100)) {
        let mut datagram = Sealer::new(ring(&[KEY]), 1, 1).seal(&payload).expect("fits");
        let at = at % datagram.len();
        datagram[at] ^= 1 << bit;
        prop_assert!(Opener::new(ring(&[KEY])).open(&mut datagram).is_err());
    }

    #[test]
    fn the_window_accepts_each_counter_once(counters in proptest::collection::vec(1u64..5000, 1..400)) {
        let mut window = Window::default();
        let mut seen = std::collections::BTreeSet::new();
        for counter in counters {
            let fresh = window.is_new(counter);
            prop_assert!(!(fresh && seen.contains(&counter)));
            if fresh {
                window.mark(counter);
                seen.insert(counter);
                prop_assert!(!window.is_new(counter));
            }
        }
    }
}

#[test]
fn a_key_taken_away_opens_nothing_though_another_has_its_short_id() {
    let id = |key: [u8; 32]| ring(&[key]).keys[0].id;
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
