//! Families: every supported model against transformers' own class (`scripts/reference/families.py`), through the
//! `config.json` that transformers writes; and shards, single files and exports of one model are one model.
//!
//! The expected numbers are float64 throughout; tolerances are those of `golden_model.rs`, for the same reasons.

mod common;

use common::{assert_within, distance, flat, golden, largest, norm, number, numbers, relative, spread, tokens};
use mixpool::error::Error;
use mixpool::eval::{Evaluator, gram_layout};
use mixpool::kernels::{Along, Directions, Exec, add_bias, bias_backward};
use mixpool::merge::{average, regression_mean};
use mixpool::model::{
    Checkpoint, Factors, Layout, ModelConfig, Part, Sequences, Transformer, Weights, linear_layers, read_config,
    write_checkpoint, write_tensors,
};
use mixpool::text::Batch;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

const LENGTHS: [usize; 2] = [16, 16];

/// A family's golden and its model.
struct Case {
    name: String,
    golden: Value,
    config: ModelConfig,
    layout: Layout,
    weights: Vec<f32>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Case {
    fn all() -> Vec<Self> {
        let golden = golden("families");
        golden["cases"].as_object().unwrap().iter().map(|(name, golden)| Self::new(name, golden.clone())).collect()
    }

    fn new(name: &str, golden: Value) -> Self {
        let config = read(&golden["config"]).unwrap();
        let layout = Layout::of(&config);
        let weights = common::weights(&layout);
        let rows = tokens(0, 34, 64);
        let inputs = [&rows[..16], &rows[17..33]].concat();
        let targets = [&rows[1..17], &rows[18..]].concat();
        Self { name: name.to_owned(), golden, config, layout, weights, inputs, targets }
    }

    fn model(&self, weights: &[f32]) -> Transformer {
        Transformer::new(&self.config, &self.layout, &flat(weights.to_vec()), 16, Exec::Split).unwrap()
    }

    fn batch(&self) -> Sequences<'_> {
        Sequences { tokens: &self.inputs, lengths: &LENGTHS }
    }

    fn loss_and_gradient(&self, weights: &[f32]) -> (f64, Vec<f32>) {
        common::loss_and_gradient(&self.model(weights), &self.config, &self.layout, self.batch(), &self.targets)
    }

    /// The golden's second model.
    fn moved(&self) -> Vec<f32> {
        let step = |p: &mixpool::model::Parameter| common::values(&format!("expert {}", p.name), p.len());
        let steps: Vec<f32> = self.layout.parameters().iter().flat_map(step).collect();
        self.weights.iter().zip(steps).map(|(weight, step)| weight + step).collect()
    }

    /// The model in a folder of its own.
    fn folder(&self, weights: &[f32]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        write_checkpoint(folder.path(), &self.config, &self.layout, weights).unwrap();
        folder
    }
}

/// Reads a config as if it were the `config.json` of a folder.
fn read(config: &Value) -> mixpool::Result<ModelConfig> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    read_config(folder.path())
}

#[test]
fn logits_and_losses_are_those_of_transformers() {
    for case in Case::all() {
        let logits: Vec<Vec<f32>> = case.model(&case.weights).logits(case.batch()).unwrap().to_vec2().unwrap();
        let expected = numbers(&case.golden["logits"]);
        let error = distance(&logits[31], &expected) / largest(&expected);
        assert_within(1e-6, [error], &format!("{}: logits", case.name));
        let (loss, _) = case.loss_and_gradient(&case.weights);
        assert_within(1e-7, [relative(loss, number(&case.golden["loss"]))], &format!("{}: loss", case.name));
    }
}

#[test]
fn the_gradient_of_every_tensor_is_that_of_transformers() {
    for case in Case::all() {
        let (_, gradient) = case.loss_and_gradient(&case.weights);
        let norms = case.golden["gradient_norms"].as_object().unwrap();
        assert_eq!(norms.len(), case.layout.parameters().len(), "{}", case.name);
        for parameter in case.layout.parameters() {
            let (name, gradient) = (&parameter.name, &gradient[parameter.range()]);
            let expected = number(&norms[name]);
            assert!(expected > 0.0 && norm(gradient).is_finite(), "{}: {name}", case.name);
            assert_within(1e-6, [relative(norm(gradient), expected)], &format!("{}: norm of {name}", case.name));
            // A norm does not see values in the wrong places, an inner product with something arbitrary does.
            let way = common::values(&format!("way {name}"), gradient.len());
            let product: f64 = gradient.iter().zip(&way).map(|(g, w)| f64::from(*g) * f64::from(*w)).sum();
            let error = (product - number(&case.golden["gradient_ways"][name])).abs() / (expected * norm(&way));
            assert_within(1e-6, [error], &format!("{}: direction of {name}", case.name));
        }
    }
}

