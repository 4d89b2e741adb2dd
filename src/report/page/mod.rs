//! Pages: reports with plots as data, written as one HTML file that needs neither network nor scripts.
//!
//! A [`Page`] has sections, a [`Section`] has blocks, and a [`Block`] is a table or a plot; [`Page::html`] writes them all. A plot is
//! an SVG or a table inside the page whose colours are CSS variables, so that one file serves light and dark, screen and paper.
//!
//! Where width matters a plot is drawn twice, for a wide window and for a narrow one, and the style sheet shows one of the two: text in
//! a drawing that is merely scaled down would be too small to read on a phone.
//!
//! All text may come from files. [`maud`] escapes whatever is spliced into the page, and before that everything that could hide or
//! reorder text is escaped as in a terminal. The page forbids itself scripts and network by its content security policy.

mod axis;
mod comparison;
mod curves;
mod frame;
mod heat;
mod histogram;
mod labels;
mod names;
mod scatter;
mod table;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::table::Table;
use super::text::shortened;

pub use comparison::{ComparedFile, Comparison};
pub use curves::{Curve, Curves};
pub use heat::HeatMap;
pub use histogram::{Histogram, Histograms};
pub use names::short_names;
pub use scatter::{Point, Scatter};

/// A document.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// What the page is about, in a few words.
    pub title: String,
    /// What was measured, and how: pairs of a word and its value, shown below the title.
    pub facts: Vec<(String, String)>,
    /// The content, in order.
    pub sections: Vec<Section>,
    /// How the page came to be, as pairs again, at its foot: when, by what command, from which files.
    pub made: Vec<(String, String)>,
}

/// A part of a page, under a heading of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// How to read what follows: a sentence or two, or nothing.
    pub note: String,
    /// Tables and plots.
    pub blocks: Vec<Block>,
}

/// A table or a plot.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// Rows and columns.
    Table(Table),
    /// A long table behind a line that opens it.
    Folded(String, Table),
    /// A plot under a small heading.
    Titled(String, Box<Block>),
    /// Coloured cells.
    HeatMap(HeatMap),
    /// Distributions beside each other.
    Histograms(Histograms),
    /// Lines.
    Curves(Curves),
    /// Labelled points.
    Scatter(Scatter),
}

impl Section {
    /// A section without content.
    pub fn new(title: impl Into<String>, note: impl Into<String>) -> Section {
        Section { title: title.into(), note: note.into(), blocks: Vec::new() }
    }
}

/// The browser is told to load nothing and to run nothing, whatever a file's text managed to become.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

impl Page {
    /// The whole document.
    pub fn html(&self) -> String {
        let title = shown(&self.title);
        let document = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(POLICY);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    link rel="icon" href="data:,";
                    title { (title) }
                    style { (PreEscaped(include_str!("style.css"))) }
                }
                body {
                    header {
                        h1 { (title) }
                        (pairs(&self.facts))
                    }
                    main { @for section in &self.sections { (section.markup()) } }
                    footer { p { "Made by ggforge " (env!("CARGO_PKG_VERSION")) } (pairs(&self.made)) }
                }
            }
        };
        document.into_string()
    }
}

impl Section {
    fn markup(&self) -> Markup {
        html! {
            section {
                h2 { (shown(&self.title)) }
                @if !self.note.is_empty() { p { (shown(&self.note)) } }
                @for block in &self.blocks { (block.markup()) }
            }
        }
    }
}

impl Block {
    fn markup(&self) -> Markup {
        match self {
            Block::Table(table) => table::markup(table),
            Block::Folded(title, table) => html! { details { summary { (shown(title)) } (table::markup(table)) } },
            Block::Titled(title, block) => html! { h3 { (shown(title)) } (block.markup()) },
            Block::HeatMap(map) => map.markup(),
            Block::Histograms(histograms) => histograms.markup(),
            Block::Curves(curves) => at_both_widths(|width| curves.draw(width)),
            Block::Scatter(scatter) => at_both_widths(|width| scatter.draw(width)),
        }
    }
}

/// Words and their values, side by side where there is room.
fn pairs(pairs: &[(String, String)]) -> Markup {
    html! {
        @if !pairs.is_empty() {
            dl { @for (word, value) in pairs { div { dt { (shown(word)) } dd { (shown(value)) } } } }
        }
    }
}

/// Widths that plots are drawn for, in CSS pixels: a desktop's column and a phone's.
const WIDE: f64 = 920.0;
const NARROW: f64 = 358.0;

