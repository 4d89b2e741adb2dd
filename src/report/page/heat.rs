//! Heat maps: a table whose cells are coloured by their numbers.

use maud::{Markup, html};

use super::{px, shown};

/// Rows and columns of numbers, each cell coloured by how near its number is to `hot`.
///
/// It is written as a table, so that the numbers can be read, copied and heard, and the colour is only a help to the eye.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// What the rows are: the title of the column of row names.
    pub corner: String,
    /// Row names.
    pub rows: Vec<String>,
    /// Column names.
    pub columns: Vec<String>,
    /// `[n_rows, n_columns]`, row-major; `None` where there is nothing. Infinity is written `=`, and has no colour.
    pub cells: Vec<Option<f64>>,
    /// The number with the full colour.
    pub hot: f64,
    /// The number without colour.
    pub cold: f64,
    /// Unit of the numbers, such as dB.
    pub unit: String,
}

impl HeatMap {
    pub(super) fn markup(&self) -> Markup {
        let n_columns = self.columns.len();
        html! {
            div.scroll tabindex="0" role="region" aria-label="heat map" {
                table.heat {
                    thead { tr { th scope="col" { (shown(&self.corner)) } @for column in &self.columns { th scope="col" { (shown(column)) } } } }
                    tbody {
                        @for (index, row) in self.rows.iter().enumerate() {
                            tr {
                                th scope="row" { (shown(row)) }
                                @for cell in self.cells.iter().skip(index * n_columns).take(n_columns) { (self.cell(*cell)) }
                            }
                        }
                    }
                }
            }
            p.key {
                span { (self.written(self.cold)) " " (shown(&self.unit)) " or more" }
                span.ramp aria-hidden="true" {}
                span { (self.written(self.hot)) " " (shown(&self.unit)) " or less" }
            }
        }
    }

    fn cell(&self, cell: Option<f64>) -> Markup {
        match cell {
            None => html! { td.none {} },
            Some(f64::INFINITY) => html! { td title="no difference" { "=" } },
            Some(value) => html! { td style=(format!("--heat:{}%", px(100.0 * self.heat(value)))) { (self.written(value)) } },
        }
    }

    /// 0 for cold, 1 for hot.
    fn heat(&self, value: f64) -> f64 {
        let heat = (value - self.cold) / (self.hot - self.cold);
        if heat.is_nan() { 0.0 } else { heat.clamp(0.0, 1.0) }
    }

    fn written(&self, value: f64) -> String {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::HeatMap;

    #[test]
    fn no_difference_and_a_difference_beyond_measure_are_told_apart() {
        let map = HeatMap {
            corner: "layer".to_owned(),
            rows: vec!["0".to_owned()],
            columns: ["a", "b", "c"].map(str::to_owned).to_vec(),
            cells: vec![Some(f64::INFINITY), Some(f64::NEG_INFINITY), Some(30.0)],
            hot: 10.0,
            cold: 50.0,
            unit: "dB".to_owned(),
        };
        let markup = map.markup().into_string();
        for cell in ["no difference\">=<", "--heat:100%\">-inf<", "--heat:50%\">30.0<"] {
            assert!(markup.contains(cell), "{cell}: {markup}");
        }
    }
}
