//! Fitted estimators on a pool: designs avoid what is judged, fits repeat, options that make no sense are refused.

mod world;

use mixpool::estimators::{Design, Estimator, Labels, LawFit, MixingLaw, Question, Spec, weights};
use mixpool::mixture::Mixture;
use mixpool::pool::Pool;
use mixpool::progress::Silent;
use world::World;

const EVALS: [&str; 2] = ["code-test", "wiki-test"];

/// Some mixtures of the pool to judge by.
fn judged(pool: &Pool) -> Vec<Mixture> {
    let units = pool.unit_counts().unwrap();
    let weights: [&[(&str, f64)]; 3] =
        [&[("code", 1.0)], &[("code", 0.5), ("wiki", 0.5)], &[("code", 0.2), ("math", 0.3), ("wiki", 0.5)]];
    let mixture = |weights: &[(&str, f64)]| {
        let weights = weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
        Mixture::from_weights(&weights, &units).unwrap()
    };
    weights.map(mixture).into()
}

fn estimate(question: &Question<'_>, spec: &str) -> Vec<Vec<f64>> {
    let spec = Spec::parse(spec).unwrap();
    let mut estimator = (spec.method.fit)(question, &spec.options).unwrap();
    assert!(estimator.cost().seconds > 0.0);
    estimator.estimate(question.judged).unwrap()
}

#[test]
fn fits_to_merges_predict_merges() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    let (judged, evals) = (judged(&pool), EVALS.map(String::from));
    let question = Question { pool: &pool, evals: &evals, judged: &judged, tokens: None, observer: &Silent };

    let merged = estimate(&question, "merged");
    for spec in ["mixing-law:starts=8,design=24", "regression:design=24", "regression:model=trees,design=24"] {
        let predicted = estimate(&question, spec);
        assert_eq!(predicted, estimate(&question, spec), "{spec} does not repeat");
        for (predicted, merged) in predicted.iter().flatten().zip(merged.iter().flatten()) {
            // Measured: at most 0.05 nats (trees), while the losses range over 0.3.
            assert!((predicted - merged).abs() < 0.08, "{spec}: {predicted} for {merged}");
        }
    }

    let design = Design::new(&question, 12, Labels::Merged).unwrap();
    assert_eq!((design.weights.len(), design.losses_on(1).len()), (12, 12));
    let partitions = question.partitions().unwrap();
    assert!(judged.iter().all(|mixture| !design.weights.contains(&weights(mixture, &partitions))));
    let mut law = MixingLaw::new(&question, design, LawFit { starts: 8, ..LawFit::default() }).unwrap();
    let (predicted, intervals) = (law.estimate(&judged).unwrap(), law.intervals(&judged, 40, 0.9).unwrap());
    assert_eq!(law.laws().len(), 2);
    for (predicted, (low, high)) in predicted.iter().flatten().zip(intervals.iter().flatten()) {
        assert!(low <= high && low - 0.05 < *predicted && *predicted < high + 0.05, "{low} {predicted} {high}");
    }
    assert!(law.intervals(&judged, 0, 0.9).is_err());

    for wrong in ["mixing-law:delta=0", "mixing-law:starts=0", "regression:model=spline", "regression:labels=none"] {
        let spec = Spec::parse(wrong).unwrap();
        assert!((spec.method.fit)(&question, &spec.options).is_err(), "{wrong}");
    }
}
