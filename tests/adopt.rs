//! Adopt: experts trained elsewhere, checked whole, merged, scored, kept and handed on.

mod world;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use world::{World, edit};

/// A world with a trained pool and folders of its experts as if they came from elsewhere: f32, bf16, and a bf16 export again.
fn world() -> World {
    let world = World::trained();
    world.ok("export model math --out math-f32");
    world.ok("export model math --out math-bf16 --dtype bf16");
    world
}

/// An object folder as a model from elsewhere: without the pool's own files.
fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Header and data of a safetensors file.
fn tensors(path: &Path) -> (Value, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

fn write_tensors(path: &Path, header: &Value, data: &[u8]) {
    let header = header.to_string().into_bytes();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()).unwrap();
}

fn loss(world: &World, mixture: &str) -> f64 {
    let table: Value =
        serde_json::from_str(&world.ok(&format!("score {mixture} --eval wiki-test --format json"))).unwrap();
    table["scores"][0]["loss"].as_f64().unwrap()
}

#[test]
fn an_adopted_expert_scores_as_the_one_it_is() {
    let world = world();
    let said = world.run("adopt theirs math-f32");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("1 expert(s) adopted, relative update 0."), "{said:?}");
    assert_eq!(loss(&world, "theirs"), loss(&world, "math"));
    assert_eq!(loss(&world, "theirs=0.25+wiki=0.75"), loss(&world, "math=0.25+wiki=0.75"));
    assert!((loss(&world, "theirs+wiki") - loss(&world, "code")).abs() > 1e-3, "all models are the same here");
    let again = world.run("adopt theirs math-f32");
    assert!(again.stderr.contains("were adopted already"), "{again:?}");
    // Numbers of another type are said and read as they are.
    let said = world.run("adopt short math-bf16");
    assert!(said.stderr.contains("is bfloat16, the seed model float32"), "{said:?}");
    let difference = loss(&world, "short") - loss(&world, "math");
    assert!(difference != 0.0 && difference.abs() < 0.05, "{difference}");
    world.ok("rank --subsets 2");
    world.ok("verify --deep");
    world.ok("train"); // nothing to train for them
    world.ok("ls");
    let shown: Value = serde_json::from_str(&world.ok("show theirs --format json")).unwrap();
    assert_eq!(shown[0]["start"], "imported");
}

#[test]
fn without_text_an_adopted_partition_is_merged_and_not_trained_on_until_it_has_some() {
    let world = world();
    world.ok("adopt theirs math-f32");
    for command in ["train --mixture theirs+wiki", "rank --estimator regmean", "online --method uniform"] {
        let ran = world.run(command);
        assert_eq!(ran.code, Some(2), "{command}: {ran:?}");
        assert!(ran.stderr.contains("mixpool register theirs FILE..."), "{command}: {ran:?}");
    }
    let before = loss(&world, "theirs");
    world.ok("register theirs math.txt");
    assert_eq!(loss(&world, "theirs"), before, "text changes no expert");
    world.ok("register theirs math.txt");
    let other = world.run("register theirs code.txt");
    assert!(other.stderr.contains("already registered with other content"), "{other:?}");
    world.ok("train --mixture theirs+wiki --tokens 800");
    world.ok("rank --estimator regmean --subsets 2");
    world.ok("verify --deep");
    let trained = world.run("adopt math math-f32");
    assert!(trained.stderr.contains("trained already"), "{trained:?}");
    let units = world.run("adopt two math-f32 math-bf16");
    assert_eq!(units.code, Some(0), "{units:?}");
    let units = world.run("adopt two math-f32");
    assert!(units.stderr.contains("has 2 unit(s), 1 model(s)"), "{units:?}");
}

