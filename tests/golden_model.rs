//! Golden model: logits, losses and gradients against transformers' `LlamaForCausalLM` (`scripts/reference/model.py`).
//!
//! The expected numbers are float64 throughout; ours are f32, whose single rounding is 6e-8. Measured errors are at
//! least three times below the tolerances, which leaves room for another order of additions on another processor.

mod common;

use common::{assert_within, distance, flat, golden, ids, largest, norm, number, numbers, relative};
use mixpool::kernels::{Exec, sum_of_squares};
use mixpool::model::{Layout, ModelConfig, Sequences, Transformer};
use serde_json::Value;

const GOLDENS: [&str; 2] = ["model_tied", "model_untied"];
const LENGTHS: [usize; 2] = [16, 16];

/// A golden and the model it was made with.
struct Case {
    name: &'static str,
    golden: Value,
    config: ModelConfig,
    layout: Layout,
    model: Transformer,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        GOLDENS.into_iter().map(|name| {
            let golden = golden(name);
            let config = common::config(&golden);
            let layout = Layout::of(&config);
            let model = Transformer::new(&config, &layout, &flat(common::weights(&layout)), 16, Exec::Split).unwrap();
            let (inputs, targets) = (ids(&golden["inputs"]), ids(&golden["targets"]));
            Self { name, golden, config, layout, model, inputs, targets }
        })
    }

    fn batch(&self) -> Sequences<'_> {
        Sequences { tokens: &self.inputs, lengths: &LENGTHS }
    }

    fn loss_and_gradient(&self) -> (f64, Vec<f32>) {
        common::loss_and_gradient(&self.model, &self.config, &self.layout, self.batch(), &self.targets)
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for case in Case::all() {
        let logits: Vec<Vec<f32>> = case.model.logits(case.batch()).unwrap().to_vec2().unwrap();
        let errors = case.golden["logits_f64"].as_array().unwrap().iter().map(|expected| {
            let row = number(&expected["sequence"]) as usize * 16 + number(&expected["position"]) as usize;
            let expected = numbers(&expected["values"]);
            distance(&logits[row], &expected) / largest(&expected)
        });
        // Some twenty roundings, were they all to add up.
        assert_within(1e-6, errors, &format!("{}: logits", case.name));
    }
}

#[test]
fn losses_are_those_of_transformers() {
    for case in Case::all() {
        let (loss, _) = case.loss_and_gradient();
        // The logits are off by 3e-7 of their size (below 1), the loss (4.6) is the mean over 32 tokens.
        assert_within(1e-7, [relative(loss, number(&case.golden["loss_f64"]))], &format!("{}: loss", case.name));

        let rows: Vec<usize> = (0..case.inputs.len()).collect();
        let nll = case.model.nll(case.batch(), &rows, &case.targets).unwrap();
        let expected = numbers(&case.golden["nll"]);
        assert_eq!(nll.len(), expected.len());
        let errors = nll.iter().zip(expected).map(|(got, expected)| relative(*got, expected));
        // As above, without the mean.
        assert_within(3e-7, errors, &format!("{}: loss of a token", case.name));
        let mean = nll.iter().sum::<f64>() / nll.len() as f64;
        assert_eq!(mean.to_bits(), loss.to_bits(), "scoring and training take the same forward pass");
    }
}

#[test]
fn the_norm_of_the_whole_gradient_is_that_of_transformers() {
    for case in Case::all() {
        let norm = sum_of_squares(&flat(case.loss_and_gradient().1)).unwrap().sqrt();
        let expected = number(&case.golden["gradient_norm"]);
        // The way back is twice as long as the way there; errors of single values mostly cancel in the norm.
        assert_within(1e-6, [relative(norm, expected)], &format!("{}: gradient norm", case.name));
    }
}

#[test]
fn the_gradient_of_every_tensor_is_that_of_transformers() {
    for case in Case::all() {
        let (_, gradient) = case.loss_and_gradient();
        let (norms, heads) = (&case.golden["gradient_norms"], &case.golden["gradient_heads"]);
        assert_eq!(norms.as_object().unwrap().len(), case.layout.parameters().len());
        for parameter in case.layout.parameters() {
            let (name, gradient) = (&parameter.name, &gradient[parameter.range()]);
            let expected = number(&norms[name]);
            // As for the whole norm; single values are measured against the norm of their tensor, for they may be
            // what is left of larger ones that cancelled.
            assert_within(1e-6, [relative(norm(gradient), expected)], &format!("{}: norm of {name}", case.name));
            let error = distance(&gradient[..4], &numbers(&heads[name])) / expected;
            assert_within(1e-6, [error], &format!("{}: first values of {name}", case.name));
        }
    }
}

#[test]
fn no_tensor_is_left_without_a_gradient() {
    for case in Case::all() {
        let (_, gradient) = case.loss_and_gradient();
        for parameter in case.layout.parameters() {
            let gradient = &gradient[parameter.range()];
            assert!(gradient.iter().all(|value| value.is_finite()), "{}: {}", case.name, parameter.name);
            assert!(gradient.iter().any(|value| *value != 0.0), "{}: {}", case.name, parameter.name);
        }
    }
}
