//! Names: of services, which are called, and of everything else, which is only told apart.
//!
//! Not here: host names and addresses (`place.rs`).

use super::{Setting, Value, Wrong, quote, text};

/// Longest name of a service, instance, node or zone: all of them travel in every record.
pub const NAME_BYTES_MAX: usize = 63;

/// The name of a service or an upstream: part of an authority, so it is a host name in lower case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceName(pub Box<str>);

impl ServiceName {
    pub fn parse(text: &str) -> Result<ServiceName, Wrong> {
        let fix = "use lower-case letters, digits, \"-\", \"_\" and \".\", beginning with a letter or digit, at most 63";
        let well = !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && text.starts_with(|letter: char| letter.is_ascii_alphanumeric())
            && text.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
            });
        if well {
            Ok(ServiceName(text.into()))
        } else {
            Err(Wrong::new(
                format!("{text:?} cannot be called by name"),
                fix,
            ))
        }
    }
}

impl Setting for ServiceName {
    fn read(value: &Value) -> Result<ServiceName, Wrong> {
        ServiceName::parse(text(value, "payments")?)
    }

    fn show(&self) -> String {
        quote(&self.0)
    }
}

/// The name of a node, zone, region, cluster or instance: one printable word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label(pub Box<str>);

impl Setting for Label {
    fn read(value: &Value) -> Result<Label, Wrong> {
        let text = text(value, "eu-1a")?;
        let well = !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"\"\\/,".contains(&byte));
        if well {
            Ok(Label(text.into()))
        } else {
            Err(Wrong::new(
                format!("{text:?} is not a name"),
                "use 1 to 63 letters, digits and signs, without spaces, quotes, slashes and commas",
            ))
        }
    }

    fn show(&self) -> String {
        quote(&self.0)
    }
}
