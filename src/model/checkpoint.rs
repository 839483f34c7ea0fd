//! Checkpoint: the parameters of a model in a Hugging Face folder, mapped for reading or written anew.

use super::{Layout, ModelConfig};
use crate::error::{Error, Result};
use crate::files;
use crate::kernels::{Floats, weighted_sum};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// File name of the parameters inside a model folder.
pub(super) const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
/// How many differences a refusal lists.
const SHOWN: usize = 5;
/// A header larger than this is refused unread; 100,000 tensors need about 12 MiB.
const MAX_HEADER: u64 = 16 << 20;

/// A safetensors file, mapped; its float tensors can be read at any alignment.
pub struct Checkpoint {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Maps `model.safetensors` of a model folder.
    ///
    /// # Errors
    /// As [`Checkpoint::open_file`].
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_file(&folder.join(WEIGHTS))
    }

    /// Maps a safetensors file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::Damaged`] when it is not a valid safetensors file or holds a
    /// tensor that is not f32, bf16 or f16.
    pub fn open_file(path: &Path) -> Result<Self> {
        let map = files::map(path)?;
        let damaged = |problem: String| Error::damaged(path, problem);
        let declared = map.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        let declared = declared.ok_or_else(|| damaged("shorter than a safetensors header".into()))?;
        if declared > MAX_HEADER {
            return Err(damaged(format!("a header of {declared} bytes; at most {MAX_HEADER} are accepted")));
        }
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| damaged(error.to_string()))?;
        let data = header + 8;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                return Err(damaged(format!("tensor '{name}' is {:?}; expected F32, BF16 or F16", info.dtype)));
            }
            let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
            tensors.insert(name, Entry { dtype: info.dtype, shape: info.shape.clone(), bytes });
        }
        Ok(Self { path: path.to_path_buf(), map, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes, sorted.
    pub fn layout(&self) -> Layout {
        Layout::from_shapes(self.tensors.iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect())
    }

    /// The values of one tensor, as they lie in the file.
    pub fn tensor(&self, name: &str) -> Option<Floats<'_>> {
        let entry = self.tensors.get(name)?;
        let bytes = &self.map[entry.bytes.clone()];
        Some(match entry.dtype {
            Dtype::BF16 => Floats::BF16(bytes),
            Dtype::F16 => Floats::F16(bytes),
            _ => Floats::F32(bytes),
        })
    }

    /// All values as f32, in the order of `layout`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when names or shapes differ from the layout's.
    pub fn read(&self, layout: &Layout) -> Result<Vec<f32>> {
        self.check(layout)?;
        let mut values = vec![0f32; layout.len()];
        for parameter in layout.parameters() {
            let source = self.tensor(&parameter.name).map(|source| (1.0, source));
            weighted_sum(&mut values[parameter.range()], source.as_slice());
        }
        Ok(values)
    }

    /// Refuses a checkpoint whose tensors are not those of `layout`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first differences, expected then got.
    pub fn check(&self, layout: &Layout) -> Result<()> {
        let differences = layout.differences(&self.layout());
        if differences.is_empty() {
            return Ok(());
        }
        let mut shown = differences.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
        if differences.len() > SHOWN {
            shown.push_str(&format!("; and {} more", differences.len() - SHOWN));
        }
        Err(Error::Mismatch {
            what: format!("'{}' does not fit the pool's model", self.path.display()),
            differences: shown,
        })
    }
}

/// Writes `config.json` and `model.safetensors` (f32, sorted by name) into `folder`, flushed to the disk.
///
/// The bytes depend on the arguments alone. `values` lie in the order of `layout`.
pub fn write_checkpoint(folder: &Path, config: &ModelConfig, layout: &Layout, values: &[f32]) -> Result<()> {
    files::write_durably(&folder.join(CONFIG), &files::to_json(&transformers_config(config))?)?;
    write_tensors(&folder.join(WEIGHTS), layout, values)
}

/// Writes one safetensors file (f32, sorted by name), flushed to the disk; `values` lie in the order of `layout`.
///
/// The safetensors crate's own writer is not used: it makes files that only their owner may read, does not flush them,
/// and orders its metadata at random.
pub fn write_tensors(path: &Path, layout: &Layout, values: &[f32]) -> Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"})); // `transformers` insists on it
    for parameter in layout.parameters() {
        let range = parameter.range();
        let entry = json!({"dtype": "F32", "shape": parameter.shape, "data_offsets": [range.start * 4, range.end * 4]});
        header.insert(parameter.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = files::Writer::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    let mut bytes = Vec::with_capacity(1 << 18);
    for block in values.chunks(1 << 16) {
        bytes.clear();
        bytes.extend(block.iter().flat_map(|value| value.to_le_bytes()));
        file.write(&bytes)?;
    }
    file.close()
}

/// Reads `config.json` of a Llama model folder.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::Input`] when it describes something else than a Llama model.
pub fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join(CONFIG);
    let place = path.display().to_string();
    let mut value: Value =
        serde_json::from_str(&files::read_text(&path)?).map_err(|error| Error::input(&place, error.to_string()))?;
    let family = value["model_type"].as_str().unwrap_or("(none)");
    if family != "llama" {
        return Err(Error::input(&place, format!("'model_type' is '{family}'; expected 'llama'")));
    }
    if !value["rope_scaling"].is_null() {
        return Err(Error::input(&place, "'rope_scaling' is not supported yet; expected null"));
    }
    let number = |key: &str| value[key].as_u64();
    if let (None, Some(hidden), Some(heads)) =
        (number("head_dim"), number("hidden_size"), number("num_attention_heads"))
    {
        value["head_dim"] = json!(hidden.checked_div(heads).unwrap_or(0));
    }
    // `transformers` 5 keeps the base of the rotary frequencies in `rope_parameters`.
    if value["rope_theta"].is_null() {
        let nested = value["rope_parameters"]["rope_theta"].clone();
        value["rope_theta"] = if nested.is_null() { json!(10_000.0) } else { nested };
    }
    if value["tie_word_embeddings"].is_null() {
        value["tie_word_embeddings"] = json!(false);
    }
    let config: ModelConfig = serde_json::from_value(value).map_err(|error| Error::input(&place, error.to_string()))?;
    config.check(&place)?;
    Ok(config)
}

/// The `config.json` from which `transformers` builds the same model.
fn transformers_config(config: &ModelConfig) -> Value {
    let mut value = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "rope_scaling": null,
        "torch_dtype": "float32",
        "use_cache": true,
    });
    if let (Value::Object(value), Ok(Value::Object(shape))) = (&mut value, serde_json::to_value(config)) {
        value.extend(shape);
    }
    value
}
