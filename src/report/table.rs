//! A table: columns with titles, rows of typed cells, and one writer per form.

use std::collections::HashSet;
use std::ops::Range;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::text::{decimal_bytes, decimal_count, four_digits, printable};

/// One cell. Numbers stay numbers until they are written: rounded for people, exact for programs.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Nothing to say.
    Empty,
    /// Any text, escaped when written.
    Text(String),
    /// A whole number, written with all its digits.
    Count(u64),
    /// A whole number that people need only roughly: `8.03 B`.
    About(u64),
    /// A number of bytes: `4.10 GB`.
    Bytes(u64),
    /// A measured number, of which people see four digits.
    Real(f64),
    /// A number with so many decimals.
    Fixed(f64, usize),
    /// A number and its error, with so many decimals: `0.0123 ± 0.0004`.
    Estimate(f64, f64, usize),
}

/// Rows under titled columns. A column without any content is left out of what people see.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(titles: &[&'static str]) -> Table {
        Table { titles: titles.to_vec(), rows: Vec::new() }
    }

    /// The titles of all columns.
    #[cfg(feature = "eval")]
    pub(super) fn titles(&self) -> &[&'static str] {
        &self.titles
    }

    /// Adds a row.
    ///
    /// # Panics
    /// When it has more or fewer cells than the table has columns.
    pub fn push<const N: usize>(&mut self, cells: [Cell; N]) {
        self.push_row(cells.into());
    }

    /// The same of a table whose columns are as many as there is to tell.
    ///
    /// # Panics
    /// As [`Table::push`].
    pub fn push_row(&mut self, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.titles.len(), "one cell per column");
        self.rows.push(cells);
    }

    /// True when there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Aligned columns, text on the left and numbers on the right, the titles on top.
    pub fn text(&self) -> String {
        self.text_within(usize::MAX)
    }

    /// As [`Table::text`], for a terminal of `width_max` columns. Where the table is wider, the text of its last column goes on below
    /// itself, or else the columns that do not fit follow in a further table, behind those that tell the rows apart.
    pub fn text_within(&self, width_max: usize) -> String {
        let mut lines = vec![self.titles.iter().map(|title| (*title).to_owned()).collect()];
        lines.extend(self.written_rows());
        self.align(&lines, width_max)
    }

    /// As [`Table::text_within`], without the titles.
    pub fn untitled_within(&self, width_max: usize) -> String {
        self.align(&self.written_rows(), width_max)
    }

    /// A Markdown table.
    pub fn markdown(&self) -> String {
        let columns = self.columns_in_use();
        let line = |cell: &dyn Fn(usize) -> String| {
            let cells: Vec<String> = columns.iter().map(|&column| cell(column)).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut text = line(&|column| self.titles[column].to_owned());
        text += &line(&|column| if self.is_numeric(column) { "--:".to_owned() } else { "---".to_owned() });
        for row in self.written_rows() {
            text += &line(&|column| row[column].replace('|', "\\|"));
        }
        text
    }

    /// Comma-separated values with a line of titles, named as the fields of [`Table::json`] are; numbers as they are, without rounding
    /// and without their errors.
    pub fn csv(&self) -> String {
        let quoted = |text: &str| match text.contains([',', '"']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.to_owned(),
        };
        let value = |cell: &Cell| match cell {
            Cell::Text(text) => quoted(&printable(text.as_bytes())),
            Cell::Empty => String::new(),
            Cell::Count(n) | Cell::About(n) | Cell::Bytes(n) => n.to_string(),
            Cell::Real(x) | Cell::Fixed(x, _) | Cell::Estimate(x, _, _) => x.to_string(),
        };
        let is_bytes = |column: usize| self.rows.iter().any(|row| matches!(row[column], Cell::Bytes(_)));
        let title = |(column, title): (usize, &&str)| quoted(&field_name(title, is_bytes(column)));
        let mut text = self.titles.iter().enumerate().map(title).collect::<Vec<_>>().join(",") + "\n";
        for row in &self.rows {
            text += &row.iter().map(value).collect::<Vec<_>>().join(",");
            text.push('\n');
        }
        text
    }

    /// An array of objects, one per row, their fields named after the columns: `bits per weight` is `bits_per_weight`, and a column
    /// of sizes has its unit behind it, as in `size_bytes`.
    pub fn json(&self) -> serde_json::Value {
        let field = |(title, cell): (&&str, &Cell)| {
            let value = match cell {
                Cell::Empty => serde_json::Value::Null,
                Cell::Text(text) => text.as_str().into(),
                Cell::Count(n) | Cell::About(n) | Cell::Bytes(n) => (*n).into(),
                Cell::Real(x) | Cell::Fixed(x, _) => (*x).into(),
                Cell::Estimate(x, error, _) => serde_json::json!({ "value": x, "error": error }),
            };
            (field_name(title, matches!(cell, Cell::Bytes(_))), value)
        };
        self.rows.iter().map(|row| self.titles.iter().zip(row).map(field).collect::<serde_json::Map<_, _>>()).collect()
    }

    /// Every cell as people see it.
    pub(super) fn written_rows(&self) -> Vec<Vec<String>> {
        self.rows.iter().map(|row| row.iter().map(written).collect()).collect()
    }

    /// The columns that hold anything.
    pub(super) fn columns_in_use(&self) -> Vec<usize> {
        (0..self.titles.len()).filter(|&column| self.rows.iter().any(|row| row[column] != Cell::Empty)).collect()
    }

    /// Numbers are aligned on the right.
    pub(super) fn is_numeric(&self, column: usize) -> bool {
        self.rows.iter().all(|row| !matches!(row[column], Cell::Text(_)))
    }

    fn align(&self, lines: &[Vec<String>], width_max: usize) -> String {
        let width = |column: usize| lines.iter().map(|line| line[column].width()).max().unwrap_or(0);
        let columns = self.columns_in_use().into_iter();
        let columns: Vec<Column> =
            columns.map(|index| Column { index, width: width(index), is_numeric: self.is_numeric(index) }).collect();
        let Some((last, others)) = columns.split_last() else { return String::new() };
        let width_of_others = Column::width_of_all(others);
        let width_left = width_max.saturating_sub(width_of_others + GAP);
        if width_of_others + GAP + last.width <= width_max || others.is_empty() {
            return aligned(lines, &columns);
        }
        if !last.is_numeric && width_left >= FOLDED_WIDTH_MIN {
            return folded(lines, others, last, width_left);
        }
        let n_key = (1..columns.len()).find(|&n| tell_rows_apart(lines, &columns[..n])).unwrap_or(1);
        let parts = parts(&columns, n_key, width_max);
        let tables = parts.into_iter().map(|part| aligned(lines, &[&columns[..n_key], &columns[part]].concat()));
        tables.collect::<Vec<_>>().join("\n")
    }
}

