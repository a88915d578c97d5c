//! The effective configuration as TOML: every value with where it came from, secrets hidden.
//!
//! Not here: how values are read (`read.rs` notes them as it goes).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    read::{Line, Origin},
    value::{bare, dotted},
};

/// The order of tables on paper, whatever order they were read in.
const TABLES: [&str; 8] = [
    "node",
    "gossip",
    "admin",
    "outbound",
    "drain",
    "access_log",
    "service",
    "upstream",
];
/// Column where origins begin, if values are shorter.
const ORIGIN_COLUMN: usize = 48;

/// Renders the lines; the text is a configuration again, but for secrets.
pub fn render(lines: &[Line]) -> String {
    let mut tables: BTreeMap<(usize, Vec<&str>), Vec<&Line>> = BTreeMap::new();
    for line in lines {
        let Some((_, parents)) = line.path.split_last() else {
            continue;
        };
        let parents: Vec<&str> = parents.iter().map(String::as_str).collect();
        let rank = TABLES
            .iter()
            .position(|table| parents.first() == Some(table))
            .unwrap_or(TABLES.len());
        tables.entry((rank, parents)).or_default().push(line);
    }
    let mut text = String::new();
    for ((_, parents), lines) in tables {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("[{}]\n", dotted(parents.into_iter())));
        for line in lines {
            let key = line.path.last().map_or("", String::as_str);
            let value = format!("{} = {}", bare(key), line.shown);
            text.push_str(&format!(
                "{value:ORIGIN_COLUMN$} # {}\n",
                origin(&line.origin)
            ));
        }
    }
    text
}

/// The lines as nested tables, and where each came from.
pub fn json(lines: &[Line]) -> Value {
    let mut config = Map::new();
    let mut origins = Map::new();
    for line in lines {
        insert(&mut config, &line.path, value_of(&line.shown));
        let path = dotted(line.path.iter().map(String::as_str));
        origins.insert(path, origin(&line.origin).into());
    }
    serde_json::json!({ "config": config, "origins": origins })
}

fn insert(table: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [key, rest @ ..] => {
            let inner = table
                .entry(key.clone())
                .or_insert_with(|| Value::Object(Default::default()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// A value shown as TOML, as JSON.
fn value_of(shown: &str) -> Value {
    let line = toml::from_str::<BTreeMap<String, Value>>(&format!("value = {shown}"));
    line.ok()
        .and_then(|mut line| line.remove("value"))
        .unwrap_or_else(|| shown.into())
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Default => "default".to_owned(),
        Origin::Written(place) => format!("{}:{}", place.file, place.line),
        Origin::Environment(place, names) => {
            format!("env {} ({}:{})", names.join(", "), place.file, place.line)
        }
    }
}
