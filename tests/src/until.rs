//! Waiting for a condition, with a deadline and a sentence for the case that it does not come; and servers that are slow.
//!
//! Not here: any wait of the test itself for a fixed time.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks at the condition.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Asks `probe` again and again until it yields `Ok`.
///
/// # Panics
/// After `within`, with `what` was awaited and the last `Err`.
pub async fn until<T>(
    within: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + within;
    let mut last = "the first look took too long".to_owned();
    while let Ok(looked) = timeout_at(deadline, probe()).await {
        match looked {
            Ok(value) => return value,
            Err(why) => last = why,
        }
        sleep(LOOK_AGAIN).await;
    }
    panic!("not within {within:?}: {what}; last seen: {last}");
}

/// What a server does that takes so long to answer. It is no way to wait for anything.
pub async fn answers_after(time: Duration) {
    sleep(time).await;
}
