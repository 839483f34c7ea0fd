//! Estimators from end to end: on a tiny pool, what each answers, costs, stores and may not be fitted on.

mod world;

use mixpool::estimators::{Design, Labels, METHODS, Question, Spec, ask};
use mixpool::eval::{EvalSet, Evaluator, Score};
use mixpool::mixture::{Mixture, Notation};
use mixpool::model::Checkpoint;
use mixpool::pool::Pool;
use mixpool::progress::Silent;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use world::World;

const EVALS: [&str; 2] = ["code-test", "wiki-test"];

/// The names of all methods that train nothing but experts.
fn names() -> Vec<&'static str> {
    METHODS.iter().filter(|method| !method.trains).map(|method| method.name).collect()
}

/// The lines of a CSV, each by its header.
fn rows(csv: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let header: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let row = |record: csv::StringRecord| header.iter().cloned().zip(record.iter().map(str::to_owned)).collect();
    reader.records().map(|record| row(record.unwrap())).collect()
}

fn number(row: &BTreeMap<String, String>, column: &str) -> f64 {
    row[column].parse().unwrap_or_else(|_| panic!("{column} is '{}' in {row:?}", row[column]))
}

/// What an estimator predicts on one eval set, by mixture: losses, or an order.
fn losses(rows: &[BTreeMap<String, String>], estimator: &str, eval: &str) -> BTreeMap<String, f64> {
    let of = rows.iter().filter(|row| row["estimator"] == estimator && row["eval_set"] == eval);
    let column = |row: &BTreeMap<String, String>| if row["loss"].is_empty() { "order" } else { "loss" };
    of.map(|row| (row["mixture"].clone(), number(row, column(row)))).collect()
}

#[test]
fn the_list_has_every_method() {
    let list: serde_json::Value = serde_json::from_str(&World::texts().ok("estimators --format json")).unwrap();
    for (row, method) in list.as_array().unwrap().iter().zip(METHODS) {
        assert_eq!((&row["estimator"], &row["source"]), (&method.name.into(), &method.source.into()));
        let options = row["options"].as_str().unwrap();
        assert!(method.options.iter().all(|option| options.contains(&format!("{}={}", option.name, option.default))));
    }
    assert_eq!(list.as_array().unwrap().len(), METHODS.len());
}

#[test]
fn every_estimator_gives_a_ranking_and_merged_is_what_score_says() {
    let world = World::trained();
    let ranked = rows(&world.ok(&format!("rank --format csv --estimator {}", names().join(" "))));
    assert_eq!(ranked.len(), names().len() * 2 * 7);
    for (name, eval) in names().into_iter().flat_map(|name| EVALS.map(|eval| (name, eval))) {
        let ranks: Vec<f64> = ranked
            .iter()
            .filter(|row| row["estimator"] == name && row["eval_set"] == eval)
            .map(|row| number(row, "rank"))
            .collect();
        assert!(ranks.len() == 7 && ranks[0] == 1.0 && ranks.is_sorted(), "{name} on {eval}: {ranks:?}");
        assert_eq!(losses(&ranked, name, eval).len(), 7);
    }
    for eval in EVALS {
        let merged = losses(&ranked, "merged", eval);
        let mixtures: Vec<&str> = merged.keys().map(String::as_str).collect();
        let scored = rows(&world.ok(&format!("score {} --eval {eval} --format csv", mixtures.join(" "))));
        let scored: BTreeMap<_, _> = scored.iter().map(|row| (row["mixture"].clone(), number(row, "loss"))).collect();
        assert_eq!(merged, scored);
    }
}