/// Blanks between two columns.
const GAP: usize = 2;

/// A column of text is folded only where this much is left for it.
const FOLDED_WIDTH_MIN: usize = 16;

/// A column that is written.
#[derive(Clone, Copy)]
struct Column {
    index: usize,
    width: usize,
    is_numeric: bool,
}

impl Column {
    fn width_of_all(columns: &[Column]) -> usize {
        columns.iter().map(|column| column.width + GAP).sum::<usize>().saturating_sub(GAP)
    }

    fn padded(&self, cell: &str) -> String {
        let padding = " ".repeat(self.width.saturating_sub(cell.width()));
        if self.is_numeric { padding + cell } else { cell.to_owned() + &padding }
    }
}

/// The lines with some of their columns.
fn aligned(lines: &[Vec<String>], columns: &[Column]) -> String {
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = columns.iter().map(|column| column.padded(&line[column.index])).collect();
        text += cells.join(&" ".repeat(GAP)).trim_end();
        text.push('\n');
    }
    text
}

/// The lines, the text of the last column in as many lines as it needs.
fn folded(lines: &[Vec<String>], others: &[Column], last: &Column, width: usize) -> String {
    let blank = " ".repeat(Column::width_of_all(others) + GAP);
    let mut text = String::new();
    for line in lines {
        let before: String = others.iter().map(|column| column.padded(&line[column.index]) + &" ".repeat(GAP)).collect();
        for (n, piece) in pieces(&line[last.index], width).iter().enumerate() {
            text += (if n == 0 { before.clone() } else { blank.clone() } + piece).trim_end();
            text.push('\n');
        }
    }
    text
}

