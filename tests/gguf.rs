//! GGUF: values, models and tokenizers of files written by gguf-py (`scripts/reference/gguf_file.py`), and a pool from one.
//!
//! The expected logits are float64 throughout; tolerances are those of `golden_model.rs`, for the same reasons.

mod common;
mod world;

use common::{assert_within, bits, distance, flat, golden, ids, largest, number, numbers, relative, tokens};
use mixpool::gguf::Gguf;
use mixpool::kernels::Exec;
use mixpool::model::{Layout, ModelConfig, Sequences, Transformer, read_config, read_gguf, read_gguf_config};
use mixpool::text::{Tokenizer, gguf_prefix, gguf_tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use world::World;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/gguf/{name}.gguf"))
}

fn open(name: &str) -> Gguf {
    Gguf::open(&fixture(name)).unwrap()
}

/// A fixture with every place where `from` stands replaced by `to`, of the same length, opened.
fn with(name: &str, from: &[u8], to: &[u8]) -> mixpool::Result<Gguf> {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(fixture(name)).unwrap();
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert!(!places.is_empty(), "{name} does not hold it");
    places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
    opened(&bytes)
}

fn opened(bytes: &[u8]) -> mixpool::Result<Gguf> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Gguf::open(file.path())
}

/// A metadata entry that is a text, as it lies in a file.
fn text_entry(key: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    [text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat()
}

/// A metadata entry that is a u32 or f32, as it lies in a file.
fn entry(key: &str, kind: u32, bits: u32) -> Vec<u8> {
    let length = (key.len() as u64).to_le_bytes();
    [&length[..], key.as_bytes(), &kind.to_le_bytes(), &bits.to_le_bytes()].concat()
}

#[track_caller]
fn refused<T>(outcome: mixpool::Result<T>, parts: &[&str]) {
    let error = outcome.err().expect("an error").to_string();
    for part in parts {
        assert!(error.contains(part), "expected '{part}': {error}");
    }
}

#[test]
fn values_of_every_type_are_those_of_gguf_py_to_the_bit() {
    let file = open("types");
    let names = file.tensors().keys().filter(|name| !name.ends_with(".expected"));
    let mut types = 0;
    for name in names {
        let (got, expected) = (file.values(name).unwrap(), file.values(&format!("{name}.expected")).unwrap());
        assert_eq!(bits(&got), bits(&expected), "{name}");
        types += 1;
    }
    assert_eq!(types, 13);
}

#[test]
fn configs_are_those_that_transformers_writes() {
    for (name, case) in golden("gguf")["models"].as_object().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), case["config"].to_string()).unwrap();
        let expected = read_config(folder.path()).unwrap();
        assert_eq!(read_gguf_config(&open(name)).unwrap(), expected, "{name}");
    }
}

/// The model of a fixture.
fn model(name: &str) -> (ModelConfig, Layout, Vec<f32>) {
    let file = open(name);
    let config = read_gguf_config(&file).unwrap();
    let layout = Layout::of(&config);
    let values = read_gguf(&file, &config, &layout).unwrap();
    (config, layout, values)
}

#[test]
fn logits_and_losses_are_those_of_transformers() {
    for (name, case) in golden("gguf")["models"].as_object().unwrap() {
        let (config, layout, values) = model(name);
        let rows = tokens(0, 34, config.vocab_size);
        let inputs = [&rows[..16], &rows[17..33]].concat();
        let targets = [&rows[1..17], &rows[18..]].concat();
        let batch = || Sequences { tokens: &inputs, lengths: &[16, 16] };
        let model = Transformer::new(&config, &layout, &flat(values), 16, Exec::Split).unwrap();
        let logits: Vec<Vec<f32>> = model.logits(batch()).unwrap().to_vec2().unwrap();
        let expected = numbers(&case["logits"]);
        let error = distance(&logits[31], &expected) / largest(&expected);
        assert_within(1e-6, [error], &format!("{name}: logits"));
        let (loss, _) = common::loss_and_gradient(&model, &config, &layout, batch(), &targets);
        assert_within(1e-7, [relative(loss, number(&case["loss"]))], &format!("{name}: loss"));
    }
}