#[test]
fn compare_prints_what_validate_printed_and_computes_nothing() {
    let world = World::trained();
    world.refused("compare", 2, &["no ground truth yet", "mixpool validate"]);
    let judged = world.ok("validate --mixtures 3 --repeats 2 --repeated 2 --format csv");
    let lines = rows(&judged);
    let estimators: BTreeSet<&str> = lines.iter().map(|row| row["estimator"].as_str()).collect();
    assert_eq!(estimators, names().into_iter().collect());
    assert_eq!(lines.len(), names().len() * 3); // two eval sets and their mean; three mixtures have no sizes
    for row in &lines {
        for column in ["train_tokens", "flops", "seconds", "noise", "true_spread"] {
            assert!(number(row, column) > 0.0, "{column} in {row:?}");
        }
        assert!((0.0..=1.0).contains(&number(row, "ceiling")), "{row:?}");
        for statistic in ["decision_accuracy", "regret"] {
            let ends = ["low", "high"].map(|end| number(row, &format!("{statistic}_{end}")));
            assert!(ends[0] <= ends[1], "{row:?}");
        }
    }
    let answers = world.files("estimates").into_iter().map(|path| fs::read_to_string(path).unwrap());
    let answers: Vec<serde_json::Value> = answers.map(|text| serde_json::from_str(&text).unwrap()).collect();
    let again: Vec<_> = answers.iter().filter(|answer| answer["estimator"] == "ground-truth:repeat=1").collect();
    assert_eq!(again.len(), 2);
    assert!(again.iter().all(|answer| answer["predictions"].as_object().unwrap().len() == 2));

    for path in world.files("objects").iter().filter(|path| path.ends_with("model.safetensors")) {
        fs::remove_file(path).unwrap();
    }
    let before = world.pool();
    let sorted = |csv: &str| csv.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&world.ok("compare --format csv")), sorted(&judged));
    let merged = rows(&world.ok("compare --estimator merged --eval wiki-test --format csv"));
    assert_eq!(
        merged,
        lines
            .iter()
            .filter(|row| row["estimator"] == "merged" && row["eval_set"] == "wiki-test")
            .cloned()
            .collect::<Vec<_>>()
    );
    assert_eq!(before, world.pool());
}

#[test]
fn nothing_is_fitted_on_what_is_judged() {
    let world = World::trained();
    let pool = Pool::open(&world.path("pool")).unwrap();
    let (units, evals) = (pool.unit_counts().unwrap(), EVALS.map(String::from));
    let question = |judged| Question { pool: &pool, evals: &evals, judged, tokens: None, observer: &Silent };

    // What would be fitted on if nothing were judged, but for experts that are trained anyway.
    let free = question(&[]);
    let partitions = free.partitions().unwrap();
    let chosen = Design::new(&free, 9, Labels::Merged).unwrap().weights;
    let judged = chosen.into_iter().map(|weights| {
        let weights = partitions.iter().cloned().zip(weights).filter(|(_, weight)| *weight > 0.0).collect();
        Mixture::from_weights(&weights, &units).unwrap()
    });
    let judged: Vec<Mixture> = judged.filter(|mixture| mixture.members().count() > 1).collect();
    assert!(judged.len() >= 7);
    let model = |mixture: &Mixture| pool.manifest(&pool.mixture_recipe(mixture, None).unwrap().id().unwrap()).unwrap();

    let question = question(&judged);
    for (spec, calibrate, trained) in [
        ("merged", 4, 4),
        ("merged:exponent=fit,truths=5", 0, 5),
        ("regression:labels=trained,design=9", 0, 7), // two are experts
        ("mixing-law:labels=trained,design=9,starts=2", 3, 7),
    ] {
        let before = pool.manifests().unwrap().len();
        ask(&Spec::parse(spec).unwrap(), &question, &judged, calibrate).unwrap();
        assert!(judged.iter().all(|mixture| model(mixture).is_none()), "{spec} trained what is judged");
        let now = pool.manifests().unwrap().len();
        assert!(now - before <= trained && now >= 5 + trained, "{spec}: {before}, {now}");
    }
    assert!(judged.iter().all(|mixture| {
        !Design::new(&question, 9, Labels::Trained)
            .unwrap()
            .weights
            .iter()
            .any(|weights| *weights == mixpool::estimators::weights(mixture, &partitions))
    }));
}

#[test]
fn calibrating_shifts_losses_by_their_mean_distance_from_the_truth() {
    let world = World::trained();
    let plain = rows(&world.ok("rank --format csv"));
    let shifted = rows(&world.ok("rank --calibrate 3 --format csv"));
    let pool = Pool::open(&world.path("pool")).unwrap();
    let scorer = pool.scorer(&[]).unwrap();
    for (eval, truth) in scorer.stored("ground-truth") {
        let merged = scorer.stored("merged").into_iter().find(|(name, _)| *name == eval).unwrap().1;
        let loss = |mixture: &str| merged.iter().find(|one| one.record.mixture == mixture).unwrap().record.score.loss();
        let shift = truth.iter().map(|one| one.record.score.loss() - loss(&one.record.mixture)).sum::<f64>() / 3.0;
        assert_eq!(truth.len(), 3);
        assert!(shift.abs() > 1e-4, "there is nothing to calibrate on {eval}");
        let (plain, shifted) = (losses(&plain, "merged", &eval), losses(&shifted, "merged+offset(3)", &eval));
        assert_eq!(plain.len(), 7);
        for (mixture, loss) in plain {
            assert!((shifted[&mixture] - loss - shift).abs() < 1e-12, "{mixture} on {eval}"); // sums of a few numbers of 5
        }
    }
    let order = |rows: &[BTreeMap<String, String>]| rows.iter().map(|row| row["mixture"].clone()).collect::<Vec<_>>();
    assert_eq!(order(&plain), order(&shifted));
    assert!(
        world.ok("rank --calibrate 3 --estimator ground-truth --subsets 1 --format csv").contains(",ground-truth,")
    );
}

