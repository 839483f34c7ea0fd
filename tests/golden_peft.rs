//! Golden PEFT: what adapters add to a model, and the loss of their average, against peft (`scripts/reference/peft_adapters.py`).

mod common;

use common::{assert_within, distance, flat, golden, largest, number, numbers, relative, tokens};
use mixpool::kernels::Exec;
use mixpool::merge::{average, regression_mean};
use mixpool::model::{
    Checkpoint, Layout, LowRankUpdate, ModelConfig, Sequences, Transformer, linear_layers, write_checkpoint,
    write_tensors,
};
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

fn adapter(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft").join(name)
}

/// The tiny Llama that the first two adapters belong to.
struct Tiny {
    config: ModelConfig,
    layout: Layout,
    folder: TempDir,
}

impl Tiny {
    fn new() -> Self {
        let config = common::config(&golden("model_tied"));
        let layout = Layout::of(&config);
        let folder = tempfile::tempdir().unwrap();
        write_checkpoint(folder.path(), &config, &layout, &common::weights(&layout)).unwrap();
        Self { config, layout, folder }
    }

    fn base(&self) -> Checkpoint {
        Checkpoint::open(self.folder.path()).unwrap()
    }

    fn loss(&self, weights: Vec<f32>) -> f64 {
        let rows = tokens(0, 34, self.config.vocab_size);
        let (inputs, targets) = ([&rows[..16], &rows[17..33]].concat(), [&rows[1..17], &rows[18..]].concat());
        let model = Transformer::new(&self.config, &self.layout, &flat(weights), 16, Exec::Split).unwrap();
        let batch = Sequences { tokens: &inputs, lengths: &[16, 16] };
        let rows: Vec<usize> = (0..32).collect();
        model.nll(batch, &rows, &targets).unwrap().iter().sum::<f64>() / 32.0
    }
}

/// Compares the change of every tensor with peft's own update of it.
fn assert_updates(update: &LowRankUpdate, golden: &Value, name: &str) {
    let shapes = golden["shapes"].as_object().unwrap();
    assert!(update.names().eq(shapes.keys()), "{name}");
    for (tensor, shape) in shapes {
        let mut change = vec![0f32; numbers(shape).into_iter().product::<f64>() as usize];
        mixpool::kernels::add_low_rank(&mut change, &[(1.0, update.factors(tensor).unwrap())]);
        let tail = numbers(&golden["tails"][tensor]);
        // Factors are f32 on both sides; here products of at most four of them are added up in f32.
        let error = distance(&change[change.len() - tail.len()..], &tail) / largest(&tail);
        assert_within(1e-6, [error], &format!("{name}: end of {tensor}"));
        let (sum, size) =
            change.iter().fold((0.0, 0.0), |(sum, size), v| (sum + f64::from(*v), size + f64::from(v.abs())));
        let error = (sum - number(&golden["sums"][tensor])).abs() / size;
        assert_within(1e-7, [error], &format!("{name}: sum of {tensor}"));
    }
}

#[test]
fn every_update_is_that_of_peft() {
    let (golden, tiny) = (golden("peft"), Tiny::new());
    for name in ["plain", "rslora"] {
        let update = LowRankUpdate::open(&adapter(name), &tiny.layout, true).unwrap();
        assert_updates(&update, &golden["adapters"][name], name);
    }
    // A GPT-2, whose matrices lie as [in, out]; once with and once without the name that wraps all others in some files.
    let shapes = golden["adapters"]["conv1d"]["shapes"].as_object().unwrap();
    let shape = |shape: &Value| numbers(shape).into_iter().map(|n| n as usize).collect();
    let whole = shapes.iter().map(|(name, dims)| (name.clone(), shape(dims)));
    let update = LowRankUpdate::open(&adapter("conv1d"), &Layout::from_shapes(whole.clone().collect()), true).unwrap();
    assert_updates(&update, &golden["adapters"]["conv1d"], "conv1d");
    let short = whole.map(|(name, dims)| (name.trim_start_matches("transformer.").to_owned(), dims));
    let update = LowRankUpdate::open(&adapter("conv1d"), &Layout::from_shapes(short.collect()), true).unwrap();
    assert!(update.names().all(|name| name.starts_with("h.0.")));
}

