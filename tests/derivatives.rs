//! Derivatives: the gradient of an eval set's loss against `PyTorch` (`scripts/reference/derivatives.py`), and the surrogates
//! that are made of it against losses of real merges.

mod common;
mod world;

use common::{assert_within, bits, golden, ids, largest, number, numbers, spread};
use mixpool::estimators::{Order, Question, Spec, Surrogate};
use mixpool::eval::{EvalSet, Evaluator};
use mixpool::merge::average;
use mixpool::mixture::{Mixture, Notation};
use mixpool::model::{Checkpoint, Layout, ModelConfig, write_checkpoint};
use mixpool::pool::{Member, Pool, Scorer};
use mixpool::progress::Silent;
use serde_json::Value;
use tempfile::TempDir;
use world::World;

/// What the golden was made with.
struct Case {
    golden: Value,
    layout: Layout,
    evaluator: Evaluator,
    set: EvalSet,
    experts: Vec<Checkpoint>,
    _folder: TempDir,
}

impl Case {
    fn new() -> Self {
        let golden = golden("derivatives");
        let config = common::config(&golden);
        let layout = Layout::of(&config);
        let folder = tempfile::tempdir().unwrap();
        let documents: Vec<_> = golden["documents"].as_array().unwrap().iter().map(ids).collect();
        let tokens = common::token_file(&folder.path().join("tokens"), &documents);
        let window = golden["window"].as_u64().unwrap() as usize;
        let set = EvalSet::new("golden", &tokens, golden["prefix_token"].as_u64().unwrap() as u32, window).unwrap();
        let move_by = number(&golden["move"]) as f32;
        let expert = |k: usize| {
            let path = folder.path().join(k.to_string());
            std::fs::create_dir(&path).unwrap();
            write_checkpoint(&path, &config, &layout, &expert(&config, k, move_by)).unwrap();
            Checkpoint::open(&path).unwrap()
        };
        let experts = (0..golden["base"].as_array().unwrap().len()).map(expert).collect();
        let evaluator = Evaluator::new(&config, &layout, window).unwrap();
        Self { golden, layout, evaluator, set, experts, _folder: folder }
    }

    fn set_weights(&self, weights: &[f64]) {
        let members: Vec<_> = weights.iter().copied().zip(&self.experts).collect();
        self.evaluator.set(|out| average(out, &self.layout, &members)).unwrap();
    }

    /// The loss at some weights and its derivatives by each.
    fn derive(&self, weights: &[f64]) -> (f64, Vec<f64>) {
        self.set_weights(weights);
        let gradient = self.evaluator.gradient(&self.set).unwrap();
        (gradient.loss, self.experts.iter().map(|expert| gradient.along(&self.layout, expert).unwrap()).collect())
    }
}

fn expert(config: &ModelConfig, k: usize, move_by: f32) -> Vec<f32> {
    let layout = Layout::of(config);
    let mut values = common::weights(&layout);
    for p in layout.parameters() {
        let moved = spread(&format!("expert {k} {}", p.name), p.len(), move_by);
        values[p.range()].iter_mut().zip(moved).for_each(|(value, moved)| *value += moved);
    }
    values
}

#[test]
fn derivatives_by_the_weights_are_those_of_torch() {
    let case = Case::new();
    let base = numbers(&case.golden["base"]);
    let (loss, slopes) = case.derive(&base);
    assert_within(1e-7, [common::relative(loss, number(&case.golden["loss"]))], "loss at the base");
    let expected = numbers(&case.golden["slopes"]);
    let errors = slopes.iter().zip(&expected).map(|(got, expected)| common::relative(*got, *expected));
    // An f32 gradient is off by 1e-6 of its norm, and an inner product averages that out.
    assert_within(1e-6, errors, "slopes");
}

