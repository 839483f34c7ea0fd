//! Online methods: alignments and updates against `scripts/reference/online.py`, real runs whose outcome is known, runs that
//! were killed, and the command from end to end.

mod common;
mod world;

use common::{assert_within, golden, number, numbers};
use mixpool::Error;
use mixpool::model::{Layout, ModelConfig};
use mixpool::progress::{Observer, Silent};
use mixpool::text::{Batch, Batches, Share};
use mixpool::train::{
    Dga, Method, Odm, OnlineSources, OnlineTrainer, Policy, Progress, Reward, Seen, State, TrainConfig, Trainer,
};
use serde_json::Value;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use world::{Ran, World};

/// The reference programs' batch of two sequences of 16 from a token on.
fn reference_batch(start: usize, vocabulary: usize) -> Batch {
    let tokens = common::tokens(start, 34, vocabulary);
    let part = |skip: usize| tokens.chunks(17).flat_map(|row| row[skip..skip + 16].to_vec()).collect();
    Batch { inputs: part(0), targets: part(1) }
}

#[test]
fn alignments_are_those_of_torch() {
    let golden = golden("online");
    let config = common::config(&golden);
    let layout = Layout::of(&config);
    for micro in [1, 2] {
        let train = TrainConfig { micro_batch_size: micro, ..TrainConfig::new(1, 2, 16, 1e-3) };
        let mut trainer = Trainer::new(&config, &layout, &train, State::fresh(common::weights(&layout))).unwrap();
        let domains = (1..=4).map(|i| reference_batch(1000 * i, config.vocab_size));
        let got = trainer.alignments(&reference_batch(500, config.vocab_size), domains).unwrap();
        let norms = numbers(&golden["norms"]);
        let expected = numbers(&golden["alignments"]);
        assert_eq!(got.len(), expected.len());
        // An f32 gradient is off by 1e-6 of its norm, and an inner product averages that out; the smallest of these is a
        // thousandth of the product of the norms.
        let relative = got.iter().zip(&expected).map(|(got, expected)| common::relative(*got, *expected));
        assert_within(1e-4, relative, "alignments");
        let scaled = got.iter().zip(&expected).zip(&norms[1..]);
        assert_within(1e-7, scaled.map(|((got, e), norm)| (got - e).abs() / (norms[0] * norm)), "of the norms");
    }
}

#[test]
fn weights_follow_given_alignments_and_losses_as_in_the_reference() {
    let golden = golden("online");
    let case = &golden["dga"];
    let dga = Dga { rate: number(&case["rate"]), ema: number(&case["ema"]), ..Dga::default() };
    let mut state = dga.start(vec![0.25; 4]);
    for (alignments, expected) in case["alignments"].as_array().unwrap().iter().zip(case["weights"].as_array().unwrap())
    {
        dga.observe(&mut state, &Seen::Alignments(&numbers(alignments)));
        let errors = state.weights.iter().zip(numbers(expected)).map(|(got, expected)| (got - expected).abs());
        assert_within(1e-12, errors, "dga"); // both sides compute in f64
    }
    let case = &golden["odm"];
    for (reward, name) in [(Reward::Loss, "loss"), (Reward::Perplexity, "perplexity")] {
        let odm = Odm { smoothing: number(&case["smoothing"]), reward };
        let mut state = odm.start(vec![0.25; 4]);
        let steps = case["losses"].as_array().unwrap().iter().zip(case[name].as_array().unwrap());
        for (step, (losses, expected)) in steps.enumerate() {
            let errors = state.weights.iter().zip(numbers(expected)).map(|(got, expected)| (got - expected).abs());
            assert_within(1e-12, errors, name);
            let seen: Vec<Option<f64>> = losses.as_array().unwrap().iter().map(Value::as_f64).collect();
            odm.observe(&mut state, &Seen::Losses(step as u64 + 1, &seen));
        }
        assert!(state.weights.iter().any(|weight| (weight - 0.25).abs() > 0.01), "{name} moved");
    }
}

/// A small model and three domains whose ids do not overlap: 1 to 20, 21 to 40, 41 to 60, each a pattern to learn.
struct Toy {
    model: ModelConfig,
    layout: Layout,
    train: TrainConfig,
}

