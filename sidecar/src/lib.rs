//! A Starling sidecar: the two straight paths, drawn; the glossary; links to each step.

#![forbid(unsafe_code)]

pub mod active_check;
pub mod caller_checks;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod gossip;
pub mod parent;
pub mod resolve;
