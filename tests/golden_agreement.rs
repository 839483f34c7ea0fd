//! Agreement of scorings: the values `SciPy` gives, from scripts/reference/agreement.py.

use mixpool::rank::agreement::{
    average_ranks, decision_accuracy, kendall_tau_b, pearson, regret, spearman, top_k_overlap,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    x: Vec<f64>,
    y: Vec<f64>,
    ranks_x: Vec<f64>,
    pearson: Option<f64>,
    spearman: Option<f64>,
    kendall: Option<f64>,
    decision_accuracy: Option<f64>,
    top_1: Option<f64>,
    top_3: Option<f64>,
    top_5: Option<f64>,
    regret: Option<f64>,
}

fn cases() -> Vec<Case> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/agreement.json");
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().cases
}

/// Equal to 1e-12 of the larger of the value and 1.
fn close(got: Option<f64>, expected: Option<f64>) -> bool {
    match (got, expected) {
        (Some(got), Some(expected)) => (got - expected).abs() <= 1e-12 * expected.abs().max(1.0),
        (got, expected) => got == expected,
    }
}

#[test]
fn statistics_match_scipy() {
    let cases = cases();
    assert!(!cases.is_empty());
    for case in &cases {
        let (x, y) = (&case.x, &case.y);
        for (statistic, got, expected) in [
            ("pearson", pearson(x, y), case.pearson),
            ("spearman", spearman(x, y), case.spearman),
            ("kendall", kendall_tau_b(x, y), case.kendall),
            ("decision accuracy", decision_accuracy(x, y), case.decision_accuracy),
            ("top 1", top_k_overlap(x, y, 1), case.top_1),
            ("top 3", top_k_overlap(x, y, 3), case.top_3),
            ("top 5", top_k_overlap(x, y, 5), case.top_5),
            ("regret", regret(x, y), case.regret),
        ] {
            assert!(close(got, expected), "{statistic} of '{}': expected {expected:?}, got {got:?}", case.name);
        }
    }
}

#[test]
fn ranks_match_scipy() {
    for case in cases() {
        assert_eq!(average_ranks(&case.x), case.ranks_x, "{}", case.name);
    }
}
