//! A Starling sidecar: the two straight paths, drawn; the glossary; links to each step.

#![forbid(unsafe_code)]

pub mod clock;
pub mod cli;
pub mod config;
pub mod gossip;
