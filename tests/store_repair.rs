//! Repair: damaged pools are refused when they are read, mended without their user, and swept of what nothing names.

mod world;

use std::fs;
use std::path::{Path, PathBuf};
use world::{World, edit};

/// Every kind of file that a pool holds.
fn used() -> World {
    let world = World::trained();
    world.ok("train --mixture code+wiki");
    for line in ["rank", "rank --estimator ensemble --subsets 2", "rank --estimator regmean --subsets 2"] {
        world.ok(line);
    }
    world
}

fn flip(path: &Path, at: usize) {
    edit(path, |bytes| {
        let at = at % bytes.len();
        bytes[at] ^= 1 << (at % 8);
    });
}

fn quarantined(world: &World) -> Vec<PathBuf> {
    fs::read_dir(world.path("pool/quarantine")).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_flipped_bit_in_any_file_is_mended_and_the_damaged_file_kept() {
    let world = used();
    let ranking = world.ok("rank --format csv");
    let models = world.models();
    let files: Vec<_> = world.files("").into_iter().filter(|path| fs::metadata(path).unwrap().len() > 0).collect();
    let mut kept = 0;
    for (index, file) in files.iter().enumerate() {
        if !file.exists() {
            continue; // dropped by an earlier repair
        }
        flip(file, index * 7919 + 13);
        world.refused("verify --deep", 12, &["repair: "]);
        let ran = world.run("verify --deep --repair");
        assert_eq!(ran.code, Some(0), "{}: {ran:?}", file.display());
        assert!(ran.stderr.contains("mended '"), "{}: {ran:?}", file.display());
        world.ok("verify --deep");
        let now = quarantined(&world).len();
        assert!(now > kept, "{} was not kept: {ran:?}", file.display());
        kept = now;
    }
    assert_eq!(world.models(), models);
    assert_eq!(world.ok("rank --format csv"), ranking);
}

#[test]
fn a_damaged_score_record_costs_no_other() {
    let world = World::trained();
    let ranking = world.ok("rank --format csv");
    let log = world.files("scores").into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let length = fs::metadata(&log).unwrap().len() as usize;
    flip(&log, length / 2);
    let ran = world.run("verify --repair");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("6 whole record(s) kept, 1 mended by a bit, 0 scored again"), "{ran:?}");
    assert!(!world.run("rank").stderr.contains("mixtures in"), "nothing is lost");
    // Two flipped bits in the sums of a record's documents: its head still says what it is of.
    let middle = fs::read(&log).unwrap().windows(4).skip(1).position(|window| window == b"mps1").unwrap();
    edit(&log, |bytes| bytes[middle - 30] ^= 9);
    let ran = world.run("verify --repair");
    assert!(ran.stderr.contains("6 whole record(s) kept, 0 mended by a bit, 1 scored again"), "{ran:?}");
    let cut = fs::read(&log).unwrap().len() - 9;
    edit(&log, |bytes| bytes.truncate(cut));
    assert_eq!(world.ok("rank --format csv"), ranking);
}

#[test]
fn what_needs_the_user_is_listed() {
    let world = World::trained();
    fs::remove_file(world.path("wiki.jsonl.gz")).unwrap();
    flip(&world.tokens("partitions/wiki").join("tokens.bin"), 100);
    let before = world.pool();
    let ran = world.run("verify --deep --repair");
    ran.failed(
        12,
        &["does not match", "register wiki"].map(|part| if part == "does not match" { "do not match" } else { part }),
    );
    assert_eq!(before, world.pool(), "what cannot be mended stays where it is");
}

#[test]
fn what_is_loaded_is_verified_first() {
    let world = World::trained();
    let whole = world.ok("rank --format csv");
    fs::remove_dir_all(world.path("pool/scores")).unwrap();
    fs::create_dir(world.path("pool/scores")).unwrap();
    let weights = world.expert("code").join("model.safetensors");
    let length = fs::metadata(&weights).unwrap().len() as usize;
    for (file, at) in [(weights, length - 5), (world.tokens("evals/code-test").join("tokens.bin"), 40)] {
        let bytes = fs::read(&file).unwrap();
        edit(&file, |bytes| bytes[at] ^= 1);
        world.refused("rank --verify-on-load", 12, &["is damaged"]);
        let output = world.command("score code").env("MIXPOOL_VERIFY_ON_LOAD", "1").output().unwrap();
        assert_eq!(output.status.code(), Some(12), "{output:?}");
        fs::write(&file, bytes).unwrap();
    }
    assert_eq!(world.ok("rank --format csv --verify-on-load"), whole);
    assert_eq!(world.ok("rank --format csv --no-mmap --estimator merged"), whole);
}

