//! Foreign model: weights from elsewhere, copied into the pool while they are hashed, then checked.
//!
//! A file that is not the pool's may change or shrink at any time, so it is read once, in order, and never mapped; what is
//! checked is the copy. Its tensors keep their type and their bytes.

use super::training::WEIGHTS;
use super::{Pool, TOKENIZER};
use crate::error::{Error, Result};
use crate::files::{self, Staging};
use crate::gguf::Gguf;
use crate::model::{
    ADAPTER_FILES, Checkpoint, FloatType, Layout, LowRankUpdate, ModelConfig, read_config, read_gguf, read_gguf_config,
    write_description, write_stored, write_tensors,
};
use crate::text::{Tokenizer, gguf_tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What is copied of a model folder beside its weights, when it is there.
const COMPANIONS: [&str; 2] = ["config.json", "generation_config.json"];

/// A copied model that is not part of the pool yet.
pub(super) struct Foreign {
    /// Where it was copied from.
    pub(super) source: PathBuf,
    /// The folder that becomes an object.
    pub(super) staging: Staging,
    /// The weights in it; an adapter on top of its base.
    pub(super) checkpoint: Checkpoint,
    /// What its `config.json` describes; none for an adapter.
    config: Option<ModelConfig>,
    /// The hash of the files of its weights.
    pub(super) hash: String,
}

impl Foreign {
    /// Copies a model folder, a GGUF file, or an adapter of `base`, beside the objects of the pool at `root`.
    ///
    /// A model becomes one file, sorted by name, under the names of a whole model of its family; an adapter stays as it is.
    ///
    /// # Errors
    /// [`Error::Input`] when a file is not what it should be, named by its place outside the pool; [`Error::Mismatch`] when an
    /// adapter does not fit its base.
    pub(super) fn copy(root: &Path, source: &Path, base: Option<(&Checkpoint, bool)>) -> Result<Self> {
        if !source.exists() {
            let problem = "no such file or folder; expected a model folder (config.json, model.safetensors), an adapter's, or a \
                           GGUF file";
            return Err(Error::input(source.display(), problem));
        }
        let staging = Staging::new(&root.join("objects").join("foreign"))?;
        let foreign = match (LowRankUpdate::is_in(source), base) {
            _ if source.is_file() => return Self::gguf(staging, source),
            (false, _) => Self::model(staging, source),
            (true, Some((base, tied))) => Self::adapter(staging, source, base, tied),
            (true, None) => {
                let problem = "it is an adapter; an adapter can be adopted as an expert, not be the model of a pool";
                Err(Error::input(source.display(), problem))
            }
        };
        let foreign = foreign.map_err(|error| at_its_source(error, source))?;
        match foreign.checkpoint.not_finite() {
            None => Ok(foreign),
            Some(tensor) => Err(Error::input(
                source.display(),
                format!("tensor '{tensor}' holds NaN or infinity; such a model cannot be merged"),
            )),
        }
    }

    fn model(staging: Staging, source: &Path) -> Result<Self> {
        let copy = staging.file("copy");
        files::create_folder(&copy)?;
        let companions = COMPANIONS.map(|name| source.join(name));
        let companions = companions.into_iter().filter(|path| path.exists());
        for path in Checkpoint::files(source)?.into_iter().chain(companions) {
            files::copy(&path, &copy.join(file_name(&path)))?;
        }
        let config = read_config(&copy)?;
        let foreign = Checkpoint::open_model(&copy, &config)?;
        let hash = foreign.content_hash()?;
        write_stored(&staging.file(WEIGHTS), &foreign)?;
        let dtype = foreign.dtype().unwrap_or(FloatType::Float32);
        write_description(&staging.file("."), &config, dtype, Some(&copy))?;
        files::remove_folder(&copy)?;
        let checkpoint = Checkpoint::open(&staging.file("."))?;
        Ok(Self { source: source.to_path_buf(), staging, checkpoint, config: Some(config), hash })
    }

    /// Values come dequantised, to f32.
    fn gguf(staging: Staging, source: &Path) -> Result<Self> {
        let file = Gguf::open(source)?;
        let config = read_gguf_config(&file)?;
        let layout = Layout::of(&config);
        write_tensors(&staging.file(WEIGHTS), &layout, &read_gguf(&file, &config, &layout)?)?;
        write_description(&staging.file("."), &config, FloatType::Float32, None)?;
        let checkpoint = Checkpoint::open(&staging.file("."))?;
        let hash = files::hash_file(source)?;
        Ok(Self { source: source.to_path_buf(), staging, checkpoint, config: Some(config), hash })
    }

    fn adapter(staging: Staging, source: &Path, base: &Checkpoint, tied: bool) -> Result<Self> {
        let copied = ADAPTER_FILES.map(|name| files::copy(&source.join(name), &staging.file(name)));
        let hashes = copied.into_iter().collect::<Result<Vec<_>>>()?;
        let checkpoint = base.with_adapter(&staging.file("."), tied)?;
        let hash = files::hash(hashes.concat().as_bytes());
        Ok(Self { source: source.to_path_buf(), staging, checkpoint, config: None, hash })
    }

    /// Whether it is an adapter.
    pub(super) fn is_adapter(&self) -> bool {
        self.config.is_none()
    }

    /// Refuses a model whose tensors are not those that its own config calls for.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first differences.
    pub(super) fn check(&self, layout: &Layout) -> Result<()> {
        self.checkpoint.check(layout).map_err(|error| at_its_source(error, &self.source))
    }

    /// Everything in which the model differs from those of the pool: tensors, config, tokenizer.
    ///
    /// # Errors
    /// [`Error::Input`] when its tokenizer cannot be read.
    pub(super) fn differences(&self, pool: &Pool) -> Result<Vec<String>> {
        let mut differences = pool.layout.differences(&self.checkpoint.layout());
        differences.extend(self.config.iter().flat_map(|config| config_differences(&pool.settings.model, config)));
        if !is_same_tokenizer(pool, &self.source)? {
            differences.push(format!("'{TOKENIZER}' gives other ids than the pool's"));
        }
        Ok(differences)
    }
}

/// Fields of two configs that have other values, expected then got.
fn config_differences(expected: &ModelConfig, got: &ModelConfig) -> Vec<String> {
    let [expected, got] = [expected, got].map(|config| match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    });
    let mut names: Vec<&String> = expected.keys().chain(got.keys()).collect();
    names.sort();
    names.dedup();
    names.retain(|name| *name != "max_position_embeddings"); // a promise, nothing that is computed with
    let value = |fields: &serde_json::Map<String, Value>, name: &str| fields.get(name).cloned().unwrap_or_default();
    let pair = |name: &String| (name.clone(), value(&expected, name), value(&got, name));
    let pairs = names.into_iter().map(pair).filter(|(_, expected, got)| expected != got);
    pairs.map(|(name, expected, got)| format!("'{name}' expected {expected}, got {got}")).collect()
}

