//! Devices: what the command line does with a GPU, shown on the emulation of one.
//!
//! Scores in f32 differ from the CPU's by the order of additions: 1e-5 nats. In bf16, weights and activations have 8 bits: the
//! losses of these toy models (about 5.8 nats) stay within 2e-3 nats, that is 3e-4 of them.
#![cfg(feature = "cuda-emulation")]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use world::{BRIEF, Ran, World};

fn registered() -> World {
    World::with_recipe(BRIEF)
}

/// With every expert trained on the CPU.
fn trained() -> World {
    let world = registered();
    world.ok("train");
    world
}

/// Bytes of memory of an emulated GPU for one command.
fn with_memory(world: &World, bytes: u64, line: &str) -> Ran {
    let output = world.command(line).env("MIXPOOL_EMULATED_MEMORY", bytes.to_string()).output().unwrap();
    Ran::new(line, &output)
}

/// A table without its measured times.
fn untimed(csv: &str) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let columns = reader.headers().unwrap().clone();
    let kept = |row: &csv::StringRecord| {
        let cells = columns.iter().zip(row).filter(|(column, _)| !column.contains("seconds"));
        cells.map(|(_, cell)| cell.to_owned()).collect()
    };
    reader.records().map(|row| kept(&row.unwrap())).collect()
}

/// Losses by mixture and eval set.
fn losses(csv: &str) -> BTreeMap<(String, String), f64> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let columns = reader.headers().unwrap().clone();
    let column = |name: &str| columns.iter().position(|column| column == name).unwrap();
    let (mixture, eval, loss) = (column("mixture"), column("eval_set"), column("loss"));
    let row = |row: csv::StringRecord| ((row[mixture].to_owned(), row[eval].to_owned()), row[loss].parse().unwrap());
    reader.records().map(|record| row(record.unwrap())).collect()
}

#[track_caller]
fn assert_near(got: &str, expected: &str, tolerance: f64) {
    let (got, expected) = (losses(got), losses(expected));
    assert!(!got.is_empty() && got.keys().eq(expected.keys()), "{got:?} {expected:?}");
    let differ: Vec<f64> = got.values().zip(expected.values()).map(|(a, b)| (a - b).abs()).collect();
    let worst = differ.iter().copied().fold(0.0, f64::max);
    assert!(worst <= tolerance, "{worst:e} exceeds {tolerance:e}");
}

#[test]
fn a_gpu_scores_as_the_cpu_does_and_is_never_mixed_with_it_in_another_precision() {
    let world = trained();
    let ask = "score code wiki code+math+wiki code=0.7+wiki=0.3 --format csv";
    let on_gpu = world.ok(&format!("{ask} --device emulated --precision f32"));
    let read = world.ok(ask);
    assert!(read.lines().skip(1).all(|line| line.contains(",true,")), "f32 is stored once for all devices: {read}");
    assert_near(&read, &on_gpu, 0.0);
    let rounded = world.ok(&format!("{ask} --device emulated"));
    assert!(rounded.lines().skip(1).all(|line| line.contains(",false,")), "bf16 is kept apart: {rounded}");
    assert_ne!(losses(&rounded), losses(&read));
    assert_near(&rounded, &read, 2e-3);
    assert_eq!(losses(&world.ok(&format!("{ask} --precision bf16"))), losses(&rounded), "what is stored needs no GPU");
    world.refused("score code+wiki --precision bf16", 2, &["the CPU computes in f32 only", "--device cuda"]);
    world.ok("gc"); // knows all precisions
    world.ok("verify --deep");

    let other = trained(); // the same pool, scored on the CPU
    assert_near(&other.ok(ask), &on_gpu, 1e-5);
    let again = trained();
    assert_eq!(losses(&again.ok(&format!("{ask} --device emulated"))), losses(&rounded), "the same bits every time");
}

/// While one candidate's losses are read and stored, the next is in the device's queue, under a claim.
#[test]
fn candidates_that_are_begun_early_are_scored_once_and_the_same() {
    let ask = "score code wiki math code+math code+wiki math+wiki code=0.5+wiki=0.5 --format csv --device emulated --precision f32";
    let expected = trained().ok(&ask.replace("--device emulated", ""));
    let parts = trained();
    parts.ok("score code+wiki --eval wiki-test"); // which is left out there, and begun for the other set
    parts.ok("score math --device emulated --precision f32"); // which is left out altogether
    assert_near(&parts.ok(ask), &expected, 1e-5);

    let shared = trained();
    let runs = [shared.start(ask), shared.start(ask)].map(|run| run.wait_with_output().unwrap());
    let outputs = runs.map(|run| String::from_utf8(run.stdout).unwrap());
    let computed: usize = outputs.iter().map(|output| output.matches(",false,").count()).sum();
    assert_eq!(computed, losses(&expected).len(), "each once: {outputs:?}");
    assert_eq!(losses(&outputs[0]), losses(&outputs[1]));
    assert_near(&outputs[0], &expected, 1e-5);
}

