//! Attribution: contributions of sequences to a step against torch (`scripts/reference/attribution.py`) and against
//! gradients of one sequence at a time; the step stays the one that training takes.

mod common;

use common::{assert_within, bits, flat, golden, largest, norm, number, numbers, spread, tokens};
use mixpool::eval::Evaluator;
use mixpool::kernels::{AdamW, Along, Directions, Exec, adamw_direction};
use mixpool::model::{Factors, Layout, ModelConfig, Sequences, Transformer, Weights};
use mixpool::text::{Batches, Share, Window};
use mixpool::train::{Attribution, State, TrainConfig, Trainer, Update, Values};
use serde_json::Value;

const LENGTH: usize = 16;
const SEQUENCES: usize = 4;

/// The golden's model, tied or not, and its run: a fourth step from given moments.
struct Case {
    name: &'static str,
    golden: Value,
    config: ModelConfig,
    layout: Layout,
    train: TrainConfig,
    parameters: Vec<f32>,
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        [("tied", true), ("untied", false)].into_iter().map(|(name, tied)| {
            let mut golden = golden("attribution");
            golden["config"]["tie_word_embeddings"] = tied.into();
            let config = common::config(&golden);
            let layout = Layout::of(&config);
            let parameters = common::weights(&layout);
            let train = TrainConfig::new(8, SEQUENCES, LENGTH, number(&golden["settings"]["rate"]));
            Self { name, config, layout, train, parameters, golden: golden["cases"][name].take() }
        })
    }

    fn moment(&self, which: &str) -> Vec<f32> {
        let of = |p: &mixpool::model::Parameter| spread(&format!("{which} {}", p.name), p.len(), 0.02);
        self.layout.parameters().iter().flat_map(of).collect()
    }

    fn state(&self) -> State {
        let second = self.moment("second").iter().map(|value| value * value).collect();
        State { step: 3, first: self.moment("first"), second, ..State::fresh(self.parameters.clone()) }
    }

    /// Sequence `index` of the golden: those of the step, then those of the losses.
    fn window(index: usize) -> Window {
        let targets = tokens(1000 * index, LENGTH, 97);
        Window { document: index, input: [&[0], &targets[..LENGTH - 1]].concat(), targets }
    }

    /// One unit per sequence of the step.
    fn batches() -> Batches {
        let documents: Vec<Vec<u32>> = (0..SEQUENCES).map(|index| Self::window(index).targets).collect();
        let folder = tempfile::tempdir().unwrap();
        let tokens = common::token_file(folder.path(), &documents);
        let share = |index: usize| Share { tokens: &tokens, documents: index..index + 1, weight: 0.25 };
        Batches::new(&(0..SEQUENCES).map(share).collect::<Vec<_>>(), 0, LENGTH, 0).unwrap()
    }

    fn evaluator(&self) -> Evaluator {
        let evaluator = Evaluator::new(&self.config, &self.layout, LENGTH).unwrap();
        set(&evaluator, &self.parameters);
        evaluator
    }

    fn losses(evaluator: &Evaluator) -> Vec<Vec<f32>> {
        let windows: Vec<Window> = (SEQUENCES..SEQUENCES + 2).map(Self::window).collect();
        let samples: Vec<Vec<&Window>> = windows.iter().map(|window| vec![window]).collect();
        evaluator.gradients(&samples).unwrap().into_iter().map(|gradient| gradient.values).collect()
    }

    /// The step's values, with the parameters after it.
    fn step(&self, train: &TrainConfig, attribution: Attribution) -> (Values, Vec<f32>) {
        let mut trainer = Trainer::new(&self.config, &self.layout, train, self.state()).unwrap();
        let evaluator = self.evaluator();
        let mut gradients = |_: u64, parameters: &[f32]| {
            set(&evaluator, parameters);
            Ok(Self::losses(&evaluator))
        };
        let step = trainer.step_attributed(&mut Self::batches(), "test", attribution, &mut gradients);
        (step.unwrap().1, trainer.state().unwrap().parameters)
    }
}

fn set(evaluator: &Evaluator, parameters: &[f32]) {
    let write = |out: &mut [f32]| {
        out.copy_from_slice(parameters);
        Ok(())
    };
    evaluator.set(write).unwrap();
}

