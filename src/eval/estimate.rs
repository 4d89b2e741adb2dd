//! Means with their standard errors, and quantiles.

/// A measured figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// One standard error, under the assumption that tokens are independent, as llama-perplexity states it. Tokens of one text are not
    /// quite, so the true error is somewhat larger.
    pub error: f64,
}

impl Estimate {
    /// The mean of some values, and its standard error `sqrt(variance / (n - 1))`.
    ///
    /// Goes over the values twice, so that values that are all equal have an error of exactly 0.
    pub fn mean(values: impl Iterator<Item = f64> + Clone) -> Estimate {
        let n = values.clone().count() as f64;
        if n == 0.0 {
            return Estimate { value: f64::NAN, error: f64::NAN };
        }
        let mean = values.clone().sum::<f64>() / n;
        let variance = values.map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        Estimate { value: mean, error: (variance / (n - 1.0).max(1.0)).sqrt() }
    }

    /// The share of `n` in which something happened `count` times.
    pub fn share(count: usize, n: usize) -> Estimate {
        let value = count as f64 / n as f64;
        Estimate { value, error: (value * (1.0 - value) / (n as f64 - 1.0).max(1.0)).sqrt() }
    }

    /// `exp` of the figure.
    pub fn exp(self) -> Estimate {
        let value = libm::exp(self.value);
        Estimate { value, error: value * self.error }
    }

    /// The square root of the figure.
    pub fn sqrt(self) -> Estimate {
        let value = self.value.sqrt();
        Estimate { value, error: if value > 0.0 { 0.5 / value * self.error } else { 0.0 } }
    }
}

/// The value below which a `fraction` of ascending values lies, by linear interpolation between the two nearest.
///
/// # Panics
/// When there is no value.
pub fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let at = fraction.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = at.floor();
    let (low, high) = (sorted[below as usize], sorted[at.ceil() as usize]);
    // Where both are equal there is nothing to round.
    if low == high { low } else { low + (high - low) * (at - below) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_that_of_the_mean() {
        let estimate = Estimate::mean([1.0, 2.0, 3.0, 4.0].into_iter());
        assert_eq!(estimate.value, 2.5);
        assert!((estimate.error - (1.25f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!(Estimate::mean([0.1; 7].into_iter().map(|x| x - 0.1)), Estimate { value: 0.0, error: 0.0 });
        assert_eq!(Estimate::mean([3.0].into_iter()).error, 0.0);
    }

    #[test]
    fn errors_carry_over() {
        let root = Estimate { value: 4.0, error: 0.4 }.sqrt();
        assert_eq!((root.value, root.error), (2.0, 0.1));
        assert_eq!(Estimate { value: 0.0, error: 0.0 }.sqrt().error, 0.0);
        assert_eq!(Estimate { value: 0.0, error: 0.5 }.exp(), Estimate { value: 1.0, error: 0.5 });
        assert_eq!(Estimate::share(3, 3), Estimate { value: 1.0, error: 0.0 });
    }

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let sorted = [0.0, 1.0, 2.0, 10.0];
        assert_eq!([0.0, 0.5, 1.0].map(|fraction| quantile(&sorted, fraction)), [0.0, 1.5, 10.0]);
        assert_eq!(quantile(&[0.25], 0.999), 0.25);
    }
}
