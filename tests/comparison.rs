//! Comparison: answers made by hand, judged by hand.

use mixpool::estimators::{Answer, Cost, Gives};
use mixpool::rank::{Agreement, Intervals, Judgement, Noise, RESAMPLES, compare};
use std::collections::BTreeMap;

/// An answer about the eval set `eval`.
fn answer(estimator: &str, tokens: Option<u64>, eval: &str, predictions: &[(&str, f64)]) -> Answer {
    Answer {
        estimator: estimator.into(),
        options: BTreeMap::new(),
        gives: Gives::Loss,
        eval_set: eval.into(),
        tokens,
        cost: Cost { train_tokens: 7, flops: 1e9, seconds: 2.0 },
        predictions: predictions.iter().map(|(mixture, loss)| ((*mixture).into(), *loss)).collect(),
    }
}

/// The judgement of an estimator on an eval set (none: their mean), on mixtures of every size.
fn find<'a>(judgements: &'a [Judgement], estimator: &str, eval: Option<&str>) -> &'a Judgement {
    let is_it = |one: &&Judgement| one.estimator == estimator && one.eval_set.as_deref() == eval && one.size.is_none();
    let found: Vec<_> = judgements.iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{estimator} on {eval:?}");
    found[0]
}

const TRUTH: [(&str, f64); 6] = [("a", 3.0), ("b", 2.0), ("c", 2.5), ("a+b", 1.5), ("a+c", 1.0), ("b+c", 2.25)];

#[test]
fn only_what_both_speak_of_is_compared() {
    let answers = [
        answer("ground-truth", None, "x", &TRUTH),
        answer("merged", None, "x", &[("a", 3.5), ("b", 2.5), ("a+b", 1.25), ("a+b+c", 0.0)]),
        answer("merged", None, "no truth here", &[("a", 3.5), ("b", 2.5)]),
    ];
    let judgements = compare(&answers);
    assert_eq!(judgements.len(), 1, "one eval set has no mean, three mixtures no sizes: {judgements:?}");
    let one = find(&judgements, "merged", Some("x"));
    let (predicted, truth) = ([3.5, 1.25, 2.5], [3.0, 1.5, 2.0]); // a, a+b, b
    assert_eq!(one.agreement, Agreement::between(&predicted, &truth));
    assert_eq!(one.intervals, Intervals::of(&predicted, &truth, RESAMPLES, 0.95));
    assert_eq!((one.agreement.n, one.mean_offset, one.true_spread), (3, Some(0.25), 1.5));
    assert_eq!((one.cost.train_tokens, one.noise), (7, None));
}

#[test]
fn a_size_of_four_mixtures_has_a_line() {
    let truth = [("a", 1.0), ("b", 2.0), ("c", 3.0), ("d=0.5+a=0.5", 2.5), ("a+b", 1.5), ("a+c", 0.5), ("b+c", 2.25)];
    let judgements = compare(&[answer("ground-truth", None, "x", &truth), answer("merged", None, "x", &truth)]);
    let sizes: Vec<_> = judgements.iter().map(|one| (one.size, one.agreement.n)).collect();
    assert_eq!(sizes, [(None, 7), (Some(2), 4)]);
    assert_eq!(judgements[1].true_spread, 2.0);
}

#[test]
fn an_order_has_no_offset() {
    let mut order = answer("order", None, "x", &TRUTH);
    order.gives = Gives::Order;
    let judgements = compare(&[answer("ground-truth", None, "x", &TRUTH), order]);
    let one = find(&judgements, "order", Some("x"));
    assert_eq!((one.agreement.spearman, one.mean_offset), (Some(1.0), None));
}

#[test]
fn truth_of_another_budget_judges_nothing() {
    let reversed: Vec<(&str, f64)> = TRUTH.iter().map(|(mixture, loss)| (*mixture, -loss)).collect();
    let answers = [
        answer("ground-truth", None, "x", &TRUTH),
        answer("ground-truth", Some(1000), "x", &reversed),
        answer("merged", None, "x", &TRUTH),
        answer("merged", Some(1000), "x", &TRUTH),
        answer("regression", Some(2000), "x", &TRUTH),
    ];
    let judgements = compare(&answers);
    let got: Vec<_> =
        judgements.iter().map(|one| (one.estimator.as_str(), one.tokens, one.agreement.kendall)).collect();
    assert_eq!(got, [("merged", None, Some(1.0)), ("merged", Some(1000), Some(-1.0))]);
}

#[test]
fn means_over_eval_sets_have_intervals_on_shared_mixtures() {
    let other: Vec<(&str, f64)> = TRUTH.iter().skip(1).map(|(mixture, loss)| (*mixture, 1.0 + loss * loss)).collect();
    let predicted = [("a", 2.0), ("b", 2.5), ("c", 2.25), ("a+b", 1.0), ("a+c", 1.5), ("b+c", 2.0)];
    let answers = [
        answer("ground-truth", None, "x", &TRUTH),
        answer("ground-truth", None, "y", &other),
        answer("merged", None, "x", &predicted),
        answer("merged", None, "y", &predicted),
    ];
    let judgements = compare(&answers);
    let mean = find(&judgements, "merged", None);
    let [x, y] = ["x", "y"].map(|eval| find(&judgements, "merged", Some(eval)).agreement);
    assert_eq!(mean.agreement.kendall, Some(f64::midpoint(x.kendall.unwrap(), y.kendall.unwrap())));
    // In the order of their names, without `a`: a+b, a+c, b, b+c, c.
    let (said, on_x) = ([1.0, 1.5, 2.5, 2.0, 2.25], [1.5, 1.0, 2.0, 2.25, 2.5]);
    let on_y = on_x.map(|loss| 1.0 + loss * loss);
    assert_eq!(mean.intervals, Intervals::overall(&[&said, &said], &[&on_x, &on_y], RESAMPLES, 0.95));
}

#[test]
fn repetitions_of_the_truth_say_how_noisy_it_is() {
    let answers = [
        answer("ground-truth", None, "x", &TRUTH),
        answer("ground-truth:repeat=1", None, "x", &[("a", 3.2), ("a+b", 1.4)]),
        answer("ground-truth:repeat=2", None, "x", &[("a", 3.1), ("never a first run", 9.0)]),
        answer("ground-truth:repeat=1", Some(1000), "x", &[("a", 30.0)]),
        answer("merged", None, "x", &TRUTH),
    ];
    let judgements = compare(&answers);
    assert_eq!(judgements.len(), 1, "a repetition is no estimator: {judgements:?}");
    let losses = [3.0, 1.5, 1.0, 2.0, 2.25, 2.5];
    let expected = Noise::of(&[vec![3.0, 3.2, 3.1], vec![1.5, 1.4]], &losses);
    assert!(expected.is_some());
    assert_eq!(judgements[0].noise, expected);
}
