//! The value at one place of a JSON document of which only the beginning may be there.
//!
//! Not here: which place, and what the value is for (`request_key.rs`). Nothing is built of the document but that value.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What a number is written with: at the end of a piece it may go on in the next.
const OF_NUMBERS: &[u8] = b"0123456789+-.eE";

/// Whether `text` points into a document: steps that each begin with `/`, in which `~0` stands for `~` and `~1` for `/`
/// (RFC 6901).
pub fn is_pointer(text: &str) -> bool {
    let mut steps = text.split('/');
    let begins_well = steps.next() == Some("");
    let mut tildes = text.split('~').skip(1);
    let is_escaped = |rest: &str| rest.starts_with(['0', '1']);
    begins_well && !text.is_empty() && tildes.all(is_escaped)
}

/// The string, number or truth value that `pointer` leads to in `document`, as its text; a string without its quotes and
/// escapes. `None` for anything else, for nothing, and for what is not JSON up to there.
///
/// `is_whole`: nothing of the document follows.
pub fn find(document: &[u8], pointer: &str, is_whole: bool) -> Option<String> {
    let known = match document.iter().rposition(|byte| !OF_NUMBERS.contains(byte)) {
        Some(last) if !is_whole => &document[..=last],
        _ => document,
    };
    let mut found = None;
    let steps = pointer
        .strip_prefix('/')
        .map(|rest| rest.split('/').map(unescaped));
    let steps: Vec<String> = steps.into_iter().flatten().collect();
    let seek = Seek {
        steps: &steps,
        found: &mut found,
    };
    let mut reader = serde_json::Deserializer::from_slice(known);
    // It ends with an error as soon as the value is known, or when the document ends before it.
    let _ = seek.deserialize(&mut reader);
    found
}

fn unescaped(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

/// Goes down the steps that are left.
struct Seek<'a> {
    steps: &'a [String],
    found: &'a mut Option<String>,
}

impl Seek<'_> {
    fn ends_with<E: Error>(self, value: impl fmt::Display) -> Result<(), E> {
        if self.steps.is_empty() {
            *self.found = Some(value.to_string());
        }
        Err(done())
    }
}

/// What ends the search; nobody reads it.
fn done<E: Error>() -> E {
    E::custom("done")
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.ends_with(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.ends_with(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.ends_with(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.ends_with(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.ends_with(value)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let [step, rest @ ..] = self.steps else {
            return Err(done());
        };
        while let Some(is_next) = map.next_key_seed(Named(step))? {
            if is_next {
                let found = self.found;
                map.next_value_seed(Seek { steps: rest, found })?;
                return Err(done());
            }
            map.next_value::<IgnoredAny>()?;
        }
        Err(done())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let [step, rest @ ..] = self.steps else {
            return Err(done());
        };
        // As it is written in a pointer: no sign and no zeros before it.
        let index = step.parse::<usize>().ok();
        let Some(index) = index.filter(|index| index.to_string() == *step) else {
            return Err(done());
        };
        for _ in 0..index {
            if items.next_element::<IgnoredAny>()?.is_none() {
                return Err(done());
            }
        }
        let found = self.found;
        items.next_element_seed(Seek { steps: rest, found })?;
        Err(done())
    }
}

/// Whether a key has this name.
struct Named<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Named<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"a": {"x": 1, "user": "an\u006e\"a"}, "user": {"id": 17, "vip": true, "rate": 1.50},
        "list": ["p", {"q": -3}], "a/b~c": "odd", "none": null, "user": {"id": 18}}"#;

    #[test]
    fn a_value_is_found_wherever_a_pointer_leads() {
        for (pointer, want) in [
            ("/user/id", Some("17")),
            ("/user/vip", Some("true")),
            ("/user/rate", Some("1.5")),
            ("/a/user", Some("ann\"a")),
            ("/list/0", Some("p")),
            ("/list/1/q", Some("-3")),
            ("/a~1b~0c", Some("odd")),
            ("/user", None),
            ("/list", None),
            ("/list/2", None),
            ("/list/00", None),
            ("/list/-", None),
            ("/none", None),
            ("/user/id/x", None),
            ("/nobody", None),
            ("/", None),
        ] {
            let found = find(DOCUMENT.as_bytes(), pointer, true);
            assert_eq!(found.as_deref(), want, "{pointer}");
        }
        assert_eq!(find(b"17", "/a", true), None);
        assert_eq!(find(b"", "/a", true), None);
        assert_eq!(find(b"{]", "/a", true), None);
    }

    #[test]
    fn of_a_beginning_it_tells_what_is_sure() {
        for cut in 0..DOCUMENT.len() {
            let found = find(&DOCUMENT.as_bytes()[..cut], "/user/id", false);
            let known = DOCUMENT.find("17").is_some_and(|at| cut > at + 2);
            assert_eq!(found.as_deref(), known.then_some("17"), "{cut} bytes");
        }
        assert_eq!(find(b"[17", "/0", false), None, "it may be 170");
    }

    #[test]
    fn deep_documents_and_bytes_that_are_no_text_are_no_trap() {
        let deep = "[".repeat(100_000);
        assert_eq!(find(deep.as_bytes(), "/0/0/0", false), None);
        let open = format!("{{\"a\": {deep}");
        assert_eq!(find(open.as_bytes(), "/b", false), None);
        assert_eq!(find(b"{\"a\": \"\xff\"}", "/a", true), None);
    }

    #[test]
    fn a_pointer_is_steps_each_behind_a_slash() {
        for good in ["/a", "/a/b", "/", "/a//b", "/~0~1", "/0"] {
            assert!(is_pointer(good), "{good}");
        }
        for bad in ["", "a", "a/b", "/~", "/~2", "/a~"] {
            assert!(!is_pointer(bad), "{bad}");
        }
    }
}