#[test]
fn the_surrogate_is_the_expansion_that_torch_gives() {
    let case = Case::new();
    let base = numbers(&case.golden["base"]);
    let surrogate = Surrogate::fit(&base, Order::Second, |weights| Ok(case.derive(weights))).unwrap();
    let n = base.len();
    // From derivatives by weights to those along the ways from the base to each expert.
    let (slopes, hessian) = (numbers(&case.golden["slopes"]), numbers(&case.golden["curvature"]));
    let way = |u: usize, i: usize| if u == i { 1.0 - base[i] } else { -base[i] };
    let slope = |u: usize| (0..n).map(|i| way(u, i) * slopes[i]).sum::<f64>();
    let bend = |u: usize, v: usize| -> f64 { (0..n * n).map(|at| way(u, at / n) * hessian[at] * way(v, at % n)).sum() };
    let expected: Vec<f64> = (0..n).map(slope).collect();
    let errors = surrogate.slopes.iter().zip(&expected).map(|(got, expected)| (got - expected).abs());
    // The slopes along the ways are what is left of larger ones (0.4): rounding is measured against those.
    assert_within(1e-6, errors, "slopes along the ways");
    let expected: Vec<f64> = (0..n * n).map(|at| bend(at / n, at % n)).collect();
    let (got, scale) = (surrogate.curvature.concat(), largest(&expected));
    let errors = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs() / scale);
    // A forward difference, whose error is half the step times the third derivative.
    assert_within(2e-3, errors, "curvature");
    let linear = Surrogate { curvature: Vec::new(), ..surrogate.clone() };
    for probe in case.golden["probes"].as_array().unwrap() {
        let (weights, loss) = (numbers(&probe["weights"]), number(&probe["loss"]));
        let error = |surrogate: &Surrogate| (surrogate.at(&weights) - loss).abs();
        assert!(error(&surrogate) < error(&linear) / 3.0, "{weights:?}: the curvature improves on the slopes");
    }
}

#[test]
fn a_gradient_does_not_depend_on_the_number_of_threads() {
    let case = Case::new();
    case.set_weights(&numbers(&case.golden["base"]));
    let gradient = || bits(&case.evaluator.gradient(&case.set).unwrap().values);
    let expected = gradient();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(gradient) == expected, "{threads} threads");
    }
}

#[test]
fn a_quadratic_is_expanded_exactly() {
    let loss = |w: &[f64]| 3.0 + w[0] - 2.0 * w[1] + w[0] * w[0] + 4.0 * w[0] * w[1] - w[2] * w[1];
    let slopes = |w: &[f64]| vec![1.0 + 2.0 * w[0] + 4.0 * w[1], -2.0 + 4.0 * w[0] - w[2], -w[1]];
    let surrogate = Surrogate::fit(&[0.5, 0.25, 0.25], Order::Second, |w| Ok((loss(w), slopes(w)))).unwrap();
    for w in [[0.0, 0.0, 1.0], [0.2, 0.5, 0.3], [1.0, 0.0, 0.0]] {
        // Differences over a step of 0.001 lose three digits of sixteen.
        assert_within(1e-12, [(surrogate.at(&w) - loss(&w)).abs()], "quadratic");
    }
}

/// A pool in which merges are scored at any weights.
struct Merges<'a> {
    scorer: Scorer<'a>,
    base: Vec<Member>,
}

impl Merges<'_> {
    fn losses(&mut self, weights: &[f64]) -> Vec<f64> {
        let members = self.base.iter().zip(weights);
        let members: Vec<_> = members.map(|(member, weight)| Member { weight: *weight, ..member.clone() }).collect();
        let scored = self.scorer.score(&members, "probe", &Silent).unwrap();
        scored.iter().map(|scored| scored.record.score.loss()).collect()
    }
}

