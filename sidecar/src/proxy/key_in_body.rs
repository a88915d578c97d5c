//! Calls whose key is in their body: its beginning is waited for before anybody is picked.
//!
//! Not here: how the value is found (`request_key.rs`), and the body's way to an endpoint (`body.rs`).

use http::header;
use mesh_core::{moment::Moment, policy::HashKey, snapshot::Upstream};
use tokio::time::timeout_at;

use super::{forward::Call, worker::Worker};
use crate::request_key;

/// The hash of the key that is in the call's body; `None` where keys are elsewhere, where the body is no JSON, and where it
/// does not come in time.
///
/// Bodies of JSON end by themselves, so no client waits for an answer before it has sent its own.
pub async fn read(
    worker: &Worker,
    upstream: &Upstream,
    call: &mut Call,
    deadline: Moment,
) -> Option<u64> {
    let hash = upstream.policy.hash.as_ref()?;
    let HashKey::Json(pointer) = &hash.key else {
        return None;
    };
    let source = call.source.clone()?;
    if !request_key::brings_json(&call.headers) {
        return None;
    }
    // Who waits for a word before it sends its body is told here, so that no endpoint need say it again.
    call.go_on();
    call.headers.remove(header::EXPECT);
    let beginning = source.beginning(hash.body_max);
    let come = timeout_at(worker.clock.instant(deadline), beginning).await;
    let (bytes, is_whole) = come.ok()?;
    request_key::of_body(pointer, &bytes, is_whole)
}
