//! The words of an upstream's keys: algorithms, versions, modes, retry classes, budgets.
//!
//! Not here: what they decide (`mesh-core`).

use mesh_core::policy::{Balance, HttpVersion, ProxyVersion, ZoneMode};

use crate::config::{
    ServerNames,
    raw::Value,
    value::{self, Rate, Setting, Share, Wrong},
};

/// Repeats allowed: a share of requests, and so many a second beside it.
pub struct Budget {
    pub share: f64,
    pub per_second: f64,
}

impl Setting for Budget {
    fn read(value: &Value) -> Result<Budget, Wrong> {
        let whole = value::text(value, "20% + 3/s")?;
        let (mut share, mut rate) = (None, None);
        for part in whole.split('+') {
            match (Share::parse(part), Rate::parse(part)) {
                (Some(Share(part)), _) if share.is_none() => share = Some(part),
                (_, Some(Rate(part))) if rate.is_none() => rate = Some(part),
                _ => {
                    return Err(Wrong::new(
                        format!("{whole:?} is not a budget"),
                        "write a share of requests and a rate beside it, like \"20% + 3/s\"",
                    ));
                }
            }
        }
        Ok(Budget {
            share: share.unwrap_or(0.0),
            per_second: rate.unwrap_or(0.0),
        })
    }

    fn show(&self) -> String {
        let (percent, rate) = (
            value::rounded(self.share * 100.0),
            value::rounded(self.per_second),
        );
        format!("\"{percent}% + {rate}/s\"")
    }
}

/// Outcomes that deserve a repeat.
#[derive(Clone, Copy, PartialEq)]
pub enum Class {
    GatewayError,
    ServerError,
    Reset,
    NonIdempotent,
}

/// One class, as a list of them has it.
pub struct OnClass(pub Class);

const CLASSES: [(&str, Class); 4] = [
    ("gateway-error", Class::GatewayError),
    ("5xx", Class::ServerError),
    ("reset", Class::Reset),
    ("non-idempotent", Class::NonIdempotent),
];

impl Setting for OnClass {
    fn read(value: &Value) -> Result<OnClass, Wrong> {
        value::word(value, &CLASSES, &[]).map(OnClass)
    }

    fn show(&self) -> String {
        value::name_of(&CLASSES, self.0)
    }
}

pub const BALANCES: [(&str, Balance); 5] = [
    ("least_response_time", Balance::LeastResponseTime),
    ("round_robin", Balance::RoundRobin),
    ("least_connections", Balance::LeastConnections),
    ("power_of_two", Balance::PowerOfTwo),
    ("random", Balance::Random),
];

const HTTP_VERSIONS: [(&str, HttpVersion); 3] = [
    ("auto", HttpVersion::Auto),
    ("1", HttpVersion::One),
    ("2", HttpVersion::Two),
];

impl Setting for HttpVersion {
    fn read(value: &Value) -> Result<HttpVersion, Wrong> {
        value::word(value, &HTTP_VERSIONS, &["3"])
    }

    fn show(&self) -> String {
        value::name_of(&HTTP_VERSIONS, *self)
    }
}

const PROXY_VERSIONS: [(&str, ProxyVersion); 2] =
    [("v1", ProxyVersion::One), ("v2", ProxyVersion::Two)];

impl Setting for ProxyVersion {
    fn read(value: &Value) -> Result<ProxyVersion, Wrong> {
        value::word(value, &PROXY_VERSIONS, &[])
    }

    fn show(&self) -> String {
        value::name_of(&PROXY_VERSIONS, *self)
    }
}

impl Setting for ServerNames {
    fn read(value: &Value) -> Result<ServerNames, Wrong> {
        let text = value::text(value, "*.b.example")?;
        if text == "*" {
            return Ok(ServerNames::Others);
        }
        let name = text.strip_prefix("*.").unwrap_or(text);
        let label = |label: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            (1..=63).contains(&label.len()) && label.bytes().all(plain)
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(Wrong::new(
                format!("{text:?} is no server name"),
                "write a host name, \"*.\" and a host name for all below it, or \"*\" for all others",
            ));
        }
        let name = name.to_ascii_lowercase();
        Ok(if text.starts_with("*.") {
            ServerNames::Below(format!(".{name}").into())
        } else {
            ServerNames::One(name.into())
        })
    }

    fn show(&self) -> String {
        value::quote(&match self {
            ServerNames::One(name) => name.to_string(),
            ServerNames::Below(end) => format!("*{end}"),
            ServerNames::Others => "*".to_owned(),
        })
    }
}

const ZONE_MODES: [(&str, ZoneMode); 3] = [
    ("waterfill", ZoneMode::Waterfill),
    ("priority", ZoneMode::Priority),
    ("ignore", ZoneMode::Ignore),
];

impl Setting for ZoneMode {
    fn read(value: &Value) -> Result<ZoneMode, Wrong> {
        value::word(value, &ZONE_MODES, &[])
    }

    fn show(&self) -> String {
        value::name_of(&ZONE_MODES, *self)
    }
}
