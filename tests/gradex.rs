//! `GradEx` on a tiny pool: it prefers what is planted, repeats to the bit, is stored, resumes, and refuses nonsense.

mod world;

use mixpool::error::{Error, Result};
use mixpool::estimators::{Question, Spec, linearity};
use mixpool::mixture::{Mixture, Notation};
use mixpool::pool::Pool;
use mixpool::progress::{Observer, Silent};
use std::sync::atomic::{AtomicI64, Ordering};
use world::World;

const MIXTURES: [&str; 5] = ["code", "math", "wiki", "code+math", "math+wiki"];

fn ask(pool: &Pool, spec: &str, observer: &dyn Observer) -> Result<Vec<Vec<f64>>> {
    let units = pool.unit_counts()?;
    let mixtures: Vec<Mixture> =
        MIXTURES.iter().map(|text| Mixture::parse(text, &units, Notation::default()).unwrap()).collect();
    let evals = ["code-test", "wiki-test"].map(String::from);
    let question = Question { pool, evals: &evals, judged: &mixtures, tokens: None, observer };
    let spec = Spec::parse(spec)?;
    let mut estimator = (spec.method.fit)(&question, &spec.options)?;
    let estimates = estimator.estimate(&mixtures)?;
    let cost = estimator.cost();
    assert!(cost.flops > 0.0 && cost.seconds > 0.0 && cost.train_tokens > 0, "{cost:?}");
    Ok(estimates)
}

/// Stops at the n-th time it is asked.
struct Impatient(AtomicI64);

impl Observer for Impatient {
    fn begin(&self, _: &str, _: u64, _: &'static str) {}
    fn advance(&self, _: u64, _: &str) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn check(&self) -> Result<()> {
        if self.0.fetch_sub(1, Ordering::Relaxed) > 0 { Ok(()) } else { Err(Error::Stopped { signal: "SIGINT" }) }
    }
}

#[test]
fn the_partition_that_is_like_an_eval_set_is_best_for_it() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    for spec in ["gradex:samples=16", "gradex-linear:samples=16", "gradex:samples=16,d=64,scale=0.02"] {
        let found = ask(&pool, spec, &Silent).unwrap();
        let on = |eval: usize| -> Vec<f64> { found.iter().map(|row| row[eval]).collect() };
        let (code_test, wiki_test) = (on(0), on(1));
        let [code, math, wiki, code_math, math_wiki] = [0, 1, 2, 3, 4];
        // Words are shared by nothing: what is useful for one eval set is harmful for the other.
        assert!(code_test[code] < code_test[math] && code_test[code] < code_test[wiki], "{spec}: {code_test:?}");
        assert!(wiki_test[wiki] < wiki_test[math] && wiki_test[wiki] < wiki_test[code], "{spec}: {wiki_test:?}");
        assert!(code_test[code_math] < code_test[math_wiki], "{spec}: {code_test:?}");
        assert!(wiki_test[math_wiki] < wiki_test[code_math], "{spec}: {wiki_test:?}");
    }
}

#[test]
fn answers_repeat_to_the_bit_are_stored_and_resume() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    let specs = ["gradex:samples=6,d=50", "gradex-linear:samples=6,d=50", "gradex:samples=6,d=50,rank=2"];
    let on = |threads: usize, pool: &Pool| {
        let workers = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        workers.install(|| specs.map(|spec| ask(pool, spec, &Silent).unwrap()))
    };
    let first = on(1, &pool);
    let before = world.pool();
    assert_eq!(first, on(2, &pool));
    assert_eq!(before, world.pool(), "a second answer computed something");

    let other = World::trained();
    let pool = Pool::open(&other.path("pool")).unwrap();
    let mut stops = 0;
    let resumed = specs.map(|spec| {
        loop {
            // Ten more checks each time: steps of training, units, eval sets, mixtures.
            match ask(&pool, spec, &Impatient(AtomicI64::new(10))) {
                Ok(found) => return found,
                Err(Error::Stopped { .. }) => stops += 1,
                Err(error) => panic!("{error}"),
            }
            assert!(stops < 50, "nothing is kept");
        }
    });
    assert!(stops > 1, "never stopped");
    assert_eq!(resumed, first);
    assert_eq!(on(2, &pool), first);
}

#[test]
fn the_linearisation_is_better_the_nearer() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    let mixture = Mixture::parse("wiki", &pool.unit_counts().unwrap(), Notation::default()).unwrap();
    let question = Question { pool: &pool, evals: &[], judged: &[], tokens: None, observer: &Silent };
    let spec = Spec::parse("gradex:samples=4").unwrap();
    let rows = linearity(&question, &spec.options, &mixture, &[1e-3, 1e-2, 0.1]).unwrap();
    assert_eq!(rows.len(), 9);
    for rows in rows.chunks(3) {
        let [near, middle, far] = [&rows[0], &rows[1], &rows[2]];
        assert!(near.exact < middle.exact && middle.exact < far.exact, "{rows:?}");
        assert!(middle.exact < middle.constant, "gradients tell nothing: {rows:?}");
        if near.direction == "fitted" {
            // ⟨∇f, P w⟩ and ⟨Pᵀ∇f, w⟩ are one number.
            assert!((far.projected / far.exact - 1.0).abs() < 1e-3, "{far:?}");
        }
    }
    let csv = world.ok("linearity wiki --distances 0.01 --estimator gradex:samples=4 --csv out.csv --format csv");
    assert_eq!(world.read("out.csv"), csv);
    assert_eq!(csv.lines().count(), 4);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let world = World::trained();
    for (spec, part) in [
        ("gradex:d=0", "1 to 4096"),
        ("gradex:samples=0", "at least 1"),
        ("gradex:scale=0", "above 0"),
        ("gradex:scale=x", "a number"),
        ("gradex-linear:scale=1", "no option 'scale'"),
        ("gradex:rank=1000", "expected 1 to"),
    ] {
        world.refused(&format!("rank --estimator {spec}"), 2, &[part]);
    }
    world.refused("linearity wiki --estimator merged", 2, &["expected gradex"]);
    world.refused("linearity wiki --distances 0", 2, &["above 0"]);
}
