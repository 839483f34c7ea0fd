//! Model folder: parameters and config written as `transformers` reads them.

use super::checkpoint::WEIGHTS;
use super::config_file::{CONFIG, transformers_config};
use super::{FloatType, Layout, ModelConfig};
use crate::error::{Error, Result};
use crate::files;
use serde_json::{Value, json};
use std::path::Path;

/// Writes `config.json` and `model.safetensors` (f32, sorted by name) into `folder`, flushed to the disk.
///
/// The bytes depend on the arguments alone. `values` lie in the order of `layout`.
pub fn write_checkpoint(folder: &Path, config: &ModelConfig, layout: &Layout, values: &[f32]) -> Result<()> {
    write_checkpoint_as(FloatType::Float32, folder, config, layout, values)
}

/// As [`write_checkpoint`], with values rounded to `dtype`.
///
/// # Errors
/// [`Error::NotFinite`] when a value is too large for it.
pub fn write_checkpoint_as(
    dtype: FloatType,
    folder: &Path,
    config: &ModelConfig,
    layout: &Layout,
    values: &[f32],
) -> Result<()> {
    if let Some(index) = values.iter().position(|value| !dtype.holds(*value)) {
        let name = layout.owner(index).map_or("(unknown)", |parameter| &parameter.name);
        let what = format!("tensor '{name}' as {}", dtype.name());
        return Err(Error::NotFinite { what, place: format!("one of its values is {}", values[index]) });
    }
    let config = transformers_config(config, dtype);
    files::write_durably(&folder.join(CONFIG), &files::to_json(&config)?)?;
    write(dtype, &folder.join(WEIGHTS), layout, values)
}

/// Writes one safetensors file (f32, sorted by name), flushed to the disk; `values` lie in the order of `layout`.
pub fn write_tensors(path: &Path, layout: &Layout, values: &[f32]) -> Result<()> {
    write(FloatType::Float32, path, layout, values)
}

/// The safetensors crate's own writer is not used: it makes files that only their owner may read, does not flush them,
/// and orders its metadata at random.
fn write(dtype: FloatType, path: &Path, layout: &Layout, values: &[f32]) -> Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"})); // `transformers` insists on it
    for parameter in layout.parameters() {
        let place = [parameter.range().start, parameter.range().end].map(|index| index * dtype.size());
        let entry = json!({"dtype": dtype.safetensors_name(), "shape": parameter.shape, "data_offsets": place});
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
        dtype.append(block, &mut bytes);
        file.write(&bytes)?;
    }
    file.close()
}
