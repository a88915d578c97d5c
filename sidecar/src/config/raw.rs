//! The file as written: a tree of values that know their place, several files merged by table name.
//!
//! Not here: what the values mean (`value/`, `check/`).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::fault::{Fault, Place};

/// Largest configuration file that is read; a real one has a few kilobytes.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most files read from `conf.d`.
pub const FILES_MAX: usize = 1024;

/// Tables whose entries carry names of their own, so that several files may add to them.
const NAMED_TABLES: [&str; 2] = ["service", "upstream"];

/// A value and where it is written.
#[derive(Clone, PartialEq, Debug)]
pub struct Raw {
    pub value: Value,
    pub place: Place,
}

/// A value as TOML has it; numbers stay text until somebody says what they count.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    String(String),
    Integer(i128),
    Float(f64),
    Bool(bool),
    Date(String),
    List(Vec<Raw>),
    Table(Table),
}

/// Entries in the order of their keys.
pub type Table = Vec<Entry>;

/// A key, where it stands, and its value.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    pub key: String,
    pub place: Place,
    pub raw: Raw,
}

impl Value {
    /// The kind of value, with its article, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number with a fraction",
            Value::Bool(_) => "true or false",
            Value::Date(_) => "a date",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// Everything that was read.
#[derive(Debug)]
pub struct Files {
    /// The merged top-level tables.
    pub table: Table,
    /// The files, in the order they were read.
    pub paths: Vec<PathBuf>,
    /// The first file's name, for faults that have no place of their own.
    pub name: Arc<str>,
    /// The directory that relative paths count from.
    pub directory: PathBuf,
    /// A file could not be read or parsed: what seems absent may only be unreadable.
    pub broken: bool,
}

/// Reads `path` and `conf.d/*.toml` beside it, in the order of their names.
pub fn read(path: &Path, faults: &mut Vec<Fault>) -> Files {
    let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let mut files = Files {
        table: Table::new(),
        paths: Vec::new(),
        name: path.display().to_string().into(),
        directory: directory.clone(),
        broken: false,
    };
    let mut paths = vec![path.to_path_buf()];
    paths.extend(drop_ins(&directory.join("conf.d"), faults));
    for path in paths {
        let name: Arc<str> = path.display().to_string().into();
        match text_of(&path) {
            Ok(text) => {
                files.broken |= !merge(&mut files.table, parse(&name, &text, faults), faults)
            }
            Err(fix) => {
                files.broken = true;
                faults.push(Fault {
                    place: Place {
                        file: name,
                        line: 1,
                        column: 1,
                    },
                    key: String::new(),
                    what: "the file cannot be read".to_owned(),
                    fix,
                });
            }
        }
        files.paths.push(path);
    }
    files
}

/// Takes `text` for a file named `name`.
pub fn of_text(name: &str, text: &str, faults: &mut Vec<Fault>) -> Files {
    let name: Arc<str> = name.into();
    let mut table = Table::new();
    let whole = merge(&mut table, parse(&name, text, faults), faults);
    Files {
        table,
        paths: Vec::new(),
        name,
        directory: PathBuf::new(),
        broken: !whole,
    }
}

/// The `*.toml` files of `conf.d`, sorted; a directory that does not exist holds none.
fn drop_ins(directory: &Path, faults: &mut Vec<Fault>) -> Vec<PathBuf> {
    let mut fault = |what: String, fix: &str| {
        faults.push(Fault {
            place: Place {
                file: directory.display().to_string().into(),
                line: 1,
                column: 1,
            },
            key: String::new(),
            what,
            fix: fix.to_owned(),
        });
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            fault(
                format!("the directory cannot be read: {error}"),
                "let the sidecar's user read it, or remove it",
            );
            return Vec::new();
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    paths.sort();
    if paths.len() > FILES_MAX {
        fault(
            format!("{} files are more than {FILES_MAX}", paths.len()),
            "join some of them",
        );
        paths.truncate(FILES_MAX);
    }
    paths
}

/// The file's text, or how to make it readable.
fn text_of(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path)
        .map_err(|error| advice(path, &error))?
        .len();
    if size > FILE_BYTES_MAX {
        return Err(format!(
            "it has {size} bytes and at most {FILE_BYTES_MAX} are read: is it the right file?"
        ));
    }
    std::fs::read_to_string(path).map_err(|error| advice(path, &error))
}

fn advice(path: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => format!(
            "no such file: create {}, or name another one",
            path.display()
        ),
        std::io::ErrorKind::PermissionDenied => {
            "permission denied: let the sidecar's user read it".to_owned()
        }
        std::io::ErrorKind::InvalidData => "it is not UTF-8 text: save it as UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

/// Parses one file; the flag says whether all of it was TOML.
fn parse(name: &Arc<str>, text: &str, faults: &mut Vec<Fault>) -> (Table, bool) {
    let lines = Lines::of(name, text);
    let (tree, errors) = DeTable::parse_recoverable(text);
    let mut broken_lines = Vec::new();
    for error in &errors {
        let place = lines.place(error.span().map_or(0, |span| span.start));
        // One slip often makes the parser stumble several times over the same line.
        if broken_lines.contains(&place.line) {
            continue;
        }
        broken_lines.push(place.line);
        faults.push(Fault {
            place,
            key: String::new(),
            what: format!("not TOML: {}", error.message()),
            fix: syntax_fix(error.message()).to_owned(),
        });
    }
    let mut table = lines.table(tree.get_ref());
    drop_lines(&mut table, &broken_lines);
    (table, errors.is_empty())
}

fn syntax_fix(message: &str) -> &'static str {
    if message.contains("duplicate") {
        "write each key and each table once"
    } else {
        "write `key = value`, with strings (and values with units) in \"quotes\""
    }
}

/// Takes out what stands on lines that are already complained of.
fn drop_lines(table: &mut Table, lines: &[u32]) {
    table.retain(|entry| {
        !lines.contains(&entry.raw.place.line) || matches!(entry.raw.value, Value::Table(_))
    });
    for entry in table {
        if let Value::Table(inner) = &mut entry.raw.value {
            drop_lines(inner, lines);
        }
    }
}

/// Adds one file's tables to the whole; a table that stands in two files is a fault. Returns the file's flag.
fn merge(whole: &mut Table, (file, complete): (Table, bool), faults: &mut Vec<Fault>) -> bool {
    for entry in file {
        let known = whole.iter_mut().find(|known| known.key == entry.key);
        match known {
            None => whole.push(entry),
            Some(known) => match (&mut known.raw.value, entry.raw.value) {
                (Value::Table(named), Value::Table(more))
                    if NAMED_TABLES.contains(&entry.key.as_str()) =>
                {
                    for inner in more {
                        match named.iter().find(|known| known.key == inner.key) {
                            None => named.push(inner),
                            Some(known) => {
                                faults.push(twice(
                                    format!("{}.{}", entry.key, inner.key),
                                    inner.place,
                                    &known.place,
                                ));
                            }
                        }
                    }
                }
                _ => faults.push(twice(entry.key, entry.place, &known.place)),
            },
        }
    }
    complete
}

fn twice(key: String, place: Place, first: &Place) -> Fault {
    Fault {
        place,
        key,
        what: format!("this table stands at {first} already"),
        fix: "keep one of the two: files are merged by table name, not key by key".to_owned(),
    }
}

/// Where each line of a file begins.
struct Lines<'a> {
    name: &'a Arc<str>,
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(name: &'a Arc<str>, text: &'a str) -> Lines<'a> {
        let starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Lines { name, text, starts }
    }

    fn place(&self, at: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= at);
        let start = self.starts[line - 1];
        let column = self
            .text
            .get(start..at)
            .map_or(0, |before| before.chars().count());
        Place {
            file: Arc::clone(self.name),
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column + 1).unwrap_or(u32::MAX),
        }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let mut entries: Table = table
            .iter()
            .map(|(key, value)| {
                let place = self.place(key.span().start);
                Entry {
                    key: key.get_ref().to_string(),
                    raw: self.value(value),
                    place,
                }
            })
            .collect();
        entries.sort_by(|a, b| a.place.cmp(&b.place));
        entries
    }

    fn value(&self, value: &Spanned<DeValue<'_>>) -> Raw {
        let place = self.place(value.span().start);
        let value = match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(digits) => {
                // 128 bits hold every number TOML allows; what does not fit is too big for any key.
                Value::Integer(
                    i128::from_str_radix(digits.as_str(), digits.radix()).unwrap_or(i128::MAX),
                )
            }
            DeValue::Float(digits) => Value::Float(digits.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(flag) => Value::Bool(*flag),
            DeValue::Datetime(date) => Value::Date(date.to_string()),
            DeValue::Array(items) => {
                Value::List(items.iter().map(|item| self.value(item)).collect())
            }
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Raw { value, place }
    }
}
