//! Low-rank update: a `LoRA` adapter in PEFT's format, as what it adds to the matrices of the model it was trained on.
//!
//! Hu et al. 2021 (arXiv 2106.09685): W + s B A, with B `[out, rank]`, A `[rank, in]` and s = α / rank, or α / √rank where the
//! config says `use_rslora`. The update stays in factors, on disk and in memory; a merge multiplies them into its sum.

use super::Layout;
use super::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::files;
use crate::kernels::LowRankFactors;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// File names of a PEFT folder.
pub const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
/// What PEFT writes before the names of the model it wraps.
const WRAPPED: &str = "base_model.model.";

/// An adapter, mapped.
pub struct LowRankUpdate {
    file: Checkpoint,
    parts: BTreeMap<String, Part>, // by the name of the tensor that is updated
}

/// The remedy for what is more than a low-rank update.
const WHOLE: &str = "make a whole model of it (merge_and_unload of peft) and adopt that";

/// Where the factors of one tensor's update lie.
struct Part {
    a: String,
    b: String,
    rank: usize,
    scale: f64,
    /// Whether the tensor lies in its file as `[in, out]`: a `Conv1D`, or an embedding.
    transposed: bool,
}

/// What `adapter_config.json` must say; what changes the meaning of the factors is refused.
#[derive(Deserialize)]
struct AdapterConfig {
    peft_type: String,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

impl LowRankUpdate {
    /// Whether a folder holds an adapter rather than a model.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(ADAPTER_FILES[0]).exists()
    }

    /// Maps the adapter in `folder`, made for models of `layout`; `tied` when their output matrix is the embedding.
    ///
    /// # Errors
    /// [`Error::Input`] when the config is not one of plain `LoRA`, [`Error::Damaged`] as [`Checkpoint::open_file`],
    /// [`Error::Mismatch`] with everything that does not fit the layout.
    pub fn open(folder: &Path, layout: &Layout, tied: bool) -> Result<Self> {
        let [config, weights] = ADAPTER_FILES.map(|name| folder.join(name));
        let config = AdapterConfig::read(&config)?;
        let file = Checkpoint::open_file(&weights)?;
        let (mut parts, mut problems) = (BTreeMap::new(), Vec::new());
        for tensor in file.layout().parameters() {
            match part(&config, &file, layout, tied, &tensor.name) {
                Ok(Some((target, part))) => drop(parts.insert(target, part)),
                Ok(None) => {} // the other factor, found with the first
                Err(problem) => problems.push(problem),
            }
        }
        if parts.is_empty() && problems.is_empty() {
            problems.push("it updates no tensor".into());
        }
        if problems.is_empty() {
            return Ok(Self { file, parts });
        }
        let what = format!("'{}' does not fit the pool's model", weights.display());
        Err(Error::Mismatch { what, differences: problems.join("; ") })
    }

    /// Names of the tensors that are updated, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// The update of one tensor; none when it stays as it is.
    pub fn factors(&self, name: &str) -> Option<LowRankFactors> {
        let part = self.parts.get(name)?;
        let (a, b) = (self.file.values(&part.a)?, self.file.values(&part.b)?);
        let (rank, scale) = (part.rank, part.scale);
        let (left, right) = if part.transposed { (transpose(&a, rank), transpose(&b, b.len() / rank)) } else { (b, a) };
        Some(LowRankFactors { left, right, rank, scale })
    }
}

