//! Tables as data, and their writers: aligned text, Markdown, JSON; and whole pages with plots, in [`page`]. Knows nothing of what they
//! are about.
//!
//! Whatever text a cell holds is escaped when it is written, so that no file's content can drive the terminal it is shown on.

mod json;
#[cfg(feature = "eval")]
pub mod page;
mod pareto;
mod table;
mod text;

pub use json::{json_text, write_json};
pub use pareto::beaten_by;
pub use table::{Cell, Table};
pub use text::{decimal_bytes, decimal_count, printable, shortened};
