//! Draws rows of JSON as a table: columns as wide as they must be, numbers to the right.
//!
//! Not here: which columns a listing has.

use serde_json::Value;

/// Between two columns.
const GAP: &str = "  ";

/// One column: its heading, and what a row has in it.
#[derive(Clone, Copy)]
pub struct Column {
    /// The heading.
    pub title: &'static str,
    /// Numbers stand on the right.
    pub right: bool,
    /// The cell.
    pub cell: fn(&Value) -> String,
}

/// A column of words.
pub const fn words(title: &'static str, cell: fn(&Value) -> String) -> Column {
    Column {
        title,
        right: false,
        cell,
    }
}

/// A column of numbers.
pub const fn numbers(title: &'static str, cell: fn(&Value) -> String) -> Column {
    Column {
        title,
        right: true,
        cell,
    }
}

/// Draws a list of objects; an empty one as `nothing`.
pub fn draw(rows: &Value, columns: &[Column], nothing: &str) -> String {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return format!("{nothing}\n");
    }
    let titles: Vec<String> = columns
        .iter()
        .map(|column| column.title.to_owned())
        .collect();
    let mut lines = vec![titles];
    lines.extend(
        rows.iter()
            .map(|row| columns.iter().map(|column| (column.cell)(row)).collect()),
    );
    let width = |at: usize| {
        lines
            .iter()
            .map(|line| line[at].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut drawn = String::new();
        for ((cell, column), width) in line.iter().zip(columns).zip(&widths) {
            if !drawn.is_empty() {
                drawn.push_str(GAP);
            }
            if column.right {
                drawn.push_str(&format!("{cell:>width$}"));
            } else {
                drawn.push_str(&format!("{cell:<width$}"));
            }
        }
        text.push_str(drawn.trim_end());
        text.push('\n');
    }
    text
}

/// The text of a field; a dash if there is none.
pub fn text(row: &Value, key: &str) -> String {
    match &row[key] {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Null | Value::String(_) => "-".to_owned(),
        other => other.to_string(),
    }
}

/// A number with so many digits after the point; a dash if there is none.
pub fn number(row: &Value, key: &str, digits: usize) -> String {
    row[key]
        .as_f64()
        .map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
}

/// A share as percent.
pub fn percent(row: &Value, key: &str) -> String {
    row[key]
        .as_f64()
        .map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", share * 100.0))
}

/// Milliseconds as a person says them.
pub fn span(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis}ms"),
        1_000..60_000 => format!("{}.{}s", millis / 1_000, millis % 1_000 / 100),
        60_000..3_600_000 => format!("{}m{:02}s", millis / 60_000, millis / 1_000 % 60),
        3_600_000..86_400_000 => format!("{}h{:02}m", millis / 3_600_000, millis / 60_000 % 60),
        _ => format!("{}d{:02}h", millis / 86_400_000, millis / 3_600_000 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_stand_on_the_right() {
        let columns = [
            words("NAME", |row| text(row, "name")),
            numbers("COUNT", |row| text(row, "count")),
        ];
        let rows =
            serde_json::json!([{"name": "a", "count": 5}, {"name": "longer", "count": 10_000}]);
        assert_eq!(
            draw(&rows, &columns, "none"),
            "NAME    COUNT\na           5\nlonger  10000\n"
        );
        assert_eq!(draw(&serde_json::json!([]), &columns, "none"), "none\n");
    }

    #[test]
    fn spans_are_said_as_people_do() {
        for (millis, said) in [
            (5, "5ms"),
            (1_500, "1.5s"),
            (90_000, "1m30s"),
            (7_260_000, "2h01m"),
            (100_000_000, "1d03h"),
        ] {
            assert_eq!(span(millis), said);
        }
    }
}
