//! Labelled points: what a file costs against what it is worth.

use maud::{Markup, html};

use super::super::pareto::beaten_by;
use super::super::text::{decimal_bytes, four_digits};
use super::axis::{Axis, plain};
use super::labels::{Area, Placed, place};
use super::{frame, px, shown};

/// Files by size and by a value on a logarithmic scale. A line joins those that no other file beats, which is no larger and better.
#[derive(Debug, Clone, PartialEq)]
pub struct Scatter {
    /// What the sizes are.
    pub x_title: String,
    /// What the values are, with their unit.
    pub y_title: String,
    /// The files.
    pub points: Vec<Point>,
}

/// A file.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its label.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its value; zero has a place of its own on the axis.
    pub value: f64,
    /// How far the value may be off; zero where nobody knows.
    pub error: f64,
}

/// A drawing is so much higher than wide, or less so.
const HEIGHT_WIDE_PX: f64 = 430.0;
const HEIGHT_NARROW_PX: f64 = 400.0;

impl Scatter {
    pub(super) fn draw(&self, width: f64) -> Markup {
        let height = if width < 500.0 { HEIGHT_NARROW_PX } else { HEIGHT_WIDE_PX };
        let area = frame::area(width, height, &["0.0001".to_owned()], 22.0);
        let points: Vec<&Point> = self.points.iter().filter(|point| point.value.is_finite()).collect();
        let x = size_axis(&points, area.left, area.right);
        let y = Axis::log(points.iter().map(|point| point.value), area.bottom - 8.0, area.top);
        let at: Vec<(f64, f64)> = points.iter().map(|point| (x.at(point.size_bytes as f64), y.at(point.value))).collect();
        let names: Vec<String> = points.iter().map(|point| shown(&point.name)).collect();
        let beaten: Vec<bool> = {
            let sizes: Vec<(u64, f64)> = points.iter().map(|point| (point.size_bytes, point.value)).collect();
            beaten_by(&sizes).iter().map(Option::is_some).collect()
        };
        let labels = place(&at, &names, &Area { top: area.top - 6.0, ..area });

        let size = |bytes: f64| decimal_bytes(bytes.max(0.0) as u64);
        let description = format!("{} by {}: {}", self.y_title, self.x_title, described(&points));
        let whisker = |point: &Point, sign: f64| y.at((point.value + sign * point.error).max(point.value * 0.01));
        let content = html! {
            (frame::markup(&area, &x.ticks(76.0, size), &y.ticks(30.0, plain), &self.x_title, &self.y_title))
            @if let Some(line) = front(&at, &beaten) { path.front d=(line) {} }
            g.points {
                @for ((point, (x, y)), is_beaten) in points.iter().zip(&at).zip(&beaten) {
                    @if point.error > 0.0 && point.value > 0.0 {
                        line x1=(px(*x)) x2=(px(*x)) y1=(px(whisker(point, -1.0))) y2=(px(whisker(point, 1.0))) {}
                    }
                    circle.beaten[*is_beaten] cx=(px(*x)) cy=(px(*y)) r="4.5" { title { (shown(&point.name)) ": " (size(point.size_bytes as f64)) ", " (four_digits(point.value)) } }
                }
            }
            @for ((name, label), point) in names.iter().zip(&labels).zip(&at) { (written(name, label, *point)) }
        };
        frame::svg(width, height, &description, &content)
    }
}

/// The line from the smallest to the largest of the files that no other beats; `None` where there is but one.
fn front(at: &[(f64, f64)], beaten: &[bool]) -> Option<String> {
    let mut unbeaten: Vec<(f64, f64)> = at.iter().zip(beaten).filter(|(_, is_beaten)| !**is_beaten).map(|(at, _)| *at).collect();
    unbeaten.sort_by(|a, b| a.0.total_cmp(&b.0));
    let point = |(index, (x, y)): (usize, &(f64, f64))| format!("{}{} {}", if index == 0 { 'M' } else { 'L' }, px(*x), px(*y));
    (unbeaten.len() > 1).then(|| unbeaten.iter().enumerate().map(point).collect())
}

/// Linear, unless most files would be crowded into one corner by a much larger one.
fn size_axis(points: &[&Point], left: f64, right: f64) -> Axis {
    let sizes = || points.iter().map(|point| point.size_bytes as f64);
    let (min, max) = (sizes().fold(f64::INFINITY, f64::min), sizes().fold(0.0, f64::max));
    match min > 0.0 && max > 3.0 * min {
        true => Axis::log_tight(sizes(), left, right),
        false => Axis::linear(sizes(), left, right),
    }
}

fn written(name: &str, Placed { area, needs_line }: &Placed, (x, y): (f64, f64)) -> Markup {
    let (middle_x, middle_y) = ((area.left + area.right) / 2.0, (area.top + area.bottom) / 2.0);
    // The line ends at the side of the text that faces the point.
    let (end_x, end_y) =
        (x.clamp(area.left + 2.0, (area.right - 2.0).max(area.left + 2.0)), y.clamp(area.top + 2.0, area.bottom - 2.0));
    html! {
        @if *needs_line { line.leader x1=(px(x)) y1=(px(y)) x2=(px(end_x)) y2=(px(end_y)) {} }
        text.label.middle x=(px(middle_x)) y=(px(middle_y + 4.0)) { (name) }
    }
}

fn described(points: &[&Point]) -> String {
    let described =
        points.iter().map(|point| format!("{} {} {}", point.name, decimal_bytes(point.size_bytes), four_digits(point.value)));
    described.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::front;

    #[test]
    fn the_line_joins_unbeaten_files_by_size() {
        let at = [(30.0, 1.0), (10.0, 9.0), (20.0, 8.0)];
        assert_eq!(front(&at, &[false, false, true]).as_deref(), Some("M10 9L30 1"));
        assert_eq!(front(&at, &[true, false, true]), None);
    }
}
