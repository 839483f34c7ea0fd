//! Pool: seed model, experts, tokenised data, evaluation sets and every score, in one folder.
//!
//! | path | holds |
//! |---|---|
//! | `pool.json`, `tokenizer.json` | what everything in the pool has in common |
//! | `tokens/<hash>/` | tokenised documents, immutable |
//! | `objects/<recipe hash>/` | trained models, each a Hugging Face folder with a manifest, immutable |
//! | `partitions/<name>.json`, `evals/<name>.json` | names bound to tokens; replaced atomically |
//! | `scores/<hash>.log` | append-only score records of one eval set |
//! | `fitted/<hash>.*` | what methods worked out about the models, by the hash of its inputs |
//! | `fitted/tokens-<hash>.f32` | −ln p of every token of an eval set under one model |
//! | `quarantine/` | bad records left out when data was read (`<kind>-<name>.jsonl`); what was damaged and made again |
//! | `estimates/<hash>.json` | what estimators said of mixtures |
//! | `work/<recipe hash>.*` | claims and the state of unfinished training and of watched runs |
//!
//! A name binds only to a complete object, and a score names its inputs by hash.

mod adopt;
mod begun;
mod binding;
mod candidate;
mod claim;
mod collect;
mod device_memory;
mod engine;
mod fitted;
mod foreign;
mod gradients;
mod import;
mod init;
mod loading;
mod members;
mod needs;
mod online;
mod origin;
mod recipe;
mod repair;
mod scorer;
mod scores;
mod settings;
mod token_nll;
mod training;
mod verify;
mod watched;

pub use binding::{EvalBinding, Outcome, Partition, Provenance};
pub use collect::Garbage;
pub use import::Imported;
pub use loading::verify_on_load;
pub use members::{Checkpoints, Experts, MERGEABLE, Member, score_key};
pub use needs::ignore_needs;
pub use online::{Domain, FixedWeights, Online, OnlineCost, OnlineRun, Target};
pub use recipe::{DataShare, Manifest, Recipe, Start};
pub use scorer::{Scored, Scorer};
pub use scores::{ScoreLog, ScoreRecord};
pub use settings::{Count, RecipeFile, Settings, parse_count};
pub use token_nll::TokenNll;
pub use verify::{Damage, Verified};
pub use watched::Watch;

use crate::error::{Error, Result};
use crate::files;
use crate::model::{Checkpoint, Family, Layout};
use crate::progress::Observer;
use crate::text::{ReadOptions, StagedTokens, TokenFile, Tokenizer};
use std::path::{Path, PathBuf};

/// An open pool.
pub struct Pool {
    root: PathBuf,
    settings: Settings,
    layout: Layout,
    sharing: claim::Sharing,
    engine: engine::Engine,
}

impl Pool {
    /// Opens a pool.
    ///
    /// # Errors
    /// [`Error::NoPool`] when there is none, [`Error::Damaged`] when `pool.json` is not readable, [`Error::Usage`] when it was
    /// written by another version of the format.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join(POOL);
        if !path.exists() {
            return Err(Error::NoPool(root.to_path_buf()));
        }
        let value: serde_json::Value = files::read_json(&path).map_err(|error| mended_by_init(root, error))?;
        let format = value["format"].as_u64();
        if format != Some(u64::from(settings::FORMAT)) {
            return Err(Error::Usage(format!(
                "'{}' has pool format {}, this mixpool reads format {}; use the version of mixpool that made it",
                path.display(),
                format.map_or("(none)".into(), |f| f.to_string()),
                settings::FORMAT
            )));
        }
        let settings: Settings = serde_json::from_value(value)
            .map_err(|error| Error::damaged(&path, format!("{error}; {}", files::MAKE_AGAIN)))
            .map_err(|error| mended_by_init(root, error))?;
        files::sweep(root)?;
        for folder in FOLDERS.into_iter().chain([fitted::FITTED, ESTIMATES, QUARANTINE]) {
            files::sweep(&root.join(folder))?;
        }
        let (layout, sharing) = (Layout::of(&settings.model), claim::Sharing::of(root)?);
        let engine = engine::Engine::default();
        let mut pool = Self { root: root.to_path_buf(), layout, settings, sharing, engine };
        if let (Family::Other, Some(origin)) = (pool.settings.model.model_type, pool.origin_folder()) {
            pool.layout = Self::checkpoint(&origin)?.layout(); // all that is known of the model
        }
        Ok(pool)
    }

    /// The pool's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What everything in the pool has in common.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The layout of every model's parameters.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The folder of an object.
    pub fn object_folder(&self, id: &str) -> PathBuf {
        self.root.join("objects").join(id)
    }

    /// The manifest of an object, if it exists.
    pub fn manifest(&self, id: &str) -> Result<Option<Manifest>> {
        let path = self.object_folder(id).join(MANIFEST);
        if path.exists() { files::read_json(&path).map(Some) } else { Ok(None) }
    }

    /// The manifests of all objects, sorted by id.
    pub fn manifests(&self) -> Result<Vec<Manifest>> {
        let folders = files::list(&self.root.join("objects"))?;
        folders.iter().map(|folder| files::read_json(&folder.join(MANIFEST))).collect()
    }

    /// Opens a token file of the pool.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is missing or not whole.
    pub fn tokens(&self, hash: &str) -> Result<TokenFile> {
        let folder = self.root.join("tokens").join(hash);
        let tokens = TokenFile::open(&folder).map_err(Error::missing_is_damage)?;
        loading::once(&folder, || verify::verify_ids(&tokens, &folder, true))?;
        Ok(tokens)
    }

    /// Opens the weights in the folder of an object.
    ///
    /// # Errors
    /// [`Error::Damaged`] when they are missing or not whole.
    pub(crate) fn checkpoint(folder: &Path) -> Result<Checkpoint> {
        Checkpoints::default().open(folder)
    }

    /// Tokenises documents; they are part of the pool once they are published.
    fn tokenize(&self, paths: &[PathBuf], options: &ReadOptions, observer: &dyn Observer) -> Result<StagedTokens> {
        let path = self.root.join(TOKENIZER);
        let tokenizer = Tokenizer::load(&path)?;
        if tokenizer.hash() != self.settings.tokenizer {
            return Err(Error::damaged(path, "it is not the tokenizer the pool was made with; restore it"));
        }
        needs::refuse_impossible_tokens(&self.root, paths)?;
        let vocabulary = self.settings.model.vocab_size;
        StagedTokens::of(&self.root.join("tokens"), paths, options, &tokenizer, vocabulary, observer)
    }
}

/// Adds to a damaged `pool.json` how it is made again.
fn mended_by_init(root: &Path, error: Error) -> Error {
    match error {
        Error::Damaged { path, problem } => {
            let repair = verify::pool_repair(root);
            Error::Damaged { path, problem: format!("{problem}; repair: {repair}") }
        }
        other => other,
    }
}

const POOL: &str = "pool.json";
const FOLDERS: [&str; 6] = ["tokens", "objects", "partitions", "evals", "scores", "work"];
/// The folder of stored answers, made when there is a first one.
pub(crate) const ESTIMATES: &str = "estimates";
/// The folder of records that were left out of data, made when there is a first one.
const QUARANTINE: &str = "quarantine";
const TOKENIZER: &str = "tokenizer.json";
const MANIFEST: &str = "manifest.json";
