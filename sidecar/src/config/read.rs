//! Takes keys out of a raw table one by one: each is read, its origin noted, and what is left over is a fault.
//!
//! Not here: what single values may say (`value/`) and what they may say together (`check/`).

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};

use super::{
    fault::{Fault, Place, nearest},
    host::Host,
    raw::{Entry, Raw, Table, Value},
    value::{self, Setting, Wrong},
};

/// Where an effective value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody wrote it.
    Default,
    /// It is written in a file.
    Written(Place),
    /// It is written in a file and has environment variables in it.
    Environment(Place, Vec<String>),
}

/// One effective value, for printing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Table names and key.
    pub path: Vec<String>,
    /// The value as TOML; secrets are hidden.
    pub shown: String,
    /// Where it came from.
    pub origin: Origin,
}

/// What reading a configuration gathers beside the values: faults, and the effective lines.
pub struct Sheet<'h> {
    pub host: &'h Host,
    /// Relative paths of secrets count from here.
    pub directory: PathBuf,
    /// Part of the files could not be read: what is absent may stand there.
    pub broken: bool,
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
    lines: RefCell<Vec<Line>>,
    secrets: RefCell<Vec<PathBuf>>,
}

/// What a [`Sheet`] has gathered.
pub struct Parts {
    /// What must not be.
    pub faults: Vec<Fault>,
    /// What may be and is seldom meant.
    pub warnings: Vec<Fault>,
    /// The effective values.
    pub lines: Vec<Line>,
    /// The files that secrets were read from.
    pub secrets: Vec<PathBuf>,
}

impl<'h> Sheet<'h> {
    pub fn new(host: &'h Host, directory: PathBuf, broken: bool, faults: Vec<Fault>) -> Sheet<'h> {
        Sheet {
            host,
            directory,
            broken,
            faults: RefCell::new(faults),
            warnings: RefCell::default(),
            lines: RefCell::default(),
            secrets: RefCell::default(),
        }
    }

    /// What all of it came to.
    pub fn into_parts(self) -> Parts {
        Parts {
            faults: self.faults.into_inner(),
            warnings: self.warnings.into_inner(),
            lines: self.lines.into_inner(),
            secrets: self.secrets.into_inner(),
        }
    }

    pub fn fault(&self, fault: Fault) {
        self.faults.borrow_mut().push(fault);
    }

    fn note(&self, path: Vec<String>, shown: String, origin: Origin) {
        self.lines.borrow_mut().push(Line {
            path,
            shown,
            origin,
        });
    }

    /// The value with every `${env:X}` in it filled in.
    fn filled(&self, raw: &Raw) -> Result<(Value, Origin), Wrong> {
        let Value::String(text) = &raw.value else {
            return Ok((raw.value.clone(), Origin::Written(raw.place.clone())));
        };
        let (text, names) = value::fill(text, |name| (self.host.env)(name))?;
        let origin = if names.is_empty() {
            Origin::Written(raw.place.clone())
        } else {
            Origin::Environment(raw.place.clone(), names)
        };
        Ok((Value::String(text), origin))
    }
}

/// The keys of one table, to be taken out one by one.
pub struct Keys<'a> {
    sheet: &'a Sheet<'a>,
    path: Vec<String>,
    table: &'a [Entry],
    place: Place,
    /// Names asked for so far: what a typing error may have meant.
    known: RefCell<Vec<&'static str>>,
    /// Names that a later version knows.
    later: &'static [&'static str],
    /// An item of a list: its list is noted as one value.
    quiet: bool,
}

