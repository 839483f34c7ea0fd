//! Training, scoring and merging of whole models by CUDA kernels, emulated or on the first GPU, against the processor.
#![cfg(any(feature = "cuda", feature = "cuda-emulation"))] // `mixpool self-test` runs the same

pub(crate) mod common;

use candle_core::{DType, Tensor};
use common::{assert_within, bits, compute, distance, norm, relative};
use mixpool::Error;
use mixpool::eval::{EvalSet, Evaluator};
use mixpool::kernels::{Along, Compute, Directions, Precision, launches};
use mixpool::model::{Factors, Family, Layout, ModelConfig, Part, Sequences, Transformer, Weights};
use mixpool::progress::{Observer, Silent};
use mixpool::rng::Stream;
use mixpool::text::{Batch, Batches, Share, TokenFile, Window};
use mixpool::train::{Dga, Method, Odm, OnlineSources, OnlineTrainer, State, TrainConfig, Trainer};
use std::sync::atomic::{AtomicU64, Ordering};

const VOCABULARY: usize = 61;

/// The smallest preset, with few words.
fn pico() -> ModelConfig {
    ModelConfig { vocab_size: VOCABULARY, ..ModelConfig::preset("pico").unwrap() }
}

/// Heads as wide as tensor cores take them.
fn wide(head_dim: usize) -> ModelConfig {
    ModelConfig { head_dim, num_attention_heads: 2, num_key_value_heads: 1, ..pico() }
}

/// The loss of packed sequences, and its gradient.
fn loss_and_gradient(compute: &Compute, config: &ModelConfig) -> (f64, Vec<f32>) {
    loss_and_gradient_as(compute, config, false)
}

fn loss_and_gradient_as(compute: &Compute, config: &ModelConfig, recomputes: bool) -> (f64, Vec<f32>) {
    let layout = Layout::of(config);
    let values = common::weights(&layout);
    let parameters =
        Tensor::from_vec(values, layout.len(), compute.device()).unwrap().to_dtype(compute.dtype()).unwrap();
    let model = Transformer::new(config, &layout, &parameters, 128, compute.exec()).unwrap().recomputing(recomputes);
    let gradient = Tensor::zeros(layout.len(), DType::F32, compute.device()).unwrap();
    let views = Weights::views(config, &layout, &gradient).unwrap();
    let (lengths, n) = ([5, 1, 100, 17], 123);
    let (tokens, targets) = (common::tokens(0, n, config.vocab_size), common::tokens(1, n, config.vocab_size));
    let batch = Sequences { tokens: &tokens, lengths: &lengths };
    let rows: Vec<usize> = (0..n).filter(|row| row % 5 != 3).collect();
    let chosen: Vec<u32> = rows.iter().map(|row| targets[*row]).collect();
    let all = model.loss_and_gradient(batch, None, &targets, 0.5, &views).unwrap();
    let some = model.loss_and_gradient(batch, Some(&rows), &chosen, 0.5, &views).unwrap();
    (all + some, gradient.to_vec1().unwrap())
}

/// Every kind of block: gated or GELU, norms before, after and of heads, rotary or learned positions, fused projections, biases.
fn families() -> Vec<(String, ModelConfig)> {
    let golden = ["adamw_tied", "adamw_untied", "adamw_gpt2", "adamw_gpt_neox"];
    let golden = golden.map(|name| {
        let config = ModelConfig { max_position_embeddings: 128, ..common::config(&common::golden(name)) };
        (name.to_owned(), config)
    });
    let small = golden[0].1.clone();
    let others = [Family::Qwen2, Family::Qwen3, Family::Olmo2]
        .map(|family| (format!("{family:?}"), ModelConfig { model_type: family, ..small.clone() }));
    let wide = [64, 128].map(|dim| (format!("heads of {dim}"), wide(dim)));
    golden.into_iter().chain(others).chain(wide).collect()
}