/// A text cut at blanks, or where a word alone is too wide, into pieces of at most `width`; one empty piece for an empty text.
fn pieces(text: &str, width: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for word in text.split_inclusive(' ') {
        let piece = pieces.last_mut().expect("never empty");
        if !piece.is_empty() && piece.width() + word.trim_end().width() > width {
            pieces.push(String::new());
        }
        for c in word.chars() {
            let piece = pieces.last_mut().expect("never empty");
            match piece.width() + c.width().unwrap_or(0) > width && c != ' ' {
                true => pieces.push(c.to_string()),
                false => piece.push(c),
            }
        }
    }
    pieces
}

/// True when no two lines have the same in all of these columns.
fn tell_rows_apart(lines: &[Vec<String>], columns: &[Column]) -> bool {
    let mut seen = HashSet::new();
    lines.iter().all(|line| seen.insert(columns.iter().map(|column| &line[column.index]).collect::<Vec<_>>()))
}

/// The columns behind the first `n_key` in groups, each of which fits beside those. Where that leaves too little room, one group.
fn parts(columns: &[Column], n_key: usize, width_max: usize) -> Vec<Range<usize>> {
    let width_key = Column::width_of_all(&columns[..n_key]);
    let width_max = if width_key > width_max / 2 { usize::MAX } else { width_max };
    let (mut parts, mut start, mut width) = (Vec::new(), n_key, width_key);
    for (n, column) in columns.iter().enumerate().skip(n_key) {
        if width + GAP + column.width > width_max && n > start {
            parts.push(start..n);
            (start, width) = (n, width_key);
        }
        width += GAP + column.width;
    }
    parts.push(start..columns.len());
    parts
}

fn field_name(title: &str, is_bytes: bool) -> String {
    title.replace(' ', "_") + if is_bytes { "_bytes" } else { "" }
}

fn written(cell: &Cell) -> String {
    match cell {
        Cell::Empty => String::new(),
        Cell::Text(text) => printable(text.as_bytes()),
        Cell::Count(n) => n.to_string(),
        Cell::About(n) => decimal_count(*n),
        Cell::Bytes(n) => decimal_bytes(*n),
        Cell::Real(x) => four_digits(*x),
        Cell::Fixed(x, decimals) => fixed(*x, *decimals),
        Cell::Estimate(x, error, decimals) => format!("{} ± {error:.decimals$}", fixed(*x, *decimals)),
    }
}