/// Characters of one text of a page; longer ones are cut with a mark.
const CHARS_MAX: usize = 600;

/// A text that may come from a file.
fn shown(text: &str) -> String {
    shortened(text.as_bytes(), CHARS_MAX)
}

/// Draws a plot for wide and for narrow windows.
fn at_both_widths(draw: impl Fn(f64) -> Markup) -> Markup {
    html! {
        div.plot.wide { (draw(WIDE)) }
        div.plot.narrow { (draw(NARROW)) }
    }
}

/// A coordinate: a hundredth of a pixel is finer than any screen.
fn px(x: f64) -> String {
    let text = format!("{x:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Cell;
    use super::*;

    /// A page with every kind of block, each holding `text` wherever text can be.
    fn page(text: &str) -> Page {
        let mut table = Table::new(&["name", "value"]);
        table.push([text.into(), Cell::Real(0.5)]);
        let map = HeatMap {
            corner: text.to_owned(),
            rows: vec![text.to_owned()],
            columns: vec![text.to_owned(); 2],
            cells: vec![Some(12.0), None],
            hot: 0.0,
            cold: 60.0,
            unit: text.to_owned(),
        };
        let histograms = Histograms {
            x_title: text.to_owned(),
            histograms: vec![Histogram { name: text.to_owned(), values: vec![0.0, 0.1, 0.2, f32::NAN, -1.0] }],
        };
        let curves = Curves {
            x_title: text.to_owned(),
            y_title: text.to_owned(),
            x_first: 256,
            curves: vec![Curve { name: text.to_owned(), values: vec![0.1, f64::NAN, 0.0, 0.3] }],
        };
        let scatter = Scatter {
            x_title: text.to_owned(),
            y_title: text.to_owned(),
            points: vec![Point { name: text.to_owned(), size_bytes: 5_000_000, value: 0.01, error: 0.001 }],
        };
        let blocks = vec![
            Block::Table(table.clone()),
            Block::Folded(text.to_owned(), table),
            Block::Titled(text.to_owned(), Box::new(Block::HeatMap(map))),
            Block::Histograms(histograms),
            Block::Curves(curves),
            Block::Scatter(scatter),
        ];
        let section = Section { title: text.to_owned(), note: text.to_owned(), blocks };
        let pair = (text.to_owned(), text.to_owned());
        Page { title: text.to_owned(), facts: vec![pair.clone()], sections: vec![section], made: vec![pair] }
    }

    #[test]
    fn text_of_files_stays_text() {
        let html = page("</title></style><script>alert('x')</script>\"><img src=x onerror=\"alert(1)\">&amp;\u{202e}\u{0}").html();
        for forbidden in ["<script", "<img", "onerror=\"", "\u{202e}", "\u{0}"] {
            assert!(!html.contains(forbidden), "{forbidden:?} got through");
        }
        assert_eq!(html.matches("</style>").count(), 1);
        assert!(html.contains("&lt;script&gt;"));
    }

    #[test]
    fn a_page_needs_nothing_from_elsewhere() {
        let html = page("plain").html();
        for word in ["http:", "https:", "//", "url(", "@import", "<script"] {
            assert!(!html.contains(word), "the page mentions {word}");
        }
        assert!(!html.contains("NaN") && !html.contains("inf"), "a plot holds a number that is none");
    }

    #[test]
    fn blocks_without_content_are_still_a_page() {
        let empty = Section {
            title: String::new(),
            note: String::new(),
            blocks: vec![
                Block::Table(Table::new(&["a"])),
                Block::HeatMap(HeatMap {
                    corner: String::new(),
                    rows: vec![],
                    columns: vec![],
                    cells: vec![],
                    hot: 0.0,
                    cold: 0.0,
                    unit: String::new(),
                }),
                Block::Histograms(Histograms { x_title: String::new(), histograms: vec![] }),
                Block::Curves(Curves { x_title: String::new(), y_title: String::new(), x_first: 0, curves: vec![] }),
                Block::Scatter(Scatter { x_title: String::new(), y_title: String::new(), points: vec![] }),
            ],
        };
        let html = Page { sections: vec![empty], ..Page::default() }.html();
        assert!(html.ends_with("</html>") && !html.contains("NaN") && !html.contains("inf"));
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!([px(1.0), px(0.126), px(-0.1), px(100.0)], ["1", "0.13", "-0.1", "100"].map(String::from));
    }
}
