//! A member gone mad: whatever a holder of the key says, the machine goes on, within its bounds.
//!
//! Not here: bytes alone (`mesh-proto/tests/fuzz.rs`), and members in their right mind (`sim/gossip`).
//! `FUZZ_STORIES` sets how many machines are tried, `FUZZ_SEED` with which dice: `FUZZ_STORIES=20000 cargo test --release
//! -p mesh-core --test any_words` takes minutes.

use std::{fs, path::Path, time::Duration};

use mesh_core::{
    membership::{CallEnd, CallId, Counts, Effect, Membership, Pace, Settings},
    moment::Moment,
};
use mesh_proto::{
    FRAME_BYTES_MAX,
    codec::put_item,
    frame::PAYLOAD_BYTES_MAX,
    member::Member,
    message::{BUCKETS, Digest, Hello, Item, Purpose},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Words said to one machine before the next one begins.
const WORDS: usize = 400;

/// Machines tried unless told otherwise: about a second.
const STORIES: u64 = 300;

/// What one word may make the machine do: it passes on a few things to a few peers.
const EFFECTS_MAX: usize = 4_096;

fn me() -> Member {
    Member {
        id: 2,
        address: ([10, 0, 0, 2], 7946).into(),
        bump: 0x0304,
    }
}

fn machine(rng: &mut StdRng) -> Membership {
    let settings = Settings {
        me: me(),
        cluster: "prod".into(),
        name: "n".into(),
        zone: "a".into(),
        region: "r".into(),
        pace: Pace::FAST,
        has_seeds: false,
    };
    Membership::new(settings, rng, Moment::START)
}

/// What members say, from the seed corpus of the protocol.
fn corpus() -> Vec<Vec<u8>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../mesh-proto/fuzz/corpus");
    let mut paths = Vec::new();
    for target in ["datagram", "stream"] {
        let files = fs::read_dir(top.join(target)).expect("it is there");
        paths.extend(files.map(|file| file.expect("readable").path()));
    }
    paths.sort();
    let words = paths.iter().map(|path| fs::read(path).expect("readable"));
    words.collect()
}

/// Some of the corpus in a row, a few bytes of it changed.
fn word(corpus: &[Vec<u8>], rng: &mut StdRng, bytes_max: usize) -> Vec<u8> {
    let mut word = Vec::new();
    for _ in 0..rng.random_range(1..6) {
        word.extend_from_slice(&corpus[rng.random_range(0..corpus.len())]);
    }
    for _ in 0..rng.random_range(0..5) {
        let at = rng.random_range(0..word.len());
        word[at] = match rng.random_range(0..3) {
            0 => word[at] ^ 1 << rng.random_range(0..8),
            1 => [0, 1, 0x7f, 0x80, 0xfb, 0xff][rng.random_range(0..6)],
            _ => rng.random(),
        };
    }
    word.truncate(bytes_max);
    word
}

fn hello(rng: &mut StdRng) -> Vec<u8> {
    let hello = Hello {
        cluster: "prod".into(),
        from: Member {
            id: rng.random_range(1..6),
            ..me()
        },
        purpose: Purpose::Exchange,
    };
    let digest = Digest {
        members: rng.random(),
        buckets: [rng.random(); BUCKETS],
    };
    let mut bytes = Vec::new();
    for item in [Item::Hello(hello), Item::Digest(Box::new(digest))] {
        put_item(&mut bytes, &item).expect("fits");
    }
    bytes
}

/// Says one machine many words, with a shell around it as it has. Yields what it counted.
fn story(corpus: &[Vec<u8>], rng: &mut StdRng) -> Counts {
    let mut machine = machine(rng);
    let mut now = Moment::START;
    let mut calls: Vec<CallId> = Vec::new();
    for _ in 0..WORDS {
        now = now + Duration::from_millis(rng.random_range(0..300));
        match rng.random_range(0..10) {
            0..=4 => {
                let said = word(corpus, rng, PAYLOAD_BYTES_MAX);
                machine.on_datagram(&said, rng.random_range(1..6), now);
            }
            5 => {
                let said = if rng.random() {
                    hello(rng)
                } else {
                    word(corpus, rng, 4_096)
                };
                calls.extend(machine.on_call(&said, now));
            }
            6 | 7 if !calls.is_empty() => {
                let call = calls[rng.random_range(0..calls.len())];
                machine.on_stream_message(call, &word(corpus, rng, FRAME_BYTES_MAX), now);
            }
            8 if !calls.is_empty() => {
                let call = calls.swap_remove(rng.random_range(0..calls.len()));
                machine.on_call_end(call, CallEnd::Closed, now);
            }
            _ => machine.on_timer(now),
        }
        let mut count = 0;
        while let Some(effect) = machine.poll() {
            count += 1;
            assert!(count < EFFECTS_MAX, "one word and no end of {effect:?}");
            match effect {
                Effect::Send { payload, .. } => assert!(payload.len() <= PAYLOAD_BYTES_MAX),
                Effect::Frame { payload, .. } => assert!(payload.len() <= FRAME_BYTES_MAX),
                Effect::Dial { call, .. } => calls.push(call),
                Effect::Hang { call } => calls.retain(|open| *open != call),
                _ => {}
            }
        }
        assert_eq!(machine.me().id, me().id);
        // Whoever draws the listings must find its feet too.
        let _ = machine.mesh();
    }
    machine.counts
}

#[test]
fn a_member_gone_mad_stops_nobody() {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(number) => number.parse().expect("a number"),
        Err(_) => default,
    };
    let (seed, stories) = (number("FUZZ_SEED", 1), number("FUZZ_STORIES", STORIES));
    let corpus = corpus();
    let mut seen = (0, 0, 0);
    for seed in seed..seed + stories {
        println!("FUZZ_SEED={seed} FUZZ_STORIES=1");
        let counts = story(&corpus, &mut StdRng::seed_from_u64(seed));
        seen.0 += counts.malformed;
        seen.1 += counts.news;
        seen.2 += counts.exchanges_done;
    }
    // Words that all end at the first check would prove nothing.
    assert!(
        stories < STORIES || (seen.0 > 0 && seen.1 > 0 && seen.2 > 0),
        "{seen:?}"
    );
    println!(
        "{} malformed, {} news, {} exchanges",
        seen.0, seen.1, seen.2
    );
}