impl Toy {
    fn new(steps: u64) -> Self {
        let model = ModelConfig { vocab_size: 61, ..ModelConfig::preset("pico").unwrap() };
        let train = TrainConfig { seed: 4, ..TrainConfig::new(steps, 6, 24, 1e-2) };
        Self { layout: Layout::of(&model), model, train }
    }

    fn fresh(&self) -> State {
        State::fresh(self.layout.initial_values(&self.model, 0))
    }

    /// The target is like the last domain; with `harmful`, the first domain continues the target's ids wrongly.
    fn sources(&self, harmful: bool) -> OnlineSources {
        let pattern = |first: u32, step: u32| (0..900).map(move |i| first + i * step % 20).collect::<Vec<u32>>();
        let documents = [pattern(if harmful { 41 } else { 1 }, 13), pattern(21, 7), pattern(41, 3), pattern(41, 3)];
        let folder = tempfile::tempdir().unwrap();
        let tokens = common::token_file(folder.path(), &documents);
        let share = |index: usize| Share { tokens: &tokens, documents: index..index + 1, weight: 1.0 / 3.0 };
        let batches = |units: &[usize], seed| {
            let shares: Vec<Share<'_>> = units.iter().map(|unit| share(*unit)).collect();
            Batches::new(&shares, 0, self.train.sequence_length, seed).unwrap()
        };
        OnlineSources {
            domains: batches(&[0, 1, 2], 4),
            probes: batches(&[0, 1, 2], 5),
            target: Some(batches(&[3], 4)),
            basis: Vec::new(),
            start: vec![1.0 / 3.0; 3],
        }
    }

    fn go_on(&self, method: &Method, sources: OnlineSources, state: State, observer: &dyn Observer) -> State {
        let mut trainer = OnlineTrainer::new(&self.model, &self.layout, &self.train, method, sources, state).unwrap();
        let mut saved = None;
        let result = trainer.run("toy", observer, f64::INFINITY, |state| {
            saved = Some(state.clone());
            Ok(())
        });
        let state = trainer.state().unwrap();
        assert!(result.is_ok() || saved.as_ref() == Some(&state), "a run saves before it stops");
        state
    }

    fn run(&self, method: &Method, harmful: bool) -> Progress {
        self.go_on(method, self.sources(harmful), self.fresh(), &Silent).online.unwrap()
    }
}

fn dga(rate: f64, ema: f64) -> Method {
    Method::Dga(Dga { every: 2, rate, ema, probe: 3 })
}

#[test]
fn weight_moves_to_the_only_domain_that_is_like_the_target() {
    let progress = Toy::new(40).run(&dga(4.0, 0.5), false);
    assert_eq!(progress.alignments.len(), 19, "after every second step but the last");
    let last = &progress.trajectory.last().unwrap().weights;
    // Ids that do not overlap are nearly orthogonal, but not quite: all of them unlearn the first guess together.
    assert!(last[2] > 2.0 * last[0].max(last[1]), "{last:?}");
    assert_eq!(progress.gradient_tokens, 19 * 4 * 3 * 24);
    assert_eq!(progress.drawn.iter().sum::<u64>(), 40 * 6);
    assert_eq!(progress.probed, [19 * 3; 3]);
    // What was drawn is what the weights said, to four standard deviations of that many draws.
    let expected = mixpool::train::average_weights(&progress.trajectory, 40);
    for (drawn, share) in progress.drawn.iter().zip(expected) {
        let (n, share) = (240.0, share);
        assert!(
            (*drawn as f64 - n * share).abs() < 4.0 * (n * share * (1.0 - share)).sqrt() + 1.0,
            "{drawn} of {share}"
        );
    }
    // The weights are the recurrence from the alignments that were measured.
    for at in &progress.alignments {
        let moved: Vec<f64> = at.before.iter().zip(&at.alignments).map(|(w, a)| w * (4.0 * a).exp()).collect();
        let sum: f64 = moved.iter().sum();
        let errors = (0..3).map(|i| (0.5 * at.before[i] + 0.5 * moved[i] / sum - at.after[i]).abs());
        assert_within(1e-12, errors, "recurrence");
    }
}