#[cfg_attr(test, test)]
pub(crate) fn gradients_of_whole_models_are_those_of_the_processor() {
    for (name, config) in families() {
        let (loss, gradient) = loss_and_gradient(&Compute::cpu(), &config);
        let gradient: Vec<f64> = gradient.into_iter().map(f64::from).collect();
        // In f32, sums in other orders. In TF32 and bf16 every weight and activation is off by up to 2⁻¹² or 2⁻⁹, and so is what is made of them:
        // errors of a few of those, near random, in a gradient.
        for (precision, of_loss, of_gradient) in
            [(Precision::F32, 1e-6, 1e-5), (Precision::Tf32, 2e-4, 4e-3), (Precision::Bf16, 2e-3, 3e-2)]
        {
            let (got, values) = loss_and_gradient(&compute(precision), &config);
            assert_within(of_loss, [relative(got, loss)], &format!("{name}, {precision:?}: loss"));
            let error: Vec<f32> = values.iter().zip(&gradient).map(|(got, e)| (f64::from(*got) - e) as f32).collect();
            let length = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            assert_within(of_gradient, [norm(&error) / length], &format!("{name}, {precision:?}: gradient"));
            if precision == Precision::Bf16 {
                let again = loss_and_gradient(&compute(precision), &config);
                assert!(again.0 == got && bits(&again.1) == bits(&values), "{name}: other bits the second time");
            }
        }
    }
}

#[cfg_attr(test, test)]
pub(crate) fn activations_computed_again_have_the_same_bits() {
    for (name, config) in families() {
        for device in [Compute::cpu(), compute(Precision::F32), compute(Precision::Bf16)] {
            let (kept, again) = (loss_and_gradient(&device, &config), loss_and_gradient_as(&device, &config, true));
            assert!(kept.0.to_bits() == again.0.to_bits() && bits(&kept.1) == bits(&again.1), "{name}, {device:?}");
        }
    }
}

/// Repeated patterns of ids, which a small model learns.
fn tokens(folder: &std::path::Path) -> TokenFile {
    let pattern = |period: u32| (0..600).map(|i| 1 + i % period * 5).collect::<Vec<u32>>();
    common::token_file(folder, &[pattern(11), pattern(7)])
}

struct Run {
    config: ModelConfig,
    layout: Layout,
    train: TrainConfig,
}

impl Run {
    fn new(steps: u64, rate: f64) -> Self {
        let config = pico();
        let train = TrainConfig { micro_batch_size: 3, warmup_steps: 2, ..TrainConfig::new(steps, 5, 24, rate) };
        Self { layout: Layout::of(&config), config, train }
    }

    fn fresh(&self) -> State {
        State::fresh(self.layout.initial_values(&self.config, 0))
    }

    fn go_on(&self, compute: &Compute, state: State, observer: &dyn Observer) -> (mixpool::Result<()>, State) {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        let shares = [0, 1].map(|index| Share { tokens: &tokens, documents: index..index + 1, weight: 0.5 });
        let mut batches = Batches::new(&shares, 0, self.train.sequence_length, 5).unwrap();
        let mut trainer = Trainer::on(compute, &self.config, &self.layout, &self.train, state).unwrap();
        let result = trainer.run(&mut batches, "test", observer, f64::INFINITY, |_| Ok(()));
        (result, trainer.state().unwrap())
    }

    fn trained(&self, compute: &Compute) -> State {
        let (result, state) = self.go_on(compute, self.fresh(), &Silent);
        result.unwrap();
        state
    }
}

#[cfg_attr(test, test)]
pub(crate) fn five_steps_are_those_of_the_processor() {
    let run = Run::new(5, 2e-3);
    let expected = run.trained(&Compute::cpu());
    // Adam divides a gradient by its own size, so the rounding errors of the smallest grow to parts of a step, in bf16
    // to whole steps; what five steps have moved is compared as a whole.
    for (precision, of_loss, of_norm, of_move) in
        [(Precision::F32, 1e-6, 1e-5, 1e-3), (Precision::Bf16, 2e-3, 2e-2, 0.2)]
    {
        let state = run.trained(&compute(precision));
        assert_eq!(state.curve.len(), 5);
        for (got, wanted) in state.curve.iter().zip(&expected.curve) {
            let what = format!("{precision:?}, step {}", wanted.step);
            assert_eq!((got.step, got.tokens, got.learning_rate), (wanted.step, wanted.tokens, wanted.learning_rate));
            assert_within(of_loss, [relative(got.loss, wanted.loss)], &format!("{what}: loss"));
            assert_within(of_norm, [relative(got.gradient_norm, wanted.gradient_norm)], &format!("{what}: norm"));
        }
        let start = run.fresh().parameters;
        let moved: Vec<f32> = expected.parameters.iter().zip(&start).map(|(to, from)| to - from).collect();
        let error: Vec<f32> = state.parameters.iter().zip(&expected.parameters).map(|(got, to)| got - to).collect();
        assert_within(of_move, [norm(&error) / norm(&moved)], &format!("{precision:?}: what five steps moved"));
        let again = run.trained(&compute(precision));
        for (first, second) in
            [(&state.parameters, &again.parameters), (&state.first, &again.first), (&state.second, &again.second)]
        {
            assert_eq!(bits(first), bits(second), "{precision:?}: other bits the second time");
        }
    }
}

