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
use world::{BRIEF, Ran, World};

/// A pool whose experts the processor has trained.
fn trained() -> World {
    let world = World::with_recipe(BRIEF);
    world.ok("train");
    world
}

fn open(world: &World) -> Pool {
    Pool::open(&world.path("pool")).unwrap()
}

fn on_device(world: &World, precision: Precision) -> Pool {
    open(world).computing_on(DeviceChoice::Emulated(1), precision)
}

/// What a method predicts for some mixtures, with runs of three steps.
fn ask(pool: &Pool, spec: &str) -> Vec<f64> {
    let evals = ["wiki-test".to_owned()];
    let question = Question { pool, evals: &evals, judged: &[], tokens: Some(384), observer: &Silent };
    let counts = pool.unit_counts().unwrap();
    let mixtures = ["code", "wiki", "code+math", "code=0.3+wiki=0.7"];
    let mixtures = mixtures.map(|text| Mixture::parse(text, &counts, Notation::default()).unwrap());
    let mut estimator = Spec::parse(spec).unwrap().fit(&question).unwrap();
    estimator.estimate(&mixtures).unwrap().concat()
}

/// Compares what a method says on the device with what it says on the processor, relative to the largest.
#[track_caller]
fn assert_agrees(spec: &str, tolerance: f64) -> World {
    let (cpu, gpu) = (trained(), trained());
    let expected = ask(&open(&cpu), spec);
    let got = ask(&on_device(&gpu, Precision::F32), spec);
    let largest = common::largest(&expected);
    assert_within(tolerance, got.iter().zip(&expected).map(|(got, e)| (got - e).abs() / largest), spec);
    assert_eq!(ask(&open(&gpu), spec), got, "{spec}: what is stored is one for all devices");
    gpu
}

#[test]
fn expansions_of_the_loss_agree_and_do_not_have_the_precision_of_scores() {
    let world = assert_agrees("first-order", 1e-6);
    let single = ask(&open(&world), "first-order");
    assert_eq!(ask(&on_device(&world, Precision::Bf16), "first-order"), single);
    assert_eq!(ask(&on_device(&trained(), Precision::Bf16), "first-order"), single);
}

#[test]
fn a_gradient_that_does_not_fit_is_taken_with_activations_computed_again() {
    let ask = "rank --subsets 1..=1 --eval wiki-test --estimator first-order --format csv --device emulated";
    let with_memory = |bytes: u64| {
        let output = trained().command(ask).env("MIXPOOL_EMULATED_MEMORY", bytes.to_string()).output().unwrap();
        Ran::new(ask, &output)
    };
    let (ample, little) = (with_memory(64 << 20), with_memory(16_000_000));
    assert_eq!((ample.code, little.code), (Some(0), Some(0)), "{little:?}");
    assert_eq!(little.stdout, ample.stdout);
    with_memory(10_000_000).failed(2, &["taking a gradient needs about", "can be used", "--device cpu"]);
}

#[test]
fn curvatures_agree() {
    // A difference of gradients over a thousandth of the way: rounding grows as much.
    assert_agrees("second-order", 1e-4);
}

#[test]
fn steps_along_gradients_agree() {
    // The model of all partitions is trained on the device too: some steps from rounding's differences.
    assert_agrees("gradex:samples=2,d=16", 1e-3);
    assert_agrees("gradex-linear:samples=2,d=16", 1e-2);
    assert_agrees("gradex:samples=2,d=16,rank=2", 1e-3);
}

#[test]
fn linearisations_agree() {
    let world = trained();
    let rows = |pool: &Pool| {
        let mixture = Mixture::parse("wiki", &pool.unit_counts().unwrap(), Notation::default()).unwrap();
        let question = Question { pool, evals: &[], judged: &[], tokens: Some(384), observer: &Silent };
        let options = Spec::parse("gradex:samples=2,d=16").unwrap().options;
        linearity(&question, &options, &mixture, &[0.03]).unwrap()
    };
    let expected = rows(&open(&world)); // trains the model that both differentiate
    let got = rows(&on_device(&world, Precision::F32));
    assert_eq!(got.len(), 3);
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
fn contributions_agree() {
    assert_agrees("shapley:tokens=64", 1e-3);
    // The preconditioner is largest where gradients are smallest; curvature is a difference of gradients.
    assert_agrees("shapley:tokens=64,update=adam,order=2", 1e-2);
}

#[test]
fn influences_agree() {
    assert_agrees("less:sample=1,checkpoints=2,warmup=256", 1e-3);
    let filter = "filter code --target wiki-test --keep 0.5 --as better --tokens 128 --method less:checkpoints=1";
    trained().ok(&format!("{filter} --device emulated"));
}

#[test]
fn online_runs_agree() {
    assert_agrees("dga:every=1,probe=2", 1e-3);
    assert_agrees("odm", 1e-3);
    let world = trained();
    let ask = "online --method dga --target wiki-test --every 1 --probe 1 --tokens 256 --format csv";
    let table = world.ok(&format!("{ask} --device emulated"));
    assert!(table.contains("wiki-test"), "{table}");
    assert_eq!(world.ok(&format!("{ask} --precision bf16")), table, "what is stored needs no GPU");
}
