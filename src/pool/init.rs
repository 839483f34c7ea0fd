//! Init: a pool made from a recipe file, or opened when an equal one is there.

use super::settings::{FORMAT, ModelChoice, SeedTraining};
use super::{FOLDERS, POOL, Pool, RecipeFile, Settings, TOKENIZER};
use crate::error::{Error, Result};
use crate::files;
use crate::model::{Checkpoint, Layout, ModelConfig, read_config};
use crate::progress::Observer;
use crate::text::{ReadOptions, StagedTokens, Tokenizer};
use std::path::{Path, PathBuf};

impl Pool {
    /// Creates a pool from a recipe file; a pool that was created from an equal recipe is opened.
    ///
    /// # Errors
    /// Those of [`RecipeFile::read`], of reading the seed's text and of tokenising it; [`Error::Usage`] when a pool with
    /// other settings is there already.
    pub fn init(root: &Path, recipe: &Path, observer: &dyn Observer) -> Result<Self> {
        let is_new = !root.exists();
        let pool = Self::create(root, recipe, observer);
        if is_new && pool.is_err() {
            let _ = std::fs::remove_dir(root.join("tokens")); // both only when empty
            let _ = std::fs::remove_dir(root);
        }
        pool
    }

    fn create(root: &Path, recipe: &Path, observer: &dyn Observer) -> Result<Self> {
        let file = RecipeFile::read(recipe)?;
        let place = recipe.display().to_string();
        let (seed_train, expert) = file.training(&place)?;
        let resolve = |path: &Path| RecipeFile::resolve(recipe, path);
        let origin = file.from.as_deref().map(resolve);
        let tokenizer_path = file.tokenizer.as_deref().map(resolve);
        let tokenizer_path = tokenizer_path.or_else(|| origin.as_ref().map(|folder| folder.join(TOKENIZER)));
        let tokenizer_path = tokenizer_path.ok_or_else(|| Error::input(&place, "'tokenizer' is missing"))?;
        let tokenizer = Tokenizer::load(&tokenizer_path)?;
        let prefix_token = prefix_token(&file, &tokenizer, &place)?;
        let model = model_config(&file, origin.as_deref(), &tokenizer, &place)?;
        let window =
            file.window.or(seed_train.as_ref().map(|seed| seed.sequence_length)).unwrap_or(expert.sequence_length);
        if window == 0 {
            return Err(Error::input(&place, "'window' must be at least 1"));
        }
        let staged = match &file.seed {
            Some(section) => {
                let sources: Vec<PathBuf> = section.files.iter().map(|path| resolve(path)).collect();
                if sources.is_empty() {
                    return Err(Error::input(&place, "'seed.files' is empty; name at least one text file"));
                }
                let options = ReadOptions { text_field: section.text_field.clone(), ..ReadOptions::default() };
                let store = root.join("tokens");
                Some(StagedTokens::of(&store, &sources, &options, &tokenizer, model.vocab_size, observer)?)
            }
            None if origin.is_some() => None,
            None => {
                let problem = "'seed' is missing; say how the seed model is trained, or give 'from'";
                return Err(Error::input(&place, problem));
            }
        };
        let seed = staged.as_ref().zip(seed_train);
        let seed = seed.map(|(staged, train)| SeedTraining { tokens: staged.manifest().hash.clone(), train });
        let format = FORMAT;
        let tokenizer = tokenizer.hash().to_owned();
        let settings = Settings { format, model, tokenizer, prefix_token, window, origin: None, seed, expert };
        let mut pool = Self { root: root.to_path_buf(), layout: Layout::of(&settings.model), settings };
        let imported = origin.as_deref().map(Checkpoint::open).transpose()?;
        let imported_recipe = imported.as_ref().map(|checkpoint| pool.import_recipe(checkpoint)).transpose()?;
        pool.settings.origin = imported_recipe.map(|recipe| recipe.id()).transpose()?;
        if root.join(POOL).exists() {
            let existing = Self::open(root)?;
            if existing.settings != pool.settings {
                return Err(Error::Usage(format!(
                    "'{}' is already a pool with other settings ({}); choose another folder with --pool",
                    root.display(),
                    different_settings(&existing.settings, &pool.settings)
                )));
            }
        }
        // Nothing is visible before this line; what is there already is kept, what is damaged is mended.
        for folder in FOLDERS {
            files::create_folder(&root.join(folder))?;
        }
        staged.map(StagedTokens::publish).transpose()?;
        let bytes = std::fs::read(&tokenizer_path).map_err(Error::io("read", &tokenizer_path))?;
        publish_unless_equal(&root.join(TOKENIZER), &bytes)?;
        if let Some(checkpoint) = &imported {
            pool.import(checkpoint)?;
        }
        publish_unless_equal(&root.join(POOL), &files::to_json(&pool.settings)?)?; // last: from here on it is a pool
        Self::open(root)
    }
}

/// Publishes a file unless it holds these bytes already.
fn publish_unless_equal(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) { Ok(()) } else { files::publish(path, bytes) }
}

fn prefix_token(file: &RecipeFile, tokenizer: &Tokenizer, place: &str) -> Result<u32> {
    match &file.prefix_token {
        Some(token) => tokenizer.id(token).ok_or_else(|| {
            Error::input(place, format!("'prefix_token' is '{token}', which the tokenizer does not have"))
        }),
        None => tokenizer.prefix().ok_or_else(|| {
            Error::input(place, "the tokenizer has no BOS or EOS under a usual name; name it with 'prefix_token'")
        }),
    }
}

/// The shape of the pool's models: a preset with the tokenizer's vocabulary, spelled out, or that of the model in `from`.
fn model_config(file: &RecipeFile, origin: Option<&Path>, tokenizer: &Tokenizer, place: &str) -> Result<ModelConfig> {
    let vocabulary = tokenizer.vocabulary();
    let config = match (&file.model, origin) {
        (Some(ModelChoice::Preset(name)), None) => ModelConfig { vocab_size: vocabulary, ..ModelConfig::preset(name)? },
        (Some(ModelChoice::Config(config)), None) => config.clone(),
        (None, Some(folder)) => read_config(folder)?,
        _ => return Err(Error::input(place, "give either 'model' (trained from scratch) or 'from' (a model folder)")),
    };
    config.check(place)?;
    if config.vocab_size < vocabulary {
        return Err(Error::Mismatch {
            what: format!("{place}: tokenizer against model"),
            differences: format!(
                "the tokenizer has {vocabulary} ids, 'vocab_size' is {}; raise it to at least {vocabulary}",
                config.vocab_size
            ),
        });
    }
    Ok(config)
}

/// Names the first setting in which two pools differ.
fn different_settings(old: &Settings, new: &Settings) -> String {
    let (old, new) = (serde_json::to_value(old), serde_json::to_value(new));
    let (Ok(serde_json::Value::Object(old)), Ok(serde_json::Value::Object(new))) = (old, new) else {
        return "settings differ".into();
    };
    let differing: Vec<&str> =
        old.iter().filter(|(key, value)| new.get(*key) != Some(value)).map(|(key, _)| key.as_str()).collect();
    format!("different: {}", differing.join(", "))
}