impl<'a> Keys<'a> {
    pub fn new(
        sheet: &'a Sheet<'a>,
        path: Vec<String>,
        table: &'a [Entry],
        place: Place,
        later: &'static [&'static str],
    ) -> Keys<'a> {
        Keys {
            sheet,
            path,
            table,
            place,
            known: RefCell::default(),
            later,
            quiet: false,
        }
    }

    pub fn sheet(&self) -> &'a Sheet<'a> {
        self.sheet
    }

    fn entry(&self, key: &'static str) -> Option<&'a Entry> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        self.table.iter().find(|entry| entry.key == key)
    }

    /// Whether somebody wrote this key.
    pub fn has(&self, key: &'static str) -> bool {
        self.entry(key).is_some()
    }

    /// The value as written, for shapes of its own.
    pub fn raw(&self, key: &'static str) -> Option<&'a Raw> {
        self.entry(key).map(|entry| &entry.raw)
    }

    /// Where `key` is written; where its table is, if it is not.
    pub fn place(&self, key: &'static str) -> Place {
        self.entry(key)
            .map_or_else(|| self.place.clone(), |entry| entry.raw.place.clone())
    }

    /// The key's whole path.
    pub fn path(&self, key: &str) -> String {
        value::dotted(self.path.iter().map(String::as_str).chain([key]))
    }

    fn whole_path(&self, key: &str) -> Vec<String> {
        let mut path = self.path.clone();
        path.push(key.to_owned());
        path
    }

    /// Complains of `key` where it is written, or of its table.
    pub fn wrong(&self, key: &'static str, what: impl Into<String>, fix: impl Into<String>) {
        self.wrong_at(self.place(key), key, Wrong::new(what, fix));
    }

    /// Says of `key` that it is seldom meant so; the configuration holds all the same.
    pub fn warn(&self, key: &'static str, what: impl Into<String>, fix: impl Into<String>) {
        self.sheet.warnings.borrow_mut().push(Fault {
            place: self.place(key),
            key: self.path(key),
            what: what.into(),
            fix: fix.into(),
        });
    }

    /// Complains that `key` is not there, unless it may stand in what could not be read.
    pub fn absent(&self, key: &'static str, what: impl Into<String>, fix: impl Into<String>) {
        if !self.sheet.broken {
            self.wrong(key, what, fix);
        }
    }

    pub fn wrong_at(&self, place: Place, key: &str, wrong: Wrong) {
        self.sheet.fault(Fault {
            place,
            key: self.path(key),
            what: wrong.what,
            fix: wrong.fix,
        });
    }

    /// The value, or `default` if nobody wrote one.
    pub fn or<T: Setting>(&self, key: &'static str, default: T) -> T {
        match self.entry(key) {
            None => {
                self.note_default(key, default.show());
                default
            }
            Some(entry) => self.read(key, &entry.raw).unwrap_or(default),
        }
    }

    /// The value, if somebody wrote one.
    pub fn optional<T: Setting>(&self, key: &'static str) -> Option<T> {
        let entry = self.entry(key)?;
        self.read(key, &entry.raw)
    }

    /// The values of a list, or of a single value standing for a list of one.
    pub fn list<T: Setting>(&self, key: &'static str, default: Vec<T>) -> Vec<T> {
        let Some(entry) = self.entry(key) else {
            self.note_default(key, value::show_list(&default));
            return default;
        };
        let items = match &entry.raw.value {
            Value::List(items) => items.as_slice(),
            _ => std::slice::from_ref(&entry.raw),
        };
        let mut names = Vec::new();
        let mut values = Vec::new();
        for item in items {
            if let Some((value, origin)) = self.parsed::<T>(key, item) {
                if let Origin::Environment(_, more) = origin {
                    names.extend(more);
                }
                values.push(value);
            }
        }
        let place = entry.raw.place.clone();
        let origin = if names.is_empty() {
            Origin::Written(place)
        } else {
            Origin::Environment(place, names)
        };
        self.sheet
            .note(self.whole_path(key), value::show_list(&values), origin);
        values
    }

    /// A table's entries as pairs of words, in the order of their names.
    pub fn words(&self, key: &'static str) -> Vec<(Box<str>, Box<str>)> {
        let Some(entry) = self.entry(key) else {
            return Vec::new();
        };
        let Value::Table(table) = &entry.raw.value else {
            self.wrong(
                key,
                format!("{} is not a table", entry.raw.value.kind()),
                format!("write {key} = {{ name = \"value\" }}"),
            );
            return Vec::new();
        };
        let inner = self.inner_of(key, table, entry.place.clone(), &[]);
        let mut words: Vec<(Box<str>, Box<str>)> = table
            .iter()
            .filter_map(|word| {
                let text: Box<str> = inner.read(&word.key, &word.raw)?;
                Some((word.key.as_str().into(), text))
            })
            .collect();
        words.sort();
        words
    }

    /// A secret: written as it is, from the environment, or as `file:/path`.
    pub fn secret(&self, key: &'static str) -> Option<String> {
        let entry = self.entry(key)?;
        self.secret_of(key, &entry.raw)
    }

    /// A file that is part of the configuration: a change of it is a change of the whole. Relative paths count from
    /// the configuration's directory.
    pub fn watched_file(&self, key: &'static str) -> Option<PathBuf> {
        let path: Box<str> = self.optional(key)?;
        let path = self.sheet.directory.join(Path::new(&*path));
        self.sheet.secrets.borrow_mut().push(path.clone());
        Some(path)
    }

    /// Several secrets.
    pub fn secrets(&self, key: &'static str) -> Vec<(Raw, String)> {
        let Some(entry) = self.entry(key) else {
            return Vec::new();
        };
        let items = match &entry.raw.value {
            Value::List(items) => items.as_slice(),
            _ => std::slice::from_ref(&entry.raw),
        };
        items
            .iter()
            .filter_map(|item| Some((item.clone(), self.secret_of(key, item)?)))
            .collect()
    }

    fn secret_of(&self, key: &'static str, raw: &Raw) -> Option<String> {
        let (text, origin) = self.parsed_with(key, raw, Box::<str>::read)?;
        let read = match text.strip_prefix("file:") {
            None => Ok((text.to_string(), "\"(hidden)\"".to_owned())),
            Some(path) => {
                let path = self.sheet.directory.join(Path::new(path));
                self.sheet.secrets.borrow_mut().push(path.clone());
                let shown = value::quote(&format!("file:{}", path.display()));
                super::host::secret_file(&path).map(|secret| (secret, shown))
            }
        };
        match read {
            Ok((secret, shown)) => {
                self.sheet.note(self.whole_path(key), shown, origin);
                Some(secret)
            }
            Err(wrong) => {
                self.wrong_at(raw.place.clone(), key, wrong);
                None
            }
        }
    }

    /// The table under `key`; an empty one if it is not there, so that its defaults are taken and shown.
    pub fn inner(&self, key: &'static str, later: &'static [&'static str]) -> Keys<'a> {
        let Some(entry) = self.entry(key) else {
            return self.inner_of(key, &[], self.place.clone(), later);
        };
        match &entry.raw.value {
            Value::Table(table) => self.inner_of(key, table, entry.place.clone(), later),
            other => {
                self.wrong(
                    key,
                    format!("{} is not a table", other.kind()),
                    format!("write {key} = {{ … }} or a table [{}]", self.path(key)),
                );
                self.inner_of(key, &[], entry.place.clone(), later)
            }
        }
    }

    /// The tables under `key` that carry names of their own, such as `[service.checkout]`.
    pub fn named(
        &self,
        key: &'static str,
        later: &'static [&'static str],
    ) -> Vec<(&'a str, Keys<'a>)> {
        let Some(entry) = self.entry(key) else {
            return Vec::new();
        };
        let Value::Table(table) = &entry.raw.value else {
            self.wrong(
                key,
                format!("{} is not a table", entry.raw.value.kind()),
                format!("write a table [{key}.NAME]"),
            );
            return Vec::new();
        };
        let mut named = Vec::new();
        for inner in table {
            match &inner.raw.value {
                Value::Table(table) => {
                    let mut path = self.whole_path(key);
                    path.push(inner.key.clone());
                    let keys = Keys::new(self.sheet, path, table, inner.place.clone(), later);
                    named.push((inner.key.as_str(), keys));
                }
                other => self.wrong_at(
                    inner.place.clone(),
                    &format!("{key}.{}", inner.key),
                    Wrong::new(
                        format!("{} is not a table", other.kind()),
                        format!("every entry of [{key}] is a table: [{key}.NAME]"),
                    ),
                ),
            }
        }
        named
    }

    /// The table that is item `at` of the list `key`.
    pub fn item(&self, key: &str, at: usize, table: &'a [Entry], place: Place) -> Keys<'a> {
        let keys = self.inner_of(&format!("{key}[{at}]"), table, place, &[]);
        Keys {
            quiet: true,
            ..keys
        }
    }

    fn inner_of(
        &self,
        key: &str,
        table: &'a [Entry],
        place: Place,
        later: &'static [&'static str],
    ) -> Keys<'a> {
        Keys::new(self.sheet, self.whole_path(key), table, place, later)
    }

    fn note_default(&self, key: &str, shown: String) {
        self.sheet
            .note(self.whole_path(key), shown, Origin::Default);
    }

    /// Notes a value that was read from a shape of its own.
    pub fn note_written(&self, key: &'static str, shown: String) {
        let origin = match self.entry(key) {
            Some(entry) => Origin::Written(entry.raw.place.clone()),
            None => Origin::Default,
        };
        self.sheet.note(self.whole_path(key), shown, origin);
    }

    fn read<T: Setting>(&self, key: &str, raw: &Raw) -> Option<T> {
        let (value, origin) = self.parsed::<T>(key, raw)?;
        if self.quiet {
            return Some(value);
        }
        self.sheet.note(self.whole_path(key), value.show(), origin);
        Some(value)
    }

    fn parsed<T: Setting>(&self, key: &str, raw: &Raw) -> Option<(T, Origin)> {
        self.parsed_with(key, raw, T::read)
    }

    /// One value, filled in and read; a fault and `None` if it is wrong.
    pub fn parsed_with<T>(
        &self,
        key: &str,
        raw: &Raw,
        read: impl FnOnce(&Value) -> Result<T, Wrong>,
    ) -> Option<(T, Origin)> {
        let read = self
            .sheet
            .filled(raw)
            .and_then(|(value, origin)| Ok((read(&value)?, origin)));
        read.map_err(|wrong| self.wrong_at(raw.place.clone(), key, wrong))
            .ok()
    }

    /// Complains of every key that nobody asked for.
    pub fn done(self) {
        let known = self.known.borrow().clone();
        for entry in self
            .table
            .iter()
            .filter(|entry| !known.contains(&entry.key.as_str()))
        {
            let key = entry.key.as_str();
            let wrong = if self.later.contains(&key) {
                Wrong::later(&format!("the key {key:?}"))
            } else {
                Wrong::new("no such key", instead(key, &known))
            };
            self.wrong_at(entry.place.clone(), key, wrong);
        }
    }
}

/// What to write instead of a key that does not exist.
fn instead(key: &str, known: &[&str]) -> String {
    match nearest(key, known) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// The table of a list's item, as keys; `None` if it is no table.
pub fn table_of(raw: &Raw) -> Option<&Table> {
    match &raw.value {
        Value::Table(table) => Some(table),
        _ => None,
    }
}
