//! Labels beside points, such that none covers another label or a point.

use unicode_width::UnicodeWidthStr;

/// A rectangle, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Area {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

/// Where a label is written: the text's area, and whether a line should lead to its point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Placed {
    pub area: Area,
    pub needs_line: bool,
}

/// Size of the type in plots.
pub(super) const FONT_PX: f64 = 12.0;

/// Half a point and the space around it.
const POINT_PX: f64 = 7.0;

/// Pixels that a text takes; a little more than most typefaces need, as nobody knows which it will be.
pub(super) fn width_px(text: &str) -> f64 {
    text.width() as f64 * FONT_PX * 0.62
}

impl Area {
    fn around((x, y): (f64, f64), half_px: f64) -> Area {
        Area { left: x - half_px, top: y - half_px, right: x + half_px, bottom: y + half_px }
    }

    fn overlap(&self, other: &Area) -> f64 {
        let width = self.right.min(other.right) - self.left.max(other.left);
        let height = self.bottom.min(other.bottom) - self.top.max(other.top);
        width.max(0.0) * height.max(0.0)
    }

    fn lies_within(&self, bounds: &Area) -> bool {
        self.left >= bounds.left && self.right <= bounds.right && self.top >= bounds.top && self.bottom <= bounds.bottom
    }
}

/// Finds a place for each text near its point, within `bounds`.
///
/// Points are served in order; each takes the nearest place that is free, and where none is, the one that covers least.
pub(super) fn place(points: &[(f64, f64)], texts: &[String], bounds: &Area) -> Vec<Placed> {
    let mut taken: Vec<Area> = points.iter().map(|&point| Area::around(point, POINT_PX - 1.0)).collect();
    let mut placed = Vec::with_capacity(points.len());
    for (&point, text) in points.iter().zip(texts) {
        let covered = |place: &Placed| taken.iter().map(|area| area.overlap(&place.area)).sum::<f64>();
        let mut best: Option<(f64, Placed)> = None;
        for candidate in candidates(point, width_px(text)).filter(|candidate| candidate.area.lies_within(bounds)) {
            let cost = covered(&candidate);
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, candidate));
            }
            if cost == 0.0 {
                break;
            }
        }
        // A text wider than the plot has no place in it; beside its point it can at least be seen in part.
        let chosen =
            best.map_or_else(|| candidates(point, width_px(text)).next().expect("there are candidates"), |(_, chosen)| chosen);
        taken.push(chosen.area);
        placed.push(chosen);
    }
    placed
}

/// Places near a point, the nearest first: right, left, above, below, the corners, then the same farther and farther away.
fn candidates((x, y): (f64, f64), width: f64) -> impl Iterator<Item = Placed> {
    const DIRECTIONS: [(f64, f64); 8] =
        [(1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (0.7, -0.7), (0.7, 0.7), (-0.7, -0.7), (-0.7, 0.7)];
    let height = FONT_PX * 1.25;
    (0..14u32).flat_map(move |ring| {
        let far = POINT_PX + f64::from(ring) * 9.0;
        DIRECTIONS.map(|(dx, dy)| {
            let (cx, cy) = (x + dx * (far + width / 2.0), y + dy * (far + height / 2.0));
            let (cx, cy) = if dx == 0.0 { (x, cy) } else { (cx, cy) };
            let area = Area { left: cx - width / 2.0, top: cy - height / 2.0, right: cx + width / 2.0, bottom: cy + height / 2.0 };
            Placed { area, needs_line: ring > 0 }
        })
    })
}

/// Moves heights apart until each two are `gap_px` from each other, within `top..bottom`; their order stays.
pub(super) fn spread(heights: &[f64], gap_px: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..heights.len()).collect();
    order.sort_by(|&a, &b| heights[a].total_cmp(&heights[b]));
    let mut spread = heights.to_vec();
    let mut least = top;
    for &index in &order {
        spread[index] = spread[index].max(least);
        least = spread[index] + gap_px;
    }
    let mut most = bottom;
    for &index in order.iter().rev() {
        spread[index] = spread[index].min(most);
        most = spread[index] - gap_px;
    }
    spread
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Area = Area { left: 0.0, top: 0.0, right: 800.0, bottom: 400.0 };

    #[test]
    fn crowded_labels_do_not_cover_each_other() {
        // Twenty files along a bent line, four of them almost at one place.
        let points: Vec<(f64, f64)> = (0..20)
            .map(f64::from)
            .map(|i| (60.0 + 34.0 * i, 380.0 - 1500.0 / (i + 4.0)))
            .chain([(400.0, 300.0), (402.0, 301.0), (404.0, 299.0), (399.0, 302.0)])
            .collect();
        let texts = vec!["IQ2_XXS-imat".to_owned(); points.len()];
        let placed = place(&points, &texts, &BOUNDS);
        for (i, a) in placed.iter().enumerate() {
            assert!(a.area.lies_within(&BOUNDS), "{i}: {a:?}");
            for (j, b) in placed.iter().enumerate().skip(i + 1) {
                assert_eq!(a.area.overlap(&b.area), 0.0, "{i} and {j}");
            }
            for (j, &point) in points.iter().enumerate() {
                assert_eq!(a.area.overlap(&Area::around(point, 3.0)), 0.0, "label {i} covers point {j}");
            }
        }
        assert!(!placed[0].needs_line);
    }

    #[test]
    fn a_label_that_is_too_wide_still_has_a_place() {
        let placed = place(&[(10.0, 10.0)], &["x".repeat(500)], &BOUNDS);
        assert!(placed[0].area.left > 10.0);
    }

    #[test]
    fn heights_are_moved_apart_and_stay_inside() {
        assert_eq!(spread(&[10.0, 50.0], 12.0, 0.0, 100.0), [10.0, 50.0]);
        let moved = spread(&[50.0, 51.0, 49.0, 99.0], 12.0, 0.0, 100.0);
        let mut sorted = moved.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= 12.0 - 1e-9), "{moved:?}");
        assert!(moved[2] < moved[0] && moved[0] < moved[1] && moved.iter().all(|y| (0.0..=100.0).contains(y)));
    }
}
