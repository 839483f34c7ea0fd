//! Training: it learns, stops and goes on bit for bit, and refuses what is not finite or not whole.

mod common;

use common::{assert_within, bits, distance, norm};
use mixpool::Error;
use mixpool::model::{Layout, ModelConfig};
use mixpool::progress::{Observer, Silent};
use mixpool::text::{Batches, Share};
use mixpool::train::{Schedule, State, TrainConfig, Trainer};
use std::sync::atomic::{AtomicU64, Ordering};

/// A small model, its data and how it is trained.
struct Run {
    model: ModelConfig,
    layout: Layout,
    train: TrainConfig,
}

impl Run {
    fn new() -> Self {
        let model = ModelConfig { vocab_size: 61, ..ModelConfig::preset("pico").unwrap() };
        let schedule = Schedule::Cosine;
        let train = TrainConfig { schedule, warmup_steps: 2, ..TrainConfig::new(10, 8, 24, 1e-2) };
        Self { layout: Layout::of(&model), model, train }
    }

    fn fresh(&self) -> State {
        State::fresh(self.layout.initial_values(&self.model, 0))
    }

    fn trainer(&self, state: State) -> Trainer<'_> {
        Trainer::new(&self.model, &self.layout, &self.train, state).unwrap()
    }

    /// Sequences of two units: one repeats a pattern of 11 ids, the other one of 7.
    fn batches(&self) -> Batches {
        let pattern = |period: u32| (0..1500).map(|i| 1 + i % period * 5).collect::<Vec<u32>>();
        let folder = tempfile::tempdir().unwrap();
        let tokens = common::token_file(folder.path(), &[pattern(11), pattern(7)]);
        let share = |index: usize, weight| Share { tokens: &tokens, documents: index..index + 1, weight };
        Batches::new(&[share(0, 0.7), share(1, 0.3)], 0, self.train.sequence_length, 5).unwrap()
    }

    /// Trains to the end, or until the observer stops it, and returns the last state.
    fn go_on(&self, state: State, observer: &dyn Observer) -> (mixpool::Result<()>, State) {
        let mut trainer = self.trainer(state);
        let mut saved = None;
        let result = trainer.run(&mut self.batches(), "test", observer, f64::INFINITY, |state| {
            saved = Some(state.clone());
            Ok(())
        });
        let state = trainer.state().unwrap();
        assert!(result.is_ok() || saved.as_ref() == Some(&state), "a run saves before it stops");
        (result, state)
    }
}

/// Asks to stop once `0` steps are done.
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

#[test]
fn a_repeated_pattern_is_learnt() {
    let mut run = Run::new();
    run.train.steps = 60;
    let (result, state) = run.go_on(run.fresh(), &Silent);
    result.unwrap();
    assert_eq!(state.step, 60);
    assert!(state.curve.iter().enumerate().all(|(i, point)| point.step == i as u64 + 1));
    assert!(state.curve.iter().all(|point| point.tokens == point.step * 8 * 24));
    let (first, last) = (state.curve[0].loss, state.curve[59].loss);
    // Fresh weights know nothing: ln 61 = 4.11, to a tenth. After 60 steps the pattern is all but certain.
    assert!((first - 61f64.ln()).abs() < 0.1, "first loss {first}");
    assert!(last < 0.5, "last loss {last}");
}

#[test]
fn a_run_that_was_stopped_and_stored_goes_on_bit_for_bit() {
    let run = Run::new();
    let (result, whole) = run.go_on(run.fresh(), &Silent);
    result.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    assert_eq!(State::load(&path, &run.layout).unwrap(), None, "there is no state before the first");
    let (result, stopped) = run.go_on(run.fresh(), &StopAfter(AtomicU64::new(4)));
    assert!(matches!(result, Err(Error::Stopped { .. })));
    assert_eq!(stopped.step, 4);
    stopped.save(&path).unwrap();
    let (result, resumed) = run.go_on(State::load(&path, &run.layout).unwrap().unwrap(), &Silent);
    result.unwrap();

    assert_eq!((resumed.step, resumed.curve), (10, whole.curve));
    assert_eq!(bits(&resumed.parameters), bits(&whole.parameters));
    assert_eq!(bits(&resumed.first), bits(&whole.first));
    assert_eq!(bits(&resumed.second), bits(&whole.second));
}

#[test]
fn a_trained_model_does_not_depend_on_the_number_of_threads() {
    let run = Run::new();
    let trained = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        bits(&pool.install(|| run.go_on(run.fresh(), &Silent)).1.parameters)
    };
    let alone = trained(1);
    assert!(trained(2) == alone && trained(4) == alone);
}