/// Whether a model's tokenizer, if it has one, gives every text the ids of the pool's: an equal file, or one that is equal
/// but for what is not about ids.
fn is_same_tokenizer(pool: &Pool, source: &Path) -> Result<bool> {
    let path = source.join(TOKENIZER);
    let theirs = if source.is_file() {
        gguf_tokenizer(&Gguf::open(source)?)?
    } else if path.exists() {
        std::fs::read(&path).map_err(Error::io("read", &path))?
    } else {
        return Ok(true);
    };
    if Tokenizer::from_json(&theirs, &path.display().to_string())?.hash() == pool.settings.tokenizer {
        return Ok(true);
    }
    let ours = files::read_text(&pool.root.join(TOKENIZER))?;
    let [ours, theirs] = [ours.as_bytes(), &theirs].map(|bytes| -> Result<Value> {
        let mut value: Value =
            serde_json::from_slice(bytes).map_err(|error| Error::input(path.display(), error.to_string()))?;
        if let Value::Object(fields) = &mut value {
            for about_batches in ["truncation", "padding", "version"] {
                fields.remove(about_batches);
            }
        }
        Ok(value)
    });
    Ok(ours? == theirs?)
}

/// Names the user's file where an error names the copy of it.
fn at_its_source(error: Error, source: &Path) -> Error {
    match error {
        Error::Damaged { path, problem } => Error::input(source.join(file_name(&path)).display(), problem),
        Error::Input { place, problem } => Error::input(source.join(file_name(Path::new(&place))).display(), problem),
        Error::Mismatch { differences, .. } => {
            Error::Mismatch { what: format!("'{}' does not fit the pool's model", source.display()), differences }
        }
        other => other,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
