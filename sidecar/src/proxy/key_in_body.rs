//! Calls whose key is in their body: its beginning is waited for before anybody is picked.
//!
//! Not here: how the value is found (`request_key.rs`), and the body's way to an endpoint (`request_body.rs`).

use http::header;
use mesh_core::{moment::Moment, policy::HashKey, snapshot::Upstream};
use tokio::time::timeout_at;

use super::{call::Call, worker::Worker};
use crate::request_key;

/// The beginning of a body did not come in time: that is its client's fault, and no endpoint was asked for anything.
pub struct TooSlow;

/// The hash of the key that is in the call's body; `None` where keys are elsewhere and where the body is no JSON.
///
/// Bodies of JSON end by themselves, so no client waits for an answer before it has sent its own.
///
/// # Errors
/// The body does not come before the deadline.
pub async fn read(
    worker: &Worker,
    upstream: &Upstream,
    call: &mut Call,
    deadline: Moment,
) -> Result<Option<u64>, TooSlow> {
    let hash = upstream.policy.hash.as_ref();
    let Some((HashKey::Json(pointer), body_max)) = hash.map(|hash| (&hash.key, hash.body_max))
    else {
        return Ok(None);
    };
    let Some(source) = call.source.clone() else {
        return Ok(None);
    };
    if !request_key::brings_json(&call.headers) {
        return Ok(None);
    }
    // Who waits for a word before it sends its body is told here, so that no endpoint need say it again.
    call.go_on();
    call.headers.remove(header::EXPECT);
    let beginning = source.beginning(body_max);
    let come = timeout_at(worker.clock.instant(deadline), beginning).await;
    let (bytes, is_whole) = come.map_err(|_| TooSlow)?;
    Ok(request_key::of_body(pointer, &bytes, is_whole))
}