#[test]
fn micro_batches_add_up_to_the_same_gradient() {
    let gradient = |micro_batch_size| {
        let mut run = Run::new();
        run.train.micro_batch_size = micro_batch_size;
        run.train.clip = 0.0;
        let mut trainer = run.trainer(run.fresh());
        let point = trainer.step(&mut run.batches(), "test").unwrap();
        // After one step without clipping the first moment is the gradient times 0.1.
        (point.loss, trainer.state().unwrap().first)
    };
    let (loss, whole) = gradient(8);
    let expected: Vec<f64> = whole.iter().map(|value| f64::from(*value)).collect();
    for micro_batch_size in [1, 3, 4, 100] {
        let (micro_loss, micro) = gradient(micro_batch_size);
        let what = format!("micro-batches of {micro_batch_size}");
        // Another order of additions: a few roundings of 6e-8.
        assert_within(1e-6, [(micro_loss - loss).abs() / loss], &format!("{what}: loss"));
        assert_within(1e-5, [distance(&micro, &expected) / norm(&whole)], &format!("{what}: gradient"));
    }
}

#[test]
fn parameters_that_are_not_a_number_stop_training() {
    let run = Run::new();
    let mut state = run.fresh();
    state.parameters[run.layout.len() / 2] = f32::NAN;
    let mut trainer = run.trainer(state);
    let error = trainer.step(&mut run.batches(), "wiki").unwrap_err();
    assert!(matches!(&error, Error::NotFinite { what, place } if what == "loss NaN" && place == "step 1 of 'wiki'"));
    assert!(trainer.state().unwrap().curve.is_empty(), "a step that failed leaves no trace");
}

#[test]
fn a_gradient_that_overflows_is_named() {
    let mut run = Run::new();
    run.model.tie_word_embeddings = false;
    run.layout = Layout::of(&run.model);
    (run.train.batch_size, run.train.sequence_length) = (1, 1);
    let mut state = State::fresh(common::weights(&run.layout));
    // The last norm shrinks what the output matrix blows up: the loss is finite, but the gradient overflows behind it.
    for (name, factors) in [("lm_head.weight", [1e38, 30.0]), ("model.norm.weight", [1e-38, 1.0])] {
        let parameter = run.layout.parameters().iter().find(|p| p.name == name).unwrap();
        state.parameters[parameter.range()].iter_mut().for_each(|value| *value = *value * factors[0] * factors[1]);
    }
    let mut trainer = run.trainer(state);
    let error = trainer.step(&mut run.batches(), "wiki").unwrap_err();
    let norms = trainer.gradient_norms().unwrap();
    assert!(norms[0].1.is_finite(), "the output matrix itself has a finite gradient");
    let (name, _) = norms.iter().find(|(_, norm)| !norm.is_finite()).unwrap();
    let named = matches!(&error, Error::NotFinite { what, .. } if *what == format!("gradient of '{name}'"));
    assert!(named, "{error}");
}

#[test]
fn a_damaged_state_is_refused() {
    let run = Run::new();
    let (_, state) = run.go_on(run.fresh(), &StopAfter(AtomicU64::new(2)));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    state.save(&path).unwrap();
    assert_eq!(State::load(&path, &run.layout).unwrap(), Some(state));

    let bytes = std::fs::read(&path).unwrap();
    let assert_damaged = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(State::load(&path, &run.layout), Err(Error::Damaged { .. })), "{what}");
    };
    // 50 positions: the header, the hash at the end, and an even spread between them.
    let spread = (0..26).map(|i| 40 + i * (bytes.len() - 72) / 26);
    for position in (0..12).map(|i| i * 3).chain(spread).chain((1..13).map(|i| bytes.len() - i * 2)) {
        let mut bytes = bytes.clone();
        bytes[position] ^= 1 << (position % 8);
        assert_damaged(&bytes, &format!("byte {position} flipped"));
    }
    for length in [0, 1, 15, 16, 31, 32, 40, 72, bytes.len() / 2, bytes.len() - 32, bytes.len() - 1] {
        assert_damaged(&bytes[..length], &format!("cut to {length} bytes"));
    }
    assert_damaged(&[bytes.as_slice(), &[0]].concat(), "one byte more");
}

#[test]
fn a_state_of_another_model_is_refused() {
    let run = Run::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    run.fresh().save(&path).unwrap();
    let other = Layout::of(&ModelConfig { vocab_size: 62, ..run.model });
    assert!(matches!(State::load(&path, &other), Err(Error::Damaged { .. })));
}
