//! Checkpoint: the parameters of a model in a Hugging Face folder, mapped for reading.

use super::header::{Declared, PICKLED, read_header};
use super::index::{INDEX, Index};
use super::names::{Names, is_buffer};
use super::{FloatType, Layout, LowRankUpdate, ModelConfig};
use crate::error::{Error, Result};
use crate::files;
use crate::kernels::{Floats, add_low_rank, weighted_sum};
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// File name of the parameters inside a model folder.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// A safetensors file or the shards of one, mapped, with a low-rank update where the model is one on top of another; its
/// tensors can be read at any alignment. Clones share the maps.
#[derive(Clone)]
pub struct Checkpoint {
    path: PathBuf,
    stored: Arc<Stored>,
    update: Option<Arc<LowRankUpdate>>,
}

/// The mapped files and what lies in them.
#[derive(Default)]
struct Stored {
    files: Vec<(PathBuf, files::Mapped)>,
    tensors: BTreeMap<String, Entry>,
    buffers: BTreeMap<String, usize>, // file of what is no parameter, by name
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
        Stored::open(folder).map(Self::new)
    }

    /// As [`Checkpoint::open`], of a folder from elsewhere: tensors get the names that the family's models have when they are
    /// saved whole (files of a bare model leave the prefix out), and the output matrix of a tied model is dropped when it
    /// repeats the embedding.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::Input`] when a model that says it is tied has an output matrix of its own.
    pub fn open_model(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let (path, mut stored) = Stored::open(folder)?;
        stored.rename(config, &path)?;
        Ok(Self::new((path, stored)))
    }

    fn new((path, stored): (PathBuf, Stored)) -> Self {
        Self { path, stored: Arc::new(stored), update: None }
    }

    /// Maps a safetensors file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::Damaged`] when it is not a valid safetensors file or holds a
    /// tensor that is not f32, bf16 or f16.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut stored = Stored::default();
        stored.add(path)?;
        Ok(Self::new((path.to_path_buf(), stored)))
    }

    /// The model that an adapter makes of this one; the maps are shared.
    ///
    /// # Errors
    /// Those of [`LowRankUpdate::open`].
    pub fn with_adapter(&self, folder: &Path, tied: bool) -> Result<Self> {
        let update = LowRankUpdate::open(folder, &self.layout(), tied)?;
        Ok(Self { path: folder.to_path_buf(), update: Some(Arc::new(update)), ..self.clone() })
    }

    /// The files of the weights in a model folder: `model.safetensors`, or the index and its shards.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], as far as the files' names go.
    pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
        let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        if single.exists() || !index.exists() {
            return refuse_pickled(folder).map(|()| vec![single]);
        }
        let shards = Index::read(folder, &index)?.shards().to_vec();
        Ok([vec![index], shards].concat())
    }

    /// The hash of the file's content; of the shards' hashes, in the order of their names, when there are several. An
    /// adapter's is not in it.
    pub fn content_hash(&self) -> Result<String> {
        match self.stored.files.as_slice() {
            [(path, _)] if path.file_name().is_some_and(|name| name == WEIGHTS) => files::hash_file(path),
            shards => {
                let hashes = shards.iter().map(|(path, _)| files::hash_file(path)).collect::<Result<Vec<_>>>()?;
                Ok(files::hash(hashes.concat().as_bytes()))
            }
        }
    }

    /// The file, the index of the shards, or the folder of the adapter.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes, sorted.
    pub fn layout(&self) -> Layout {
        let tensors = self.stored.tensors.iter();
        Layout::from_shapes(tensors.map(|(name, entry)| (name.clone(), entry.shape.clone())).collect())
    }

    /// The one type of number that all tensors have; none when there are several.
    pub fn dtype(&self) -> Option<FloatType> {
        let mut types = self.stored.tensors.values().map(|entry| FloatType::of(entry.dtype));
        let first = types.next()?;
        if types.all(|other| other == first) { first } else { None }
    }

    /// The shape of one tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.stored.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The values of one tensor as they lie in the file: without its [update](Checkpoint::update).
    pub fn stored(&self, name: &str) -> Option<Floats<'_>> {
        let entry = self.stored.tensors.get(name)?;
        let bytes = &self.stored.files[entry.file].1[entry.bytes.clone()];
        Some(match entry.dtype {
            Dtype::BF16 => Floats::BF16(bytes),
            Dtype::F16 => Floats::F16(bytes),
            _ => Floats::F32(bytes),
        })
    }

    /// What is added to some tensors, when the model is an adapter's.
    pub fn update(&self) -> Option<&LowRankUpdate> {
        self.update.as_deref()
    }

    /// The values of one tensor as f32, with its update.
    pub fn values(&self, name: &str) -> Option<Vec<f32>> {
        let stored = self.stored(name)?;
        let mut values = vec![0f32; stored.len()];
        weighted_sum(&mut values, &[(1.0, stored)]);
        if let Some(factors) = self.update().and_then(|update| update.factors(name)) {
            add_low_rank(&mut values, &[(1.0, factors)]);
        }
        Some(values)
    }

    /// All values as f32, in the order of `layout`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when names or shapes differ from the layout's.
    pub fn read(&self, layout: &Layout) -> Result<Vec<f32>> {
        self.check(layout)?;
        Ok(layout.parameters().iter().filter_map(|parameter| self.values(&parameter.name)).flatten().collect())
    }

    /// The first tensor with a value that is NaN or infinite.
    pub fn not_finite(&self) -> Option<&str> {
        let is_finite = |name: &String| self.values(name).is_some_and(|values| values.iter().all(|v| v.is_finite()));
        self.stored.tensors.keys().find(|name| !is_finite(name)).map(String::as_str)
    }

    /// Refuses a checkpoint whose tensors are not those of `layout`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first differences, expected then got.
    pub fn check(&self, layout: &Layout) -> Result<()> {
        layout.check_against(&self.layout(), &self.path.display().to_string())
    }
}