#[cfg_attr(test, test)]
pub(crate) fn a_step_has_few_launches() {
    let besides_and_a_layer = |config: &ModelConfig| {
        let [two, three] = [2, 3].map(|layers| {
            let config = ModelConfig { num_hidden_layers: layers, ..config.clone() };
            let train = TrainConfig::new(2, 2, 16, 1e-3);
            let run = Run { layout: Layout::of(&config), config, train };
            let folder = tempfile::tempdir().unwrap();
            let tokens = tokens(folder.path());
            let shares = [Share { tokens: &tokens, documents: 0..1, weight: 1.0 }];
            let mut batches = Batches::new(&shares, 0, 16, 5).unwrap();
            let device = compute(Precision::Bf16);
            let mut trainer = Trainer::on(&device, &run.config, &run.layout, &run.train, run.fresh()).unwrap();
            trainer.step(&mut batches, "test").unwrap();
            let before = launches();
            trainer.step(&mut batches, "test").unwrap();
            launches() - before
        });
        (two - 2 * (three - two), three - two)
    };
    // Gate and up are one product where they lie side by side, queries and values too; biases and norms of heads come on top.
    let expected = [
        ("adamw_tied", 29),
        ("adamw_untied", 29),
        ("adamw_gpt2", 40),
        ("adamw_gpt_neox", 45),
        ("Qwen2", 41),
        ("Qwen3", 38),
        ("Olmo2", 42),
        ("heads of 64", 28), // on tensor cores, where the gradient of queries takes what the softmax's subtracts along
        ("heads of 128", 28),
    ];
    let found: Vec<_> = families().iter().map(|(name, config)| (name.clone(), besides_and_a_layer(config))).collect();
    let layers: Vec<_> = found.iter().map(|(name, (_, layer))| (name.as_str(), *layer)).collect();
    assert_eq!(layers, expected, "launches of a layer");
    assert!(found.iter().all(|(_, (besides, _))| *besides <= 18), "launches besides: {found:?}");
}

/// Asks to stop once `0` looks were taken.
struct StopAfter(AtomicU64);

impl Observer for StopAfter {
    fn begin(&self, _: &str, _: u64, _: &'static str) {}
    fn advance(&self, _: u64, _: &str) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn check(&self) -> mixpool::Result<()> {
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Stopped { signal: "SIGTERM" }),
        }
    }
}

#[cfg_attr(test, test)]
pub(crate) fn a_stopped_run_goes_on_bit_for_bit() {
    let run = Run::new(23, 1e-3);
    let device = compute(Precision::Bf16);
    let expected = run.trained(&device);
    let (stopped, state) = run.go_on(&device, run.fresh(), &StopAfter(AtomicU64::new(1)));
    assert!(matches!(stopped, Err(Error::Stopped { .. })));
    assert_eq!(state.step, 10, "losses are read every ten steps");
    let (result, state) = run.go_on(&device, state, &Silent);
    result.unwrap();
    assert_eq!(state.step, 23);
    assert!(state == expected, "a resumed run ends elsewhere");
    let (first, last) = (state.curve[0].loss, state.curve[22].loss);
    assert!(last < first - 0.3, "loss {first} to {last}: nothing learnt");
}

#[cfg_attr(test, test)]
pub(crate) fn what_is_not_finite_stops_the_run_and_spares_the_parameters() {
    let run = Run::new(20, 1e-3);
    let mut state = run.fresh();
    let middle = state.parameters.len() / 2;
    state.parameters[middle] = f32::NAN;
    let before = bits(&state.parameters);
    let (result, after) = run.go_on(&compute(Precision::F32), state, &Silent);
    let refused = result.unwrap_err();
    assert!(matches!(refused, Error::NotFinite { .. }) && refused.to_string().contains("step 1 "), "{refused}");
    assert_eq!(bits(&after.parameters), before);
}