#[test]
fn only_the_rows_of_queries_and_keys_of_llama_are_moved() {
    let file = open("llama");
    let (config, layout, values) = model("llama");
    for (ours, theirs) in [("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("o_proj", "attn_output")]
    {
        let stored = file.values(&format!("blk.1.{theirs}.weight")).unwrap();
        let read = &values[layout.parameter(&format!("model.layers.1.self_attn.{ours}.weight")).unwrap().range()];
        let row = |values: &[f32], row: usize| bits(&values[row * 32..(row + 1) * 32]);
        let is_moved = matches!(ours, "q_proj" | "k_proj");
        for at in 0..stored.len() / 32 {
            let (head, inside) = (at / config.head_dim, at % config.head_dim);
            let from = if is_moved { head * 8 + inside % 4 * 2 + inside / 4 } else { at };
            assert_eq!(row(read, at), row(&stored, from), "{ours}, row {at}");
        }
    }
}

/// The tokenizer of a file, and what it makes of texts.
fn encodes(file: &Gguf, samples: &Value, what: &str) {
    let tokenizer = Tokenizer::from_json(&gguf_tokenizer(file).unwrap(), what).unwrap();
    for sample in samples.as_array().unwrap() {
        let text = sample["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, what).unwrap(), ids(&sample["ids"]), "{what}: {text:?}");
    }
}

#[test]
fn byte_level_tokenizers_split_as_their_patterns_say() {
    let bytes = std::fs::read(fixture("llama")).unwrap();
    let entry = text_entry("tokenizer.ggml.pre", "smollm");
    let at = (0..bytes.len()).find(|at| bytes[*at..].starts_with(&entry)).unwrap();
    for (pre, samples) in golden("gguf")["byte_level"].as_object().unwrap() {
        let changed = text_entry("tokenizer.ggml.pre", pre);
        // Tensors move with the header; room for that at the end keeps them inside the file.
        let file = [&bytes[..at], &changed, &bytes[at + entry.len()..], &[0; 64]].concat();
        encodes(&opened(&file).unwrap(), samples, pre);
    }
}

#[test]
fn sentence_piece_tokenizers_give_the_ids_of_sentence_piece() {
    let file = open("sentencepiece");
    encodes(&file, &golden("gguf")["sentence_piece"], "sentencepiece");
    assert_eq!(gguf_prefix(&file).unwrap(), Some(1));
}

#[test]
fn the_prefix_is_bos_or_eos() {
    assert_eq!(gguf_prefix(&open("llama")).unwrap(), Some(1));
    let without = with("llama", b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.b0s_token_id").unwrap();
    assert_eq!(gguf_prefix(&without).unwrap(), Some(0));
    assert_eq!(gguf_prefix(&open("qwen2")).unwrap(), None);
}

#[test]
fn what_is_not_supported_is_named() {
    let config = |from: &[u8], to: &[u8]| with("llama", from, to).and_then(|file| read_gguf_config(&file));
    refused(
        config(&text_entry("general.architecture", "llama"), &text_entry("general.architecture", "gemma")),
        &["'general.architecture' is \"gemma\"", "llama, qwen2, qwen3, olmo2"],
    );
    let (blocks, heads) = (entry("llama.block_count", 4, 2), entry("llama.attention.head_count", 4, 4));
    refused(config(&blocks, &entry("llama.block_count", 4, 2_000_000_000)), &["'block_count' is 2000000000"]);
    refused(config(&blocks, &entry("llama.block_kount", 4, 2)), &["'llama.block_count' is missing from the metadata"]);
    refused(config(&heads, &entry("llama.attention.head_count", 4, 1)), &["'llama.rope.dimension_count' is 8", "32"]);
    refused(config(&heads, &entry("llama.attention.head_count", 4, 0)), &["'llama.rope.dimension_count' is 8"]);
    let eps = |bits| entry("llama.attention.layer_norm_rms_epsilon", 6, bits);
    refused(config(&eps(1e-6f32.to_bits()), &eps(f32::NAN.to_bits())), &["is NaN, expected a finite number"]);
    let experts =
        with("llama", b"llama.context_length", b"llama.context_lengt_").and_then(|file| read_gguf_config(&file));
    refused(experts, &["'llama.context_length' is missing"]);
    let factors = with("llama3", &32f32.to_le_bytes(), &31.5f32.to_le_bytes()).and_then(|file| read_gguf_config(&file));
    refused(factors, &["'rope_freqs.weight' is not what Llama 3 divides frequencies by"]);
    let linear = with("llama_linear_biases", b"linear", b"lonear").and_then(|file| read_gguf_config(&file));
    refused(linear, &["'llama.rope.scaling.type' is \"lonear\"", "expected none or linear"]);
    let scaled = with("llama_linear_biases", b"llama.rope.scaling.factor", b"llama.final_logit_softcap");
    assert!(scaled.is_ok(), "a key that says nothing is passed over");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let read = |from: &[u8], to: &[u8]| {
        let file = with("llama", from, to).unwrap();
        let config = read_gguf_config(&file)?;
        read_gguf(&file, &config, &Layout::of(&config))
    };
    refused(
        read(b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight"),
        &["tensor 'model.layers.1.mlp.down_proj.weight' is missing", "tensor 'blk.1.ffn_dawn.weight' is not expected"],
    );
    refused(read(b"blk.0.attn_q.weight", b"blk.0.attn_o.weight"), &["tensor 'blk.0.attn_q.weight' is missing"]);
    let vocabulary = Gguf::open(&fixture("sentencepiece")).unwrap();
    refused(read_gguf_config(&vocabulary), &["'llama.attention.head_count' is missing"]);
    let file = with("types", &(-3f32).to_le_bytes(), &f32::INFINITY.to_le_bytes()).unwrap();
    refused(file.values("F32"), &["value 0 of tensor 'F32' is not finite"]);
}

#[test]
fn tokenizers_that_are_not_understood_ask_for_a_file() {
    let tokenizer = |from: &[u8], to: &[u8]| with("llama", from, to).and_then(|file| gguf_tokenizer(&file));
    let remedy = "name the model's own tokenizer.json with 'tokenizer' in the recipe";
    refused(tokenizer(b"smollm", b"tekken"), &["'tokenizer.ggml.pre' is \"tekken\"", "smollm", remedy]);
    let (model, other) = (text_entry("tokenizer.ggml.model", "gpt2"), text_entry("tokenizer.ggml.model", "bert"));
    refused(tokenizer(&model, &other), &["'tokenizer.ggml.model' is \"bert\"", remedy]);
    refused(
        tokenizer(b"tokenizer.ggml.merges", b"tokenizer.ggml.merged"),
        &["'tokenizer.ggml.merges' is missing", remedy],
    );
    refused(
        tokenizer(b"<|begin|>", b"<|begin\xff>"),
        &["'tokenizer.ggml.tokens' is a list of 300, expected a list of texts"],
    );
    refused(gguf_tokenizer(&open("qwen2")), &["there is no tokenizer in it", remedy]);
}

#[test]
fn files_of_another_kind_are_refused() {
    refused(with("llama", b"GGUF", b"GGML"), &["not a GGUF file"]);
    refused(with("llama", b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0"), &["GGUF version 1; versions 2 and 3 are read"]);
    refused(with("llama", b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"), &["a big-endian GGUF file"]);
    assert!(with("llama", b"GGUF\x03\0\0\0", b"GGUF\x02\0\0\0").is_ok());
}

const RECIPE: &str = "\
from: model.gguf
window: 16
expert:
  tokens: 800
  learning_rate: 2e-3
  batch_size: 4
  sequence_length: 16
";

#[test]
fn a_pool_starts_from_a_file_and_works_like_any_other() {
    let world = World::texts();
    world.write("model.gguf", std::fs::read(fixture("llama")).unwrap());
    world.write("recipe.yaml", RECIPE);
    world.ok("init recipe.yaml");
    world.ok("init recipe.yaml");
    let settings: Value = serde_json::from_str(&world.read("pool/pool.json")).unwrap();
    assert_eq!((number(&settings["prefix_token"]), number(&settings["model"]["vocab_size"])), (1.0, 300.0));
    world.ok("register code code.txt");
    world.ok("register wiki wiki.jsonl.gz --text-field content");
    world.ok("eval-set code-test code-test.txt");
    world.ok("train");
    world.ok("score code+wiki");
    world.ok("verify --deep");
    // The file again, by way of a folder: the same tensors, so the same scores, though another origin.
    world.ok("export model seed --out folder");
    world.write(
        "recipe.yaml",
        RECIPE.replace("model.gguf", "folder").replace("window", "prefix_token: '<|begin|>'\nwindow"),
    );
    for command in ["init recipe.yaml", "register code code.txt", "register wiki wiki.jsonl.gz --text-field content"] {
        world.ok(&format!("--pool again {command}"));
    }
    world.ok("--pool again eval-set code-test code-test.txt");
    world.ok("--pool again train");
    let scores = |pool: &str| -> Vec<f64> {
        let told: Value =
            serde_json::from_str(&world.ok(&format!("--pool {pool} score code+wiki --format json"))).unwrap();
        told["scores"].as_array().unwrap().iter().map(|row| number(&row["nll_sum"])).collect()
    };
    assert_eq!(scores("pool"), scores("again"));
}

#[test]
fn a_file_without_a_tokenizer_takes_that_of_the_recipe() {
    let world = World::texts();
    world.write("model.gguf", std::fs::read(fixture("llama3")).unwrap());
    world.write("recipe.yaml", RECIPE);
    world.refused("init recipe.yaml", 1, &["model.gguf: there is no tokenizer in it", "'tokenizer' in the recipe"]);
    world.ok("tokenizer train general.txt --vocab 300 --out tokenizer.json");
    world.write("recipe.yaml", format!("tokenizer: tokenizer.json\n{RECIPE}"));
    world.refused("init recipe.yaml", 1, &["the tokenizer has 300 ids, 'vocab_size' is 64"]);
    world.write("model.gguf", "text");
    world.refused(
        "init recipe.yaml",
        1,
        &["model.gguf: not a GGUF file", "'from' names a model folder or a .gguf file"],
    );
}
