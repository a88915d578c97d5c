//! What two sidecars must agree on: wire types, codec, datagram envelope. No I/O.

#![forbid(unsafe_code)]

pub mod record;
