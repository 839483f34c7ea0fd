//! Golden `AdamW`: five steps of the trainer against torch's `AdamW`, clipping and warm-up
//! (`scripts/reference/adamw.py`), and learning rates against its schedulers (`scripts/reference/schedule.py`).

mod common;

use common::{assert_within, distance, golden, norm, number, numbers, relative};
use mixpool::model::{Layout, ModelConfig};
use mixpool::text::{Batch, Batches, Share, TokenFile};
use mixpool::train::{Schedule, State, TrainConfig, Trainer};
use serde_json::Value;

const LENGTH: usize = 16;

/// The run of a golden file.
fn train_config(golden: &Value) -> TrainConfig {
    let settings = &golden["settings"];
    let steps = golden["steps"].as_array().unwrap().len() as u64;
    TrainConfig {
        warmup_steps: settings["warmup_steps"].as_u64().unwrap(),
        beta1: number(&settings["betas"][0]),
        beta2: number(&settings["betas"][1]),
        eps: number(&settings["eps"]),
        weight_decay: number(&settings["weight_decay"]),
        clip: number(&settings["clip_norm"]),
        ..TrainConfig::new(steps, 2, LENGTH, number(&settings["learning_rate"]))
    }
}

/// Batches of which the first is the golden's batch of `step`.
///
/// Each of the two sequences is the second of the two blocks of a unit; some seed draws both of them first.
fn batches(step: usize, vocabulary: usize) -> Batches {
    let rows: Vec<Vec<u32>> =
        common::tokens(1000 * step, 2 * (LENGTH + 1), vocabulary).chunks(LENGTH + 1).map(<[u32]>::to_vec).collect();
    let folder = tempfile::tempdir().unwrap();
    let unit = |row: &Vec<u32>| [vec![0; LENGTH - 1], row.clone()].concat();
    let tokens: TokenFile = common::token_file(folder.path(), &rows.iter().map(unit).collect::<Vec<_>>());
    let share = |row: usize| Share { tokens: &tokens, documents: row..row + 1, weight: 0.5 };
    let draw = |seed| Batches::new(&[share(0), share(1)], 0, LENGTH, seed).unwrap();
    let wanted = Batch {
        inputs: rows.iter().flat_map(|row| &row[..LENGTH]).copied().collect(),
        targets: rows.iter().flat_map(|row| &row[1..]).copied().collect(),
    };
    draw((0..1000).find(|seed| draw(*seed).next(2) == wanted).unwrap())
}

/// A parameter, of a fused bias without the part of the keys: what is added to every key alike changes no softmax, so its
/// gradient is 0 but for rounding, which Adam scales up to whole steps.
fn without_keys(model: &ModelConfig, name: &str, values: &[f32]) -> Vec<f32> {
    let part = match name {
        _ if name.ends_with("c_attn.bias") => values.len() / 3,
        _ if name.ends_with("query_key_value.bias") => model.head_dim,
        _ => return values.to_vec(),
    };
    let parts = values.chunks(part).enumerate().filter(|(index, _)| index % 3 != 1);
    parts.flat_map(|(_, values)| values).copied().collect()
}

#[test]
fn five_steps_are_those_of_torch() {
    for name in ["adamw_tied", "adamw_untied", "adamw_gpt2", "adamw_gpt_neox"] {
        let golden = golden(name);
        let (model, train) = (common::config(&golden), train_config(&golden));
        let layout = Layout::of(&model);
        let mut trainer = Trainer::new(&model, &layout, &train, State::fresh(common::weights(&layout))).unwrap();
        for (step, expected) in golden["steps"].as_array().unwrap().iter().enumerate() {
            let point = trainer.step(&mut batches(step, model.vocab_size), name).unwrap();
            assert_eq!(point.learning_rate, number(&expected["learning_rate"]));
            // f32 against f64. Adam divides a gradient by its own size, so the rounding errors of the smallest
            // gradients grow to whole percents of a step, but just these hardly move the loss.
            let what = format!("{name}, step {}", step + 1);
            assert_within(1e-6, [relative(point.loss, number(&expected["loss"]))], &format!("{what}: loss"));
            let error = relative(point.gradient_norm, number(&expected["gradient_norm"]));
            assert_within(1e-6, [error], &format!("{what}: gradient norm"));
        }

        let parameters = trainer.state().unwrap().parameters;
        for parameter in layout.parameters() {
            let what = format!("{name}, {}", parameter.name);
            let expected = &golden["tensors"][&parameter.name];
            let values = without_keys(&model, &parameter.name, &parameters[parameter.range()]);
            let (sum, length) = (values.iter().map(|value| f64::from(*value)).sum::<f64>(), number(&expected["norm"]));
            assert_within(1e-6, [relative(norm(&values), length)], &format!("{what}: norm"));
            // A sum of values of either sign cancels, so it is measured against the norm; it gathers the rounding errors that
            // Adam scales up, which differ from processor to processor.
            assert_within(2e-5, [(sum - number(&expected["sum"])).abs() / length], &format!("{what}: sum"));
            // Single values are measured against five steps of 1e-2, the way they have come.
            let error = distance(&values[..8], &numbers(&expected["head"])) / 0.05;
            assert_within(5e-5, [error], &format!("{what}: first values"));
        }
    }
}

#[test]
fn learning_rates_are_those_of_torch() {
    let golden = golden("schedule");
    let config = |schedule| TrainConfig {
        schedule,
        warmup_steps: golden["warmup_steps"].as_u64().unwrap(),
        final_rate: number(&golden["floor"]),
        ..TrainConfig::new(golden["steps"].as_u64().unwrap(), 1, 1, 1.0)
    };
    for (schedule, name) in [(Schedule::Constant, "constant"), (Schedule::Cosine, "cosine")] {
        let (config, expected) = (config(schedule), numbers(&golden[name]));
        assert_eq!(expected.len() as u64, config.steps);
        let errors = expected.iter().enumerate().map(|(step, rate)| relative(config.rate_at(step as u64), *rate));
        // Both sides are f64; torch's cosine is a recurrence, which gathers a rounding of 1e-16 in each of 100 steps.
        assert_within(1e-12, errors, name);
    }
}