#[test]
fn linear_layers_read_what_those_of_transformers_read() {
    for case in Case::all() {
        let grams = gram_layout(&case.config, &case.layout).unwrap();
        let evaluator = Evaluator::new(&case.config, &case.layout, 16).unwrap();
        let copy = |out: &mut [f32]| {
            out.copy_from_slice(&case.weights);
            Ok(())
        };
        evaluator.set(copy).unwrap();
        let batch = Batch { inputs: case.inputs.clone(), targets: case.targets.clone() };
        let matrices = evaluator.grams(&batch, 16).unwrap();
        for names in linear_layers(&case.config) {
            let gram = grams.parameter(&names[0]).unwrap();
            let (width, gram) = (gram.shape[0], &matrices[gram.range()]);
            let trace: f32 = gram.iter().step_by(width + 1).sum();
            for name in &names {
                let expected = numbers(&case.golden["grams"][name]);
                let got = [&gram[..4], &[trace]].concat();
                // Measured against the trace, the sum of all squares. Inputs of later layers have been through some roundings.
                assert_within(
                    1e-6,
                    [distance(&got, &expected) / expected[4]],
                    &format!("{}: Gram of {name}", case.name),
                );
            }
        }
    }
}

/// The merge W solves W Σ wᵢ G̃ᵢ = Σ wᵢ Wᵢ G̃ᵢ, whichever way the matrices of a family lie.
#[test]
fn a_regression_mean_solves_its_equations_in_every_family() {
    let scale = 0.9;
    for case in Case::all() {
        let gram_layout = gram_layout(&case.config, &case.layout).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let experts = [case.weights.clone(), case.moved()].map(|weights| {
            let evaluator = Evaluator::new(&case.config, &case.layout, 16).unwrap();
            let copy = |out: &mut [f32]| {
                out.copy_from_slice(&weights);
                Ok(())
            };
            evaluator.set(copy).unwrap();
            let inputs = tokens(weights[0].to_bits() as usize % 97, 1024, 64);
            let grams = evaluator.grams(&Batch { targets: inputs.clone(), inputs }, 16).unwrap();
            let file = folder.path().join(format!("{}.safetensors", weights[0].to_bits()));
            write_tensors(&file, &gram_layout, &grams).unwrap();
            (case.folder(&weights), Checkpoint::open_file(&file).unwrap(), weights, grams)
        });
        let models = experts.each_ref().map(|(folder, ..)| Checkpoint::open(folder.path()).unwrap());
        let shares = [0.3, 0.7];
        let members: Vec<_> = (0..2).map(|i| (shares[i], &models[i], &experts[i].1)).collect();
        let mut merged = vec![0.0; case.layout.len()];
        regression_mean(&mut merged, &case.config, &case.layout, &members, scale).unwrap();
        for names in linear_layers(&case.config) {
            let gram = gram_layout.parameter(&names[0]).unwrap();
            let width = gram.shape[0];
            let shrunk = |i: usize, row: usize, column: usize| {
                let value = f64::from(experts[i].3[gram.range()][row * width + column]);
                if row == column { value } else { scale * value }
            };
            for name in &names {
                let parameter = case.layout.parameter(name).unwrap();
                let first = case.config.stores_inputs_first(name);
                let at = |values: &[f32], output: usize, input: usize| {
                    let outputs = parameter.len() / width;
                    let index = if first { input * outputs + output } else { output * width + input };
                    f64::from(values[parameter.range()][index])
                };
                let (mut worst, mut largest): (f64, f64) = (0.0, 0.0);
                for (output, column) in (0..parameter.len() / width).flat_map(|o| (0..width).map(move |c| (o, c))) {
                    if (output + column) % 7 != 0 {
                        continue; // a seventh of them will do
                    }
                    let side = |values: &[f32], i: usize| -> f64 {
                        (0..width).map(|k| shares[i] * at(values, output, k) * shrunk(i, k, column)).sum()
                    };
                    let left: f64 = (0..2).map(|i| side(&merged, i)).sum();
                    let right: f64 = (0..2).map(|i| side(&experts[i].2, i)).sum();
                    worst = worst.max((left - right).abs());
                    largest = largest.max(right.abs());
                }
                assert_within(1e-5, [worst / largest], &format!("{}: {name}", case.name));
            }
        }
    }
}

