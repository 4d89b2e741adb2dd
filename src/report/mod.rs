//! Tables as data, and their writers: aligned text, Markdown, JSON. Knows nothing of what the tables are about.
//!
//! Whatever text a cell holds is escaped when it is written, so that no file's content can drive the terminal it is shown on.

mod table;
mod text;

pub use table::{Cell, Table};
pub use text::{decimal_bytes, decimal_count, json_text, printable, shortened};
