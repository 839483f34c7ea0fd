//! The whole job by hand: what each command takes, prints, stores and leaves alone.

mod world;

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use world::{RECIPE, World, listing, sentences, text};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in: {text}"))
}

/// The cells of one column of a CSV.
fn column(csv: &str, name: &str) -> Vec<String> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let index = reader.headers().unwrap().iter().position(|header| header == name).expect(name);
    reader.records().map(|record| record.unwrap()[index].to_owned()).collect()
}

fn set<'a>(items: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    items.into_iter().map(str::to_owned).collect()
}

#[test]
fn the_tour_leads_from_text_files_to_a_ranking() {
    let world = World::trained();
    let rows = world.ok("rank --format csv");
    assert_eq!(column(&rows, "rank").len(), 14); // 7 subsets on 2 eval sets
    let best = |eval: &str| {
        let (evals, mixtures) = (column(&rows, "eval_set"), column(&rows, "mixture"));
        evals.iter().position(|name| name == eval).map(|index| mixtures[index].clone()).unwrap()
    };
    assert_eq!((best("code-test"), best("wiki-test")), ("code".into(), "wiki".into()));
    let table = world.ok("rank --top 2");
    assert_eq!(table.lines().count(), 1 + 2 * 2);
    assert_eq!(world.ok("rank"), world.ok("rank --top 10"));
}

#[test]
fn ls_and_show_tell_what_is_there() {
    let world = World::registered();
    let untrained = world.run("show wiki");
    assert!(untrained.stderr.contains("run 'mixpool train'"), "{untrained:?}");
    world.ok("train wiki"); // and the seed
    let rows = json(&world.ok("ls --format json"));
    let row = |name: &str| rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    assert_eq!((&row("wiki")["trained"], &row("code")["trained"]), (&1.into(), &0.into()));
    assert_eq!((&row("code")["units"], &row("code")["n_docs"]), (&2.into(), &120.into()));
    assert_eq!(row("wiki-test")["kind"], "eval set");
    assert_eq!(row("code")["loss"], Value::Null);
    let shown = json(&world.ok("show wiki --format json"));
    assert!(shown[0]["relative_update"].as_f64().unwrap() > 0.0);
    let object = shown[0]["object"].as_str().unwrap();
    assert_eq!(json(&world.ok(&format!("show {object} --format json")))[0]["weights"], shown[0]["weights"]);
    assert_eq!(json(&world.ok("show seed --format json"))[0]["start"], "scratch");
    assert_eq!(json(&world.ok("show wiki-test --format json"))[0]["n_docs"], 16);
}