#[test]
fn what_is_no_estimator_is_met_with_the_nearest() {
    let world = World::trained();
    for (estimator, part) in [
        ("mergd", "did you mean 'merged'?"),
        ("merged:exponnt=1", "did you mean 'exponent'?"),
        ("ensemble:exponent=1", "has no option 'exponent'"),
        ("merged:exponent", "expected key=value after ':'"),
        ("merged:exponent=x", "expected a number from -1 to 2, or fit"),
        ("merged:exponent=3", "expected a number from -1 to 2, or fit"),
        ("merged:exponent=fit,truths=2", "at least truths=3"),
        ("merged:truths=5", "it is for exponent=fit"),
        ("regression:labels=both", "expected merged or trained"),
    ] {
        world.refused(&format!("rank --estimator {estimator}"), 2, &[part]);
    }
}

#[test]
fn an_exponent_scales_the_mean_movement_of_the_experts() {
    let world = World::trained();
    let ranked = rows(&world.ok("rank --estimator merged merged:exponent=1 merged:exponent=0.5 --format csv"));
    let pool = Pool::open(&world.path("pool")).unwrap();
    let (settings, layout, units) = (pool.settings(), pool.layout(), pool.unit_counts().unwrap());
    let read = |folder: &std::path::Path| Checkpoint::open(folder).unwrap().read(layout).unwrap();
    let seed = read(&pool.seed_member().unwrap().folder);
    let experts = pool.experts().unwrap();
    let evaluator = Evaluator::new(&settings.model, layout, settings.window).unwrap();
    for eval in EVALS {
        let tokens = pool.tokens(&pool.eval_binding(eval).unwrap().tokens).unwrap();
        let set = EvalSet::new(eval, &tokens, settings.prefix_token, settings.window).unwrap();
        for (exponent, estimator) in [(1.0, "merged:exponent=1"), (0.5, "merged:exponent=0.5")] {
            let (plain, scaled) = (losses(&ranked, "merged", eval), losses(&ranked, estimator, eval));
            for alone in ["math", "wiki"] {
                assert_eq!(plain[alone], scaled[alone], "the merge of one expert is that expert");
            }
            for mixture in ["code", "code+wiki", "code+math+wiki"] {
                let members = experts.members(&Mixture::parse(mixture, &units, Notation::default()).unwrap()).unwrap();
                let k = 1.0 / members.iter().map(|member| member.weight.powi(2)).sum::<f64>();
                let mut moved = vec![0.0; seed.len()];
                for member in &members {
                    for ((sum, expert), seed) in moved.iter_mut().zip(read(&member.folder)).zip(&seed) {
                        *sum += member.weight * (f64::from(expert) - f64::from(*seed));
                    }
                }
                let by_hand = seed.iter().zip(&moved).map(|(seed, moved)| f64::from(*seed) + k.powf(exponent) * moved);
                let by_hand: Vec<f32> = by_hand.map(|value| value as f32).collect();
                evaluator
                    .set(|out| {
                        out.copy_from_slice(&by_hand);
                        Ok(())
                    })
                    .unwrap();
                let documents = evaluator.nll(&set).unwrap();
                let loss = Score::from_documents(&documents, set.n_tokens(), set.n_bytes(), eval).unwrap().loss();
                // The two sums round differently in f64: a few parameters differ in the last bit of f32.
                assert!((scaled[mixture] - loss).abs() < 1e-6 * loss, "{mixture}: {} for {loss}", scaled[mixture]);
                assert!((scaled[mixture] - plain[mixture]).abs() > 1e-4, "{estimator} of {mixture} is a plain average");
            }
        }
    }
}
