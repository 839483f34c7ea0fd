//! Bootstrap intervals: the values `scipy.stats.bootstrap` gives, from scripts/reference/bootstrap.py.

mod common;

use common::{golden, number, numbers};
use mixpool::rank::Intervals;
use serde_json::Value;

/// The vectors of a case, one per eval set.
fn vectors(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(numbers).collect()
}

#[test]
fn intervals_match_scipy_within_monte_carlo_error() {
    let golden = golden("bootstrap");
    let (resamples, level) = (number(&golden["resamples"]) as usize, number(&golden["level"]));
    for case in golden["cases"].as_array().unwrap() {
        let (predicted, truth) = (vectors(&case["predicted"]), vectors(&case["truth"]));
        let (predicted, truth): (Vec<&[f64]>, Vec<&[f64]>) =
            (predicted.iter().map(Vec::as_slice).collect(), truth.iter().map(Vec::as_slice).collect());
        let got = Intervals::overall(&predicted, &truth, resamples, level);
        for (name, got) in [
            ("pearson", got.pearson),
            ("spearman", got.spearman),
            ("kendall", got.kendall),
            ("decision_accuracy", got.decision_accuracy),
            ("top_overlap", got.top_overlap),
            ("regret", got.regret),
        ] {
            let expected = &case["intervals"][name];
            let (mean, deviation) = (numbers(&expected["mean"]), numbers(&expected["deviation"]));
            let got = got.unwrap();
            for (end, got) in [got.0, got.1].into_iter().enumerate() {
                // Both sides have Monte-Carlo error: five deviations of one run cover ours and, √6 smaller, SciPy's.
                // A statistic that jumps may do so between runs that all agreed: rounding errors apart they then do here.
                let tolerance = 5.0 * deviation[end] + 1e-12;
                let error = (got - mean[end]).abs();
                assert!(error <= tolerance, "{}, {name}: {got} for {}, tolerance {tolerance}", case["name"], mean[end]);
            }
        }
    }
}