const UPDATES: [(&str, Update); 2] = [("sgd", Update::Sgd), ("adam", Update::Adam)];

#[test]
fn contributions_are_those_that_torch_gives() {
    for case in Case::all() {
        for (name, update) in UPDATES {
            let expected = &case.golden["valued"][name];
            for micro_batch_size in [SEQUENCES, 3] {
                let train = TrainConfig { micro_batch_size, ..case.train.clone() };
                let (values, _) = case.step(&train, Attribution { update, second_order: true });
                assert_eq!(values.units, [0, 1, 2, 3]);
                let what = format!("{}, {name}, {micro_batch_size} at a time", case.name);
                let error = |got: &[Vec<f64>], expected: &Value| {
                    let expected = numbers(expected);
                    let scale = largest(&expected);
                    got.concat().iter().zip(&expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, common::worse)
                };
                // f32 gradients are off by 1e-6 of their norm, and inner products of unlike ones are small beside it.
                assert_within(2e-5, [error(&values.first, &expected["first"])], &format!("{what}: first order"));
                // Differences of two gradients (see `HESSIAN_STEP`).
                assert_within(1e-3, [error(&values.second, &expected["second"])], &format!("{what}: second order"));
                let first_only = case.step(&train, Attribution { update, second_order: false }).0;
                assert_eq!(first_only.first, values.first);
                assert_eq!(first_only.second.len(), 0);
            }
        }
    }
}

#[test]
fn the_step_is_the_one_that_training_takes() {
    for case in Case::all() {
        let mut trainer = Trainer::new(&case.config, &case.layout, &case.train, case.state()).unwrap();
        trainer.step(&mut Case::batches(), "test").unwrap();
        let expected = bits(&trainer.state().unwrap().parameters);
        for (_, update) in UPDATES {
            for second_order in [false, true] {
                let (_, parameters) = case.step(&case.train, Attribution { update, second_order });
                assert_eq!(bits(&parameters), expected, "{}, {update:?}, second order {second_order}", case.name);
            }
        }
    }
}

/// Sequences that cross the parts in which the output matrix is shown, and directions without structure.
#[test]
fn inner_products_are_those_of_gradients_taken_one_sequence_at_a_time() {
    for case in Case::all() {
        let lengths: Vec<usize> = (0..30).map(|i| 10 + i * 7 % 29).collect();
        let count: usize = lengths.iter().sum();
        assert!(count > 512, "the output matrix is shown in one part");
        let (inputs, targets) = (tokens(0, count, 97), tokens(1, count, 97));
        let directions: Vec<Vec<f32>> = (0..3).map(|i| spread(&format!("way {i}"), case.layout.len(), 2.0)).collect();
        let directions = Directions::new(&directions);
        let model =
            Transformer::new(&case.config, &case.layout, &flat(case.parameters.clone()), 40, Exec::Split).unwrap();
        let gradient = flat(vec![0.0; case.layout.len()]);
        let views = Weights::views(&case.config, &case.layout, &gradient).unwrap();
        let mut along = Along::new(&directions, &lengths).unwrap();
        let batch = Sequences { tokens: &inputs, lengths: &lengths };
        let mut see = |part: mixpool::model::Part<'_>| match part.factors {
            Factors::Linear { first_row, inputs, outputs } => along.add_linear(part.offset, first_row, inputs, outputs),
            Factors::Bias { outputs } => along.add_bias(part.offset, outputs),
            Factors::Norm { inputs, outputs, eps } => along.add_norm(part.offset, inputs, outputs, eps),
            Factors::LayerNorm { inputs, outputs, eps } => along.add_layer_norm(part.offset, inputs, outputs, eps),
            Factors::Embedding { ids, outputs } => along.add_embedding(part.offset, ids, outputs),
        };
        model.loss_and_gradient_seen(batch, &targets, 1.0, &views, &mut see).unwrap();
        let got = along.sums().unwrap();
        let mut start = 0;
        let mut errors = Vec::new();
        let mut totals = [0.0; 3];
        for (sequence, length) in lengths.iter().enumerate() {
            let rows = start..start + length;
            start += length;
            let lengths = [*length];
            let one = Sequences { tokens: &inputs[rows.clone()], lengths: &lengths };
            let (_, gradient) = common::loss_and_gradient(&model, &case.config, &case.layout, one, &targets[rows]);
            let share = *length as f64 / count as f64;
            for (direction, expected) in directions.along(&gradient).into_iter().enumerate() {
                let got = got[direction * 30 + sequence];
                totals[direction] += got;
                errors.push((got - share * expected).abs() / (share * norm(&gradient)));
            }
        }
        // Directions have norms around 100 and are unlike the gradients.
        assert_within(1e-4, errors, &format!("{}: every sequence", case.name));
        let whole = directions.along(&gradient.to_vec1::<f32>().unwrap());
        let errors = totals.iter().zip(whole).map(|(sum, whole)| (sum - whole).abs());
        assert_within(1e-5, errors, &format!("{}: sequences add up to the batch", case.name));
    }
}

