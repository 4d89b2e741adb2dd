//! Histograms on a logarithmic axis, one small plot per file, all with the same axes so that they can be compared.

use maud::{Markup, html};

use super::super::text::four_digits;
use super::axis::{Axis, plain};
use super::labels::Area;
use super::{frame, px, shown};

/// Distributions that are drawn beside each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Histograms {
    /// What the values are, with their unit.
    pub x_title: String,
    /// One plot each.
    pub histograms: Vec<Histogram>,
}

/// A distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Whose values they are.
    pub name: String,
    /// The values, in any order; those that are not numbers are left out, those that are not positive are counted as zero.
    pub values: Vec<f32>,
}

const WIDTH_PX: f64 = 300.0;
const HEIGHT_PX: f64 = 190.0;

/// Bins of a power of ten.
const BINS_PER_DECADE: usize = 6;

/// What lies this many powers of ten below the largest value is counted as zero: nobody cares, and nothing else would be seen.
const DECADES_MAX: i32 = 8;

/// The bins of all plots together: powers of ten from `low` to `high`, and one for everything smaller.
#[derive(Debug, Clone, Copy)]
struct Bins {
    low: i32,
    high: i32,
}

impl Bins {
    fn over(histograms: &[Histogram]) -> Bins {
        let positive = || histograms.iter().flat_map(|h| &h.values).copied().filter(|value| *value > 0.0 && value.is_finite());
        let max = positive().reduce(f32::max).map_or(1.0, f64::from);
        let min = positive().reduce(f32::min).map_or(0.1, f64::from);
        let high = max.log10().ceil() as i32;
        Bins { low: (min.log10().floor() as i32).clamp(high - DECADES_MAX, high - 1), high }
    }

    /// The share of the values in each bin; the first is for what is below all others.
    fn shares(self, values: &[f32]) -> Vec<f64> {
        let n_bins = (self.high - self.low) as usize * BINS_PER_DECADE;
        let mut counts = vec![0u64; 1 + n_bins];
        for value in values.iter().map(|value| f64::from(*value)).filter(|value| !value.is_nan()) {
            let at = (value.max(f64::MIN_POSITIVE).log10() - f64::from(self.low)) * BINS_PER_DECADE as f64;
            let bin = if at < 0.0 { 0 } else { 1 + (at as usize).min(n_bins - 1) };
            counts[bin] += 1;
        }
        let total = counts.iter().sum::<u64>().max(1) as f64;
        counts.into_iter().map(|count| count as f64 / total).collect()
    }

    /// Both ends of a bin, as values; the first one ends where the powers of ten begin.
    fn edges(self, bin: usize) -> (f64, f64) {
        let edge = |at: usize| 10f64.powf(f64::from(self.low) + at as f64 / BINS_PER_DECADE as f64);
        match bin {
            0 => (0.0, edge(0)),
            _ => (edge(bin - 1), edge(bin)),
        }
    }
}

impl Histograms {
    pub(super) fn markup(&self) -> Markup {
        let bins = Bins::over(&self.histograms);
        let shares: Vec<Vec<f64>> = self.histograms.iter().map(|h| bins.shares(&h.values)).collect();
        // Zero is left out: where all values are zero, nothing of the others would be seen.
        let share_max = shares.iter().flat_map(|shares| &shares[1..]).copied().fold(0.01, f64::max);
        html! {
            div.small-plots {
                @for (histogram, shares) in self.histograms.iter().zip(&shares) {
                    figure { figcaption { (shown(&histogram.name)) } (self.draw(histogram, bins, shares, share_max)) }
                }
            }
        }
    }

    fn draw(&self, histogram: &Histogram, bins: Bins, shares: &[f64], share_max: f64) -> Markup {
        let Area { left, top, right, bottom } = Area { left: 44.0, top: 26.0, right: WIDTH_PX - 14.0, bottom: HEIGHT_PX - 44.0 };
        let ends = [10f64.powi(bins.low), 10f64.powi(bins.high)];
        // Zero is always shown, so that all plots have the same axis.
        let x = Axis::log([0.0, ends[0] * 1.0001, ends[1]].into_iter(), left + 6.0, right);
        let y = Axis::between(0.0, share_max * 1.05, bottom, top);
        let percent = |share: f64| format!("{} %", plain(share * 100.0));
        let bars = shares.iter().enumerate().filter(|(_, share)| **share > 0.0).map(|(bin, &share)| {
            let (from, to) = bins.edges(bin);
            let (x1, x2) = if bin == 0 { (x.at(0.0) - 6.0, x.at(0.0) + 6.0) } else { (x.at(from) + 0.5, x.at(to) - 0.5) };
            (x1, y.at(share), x2 - x1, bottom - y.at(share), percent(share))
        });
        let mean = mean(&histogram.values);
        let description = format!("{}: distribution of {}, mean {}", histogram.name, self.x_title, four_digits(mean));
        let content = html! {
            (frame::markup(&Area { left, top, right, bottom }, &x.ticks(34.0, plain), &y.ticks(34.0, percent), &self.x_title, "share"))
            g.bars {
                @for (x, y, width, height, share) in bars {
                    rect x=(px(x)) y=(px(y)) width=(px(width)) height=(px(height)) { title { (share) } }
                }
            }
            @if shares[0] > 0.0 { text.label x=(px(x.at(0.0) + 9.0)) y=(px(y.at(shares[0]) + 9.0)) { (percent(shares[0])) } }
            @if mean > 0.0 {
                line.mean x1=(px(x.at(mean))) x2=(px(x.at(mean))) y1=(px(top)) y2=(px(bottom)) {}
                text.end.title x=(px(right)) y="14" { "mean " (four_digits(mean)) }
            }
        };
        frame::svg(WIDTH_PX, HEIGHT_PX, &description, &content)
    }
}

fn mean(values: &[f32]) -> f64 {
    let finite = || values.iter().map(|value| f64::from(*value)).filter(|value| value.is_finite());
    finite().sum::<f64>() / finite().count().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_one_bin() {
        let histogram = Histogram { name: String::new(), values: vec![0.0, -1e-9, 1e-30, 0.011, 0.011, 0.5, 0.99, 1.0, f32::NAN] };
        let bins = Bins::over(std::slice::from_ref(&histogram));
        assert_eq!((bins.low, bins.high), (-8, 0));
        let shares = bins.shares(&histogram.values);
        assert_eq!(shares.len(), 1 + 8 * BINS_PER_DECADE);
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{shares:?}");
        assert_eq!(shares[0], 3.0 / 8.0);
        assert_eq!(*shares.last().unwrap(), 2.0 / 8.0);
        let two = shares.iter().position(|share| *share == 2.0 / 8.0).unwrap();
        let (from, to) = bins.edges(two);
        assert!(from <= 0.011 && 0.011 < to, "{from} {to}");
    }
}