/// A number with so many decimals; what rounds to zero has no sign.
fn fixed(x: f64, decimals: usize) -> String {
    let text = format!("{x:.decimals$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| matches!(c, '0' | '.')) => rest.to_owned(),
        _ => text,
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::Text(text)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Cell {
        Cell::Count(count as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["name", "size", "unused", "bits per weight", "note"]);
        table.push(["日本".into(), Cell::Bytes(1_234_567), Cell::Empty, Cell::Fixed(4.5, 2), Cell::Empty]);
        table.push(["a|b\n".into(), Cell::Bytes(9), Cell::Empty, Cell::Fixed(16.0, 2), "x".into()]);
        table
    }

    #[test]
    fn text_is_aligned_by_display_width() {
        let expected =
            ["name      size  bits per weight  note", "日本   1.23 MB             4.50", "a|b\\n      9 B            16.00  x", ""];
        assert_eq!(table().text(), expected.join("\n"));
    }

    #[test]
    fn a_wide_table_is_folded_or_goes_on_below() {
        let mut table = Table::new(&["name", "size", "why"]);
        table.push(["a".into(), Cell::Bytes(9), "one two three four five".into()]);
        table.push(["b".into(), Cell::Bytes(10), "aaaaaaaaaaaaaaaaaaaaaaaaaaa".into()]);
        table.push(["c".into(), Cell::Bytes(11), "".into()]);
        let expected = [
            "name  size  why",
            "a      9 B  one two three",
            "            four five",
            "b     10 B  aaaaaaaaaaaaaaaa",
            "            aaaaaaaaaaa",
            "c     11 B",
            "",
        ];
        assert_eq!(table.text_within(28), expected.join("\n"));

        let mut table = Table::new(&["name", "first", "second", "third"]);
        table.push(["ab".into(), Cell::Count(1), Cell::Count(2), Cell::Count(3)]);
        assert_eq!(table.text_within(26), table.text());
        assert_eq!(table.text_within(25), "name  first  second\nab        1       2\n\nname  third\nab        3\n");
        table.push(["ab".into(), Cell::Count(4), Cell::Count(5), Cell::Count(6)]);
        let expected = "name  first  second\nab        1       2\nab        4       5\n\nname  first  third\nab        1      3\nab        4      6\n";
        assert_eq!(table.text_within(25), expected, "a name alone does not tell the rows apart");
        assert_eq!(table.text_within(3), table.text(), "too narrow for anything");
        assert_eq!(Table::new(&["a"]).text_within(1), "");
    }

    #[test]
    fn nothing_is_not_negative() {
        assert_eq!(
            (fixed(-0.0000049, 5), fixed(-0.000005001, 5), fixed(-0.4, 0)),
            ("0.00000".into(), "-0.00001".into(), "0".into())
        );
    }

    #[test]
    fn markdown_keeps_its_columns() {
        assert_eq!(
            table().markdown(),
            "| name | size | bits per weight | note |\n| --- | --: | --: | --- |\n| 日本 | 1.23 MB | 4.50 |  |\n| a\\|b\\n | 9 B | 16.00 | x |\n"
        );
    }

    #[test]
    fn csv_keeps_exact_numbers_and_quotes_where_it_must() {
        let mut table = table();
        table.push(["c,\"d\"".into(), Cell::Bytes(0), Cell::Empty, Cell::Fixed(0.1, 0), Cell::Empty]);
        assert_eq!(
            table.csv(),
            "name,size_bytes,unused,bits_per_weight,note\n日本,1234567,,4.5,\na|b\\n,9,,16,x\n\"c,\"\"d\"\"\",0,,0.1,\n"
        );
    }

    #[test]
    fn a_number_keeps_its_error() {
        let mut table = Table::new(&["KLD"]);
        table.push([Cell::Estimate(10.25, 0.0625, 3)]);
        table.push([Cell::Estimate(0.0, 0.0, 3)]);
        assert_eq!(table.text(), "KLD\n10.250 ± 0.062\n 0.000 ± 0.000\n".replace("KLD", &format!("{:>14}", "KLD")));
        assert_eq!(table.json()[0]["KLD"], serde_json::json!({ "value": 10.25, "error": 0.0625 }));
    }

    #[test]
    fn json_keeps_exact_numbers() {
        let expected = serde_json::json!([
            { "name": "日本", "size_bytes": 1_234_567, "unused": null, "bits_per_weight": 4.5, "note": null },
            { "name": "a|b\n", "size_bytes": 9, "unused": null, "bits_per_weight": 16.0, "note": "x" },
        ]);
        assert_eq!(table().json(), expected);
    }
}
