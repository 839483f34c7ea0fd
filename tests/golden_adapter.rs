//! Golden adapters: gradients and three steps of `AdamW` against `PyTorch` (`scripts/reference/adapter.py`).

mod common;

use common::{assert_within, distance, golden, norm, number, numbers, relative};
use mixpool::model::Layout;
use mixpool::text::Batch;
use mixpool::train::{AdapterTrainer, Adapters, State, TrainConfig};

const LENGTH: usize = 16;

/// The two sequences of a step.
fn batch(step: usize, vocabulary: usize) -> Batch {
    let tokens = common::tokens(1000 * step, 2 * (LENGTH + 1), vocabulary);
    let rows = || tokens.chunks(LENGTH + 1);
    Batch {
        inputs: rows().flat_map(|row| &row[..LENGTH]).copied().collect(),
        targets: rows().flat_map(|row| &row[1..]).copied().collect(),
    }
}

#[test]
fn adapters_are_trained_as_torch_trains_them() {
    let golden = golden("adapter");
    let model = common::config(&golden);
    let (layout, settings) = (Layout::of(&model), &golden["settings"]);
    let rank = golden["rank"].as_u64().unwrap() as usize;
    let adapters = Adapters::new(&layout, rank, number(&golden["scale"]) as f32).unwrap();
    let start: Vec<f32> =
        adapters.layout().parameters().iter().flat_map(|p| common::values(&p.name, p.len())).collect();
    let base = common::weights(&layout);
    let config = TrainConfig {
        weight_decay: number(&settings["weight_decay"]),
        clip: number(&settings["clip_norm"]),
        micro_batch_size: 1,
        ..TrainConfig::new(3, 2, LENGTH, number(&settings["learning_rate"]))
    };
    let mut trainer = AdapterTrainer::new(&model, &layout, &config, &base, &adapters, State::fresh(start)).unwrap();
    for (step, expected) in numbers(&golden["losses"]).into_iter().enumerate() {
        let loss = trainer.step(&batch(step, model.vocab_size)).unwrap().loss;
        assert_within(1e-6, [relative(loss, expected)], &format!("loss of step {}", step + 1));
    }
    let values = trainer.state().unwrap().parameters;
    for parameter in adapters.layout().parameters() {
        let (values, expected) = (&values[parameter.range()], &golden["factors"][&parameter.name]);
        assert_within(1e-5, [relative(norm(values), number(&expected["norm"]))], &parameter.name);
        // Single values are measured against three steps of 1e-2, the way they have come; Adam divides a gradient by its own
        // size, so that small ones are off by more than rounding.
        let error = distance(&values[..6], &numbers(&expected["head"])) / 0.03;
        assert_within(1e-4, [error], &format!("first values of {}", parameter.name));
    }
}

#[test]
fn the_gradient_of_a_factor_is_that_of_torch() {
    let golden = golden("adapter");
    let model = common::config(&golden);
    let layout = Layout::of(&model);
    let adapters = Adapters::new(&layout, 3, number(&golden["scale"]) as f32).unwrap();
    let values: Vec<f32> =
        adapters.layout().parameters().iter().flat_map(|p| common::values(&p.name, p.len())).collect();
    let mut merged = vec![0.0; layout.len()];
    adapters.merge(&common::weights(&layout), &values, &mut merged);
    let transformer =
        mixpool::model::Transformer::new(&model, &layout, &common::flat(merged), LENGTH, mixpool::kernels::Exec::Split)
            .unwrap();
    let Batch { inputs, targets } = batch(0, model.vocab_size);
    let sequences = mixpool::model::Sequences { tokens: &inputs, lengths: &[LENGTH, LENGTH] };
    let (_, whole) = common::loss_and_gradient(&transformer, &model, &layout, sequences, &targets);
    let mut own = vec![0.0; values.len()];
    adapters.gradient(&values, &whole, &mut own);
    for parameter in adapters.layout().parameters() {
        let expected = number(&golden["gradient_norms"][&parameter.name]);
        assert_within(2e-6, [relative(norm(&own[parameter.range()]), expected)], &parameter.name);
    }
    assert!(Adapters::new(&layout, 0, 1.0).is_err() && Adapters::new(&layout, 100, 1.0).is_err());
}

#[test]
fn fresh_adapters_change_nothing() {
    let model = common::config(&golden("adapter"));
    let layout = Layout::of(&model);
    let adapters = Adapters::new(&layout, 2, 8.0).unwrap();
    let (base, values) = (common::weights(&layout), adapters.initial_values(1));
    assert!(values.iter().any(|value| *value != 0.0));
    let mut merged = vec![7.0; layout.len()];
    adapters.merge(&base, &values, &mut merged);
    assert_eq!(merged, base);
}
