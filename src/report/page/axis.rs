//! Axes: from values to pixels, and the values that get a mark.

use super::super::text::four_digits;

/// One axis of a plot.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    scale: Scale,
    /// Pixels of the two ends of the scale.
    start_px: f64,
    end_px: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear {
        min: f64,
        max: f64,
    },
    /// From a power of ten to another; what is not positive lies at `zero_px`, beyond the start.
    Log {
        low: f64,
        high: f64,
        zero_px: Option<f64>,
    },
}

/// A marked value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub px: f64,
    pub label: String,
}

/// How far beyond the start of a logarithmic axis zero lies.
const ZERO_GAP_PX: f64 = 22.0;

/// Decades that a logarithmic axis shows at most; values below are shown at its start.
const DECADES_MAX: i32 = 9;

impl Axis {
    /// A linear axis over the finite ones of `values`, with round ends.
    pub(super) fn linear(values: impl Iterator<Item = f64>, start_px: f64, end_px: f64) -> Axis {
        let (min, max) = extent(values).unwrap_or((0.0, 1.0));
        // A single value gets room on both sides.
        let margin = if max > min { (max - min) * 0.08 } else { max.abs().max(1.0) * 0.5 };
        let min = if min >= 0.0 { (min - margin).max(0.0) } else { min - margin };
        Axis { scale: Scale::Linear { min, max: max + margin }, start_px, end_px }
    }

    /// A linear axis from `min` to `max`, which differ.
    pub(super) fn between(min: f64, max: f64, start_px: f64, end_px: f64) -> Axis {
        Axis { scale: Scale::Linear { min, max: if max > min { max } else { min + 1.0 } }, start_px, end_px }
    }

    /// A logarithmic axis over the positive ones of `values`, with some room at both ends.
    pub(super) fn log_tight(values: impl Iterator<Item = f64>, start_px: f64, end_px: f64) -> Axis {
        let (min, max) = extent(values.filter(|value| *value > 0.0)).unwrap_or((0.1, 1.0));
        let (low, high) = (min.log10(), max.log10());
        let margin = ((high - low) * 0.08).max(0.05);
        Axis { scale: Scale::Log { low: low - margin, high: high + margin, zero_px: None }, start_px, end_px }
    }

    /// A logarithmic axis of whole decades over the positive ones of `values`; with a place for zero if any is not positive.
    pub(super) fn log(values: impl Iterator<Item = f64> + Clone, start_px: f64, end_px: f64) -> Axis {
        let positive = values.clone().filter(|value| *value > 0.0 && value.is_finite());
        let (min, max) = extent(positive).unwrap_or((0.1, 1.0));
        let high = max.log10().ceil() as i32;
        let low = (min.log10().floor() as i32).clamp(high - DECADES_MAX, high - 1);
        let (low, high) = (f64::from(low), f64::from(high));
        let has_zero = values.into_iter().any(|value| value <= 0.0);
        let towards_end = (end_px - start_px).signum();
        let zero_px = has_zero.then_some(start_px);
        let start_px = if has_zero { start_px + towards_end * ZERO_GAP_PX } else { start_px };
        Axis { scale: Scale::Log { low, high, zero_px }, start_px, end_px }
    }

    /// Where a value lies; what is beyond the ends, at the end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear { min, max } => (value - min) / (max - min),
            Scale::Log { zero_px: Some(px), .. } if value <= 0.0 => return px,
            Scale::Log { low, high, .. } => (value.max(f64::MIN_POSITIVE).log10() - low) / (high - low),
        };
        self.start_px + share.clamp(0.0, 1.0) * (self.end_px - self.start_px)
    }

    /// Marks at round values, at least `gap_px` apart, written by `label`.
    pub(super) fn ticks(&self, gap_px: f64, label: impl Fn(f64) -> String) -> Vec<Tick> {
        let values = match self.scale {
            Scale::Linear { min, max } => linear_marks(min, max, (self.end_px - self.start_px).abs() / gap_px),
            Scale::Log { low, high, .. } => log_marks(low, high, (self.end_px - self.start_px).abs() / gap_px),
        };
        let mut ticks: Vec<Tick> = values.into_iter().map(|value| Tick { px: self.at(value), label: label(value) }).collect();
        if let Scale::Log { zero_px: Some(px), .. } = self.scale {
            ticks.insert(0, Tick { px, label: "0".to_owned() });
        }
        ticks
    }
}

fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |known, value| match known {
        None => Some((value, value)),
        Some((min, max)) => Some((value.min(min), value.max(max))),
    })
}

/// Multiples of 1, 2 or 5 times a power of ten, at most `n_max` of them.
fn linear_marks(min: f64, max: f64, n_max: f64) -> Vec<f64> {
    let rough = (max - min) / n_max.max(1.0);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(power * 10.0);
    let (first, last) = ((min / step).ceil() as i64, (max / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Powers of ten, every second or third where there are many, with multiples of them where there are few.
fn log_marks(low: f64, high: f64, n_max: f64) -> Vec<f64> {
    let n_decades = high - low;
    let (first, last) = (low.floor() as i32, high.ceil() as i32);
    let factors: &[f64] = match n_max / n_decades {
        per_decade if per_decade > 6.0 => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
        per_decade if per_decade > 3.0 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let step = (n_decades / n_max.max(1.0)).ceil().max(1.0) as usize;
    let marks = (first..=last).step_by(step).flat_map(|exponent| factors.iter().map(move |factor| factor * 10f64.powi(exponent)));
    let slack = 1e-9;
    marks.filter(|mark| (low - slack..=high + slack).contains(&mark.log10())).collect()
}

/// A mark's value in as few characters as it needs.
pub(super) fn plain(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.000_99 {
        return format!("{value:.0e}");
    }
    // Four digits, less the zeros that say nothing.
    let text = four_digits(value);
    match text.contains('.') && !text.contains('e') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, gap: f64) -> Vec<String> {
        axis.ticks(gap, plain).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn marks_are_round_numbers() {
        assert_eq!(labels(&Axis::between(0.0, 1.0, 0.0, 100.0), 20.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(&Axis::between(256.0, 511.0, 0.0, 300.0), 60.0), ["300", "400", "500"]);
        assert_eq!(labels(&Axis::log([0.002, 0.9].into_iter(), 0.0, 100.0), 40.0), ["0.001", "0.1"]);
        assert_eq!(labels(&Axis::log([0.002, 0.09].into_iter(), 0.0, 300.0), 30.0)[..4], ["0.001", "0.002", "0.005", "0.01"]);
        assert_eq!([plain(1e-5), plain(0.0), plain(1500.0)], ["1e-5", "0", "1500"].map(String::from));
    }

    #[test]
    fn zero_has_a_place_of_its_own_on_a_logarithmic_axis() {
        let axis = Axis::log([0.0, 0.01, 1.0].into_iter(), 100.0, 0.0);
        assert_eq!((axis.at(0.0), axis.at(0.01), axis.at(1.0)), (100.0, 100.0 - ZERO_GAP_PX, 0.0));
        assert_eq!(axis.ticks(10.0, plain)[0], Tick { px: 100.0, label: "0".to_owned() });
        let without = Axis::log([0.01, 1.0].into_iter(), 100.0, 0.0);
        assert_eq!((without.at(0.0), without.at(0.01)), (100.0, 100.0));
    }

    #[test]
    fn any_values_make_an_axis() {
        let hard = [
            vec![],
            vec![f64::NAN],
            vec![f64::INFINITY, 1.0],
            vec![0.0],
            vec![5.0],
            vec![-3.0, 2.0],
            vec![1e-300, 1e300],
            vec![1.0, 1.0],
        ];
        for values in hard {
            let values_of = || values.iter().copied();
            let axes = [
                Axis::linear(values_of(), 0.0, 100.0),
                Axis::log(values_of(), 0.0, 100.0),
                Axis::log_tight(values_of(), 0.0, 100.0),
            ];
            for axis in axes {
                let ticks = axis.ticks(10.0, plain);
                assert!(
                    !ticks.is_empty()
                        || matches!(axis.scale, Scale::Log { low, high, .. } if high - low < 0.3) && ticks.len() <= 14,
                    "{values:?}: {ticks:?}"
                );
                assert!(values.iter().filter(|v| v.is_finite()).all(|&v| (0.0..=100.0).contains(&axis.at(v))), "{values:?}");
            }
        }
    }
}