#[test]
fn a_planted_harmful_domain_loses_weight() {
    let progress = Toy::new(40).run(&dga(4.0, 0.5), true);
    let mean = |i: usize| progress.alignments.iter().map(|at| at.alignments[i]).sum::<f64>() / 19.0;
    assert!(mean(0) < mean(2), "wrong continuations help less than right ones");
    let last = &progress.trajectory.last().unwrap().weights;
    assert!(last[2] > last[0] && last[0] < 1.0 / 3.0, "{last:?}");
}

#[test]
fn histograms_as_arms_move_the_domains_they_hold() {
    let toy = Toy::new(30);
    let mut sources = toy.sources(false);
    sources.basis = vec![vec![0.5, 0.5, 0.0], vec![0.0, 0.25, 0.75]];
    sources.start = vec![0.5, 0.5];
    let progress = toy.go_on(&dga(4.0, 0.5), sources, toy.fresh(), &Silent).online.unwrap();
    assert_eq!(progress.trajectory[0].weights, [0.25, 0.375, 0.375]);
    let (arms, domains) = (&progress.policy.weights, &progress.trajectory.last().unwrap().weights);
    assert!(arms.len() == 2 && arms[1] > 0.8, "{arms:?}");
    assert_within(1e-15, [(domains[2] - 0.75 * arms[1]).abs(), (domains[0] - 0.5 * arms[0]).abs()], "domains");
}

/// Asks to stop once so many steps are done.
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

/// A progress without what the clock said.
fn timeless(state: &State) -> Progress {
    Progress { gradient_seconds: 0.0, seconds: 0.0, ..state.online.clone().unwrap() }
}

#[test]
fn a_run_stored_after_any_step_goes_on_bit_for_bit() {
    let toy = Toy::new(14);
    for method in [Method::Fixed, dga(4.0, 0.5), Method::Odm(Odm::default())] {
        let whole = toy.go_on(&method, toy.sources(false), toy.fresh(), &Silent);
        for steps in [1, 4, 13] {
            let stop = StopAfter(AtomicU64::new(steps));
            let stopped = toy.go_on(&method, toy.sources(false), toy.fresh(), &stop);
            assert_eq!(stopped.step, steps);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state");
            stopped.save(&path).unwrap();
            let loaded = State::load(&path, &toy.layout).unwrap().unwrap();
            assert_eq!(loaded, stopped, "a stored state is what was stored");
            let resumed = toy.go_on(&method, toy.sources(false), loaded, &Silent);
            assert_eq!((&resumed.curve, timeless(&resumed)), (&whole.curve, timeless(&whole)), "{method:?}");
            assert!(common::bits(&resumed.parameters) == common::bits(&whole.parameters));
            assert!(common::bits(&resumed.second) == common::bits(&whole.second));
        }
    }
}

#[test]
fn a_run_does_not_depend_on_the_number_of_threads() {
    let toy = Toy::new(6);
    let trained = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let state = pool.install(|| toy.go_on(&dga(4.0, 0.5), toy.sources(false), toy.fresh(), &Silent));
        (timeless(&state), common::bits(&state.parameters))
    };
    let alone = trained(1);
    assert!(trained(2) == alone && trained(3) == alone);
}

#[test]
fn a_method_that_compares_gradients_wants_a_target() {
    let toy = Toy::new(4);
    let sources = OnlineSources { target: None, ..toy.sources(false) };
    let method = dga(1.0, 1.0);
    let refused = OnlineTrainer::new(&toy.model, &toy.layout, &toy.train, &method, sources, toy.fresh());
    assert!(refused.err().unwrap().to_string().contains("name one"));
}

const DGA: &str = "online --method dga --target wiki-test --every 3 --rate 5 --ema 0.5 --probe 2 --tokens 8k";

fn json(world: &World, line: &str) -> Value {
    serde_json::from_str(&world.ok(&format!("{line} --format json"))).unwrap()
}

/// The files that an online run left, but for the manifest, which tells seconds.
fn object(world: &World, id: &Value) -> Vec<String> {
    let folder = world.path("pool/objects").join(id.as_str().unwrap());
    ["model.safetensors", "weights.csv", "alignments.csv", "curve.csv"]
        .into_iter()
        .filter_map(|name| Some(blake3::hash(&std::fs::read(folder.join(name)).ok()?).to_string()))
        .collect()
}