#[cfg_attr(test, test)]
pub(crate) fn scores_are_those_of_the_processor() {
    let run = Run::new(40, 5e-3);
    let states = [0, 20].map(|steps| {
        let run = Run { train: TrainConfig { steps: steps + 20, ..run.train.clone() }, ..Run::new(40, 5e-3) };
        run.trained(&Compute::cpu()).parameters
    });
    let folder = tempfile::tempdir().unwrap();
    let text: Vec<u32> = (0..1500).map(|i| 1 + (i % 11 * 5 + i / 100) % 60).collect();
    let held_out =
        common::token_file(folder.path(), &[text[..40].to_vec(), text[40..41].to_vec(), text[41..].to_vec()]);
    let set = EvalSet::new("held-out", &held_out, 0, 32).unwrap();
    let score = |compute: &Compute, parameters: &[f32]| {
        let evaluator = Evaluator::on(compute, &run.config, &run.layout, 32).unwrap();
        evaluator
            .set(|values| {
                values.copy_from_slice(parameters);
                Ok(())
            })
            .unwrap();
        evaluator.token_nll(&set).unwrap()
    };
    let mean = |nll: &[f64]| nll.iter().sum::<f64>() / nll.len() as f64;
    for parameters in &states {
        let expected = score(&Compute::cpu(), parameters);
        for (precision, of_token, of_score) in [(Precision::F32, 2e-5, 1e-6), (Precision::Bf16, 0.1, 1e-3)] {
            let got = score(&compute(precision), parameters);
            let single: Vec<f32> = got.iter().map(|nll| *nll as f32).collect();
            assert_within(of_token, [distance(&single, &expected)], &format!("{precision:?}: nats of a token"));
            let error = (mean(&got) - mean(&expected)).abs();
            assert_within(of_score, [error], &format!("{precision:?}: score of {} in nats", mean(&expected)));
            assert_eq!(got, score(&compute(precision), parameters), "{precision:?}: other bits the second time");
        }
    }
    // A merge on the device is that of the processor.
    let merged: Vec<f32> =
        states[0].iter().zip(&states[1]).map(|(a, b)| (0.25 * f64::from(*a) + 0.75 * f64::from(*b)) as f32).collect();
    for precision in [Precision::F32, Precision::Bf16] {
        let device = compute(precision);
        let evaluator = Evaluator::on(&device, &run.config, &run.layout, 32).unwrap();
        let members =
            states.each_ref().map(|values| Tensor::from_slice(values, values.len(), device.device()).unwrap());
        evaluator.set_to_sum(&[0.25, 0.75], &members).unwrap();
        assert_eq!(evaluator.token_nll(&set).unwrap(), score(&device, &merged), "{precision:?}");
    }
}

/// The relative distance of two gradients, as vectors.
#[track_caller]
fn assert_near(got: &[f32], expected: &[f32], what: &str) {
    let error: Vec<f32> = got.iter().zip(expected).map(|(got, expected)| got - expected).collect();
    assert_within(1e-5, [norm(&error) / norm(expected)], what);
}

#[cfg_attr(test, test)]
pub(crate) fn sequences_share_in_gradients_as_on_the_processor() {
    let lengths = [5, 1, 40, 17];
    let n = lengths.iter().sum();
    for (name, config) in families() {
        let layout = Layout::of(&config);
        // One direction per tensor, so that a tensor that is not seen cannot hide among the others; not that of its weights, along which
        // normed heads do not change.
        let direction = |p: &mixpool::model::Parameter| {
            let mut direction = vec![0.0; layout.len()];
            direction[p.range()].copy_from_slice(&common::spread(&format!("direction of {}", p.name), p.len(), 2.0));
            direction
        };
        let vectors: Vec<Vec<f32>> = layout.parameters().iter().map(direction).collect();
        let shares = |compute: &Compute| {
            let parameters = Tensor::from_vec(common::weights(&layout), layout.len(), compute.device()).unwrap();
            let parameters = parameters.to_dtype(compute.dtype()).unwrap();
            let model = Transformer::new(&config, &layout, &parameters, 128, compute.exec()).unwrap();
            let gradient = Tensor::zeros(layout.len(), DType::F32, compute.device()).unwrap();
            let views = Weights::views(&config, &layout, &gradient).unwrap();
            let (tokens, targets) = (common::tokens(0, n, config.vocab_size), common::tokens(1, n, config.vocab_size));
            let directions = Directions::on(compute, &vectors).unwrap();
            let mut along = Along::new(&directions, &lengths).unwrap();
            let mut see = |part: Part<'_>| match part.factors {
                Factors::Linear { first_row, inputs, outputs } => {
                    along.add_linear(part.offset, first_row, inputs, outputs)
                }
                Factors::Bias { outputs } => along.add_bias(part.offset, outputs),
                Factors::Norm { inputs, outputs, eps } => along.add_norm(part.offset, inputs, outputs, eps),
                Factors::LayerNorm { inputs, outputs, eps } => along.add_layer_norm(part.offset, inputs, outputs, eps),
                Factors::Embedding { ids, outputs } => along.add_embedding(part.offset, ids, outputs),
            };
            let batch = Sequences { tokens: &tokens, lengths: &lengths };
            model.loss_and_gradient_seen(batch, &targets, 1.0, &views, &mut see).unwrap();
            along.sums().unwrap()
        };
        let expected = shares(&Compute::cpu());
        // Products with a direction that has nothing to do with the gradient cancel: what is left of a few has few of bf16's 8 bits.
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.3)] {
            let got = shares(&compute(precision));
            let tensors = got.chunks(lengths.len()).zip(expected.chunks(lengths.len())).zip(layout.parameters());
            for ((got, expected), parameter) in tensors {
                let errors = got.iter().zip(expected).map(|(got, e)| (got - e).abs() / common::largest(expected));
                assert_within(tolerance, errors, &format!("{name}, {precision:?}, {}", parameter.name));
            }
            assert_eq!(shares(&compute(precision)), got, "{name}: other bits the second time");
        }
    }
}

