//! Logs: one line an event on standard error, as `RUST_LOG` asks for.
//!
//! Not here: what is worth a line; that stands where it happens.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// What is told unless `RUST_LOG` says otherwise. h2 warns of every odd frame, so any client could fill the disk.
const USUAL: &str = "info,h2=error";

/// Starts logging for this process; a second call changes nothing.
///
/// `RUST_LOG` decides what is told (our events from `info` up if it is unset or senseless, and then a senseless one is
/// told of).
/// Colours only on a terminal, and not if `NO_COLOR` is set.
pub fn start() {
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let (filter, fault) = filter(&asked);
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !plain)
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_ok()
        && let Some(fault) = fault
    {
        tracing::warn!(RUST_LOG = asked, %fault, "RUST_LOG cannot be read; telling the usual");
    }
}

/// The filter for `asked`, and what is wrong with it if the usual one stands in for it.
fn filter(asked: &str) -> (EnvFilter, Option<String>) {
    if asked.is_empty() {
        return (EnvFilter::new(USUAL), None);
    }
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    match builder.parse(asked) {
        Ok(filter) => (filter, None),
        Err(fault) => (EnvFilter::new(USUAL), Some(fault.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_senseless_filter_is_told_of_and_the_usual_stands_in() {
        assert!(filter("").1.is_none());
        assert!(filter("sidecar=debug,warn").1.is_none());
        let (filter, fault) = filter("sidecar=loudly");
        assert!(fault.is_some());
        assert_eq!(filter.to_string(), super::filter("").0.to_string());
    }
}
