//! An application's own word on its health: it holds for a while, and silence means failing.
//!
//! Not here: how the word comes in (`admin/`), and whose it is (`gossip/probe.rs`).

use std::time::Duration;

use mesh_core::check::Verdict;
use mesh_proto::record::Health;
use tokio::{sync::watch, time::timeout};

/// The newest word; a count tells two of the same apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word {
    /// How many came before.
    pub count: u64,
    /// What it says.
    pub health: Health,
}

/// Counts each word, and each silence of `within`, into `verdict`, until nobody can speak any more.
///
/// `tell` hears each change of the verdict.
pub async fn listen<F: Future<Output = ()>>(
    within: Duration,
    mut words: watch::Receiver<Word>,
    mut verdict: Verdict,
    mut tell: impl FnMut(Verdict) -> F,
) {
    loop {
        let result = match timeout(within, words.changed()).await {
            Ok(Ok(())) => words.borrow_and_update().health,
            Ok(Err(_)) => return,
            Err(_) => Health::Failing,
        };
        if verdict.record(result) {
            tell(verdict.clone()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::waiting::pass;
    use Health::{Failing, Passing, Warning};

    #[tokio::test(start_paused = true)]
    async fn a_word_holds_for_its_time_and_silence_means_failing() {
        let within = Duration::from_secs(10);
        let silent = Word {
            count: 0,
            health: Failing,
        };
        let (voice, words) = watch::channel(silent);
        let told = RefCell::new(Vec::new());
        let began = tokio::time::Instant::now();
        let listening = listen(within, words, Verdict::new(1, 1), |verdict| {
            told.borrow_mut()
                .push((began.elapsed().as_secs(), verdict.health()));
            async {}
        });
        let speaking = async {
            for (pause, health) in [
                (1, Passing),
                (9, Passing),
                (9, Warning),
                (11, Passing),
                (1, Failing),
            ] {
                pass(Duration::from_secs(pause)).await;
                voice.send_modify(|word| (word.count, word.health) = (word.count + 1, health));
            }
            pass(Duration::from_secs(30)).await;
            drop(voice);
        };
        tokio::join!(listening, speaking);
        let expected = [
            (1, Passing),
            (19, Warning),
            (29, Failing),
            (30, Passing),
            (31, Failing),
        ];
        assert_eq!(*told.borrow(), expected);
    }
}