#[test]
fn the_loss_of_a_merge_is_that_of_transformers() {
    let shares = numbers(&golden("families")["shares"]);
    for case in Case::all() {
        let folders = [case.folder(&case.weights), case.folder(&case.moved())];
        let open = folders.each_ref().map(|folder| Checkpoint::open(folder.path()).unwrap());
        let mut merged = vec![0.0; case.layout.len()];
        average(&mut merged, &case.layout, &[(shares[0], &open[0]), (shares[1], &open[1])]).unwrap();
        let (loss, _) = case.loss_and_gradient(&merged);
        let expected = number(&case.golden["merged_loss"]);
        assert!(relative(expected, number(&case.golden["loss"])) > 1e-6, "{}: the merge is no other model", case.name);
        assert_within(1e-7, [relative(loss, expected)], &format!("{}: loss of the merge", case.name));
    }
}

/// Who watches the backward pass sees all of the gradient: biases and the norms of heads too.
#[test]
fn inner_products_are_those_of_gradients_taken_one_sequence_at_a_time() {
    for case in Case::all() {
        // One direction per tensor, so that a tensor that is not seen cannot hide among the others.
        let direction = |p: &mixpool::model::Parameter| {
            let mut direction = vec![0.0; case.layout.len()];
            direction[p.range()].copy_from_slice(&spread(&p.name, p.len(), 2.0));
            direction
        };
        let directions = Directions::new(&case.layout.parameters().iter().map(direction).collect::<Vec<_>>());
        let lengths = [5, 16, 11];
        let batch = Sequences { tokens: &case.inputs, lengths: &lengths };
        let gradient = flat(vec![0.0; case.layout.len()]);
        let views = Weights::views(&case.config, &case.layout, &gradient).unwrap();
        let mut along = Along::new(&directions, &lengths).unwrap();
        let mut see = |part: Part<'_>| match part.factors {
            Factors::Linear { first_row, inputs, outputs } => along.add_linear(part.offset, first_row, inputs, outputs),
            Factors::Bias { outputs } => along.add_bias(part.offset, outputs),
            Factors::Norm { inputs, outputs, eps } => along.add_norm(part.offset, inputs, outputs, eps),
            Factors::LayerNorm { inputs, outputs, eps } => along.add_layer_norm(part.offset, inputs, outputs, eps),
            Factors::Embedding { ids, outputs } => along.add_embedding(part.offset, ids, outputs),
        };
        let model = case.model(&case.weights);
        model.loss_and_gradient_seen(batch, &case.targets, 1.0, &views, &mut see).unwrap();
        let got = along.sums().unwrap();
        let mut start = 0;
        for (sequence, length) in lengths.iter().enumerate() {
            let rows = start..start + length;
            start += length;
            let alone = [*length];
            let one = Sequences { tokens: &case.inputs[rows.clone()], lengths: &alone };
            let targets = &case.targets[rows];
            let (_, gradient) = common::loss_and_gradient(&model, &case.config, &case.layout, one, targets);
            let share = *length as f64 / 32.0;
            for (index, parameter) in case.layout.parameters().iter().enumerate() {
                let values = &gradient[parameter.range()];
                let expected = share * directions.along(&gradient)[index];
                let size = share * norm(values) * (parameter.len() as f64).sqrt();
                let error = (got[index * lengths.len() + sequence] - expected).abs() / size;
                assert_within(2e-6, [error], &format!("{}: {}, sequence {sequence}", case.name, parameter.name));
            }
        }
    }
}

#[test]
fn a_bias_is_added_to_every_row_and_its_gradient_is_their_sum() {
    for (n, width) in [(1, 1), (3, 5), (200, 37)] {
        let (y, bias) = (spread("y", n * width, 2.0), spread("bias", width, 2.0));
        let rows = flat(y.clone()).reshape((n, width)).unwrap();
        add_bias(Exec::Split, &rows, &flat(bias.clone())).unwrap();
        let got: Vec<f32> = rows.flatten_all().unwrap().to_vec1().unwrap();
        let expected: Vec<f32> = y.iter().enumerate().map(|(i, value)| value + bias[i % width]).collect();
        assert_eq!(got, expected);

        let dbias = flat(bias.clone()); // gradients are added to what is there
        bias_backward(Exec::Split, &flat(y.clone()).reshape((n, width)).unwrap(), &dbias).unwrap();
        let column =
            |i: usize| f64::from(bias[i]) + y.iter().skip(i).step_by(width).map(|v| f64::from(*v)).sum::<f64>();
        let expected: Vec<f64> = (0..width).map(column).collect();
        let error = distance(&dbias.to_vec1().unwrap(), &expected) / largest(&expected);
        assert_within(1e-5, [error], "gradient of a bias");
    }
}