#[test]
fn the_command_trains_scores_and_recommends_and_asks_nothing_twice() {
    let world = World::trained();
    let said = json(&world, DGA);
    let weights = |key: &str| -> Vec<(String, f64)> {
        said[key].as_object().unwrap().iter().map(|(name, weight)| (name.clone(), number(weight))).collect()
    };
    let last = weights("final_weights");
    assert_eq!(last.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["code", "math", "wiki"]);
    assert_within(1e-12, [(last.iter().map(|(_, weight)| weight).sum::<f64>() - 1.0).abs()], "weights sum to 1");
    assert!(last[2].1 > last[0].1 && last[2].1 > last[1].1, "wiki is like the target: {last:?}");
    let scores = said["scores"].as_array().unwrap();
    assert_eq!((scores[0]["seen_documents"].as_u64(), scores[1]["seen_documents"].as_u64()), (Some(0), Some(8)));
    assert_eq!(scores[0]["loss"], scores[0]["loss_unseen"]);
    assert_ne!(scores[1]["loss"], scores[1]["loss_unseen"]);
    let comparisons = said["comparisons"].as_u64().unwrap();
    assert_eq!(said["gradient_tokens"].as_u64().unwrap(), comparisons * 4 * 2 * 32);

    let before = world.pool();
    let again = json(&world, &format!("{DGA} --csv weights.csv"));
    assert_eq!(said, again);
    assert_eq!(before, world.pool());
    let csv = world.read("weights.csv");
    assert_eq!(csv.lines().count() as u64, 2 + comparisons); // header, the start, every comparison
    assert!(csv.starts_with("step,tokens,"));

    // What it recommends can be scored and ranked; the model can be listed, shown and exported by its id.
    let (average, id) = (said["average"].as_str().unwrap(), said["model"].as_str().unwrap());
    world.ok(&format!("score {average}"));
    world.write("candidates.txt", format!("{average}\ncode+wiki\n"));
    world.ok("rank --candidates candidates.txt");
    assert!(world.ok("ls --format csv").contains(&format!("online,{}", &id[..12])));
    assert!(world.ok(&format!("show {}", &id[..12])).contains(&id[..12]));
    world.ok(&format!("export model {} --out exported", &id[..12]));
    let exported = std::fs::read(world.path("exported/model.safetensors")).unwrap();
    assert!(exported == std::fs::read(world.path(&format!("pool/objects/{id}/model.safetensors"))).unwrap());
    assert!(world.ok(DGA).contains("the first 8 of 16 documents seen by the method"));
    world.ok("verify --deep");
}

#[test]
fn fixed_weights_are_those_of_text_and_target() {
    let world = World::trained();
    let weight = |line: &str, name: &str| number(&json(&world, line)["average_weights"][name]);
    assert_eq!(weight("online --method uniform --tokens 1k", "wiki"), 1.0 / 3.0);
    assert_eq!(weight("online --method importance --target wiki-test --tokens 1k", "wiki"), 1.0);
    let natural = json(&world, "online --method natural --tokens 1k --from code+wiki")["average_weights"].clone();
    let tokens = |name: &str| -> f64 {
        let shown: Value = serde_json::from_str(&world.ok("ls --format json")).unwrap();
        let rows = shown.as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        number(&row["n_tokens"]) + number(&row["n_docs"]) // each document begins with a prefix
    };
    let share = tokens("code") / (tokens("code") + tokens("wiki"));
    assert_within(1e-12, [(number(&natural["code"]) - share).abs()], "share of the tokens");
    let units = json(&world, "online --method odm --units --tokens 1k")["average_weights"].clone();
    assert_eq!(units.as_object().unwrap().keys().collect::<Vec<_>>(), ["code/1", "code/2", "math", "wiki"]);
    let by_histogram =
        json(&world, "online --method dga --target wiki-test --basis code-test wiki-test --every 2 --tokens 2k");
    assert_eq!(by_histogram["average_weights"]["math"], 0.0); // neither histogram holds it
}

