//! Foreign model: weights from elsewhere, copied into the pool while they are hashed, then checked.
//!
//! A file that is not the pool's may change or shrink at any time, so it is read once, in order, and never mapped; what is
//! checked is the copy. Its tensors keep their type and their bytes.

use super::{Pool, TOKENIZER};
use crate::error::{Error, Result};
use crate::files::{self, Staging};
use crate::model::{ADAPTER_FILES, Checkpoint, Layout, LowRankUpdate, read_config};
use crate::text::Tokenizer;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Files of a model folder that are kept beside its weights, when they are there.
const COMPANIONS: [&str; 2] = ["config.json", "generation_config.json"];

/// A copied model that is not part of the pool yet.
pub(super) struct Foreign {
    /// Where it was copied from.
    pub(super) source: PathBuf,
    /// The copy.
    pub(super) staging: Staging,
    /// The copied weights; an adapter on top of its base.
    pub(super) checkpoint: Checkpoint,
    /// The hash of the weights' files.
    pub(super) hash: String,
    /// Whether it is an adapter.
    pub(super) is_adapter: bool,
}

impl Foreign {
    /// Copies a model folder, or an adapter of `base`, beside the objects of the pool at `root`.
    ///
    /// # Errors
    /// [`Error::Input`] when a file is not what it should be, named by its place outside the pool; [`Error::Mismatch`] when an
    /// adapter does not fit its base.
    pub(super) fn copy(root: &Path, source: &Path, base: Option<(&Checkpoint, bool)>) -> Result<Self> {
        if !source.is_dir() {
            let problem = "no such folder; expected a model folder (config.json, model.safetensors) or an adapter's";
            return Err(Error::input(source.display(), problem));
        }
        let is_adapter = LowRankUpdate::is_in(source);
        let weights =
            if is_adapter { ADAPTER_FILES.map(|name| source.join(name)).to_vec() } else { Checkpoint::files(source)? };
        let staging = Staging::new(&root.join("objects").join("foreign"))?;
        let mut hashes = Vec::new();
        for path in &weights {
            hashes.push(files::copy(path, &staging.file(&file_name(path)))?);
        }
        for path in COMPANIONS.map(|name| source.join(name)).iter().filter(|path| path.exists() && !is_adapter) {
            files::copy(path, &staging.file(&file_name(path)))?;
        }
        let abroad = |error| at_its_source(error, source);
        let checkpoint = match (is_adapter, base) {
            (false, _) => Checkpoint::open(&staging.file(".")).map_err(abroad)?,
            (true, Some((base, tied))) => base.with_adapter(&staging.file("."), tied).map_err(abroad)?,
            (true, None) => {
                let problem = "it is an adapter; an adapter can be adopted as an expert, not be the model of a pool";
                return Err(Error::input(source.display(), problem));
            }
        };
        let hash = if is_adapter { files::hash(hashes.concat().as_bytes()) } else { checkpoint.content_hash()? };
        if let Some(tensor) = checkpoint.not_finite() {
            let place = weights[0].display();
            return Err(Error::input(
                place,
                format!("tensor '{tensor}' holds NaN or infinity; such a model cannot be merged"),
            ));
        }
        Ok(Self { source: source.to_path_buf(), staging, checkpoint, hash, is_adapter })
    }

    /// Refuses a model whose tensors are not those that its own config calls for.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first differences.
    pub(super) fn check(&self, layout: &Layout) -> Result<()> {
        self.checkpoint.check(layout).map_err(|error| at_its_source(error, &self.source))
    }

    /// Everything in which the model differs from those of the pool: tensors, config, tokenizer.
    pub(super) fn differences(&self, pool: &Pool) -> Result<Vec<String>> {
        let mut differences = pool.layout.differences(&self.checkpoint.layout());
        if !self.is_adapter {
            differences.extend(self.config_differences(pool)?);
        }
        let tokenizer = self.source.join(TOKENIZER);
        if tokenizer.exists() && !is_same_tokenizer(&pool.root.join(TOKENIZER), &tokenizer)? {
            differences.push(format!("'{TOKENIZER}' gives other ids than the pool's"));
        }
        Ok(differences)
    }

    /// Fields of `config.json` whose value is another than the pool's, expected then got.
    fn config_differences(&self, pool: &Pool) -> Result<Vec<String>> {
        let config = read_config(&self.staging.file(".")).map_err(|error| at_its_source(error, &self.source))?;
        let [ours, theirs] = [&pool.settings.model, &config].map(|config| match serde_json::to_value(config) {
            Ok(Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        });
        let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
        names.sort();
        names.dedup();
        names.retain(|name| *name != "max_position_embeddings"); // a promise, nothing that is computed with
        let absent = Value::Null;
        let difference = |name: &String| {
            let (ours, theirs) = (ours.get(name).unwrap_or(&absent), theirs.get(name).unwrap_or(&absent));
            (ours != theirs).then(|| format!("'{name}' expected {ours}, got {theirs}"))
        };
        Ok(names.into_iter().filter_map(difference).collect())
    }
}

/// Whether two tokenizers give every text the same ids: equal files, or equal but for what is not about ids.
fn is_same_tokenizer(ours: &Path, theirs: &Path) -> Result<bool> {
    if Tokenizer::load(ours)?.hash() == Tokenizer::load(theirs)?.hash() {
        return Ok(true);
    }
    let [ours, theirs] = [ours, theirs].map(|path| -> Result<Value> {
        let mut value: Value = serde_json::from_str(&files::read_text(path)?)
            .map_err(|error| Error::input(path.display(), error.to_string()))?;
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