/// The tensor that factor A, called `name`, updates with its factor B; none when `name` is that of a factor B.
fn part(
    config: &AdapterConfig,
    file: &Checkpoint,
    layout: &Layout,
    tied: bool,
    name: &str,
) -> std::result::Result<Option<(String, Part)>, String> {
    let stranger = || format!("'{name}' is no factor of a low-rank update; {WHOLE}");
    let kinds = [(".lora_A.weight", ".lora_B.weight", false), (".lora_embedding_A", ".lora_embedding_B", true)];
    let inner = name.strip_prefix(WRAPPED).ok_or_else(stranger)?;
    for (a, b, embedding) in kinds {
        if let Some(stem) = inner.strip_suffix(b) {
            let other = format!("{WRAPPED}{stem}{a}");
            return if file.shape(&other).is_some() { Ok(None) } else { Err(format!("'{other}' is missing")) };
        }
        let Some(stem) = inner.strip_suffix(a) else { continue };
        if embedding && tied {
            return Err(format!("'{name}' updates an embedding that is also the output matrix; {WHOLE}"));
        }
        let other = format!("{WRAPPED}{stem}{b}");
        let shape = |name: &str| match file.shape(name) {
            Some(&[rows, columns]) if rows * columns > 0 => Ok([rows, columns]),
            Some(shape) => Err(format!("'{name}' is {shape:?}; expected a matrix")),
            None => Err(format!("'{name}' is missing")),
        };
        let ([rank, inputs], [outputs, columns]) = (shape(name)?, shape(&other)?);
        let transposed = embedding || config.fan_in_fan_out;
        let updated = if transposed { [inputs, outputs] } else { [outputs, inputs] };
        // The model may be wrapped once more than its file's names show, as GPT-2 is by `transformer.`.
        let names = [Some(stem), stem.split_once('.').map(|(_, rest)| rest)].into_iter().flatten();
        let targets: Vec<String> = names.map(|stem| format!("{stem}.weight")).collect();
        let target = targets.iter().find_map(|target| layout.parameter(target).ok());
        let target =
            target.ok_or_else(|| format!("'{name}' updates '{}', which the model does not have", targets[0]))?;
        if columns != rank || target.shape != updated {
            let shapes =
                format!("A {:?} and B {:?} do not update {:?}", [rank, inputs], [outputs, columns], target.shape);
            return Err(format!("'{}': {shapes}", target.name));
        }
        let part = Part { a: name.to_owned(), b: other, rank, scale: config.scale(stem, rank), transposed };
        return Ok(Some((target.name.clone(), part)));
    }
    Err(stranger())
}

impl AdapterConfig {
    fn read(path: &Path) -> Result<Self> {
        let refuse = |problem: String| Error::input(path.display(), problem);
        let config: Self = serde_json::from_str(&files::read_text(path)?).map_err(|error| refuse(error.to_string()))?;
        if config.peft_type != "LORA" {
            return Err(refuse(format!("'peft_type' is '{}'; expected LORA", config.peft_type)));
        }
        for option in ["use_dora", "use_qalora", "lora_bias", "layer_replication", "alora_invocation_tokens"] {
            if config.rest.get(option).is_some_and(|value| !value.is_null() && value != &Value::Bool(false)) {
                return Err(refuse(format!("'{option}' is set, which is more than a low-rank update; {WHOLE}")));
            }
        }
        if let Some(bias) = config.rest.get("bias").filter(|bias| **bias != "none") {
            return Err(refuse(format!("'bias' is {bias}, expected \"none\"; {WHOLE}")));
        }
        let start = config.rest.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if ["pissa", "olora", "corda", "loftq"].iter().any(|changing| start.starts_with(changing)) {
            return Err(refuse(format!("'init_lora_weights' is '{start}', which changes the model below; {WHOLE}")));
        }
        let pattern = config.alpha_pattern.keys().find(|key| key.contains(|c: char| "^$*+?()[]{}|\\".contains(c)));
        match pattern {
            Some(key) => {
                Err(refuse(format!("'alpha_pattern' has the pattern '{key}'; only plain names are read; {WHOLE}")))
            }
            None => Ok(config),
        }
    }

    /// What multiplies B A of the layer called `stem`.
    fn scale(&self, stem: &str, rank: usize) -> f64 {
        let is_named = |key: &str| stem == key || stem.ends_with(&format!(".{key}"));
        let own = self.alpha_pattern.iter().find(|(key, _)| is_named(key)).map(|(_, alpha)| *alpha);
        let rank = rank as f64;
        own.unwrap_or(self.lora_alpha) / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// A row-major matrix of `rows` rows, transposed.
fn transpose(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    let at = |index: usize| values[index % rows * columns + index / rows];
    (0..values.len()).map(at).collect()
}
