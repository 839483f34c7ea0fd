//! Imported: models from elsewhere as they are published, with other names, buffers and repeated tensors; what of their
//! description is written back; and families that are not known, which are merged and exported all the same.

mod common;
mod world;

use mixpool::Error;
use mixpool::kernels::Exec;
use mixpool::merge::average;
use mixpool::model::{
    Activation, Checkpoint, Family, FloatType, Layout, ModelConfig, Sequences, Transformer, read_config,
    write_checkpoint, write_description, write_tensors,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use world::World;

/// The `config.json` of a small model.
fn config(model_type: &str) -> Value {
    match model_type {
        "gpt2" => json!({
            "model_type": "gpt2", "vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
            "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "n_ctx": 64,
        }),
        "gpt_neox" => json!({
            "model_type": "gpt_neox", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, "rotary_pct": 0.25,
            "rotary_emb_base": 10000, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "use_parallel_residual": true,
        }),
        _ => json!({
            "model_type": "llama", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": true,
        }),
    }
}

fn with(mut config: Value, changes: &Value) -> Value {
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// Reads a config as if it were the `config.json` of a folder.
fn read(config: &Value) -> mixpool::Result<ModelConfig> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    read_config(folder.path())
}

/// A safetensors file of tensors given by type, shape and bytes.
fn write_file(path: &Path, tensors: &BTreeMap<String, (&str, Vec<usize>, Vec<u8>)>) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string().into_bytes();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
}

/// The tensors of a model as a file would hold them.
fn tensors(layout: &Layout, weights: &[f32]) -> BTreeMap<String, (&'static str, Vec<usize>, Vec<u8>)> {
    let bytes = |range: std::ops::Range<usize>| weights[range].iter().flat_map(|value| value.to_le_bytes()).collect();
    layout.parameters().iter().map(|p| (p.name.clone(), ("F32", p.shape.clone(), bytes(p.range())))).collect()
}

