//! What two sidecars must agree on: wire types, codec, sealed envelope. No I/O.
//!
//! Not here: when anything is sent, or to whom (`mesh-core`), and the sockets (`sidecar`).
//!
//! On the wire everything is an item, `kind u8 | len u16 | body`; a reader skips kinds it does not know.
//! A datagram (at most [`DATAGRAM_BYTES_MAX`]) and a stream frame (at most [`FRAME_BYTES_MAX`]) are lists of items
//! inside a sealed envelope ([`frame`]). Compatible changes: new item kinds, new fields at the end of a body.

#![forbid(unsafe_code)]

pub mod codec;
pub mod frame;
pub mod member;
pub mod message;
pub mod record;
pub mod session;

/// The wire version this build speaks: first byte of every datagram and stream.
pub const WIRE_VERSION: u8 = 1;

/// Bytes of a datagram, envelope included: fits the smallest usual path MTU (1,280) with headers to spare.
pub const DATAGRAM_BYTES_MAX: usize = 1_200;

/// Bytes of one frame on a stream, before sealing.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Bytes one exchange may bring in, all frames together.
pub const EXCHANGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of one encoded record: two of them always fit beside a datagram's header.
pub const RECORD_BYTES_MAX: usize = 512;
