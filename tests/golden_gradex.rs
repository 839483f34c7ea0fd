//! Golden `GradEx`: log-odds and their gradients against `PyTorch`, the regression against scikit-learn's liblinear
//! (`scripts/reference/gradex.py`).

mod common;

use common::{assert_within, distance, golden, ids, norm, number, numbers, relative, spread};
use mixpool::estimators::{Observation, logistic_regression};
use mixpool::eval::Evaluator;
use mixpool::model::Layout;
use mixpool::text::Batch;

#[test]
fn outputs_and_their_gradients_are_those_of_torch() {
    let golden = golden("gradex");
    let config = common::config(&golden);
    let layout = Layout::of(&config);
    let mut weights = common::weights(&layout);
    let gain = number(&golden["gain"]) as f32;
    weights[layout.parameter("lm_head.weight").unwrap().range()].iter_mut().for_each(|weight| *weight *= gain);
    let evaluator = Evaluator::new(&config, &layout, 16).unwrap();
    evaluator
        .set(|out| {
            out.copy_from_slice(&weights);
            Ok(())
        })
        .unwrap();
    let case = &golden["log_odds"];
    let batch = Batch { inputs: ids(&case["inputs"]), targets: ids(&case["targets"]) };
    let forward = evaluator.log_odds(&batch, 16).unwrap();
    let mut expected = case["sequences"].as_array().unwrap().iter().zip(forward);
    evaluator
        .log_odds_gradients(&batch, 16, |output, gradient| {
            let (expected, forward) = expected.next().unwrap();
            let f = number(&expected["output"]);
            // Logits of size 20 in f32 are off by 1e-6, and an output by as much of its size.
            assert_within(2e-6, [relative(output, f), relative(forward, f)], "output");
            for parameter in layout.parameters() {
                let (name, gradient) = (&parameter.name, &gradient[parameter.range()]);
                let size = number(&expected["norms"][name]);
                // Near p = 1 the gradient holds 1 − p, all of whose error is rounding of a sum near 1; 2e-7 elsewhere.
                assert_within(1e-4, [relative(norm(gradient), size)], &format!("norm of {name}"));
                let error = distance(&gradient[..4], &numbers(&expected["heads"][name])) / size;
                assert_within(1e-4, [error], &format!("first values of {name}"));
            }
            Ok(())
        })
        .unwrap();
    assert!(expected.next().is_none());
}

#[test]
fn the_regression_is_that_of_liblinear() {
    let golden = &golden("gradex")["regression"];
    let count = |name: &str| golden[name].as_u64().unwrap() as usize;
    let (rows, columns) = (count("rows"), count("columns"));
    let features: Vec<f64> = spread("gradex rows", rows * columns, 6.0).into_iter().map(f64::from).collect();
    let labels: Vec<bool> = spread("gradex labels", rows, 1.0).iter().map(|value| f64::from(*value) < 0.2).collect();
    let weights: Vec<f64> = spread("gradex weights", rows, 2.0).iter().map(|value| f64::from(*value) + 1.0).collect();
    let sign = |label| if label { 1.0 } else { -1.0 };
    let signed = features.chunks(columns).zip(&labels);
    let signed: Vec<Vec<f64>> = signed.map(|(row, label)| row.iter().map(|x| sign(*label) * x).collect()).collect();
    let observations = signed.iter().zip(&labels).zip(&weights);
    let observations: Vec<Observation<'_>> = observations
        .map(|((features, label), weight)| Observation { features, label: *label, weight: *weight })
        .collect();
    for found in golden["found"].as_array().unwrap() {
        let fit = logistic_regression(&observations, number(&found["c"])).unwrap();
        let mut expected = numbers(&found["coefficients"]);
        expected.push(number(&found["intercept"]));
        let size = common::largest(&expected);
        let errors = fit.iter().zip(&expected).map(|(got, expected)| (got - expected).abs() / size);
        // What liblinear's own stopping rule leaves.
        assert_within(1e-6, errors, &format!("C = {}", found["c"]));
    }
}

#[test]
fn a_weight_is_a_number_of_repetitions() {
    let rows = spread("repeated", 60, 4.0).into_iter().map(f64::from).collect::<Vec<f64>>();
    let observation = |index: usize, weight| Observation {
        features: &rows[3 * index..3 * index + 3],
        label: !index.is_multiple_of(3),
        weight,
    };
    let weighted: Vec<_> = (0..20).map(|index| observation(index, (1 + index % 2) as f64)).collect();
    let repeated: Vec<_> =
        (0..20).flat_map(|index| (0..=index % 2).map(move |_| index)).map(|index| observation(index, 1.0)).collect();
    let (one, other) = (logistic_regression(&weighted, 0.5).unwrap(), logistic_regression(&repeated, 0.5).unwrap());
    assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-12), "{one:?} is not {other:?}");
    assert!(logistic_regression(&[], 1.0).is_err());
}
