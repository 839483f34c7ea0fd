//! Shared by the tests: golden files, and the weights and tokens that `scripts/reference/common.py` makes by the same
//! integer hash.
#![allow(dead_code, clippy::print_stdout)] // every test program uses a part of this; errors are shown on demand

use candle_core::{Device, Tensor};
use mixpool::kernels::{Compute, DeviceChoice, Precision};
use mixpool::model::{Layout, ModelConfig, Sequences, Transformer, Weights, config_of};
use mixpool::text::TokenFile;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::OnceLock;

/// Reads `tests/golden/NAME.json` of the source that this was built from, or below the current folder.
pub(crate) fn golden(name: &str) -> Value {
    let path = |root: &str| format!("{root}/tests/golden/{name}.json");
    let read = std::fs::read_to_string(path(env!("CARGO_MANIFEST_DIR")));
    serde_json::from_str(&read.or_else(|_| std::fs::read_to_string(path("."))).unwrap()).unwrap()
}

/// The model a golden file was made with; a config that names its family is read as Hugging Face's.
pub(crate) fn config(golden: &Value) -> ModelConfig {
    match golden["config"].as_object() {
        Some(fields) if fields.contains_key("model_type") => config_of(fields.clone(), "golden").unwrap(),
        _ => serde_json::from_value(golden["config"].clone()).unwrap(),
    }
}

/// A number.
pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// All numbers of a list, lists in it included, in order.
pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().map_or_else(|| vec![number(value)], |list| list.iter().flat_map(numbers).collect())
}

/// All token ids of a list, lists in it included, in order.
pub(crate) fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|id| id as u32).collect()
}

/// FNV-1a over the bytes of a name.
pub(crate) fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The `index`-th output of `SplitMix64` started at `seed`.
pub(crate) fn splitmix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// `count` values uniform in [−scale/2, scale/2).
pub(crate) fn spread(name: &str, count: usize, scale: f32) -> Vec<f32> {
    let seed = fnv1a64(name);
    (0..count as u64).map(|i| ((splitmix(seed, i) >> 40) as f32 / 16_777_216.0 - 0.5) * scale).collect()
}

/// The reference programs' values: uniform in [−0.1, 0.1).
pub(crate) fn values(name: &str, count: usize) -> Vec<f32> {
    spread(name, count, 0.2)
}

/// The reference programs' weights in the order of `layout`: matrices and biases around 0, gains around 1.
pub(crate) fn weights(layout: &Layout) -> Vec<f32> {
    let tensor = |p: &mixpool::model::Parameter| {
        let base = if p.decays() || p.name.rsplit('.').next() == Some("bias") { 0.0 } else { 1.0 };
        values(&p.name, p.len()).into_iter().map(move |value| base + value)
    };
    layout.parameters().iter().flat_map(tensor).collect()
}

/// The reference programs' tokens `start..start + count` for a vocabulary of `vocabulary`.
pub(crate) fn tokens(start: usize, count: usize, vocabulary: usize) -> Vec<u32> {
    (start..start + count).map(|i| (splitmix(0x1234_5678, i as u64) % vocabulary as u64) as u32).collect()
}

/// A vector as a tensor.
pub(crate) fn flat(values: Vec<f32>) -> Tensor {
    let length = values.len();
    Tensor::from_vec(values, length, &Device::Cpu).unwrap()
}

/// The mean loss of a batch and its gradient, in the order of `layout`.
pub(crate) fn loss_and_gradient(
    model: &Transformer,
    config: &ModelConfig,
    layout: &Layout,
    batch: Sequences<'_>,
    targets: &[u32],
) -> (f64, Vec<f32>) {
    let gradient = flat(vec![0.0; layout.len()]);
    let views = Weights::views(config, layout, &gradient).unwrap();
    let loss = model.loss_and_gradient(batch, None, targets, 1.0, &views).unwrap();
    (loss, gradient.to_vec1().unwrap())
}

/// √Σ xᵢ² in f64.
pub(crate) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// The larger of two errors; NaN when one of them is.
pub(crate) fn worse(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

/// The largest |gotᵢ − expectedᵢ|.
pub(crate) fn distance(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(got, expected)| (f64::from(*got) - expected).abs()).fold(0.0, worse)
}

/// The largest |valueᵢ|.
pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().map(|value| value.abs()).fold(0.0, worse)
}

/// |got / expected − 1|.
pub(crate) fn relative(got: f64, expected: f64) -> f64 {
    ((got - expected) / expected).abs()
}

/// Fails when the worst error exceeds the tolerance, and prints both (seen with `cargo test -- --nocapture`).
#[track_caller]
pub(crate) fn assert_within(tolerance: f64, errors: impl IntoIterator<Item = f64>, what: &str) {
    let worst = errors.into_iter().fold(0.0, worse);
    println!("{what}: error {worst:.1e}, tolerance {tolerance:.0e}");
    assert!(worst <= tolerance, "{what}: error {worst:e} exceeds {tolerance:e}");
}

/// The device that CUDA kernels are tested on, if it was chosen.
static CHOSEN: OnceLock<DeviceChoice> = OnceLock::new();

/// Has CUDA kernels tested on a device, unless they have been already.
pub(crate) fn choose(device: DeviceChoice) {
    let _ = CHOSEN.set(device);
}

/// Where CUDA kernels are tested: where it was chosen, in the emulation where it was built, else on the first GPU.
pub(crate) fn compute(precision: Precision) -> Compute {
    static OPENED: OnceLock<Compute> = OnceLock::new(); // one queue for all tests: contexts are slow to open
    let built = if cfg!(feature = "cuda-emulation") { DeviceChoice::Emulated(1) } else { DeviceChoice::Cuda(None) };
    let open = || CHOSEN.get_or_init(|| built).open(Precision::F32).unwrap();
    OPENED.get_or_init(open).in_precision(precision)
}

/// The bits of every value, so that comparisons see −0 and NaN.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Writes a token folder that holds `documents`, as `src/text/tokens.rs` describes it, and opens it.
pub(crate) fn token_file(folder: &Path, documents: &[Vec<u32>]) -> TokenFile {
    let n_tokens: usize = documents.iter().map(Vec::len).sum();
    let ids: Vec<u8> = documents.iter().flatten().flat_map(|id| (*id as u16).to_le_bytes()).collect();
    let entry = |ids: &Vec<u32>| [(ids.len() as u64).to_le_bytes(), [1, 0, 0, 0, 0, 0, 0, 0], [0; 8], [0; 8]].concat();
    let manifest = json!({
        "hash": "given", "tokenizer": "none", "id_bytes": 2, "n_tokens": n_tokens, "n_bytes": documents.len(),
        "n_docs": documents.len(), "sources": [],
    });
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("tokens.bin"), ids).unwrap();
    std::fs::write(folder.join("documents.bin"), documents.iter().flat_map(entry).collect::<Vec<u8>>()).unwrap();
    std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    TokenFile::open(folder).unwrap()
}
