//! Waiting for a condition, with a deadline and a sentence for the case that it does not come.
//!
//! Not here: any fixed wait.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

/// Between two looks at the condition.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Asks `probe` again and again until it yields `Ok`.
///
/// # Panics
/// After `within`, with `what` was awaited and the last `Err`.
pub async fn until<T, F, Fut>(within: Duration, what: &str, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + within;
    let mut last = "the first look took too long".to_owned();
    while let Ok(looked) = tokio::time::timeout_at(deadline, probe()).await {
        match looked {
            Ok(value) => return value,
            Err(why) => last = why,
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    panic!("not within {within:?}: {what}; last seen: {last}");
}