#[test]
fn score_prints_a_table_csv_or_json_with_exactly_these_fields() {
    let world = World::trained();
    let table = world.ok("score code code=0.25+wiki=0.75");
    assert_eq!(table.lines().count(), 1 + 4);
    let csv = world.ok("score code code=0.25+wiki=0.75 --format csv");
    assert_eq!(column(&csv, "cached"), ["true"; 4]);
    let printed = json(&world.ok("score code=0.25+wiki=0.75 --eval wiki-test --format json"));
    assert_eq!(set(printed.as_object().unwrap().keys().map(String::as_str)), set(["scores"]));
    let scores = printed["scores"].as_array().unwrap();
    assert_eq!(scores.len(), 1);
    let fields = "mixture weights eval_set nll_sum n_tokens n_bytes n_docs loss perplexity bits_per_byte cached \
                  merge_seconds eval_seconds tokens_per_second";
    assert_eq!(set(scores[0].as_object().unwrap().keys().map(String::as_str)), set(fields.split(' ')));
    assert_eq!(scores[0]["weights"], json(r#"{"code": 0.25, "wiki": 0.75}"#));
    let number = |field: &str| scores[0][field].as_f64().unwrap();
    assert_eq!(number("loss"), number("nll_sum") / number("n_tokens"));
    assert_eq!(number("perplexity"), number("loss").exp());
    assert_eq!(number("bits_per_byte"), number("nll_sum") / (number("n_bytes") * std::f64::consts::LN_2));
    assert_eq!(column(&csv, "loss")[3].parse::<f64>().unwrap(), number("loss"));
}

#[test]
fn the_order_of_partitions_in_a_mixture_does_not_matter() {
    let world = World::trained();
    let first = json(&world.ok("score code+wiki --format json"));
    let again = json(&world.ok("score wiki+code --format json"));
    for (first, again) in first["scores"].as_array().unwrap().iter().zip(again["scores"].as_array().unwrap()) {
        assert_eq!((&first["cached"], &again["cached"]), (&false.into(), &true.into()));
        assert_eq!((&first["mixture"], &first["nll_sum"]), (&again["mixture"], &again["nll_sum"]));
    }
    let weighted = world.ok("score wiki=0.4+code=0.6 --format csv") + &world.ok("score code=0.6+wiki=0.4 --format csv");
    assert_eq!(weighted.matches(",true,").count(), 2);
}

#[test]
fn rank_writes_its_whole_ranking_whatever_it_shows() {
    let world = World::trained();
    world.ok("rank --top 1 --csv ranking.csv");
    let ranking = world.read("ranking.csv");
    let header = "rank,mixture,estimator,eval_set,loss,perplexity,bits_per_byte,order,n_tokens";
    assert!(ranking.starts_with(header), "{ranking}");
    assert_eq!(ranking, world.ok("rank --format csv"));
    let losses: Vec<f64> = column(&ranking, "loss")[..7].iter().map(|loss| loss.parse().unwrap()).collect();
    assert!(losses.is_sorted(), "{losses:?}");
}

#[test]
fn candidates_come_from_subsets_grids_chance_or_a_file() {
    let world = World::trained();
    let mixtures =
        |options: &str| column(&world.ok(&format!("rank --eval wiki-test --format csv {options}")), "mixture");
    assert_eq!(mixtures("--subsets 2..=3").len(), 4);
    assert_eq!(mixtures("--grid 0.5").len(), 6);
    assert_eq!(mixtures("--dirichlet 5").len(), 5);
    assert_eq!(mixtures("--dirichlet 5"), mixtures("--dirichlet 5 --random-seed 0"));
    assert_ne!(mixtures("--dirichlet 5"), mixtures("--dirichlet 5 --random-seed 1"));
    world.write("candidates.txt", "# two of them\ncode=0.9+wiki=0.1\nwiki\n");
    assert_eq!(mixtures("--candidates candidates.txt"), ["wiki", "code=0.9+wiki=0.1"]);
    world.ok("rank --grid 0.5 --csv ranking.csv");
    assert_eq!(mixtures("--candidates ranking.csv"), mixtures("--grid 0.5"));
}

#[test]
fn weighting_by_units_gives_a_partition_of_two_units_twice_the_weight() {
    let world = World::trained();
    let weights = |line: &str| json(&world.ok(&format!("score {line} --format json")))["scores"][0]["weights"].clone();
    assert_eq!(weights("code+wiki")["code"], 0.5);
    assert_eq!(weights("code+wiki --weighting units")["code"], 2.0 / 3.0);
    assert_eq!(weights("code:1+wiki:1")["code"], 0.5);
    assert_eq!(weights("code=2+wiki=2 --normalize")["code"], 0.5);
}

#[test]
fn validate_trains_mixtures_for_real_and_compares() {
    let world = World::trained();
    let rows = world.ok("validate --mixtures 3 --estimator merged --csv agreement.csv --format csv");
    assert_eq!(rows, world.read("agreement.csv"));
    assert_eq!(column(&rows, "eval_set"), ["(mean)", "code-test", "wiki-test"]);
    assert_eq!(column(&rows, "n"), ["3"; 3]);
    assert_eq!(rows, world.ok("validate --mixtures 3 --estimator merged --format csv"));
    let table = world.ok("validate --mixtures 3 --estimator merged");
    assert_eq!(table.lines().count(), 1 + 1, "a table shows the means: {table}");
    let id = world.ok("train --mixture code=0.5+wiki=0.5 --tokens 500");
    assert!(world.path("pool/objects").join(id.trim()).join("model.safetensors").exists());
    assert!(!world.ok("rank --format csv").contains("ground-truth"));
}

#[test]
fn experts_that_moved_too_far_are_pointed_out() {
    let near = World::trained();
    assert_eq!(near.run("show code").stderr, "");
    let far = World::with_recipe(&RECIPE.replace("2e-3", "5e-2"));
    far.ok("train");
    let note = |line: &str| {
        let ran = far.run(line);
        let notes: Vec<String> =
            ran.stderr.lines().filter(|line| line.contains("relative update")).map(str::to_owned).collect();
        assert_eq!(notes.len(), 1, "{ran:?}");
        notes[0].clone()
    };
    assert!(note("show wiki").contains("of 1 expert(s) lies outside"));
    let all = note("validate --mixtures 2 --estimator merged");
    assert!(all.contains("of 4 expert(s) lies outside") && all.contains("code") && all.contains("math"), "{all}");
}

#[test]
fn export_writes_what_was_scored_and_computes_nothing() {
    let world = World::trained();
    world.ok("score code code+wiki");
    let before = world.pool();
    world.ok("export ranking --out ranking.csv");
    world.ok("export scores --out scores.csv");
    assert_eq!(column(&world.read("ranking.csv"), "mixture").len(), 4);
    assert_eq!(column(&world.read("scores.csv"), "cached"), ["true"; 4]);
    assert_eq!(before, world.pool());
}

#[test]
fn an_exported_expert_is_the_expert_byte_for_byte() {
    let world = World::trained();
    let bytes = |folder: std::path::PathBuf| fs::read(folder.join("model.safetensors")).unwrap();
    world.ok("export model wiki --out exported");
    assert_eq!(bytes(world.path("exported")), bytes(world.expert("wiki")));
    world.ok("export model wiki=1+code=0 --out same");
    assert_eq!(bytes(world.path("same")), bytes(world.path("exported")));
    let names: Vec<String> = listing(&world.path("exported")).into_keys().collect();
    assert_eq!(names, ["README.md", "config.json", "model.safetensors", "tokenizer.json"]);
    world.ok("export model code+wiki --out merged");
    assert_ne!(bytes(world.path("merged")), bytes(world.path("exported")));
    world.ok("export model seed --out seed");
    world.refused("export model wiki --out seed", 2, &["'seed' exists already", "--out"]);
}

#[test]
fn verify_finds_a_whole_pool_whole() {
    let world = World::trained();
    world.ok("rank");
    let before = world.pool();
    for line in ["verify", "verify --deep"] {
        let ran = world.run(line);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
        assert!(ran.stderr.contains("are whole"), "{ran:?}");
    }
    assert_eq!(before, world.pool());
}

#[test]
fn files_that_another_process_is_writing_disturb_nobody() {
    let world = World::trained();
    for place in ["objects", "tokens", "partitions", "evals", "work"] {
        let alive = world.path("pool").join(place).join(".tmp-1-0-unfinished"); // process 1 always runs
        fs::create_dir(alive).unwrap();
        fs::create_dir(world.path("pool").join(place).join(".tmp-999999999-0-dead")).unwrap();
    }
    for line in ["ls", "verify --deep", "score all", "train", "show seed"] {
        world.ok(line);
    }
    let left = world.pool();
    assert_eq!(left.keys().filter(|name| name.contains(".tmp-")).count(), 5, "the dead one's are swept: {left:?}");
}

#[test]
fn doing_anything_again_changes_nothing() {
    let world = World::trained();
    world.ok("score all");
    let before = world.pool();
    for line in [
        "init recipe.yaml",
        "register code code.txt --units 2",
        "register wiki wiki.jsonl.gz --text-field content",
        "eval-set code-test code-test.txt",
        "train",
        "train seed wiki",
        "score all",
        "ls",
        "show code",
    ] {
        world.ok(line);
        assert_eq!(before, world.pool(), "'{line}' changed the pool");
    }
}

#[test]
fn a_new_partition_leaves_old_experts_and_scores_alone() {
    let world = World::registered();
    world.write("more.txt", text(&sentences("general", 9, 60)));
    world.ok("train");
    world.ok("rank");
    let before = world.models();
    world.ok("register more more.txt");
    world.ok("train");
    let after = world.models();
    assert!(before.iter().all(|(name, hash)| after.get(name) == Some(hash)));
    assert_eq!(after.len(), before.len() + 2);
    let csv = ["code", "code+math+wiki", "more"].map(|mixture| world.ok(&format!("score {mixture} --format csv")));
    assert_eq!(csv.map(|csv| column(&csv, "cached")[0].clone()), ["true", "true", "false"]);
}

#[test]
fn stdout_is_data_and_stderr_is_progress_and_quiet_means_silence() {
    let world = World::registered();
    let train = world.run("train");
    assert!(train.stdout.is_empty() && train.stderr.contains("seed model: 3072 tokens in"), "{train:?}");
    let score = world.run("score all --format json");
    json(&score.stdout);
    assert!(score.stderr.contains("score: 1 mixtures in"), "{score:?}");
    for line in ["-q rank", "--quiet train --mixture code+math", "-q register again math.txt", "-q verify", "-q ls"] {
        let ran = world.run(line);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    }
}

#[test]
fn a_misspelt_name_is_met_with_the_right_one() {
    let world = World::trained();
    for (line, hint) in [
        ("score wikii", "did you mean 'wiki'?"),
        ("score code+mth", "did you mean 'math'?"),
        ("score all --eval wiki-tset", "did you mean 'wiki-test'?"),
        ("rank --eval code-tes", "did you mean 'code-test'?"),
        ("train coed", "did you mean 'code'?"),
        ("train --mixture wki", "did you mean 'wiki'?"),
        ("export model maths --out x", "did you mean 'math'?"),
        ("export ranking --eval wiki-tst --out x", "did you mean 'wiki-test'?"),
        ("show nothing", "'mixpool ls' lists the names"),
    ] {
        world.refused(line, 2, &[hint]);
    }
}

#[test]
fn what_has_to_come_first_is_named() {
    let world = World::texts();
    world.refused("ls", 10, &["no pool at 'pool'", "mixpool init"]);
    world.ok("tokenizer train general.txt --vocab 300 --out tokenizer.json");
    world.ok("init recipe.yaml");
    world.refused("rank", 2, &["no partition yet", "mixpool register"]);
    world.refused("score code", 2, &["unknown partition 'code'"]);
    world.refused("export model seed --out x", 2, &["mixpool train seed"]);
    world.ok("register code code.txt");
    world.refused("score code", 2, &["no eval set yet", "mixpool eval-set"]);
    world.ok("eval-set test code-test.txt");
    world.refused("score code", 2, &["no expert yet for 'code'", "mixpool train code"]);
    world.ok("train");
    world.ok("score code");
}

#[test]
fn the_pool_may_lie_anywhere() {
    let world = World::trained();
    let elsewhere = tempfile::tempdir().unwrap();
    let here = |line: &str, pool: &std::path::Path| {
        let output = world.command(line).current_dir(elsewhere.path()).env("MIXPOOL_POOL", pool).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(here("ls", &world.path("pool")), world.ok("ls"));
    fs::rename(world.path("pool"), world.path("moved")).unwrap();
    assert_eq!(here("rank", &world.path("moved")), world.ok("rank --pool moved"));
}