#[cfg_attr(test, test)]
pub(crate) fn online_runs_are_those_of_the_processor() {
    let run = Run::new(7, 2e-3);
    let methods = [
        Method::Odm(Odm::default()),
        Method::Dga(Dga { every: 2, rate: 50.0, ema: 1.0, probe: 4 }),
        Method::Dga(Dga { every: 3, ..Dga::default() }),
    ];
    for (method, basis) in methods.iter().zip([vec![], vec![], vec![vec![0.9, 0.1], vec![0.2, 0.8]]]) {
        let trained = |compute: &Compute, recomputes: bool| {
            let folder = tempfile::tempdir().unwrap();
            let tokens = tokens(folder.path());
            let share = |index: usize| Share { tokens: &tokens, documents: index..index + 1, weight: 0.5 };
            let batches =
                |shares: &[Share<'_>], seed| Batches::new(shares, 0, run.train.sequence_length, seed).unwrap();
            let sources = OnlineSources {
                domains: batches(&[share(0), share(1)], 5),
                probes: batches(&[share(0), share(1)], 6),
                target: Some(batches(&[share(1)], 7)),
                basis: basis.clone(),
                start: vec![0.5; 2],
            };
            let (config, layout, train) = (&run.config, &run.layout, &run.train);
            let trainer = OnlineTrainer::on(compute, config, layout, train, method, sources, run.fresh()).unwrap();
            let mut trainer = trainer.recomputing(recomputes);
            trainer.run("test", &Silent, f64::INFINITY, |_| Ok(())).unwrap();
            let mut state = trainer.state().unwrap();
            if let Some(progress) = &mut state.online {
                (progress.seconds, progress.gradient_seconds) = (0.0, 0.0);
            }
            state
        };
        let expected = trained(&Compute::cpu(), false);
        let device = compute(Precision::F32);
        let got = trained(&device, false);
        for (got, expected) in got.curve.iter().zip(&expected.curve) {
            let step = expected.step;
            assert_within(1e-5, [relative(got.loss, expected.loss)], &format!("loss of step {step}"));
            assert_within(1e-4, [relative(got.gradient_norm, expected.gradient_norm)], &format!("norm of step {step}"));
        }
        assert!(got.curve.len() == 7 && got.step == 7);
        let (progress, wanted) = (got.online.as_ref().unwrap(), expected.online.as_ref().unwrap());
        assert_eq!(progress.drawn, wanted.drawn, "other text was drawn");
        assert_eq!(progress.alignments.len(), wanted.alignments.len());
        for (got, wanted) in progress.alignments.iter().zip(&wanted.alignments) {
            let pairs = got.alignments.iter().zip(&wanted.alignments);
            let largest = common::largest(&wanted.alignments);
            assert_within(1e-4, pairs.map(|(got, wanted)| (got - wanted).abs() / largest), "alignments");
        }
        for (got, wanted) in progress.trajectory.iter().zip(&wanted.trajectory) {
            assert_within(1e-4, got.weights.iter().zip(&wanted.weights).map(|(a, b)| (a - b).abs()), "weights");
        }
        if basis.is_empty() {
            assert!(trained(&device, true) == got, "other bits when activations are computed again");
            let rounded = trained(&compute(Precision::Bf16), false);
            let last = (rounded.curve[6].loss, expected.curve[6].loss);
            assert_within(2e-2, [relative(last.0, last.1)], "loss of the last step in bf16");
        }
    }
}

#[cfg_attr(test, test)]
pub(crate) fn gradients_of_eval_sets_are_those_of_the_processor() {
    let run = Run::new(20, 5e-3);
    let parameters = run.trained(&Compute::cpu()).parameters;
    let folder = tempfile::tempdir().unwrap();
    let text: Vec<u32> = (0..1500).map(|i| 1 + (i % 11 * 5 + i / 100) % 60).collect();
    let held_out =
        common::token_file(folder.path(), &[text[..40].to_vec(), text[40..41].to_vec(), text[41..].to_vec()]);
    let set = EvalSet::new("held-out", &held_out, 0, 32).unwrap();
    let batch = Batch { inputs: text[..72].to_vec(), targets: text[1..73].to_vec() };
    let evaluator = |compute: &Compute, recomputes: bool| {
        let mut evaluator = Evaluator::on(compute, &run.config, &run.layout, 32).unwrap();
        evaluator.set_recomputing(recomputes);
        let fill = |values: &mut [f32]| {
            values.copy_from_slice(&parameters);
            Ok(())
        };
        evaluator.set(fill).unwrap();
        evaluator
    };
    // Losses or outputs, and gradients, by name.
    let all = |evaluator: &Evaluator| {
        let mut found: Vec<(String, f64, Vec<f32>)> = Vec::new();
        let gradient = evaluator.gradient(&set).unwrap();
        found.push(("set".into(), gradient.loss, gradient.values));
        let (output, values) = evaluator.set_log_odds_gradient(&set).unwrap();
        found.push(("log-odds of a set".into(), output, values));
        let see = |output, values: &[f32]| {
            found.push((format!("log-odds of sequence {}", found.len()), output, values.to_vec()));
            Ok(())
        };
        evaluator.log_odds_gradients(&batch, 24, see).unwrap();
        for output in evaluator.log_odds(&batch, 24).unwrap() {
            found.push(("log-odds, forward".into(), output, vec![1.0]));
        }
        found.push(("Gram matrices".into(), 1.0, evaluator.grams(&batch, 24).unwrap()));
        let windows = set.sample(200, Stream::new(0, "test"));
        let samples = [windows[..2].to_vec(), windows[2..].to_vec()];
        for gradient in evaluator.gradients(&samples).unwrap() {
            found.push(("sample".into(), gradient.loss, gradient.values));
        }
        let windows: Vec<Window> = windows.into_iter().cloned().collect();
        let each = evaluator.each_gradient(&windows, |_, values| Ok(values.to_vec())).unwrap();
        found.extend(each.into_iter().map(|values| ("window".into(), 1.0, values)));
        found
    };
    let expected = all(&evaluator(&Compute::cpu(), false));
    let device = compute(Precision::F32);
    let got = all(&evaluator(&device, false));
    assert!(expected.len() == got.len() && got.len() > 10, "{} and {}", got.len(), expected.len());
    for ((name, output, values), (_, wanted, gradient)) in got.iter().zip(&expected) {
        assert_within(1e-5, [relative(*output, *wanted)], name);
        assert_near(values, gradient, name);
    }
    for (other, what) in [(false, "the second time"), (true, "when activations are computed again")] {
        assert!(all(&evaluator(&device, other)) == got, "other bits {what}");
    }
}

/// All of them, for `mixpool self-test`.
#[allow(dead_code)]
pub(crate) const CASES: &[(&str, fn())] = &[
    ("gradients_of_whole_models_are_those_of_the_processor", gradients_of_whole_models_are_those_of_the_processor),
    ("activations_computed_again_have_the_same_bits", activations_computed_again_have_the_same_bits),
    ("five_steps_are_those_of_the_processor", five_steps_are_those_of_the_processor),
    ("a_step_has_few_launches", a_step_has_few_launches),
    ("a_stopped_run_goes_on_bit_for_bit", a_stopped_run_goes_on_bit_for_bit),
    (
        "what_is_not_finite_stops_the_run_and_spares_the_parameters",
        what_is_not_finite_stops_the_run_and_spares_the_parameters,
    ),
    ("scores_are_those_of_the_processor", scores_are_those_of_the_processor),
    ("sequences_share_in_gradients_as_on_the_processor", sequences_share_in_gradients_as_on_the_processor),
    ("online_runs_are_those_of_the_processor", online_runs_are_those_of_the_processor),
    ("gradients_of_eval_sets_are_those_of_the_processor", gradients_of_eval_sets_are_those_of_the_processor),
];
