//! The proxy wing: a connection comes in, its requests go to endpoints, answers come back.
//!
//! Not here: who is in the mesh (`gossip/`); the two meet in one `Arc<ArcSwap<Snapshot>>`.
//!
//! The request's straight path:
//! `listen` → `worker` → `welcome` → `detect` → `front` → `forward` → `send` → `reply_body`.

pub mod ahead;
pub mod attempt;
pub mod body;
pub mod call;
pub mod client_hello;
pub mod connect;
pub mod connections;
pub mod control;
pub mod crowd;
pub mod datagram;
pub mod detect;
pub mod dial;
pub mod extended;
pub mod forward;
pub mod front;
pub mod gather;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod interim;
pub mod key_in_body;
pub mod listen;
pub mod look;
pub mod outage;
pub mod patience;
pub mod pool;
pub mod porter;
pub mod present;
pub mod proxy_header;
pub mod relay;
pub mod reply;
pub mod reply_body;
pub mod request_body;
pub mod send;
pub mod splice;
pub mod standby;
pub mod tally;
pub mod transport;
pub mod tunnel;
pub mod welcome;
pub mod worker;

#[cfg(test)]
mod cost;

#[cfg(test)]
mod tests;
