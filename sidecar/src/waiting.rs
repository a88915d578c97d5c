//! How tests wait: paused time is let pass, and what takes its own time is awaited with a deadline.
//!
//! Not here: waiting for whole processes (`tests/src/until.rs` of the workspace).

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// For anything that another process has to do, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Lets time pass where the test's clock is paused: whatever falls due until then happens in its order, at once.
pub(crate) async fn pass(time: Duration) {
    sleep(time).await;
}

/// Looks again and again until there is something to be seen.
///
/// # Panics
/// After [`DEADLINE`], with what was awaited.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(
            began.elapsed() < DEADLINE,
            "not within {DEADLINE:?}: {what}"
        );
        sleep(LOOK_AGAIN).await;
    }
}
