//! What plots with two axes share: the plotting area, grid lines, marks and titles of the axes.

use maud::{Markup, html};

use super::axis::Tick;
use super::labels::{Area, width_px};
use super::{px, shown};

/// Room for the marks of the lower axis and its title.
const BELOW_PX: f64 = 44.0;

/// Room for the title of the upright axis, which is written above it, where it needs not be turned.
const ABOVE_PX: f64 = 30.0;

/// The plotting area of a drawing whose upright axis has these labels, with `right_px` kept free for labels of lines.
pub(super) fn area(width: f64, height: f64, y_labels: &[String], right_px: f64) -> Area {
    let left = y_labels.iter().map(|label| width_px(label)).fold(24.0, f64::max) + 10.0;
    Area { left, top: ABOVE_PX, right: width - right_px, bottom: height - BELOW_PX }
}

/// Grid lines and the axes' text.
pub(super) fn markup(area: &Area, x_ticks: &[Tick], y_ticks: &[Tick], x_title: &str, y_title: &str) -> Markup {
    let Area { left, top, right, bottom } = *area;
    html! {
        g.grid {
            @for tick in x_ticks { line x1=(px(tick.px)) x2=(px(tick.px)) y1=(px(top)) y2=(px(bottom)) {} }
            @for tick in y_ticks { line x1=(px(left)) x2=(px(right)) y1=(px(tick.px)) y2=(px(tick.px)) {} }
        }
        g.axis {
            @for tick in x_ticks { text.middle x=(px(tick.px)) y=(px(bottom + 17.0)) { (tick.label) } }
            @for tick in y_ticks { text.end x=(px(left - 7.0)) y=(px(tick.px + 4.0)) { (tick.label) } }
            text.end.title x=(px(right)) y=(px(bottom + 36.0)) { (shown(x_title)) }
            text.title x="2" y="14" { (shown(y_title)) }
        }
    }
}

/// The SVG around a plot, with a description for those who cannot see it.
pub(super) fn svg(width: f64, height: f64, description: &str, content: &Markup) -> Markup {
    let view = format!("0 0 {} {}", px(width), px(height));
    html! {
        svg viewBox=(view) role="img" aria-label=(shown(description)) { (content) }
    }
}
