//! HTTP/1 on both sides of the sidecar: strict about what it reads, exact about what it writes.
//!
//! Not here: HTTP/2 (`http2`), and where a request goes (`forward.rs`).
//!
//! Why its own: what hyper's parser forgives or hides (a length beside `chunked`, bare line feeds, interim answers,
//! how names were spelled, when a body may be sent) is what a proxy has to see. [`head`] and [`decode`] are functions
//! of bytes, [`wire`] moves the bytes, [`server`] and [`client`] are the two ends.

pub mod client;
pub mod decode;
pub mod encode;
pub mod head;
pub mod incoming;
pub mod server;
pub mod wire;

#[cfg(test)]
mod tests;