/// The sum of all contributions is the expansion of what a step of gradient descent does to the losses.
#[test]
fn contributions_add_up_to_the_change_of_the_losses() {
    for case in Case::all() {
        let (values, _) = case.step(&case.train, Attribution { update: Update::Sgd, second_order: true });
        let evaluator = case.evaluator();
        let batch: Vec<Window> = (0..SEQUENCES).map(Case::window).collect();
        let gradient = evaluator.gradients(&[batch.iter().collect()]).unwrap().remove(0).values;
        let windows: Vec<Window> = (SEQUENCES..SEQUENCES + 2).map(Case::window).collect();
        let samples: Vec<Vec<&Window>> = windows.iter().map(|window| vec![window]).collect();
        let losses = || evaluator.gradients(&samples).unwrap().into_iter().map(|gradient| gradient.loss);
        let before: Vec<f64> = losses().collect();
        let size = (case.train.learning_rate * case.train.gradient_scale(norm(&gradient))) as f32;
        evaluator
            .set(|out| {
                out.iter_mut().zip(&gradient).for_each(|(value, gradient)| *value -= size * gradient);
                Ok(())
            })
            .unwrap();
        for (loss, (after, before)) in losses().zip(before).enumerate() {
            let first: f64 = values.first[loss].iter().sum();
            let second: f64 = values.second[loss].iter().sum();
            let change = after - before;
            let (linear, quadratic) = ((first - change).abs(), (first + second - change).abs());
            assert!(quadratic < linear / 2.0, "{}: {change}, off by {linear} and {quadratic}", case.name);
            // What is left is of third order.
            assert_within(1e-2, [(first + second - change).abs() / change.abs()], &format!("{}: change", case.name));
        }
    }
}

#[test]
fn a_window_s_direction_and_its_cosines_are_those_of_torch() {
    for case in Case::all() {
        let evaluator = case.evaluator();
        let slopes = Case::losses(&evaluator);
        let directions = Directions::new(&slopes);
        let state = case.state();
        let windows: Vec<Window> = (0..SEQUENCES).map(Case::window).collect();
        let options: AdamW = case.train.adamw(4);
        let seen = evaluator.each_gradient(&windows, |_, gradient| {
            adamw_direction(&options, &state.first, &state.second, gradient);
            let length = norm(gradient);
            let products = directions.along(gradient).into_iter().zip(&slopes);
            Ok((
                length,
                gradient[..8].to_vec(),
                products.map(|(p, slope)| p / length / norm(slope)).collect::<Vec<_>>(),
            ))
        });
        for ((length, head, cosines), expected) in
            seen.unwrap().into_iter().zip(case.golden["less"].as_array().unwrap())
        {
            // Where the second moment is small, the division makes more of the rounding of the gradient.
            assert_within(1e-4, [common::relative(length, number(&expected["norm"]))], "norm of the direction");
            let heads = numbers(&expected["head"]);
            assert_within(1e-5, [common::distance(&head, &heads) / largest(&heads)], "first values of the direction");
            let errors = cosines.iter().zip(numbers(&expected["cosines"])).map(|(a, b)| (a - b).abs());
            assert_within(1e-6, errors, "cosines");
        }
    }
}