#[test]
fn runs_order_mixtures_and_are_trained_once() {
    let world = World::trained();
    let line = "rank --format json --estimator dga dga:by=distance odm --csv ranking.csv";
    let ranked: Value = serde_json::from_str(&world.ok(line)).unwrap();
    let runs = || world.ok("ls --format csv").lines().filter(|line| line.starts_with("online,")).count();
    assert_eq!(runs(), 3, "one towards each eval set, whatever the order is by, and one of odm");
    for row in ranked.as_array().unwrap().iter().filter(|row| row["rank"] == 1) {
        let (estimator, eval, best) = (&row["estimator"], &row["eval_set"], row["mixture"].as_str().unwrap());
        assert!(row["loss"].is_null() && row["order"].is_number(), "{row:?}");
        if estimator == "dga" {
            assert_eq!(best, if eval == "code-test" { "code" } else { "wiki" });
        }
    }
    assert_eq!(ranked, serde_json::from_str::<Value>(&world.ok(line)).unwrap());
    assert_eq!(runs(), 3);
    let judged = world.ok("validate --mixtures 3 --estimator dga odm --format json");
    let judged: Value = serde_json::from_str(&judged).unwrap();
    for row in judged.as_array().unwrap() {
        let trained = if row["estimator"] == "dga" { 2 } else { 1 } * 28 * 4 * 32; // runs of as many steps as the experts
        assert_eq!(row["train_tokens"].as_u64().unwrap(), trained);
        let compared = if row["estimator"] == "dga" { 2 * 5 * 4 * 4 * 32 } else { 0 }; // three partitions and the target
        let parameters = number(&row["flops"]) / 6.0 / (trained + compared) as f64;
        assert_eq!(parameters.fract(), 0.0, "every token went forward and backward once: {row:?}");
    }
    world.refused("rank --estimator dga:by=size", 2, &["by=size", "alignment or distance"]);
    world.refused("rank --estimator odm:reward=1", 2, &["reward=1", "loss or perplexity"]);
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    let world = World::trained();
    for (line, parts) in [
        ("--method dga", ["needs a --target", "eval set"]),
        ("--method odm --target wiki-test", ["no use for a --target", "odm"]),
        ("--method dga --target wikitest", ["unknown", "wiki-test"]),
        ("--method dga --target wiki-test --documents 17", ["16 document(s)", "17"]),
        ("--method dga --target wiki-test --every 0", ["'every'", "above 0"]),
        ("--method dga --target wiki-test --ema 2", ["'ema'", "at most 1"]),
        ("--method odm --smoothing 1", ["'smoothing'", "below 1"]),
        ("--method uniform --from code=0.5+wiki=0.5", ["without weights", "code+wiki"]),
        ("--method uniform --from cod", ["unknown partition", "code"]),
        ("--method uniform --basis wiki-test", ["--basis", "dga"]),
        ("--method uniform --tokens none", ["--tokens", "500k"]),
    ] {
        world.refused(&format!("online {line}"), 2, &parts);
    }
}

#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    for method in ["dga --target wiki-test --every 7 --probe 2", "odm"] {
        let line = format!("online --method {method} --tokens 120k");
        let world = World::registered();
        world.ok("train seed");
        let start = Instant::now();
        let whole = json(&world, &line)["model"].clone();
        let (usual, expected) = (start.elapsed(), object(&world, &whole));
        std::fs::remove_dir_all(world.path("pool/objects").join(whole.as_str().unwrap())).unwrap();
        let mut stopped = 0;
        for part in 1..=3 {
            let child = world.start(&line);
            std::thread::sleep(usual * part / 8 + Duration::from_millis(30));
            let name = if part == 3 { "-KILL" } else { "-TERM" };
            assert!(
                std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success()
            );
            let ran = Ran::new(&line, &child.wait_with_output().unwrap());
            stopped += usize::from(ran.code == Some(75) || ran.code.is_none());
        }
        assert!(stopped >= 2, "only {stopped} of three runs were at work when they were stopped");
        assert_eq!(json(&world, &line)["model"], whole);
        assert_eq!(object(&world, &whole), expected, "{method}");
        assert!(expected.len() >= 3);
    }
}
