//! Bootstrap: intervals for the statistics of agreement, from resampled candidates.
//!
//! The candidates that were judged are a sample of those that might have been, and a correlation over a dozen of them is
//! uncertain. Each resample draws as many candidates, with replacement, keeps each one's prediction and truth together,
//! and computes every statistic again; the interval is the central part of what came out. What it does not cover is
//! noise in the truth itself: see [`Noise`](super::Noise).

use super::Agreement;
use crate::resample;
use crate::rng::Stream;
use rayon::prelude::*;
use serde::Serialize;

/// Resamples that are enough for intervals to two digits.
pub const RESAMPLES: usize = 2000;

/// A percentile bootstrap interval, (low, high), for each statistic of an [`Agreement`], in its unit.
///
/// A statistic may be undefined on a resample (all its candidates are the same one, say); such resamples are left out.
/// The interval is none when fewer than half of the resamples, or fewer than two, are left.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Intervals {
    /// Interval of [`Agreement::pearson`].
    pub pearson: Option<(f64, f64)>,
    /// Interval of [`Agreement::spearman`].
    pub spearman: Option<(f64, f64)>,
    /// Interval of [`Agreement::kendall`].
    pub kendall: Option<(f64, f64)>,
    /// Interval of [`Agreement::decision_accuracy`].
    pub decision_accuracy: Option<(f64, f64)>,
    /// Interval of [`Agreement::top_overlap`].
    pub top_overlap: Option<(f64, f64)>,
    /// Interval of [`Agreement::regret`].
    pub regret: Option<(f64, f64)>,
}

impl Intervals {
    /// The intervals that hold a fraction `level`, such as 0.95, of `resamples`; the same arguments give the same ones.
    ///
    /// # Examples
    /// ```
    /// use mixpool::rank::{Intervals, RESAMPLES};
    /// let truth = [2.1, 2.0, 2.6, 2.4, 2.9, 2.2, 3.0, 2.7];
    /// let predicted = truth.map(|loss| 2.0 * loss);
    /// let intervals = Intervals::of(&predicted, &truth, RESAMPLES, 0.95);
    /// assert_eq!(intervals.regret, Some((0.0, 0.0))); // the best prediction is always the best candidate
    /// ```
    pub fn of(predicted: &[f64], truth: &[f64], resamples: usize, level: f64) -> Self {
        Self::overall(&[predicted], &[truth], resamples, level)
    }

    /// Intervals of the means of the statistics over several eval sets. Both arguments hold one scoring of the same
    /// candidates per eval set; a resample takes the same candidates in all of them, as their errors go together.
    ///
    /// All are none when the scorings differ in number or length.
    pub fn overall(predicted: &[&[f64]], truth: &[&[f64]], resamples: usize, level: f64) -> Self {
        let n = truth.first().map_or(0, |scores| scores.len());
        let comparable =
            predicted.len() == truth.len() && predicted.iter().chain(truth).all(|scores| scores.len() == n);
        let resamples = if comparable && n > 0 { resamples } else { 0 };
        let mut stream = Stream::new(0, "bootstrap candidates");
        let drawn: Vec<Vec<usize>> = (0..resamples).map(|_| resample::rows(&mut stream, n)).collect();
        let agreements: Vec<Vec<Agreement>> = drawn.par_iter().map(|rows| on(rows, predicted, truth)).collect();
        let interval = |statistic: Statistic| {
            let defined: Vec<f64> = agreements.iter().filter_map(|evals| mean(evals, statistic)).collect();
            let enough = defined.len() >= 2 && 2 * defined.len() >= resamples;
            if enough { resample::interval(defined, level) } else { None }
        };
        Self {
            pearson: interval(|agreement| agreement.pearson),
            spearman: interval(|agreement| agreement.spearman),
            kendall: interval(|agreement| agreement.kendall),
            decision_accuracy: interval(|agreement| agreement.decision_accuracy),
            top_overlap: interval(|agreement| agreement.top_overlap),
            regret: interval(|agreement| agreement.regret),
        }
    }
}

type Statistic = fn(&Agreement) -> Option<f64>;

/// The agreement on each eval set of the candidates in `rows`.
fn on(rows: &[usize], predicted: &[&[f64]], truth: &[&[f64]]) -> Vec<Agreement> {
    let take = |scores: &[f64]| -> Vec<f64> { rows.iter().map(|row| scores[*row]).collect() };
    predicted.iter().zip(truth).map(|(predicted, truth)| Agreement::between(&take(predicted), &take(truth))).collect()
}

/// The mean of a statistic over eval sets, none when it is undefined on one of them.
fn mean(evals: &[Agreement], statistic: Statistic) -> Option<f64> {
    let values = evals.iter().map(statistic).collect::<Option<Vec<f64>>>()?;
    Some(values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_eval_set_twice_is_that_eval_set() {
        let (x, y): (&[f64], &[f64]) = (&[1.0, 2.0, 4.0, 3.0, 6.0], &[1.5, 1.0, 3.0, 5.0, 4.0]);
        assert_eq!(Intervals::overall(&[x, x], &[y, y], 300, 0.9), Intervals::of(x, y, 300, 0.9));
    }

    #[test]
    fn what_is_mostly_undefined_has_no_interval() {
        let constant = Intervals::of(&[1.0; 6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 200, 0.9);
        assert_eq!((constant.pearson, constant.spearman, constant.kendall), (None, None, None));
        assert_eq!(constant.decision_accuracy, Some((0.5, 0.5)));
        let one = Intervals::of(&[1.0], &[2.0], 200, 0.9);
        assert_eq!((one.pearson, one.regret), (None, Some((0.0, 0.0))));
    }

    #[test]
    fn scorings_that_cannot_be_compared_have_no_interval() {
        let none = [
            Intervals::of(&[], &[], 100, 0.9),
            Intervals::of(&[1.0], &[1.0, 2.0], 100, 0.9),
            Intervals::overall(&[&[1.0, 2.0]], &[], 100, 0.9),
            Intervals::of(&[1.0, 2.0, f64::NAN], &[1.0, 2.0, 3.0], 0, 0.9),
        ];
        assert!(none.iter().all(|intervals| (intervals.pearson, intervals.regret) == (None, None)));
    }
}
