//! Methods that look at gradients, on the emulation of a GPU against the processor.
//!
//! Two equal pools, whose models were all trained on the processor; what a method takes beside them is computed on the device in one.
//! Gradients are f32 there and sums have other orders, so that predictions differ by rounding: those of losses by 1e-5 nats.
#![cfg(feature = "cuda-emulation")]

pub(crate) mod common;
mod world;

use common::assert_within;
use mixpool::estimators::{Question, Spec, linearity};
use mixpool::kernels::{DeviceChoice, Precision};
use mixpool::mixture::{Mixture, Notation};
use mixpool::pool::Pool;
use mixpool::progress::Silent;
use world::World;

/// A recipe that trains in a blink, emulated as well.
const RECIPE: &str = "\
model: pico
tokenizer: tokenizer.json
seed:
  files: [general.txt]
  tokens: 512
  learning_rate: 5e-3
  batch_size: 4
  sequence_length: 32
expert:
  tokens: 256
  learning_rate: 2e-3
";

/// A pool whose experts the processor has trained.
fn trained() -> World {
    let world = World::with_recipe(RECIPE);
    world.ok("train");
    world
}

fn open(world: &World) -> Pool {
    Pool::open(&world.path("pool")).unwrap()
}

fn on_device(world: &World, precision: Precision) -> Pool {
    open(world).computing_on(DeviceChoice::Emulated(1), precision)
}

/// What a method predicts for some mixtures on both eval sets.
fn ask(pool: &Pool, spec: &str) -> Vec<f64> {
    let evals = ["code-test", "wiki-test"].map(str::to_owned);
    let question = Question { pool, evals: &evals, judged: &[], tokens: None, observer: &Silent };
    let counts = pool.unit_counts().unwrap();
    let mixtures = ["code", "wiki", "code+math", "code=0.3+wiki=0.7"];
    let mixtures = mixtures.map(|text| Mixture::parse(text, &counts, Notation::default()).unwrap());
    let mut estimator = Spec::parse(spec).unwrap().fit(&question).unwrap();
    estimator.estimate(&mixtures).unwrap().concat()
}

/// Compares what a method says on the device with what it says on the processor, relative to the largest.
#[track_caller]
fn assert_agrees(spec: &str, tolerance: f64) {
    let (cpu, gpu) = (trained(), trained());
    let expected = ask(&open(&cpu), spec);
    let got = ask(&on_device(&gpu, Precision::F32), spec);
    let largest = common::largest(&expected);
    assert_within(tolerance, got.iter().zip(&expected).map(|(got, e)| (got - e).abs() / largest), spec);
    assert_eq!(ask(&open(&gpu), spec), got, "{spec}: what is stored is one for all devices");
    let again = trained();
    assert_eq!(ask(&on_device(&again, Precision::F32), spec), got, "{spec}: other bits the second time");
}

#[test]
fn expansions_of_the_loss_agree_and_do_not_have_the_precision_of_scores() {
    assert_agrees("first-order", 1e-6);
    // Curvature is a difference of gradients over a thousandth of the way: rounding grows as much.
    assert_agrees("second-order", 1e-4);
    let (single, rounded) = (trained(), trained());
    let expected = ask(&on_device(&single, Precision::F32), "second-order");
    assert_eq!(ask(&on_device(&rounded, Precision::Bf16), "second-order"), expected);
    assert_eq!(ask(&on_device(&single, Precision::Bf16), "second-order"), expected);
}

#[test]
fn steps_along_gradients_agree() {
    // The model of all partitions is trained on the device here: a few steps from rounding's differences.
    assert_agrees("gradex:samples=4,d=16", 1e-3);
    assert_agrees("gradex-linear:samples=4,d=16", 1e-2);
}

#[test]
fn linearisations_agree() {
    let world = trained();
    let rows = |pool: &Pool| {
        let mixture = Mixture::parse("wiki", &pool.unit_counts().unwrap(), Notation::default()).unwrap();
        let question = Question { pool, evals: &[], judged: &[], tokens: None, observer: &Silent };
        let options = Spec::parse("gradex:samples=4,d=16").unwrap().options;
        linearity(&question, &options, &mixture, &[0.01, 0.1]).unwrap()
    };
    let expected = rows(&open(&world)); // trains the model that both differentiate
    let got = rows(&on_device(&world, Precision::F32));
    assert_eq!(got.len(), 6);
    for (got, expected) in got.iter().zip(&expected) {
        let what = format!("{} at {}", expected.direction, expected.distance);
        assert_within(1e-3, [common::relative(got.change, expected.change)], &format!("{what}: change"));
        assert_within(1e-2, [common::relative(got.exact, expected.exact)], &format!("{what}: error"));
    }
    assert_ne!(got, expected, "nothing was computed on the device");
}

#[test]
fn merges_by_regression_agree() {
    // Directions that the few tokens have not shown are those of a ridge, which magnifies what rounding has changed.
    assert_agrees("regmean:tokens=256", 1e-4);
}

#[test]
fn contributions_and_influences_agree() {
    for spec in ["shapley:tokens=64", "shapley:tokens=64,update=adam", "less:sample=4,checkpoints=2,warmup=512"] {
        assert_agrees(spec, 1e-3);
    }
    // Differences of gradients over a small step, on top.
    assert_agrees("shapley:tokens=64,order=2", 1e-2);
    let world = trained();
    world.ok("filter code --target wiki-test --keep 0.5 --as better --tokens 512 --device emulated");
}

#[test]
fn online_runs_agree() {
    for spec in ["dga:every=2", "dga:every=2,by=distance", "odm"] {
        assert_agrees(spec, 1e-3);
    }
    let world = trained();
    let table = world.ok("online --method dga --target wiki-test --every 2 --device emulated --format csv");
    assert!(table.contains("wiki-test"), "{table}");
    world.ok("online --method natural --device emulated");
}

#[test]
fn what_is_for_the_processor_only_says_so() {
    let pool = trained();
    let pool = on_device(&pool, Precision::F32);
    let evals = ["wiki-test".to_owned()];
    let question = Question { pool: &pool, evals: &evals, judged: &[], tokens: None, observer: &Silent };
    let refused = Spec::parse("gradex:rank=2").unwrap().fit(&question).err().unwrap().to_string();
    assert!(refused.contains("training adapters") && refused.contains("on the CPU in f32 only"), "{refused}");
}
