//! Fuzz targets without libFuzzer: the seed corpus, then mutations of it by plain dice for a while.
//!
//! Not here: the targets and the corpus of each package. `FUZZ_SECONDS` sets how long each target is tried (a third of a
//! second unless set), `FUZZ_SEED` repeats a run.

use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// Longest input made: a little over a datagram, so that the bound is crossed.
const INPUT_BYTES_MAX: usize = 1_400;

/// Takes any bytes; a panic is a finding.
pub type Target = fn(&[u8]);

/// Tries each target with the files of its folder below `corpus` and what becomes of them.
pub fn try_all(targets: &[(&str, Target)], corpus: &Path) {
    let seconds = std::env::var("FUZZ_SECONDS").ok();
    let seconds = seconds.map_or(1.0 / 3.0, |seconds| seconds.parse().expect("a number"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = match std::env::var("FUZZ_SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => now.expect("after 1970").as_nanos() as u64,
    };
    println!("FUZZ_SEED={seed}");
    for (name, target) in targets {
        let files = fs::read_dir(corpus.join(name)).expect("it is there");
        let mut paths: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
        paths.sort();
        let read = |path: &PathBuf| fs::read(path).expect("readable");
        let corpus: Vec<Vec<u8>> = paths.iter().map(read).collect();
        let dice = &mut Dice(seed);
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let mut count = 0;
        while count < corpus.len() || Instant::now() < until {
            let held = corpus.get(count).cloned();
            let input = held.unwrap_or_else(|| mutated(&corpus, dice));
            if let Err(panic) = catch_unwind(|| target(&input)) {
                let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
                eprintln!("{name}, FUZZ_SEED={seed}, input {count}: {hex}");
                std::panic::resume_unwind(panic);
            }
            count += 1;
        }
        println!(
            "{name}: {count} inputs, {} of them the corpus",
            corpus.len()
        );
    }
}

/// splitmix64 (Steele, Lea, Flood 2014): a whole run follows from one number.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }
}

/// One more input from one of the corpus.
fn mutated(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut input = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(6) {
        let at = dice.below(input.len());
        match dice.below(8) {
            0 | 1 if !input.is_empty() => input[at] ^= 1 << dice.below(8),
            2 if !input.is_empty() => input[at] = dice.roll() as u8,
            // Lengths and counts live on these.
            3 if !input.is_empty() => {
                input[at] = [0, 1, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xff][dice.below(8)]
            }
            4 => input.truncate(at),
            5 => {
                let other = &corpus[dice.below(corpus.len())];
                let from = dice.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 => {
                let other = corpus[dice.below(corpus.len())].clone();
                input.extend_from_slice(&other);
            }
            _ => {
                let more = dice.below(INPUT_BYTES_MAX);
                input.extend((0..more).map(|_| dice.roll() as u8));
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}
