//! HTTP/2 on both sides of the sidecar: the h2 crate's frames and streams, driven by the tasks that need them.
//!
//! Not here: frames and HPACK (the h2 crate's), and where a request goes (`forward.rs`).
//!
//! Why not hyper's: it starts a task for each stream on both sides and hands each request and answer through channels
//! between them. Here a client's connection and all its streams are one task ([`server`], [`crew`]), a connection to an
//! endpoint is another ([`client`]), and a request's own future speaks to the second one's streams itself.

pub mod client;
pub mod crew;
pub mod flood;
pub mod incoming;
pub mod outflow;
pub mod pulse;
pub mod server;
pub mod stream;

/// What one stream may send ahead of whoever reads it, in bytes, on either side; bounds what a slow reader makes us hold.
const STREAM_WINDOW: u32 = 256 * 1024;
/// What all streams of a connection may send ahead, in bytes, on either side. Neither window starts lower and grows: what
/// comes is passed on piece by piece and the window opens with that, so a hundred uploads to an endpoint that does not
/// read made us hold 7 MiB at most, what their connections to it need among it.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams that we end because the other side broke a rule, before the connection is ended for it.
const FAULTY_STREAMS_MAX: usize = 1024;