#[test]
fn losses_of_adapters_and_of_their_average_are_those_of_transformers() {
    let (golden, tiny) = (golden("peft"), Tiny::new());
    let base = tiny.base();
    let models = ["plain", "rslora"].map(|name| base.with_adapter(&adapter(name), true).unwrap());
    assert_within(1e-7, [relative(tiny.loss(base.read(&tiny.layout).unwrap()), number(&golden["seed_loss"]))], "seed");
    for (model, name) in models.iter().zip(["plain", "rslora"]) {
        let loss = tiny.loss(model.read(&tiny.layout).unwrap());
        assert_within(1e-7, [relative(loss, number(&golden["adapters"][name]["loss"]))], name);
    }
    let members: Vec<_> = numbers(&golden["shares"]).into_iter().zip(&models).collect();
    let mut merged = vec![f32::NAN; tiny.layout.len()];
    average(&mut merged, &tiny.layout, &members).unwrap();
    assert_within(1e-7, [relative(tiny.loss(merged), number(&golden["merged_loss"]))], "average");
}

#[test]
fn an_average_from_factors_is_the_average_of_whole_models() {
    let tiny = Tiny::new();
    let base = tiny.base();
    let adapted = ["plain", "rslora"].map(|name| base.with_adapter(&adapter(name), true).unwrap());
    let folders = [&adapted[0], &adapted[1]].map(|model| {
        let folder = tempfile::tempdir().unwrap();
        write_checkpoint(folder.path(), &tiny.config, &tiny.layout, &model.read(&tiny.layout).unwrap()).unwrap();
        folder
    });
    let whole = folders.each_ref().map(|folder| Checkpoint::open(folder.path()).unwrap());
    let layout = &tiny.layout;
    let mut out = [vec![f32::NAN; layout.len()], vec![f32::NAN; layout.len()]];
    // Also with the base itself and a whole model among them.
    for (out, [a, b, c]) in
        out.iter_mut().zip([[&adapted[0], &adapted[1], &whole[0]], [&whole[0], &whole[1], &whole[0]]])
    {
        average(out, layout, &[(0.2, a), (0.5, b), (0.2, &base), (0.1, c)]).unwrap();
    }
    // Whole models were rounded to f32 once more; values are about 1 at most.
    let differences = out[0].iter().zip(&out[1]).map(|(a, b)| f64::from((a - b).abs()));
    assert_within(1.5e-7, differences, "factors against whole models");

    // RegMean reads experts one by one.
    let names: Vec<_> = linear_layers(&tiny.config).into_iter().map(|names| names[0].clone()).collect();
    let shape = |name: &String| (name.clone(), vec![layout.parameter(name).unwrap().shape[1]; 2]);
    let grams = Layout::from_shapes(names.iter().map(shape).collect());
    let identity =
        grams.parameters().iter().flat_map(|p| (0..p.len()).map(|i| f32::from(u8::from(i % (p.shape[0] + 1) == 0))));
    let file = folders[0].path().join("grams.safetensors");
    write_tensors(&file, &grams, &identity.collect::<Vec<_>>()).unwrap();
    let grams = Checkpoint::open_file(&file).unwrap();
    for (out, models) in out.iter_mut().zip([&adapted, &whole]) {
        let members = [(0.4, &models[0], &grams), (0.6, &models[1], &grams)];
        regression_mean(out, &tiny.config, layout, &members, 0.9).unwrap();
    }
    let differences = out[0].iter().zip(&out[1]).map(|(a, b)| f64::from((a - b).abs()));
    assert_within(3e-7, differences, "RegMean of adapters against whole models");
}

#[test]
fn what_is_more_than_a_low_rank_update_is_refused() {
    let tiny = Tiny::new();
    let [config, weights] = ["adapter_config.json", "adapter_model.safetensors"];
    let refusal = |changed: &str, value: Value| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(adapter("plain").join(weights), folder.path().join(weights)).unwrap();
        let mut said: Value = serde_json::from_slice(&std::fs::read(adapter("plain").join(config)).unwrap()).unwrap();
        said[changed] = value;
        std::fs::write(folder.path().join(config), said.to_string()).unwrap();
        LowRankUpdate::open(folder.path(), &tiny.layout, true).err().map(|error| error.to_string()).unwrap_or_default()
    };
    for (option, value, expected) in [
        ("peft_type", "IA3".into(), "expected LORA"),
        ("use_dora", true.into(), "'use_dora' is set"),
        ("bias", "all".into(), "'bias' is \"all\""),
        ("init_lora_weights", "pissa_niter_4".into(), "changes the model below"),
        ("alpha_pattern", serde_json::json!({".*q_proj": 3}), "only plain names"),
        ("fan_in_fan_out", true.into(), "do not update [32, 48]"),
    ] {
        let error = refusal(option, value);
        assert!(error.contains(expected), "{option}: {error}");
    }
    assert_eq!(refusal("r", 99.into()), "", "the factors say their rank themselves");
    let error = LowRankUpdate::open(&adapter("conv1d"), &tiny.layout, true).err().unwrap().to_string();
    assert!(error.contains("which the model does not have") && error.matches("lora_A").count() == 3, "{error}");
}
