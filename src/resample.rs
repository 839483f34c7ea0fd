//! Resample: rows drawn with replacement, and the percentile interval of what was computed from them.
//!
//! The bootstrap of Efron 1979; its percentile interval is that of Efron and Tibshirani 1993, chapter 13.

use crate::rng::Stream;

/// `n` of the rows `0..n`, each draw independent of the others.
pub fn rows(stream: &mut Stream, n: usize) -> Vec<usize> {
    (0..n).map(|_| stream.below(n)).collect()
}

/// The central interval that holds a fraction `level`, in (0, 1), of the values: the (1 ± level) / 2 quantiles. None
/// when there is no value or one is NaN.
///
/// # Examples
/// ```
/// let values = (0..=100).map(f64::from).collect();
/// assert_eq!(mixpool::resample::interval(values, 0.5), Some((25.0, 75.0)));
/// ```
pub fn interval(mut values: Vec<f64>, level: f64) -> Option<(f64, f64)> {
    if values.is_empty() || values.iter().any(|value| value.is_nan()) {
        return None;
    }
    values.sort_unstable_by(f64::total_cmp);
    Some((quantile(&values, (1.0 - level) / 2.0), quantile(&values, f64::midpoint(1.0, level))))
}

/// The `fraction` quantile, linear between neighbours: definition 7 of Hyndman and Fan 1996, the default of `NumPy`.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let place = fraction.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = place.floor();
    let (low, high) = (sorted[below as usize], sorted[place.ceil() as usize]);
    if low == high { low } else { low + (high - low) * (place - below) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        let got = [0.0, 0.25, 0.5, 0.9, 1.0].map(|fraction| quantile(&sorted, fraction));
        for (got, expected) in got.into_iter().zip([1.0, 1.75, 3.0, 6.8, 8.0]) {
            assert!((got - expected).abs() < 1e-12, "expected {expected}, got {got}"); // what numpy.quantile gives
        }
        assert_eq!(interval(vec![], 0.9), None);
        assert_eq!(interval(vec![1.0, f64::NAN], 0.9), None);
        assert_eq!(interval(vec![3.0], 0.9), Some((3.0, 3.0)));
    }

    #[test]
    fn a_row_is_missed_as_often_as_chance_says() {
        let mut stream = Stream::new(5, "rows");
        let missed = (0..4000).filter(|_| !rows(&mut stream, 10).contains(&3)).count() as f64 / 4000.0;
        // (1 − 1/10)¹⁰ = 0.3487, four standard errors are 0.0302.
        assert!((missed - 0.3487).abs() < 0.0302, "missed {missed}");
    }
}
