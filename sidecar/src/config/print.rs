//! The effective configuration as TOML: every value with where it came from, secrets hidden.
//!
//! Not here: how values are read (`read.rs` notes them as it goes).

use std::collections::BTreeMap;

use super::{
    read::{Line, Origin},
    value::{bare, dotted},
};

/// The order of tables on paper, whatever order they were read in.
const TABLES: [&str; 7] = [
    "node", "gossip", "admin", "outbound", "drain", "service", "upstream",
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

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Default => "default".to_owned(),
        Origin::Written(place) => format!("{}:{}", place.file, place.line),
        Origin::Environment(place, names) => {
            format!("env {} ({}:{})", names.join(", "), place.file, place.line)
        }
    }
}
