//! A table as HTML.

use maud::{Markup, html};
use unicode_width::UnicodeWidthStr;

use super::super::table::Table;

/// The first column stays in view while the others scroll; on a phone, longer names than this are broken into lines.
const NAME_WIDTH_MAX: usize = 26;

/// A table in a frame that scrolls sideways where the window is too narrow.
pub(super) fn markup(table: &Table) -> Markup {
    // Looked up once: it takes a look at every row.
    let columns: Vec<(usize, bool)> = table.columns_in_use().into_iter().map(|column| (column, table.is_numeric(column))).collect();
    let rows = table.written_rows();
    let has_long_names = columns.first().is_some_and(|&(first, _)| rows.iter().any(|row| row[first].width() > NAME_WIDTH_MAX));
    html! {
        div.scroll.long-names[has_long_names] tabindex="0" role="region" aria-label="table" {
            table {
                thead {
                    tr { @for &(column, is_numeric) in &columns { th scope="col" .number[is_numeric] { (table.titles()[column]) } } }
                }
                tbody {
                    @for row in &rows {
                        tr { @for &(column, is_numeric) in &columns { td .number[is_numeric] { (row[column]) } } }
                    }
                }
            }
        }
    }
}
