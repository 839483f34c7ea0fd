//! Ensemble and `MixMin`: `SciPy`'s losses and optima, the scores of single experts, and what is kept between runs.
#![allow(clippy::print_stdout)] // how far the descent went, shown on demand

mod common;
mod world;

use common::{assert_within, golden, number, numbers, relative, values};
use mixpool::Error;
use mixpool::estimators::{Cost, Descent, Question, Spec, ensemble_loss, mixmin};
use mixpool::mixture::Mixture;
use mixpool::pool::{Pool, Start};
use mixpool::progress::Silent;
use serde_json::Value;
use world::World;

/// −ln p of every token under each expert, as `scripts/reference/ensemble.py` makes it.
fn nll(problem: &Value, n_tokens: usize) -> Vec<Vec<f32>> {
    let (name, contrast) = (problem["name"].as_str().unwrap(), number(&problem["contrast"]) as f32);
    let experts = number(&problem["experts"]) as usize;
    let one = |expert: usize| {
        let base = values(&format!("{name}{expert}"), n_tokens).into_iter().map(|value| 2.0 + 10.0 * value);
        base.enumerate().map(|(t, nll)| if t % (experts + 1) == expert { nll * contrast } else { nll }).collect()
    };
    (0..experts).map(one).collect()
}

/// Every problem of the golden with its predictions.
fn problems() -> Vec<(Value, Vec<Vec<f32>>)> {
    let golden = golden("ensemble");
    let n_tokens = number(&golden["tokens"]) as usize;
    golden["problems"].as_array().unwrap().iter().map(|problem| (problem.clone(), nll(problem, n_tokens))).collect()
}

fn slices(nll: &[Vec<f32>]) -> Vec<&[f32]> {
    nll.iter().map(Vec::as_slice).collect()
}

#[test]
fn losses_are_those_of_scipy() {
    for (problem, nll) in problems() {
        for case in problem["losses"].as_array().unwrap() {
            let experts: Vec<(f64, &[f32])> = numbers(&case["weights"]).into_iter().zip(slices(&nll)).collect();
            // the same float32 inputs, float64 throughout on both sides; only the order of additions differs
            let error = relative(ensemble_loss(&experts), number(&case["loss"]));
            assert_within(1e-12, [error], "loss of a mixture of predictions");
        }
    }
}

#[test]
fn many_blocks_add_up_and_extremes_stay_finite() {
    let long: Vec<f32> = values("long", 50_000).into_iter().map(|value| 3.0 + value).collect();
    let mean = long.iter().map(|nll| f64::from(*nll)).sum::<f64>() / 50_000.0;
    let sure = vec![0.0; 50_000];
    assert_within(1e-12, [relative(ensemble_loss(&[(1.0, &long), (0.0, &sure)]), mean)], "fifty thousand tokens");
    let threads = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let solve =
        || (ensemble_loss(&[(0.3, &long), (0.7, &sure)]), mixmin(&[&long, &sure], &Descent::default()).unwrap());
    assert_eq!(threads(1).install(solve), threads(5).install(solve), "the same bits on one thread and on five");
    let unlikely = [3000f32; 7]; // e^-3000 is 0 in f64
    assert_eq!(ensemble_loss(&[(0.25, &unlikely), (0.75, &unlikely)]), 3000.0);
}

#[test]
fn mixmin_finds_the_optimum_of_scipy() {
    for (problem, nll) in problems() {
        let (name, best) = (problem["name"].as_str().unwrap(), &problem["best"]);
        let papers = mixmin(&slices(&nll), &Descent::default()).unwrap();
        let excess = papers.loss - number(&best["loss"]);
        println!("{name}: {} steps, gap {:.1e}, excess {excess:.1e}", papers.steps, papers.gap);
        assert_within(1e-4, [excess.abs()], "loss at the paper's tolerance");
        assert!(papers.gap >= excess - 1e-9, "the gap bounds the excess");

        let tight = Descent { tolerance: 1e-7, steps: 100_000, ..Descent::default() };
        let found = mixmin(&slices(&nll), &tight).unwrap();
        println!("{name}: {} steps, gap {:.1e}", found.steps, found.gap);
        let errors = found.weights.iter().zip(numbers(&best["weights"])).map(|(a, b)| (a - b).abs());
        assert_within(1e-4, errors, "weights, solved closely");
        assert_within(1e-12, [(found.weights.iter().sum::<f64>() - 1.0).abs()], "sum of the weights");
        let experts: Vec<(f64, &[f32])> = found.weights.iter().copied().zip(slices(&nll)).collect();
        assert_within(1e-12, [relative(ensemble_loss(&experts), found.loss)], "the ensemble's loss at the optimum");
    }
}

#[test]
fn mixmin_solves_two_experts_in_closed_form() {
    // f' = 0 for p = (a, c), (b, d) on two tokens gives w = -(c / (a - c) + d / (b - d)) / 2
    let (a, b, c, d) = (0.9f64, 0.2, 0.1, 0.6);
    let weight = -(c / (a - c) + d / (b - d)) / 2.0;
    let nll = [[a, b], [c, d]].map(|p| p.map(|p| -p.ln() as f32));
    let best = mixmin(&[&nll[0], &nll[1]], &Descent { tolerance: 1e-13, ..Descent::default() }).unwrap();
    assert_within(1e-6, [(best.weights[0] - weight).abs()], "weight of the first expert"); // p is rounded to f32
    let sure = mixmin(&[&nll[0]], &Descent::default()).unwrap();
    assert_eq!((sure.weights, sure.steps), (vec![1.0], 0));
}

