//! Checkpoint: the parameters of a model in a Hugging Face folder, mapped for reading or written anew.

use super::config_file::{CONFIG, transformers_config};
use super::index::{INDEX, Index};
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
/// A header larger than this is refused unread; 100,000 tensors need about 12 MiB.
const MAX_HEADER: u64 = 16 << 20;

/// Buffers that old Llama checkpoints hold although they follow from the config; `transformers` ignores them too.
pub(super) const ROTARY_BUFFER: &str = ".rotary_emb.inv_freq";

/// A safetensors file or the shards of one, mapped; their float tensors can be read at any alignment.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Maps `model.safetensors` of a model folder, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// As [`Checkpoint::open_file`]; [`Error::Input`] when the index is not what it should be, when index and shards
    /// disagree, or when there are only pickled weights, which are never read.
    pub fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        if single.exists() {
            return Self::open_file(&single);
        }
        if index.exists() {
            return Self::open_shards(folder, index);
        }
        match pickled(folder) {
            Some(path) => Err(Error::input(
                path.display(),
                "pickled weights can run code and are not read; convert them to safetensors (save_pretrained of transformers)",
            )),
            None => Self::open_file(&single),
        }
    }

    /// Maps a safetensors file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::Damaged`] when it is not a valid safetensors file or holds a
    /// tensor that is not f32, bf16 or f16.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut checkpoint = Self { path: path.to_path_buf(), files: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add(path)?;
        Ok(checkpoint)
    }

    fn open_shards(folder: &Path, path: PathBuf) -> Result<Self> {
        let index = Index::read(folder, &path)?;
        let mut checkpoint = Self { path, files: Vec::new(), tensors: BTreeMap::new() };
        for shard in index.shards() {
            checkpoint.add(shard)?;
        }
        let held = checkpoint.tensors.iter().map(|(name, entry)| (name.as_str(), entry.file)).collect();
        index.check(&held)?;
        Ok(checkpoint)
    }

    /// Maps one more file.
    fn add(&mut self, path: &Path) -> Result<()> {
        let map = files::map(path)?;
        let damaged = |problem: String| Error::damaged(path, problem);
        let declared = map.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        let declared = declared.ok_or_else(|| damaged("shorter than a safetensors header".into()))?;
        if declared > MAX_HEADER {
            return Err(damaged(format!("a header of {declared} bytes; at most {MAX_HEADER} are accepted")));
        }
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| damaged(error.to_string()))?;
        let data = header + 8;
        for (name, info) in metadata.tensors() {
            if name.ends_with(ROTARY_BUFFER) {
                continue;
            }
            if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                return Err(damaged(format!("tensor '{name}' is {:?}; expected F32, BF16 or F16", info.dtype)));
            }
            let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
            let entry = Entry { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), bytes };
            if let Some(other) = self.tensors.insert(name.clone(), entry) {
                let other = self.files[other.file].0.display();
                return Err(damaged(format!("tensor '{name}' is also in '{other}'")));
            }
        }
        self.files.push((path.to_path_buf(), map));
        Ok(())
    }

    /// The hash of the file's content; of the shards' hashes, in the order of their names, when there are several.
    pub fn content_hash(&self) -> Result<String> {
        match self.files.as_slice() {
            [(path, _)] if *path == self.path => files::hash_file(path),
            shards => {
                let hashes = shards.iter().map(|(path, _)| files::hash_file(path)).collect::<Result<Vec<_>>>()?;
                Ok(files::hash(hashes.concat().as_bytes()))
            }
        }
    }

    /// The file, or the index of the shards.
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
        let bytes = &self.files[entry.file].1[entry.bytes.clone()];
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
        layout.check_against(&self.layout(), &self.path.display().to_string())
    }
}

/// A file of pickled weights in a folder.
fn pickled(folder: &Path) -> Option<PathBuf> {
    let is_pickled = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        matches!(ending, Some("bin" | "pt" | "pth" | "ckpt"))
    };
    files::list(folder).ok()?.into_iter().find(is_pickled)
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
