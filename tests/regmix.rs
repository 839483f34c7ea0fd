//! `RegMix` tables: statistics and fitted estimators on measured losses, beside `SciPy`, scikit-learn and `LightGBM`
//! (scripts/reference/regmix.py; the tables in tests/golden/regmix are upstream's).

mod common;

use common::{assert_within, golden, number, numbers};
use mixpool::estimators::{Law, LawFit, Linear, Trees, TreesFit};
use mixpool::rank::Agreement;
use mixpool::rank::agreement::spearman;
use rayon::prelude::*;
use serde_json::Value;
use std::path::Path;

/// The rows of a table in order of its first column, which is left out.
fn rows(name: &str) -> Vec<Vec<f64>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/regmix").join(name);
    let mut rows: Vec<Vec<f64>> = csv::Reader::from_path(path).unwrap().deserialize().map(Result::unwrap).collect();
    rows.sort_by(|a, b| a[0].total_cmp(&b[0]));
    rows.into_iter().map(|row| row[1..].to_vec()).collect()
}

/// The columns of a table, one per loss.
fn columns(name: &str) -> Vec<Vec<f64>> {
    let rows = rows(name);
    (0..rows[0].len()).map(|column| rows.iter().map(|row| row[column]).collect()).collect()
}

type Statistic = fn(&Agreement) -> Option<f64>;

/// What models are fitted on and judged by; 13 losses.
struct Tables {
    weights: Vec<Vec<f64>>,
    losses: Vec<Vec<f64>>,
    unseen: Vec<Vec<f64>>,
    truths: [Vec<Vec<f64>>; 2],
}

impl Tables {
    fn read() -> Self {
        Self {
            weights: rows("train_mixture_1m.csv"),
            losses: columns("train_pile_loss_1m.csv"),
            unseen: rows("test_mixture_1m.csv"),
            truths: [columns("test_pile_loss_1m.csv"), columns("test_pile_loss_60m.csv")],
        }
    }

    /// Mean Spearman over the losses, with 1M and with 60M parameters, beside the reference's.
    fn compare(&self, predicted: &[Vec<f64>], reference: &Value) -> [(f64, f64); 2] {
        std::array::from_fn(|size| {
            let truth = &self.truths[size];
            let got =
                predicted.iter().zip(truth).map(|(predicted, truth)| spearman(&rounded(predicted), truth).unwrap());
            let expected = numbers(&reference[["spearman_1m", "spearman_60m"][size]]);
            (got.sum::<f64>() / truth.len() as f64, expected.iter().sum::<f64>() / expected.len() as f64)
        })
    }
}

/// To nine decimals: where the law is flat its values differ by rounding errors alone.
fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| (value * 1e9).round() / 1e9).collect()
}

/// As good as the reference to within 0.01, and how good both are.
#[track_caller]
fn assert_as_good(scores: [(f64, f64); 2], what: &str) {
    for ((got, expected), size) in scores.into_iter().zip(["1M", "60M"]) {
        assert_within(
            0.01,
            [(expected - got).max(0.0)],
            &format!("{what}, {size}: Spearman {got:.5} for {expected:.5}"),
        );
    }
}

#[test]
fn the_transfer_of_ranks_from_1m_to_60m_is_that_of_scipy() {
    let (tables, reference) = (Tables::read(), golden("regmix/reference"));
    let agreements: Vec<Agreement> =
        tables.truths[0].iter().zip(&tables.truths[1]).map(|(small, large)| Agreement::between(small, large)).collect();
    let pearson: Statistic = |agreement| agreement.pearson;
    let statistics = [("pearson", pearson), ("spearman", |a| a.spearman), ("kendall", |a| a.kendall)];
    for (name, statistic) in statistics {
        let expected = numbers(&reference["transfer"][name]);
        let errors = agreements.iter().zip(expected).map(|(got, expected)| (statistic(got).unwrap() - expected).abs());
        assert_within(1e-12, errors, name);
    }
}

#[test]
fn lines_predict_as_scikit_learn() {
    let (tables, reference) = (Tables::read(), &golden("regmix/reference")["linear"]);
    let lines: Vec<Linear> = tables.losses.iter().map(|losses| Linear::fit(&tables.weights, losses).unwrap()).collect();
    let predict = |line: &Linear| tables.unseen.iter().map(|weights| line.predict(weights)).collect();
    let predicted: Vec<Vec<f64>> = lines.iter().map(predict).collect();
    for (index, predicted) in predicted.iter().enumerate() {
        let intercept = number(&reference["intercept"][index]);
        let theirs = Linear { intercept, coefficients: numbers(&reference["coefficients"][index]) };
        let errors = tables.unseen.iter().zip(predicted).map(|(weights, got)| (got - theirs.predict(weights)).abs());
        // The columns are so nearly collinear (condition 5e3) that a few digits of sixteen are lost on both sides.
        assert_within(1e-6, errors, "a line");
    }
    assert_as_good(tables.compare(&predicted, reference), "lines");
}

#[test]
fn laws_are_as_good_as_scipys() {
    let (tables, reference) = (Tables::read(), &golden("regmix/reference")["law"]);
    // The harder losses have two minima a part in a thousand apart, and a third of the starts find the lower one.
    let how = LawFit { delta: number(&reference["delta"]), starts: 8 };
    let laws: Vec<Law> =
        tables.losses.par_iter().map(|losses| Law::fit(&tables.weights, losses, how).unwrap()).collect();
    let objectives = numbers(&reference["objective"]);
    let excess = laws.iter().zip(objectives).map(|(law, expected)| (law.objective / expected - 1.0).max(0.0));
    assert_within(1e-3, excess, "the laws' objectives above SciPy's");
    let predict = |law: &Law| tables.unseen.iter().map(|weights| law.predict(weights)).collect();
    let predicted: Vec<Vec<f64>> = laws.iter().map(predict).collect();
    assert_as_good(tables.compare(&predicted, reference), "laws");
}

#[test]
fn trees_are_as_good_as_lightgbms() {
    let (tables, reference) = (Tables::read(), &golden("regmix/reference")["trees"]);
    let predict = |losses: &Vec<f64>| {
        let trees = Trees::fit(&tables.weights, losses, TreesFit::default()).unwrap();
        trees.predict(&tables.unseen).unwrap()
    };
    let predicted: Vec<Vec<f64>> = tables.losses.par_iter().map(predict).collect();
    assert_as_good(tables.compare(&predicted, reference), "trees");
}
