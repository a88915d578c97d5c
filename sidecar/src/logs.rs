//! Logs: one line an event on standard error, as `RUST_LOG` asks for.
//!
//! Not here: what is worth a line; that stands where it happens.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Starts logging for this process; a second call changes nothing.
///
/// `RUST_LOG` decides what is told (`info` if it is unset or senseless, and then a senseless one is told of).
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
        tracing::warn!(RUST_LOG = asked, %fault, "RUST_LOG cannot be read; telling info");
    }
}

/// The filter for `asked`, and what is wrong with it if `info` stands in for it.
fn filter(asked: &str) -> (EnvFilter, Option<String>) {
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    match builder.parse(asked) {
        Ok(filter) => (filter, None),
        Err(fault) => (EnvFilter::new("info"), Some(fault.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_senseless_filter_is_told_of_and_info_stands_in() {
        assert!(filter("").1.is_none());
        assert!(filter("sidecar=debug,warn").1.is_none());
        let (filter, fault) = filter("sidecar=loudly");
        assert!(fault.is_some());
        assert_eq!(filter.to_string(), "info");
    }
}