#[test]
fn every_difference_is_listed_at_once_and_nothing_is_kept() {
    let world = world();
    let objects = world.files("objects").len();
    let (mut header, data) = tensors(&world.path("math-f32/model.safetensors"));
    let fields = header.as_object_mut().unwrap();
    let norm = fields.remove("model.norm.weight").unwrap();
    fields.insert("model.other.weight".into(), norm);
    write_tensors(&world.path("math-f32/model.safetensors"), &header, &data);
    change_json(&world.path("math-f32/config.json"), |config| {
        config["rope_theta"] = json!(5.0);
        config["tie_word_embeddings"] = json!(false);
        config["max_position_embeddings"] = json!(7); // no difference that matters
    });
    change_json(&world.path("math-bf16/tokenizer.json"), |tokenizer| tokenizer["model"]["merges"] = json!([]));
    let ran = world.run("adopt theirs math-f32 math-bf16");
    assert_eq!((ran.code, ran.stderr.lines().count()), (Some(1), 1), "{ran:?}");
    for expected in [
        "'math-f32': ",
        "model.norm.weight",
        "model.other.weight",
        "'rope_theta' expected 10000.0, got 5.0",
        "'tie_word_embeddings' expected true, got false",
        "'math-bf16': 'tokenizer.json' gives other ids",
    ] {
        assert!(ran.stderr.contains(expected), "{expected}: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("max_position"), "{ran:?}");
    assert_eq!(world.files("objects").len(), objects);
    assert_eq!(world.run("show theirs").code, Some(2));
}

#[test]
fn a_tokenizer_that_differs_only_in_what_it_says_of_batches_is_the_same() {
    let world = world();
    change_json(&world.path("math-f32/tokenizer.json"), |tokenizer| {
        tokenizer["padding"] = json!({"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
                                      "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    });
    world.ok("adopt theirs math-f32");
}

#[test]
fn adapters_are_kept_low_rank_and_merged_as_whole_models_are() {
    let world = world();
    // An adapter of rank 1 for one matrix, with PEFT's names, and the whole model it makes.
    let (header, data) = tensors(&world.path("math-f32/model.safetensors"));
    world.ok("export model seed --out seed");
    let (_, seed) = tensors(&world.path("seed/model.safetensors"));
    let name = "model.layers.1.self_attn.q_proj.weight";
    let place = |i| header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    let a: Vec<f32> = (0..32).map(|i| (i as f32 - 15.5) / 64.0).collect();
    let b: Vec<f32> = (0..32).map(|i| ((i * 7 % 32) as f32 - 15.5) / 64.0).collect();
    let mut whole = seed.clone();
    for (row, b) in b.iter().enumerate() {
        for (column, a) in a.iter().enumerate() {
            let at = place(0) + (row * 32 + column) * 4;
            let value = f32::from_le_bytes(*whole[at..].first_chunk().unwrap()) + 4.0 * b * a;
            whole[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    assert_eq!(data.len(), seed.len());
    write_tensors(&world.path("math-f32/model.safetensors"), &header, &whole);
    world.ok("adopt whole math-f32");
    fs::create_dir(world.path("lora")).unwrap();
    world.write("lora/adapter_config.json", json!({"peft_type": "LORA", "lora_alpha": 4, "r": 1}).to_string());
    let stem = "base_model.model.model.layers.1.self_attn.q_proj";
    let factors = json!({
        format!("{stem}.lora_A.weight"): {"dtype": "F32", "shape": [1, 32], "data_offsets": [0, 128]},
        format!("{stem}.lora_B.weight"): {"dtype": "F32", "shape": [32, 1], "data_offsets": [128, 256]},
    });
    let bytes: Vec<u8> = a.iter().chain(&b).flat_map(|value| value.to_le_bytes()).collect();
    write_tensors(&world.path("lora/adapter_model.safetensors"), &factors, &bytes);
    world.ok("adopt lora lora");
    for (adapter, model) in [("lora", "whole"), ("lora=0.3+code=0.7", "whole=0.3+code=0.7"), ("lora+whole", "whole")] {
        let difference = loss(&world, adapter) - loss(&world, model);
        assert!(difference.abs() < 1e-6, "{adapter}: {difference}");
    }
    assert!((loss(&world, "lora") - loss(&world, "math")).abs() > 1e-3);
    let size = |file: &Path| fs::metadata(file).unwrap().len();
    let files = world.files("objects");
    let adapter = files.iter().find(|file| file.ends_with("adapter_model.safetensors")).unwrap();
    assert!(size(adapter) < 1000);
    for estimator in ["ensemble", "first-order", "best-expert"] {
        world.ok(&format!("rank --estimator {estimator} --subsets 2"));
    }
    world.ok("export model lora --out lora-whole");
    let (_, exported) = tensors(&world.path("lora-whole/model.safetensors"));
    let values = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect::<Vec<_>>();
    assert!(values(&exported).iter().zip(values(&whole)).all(|(a, b)| (a - b).abs() < 1e-6));
    world.ok("verify --deep");
    edit(adapter, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let found = world.run("verify --deep");
    assert!(found.code == Some(12) && found.stderr.contains("mixpool --pool"), "{found:?}");
}

#[test]
fn a_model_goes_through_a_pool_without_losing_a_bit() {
    let world = world();
    world.write(
        "from.yaml",
        "from: math-bf16\nwindow: 32\nexpert: {learning_rate: 1e-3, sequence_length: 32, batch_size: 4}\n",
    );
    world.ok("--pool second init from.yaml");
    world.ok("--pool second export model seed --out again");
    assert_eq!(tensors(&world.path("again/model.safetensors")), tensors(&world.path("math-bf16/model.safetensors")));
    assert!(world.read("again/config.json").contains("\"bfloat16\""));
    world.ok("--pool second init from.yaml"); // the same pool
    world.ok("--pool second verify --deep");
}

#[test]
fn an_export_says_what_it_is() {
    let world = world();
    world.ok("score code=0.7+wiki=0.3");
    world.ok("export model code=0.7+wiki=0.3 --out merged --dtype f16");
    let card = world.read("merged/README.md");
    for expected in ["code=0.7+wiki=0.3", "| 0.3 |", "| 0.35 |", "float16", "| wiki-test |", "bits per byte"] {
        assert!(card.contains(expected), "{expected}: {card}");
    }
    let wrong = world.run("export model code --out x --dtype bf61");
    assert!(wrong.stderr.contains("did you mean 'bf16'"), "{wrong:?}");
    world.ok("export mergekit code=0.7+wiki=0.3 --out merge.yaml");
    let yaml = world.read("merge.yaml");
    assert!(yaml.contains("merge_method: linear") && yaml.contains("normalize: false"), "{yaml}");
    assert_eq!(yaml.matches("weight: 0.35").count(), 2, "{yaml}");
}