#[test]
fn slopes_and_curvature_are_those_of_real_merges() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    let all = Mixture::parse("all", &pool.unit_counts().unwrap(), Notation::default()).unwrap();
    let base = pool.experts().unwrap().members(&all).unwrap();
    let weights: Vec<f64> = base.iter().map(|member| member.weight).collect();
    let mut derive = pool.scorer(&[]).unwrap();
    let mut merges = Merges { scorer: pool.scorer(&[]).unwrap(), base: base.clone() };
    for eval in 0..2 {
        let surrogate = Surrogate::fit(&weights, Order::Second, |weights| {
            let members = base.iter().zip(weights);
            let members: Vec<_> =
                members.map(|(member, weight)| Member { weight: *weight, ..member.clone() }).collect();
            derive.slopes(eval, &members)
        })
        .unwrap();
        let (scale, bend_scale) = (largest(&surrogate.slopes), largest(&surrogate.curvature.concat()));
        for u in 0..base.len() {
            // At w⁰ + h (e_u − w⁰).
            let mut at = |h: f64| {
                let towards = weights.iter().enumerate().map(|(i, w)| w * (1.0 - h) + if i == u { h } else { 0.0 });
                merges.losses(&towards.collect::<Vec<_>>())[eval]
            };
            // Their error is h² times a derivative two orders higher; rounding of the losses adds 1e-8 / h² to the bend.
            let h = 0.03;
            let slope = (at(h) - at(-h)) / (2.0 * h);
            let bend = (at(h) - 2.0 * at(0.0) + at(-h)) / (h * h);
            assert_within(1e-3, [(slope - surrogate.slopes[u]).abs() / scale], "slope against merges");
            assert_within(1e-2, [(bend - surrogate.curvature[u][u]).abs() / bend_scale], "curvature against merges");
        }
    }
}

#[test]
fn a_second_fit_reads_what_the_first_stored() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    let evals = pool.eval_names().unwrap();
    let question = Question { pool: &pool, evals: &evals, judged: &[], tokens: None, observer: &Silent };
    let texts = ["all", "code", "code:1+wiki:1", "code=0.6+math=0.3+wiki=0.1", "math+wiki"];
    let counts = pool.unit_counts().unwrap();
    let mixtures: Vec<_> =
        texts.iter().map(|text| Mixture::parse(text, &counts, Notation::default()).unwrap()).collect();
    let answer = |spec: &str| {
        let spec = Spec::parse(spec).unwrap();
        let mut estimator = (spec.method.fit)(&question, &spec.options).unwrap();
        let fitted = estimator.cost();
        (estimator.estimate(&mixtures).unwrap(), fitted)
    };
    let merged = answer("merged").0;
    for spec in ["first-order", "second-order", "regmean:tokens=512"] {
        let first = answer(spec);
        let stored = world.pool();
        let second = answer(spec);
        assert_eq!(first, second, "{spec}");
        assert_eq!(stored, world.pool(), "{spec} stored something twice");
        assert!(first.1.flops > 0.0 && first.1.train_tokens > 0);
        // The expansion is exact where it is made, and experts that moved little merge alike by any method.
        let far =
            first.0.concat().iter().zip(merged.concat()).map(|(got, merged)| (got - merged).abs()).collect::<Vec<_>>();
        assert_within(0.1, far.iter().copied(), &format!("{spec} against merged"));
        if spec != "regmean:tokens=512" {
            assert_within(1e-6, far[..evals.len()].iter().copied(), &format!("{spec} at the uniform merge"));
        }
    }
}

#[test]
fn gram_matrices_that_are_gone_are_damage() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    let evals = pool.eval_names().unwrap();
    let question = Question { pool: &pool, evals: &evals, judged: &[], tokens: None, observer: &Silent };
    let spec = Spec::parse("regmean:tokens=256").unwrap();
    assert!((spec.method.fit)(&question, &spec.options).is_ok());
    let matrices = world.files("fitted").into_iter().filter(|path| world::is_any(path, &["safetensors"]));
    matrices.for_each(|path| std::fs::remove_file(path).unwrap());
    let error = (spec.method.fit)(&question, &spec.options).err().unwrap();
    assert_eq!(error.exit_code(), 12);
    assert!(error.to_string().contains("to compute it again"), "{error}");
}
