//! A Starling sidecar: the two straight paths, drawn; the glossary; links to each step.
//!
//! # The house
//!
//! ```text
//! main → cli → life, drain        one sidecar from its start to its end
//!               │
//!             start                      knows all, decides nothing
//!               │
//!         proxy/ ─────┬───── gossip/      two wings; they never import each other
//!                     │
//!         config  admin  tls  metrics  logs  clock  resolve  checks     furniture of the shell
//!                     │
//!               mesh-core                 pure: no socket, clock, task, global dice or log
//!                     │
//!               mesh-proto                what two sidecars must agree on
//! ```
//!
//! The wings meet in one value, `Arc<ArcSwap<Snapshot>>`: [`gossip::publish`] writes it, [`proxy::worker`] reads it.
//!
//! # The request's straight path
//!
//! ```text
//! proxy::listen → worker → welcome → front (detect) → forward:
//!     worker.snapshot()                              one cached atomic load
//!     target(authority)                              mesh_core::route
//!     Tries::start(policy, now)                      mesh_core::policy, ::retry
//!     loop { desk.pick(ask, now, rng)                mesh_core::balance, ::zone
//!            send::once(endpoint)                    pool → dial → send, this worker's connections
//!            match tries.verdict(outcome) { Answer, Again{after} } }
//! → reply_body → client
//!   the attempt is settled at the END OF THE BODY    attempt → Upstream::report
//! ```
//!
//! # Membership's straight path
//!
//! ```text
//! gossip::agent: socket → frame.open → mesh_core::membership (foca and its guards) → catalogue
//! gossip::stream: join and anti-entropy over TCP ─────────────────────────────────→ catalogue
//!     catalogue changed → Mesh → gossip::publish → Snapshot::build → one store (coalesced, 20 ms)
//! gossip::probe: our own applications' checks → our record's next version → broadcast
//! ```
//!
//! # Glossary
//!
//! | noun | means |
//! |---|---|
//! | service | a name that callers ask for |
//! | endpoint | one address of a service, as one upstream of this sidecar sees it, with its live figures |
//! | node | a host with a sidecar |
//! | record | what a node says of itself or of one instance it offers |
//! | catalogue | all records of all nodes, merged |
//! | snapshot | the frozen view that a request reads |
//! | route | which upstream a request's head means |
//! | policy | the checked numbers of one upstream |
//! | tier | endpoints that are equally near |
//! | pick | the choice of one endpoint |
//! | attempt | one try at one endpoint |
//! | outcome | what an attempt came to |
//! | ejection | an endpoint sent out because it fails for this sidecar |
//! | lease | a registration that ends unless renewed |
//! | drain | going without losing a request |

// One room makes a system call that no safe crate offers: proxy/connections/kernel.rs.
#![deny(unsafe_code)]

pub mod access_log;
pub mod active_check;
pub mod admin;
pub mod caller_checks;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod drain;
pub mod gossip;
pub mod json_field;
pub mod life;
pub mod logs;
pub mod metrics;
pub mod notify;
pub mod parent;
pub mod proxy;
pub mod request_key;
pub mod resolve;
pub mod start;
pub mod tls;
#[cfg(test)]
mod waiting;
