//! Tensors: the parameters of a model written as one safetensors file, sorted by name and flushed to the disk.
//!
//! The safetensors crate's own writer is not used: it makes files that only their owner may read, does not flush them, and
//! orders its metadata at random.

use super::{Checkpoint, FloatType, Layout};
use crate::error::{Error, Result};
use crate::files;
use serde_json::{Value, json};
use std::path::Path;

/// Writes f32 values that lie in the order of `layout`. The bytes depend on the arguments alone.
pub fn write_tensors(path: &Path, layout: &Layout, values: &[f32]) -> Result<()> {
    write_tensors_as(FloatType::Float32, path, layout, values)
}

/// As [`write_tensors`], with values rounded to `dtype`.
///
/// # Errors
/// [`Error::NotFinite`] when a value is finite and too large for the type.
pub fn write_tensors_as(dtype: FloatType, path: &Path, layout: &Layout, values: &[f32]) -> Result<()> {
    if let Some(index) = values.iter().position(|value| value.is_finite() && !dtype.holds(*value)) {
        let name = layout.owner(index).map_or("(unknown)", |parameter| &parameter.name);
        let what = format!("tensor '{name}' as {}", dtype.name());
        return Err(Error::NotFinite { what, place: format!("one of its values is {}", values[index]) });
    }
    let mut file = begin(path, layout, |_| dtype)?;
    let mut bytes = Vec::with_capacity(1 << 18);
    for block in values.chunks(1 << 16) {
        bytes.clear();
        dtype.append(block, &mut bytes);
        file.write(&bytes)?;
    }
    file.close()
}

/// Writes the tensors of a checkpoint with the bytes that they have in its files, updates of adapters left out.
pub fn write_stored(path: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let layout = checkpoint.layout();
    let dtype = |name: &str| checkpoint.stored(name).map_or(FloatType::Float32, |values| FloatType::of_values(&values));
    let mut file = begin(path, &layout, dtype)?;
    for values in layout.parameters().iter().filter_map(|parameter| checkpoint.stored(&parameter.name)) {
        file.write(values.bytes())?;
    }
    file.close()
}

/// Starts a file with the header of `layout`; `dtype` gives the type of each tensor by its name.
fn begin(path: &Path, layout: &Layout, dtype: impl Fn(&str) -> FloatType) -> Result<files::Writer> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"})); // `transformers` insists on it
    let mut start = 0;
    for parameter in layout.parameters() {
        let dtype = dtype(&parameter.name);
        let end = start + parameter.len() * dtype.size();
        let entry = json!({"dtype": dtype.safetensors_name(), "shape": parameter.shape, "data_offsets": [start, end]});
        header.insert(parameter.name.clone(), entry);
        start = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = files::Writer::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    Ok(file)
}
