//! Agreement of scorings: laws that hold for any two, ties included.

use mixpool::rank::agreement::{Agreement, average_ranks, decision_accuracy, kendall_tau_b, pearson, regret, spearman};
use proptest::prelude::*;

type Statistic = fn(&[f64], &[f64]) -> Option<f64>;

const CORRELATIONS: [Statistic; 3] = [pearson, spearman, kendall_tau_b];

/// Two equally long scorings drawn from few values, so that ties are common.
fn scorings() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
    prop::collection::vec((0..12_i32, 0..12_i32), 2..80)
        .prop_map(|pairs| pairs.into_iter().map(|(x, y)| (f64::from(x), f64::from(y) / 8.0)).unzip())
}

/// -1, 0 or 1 for every pair of candidates: whether the later one's score is smaller, equal or larger.
fn signs(x: &[f64]) -> Vec<i64> {
    let sign = |i: usize, j: usize| x[i].partial_cmp(&x[j]).unwrap() as i64;
    (0..x.len()).flat_map(|i| (0..i).map(move |j| sign(i, j))).collect()
}

/// Tau-b by its definition: the cosine between the signs of all pairs.
fn naive_kendall(x: &[f64], y: &[f64]) -> Option<f64> {
    let (x, y) = (signs(x), signs(y));
    let dot = |a: &[i64], b: &[i64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<i64>() as f64;
    let norms = dot(&x, &x) * dot(&y, &y);
    (norms > 0.0).then(|| dot(&x, &y) / norms.sqrt())
}

fn naive_decision_accuracy(predicted: &[f64], truth: &[f64]) -> Option<f64> {
    let (predicted, truth) = (signs(predicted), signs(truth));
    let decided: Vec<i64> = predicted.iter().zip(&truth).filter(|(_, t)| **t != 0).map(|(p, t)| p * t).collect();
    let right: f64 = decided.iter().map(|product| (product + 1) as f64 / 2.0).sum();
    (!decided.is_empty()).then(|| right / decided.len() as f64)
}

fn close(got: Option<f64>, expected: Option<f64>) -> bool {
    match (got, expected) {
        (Some(got), Some(expected)) => (got - expected).abs() <= 1e-12,
        (got, expected) => got == expected,
    }
}

proptest! {
    #[test]
    fn pair_statistics_follow_their_definitions((x, y) in scorings()) {
        prop_assert_eq!(kendall_tau_b(&x, &y), naive_kendall(&x, &y));
        prop_assert_eq!(decision_accuracy(&x, &y), naive_decision_accuracy(&x, &y));
    }

    #[test]
    fn correlations_are_symmetric((x, y) in scorings()) {
        for correlation in CORRELATIONS {
            prop_assert_eq!(correlation(&x, &y), correlation(&y, &x));
        }
    }

    #[test]
    fn reversing_one_scoring_reverses_the_sign((x, y) in scorings()) {
        let reversed: Vec<f64> = x.iter().map(|value| -value).collect();
        for correlation in CORRELATIONS {
            prop_assert!(close(correlation(&reversed, &y), correlation(&x, &y).map(|r| -r)));
        }
        prop_assert!(close(decision_accuracy(&reversed, &y), decision_accuracy(&x, &y).map(|a| 1.0 - a)));
    }

    #[test]
    fn a_monotone_map_of_the_predictions_changes_only_pearson((x, y) in scorings()) {
        let mapped: Vec<f64> = x.iter().map(|value| value.exp() - 7.0).collect();
        prop_assert_eq!(average_ranks(&mapped), average_ranks(&x));
        let (got, expected) = (Agreement::between(&mapped, &y), Agreement::between(&x, &y));
        prop_assert_eq!(Agreement { pearson: None, ..got }, Agreement { pearson: None, ..expected });
    }

    #[test]
    fn ranks_add_up_to_those_without_ties((x, _) in scorings()) {
        let n = x.len() as f64;
        prop_assert_eq!(average_ranks(&x).iter().sum::<f64>(), n * (n + 1.0) / 2.0);
    }

    #[test]
    fn a_scoring_agrees_with_itself((x, _) in scorings()) {
        let varies = x.iter().any(|value| *value != x[0]);
        let perfect = varies.then_some(1.0);
        for statistic in [pearson, spearman, kendall_tau_b, decision_accuracy] {
            prop_assert_eq!(statistic(&x, &x), perfect);
        }
        prop_assert_eq!(regret(&x, &x), Some(0.0));
    }
}