#[test]
fn mixmin_survives_experts_so_different_that_the_plain_step_overshoots() {
    let tokens = 1000;
    // twelve experts, each sure of its own tokens only; nine tokens of ten are the first one's
    let owner = |token: usize| usize::from(token.is_multiple_of(10));
    let one = |expert: usize| (0..tokens).map(|t| if owner(t) == expert { 0.01 } else { 40.0 }).collect();
    let nll: Vec<Vec<f32>> = (0..12).map(one).collect();
    let best = mixmin(&slices(&nll), &Descent::default()).unwrap();
    assert!(best.gap <= 1e-4, "{best:?}");
    assert_within(0.01, [(best.weights[0] - 0.9).abs(), (best.weights[1] - 0.1).abs()], "shares of the tokens");
}

#[test]
fn mixmin_refuses_what_it_cannot_mix() {
    assert!(matches!(mixmin(&[], &Descent::default()), Err(Error::Usage(_))));
    assert!(matches!(mixmin(&[&[]], &Descent::default()), Err(Error::Usage(_))));
    assert!(matches!(mixmin(&[&[1.0], &[1.0, 2.0]], &Descent::default()), Err(Error::Mismatch { .. })));
}

/// What the ensemble says about mixtures of a pool, and what it cost.
fn estimate(pool: &Pool, mixtures: &[Mixture]) -> (Vec<Vec<f64>>, Cost) {
    let evals = pool.eval_names().unwrap();
    let question = Question { pool, evals: &evals, judged: &[], tokens: None, observer: &Silent };
    let spec = Spec::parse("ensemble").unwrap();
    let mut estimator = (spec.method.fit)(&question, &spec.options).unwrap();
    let fitted = estimator.cost();
    let estimates = estimator.estimate(mixtures).unwrap();
    let cost = estimator.cost();
    assert_eq!((cost.train_tokens, cost.flops), (fitted.train_tokens, fitted.flops), "a query runs no model");
    assert!(cost.seconds > fitted.seconds);
    (estimates, fitted)
}

#[test]
fn experts_alone_have_their_scores_and_later_runs_touch_no_model() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    let units = pool.unit_counts().unwrap();
    let read = |weights: &[(&str, f64)]| {
        Mixture::from_weights(&weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect(), &units)
    };
    let mixtures = [
        read(&[("math", 1.0)]).unwrap(),
        read(&[("wiki", 1.0)]).unwrap(),
        read(&[("math", 0.25), ("wiki", 0.75)]).unwrap(),
        read(&[("code", 0.5), ("math", 0.5)]).unwrap(),
    ];
    let (estimates, cost) = estimate(&pool, &mixtures);

    let mut scorer = pool.scorer(&[]).unwrap();
    let experts = pool.experts().unwrap();
    for (mixture, estimates) in mixtures.iter().zip(&estimates).take(2) {
        let scored = scorer.score(&experts.members(mixture).unwrap(), "an expert", &Silent).unwrap();
        let errors = scored.iter().zip(estimates).map(|(scored, loss)| relative(*loss, scored.record.score.loss()));
        assert_within(1e-7, errors, "an expert alone"); // -ln p is kept as f32: 6e-8 at most
    }
    // -ln is convex: the mixture of predictions is better than the mean of the losses
    let experts = estimates[0].iter().zip(&estimates[1]);
    assert!(experts.zip(&estimates[2]).all(|((math, wiki), mixture)| *mixture < 0.25 * math + 0.75 * wiki));

    let tokens: u64 = (0..2).map(|eval| scorer.n_tokens(eval).unwrap()).sum();
    let models = units.values().sum::<usize>() as f64;
    let manifests = pool.manifests().unwrap();
    let trained = manifests.iter().filter(|manifest| matches!(manifest.recipe.start, Start::Object(_)));
    let training = trained.map(Cost::of_training).sum::<Cost>();
    let flops = training.flops + models * 2.0 * pool.layout().len() as f64 * tokens as f64;
    assert_eq!((cost.train_tokens, cost.flops), (training.train_tokens, flops));

    // a damaged file is made again
    let files = world.files("fitted");
    assert_eq!(files.len(), 8, "four experts on two eval sets");
    let whole = std::fs::read(&files[3]).unwrap();
    world::edit(&files[3], |bytes| bytes.truncate(bytes.len() / 2));
    assert_eq!(estimate(&pool, &mixtures).0, estimates);
    let again = std::fs::read(&files[3]).unwrap();
    assert_eq!(again[24..again.len() - 16], whole[24..whole.len() - 16], "all but the seconds and the checksum");

    // no weights are there to be read
    for weights in world.files("objects").iter().filter(|path| path.ends_with("model.safetensors")) {
        std::fs::rename(weights, weights.with_extension("gone")).unwrap();
    }
    let (again, cost_again) = estimate(&pool, &mixtures);
    assert_eq!(again, estimates, "the same bits from what is stored");
    assert_eq!((cost_again.train_tokens, cost_again.flops), (cost.train_tokens, cost.flops));
}
