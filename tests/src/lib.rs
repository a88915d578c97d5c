//! The harness: real sidecars, real sockets, hosts made of loopback addresses or network namespaces.
//!
//! Not here: the stories themselves (`tests/`, one file a story) and the benchmark (`bench/`). A harness
//! panics with a sentence when the machine cannot do its part; it never skips a claim in silence.

pub mod attack;
pub mod binary;
pub mod frames;
pub mod http;
pub mod mesh;
pub mod netns;
pub mod process;
pub mod scratch;
pub mod sidecar;
pub mod until;

/// Longest wait for something that is sure to come on a busy machine.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Says in one line that a story was not told here, and why.
pub fn skipped(story: &str, why: &str) {
    // Straight to the descriptor: the test harness would swallow it in a passing test.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {story}: {why}");
}
