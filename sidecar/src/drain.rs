//! Leave, close, wait, cut: how a sidecar goes without losing a request.
//!
//! Not here: who asked for it (`cli/agent.rs`, `cli/run.rs`).

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use crate::start::Sidecar;

/// How often it is looked whether the last connection is over.
const LOOK: Duration = Duration::from_millis(20);
/// Longest time for saying goodbye to the mesh; the others find out by themselves after that.
const GOODBYE: Duration = Duration::from_secs(3);

/// Ends a sidecar in the designed order: says that it drains and serves on for `grace`, stops listening, waits for
/// what is in flight up to `timeout`, leaves the gossip. `cut` (a second signal) ends each wait at once.
pub async fn end(sidecar: Sidecar, cut: impl Future<Output = ()>) {
    let rules = sidecar.loaded().config.drain;
    let mut cut = std::pin::pin!(cut);
    let mut hasty = false;

    tracing::info!(
        grace_ms = rules.grace.as_millis() as u64,
        "draining: serving on, asking callers to go elsewhere"
    );
    sidecar.say_draining().await;
    tokio::select! {
        () = sleep(rules.grace) => {}
        () = cut.as_mut() => hasty = true,
    }
    close(sidecar, hasty, cut).await;
}

/// The second half of [`end`], for a sidecar that has said that it drains: closes, waits, leaves. With `hasty` it
/// waits for nobody.
pub async fn close(mut sidecar: Sidecar, mut hasty: bool, cut: impl Future<Output = ()>) {
    let rules = sidecar.loaded().config.drain;
    let mut cut = std::pin::pin!(cut);
    sidecar.stop_listening().await;

    let deadline = Instant::now() + rules.timeout;
    while !hasty && sidecar.workers.open() > 0 && Instant::now() < deadline {
        tokio::select! {
            () = sleep(LOOK) => {}
            () = cut.as_mut() => hasty = true,
        }
    }
    let left = sidecar.workers.open();
    if left > 0 {
        tracing::warn!(
            connections = left,
            hasty,
            "cutting connections that did not end in time"
        );
    }
    tokio::select! {
        left = timeout(GOODBYE, sidecar.leave()) => {
            if left.is_err() {
                tracing::warn!("the mesh was not told in time; it will find out by itself");
            }
        }
        () = cut.as_mut(), if !hasty => {}
    }
    let log = sidecar.access_log();
    if left == 0 {
        sidecar.join();
    } else {
        sidecar.cut().await;
    }
    if let Some(log) = log
        && !log.written().await
    {
        tracing::warn!("the access log takes no more; its last lines are lost");
    }
    tracing::info!("gone");
}