impl Stored {
    /// Maps the weights of a model folder; with them, the file or the index.
    fn open(folder: &Path) -> Result<(PathBuf, Self)> {
        let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        let mut stored = Self::default();
        if single.exists() || !index.exists() {
            refuse_pickled(folder)?;
            stored.add(&single)?;
            return Ok((single, stored));
        }
        let shards = Index::read(folder, &index)?;
        for shard in shards.shards() {
            stored.add(shard)?;
        }
        let held = stored.tensors.iter().map(|(name, entry)| (name.as_str(), entry.file)).collect();
        shards.check(&held, &stored.buffers)?;
        Ok((index, stored))
    }

    /// Gives tensors the names that whole models have, and drops an output matrix that repeats the embedding.
    fn rename(&mut self, config: &ModelConfig, path: &Path) -> Result<()> {
        let (names, layout) = (Names::of(config), Layout::of(config));
        let wanted: BTreeSet<&str> = layout.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
        let heads = [format!("{}.weight", names.output), "lm_head.weight".to_owned()];
        for name in self.tensors.keys().cloned().collect::<Vec<_>>() {
            let prefixed = format!("{}{name}", names.prefix);
            let meant = if heads.contains(&name) { &heads[0] } else { &prefixed };
            let is_free = !self.tensors.contains_key(meant);
            if !wanted.contains(name.as_str()) && wanted.contains(meant.as_str()) && is_free {
                let entry = self.tensors.remove(&name);
                self.tensors.extend(entry.map(|entry| (meant.clone(), entry)));
            }
        }
        if config.tie_word_embeddings {
            heads.iter().try_for_each(|head| self.drop_tied(head, &format!("{}.weight", names.embedding), path))?;
        }
        Ok(())
    }

    /// Drops an output matrix that repeats the embedding.
    fn drop_tied(&mut self, head: &str, embedding: &str, path: &Path) -> Result<()> {
        let (Some(output), Some(table)) = (self.tensors.get(head), self.tensors.get(embedding)) else { return Ok(()) };
        let bytes = |entry: &Entry| &self.files[entry.file].1[entry.bytes.clone()];
        if (output.dtype, &output.shape) != (table.dtype, &table.shape) || bytes(output) != bytes(table) {
            let problem = format!(
                "'tie_word_embeddings' is true, but '{head}' is not the same as '{embedding}'; set it to false in \
                 config.json to keep both, or remove '{head}'"
            );
            return Err(Error::input(path.display(), problem));
        }
        self.tensors.remove(head);
        Ok(())
    }

    /// Maps one more file.
    fn add(&mut self, path: &Path) -> Result<()> {
        let map = files::map(path)?;
        let damaged = |problem: String| Error::damaged(path, problem);
        for Declared { name, dtype, shape, bytes } in read_header(path, &map)? {
            if is_buffer(&name, &shape) {
                self.buffers.insert(name, self.files.len());
                continue;
            }
            if FloatType::of(dtype).is_none() {
                return Err(damaged(format!("tensor '{name}' is {dtype:?}; expected F32, BF16 or F16")));
            }
            let entry = Entry { file: self.files.len(), dtype, shape, bytes };
            if let Some(other) = self.tensors.insert(name.clone(), entry) {
                let other = self.files[other.file].0.display();
                return Err(damaged(format!("tensor '{name}' is also in '{other}'")));
            }
        }
        self.files.push((path.to_path_buf(), map));
        Ok(())
    }
}

/// Refuses a folder that holds pickled weights and no others.
fn refuse_pickled(folder: &Path) -> Result<()> {
    let is_pickled = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        matches!(ending, Some("bin" | "pt" | "pth" | "ckpt"))
    };
    let pickled = files::list(folder).unwrap_or_default().into_iter().find(is_pickled);
    match pickled.filter(|_| !folder.join(WEIGHTS).exists()) {
        Some(path) => Err(Error::input(path.display(), PICKLED)),
        None => Ok(()),
    }
}
