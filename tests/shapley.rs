//! Shapley: partitions valued in one run, on a pool: what helps and what harms, stop and go on, and its training run.

mod world;

use mixpool::estimators::{Contributions, Question, Spec, contributions};
use mixpool::mixture::{Mixture, Notation};
use mixpool::pool::{Pool, Watch};
use mixpool::progress::{Observer, Silent};
use mixpool::text::Batches;
use mixpool::train::{Attribution, CurvePoint, Trainer, Update};
use std::sync::atomic::{AtomicU64, Ordering};
use world::World;

const EVALS: [&str; 2] = ["code-test", "wiki-test"];
const FIRST: Attribution = Attribution { update: Update::Sgd, second_order: false };
const SECOND: Attribution = Attribution { update: Update::Adam, second_order: true };

fn names() -> Vec<String> {
    EVALS.map(str::to_owned).to_vec()
}

fn question<'a>(pool: &'a Pool, evals: &'a [String], observer: &'a dyn Observer) -> Question<'a> {
    Question { pool, evals, judged: &[], tokens: Some(2000), observer }
}

fn valued(world: &World, attribution: Attribution, observer: &dyn Observer) -> mixpool::Result<Contributions> {
    let pool = Pool::open(&world.path("pool")).unwrap();
    contributions(&question(&pool, &names(), observer), attribution, 200)
}

/// Asks to stop at the n-th poll.
struct StopAt(AtomicU64);

impl Observer for StopAt {
    fn begin(&self, _: &str, _: u64, _: &'static str) {}
    fn advance(&self, _: u64, _: &str) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn check(&self) -> mixpool::Result<()> {
        match self.0.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(mixpool::Error::Stopped { signal: "SIGTERM" }),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_partition_like_the_eval_set_helps_and_one_unlike_it_harms() {
    let world = World::trained();
    for attribution in [FIRST, Attribution { second_order: true, ..FIRST }, SECOND] {
        let values = valued(&world, attribution, &Silent).unwrap();
        assert_eq!(values.sequences.iter().sum::<u64>() % 4, 0);
        assert!(values.sequences.iter().all(|n| *n > 0));
        let worth = |eval: usize, name: &str| -> f64 {
            let of = values.units.iter().enumerate().filter(|(_, (partition, _))| partition == name);
            of.map(|(unit, _)| values.first[eval][unit] + values.second.get(eval).map_or(0.0, |s| s[unit])).sum()
        };
        for (eval, own, other) in [(0, "code", "wiki"), (1, "wiki", "code")] {
            assert!(worth(eval, own) < 0.0, "{attribution:?}: {own} helps {}", EVALS[eval]);
            assert!(worth(eval, own) < worth(eval, other), "{attribution:?}: {own} before {other} on {}", EVALS[eval]);
            assert!(worth(eval, other) > 0.0, "{attribution:?}: {other} harms {}", EVALS[eval]);
        }
        let total = |eval: usize| ["code", "math", "wiki"].map(|name| worth(eval, name)).iter().sum::<f64>();
        for (eval, sum) in values.totals().into_iter().enumerate() {
            assert!((sum - total(eval)).abs() < 1e-12, "values add up to the change of the run");
        }
    }
}

#[test]
fn mixtures_are_ordered_by_the_values_of_their_partitions() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    let evals = names();
    let question = question(&pool, &evals, &Silent);
    for name in ["shapley", "shapley:order=2,update=adam", "less", "less:dim=512"] {
        let spec = Spec::parse(name).unwrap();
        let mut estimator = (spec.method.fit)(&question, &spec.options).unwrap();
        let units = pool.unit_counts().unwrap();
        let mixtures = ["code", "code=0.5+math=0.5", "math", "code:1"];
        let mixtures = mixtures.map(|text| Mixture::parse(text, &units, Notation::default()).unwrap());
        let scores = estimator.estimate(&mixtures).unwrap();
        assert!(scores[0][0] < scores[1][0] && scores[1][0] < scores[2][0], "{name}: {scores:?}");
        let between = f64::midpoint(scores[0][1], scores[2][1]);
        assert!((scores[1][1] - between).abs() < 1e-12, "{name} is linear in the weights");
        assert_ne!(scores[3][0], scores[0][0], "{name} knows units");
        let cost = estimator.cost();
        assert_eq!(cost.train_tokens, 2048);
        assert!(cost.flops > 6.0 * 2048.0 * pool.layout().len() as f64);
        drop(estimator);
        let mut again = (spec.method.fit)(&question, &spec.options).unwrap();
        assert_eq!(again.estimate(&mixtures).unwrap(), scores);
        assert_eq!(again.cost().flops, cost.flops, "{name}: what was cached is counted");
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let values = |values: &Contributions| (values.first.clone(), values.second.clone(), values.sequences.clone());
    let (undisturbed, world) = (World::trained(), World::trained());
    for attribution in [FIRST, SECOND] {
        let expected = valued(&undisturbed, attribution, &Silent).unwrap();
        for polls in [3, 5] {
            let stopped = valued(&world, attribution, &StopAt(AtomicU64::new(polls)));
            assert!(matches!(stopped, Err(mixpool::Error::Stopped { .. })), "{:?}", stopped.err());
            assert_eq!(world.files("work").iter().filter(|path| world::is_any(path, &["state", "seen"])).count(), 2);
        }
        let got = valued(&world, attribution, &Silent).unwrap();
        assert_eq!(values(&got), values(&expected));
        assert_eq!(world.files("work").iter().filter(|path| world::is_any(path, &["state", "seen"])).count(), 0);
    }
}

/// Keeps the parameters after the last step.
struct Last(Vec<f32>);

impl Watch for Last {
    type Seen = ();

    fn step(&mut self, trainer: &mut Trainer<'_>, batches: &mut Batches) -> mixpool::Result<(CurvePoint, ())> {
        let point = trainer.step_attributed(batches, "test", FIRST, &mut |_, _| Ok(Vec::new()))?.0;
        self.0 = trainer.state()?.parameters;
        Ok((point, ()))
    }
}

#[test]
fn the_run_is_the_ground_truth_of_the_uniform_mixture() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    let all = Mixture::parse("all", &pool.unit_counts().unwrap(), Notation::default()).unwrap();
    let recipe = pool.mixture_recipe(&all, Some(2000)).unwrap();
    let mut last = Last(Vec::new());
    pool.watched("test", &recipe, "test", &Silent, &mut last).unwrap();
    let manifest = pool.get_or_train(&recipe, "test", &Silent).unwrap();
    let trained = mixpool::model::Checkpoint::open(&pool.object_folder(&manifest.id)).unwrap();
    assert_eq!(trained.read(pool.layout()).unwrap(), last.0);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let world = World::trained();
    let ask = |what: &str| format!("rank --candidates list.txt --estimator {what} --tokens 2000");
    world.write("list.txt", "code\nmath\n");
    world.refused(&ask("shapley:order=3"), 2, &["order=3", "1 or 2"]);
    world.refused(&ask("shapley:update=sign"), 2, &["update=sign", "sgd or adam"]);
    world.refused(&ask("shapley:tokens=none"), 2, &["tokens=none"]);
    world.refused(&ask("less:checkpoints=0"), 2, &["0 checkpoints"]);
    world.refused(&ask("less:sample=0"), 2, &["sample=0"]);
    world.refused(&ask("less:dim=99999999"), 2, &["dim=99999999"]);
}
