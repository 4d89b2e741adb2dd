//! Tables as data, and their writers. Knows nothing of what the tables are about.
//!
//! A command builds one [`Table`] and lets the user choose how to see it: aligned text, or JSON for a program.

use std::fmt::{self, Write};

use crate::error::Escaped;

/// Rows of cells under named columns.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// What each column is called: lower case, so that it serves as a JSON key too.
    pub columns: Vec<&'static str>,
    /// Each with one cell per column.
    pub rows: Vec<Vec<Cell>>,
}

/// One value of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// A name or a remark. May come from a file: it is escaped when it is written.
    Text(String),
    /// A whole number.
    Count(u64),
    /// A measured number: text shows four digits of it.
    Real(f64),
    /// Nothing to say.
    Empty,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[&'static str]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// When it has another number of cells than the table has columns.
    pub fn push<const N: usize>(&mut self, row: [Cell; N]) {
        assert_eq!(N, self.columns.len(), "one cell per column");
        self.rows.push(row.into());
    }

    /// Aligned text: a line of column names, then a line per row. Text is left-aligned, numbers are right-aligned.
    pub fn text(&self) -> String {
        let cells: Vec<Vec<String>> = self.rows.iter().map(|row| row.iter().map(Cell::to_string).collect()).collect();
        let width = |column: usize| {
            let longest = cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            longest.max(self.columns[column].chars().count())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let is_text = |column: usize| self.rows.iter().any(|row| matches!(row[column], Cell::Text(_)));
        let left: Vec<bool> = (0..self.columns.len()).map(is_text).collect();

        let names: Vec<String> = self.columns.iter().map(|&name| name.to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&names).chain(&cells) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let (gap, width) = (if column == 0 { "" } else { "  " }, widths[column]);
                let _ = if left[column] { write!(line, "{gap}{cell:width$}") } else { write!(line, "{gap}{cell:>width$}") };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    /// An array with one object per row.
    #[cfg(feature = "convert")]
    pub fn json(&self) -> serde_json::Value {
        let object = |row: &Vec<Cell>| self.columns.iter().map(|&name| name.to_owned()).zip(row.iter().map(Cell::json)).collect();
        serde_json::Value::Array(self.rows.iter().map(object).map(serde_json::Value::Object).collect())
    }
}

impl Cell {
    #[cfg(feature = "convert")]
    fn json(&self) -> serde_json::Value {
        match self {
            Cell::Text(text) => text.as_str().into(),
            Cell::Count(count) => (*count).into(),
            Cell::Real(value) => (*value).into(),
            Cell::Empty => serde_json::Value::Null,
        }
    }
}

/// As in the table's text, without padding.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Text(text) => write!(f, "{}", Escaped(text)),
            Cell::Count(count) => write!(f, "{count}"),
            Cell::Real(value) => write_real(f, *value),
            Cell::Empty => Ok(()),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Cell {
        Cell::Count(count as u64)
    }
}

/// Digits of a measured number that text shows.
const DIGITS: i32 = 4;

/// Four significant digits, without an exponent where that is short.
fn write_real(f: &mut fmt::Formatter<'_>, value: f64) -> fmt::Result {
    let magnitude = value.abs().log10().floor();
    match value {
        _ if value == 0.0 => write!(f, "0"),
        _ if (-4.0..6.0).contains(&magnitude) => {
            let decimals = (DIGITS - 1 - magnitude as i32).max(0) as usize;
            write!(f, "{value:.decimals$}")
        }
        _ => write!(f, "{value:.3e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["tensor", "values", "mean"]);
        table.push(["blk.0.attn_k.weight".into(), 256.into(), Cell::Real(1.25)]);
        table.push(["a\u{1b}[2J".into(), 12.into(), Cell::Real(0.000012345)]);
        table.push(["".into(), Cell::Empty, Cell::Real(123456.7)]);
        table
    }

    #[test]
    fn text_is_aligned_and_escaped() {
        let expected = "\
tensor               values      mean
blk.0.attn_k.weight     256     1.250
a\\u{1b}[2J               12  1.234e-5
                               123457
";
        assert_eq!(table().text(), expected);
    }

    #[test]
    fn numbers_have_four_digits() {
        let shown = |value: f64| Cell::Real(value).to_string();
        let cases =
            [(0.0, "0"), (-1.0, "-1.000"), (999.96, "1000.0"), (0.00012345, "0.0001234"), (1e9, "1.000e9"), (f64::NAN, "NaN")];
        for (value, expected) in cases {
            assert_eq!(shown(value), expected, "{value}");
        }
    }

    #[test]
    #[cfg(feature = "convert")]
    fn json_has_an_object_per_row() {
        let json = table().json();
        assert_eq!(json[0], serde_json::json!({"tensor": "blk.0.attn_k.weight", "values": 256, "mean": 1.25}));
        assert_eq!(json[2]["values"], serde_json::Value::Null);
    }
}
