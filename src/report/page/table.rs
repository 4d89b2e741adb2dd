//! A table as HTML.

use maud::{Markup, html};

use super::super::table::Table;

/// A table in a frame that scrolls sideways where the window is too narrow.
pub(super) fn markup(table: &Table) -> Markup {
    let columns = table.columns_in_use();
    let rows = table.written_rows();
    html! {
        div.scroll tabindex="0" role="region" aria-label="table" {
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
