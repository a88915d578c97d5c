//! An active check as the configuration has it: what is tried, how often, and how many results make a verdict.
//!
//! Not here: how it is written (`check/health.rs`) and how it is run (`active_check.rs`).

use std::{ops::RangeInclusive, time::Duration};

use http::Method;
use regex::bytes::{Regex, RegexBuilder};

/// Memory a compiled pattern may take; a word to look for needs a hundredth of it.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// An active check.
#[derive(Clone, PartialEq, Debug)]
pub struct Check {
    /// What is tried.
    pub kind: CheckKind,
    /// Between two checks (250 ms until the first verdict).
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Results worse than the health in a row until it is worse.
    pub fall: u32,
    /// Results better than the health in a row until it is better.
    pub rise: u32,
}

/// What an active check tries.
#[derive(Clone, PartialEq, Debug)]
pub enum CheckKind {
    /// A connection is accepted.
    Tcp,
    /// A request is answered as expected.
    Http(HttpCheck),
    /// The gRPC health service (`grpc.health.v1`) says SERVING.
    Grpc {
        /// Whose health is asked for; empty means the server's as a whole.
        service: Box<str>,
    },
    /// A program ends with 0; with 1 it warns.
    Exec {
        /// The program's absolute path and its arguments; never empty.
        command: Vec<Box<str>>,
    },
    /// Nothing is tried: the application itself says how it is, over the admin API.
    Ttl {
        /// How long its word holds; then it is failing.
        within: Duration,
    },
}

/// What an HTTP check asks and expects.
#[derive(Clone, PartialEq, Debug)]
pub struct HttpCheck {
    /// The path asked for, its query included.
    pub path: Box<str>,
    /// How it is asked; never with a body.
    pub method: Method,
    /// What passes.
    pub status: Vec<Statuses>,
    /// What the body has to match; `None`: any body does.
    pub body: Option<Pattern>,
}

/// Statuses from one to another, both included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statuses(pub RangeInclusive<u16>);

/// A regular expression over bytes, matched in linear time.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Check {
    /// A check with the default rhythm: every 2 s, 1 s each, down after 3, up after 2. An application's own word needs
    /// no second one.
    pub fn of(kind: CheckKind) -> Check {
        let (fall, rise) = match kind {
            CheckKind::Ttl { .. } => (1, 1),
            _ => (3, 2),
        };
        Check {
            kind,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            fall,
            rise,
        }
    }
}

impl HttpCheck {
    /// `GET path`, which has to answer 200 to 399.
    pub fn get(path: &str) -> HttpCheck {
        HttpCheck {
            path: path.into(),
            method: Method::GET,
            status: vec![Statuses(200..=399)],
            body: None,
        }
    }

    /// Whether an answer's status passes.
    pub fn expects(&self, status: u16) -> bool {
        self.status.iter().any(|some| some.0.contains(&status))
    }
}

impl Pattern {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it, in several lines, or that it is too large.
    pub fn new(text: &str) -> Result<Pattern, String> {
        RegexBuilder::new(text)
            .size_limit(PATTERN_BYTES_MAX)
            .build()
            .map(Pattern)
            .map_err(|error| error.to_string())
    }

    /// Whether it is found anywhere in `bytes`.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.0.is_match(bytes)
    }

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.as_str() == other.as_str()
    }
}