#[test]
fn members_that_do_not_fit_are_brought_over_piece_by_piece() {
    let world = trained();
    let ask = "rank --subsets 1..=3 --format csv --device emulated";
    let resident = world.ok(ask);
    for (name, bytes) in [("some", 3 << 20), ("none", 1_450_000)] {
        let world = trained();
        let ran = with_memory(&world, bytes, ask);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(ran.stdout, resident, "{name} resident");
    }
    let refused = with_memory(&trained(), 100_000, ask);
    refused.failed(2, &["scoring needs about", "'emulated GPU'", "can be used", "--device cpu"]);
}

#[test]
fn training_is_as_precise_as_the_recipe_says() {
    let world = registered();
    world.refused(
        "train --device emulated --precision bf16",
        2,
        &["trains in f32", "init RECIPE.yaml --precision bf16"],
    );
    world.ok("train --device emulated");
    let cpu = trained();
    let ids = |world: &World| {
        world.models().into_keys().map(|path| path.split('/').next().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(ids(&world), ids(&cpu), "one recipe in f32, wherever it is trained");
    let ask = "score code code+wiki --format csv";
    assert_near(&world.ok(ask), &cpu.ok(ask), 1e-3); // six steps from rounding's differences

    let recipe = BRIEF.replace("  tokens: 512\n", "  tokens: 512\n  precision: bf16\n");
    let rounded = World::with_recipe(&recipe);
    rounded.refused("train", 2, &["precision: bf16", "--device cuda"]);
    rounded.ok("train --device emulated");
    assert!(ids(&rounded).is_disjoint(&ids(&cpu)), "bf16 is another recipe");
    assert_near(&rounded.ok(ask), &cpu.ok(ask), 3e-2); // another training: of the same quality, not the same
    rounded.ok("init recipe.yaml");
}

#[test]
fn several_gpus_train_side_by_side() {
    let one = registered();
    one.ok("train --device emulated");
    let two = registered();
    let ran = two.run("train --device emulated:2");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("training on 2 devices"), "{ran:?}");
    assert_eq!(one.models(), two.models());
    assert!(two.files("work").is_empty());
}

#[test]
fn several_gpus_train_the_models_that_judge_side_by_side() {
    let ask = "validate --mixtures 3 --subsets 2..=3 --estimator merged --format csv --precision f32";
    let one = trained();
    let expected = one.run(&format!("{ask} --device emulated"));
    assert!(expected.code == Some(0) && !expected.stderr.contains("devices"), "{expected:?}");
    let two = trained();
    let ran = two.run(&format!("{ask} --device emulated:2"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("training on 2 devices, one model at a time on each"), "{ran:?}");
    assert_eq!(untimed(&ran.stdout), untimed(&expected.stdout));
    assert_eq!(one.models(), two.models());
    assert!(two.files("work").is_empty());
    let again = two.run(&format!("{ask} --device emulated:2"));
    assert!(again.stdout == ran.stdout && !again.stderr.contains("devices"), "all is stored: {again:?}");
}

#[test]
fn a_step_that_does_not_fit_is_taken_in_parts() {
    let whole = registered();
    whole.ok("train --device emulated");
    let parts = registered();
    let ran = with_memory(&parts, 1_300_000, "train --device emulated");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("sequences at a time fit 'emulated GPU'"), "{ran:?}");
    let ask = "score code code+wiki --format csv";
    assert_near(&parts.ok(ask), &whole.ok(ask), 1e-3);
    let again = registered();
    let ran = with_memory(&again, 860_000, "train --device emulated");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.stderr.contains("1 sequences at a time fit 'emulated GPU', activations being computed again"),
        "{ran:?}"
    );
    assert_near(&again.ok(ask), &whole.ok(ask), 1e-3);
    let refused = with_memory(&registered(), 700_000, "train --device emulated");
    refused.failed(2, &["training one sequence at a time needs about", "can be used"]);
}

#[test]
fn what_knows_the_cpu_only_says_so() {
    let world = trained();
    world.refused(
        "export model code+wiki --out merged --device emulated",
        2,
        &["on the CPU in f32 only", "leave '--device emulated' out"],
    );
    let ran = world.run("validate --mixtures 3 --subsets 2..=3 --device emulated");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!ran.stderr.contains("left out"), "{ran:?}");
    assert!(ran.stdout.contains("second-order") && ran.stdout.contains("regmean"), "{ran:?}");
}