#[test]
fn a_bare_gpt2_with_its_masks_is_read_as_the_whole_model() {
    let config = read(&config("gpt2")).unwrap();
    let layout = Layout::of(&config);
    let weights = common::weights(&layout);
    let mut published: BTreeMap<_, _> = tensors(&layout, &weights)
        .into_iter()
        .map(|(name, tensor)| (name.strip_prefix("transformer.").unwrap().to_owned(), tensor))
        .collect();
    for layer in 0..2 {
        let mask = ("F32", vec![1, 1, 4, 4], vec![0; 64]);
        published.insert(format!("h.{layer}.attn.bias"), mask);
        published.insert(format!("h.{layer}.attn.masked_bias"), ("F32", vec![], vec![0; 4]));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write_file(&file, &published);
    let checkpoint = Checkpoint::open_model(folder.path(), &config).unwrap();
    assert_eq!(common::bits(&checkpoint.read(&layout).unwrap()), common::bits(&weights));

    // A vector of that name is a parameter of something else, and is not passed over.
    published.insert("h.0.attn.bias".into(), ("F32", vec![4], vec![0; 16]));
    write_file(&file, &published);
    let checkpoint = Checkpoint::open_model(folder.path(), &config).unwrap();
    let error = checkpoint.read(&layout).unwrap_err().to_string();
    assert!(error.contains("'h.0.attn.bias' is not expected"), "{error}");
}

#[test]
fn an_old_pythia_with_its_buffers_is_read() {
    let config = read(&config("gpt_neox")).unwrap();
    let layout = Layout::of(&config);
    let weights = common::weights(&layout);
    let mut published = tensors(&layout, &weights);
    let part = |name: &str| format!("gpt_neox.layers.0.attention.{name}");
    published.insert(part("bias"), ("BOOL", vec![1, 1, 4, 4], vec![1; 16]));
    published.insert(part("masked_bias"), ("F16", vec![], vec![0; 2]));
    published.insert(part("rotary_emb.inv_freq"), ("F32", vec![2], vec![0; 8]));
    let folder = tempfile::tempdir().unwrap();
    write_file(&folder.path().join("model.safetensors"), &published);
    let read = |folder: &Path| Checkpoint::open_model(folder, &config).unwrap().read(&layout).unwrap();
    assert_eq!(common::bits(&read(folder.path())), common::bits(&weights));
    // What transformers 5 calls the output matrix inside.
    let output = published.remove("embed_out.weight").unwrap();
    published.insert("lm_head.weight".into(), output);
    write_file(&folder.path().join("model.safetensors"), &published);
    assert_eq!(common::bits(&read(folder.path())), common::bits(&weights));
}

#[test]
fn a_tied_model_may_repeat_its_embedding_and_nothing_else() {
    for (model_type, embedding) in [("llama", "model.embed_tokens.weight"), ("gpt2", "transformer.wte.weight")] {
        let config = read(&config(model_type)).unwrap();
        let layout = Layout::of(&config);
        let mut published = tensors(&layout, &common::weights(&layout));
        published.insert("lm_head.weight".into(), published[embedding].clone());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        write_file(&file, &published);
        assert!(Checkpoint::open_model(folder.path(), &config).unwrap().check(&layout).is_ok());

        *published.get_mut("lm_head.weight").unwrap().2.last_mut().unwrap() ^= 1;
        write_file(&file, &published);
        let error = Checkpoint::open_model(folder.path(), &config).err().unwrap().to_string();
        for part in ["'lm_head.weight' is not the same as", embedding, "set it to false"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn what_configs_of_gpts_leave_out_is_what_transformers_assumes() {
    let least = json!({"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 8, "n_inner": null});
    let gpt2 = read(&least).unwrap();
    assert_eq!((gpt2.intermediate_size, gpt2.hidden_act, gpt2.rms_norm_eps), (128, Activation::GeluNew, 1e-5));
    assert!(gpt2.tie_word_embeddings);
    let least = json!({
        "model_type": "gpt_neox", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "max_position_embeddings": 8,
    });
    let neox = read(&least).unwrap();
    assert_eq!((neox.partial_rotary_factor, neox.rope_theta, neox.rms_norm_eps), (Some(0.25), 10_000.0, 1e-5));
    assert_eq!((neox.hidden_act, neox.use_parallel_residual, neox.attention_bias), (Activation::Gelu, true, true));
    assert!(!neox.tie_word_embeddings);
    let new = with(least.clone(), &json!({"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0}}));
    let old = with(least, &json!({"rotary_pct": 0.5, "rotary_emb_base": 500}));
    assert_eq!(read(&new).unwrap(), read(&old).unwrap());
}

#[test]
fn options_that_would_make_another_model_are_refused() {
    for (model_type, changes, said) in [
        ("gpt2", json!({"activation_function": "relu"}), "'activation_function' is \"relu\""),
        ("gpt2", json!({"scale_attn_weights": false}), "'scale_attn_weights'"),
        ("gpt2", json!({"scale_attn_by_inverse_layer_idx": true}), "'scale_attn_by_inverse_layer_idx'"),
        ("gpt2", json!({"add_cross_attention": true}), "'add_cross_attention'"),
        ("gpt2", json!({"n_head": 5}), "5 heads do not divide a width of 32"),
        ("gpt2", json!({"n_embd": null}), "missing field `n_embd`"),
        ("gpt_neox", json!({"hidden_act": "relu"}), "'hidden_act' is \"relu\""),
        ("gpt_neox", json!({"rotary_pct": 0.01}), "rotary positions turn 0 of the 16"),
        ("gpt_neox", json!({"rotary_pct": 2.0}), "rotary positions turn 32 of the 16"),
        ("gpt_neox", json!({"rotary_pct": 0.2}), "rotary positions turn 3 of the 16"),
        ("gpt_neox", json!({"rope_scaling": {"type": "yarn"}}), "'yarn'"),
    ] {
        let error = read(&with(config(model_type), &changes)).unwrap_err().to_string();
        assert!(error.contains(said), "{changes}: {error}");
    }
}

#[test]
fn sequences_beyond_the_learned_positions_are_refused() {
    let config = read(&config("gpt2")).unwrap();
    let layout = Layout::of(&config);
    let new = |context| {
        let weights = common::flat(common::weights(&layout));
        Transformer::new(&config, &layout, &weights, context, Exec::Alone)
    };
    let error = new(65).err().unwrap().to_string();
    assert!(error.contains("65 tokens") && error.contains("64 learned positions ('n_positions')"), "{error}");
    let ids = common::tokens(0, 64, 320);
    assert!(new(64).unwrap().logits(Sequences { tokens: &ids, lengths: &[64] }).is_ok());
}

/// A model of no family that anything here knows.
fn strange(folder: &Path, shift: f32) -> Layout {
    let shapes = [("blocks.0.mix.weight", vec![3, 5]), ("blocks.0.mix.attn.bias", vec![3]), ("scale", vec![1])];
    let layout = Layout::from_shapes(shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect());
    let values: Vec<f32> = (0..layout.len()).map(|i| i as f32 + shift).collect();
    fs::create_dir_all(folder).unwrap();
    write_tensors(&folder.join("model.safetensors"), &layout, &values).unwrap();
    fs::write(folder.join("config.json"), STRANGE).unwrap();
    layout
}

/// Not as anything here would write it, so that a copy is told from a rewrite.
const STRANGE: &str = "{\"model_type\": \"mixer\" , \"vocab_size\":  320, \"depth\": 1e0}";

#[test]
fn a_family_that_is_not_known_is_merged_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let layout = strange(&path("a"), 0.0);
    strange(&path("b"), 8.0);
    let config = read_config(&path("a")).unwrap();
    assert_eq!((config.model_type, config.vocab_size), (Family::Other, 320));
    let open = ["a", "b"].map(|name| Checkpoint::open_model(&path(name), &config).unwrap());
    assert_eq!(open[0].layout(), layout);
    let mut merged = vec![0.0; layout.len()];
    average(&mut merged, &layout, &[(0.75, &open[0]), (0.25, &open[1])]).unwrap();

    fs::create_dir(path("out")).unwrap();
    write_description(&path("out"), &config, FloatType::Float32, Some(&path("a"))).unwrap();
    write_tensors(&path("out/model.safetensors"), &layout, &merged).unwrap();
    assert_eq!(fs::read_to_string(path("out/config.json")).unwrap(), STRANGE);
    let read = Checkpoint::open(&path("out")).unwrap().read(&layout).unwrap();
    assert_eq!(read, (0..layout.len()).map(|i| i as f32 + 2.0).collect::<Vec<_>>());

    let flat = common::flat(merged);
    let error = Transformer::new(&config, &layout, &flat, 8, Exec::Alone).err().unwrap();
    assert!(matches!(error, Error::Usage(_)), "{error}");
    assert!(error.to_string().contains("is not known") && error.to_string().contains("gpt_neox"), "{error}");
    assert!(write_checkpoint(&path("out"), &config, &layout, &[]).is_err(), "there is no config to write");
}

const IMPORT: &str = "\
from: model
tokenizer: tokenizer.json
expert: {tokens: 800, learning_rate: 2e-3, batch_size: 4, sequence_length: 32}
";

/// A world with a tokenizer of 320 entries and a folder `model`, empty yet.
fn prepared() -> World {
    let world = World::texts();
    world.ok("tokenizer train general.txt code.txt math.txt --vocab 320 --out tokenizer.json");
    fs::create_dir(world.path("model")).unwrap();
    world.write("import.yaml", IMPORT);
    world
}

#[test]
fn a_pool_of_a_family_that_is_not_known_says_so_when_it_should_train() {
    let world = prepared();
    strange(&world.path("model"), 0.0);
    let ran = world.run("init import.yaml");
    assert!(ran.code == Some(0) && ran.stderr.contains("can be merged and exported"), "{ran:?}");
    world.ok("register code code.txt");
    world.refused("train", 2, &["is not known", "merged and exported"]);
    world.ok("export model seed --out out");
    assert_eq!(world.read("out/config.json"), STRANGE);
    let bytes = |name: &str| fs::read(world.path(name)).unwrap();
    assert_eq!(bytes("out/model.safetensors"), bytes("model/model.safetensors"));
    // Experts come from elsewhere, and are compared by name and shape.
    let layout = strange(&world.path("one"), 8.0);
    strange(&world.path("two"), 4.0);
    world.ok("adopt one one");
    world.ok("adopt two two");
    world.ok("export model one=0.25+two=0.75 --out merged");
    let merged = Checkpoint::open(&world.path("merged")).unwrap().read(&layout).unwrap();
    assert_eq!(merged, (0..layout.len()).map(|i| i as f32 + 5.0).collect::<Vec<_>>());
    world.ok("eval-set code-test code-test.txt");
    world.refused("score one", 2, &["is not known"]);
    world.ok("verify --deep");
}

#[test]
fn ids_of_special_tokens_and_settings_of_generation_are_written_back() {
    let generation = "{\"temperature\": 0.7}";
    let fields =
        json!({"bos_token_id": 7, "eos_token_id": [8, 9], "pad_token_id": null, "resid_pdrop": 0.3, "no_such": 1});
    let world = prepared();
    let described = with(config("gpt2"), &fields);
    let model = read(&described).unwrap();
    let layout = Layout::of(&model);
    write_checkpoint(&world.path("model"), &model, &layout, &common::weights(&layout)).unwrap();
    world.write("model/config.json", described.to_string());
    world.write("model/generation_config.json", generation);
    world.ok("init import.yaml");
    world.ok("register code code.txt");
    world.ok("train");
    for mixture in ["seed", "code"] {
        world.ok(&format!("export model {mixture} --out {mixture}"));
        let written: Value = serde_json::from_str(&world.read(&format!("{mixture}/config.json"))).unwrap();
        for (key, value) in fields.as_object().unwrap().iter().filter(|(key, _)| *key != "no_such") {
            assert_eq!(written[key], *value, "{mixture}: {key}");
        }
        assert!(written.get("no_such").is_none(), "what it means is not known");
        assert_eq!(world.read(&format!("{mixture}/generation_config.json")), generation);
        assert_eq!(read(&written).unwrap(), model);
    }
    world.write("model/generation_config.json", "[]");
    world.run("--pool other init import.yaml").failed(1, &["generation_config.json"]);
}

#[test]
fn gpts_are_trained_from_scratch_by_the_fields_of_their_own_configs() {
    for model_type in ["gpt2", "gpt_neox"] {
        let recipe = world::RECIPE.replace("model: pico", &format!("model: {}", config(model_type)));
        let world = World::with_recipe(&recipe);
        world.ok("train");
        let scores: Value = serde_json::from_str(&world.ok("score code=0.5+wiki=0.5 --format json")).unwrap();
        for score in scores["scores"].as_array().unwrap() {
            let loss = score["loss"].as_f64().unwrap();
            assert!(
                (1.0..5.7).contains(&loss),
                "{loss}: an untrained model has ln 320 = 5.77, a small one is not that good"
            );
        }
        let pool: Value = serde_json::from_str(&world.read("pool/pool.json")).unwrap();
        assert_eq!(pool["model"]["model_type"], model_type);
        if model_type == "gpt2" {
            world.write("long.yaml", recipe.replace("sequence_length: 32", "sequence_length: 65"));
            world.run("--pool long init long.yaml").failed(1, &["65 tokens", "64 learned positions"]);
        }
    }
}