#[test]
fn an_exported_folder_is_read_back_byte_for_byte() {
    for case in Case::all() {
        let folder = case.folder(&case.weights);
        assert_eq!(read_config(folder.path()).unwrap(), case.config, "{}", case.name);
        let read = Checkpoint::open(folder.path()).unwrap().read(&case.layout).unwrap();
        assert_eq!(common::bits(&read), common::bits(&case.weights), "{}", case.name);
    }
}

/// Recipes hold configs, and their hashes are the ids of models.
#[test]
fn a_plain_llama_is_described_as_it_was_before_there_were_families() {
    let before = r#"{"vocab_size":512,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"rms_norm_eps":0.00001,"rope_theta":10000.0,"max_position_embeddings":256,"tie_word_embeddings":true}"#;
    let plain = ModelConfig::preset("pico").unwrap();
    assert_eq!(serde_json::to_string(&plain).unwrap(), before);
    assert_eq!(serde_json::from_str::<ModelConfig>(before).unwrap(), plain);
}

/// A small Llama's `config.json` with some fields set, or taken out by null.
fn llama(changes: &Value) -> Value {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

#[test]
fn what_a_config_leaves_out_is_what_transformers_assumes() {
    let read = |changes: Value| read(&llama(&changes)).unwrap();
    let plain = read(json!({}));
    assert_eq!((plain.head_dim, plain.num_key_value_heads, plain.rope_theta), (8, 4, 10_000.0));
    assert!(!plain.tie_word_embeddings);
    let old = read(json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}));
    let new = read(json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}));
    assert_eq!(old, new);
    assert_eq!(read(json!({"model_type": "qwen3", "num_key_value_heads": 2})).head_dim, 128);
    assert_eq!(read(json!({"model_type": "mistral", "num_key_value_heads": 2})).sliding_window, Some(4096));
    assert_eq!(
        read(json!({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": null})).sliding_window,
        None
    );
    let qwen = read(json!({"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 8}));
    assert_eq!(qwen.sliding_window, None, "not used unless 'use_sliding_window' says so");
}

#[test]
fn configs_of_other_models_are_refused_by_name() {
    for (changes, said) in [
        (json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}), "'yarn'"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), "factors must be positive"),
        (json!({"hidden_act": "gelu"}), "'hidden_act'"),
        (json!({"partial_rotary_factor": 0.5}), "'partial_rotary_factor'"),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "'partial_rotary_factor'"),
        (json!({"quantization_config": {"bits": 4}}), "'quantization_config'"),
        (json!({"model_type": "qwen2", "use_sliding_window": true}), "sliding window"),
        (json!({"model_type": "qwen3", "layer_types": ["sliding_attention"]}), "sliding window"),
    ] {
        let error = read(&llama(&changes)).unwrap_err().to_string();
        assert!(error.contains(said), "{changes}: {error}");
    }
}

#[test]
fn a_sliding_window_shorter_than_the_context_is_refused() {
    let case = Case::all().into_iter().find(|case| case.name == "mistral").unwrap();
    let new = |context| Transformer::new(&case.config, &case.layout, &flat(case.weights.clone()), context, Exec::Split);
    assert!(new(16).is_ok());
    let error = new(17).err().unwrap().to_string();
    assert!(error.contains("'sliding_window' is 16") && error.contains("at most 16"), "{error}");
}

/// A model in two shards, with its index.
struct Sharded {
    folder: TempDir,
    layout: Layout,
    weights: Vec<f32>,
    map: Value,
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

impl Sharded {
    fn new() -> Self {
        let layout = Layout::of(&ModelConfig::preset("pico").unwrap());
        let weights = common::weights(&layout);
        let folder = tempfile::tempdir().unwrap();
        let mut map = json!({});
        for (shard, file) in SHARDS.iter().enumerate() {
            let own = layout.parameters().iter().enumerate().filter(|(i, _)| i % 2 == shard).map(|(_, p)| p);
            own.clone().for_each(|parameter| map[&parameter.name] = json!(file));
            let values: Vec<f32> = own.clone().flat_map(|p| weights[p.range()].to_vec()).collect();
            let part = Layout::from_shapes(own.map(|p| (p.name.clone(), p.shape.clone())).collect());
            write_tensors(&folder.path().join(file), &part, &values).unwrap();
        }
        let sharded = Self { folder, layout, weights, map };
        sharded.declare(&json!({"metadata": {"total_size": 1}, "weight_map": sharded.map}).to_string());
        sharded
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn declare(&self, index: &str) {
        std::fs::write(self.path().join("model.safetensors.index.json"), index).unwrap();
    }

    /// What opening says once the map was changed.
    fn refusal(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut map = self.map.clone();
        change(&mut map);
        self.declare(&json!({"weight_map": map}).to_string());
        Checkpoint::open(self.path()).err().unwrap().to_string()
    }
}

#[test]
fn shards_are_read_as_one_checkpoint() {
    let sharded = Sharded::new();
    let checkpoint = Checkpoint::open(sharded.path()).unwrap();
    assert_eq!(checkpoint.read(&sharded.layout).unwrap(), sharded.weights);
    let hash = checkpoint.content_hash().unwrap();
    let mut bytes = std::fs::read(sharded.path().join(SHARDS[1])).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(sharded.path().join(SHARDS[1]), bytes).unwrap();
    assert_ne!(Checkpoint::open(sharded.path()).unwrap().content_hash().unwrap(), hash, "every shard counts");
}

#[test]
fn an_index_may_not_leave_its_folder() {
    let sharded = Sharded::new();
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join(SHARDS[0]);
    std::fs::copy(sharded.path().join(SHARDS[0]), &target).unwrap();
    for name in [target.to_str().unwrap(), "../x.safetensors", "a/b.safetensors", "..", "", "x.bin", "a\nb.safetensors"]
    {
        let error = sharded.refusal(|map| map["model.norm.weight"] = json!(name));
        assert!(error.contains("not the plain name"), "{name}: {error}");
    }
    std::os::unix::fs::symlink(&target, sharded.path().join("link.safetensors")).unwrap();
    let error = sharded.refusal(|map| map["model.norm.weight"] = json!("link.safetensors"));
    assert!(error.contains("a link out of the folder"), "{error}");
    std::fs::create_dir(sharded.path().join("folder.safetensors")).unwrap();
    let error = sharded.refusal(|map| map["model.norm.weight"] = json!("folder.safetensors"));
    assert!(error.contains("not a regular file"), "{error}");
    let error = sharded.refusal(|map| map["model.norm.weight"] = json!("gone.safetensors"));
    assert!(error.contains("'gone.safetensors' cannot be read"), "{error}");
}

#[test]
fn shards_that_are_not_as_declared_are_refused_by_tensor() {
    let sharded = Sharded::new();
    let (name, file) = sharded.map.as_object().unwrap().iter().next().unwrap();
    let other = SHARDS.iter().find(|shard| json!(shard) != *file).unwrap();
    let error = sharded.refusal(|map| map["no.such.tensor"] = file.clone());
    assert!(error.contains("'no.such.tensor' is missing from"), "{error}");
    let error = sharded.refusal(|map| drop(map.as_object_mut().unwrap().remove(name)));
    assert!(error.contains(&format!("'{name}' of ")) && error.contains("is not declared"), "{error}");
    let error = sharded.refusal(|map| map[name] = json!(other));
    assert!(error.contains(&format!("'{name}' is declared in ")), "{error}");
    sharded.declare(&format!(r#"{{"weight_map": {{"a": "{other}", "a": "{other}"}}}}"#));
    let error = Checkpoint::open(sharded.path()).err().unwrap().to_string();
    assert!(error.contains("'a' is declared twice"), "{error}");
    sharded.declare(r#"{"weight_map": {}}"#);
    assert!(matches!(Checkpoint::open(sharded.path()), Err(Error::Input { .. })));

    let sharded = Sharded::new();
    std::fs::copy(sharded.path().join(SHARDS[0]), sharded.path().join(SHARDS[1])).unwrap();
    let error = Checkpoint::open(sharded.path()).err().unwrap().to_string();
    assert!(error.contains("is also in"), "{error}");
}

#[test]
fn pickled_weights_are_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pytorch_model.bin"), b"PK").unwrap();
    let error = Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("pytorch_model.bin") && error.contains("convert them to safetensors"), "{error}");
}

#[test]
fn buffers_that_follow_from_the_config_are_passed_over() {
    let layout = Layout::of(&ModelConfig::preset("pico").unwrap());
    let buffer = ("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vec![4]);
    let shapes = layout.parameters().iter().map(|p| (p.name.clone(), p.shape.clone())).chain([buffer]).collect();
    let whole = Layout::from_shapes(shapes);
    let folder = tempfile::tempdir().unwrap();
    write_tensors(&folder.path().join("model.safetensors"), &whole, &vec![0.5; whole.len()]).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap().check(&layout).is_ok());
}
