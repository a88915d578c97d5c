//! The fuzz targets without libFuzzer: what clients and endpoints may send, and mutations of it for a while.
//!
//! Not here: the targets (`sidecar/fuzz/targets.rs`) and the dice (`mesh-proto/fuzz/dice.rs`, which tells how long each
//! target is tried).

use std::path::Path;

#[path = "../../mesh-proto/fuzz/dice.rs"]
mod dice;
#[path = "../fuzz/targets.rs"]
mod targets;

use dice::Target;

const TARGETS: [(&str, Target); 10] = [
    ("detection", targets::detection),
    ("proxy_header", targets::proxy_header),
    ("client_hello", targets::client_hello),
    ("http1_head", targets::http1_head),
    ("chunks", targets::chunks),
    ("authority", targets::authority),
    ("forwarded_for", targets::forwarded_for),
    ("keys", targets::keys),
    ("grpc_timeout", targets::grpc_timeout),
    ("grpc_health", targets::grpc_health),
];

#[test]
fn nothing_that_a_connection_may_bring_makes_a_reader_stumble() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    dice::try_all(&TARGETS, &top.join("fuzz/corpus"));
}