#[test]
fn files_that_are_read_give_the_same_scores() {
    let world = World::trained();
    let mapped = world.ok("rank --format csv");
    fs::remove_dir_all(world.path("pool/scores")).unwrap();
    fs::create_dir(world.path("pool/scores")).unwrap();
    assert_eq!(world.ok("rank --format csv --no-mmap"), mapped);
}

/// Ends by SIGBUS's handler; run by the test below in a process of its own.
#[test]
#[ignore = "ends the process"]
fn reads_a_map_that_is_cut_short() {
    let path = PathBuf::from(std::env::var("CUT_SHORT").unwrap());
    mixpool::files::watch_maps().unwrap();
    let others: Vec<_> = (0..3).map(|_| mixpool::files::map(Path::new("Cargo.toml")).unwrap()).collect();
    let map = mixpool::files::map(&path).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert!(others.iter().all(|map| !map.is_empty()) && map[0] == 7);
    assert_eq!(std::hint::black_box(&map)[100_000], 7);
}

#[test]
fn a_mapped_file_that_is_cut_short_is_an_error_and_no_crash() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    fs::write(&path, vec![7; 200_000]).unwrap();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "reads_a_map_that_is_cut_short", "--nocapture"]).env("CUT_SHORT", &path);
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(12), "{output:?}");
    let line = format!("mixpool: '{}' is damaged: it was cut short", path.display());
    assert!(told.lines().any(|told| told.starts_with(&line)), "{told}");
}

#[test]
fn gc_removes_what_nothing_names_and_nothing_else() {
    let world = used();
    assert_eq!(world.ok("gc --format json").trim(), "[]");
    let ranking = world.ok("rank --format csv");
    let before = world.pool();
    // A partition and its expert that are no longer wanted, a claim and a state of nobody, an answer of before.
    world.write("law.txt", world::text(&world::sentences("math", 9, 60)));
    world.ok("register law law.txt");
    world.ok("train law");
    world.ok("rank --estimator ensemble --subsets 2");
    let (tokens, expert) = (world.tokens("partitions/law"), world.expert("law"));
    let trained = world.expert("math").file_name().unwrap().to_string_lossy().into_owned();
    world.write(&format!("pool/work/{}.claim", "0".repeat(64)), "");
    world.write(&format!("pool/work/{trained}.state"), "of a training that is finished");
    fs::remove_file(world.path("pool/partitions/law.json")).unwrap();
    let listed = world.ok("gc --dry-run --format csv");
    for part in [
        name(&tokens),
        name(&expert),
        "0".repeat(64),
        format!("{trained}.state"),
        "estimates/".into(),
        "fitted/tokens-".into(),
    ] {
        assert!(listed.contains(&part), "{part}: {listed}");
    }
    assert!(expert.exists() && tokens.exists(), "a rehearsal");
    assert_eq!(world.ok("gc --format csv"), listed);
    assert!(!expert.exists() && !tokens.exists());
    let after = world.pool();
    let lost: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(world.ok("gc --format json").trim(), "[]");
    world.ok("verify --deep");
    assert_eq!(world.ok("rank --format csv"), ranking);
    let mixture = world.ok("gc --dry-run --trained-mixtures --format csv");
    assert_eq!(mixture.lines().count(), 2, "the model trained on code+wiki: {mixture}");
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn gc_does_not_touch_what_a_live_process_has_claimed() {
    let world = World::with_recipe(&world::RECIPE.replace("tokens: 800", "tokens: 100k"));
    world.ok("train seed");
    let mut child = world.start("train code --threads 1");
    let claims = || world.files("work").len();
    while claims() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let held = world.files("work");
    world.ok("gc");
    assert!(held.iter().all(|path| path.exists()) && child.try_wait().unwrap().is_none(), "{held:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(world.ok("gc").contains(".claim"));
}

#[test]
fn work_that_cannot_fit_is_refused_before_it_begins() {
    let world = World::texts();
    world.ok("tokenizer train general.txt code.txt math.txt --vocab 320 --out tokenizer.json");
    let huge = "model:\n  vocab_size: 320\n  hidden_size: 65536\n  intermediate_size: 262144\n  num_hidden_layers: 512\n  \
                num_attention_heads: 64\n  num_key_value_heads: 64\n  head_dim: 1024\n  rms_norm_eps: 1.0e-5\n  \
                rope_theta: 10000.0\n  max_position_embeddings: 2048\n  tie_word_embeddings: true";
    world.write("recipe.yaml", world::RECIPE.replace("model: pico", huge));
    world.ok("init recipe.yaml");
    world.refused("train", 1, &["training needs at least", "of memory", "is available", "--ignore-limits"]);
}
