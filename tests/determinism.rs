//! Determinism: what is trained and scored depends on text, recipe and mixture, and on nothing else.

mod world;

use std::fs;
use world::{World, gzip, is_any, jsonl, sentences};

/// The hash of the tokens a partition or eval set is bound to.
fn tokens(world: &World, binding: &str) -> String {
    world.tokens(binding).file_name().unwrap().to_string_lossy().into_owned()
}

fn with_threads(threads: usize) -> World {
    let world = World::registered();
    world.ok(&format!("train --threads {threads}"));
    world.ok(&format!("rank --threads {threads} --csv ranking.csv"));
    world.ok(&format!("score code=0.3+wiki=0.7 code=0.1+math=0.9 --threads {threads}"));
    world.ok("export ranking --out everything.csv");
    world
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let one = with_threads(1);
    for threads in [2, 4] {
        let more = with_threads(threads);
        assert_eq!(one.models(), more.models(), "{threads} threads");
        assert_eq!(one.read("ranking.csv"), more.read("ranking.csv"), "{threads} threads");
        assert_eq!(one.read("everything.csv"), more.read("everything.csv"), "{threads} threads");
    }
}

#[test]
fn two_pools_of_the_same_text_hold_the_same_objects() {
    let (first, second) = (World::trained(), World::trained());
    first.ok("rank");
    second.ok("rank");
    // Manifests, score records and estimates hold the seconds that were spent; everything else is equal to the byte.
    let timed = |name: &str| {
        let is_manifest = name.starts_with("objects/") && name.ends_with("manifest.json");
        is_manifest || name.starts_with("estimates/") || is_any(name, &["log"])
    };
    let stable = |world: &World| world.pool().into_iter().filter(|(name, _)| !timed(name)).collect::<Vec<_>>();
    assert_eq!(stable(&first), stable(&second));
}

#[test]
fn tokens_are_named_by_the_text_alone() {
    let world = World::registered();
    let documents = sentences("code", 2, 120); // those of code.txt
    let plain = fs::read(world.path("code.txt")).unwrap();
    fs::create_dir(world.path("elsewhere")).unwrap();
    world.write("elsewhere/other-name.md", &plain);
    world.write("code.txt.gz", gzip(&plain));
    world.write("code.txt.zst", zstd::encode_all(plain.as_slice(), 3).unwrap());
    world.write("code.jsonl", jsonl(&documents, "text"));
    world.write("nested.jsonl", jsonl(&documents, "body"));
    world.write("first.jsonl", jsonl(&documents[..50], "text"));
    world.write("second.jsonl", jsonl(&documents[50..], "text"));
    for (name, files) in [
        ("elsewhere", "elsewhere/other-name.md"),
        ("gzip", "code.txt.gz"),
        ("zstd", "code.txt.zst"),
        ("json", "code.jsonl"),
        ("field", "nested.jsonl --text-field body"),
        ("parts", "first.jsonl second.jsonl"),
    ] {
        world.ok(&format!("register {name} {files} --units 2"));
        let binding = |name: &str| tokens(&world, &format!("partitions/{name}"));
        assert_eq!(binding("code"), binding(name), "{name}");
    }
    world.ok("register reversed second.jsonl first.jsonl");
    assert_ne!(tokens(&world, "partitions/code"), tokens(&world, "partitions/reversed"));
}

#[test]
fn partitions_may_have_other_names_and_another_order() {
    let nll = |world: &World, mixture: &str| {
        let printed = world.ok(&format!("score {mixture} --eval held-out --format json"));
        let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
        printed["scores"][0]["nll_sum"].as_f64().unwrap().to_bits()
    };
    let pool = |names: [&str; 3]| {
        let world = World::texts();
        world.ok("tokenizer train general.txt code.txt math.txt --vocab 320 --out tokenizer.json");
        world.ok("init recipe.yaml");
        let mut files = ["code.txt", "math.txt", "wiki.jsonl.gz --text-field content"].to_vec();
        let mut names = names.to_vec();
        if names[0] > names[2] {
            files.reverse();
            names.reverse();
        }
        for (name, files) in names.iter().zip(files) {
            world.ok(&format!("register {name} {files}"));
        }
        world.ok("eval-set held-out code-test.txt");
        world.ok("train");
        world
    };
    let (straight, reversed) = (pool(["a", "b", "c"]), pool(["z", "y", "x"]));
    assert_eq!(straight.models(), reversed.models());
    for (here, there) in [("a+b+c", "x+y+z"), ("a=0.7+c=0.3", "x=0.3+z=0.7"), ("b", "y"), ("all", "all")] {
        assert_eq!(nll(&straight, here), nll(&reversed, there), "{here}");
    }
}

#[test]
fn scores_do_not_depend_on_what_was_scored_before() {
    let (together, alone) = (World::trained(), World::trained());
    let ranking = together.ok("rank --format csv");
    for mixture in ["math+wiki", "code", "code+wiki", "math", "wiki", "code+math+wiki", "code+math"] {
        for eval in ["wiki-test", "code-test"] {
            alone.ok(&format!("score {mixture} --eval {eval}"));
        }
    }
    assert_eq!(ranking, alone.ok("rank --format csv"));
}
