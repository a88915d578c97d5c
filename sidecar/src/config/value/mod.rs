//! Single values: how each kind is read and how it is shown again, and what references become.
//!
//! Not here: keys and tables (`read.rs`), and what values may say together (`check/`). Numbers with units stand in
//! `number.rs`, addresses and paths in `place.rs`, names in `name.rs`.

use super::{fault::nearest, raw::Value};

mod name;
mod number;
mod place;

#[cfg(test)]
mod tests;

pub use name::{Label, ServiceName};
pub use number::{Bytes, Count, Lasting, Port, Rate, Retries, Share, Workers, rounded};
pub use place::{host_and_port, socket_path};

/// What is wrong with a value, and how to put it right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    pub what: String,
    pub fix: String,
}

impl Wrong {
    pub fn new(what: impl Into<String>, fix: impl Into<String>) -> Wrong {
        Wrong {
            what: what.into(),
            fix: fix.into(),
        }
    }

    /// Something that only a later version of Starling does.
    pub fn later(thing: &str) -> Wrong {
        Wrong::new(
            format!("{thing} is not in this version"),
            "remove it, or run a version that has it",
        )
    }
}

/// A kind of value a key may hold.
pub trait Setting: Sized {
    /// Reads a value whose references are filled in.
    fn read(value: &Value) -> Result<Self, Wrong>;
    /// The value as TOML.
    fn show(&self) -> String;
}

/// Fills in every `${env:X}`; yields the text and the names used.
pub fn fill(
    text: &str,
    env: impl Fn(&str) -> Option<String>,
) -> Result<(String, Vec<String>), Wrong> {
    let (mut filled, mut names, mut rest) = (String::new(), Vec::new(), text);
    while let Some(at) = rest.find("${") {
        filled.push_str(&rest[..at]);
        let Some((reference, after)) = rest[at + 2..].split_once('}') else {
            return Err(Wrong::new(
                format!("{text:?} has a \"${{\" without its \"}}\""),
                "write ${env:NAME}",
            ));
        };
        let Some(name) = reference.strip_prefix("env:") else {
            return Err(Wrong::new(
                format!("${{{reference}}} is no reference"),
                "write ${env:NAME}",
            ));
        };
        let Some(value) = env(name) else {
            return Err(Wrong::new(
                format!("the environment has no variable {name}"),
                format!("set {name} for the sidecar, or write the value itself"),
            ));
        };
        filled.push_str(&value);
        names.push(name.to_owned());
        rest = after;
    }
    filled.push_str(rest);
    Ok((filled, names))
}

/// A string as TOML.
pub fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            letter if letter.is_control() => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(letter)))
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// A key as TOML: bare where it may be.
pub fn bare(key: &str) -> String {
    let plain = !key.is_empty()
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if plain { key.to_owned() } else { quote(key) }
}

/// A path of keys as TOML.
pub fn dotted<'a>(path: impl Iterator<Item = &'a str>) -> String {
    // A key of the form `endpoints[1]` is how a list's item is called; it is nobody's key.
    path.map(|key| {
        if key.ends_with(']') {
            key.to_owned()
        } else {
            bare(key)
        }
    })
    .collect::<Vec<_>>()
    .join(".")
}

pub fn show_list<T: Setting>(items: &[T]) -> String {
    format!(
        "[{}]",
        items
            .iter()
            .map(Setting::show)
            .collect::<Vec<_>>()
            .join(", ")
    )
}

/// The text of a string, or what to write instead.
pub fn text<'a>(value: &'a Value, example: &str) -> Result<&'a str, Wrong> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Wrong::new(
            format!("{} is not a string", other.kind()),
            format!("write it like {example:?}"),
        )),
    }
}

/// One of several words.
pub fn word<T: Copy>(value: &Value, words: &[(&str, T)], later: &[&str]) -> Result<T, Wrong> {
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let text = text(value, names[0])?;
    if let Some((_, meaning)) = words.iter().find(|(name, _)| *name == text) {
        return Ok(*meaning);
    }
    if later.contains(&text) {
        return Err(Wrong::later(&format!("{text:?}")));
    }
    let fix = match nearest(text, &names) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => format!(
            "write one of {}",
            names
                .iter()
                .map(|name| quote(name))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    Err(Wrong::new(format!("{text:?} is unknown here"), fix))
}

/// The name that `word` reads as `meaning`.
pub fn name_of<T: Copy + PartialEq>(words: &[(&'static str, T)], meaning: T) -> String {
    let name = words
        .iter()
        .find(|(_, known)| *known == meaning)
        .map_or("", |(name, _)| name);
    quote(name)
}

impl Setting for bool {
    fn read(value: &Value) -> Result<bool, Wrong> {
        match value {
            Value::Bool(flag) => Ok(*flag),
            Value::String(text) if text == "true" => Ok(true),
            Value::String(text) if text == "false" => Ok(false),
            other => Err(Wrong::new(
                format!("{} is neither true nor false", other.kind()),
                "write true or false",
            )),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for Box<str> {
    fn read(value: &Value) -> Result<Box<str>, Wrong> {
        text(value, "some words").map(Into::into)
    }

    fn show(&self) -> String {
        quote(self)
    }
}
