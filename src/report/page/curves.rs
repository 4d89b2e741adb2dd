//! Lines over an axis of whole numbers, such as the position of a token.

use maud::{Markup, html};

use super::axis::{Axis, plain};
use super::labels::{FONT_PX, spread, width_px};
use super::{frame, px, shown};

/// Lines with a common axis, values on a logarithmic scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Curves {
    /// What the values are counted by.
    pub x_title: String,
    /// What the values are, with their unit.
    pub y_title: String,
    /// What the first value of each line belongs to; the second belongs to the next whole number, and so on.
    pub x_first: u64,
    /// The lines.
    pub curves: Vec<Curve>,
}

/// A line.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Its label.
    pub name: String,
    /// One value per position; NaN where there is none.
    pub values: Vec<f64>,
}

const HEIGHT_PX: f64 = 360.0;

/// Points of a line, at most: each is the mean over as many positions as needed.
const POINTS_MAX: usize = 48;

/// How much wider the labels at the ends of lines are for being bold, and names of types for being capitals.
const BOLD: f64 = 1.25;

/// Colours in the style sheet; with more lines they begin again, dashed.
pub(super) const N_COLOURS: usize = 8;

impl Curves {
    pub(super) fn draw(&self, width: f64) -> Markup {
        let n = self.curves.iter().map(|curve| curve.values.len()).max().unwrap_or(0);
        let per_point = n.div_ceil(POINTS_MAX).max(1);
        let lines: Vec<Vec<(f64, f64)>> = self.curves.iter().map(|curve| points(&curve.values, self.x_first, per_point)).collect();

        let names: Vec<String> = self.curves.iter().map(|curve| shown(&curve.name)).collect();
        let right_px = (BOLD * names.iter().map(|name| width_px(name)).fold(0.0, f64::max)).min(width * 0.3) + 12.0;
        let values = || lines.iter().flatten().map(|(_, y)| *y);
        let area = frame::area(width, HEIGHT_PX, &["0.0001".to_owned()], right_px);
        let x = Axis::between(self.x_first as f64, (self.x_first + n.max(1) as u64 - 1) as f64, area.left, area.right);
        let y = Axis::log(values(), area.bottom, area.top);

        let ends: Vec<f64> = lines.iter().map(|line| line.last().map_or(area.bottom, |(_, value)| y.at(*value))).collect();
        let label_heights = spread(&ends, FONT_PX * 1.2, area.top, area.bottom);
        let description = format!("{} by {}: {}", self.y_title, self.x_title, names.join(", "));
        let content = html! {
            (frame::markup(&area, &x.ticks(64.0, plain), &y.ticks(30.0, plain), &self.x_title, &self.y_title))
            @for (index, line) in lines.iter().enumerate() {
                path class=(class(index)) d=(path(line, &x, &y)) {}
            }
            @for ((index, name), height) in names.iter().enumerate().zip(label_heights) {
                text class=(format!("label {}", class(index))) x=(px(area.right + 8.0)) y=(px(height + 4.0)) { (name) }
            }
        };
        frame::svg(width, HEIGHT_PX, &description, &content)
    }
}

/// The class of the `index`-th line: its colour, and its dashes.
fn class(index: usize) -> String {
    let dashed = if (index / N_COLOURS) % 2 == 1 { " dashed" } else { "" };
    format!("c{}{dashed}", index % N_COLOURS)
}

/// Means over `per_point` neighbours, at the middle of them.
fn points(values: &[f64], x_first: u64, per_point: usize) -> Vec<(f64, f64)> {
    let point = |(index, group): (usize, &[f64])| {
        let known: Vec<f64> = group.iter().copied().filter(|value| value.is_finite()).collect();
        let middle = x_first as f64 + (index * per_point) as f64 + (group.len() - 1) as f64 / 2.0;
        (!known.is_empty()).then(|| (middle, known.iter().sum::<f64>() / known.len() as f64))
    };
    values.chunks(per_point).enumerate().filter_map(point).collect()
}

fn path(points: &[(f64, f64)], x: &Axis, y: &Axis) -> String {
    let mut path = String::new();
    for (at, value) in points {
        path.push(if path.is_empty() { 'M' } else { 'L' });
        path += &format!("{} {}", px(x.at(*at)), px(y.at(*value)));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_means_of_what_is_known() {
        let values = [1.0, 3.0, f64::NAN, f64::NAN, f64::NAN, 5.0, 7.0];
        assert_eq!(points(&values, 10, 2), [(10.5, 2.0), (14.5, 5.0), (16.0, 7.0)]);
        assert_eq!(points(&values[..2], 0, 1), [(0.0, 1.0), (1.0, 3.0)]);
    }
}
