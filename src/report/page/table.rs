//! A table as HTML.

use maud::{Markup, html};
use unicode_width::UnicodeWidthStr;

use super::super::table::Table;

/// The first column stays in view while the others scroll; on a phone, longer names than this are broken into lines.
const NAME_WIDTH_MAX: usize = 26;

/// A table in a frame that scrolls sideways where the window is too narrow.
pub(super) fn markup(table: &Table) -> Markup {
    let columns = table.columns_in_use();
    let rows = table.written_rows();
    let has_long_names = columns.first().is_some_and(|&first| rows.iter().any(|row| row[first].width() > NAME_WIDTH_MAX));
    html! {
        div.scroll.long-names[has_long_names] tabindex="0" role="region" aria-label="table" {
            table {
                thead {
                    tr { @for &column in &columns { th scope="col" .number[table.is_numeric(column)] { (table.titles()[column]) } } }
                }
                tbody {
                    @for row in &rows {
                        tr { @for &column in &columns { td .number[table.is_numeric(column)] { (row[column]) } } }
                    }
                }
            }
        }
    }
}
