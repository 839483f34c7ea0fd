//! Init: a pool made from a recipe file, or opened when an equal one is there.

use super::claim::Sharing;
use super::engine::Engine;
use super::foreign::Foreign;
use super::needs::refuse_impossible_tokens;
use super::origin::{Origin, read_tokenizer};
use super::settings::{FORMAT, ModelChoice, SeedSection, SeedTraining};
use super::{FOLDERS, POOL, Pool, QUARANTINE, RecipeFile, Settings, TOKENIZER};
use crate::error::{Error, Result};
use crate::files;
use crate::kernels::Precision;
use crate::model::{Family, Layout, ModelConfig, config_of};
use crate::progress::Observer;
use crate::text::{ReadOptions, StagedTokens, TokenManifest, Tokenizer};
use crate::train::TrainConfig;
use std::path::{Path, PathBuf};

impl Pool {
    /// Creates a pool from a recipe file; a pool that was created from an equal recipe is opened.
    ///
    /// # Errors
    /// Those of [`RecipeFile::read`], of reading the seed's text and of tokenising it; [`Error::Usage`] when a pool with
    /// other settings is there already.
    pub fn init(root: &Path, recipe: &Path, observer: &dyn Observer) -> Result<Self> {
        Self::init_in(Precision::F32, root, recipe, observer)
    }

    /// As [`Pool::init`], of models that are trained in `precision` where the recipe names none.
    ///
    /// # Errors
    /// As [`Pool::init`].
    pub fn init_in(precision: Precision, root: &Path, recipe: &Path, observer: &dyn Observer) -> Result<Self> {
        let is_new = !root.exists();
        let pool = Self::create(root, &Plan::read(recipe, precision)?, observer);
        if is_new && pool.is_err() {
            for folder in ["tokens", "objects"] {
                let _ = std::fs::remove_dir(root.join(folder)); // only when empty, as all of these
            }
            let _ = std::fs::remove_dir(root);
        }
        pool
    }

    fn create(root: &Path, plan: &Plan, observer: &dyn Observer) -> Result<Self> {
        let mut staged = plan.stage_tokens(&root.join("tokens"), observer)?;
        let settings = plan.settings(staged.as_ref().map(StagedTokens::manifest));
        let copy = |origin: &Origin| Foreign::copy(root, origin.path(), None);
        let imported = plan.origin.as_ref().map(copy).transpose()?;
        let layout = match (settings.model.model_type, &imported) {
            (Family::Other, Some(imported)) => imported.checkpoint.layout(), // all that is known of the model
            _ => Layout::of(&settings.model),
        };
        let sharing = Sharing::of(root)?;
        let engine = Engine::default();
        let mut pool = Self { root: root.to_path_buf(), layout, settings, sharing, engine };
        let recipe = imported.as_ref().map(|imported| pool.import_recipe(imported));
        pool.settings.origin = recipe.map(|recipe| recipe.id()).transpose()?;
        if root.join(POOL).exists() {
            let existing = Self::open(root)?;
            if existing.settings != pool.settings {
                return Err(refuse_other(&existing, &pool));
            }
        }
        // Nothing is visible before this line; what is there already is kept, what is damaged is mended.
        for folder in FOLDERS {
            files::create_folder(&root.join(folder))?;
        }
        if let Some(quarantine) = staged.as_mut().and_then(StagedTokens::take_quarantine) {
            quarantine.publish(&root.join(QUARANTINE).join("seed.jsonl"))?;
        }
        staged.map(StagedTokens::publish).transpose()?;
        publish_unless_equal(&root.join(TOKENIZER), &plan.tokenizer_json)?;
        imported.map(|imported| pool.import(imported)).transpose()?;
        publish_unless_equal(&root.join(POOL), &files::to_sealed_json(&pool.settings)?)?; // last: from here on it is a pool
        Self::open(root)
    }
}

/// Publishes a file unless it holds these bytes already.
fn publish_unless_equal(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) { Ok(()) } else { files::publish(path, bytes) }
}

/// A recipe file with everything it points to loaded and checked; nothing is written yet.
struct Plan {
    place: String,
    sources: Vec<PathBuf>,
    text: ReadOptions,
    origin: Option<Origin>,
    tokenizer: Tokenizer,
    tokenizer_json: Vec<u8>,
    prefix_token: u32,
    model: ModelConfig,
    window: usize,
    seed: Option<TrainConfig>,
    expert: TrainConfig,
}

impl Plan {
    fn read(recipe: &Path, precision: Precision) -> Result<Self> {
        let file = RecipeFile::read(recipe)?;
        let place = recipe.display().to_string();
        let (seed, expert) = file.training(precision, &place)?;
        let resolve = |path: &Path| RecipeFile::resolve(recipe, path);
        let origin = file.from.as_deref().map(resolve).map(Origin::at).transpose()?;
        let (tokenizer_json, tokenizer_place) = match (&file.tokenizer, &origin) {
            (Some(path), _) => read_tokenizer(&resolve(path))?,
            (None, Some(origin)) => origin.tokenizer()?,
            (None, None) => return Err(Error::input(&place, "'tokenizer' is missing")),
        };
        let tokenizer = Tokenizer::from_json(&tokenizer_json, &tokenizer_place)?;
        let sources = file.seed.iter().flat_map(|seed| &seed.files).map(|path| resolve(path)).collect::<Vec<_>>();
        if seed.is_some() && sources.is_empty() {
            return Err(Error::input(&place, "'seed.files' is empty; name at least one text file"));
        }
        if seed.is_none() && origin.is_none() {
            let problem = "'seed' is missing; say how the seed model is trained, or name a model folder with 'from'";
            return Err(Error::input(&place, problem));
        }
        let window = file.window.unwrap_or(seed.as_ref().unwrap_or(&expert).sequence_length);
        if window == 0 {
            return Err(Error::input(&place, "'window' must be at least 1"));
        }
        let model = model_config(&file, origin.as_ref(), &tokenizer, &place)?;
        let lengths = seed.iter().chain([&expert]).map(|train| train.sequence_length);
        model.check_context(lengths.fold(window, usize::max), &place)?;
        Ok(Self {
            prefix_token: prefix_token(&file, origin.as_ref(), &tokenizer, &place)?,
            model,
            tokenizer_json,
            text: file.seed.as_ref().map(SeedSection::read_options).unwrap_or_default(),
            place,
            sources,
            origin,
            tokenizer,
            window,
            seed,
            expert,
        })
    }

    /// The seed's text, tokenised but not visible yet; none when the seed model is imported.
    fn stage_tokens(&self, store: &Path, observer: &dyn Observer) -> Result<Option<StagedTokens>> {
        if self.seed.is_none() {
            return Ok(None);
        }
        let Self { sources, text, tokenizer, model, .. } = self;
        refuse_impossible_tokens(store, sources)?;
        let staged = StagedTokens::of(store, sources, text, tokenizer, model.vocab_size, observer)?;
        if staged.manifest().n_tokens == 0 {
            return Err(Error::input(&self.place, "the files in 'seed.files' hold no token"));
        }
        if let Some(bad) = staged.bad_records() {
            observer.note(&format!("seed: {bad}"));
        }
        Ok(Some(staged))
    }

    /// The settings of the pool, but for the name of an imported model.
    fn settings(&self, seed_tokens: Option<&TokenManifest>) -> Settings {
        let seed = seed_tokens.zip(self.seed.clone());
        Settings {
            format: FORMAT,
            model: self.model.clone(),
            tokenizer: self.tokenizer.hash().to_owned(),
            prefix_token: self.prefix_token,
            window: self.window,
            origin: None,
            seed: seed.map(|(tokens, train)| SeedTraining { tokens: tokens.hash.clone(), train }),
            expert: self.expert.clone(),
        }
    }
}

fn refuse_other(existing: &Pool, wanted: &Pool) -> Error {
    Error::Usage(format!(
        "'{}' is already a pool with other settings ({}); choose another folder with --pool",
        existing.root.display(),
        different_settings(&existing.settings, &wanted.settings)
    ))
}

/// The token that begins documents: the recipe's, that of the model in `from` if its tokenizer is used, or one by its name.
fn prefix_token(file: &RecipeFile, origin: Option<&Origin>, tokenizer: &Tokenizer, place: &str) -> Result<u32> {
    if let Some(token) = &file.prefix_token {
        let missing = || Error::input(place, format!("'prefix_token' is '{token}', which the tokenizer does not have"));
        return tokenizer.id(token).ok_or_else(missing);
    }
    let own = if file.tokenizer.is_none() { origin.map(Origin::prefix).transpose()?.flatten() } else { None };
    if let Some(id) = own.filter(|id| *id as usize >= tokenizer.vocabulary()) {
        let known = tokenizer.vocabulary();
        return Err(Error::input(
            place,
            format!(
                "the model begins documents with id {id}, but its tokenizer has {known}; name one with 'prefix_token'"
            ),
        ));
    }
    own.or_else(|| tokenizer.prefix()).ok_or_else(|| {
        Error::input(place, "the tokenizer has no BOS or EOS under a usual name; name it with 'prefix_token'")
    })
}

/// The shape of the pool's models: a preset with the tokenizer's vocabulary, spelled out, or that of the model in `from`.
fn model_config(file: &RecipeFile, origin: Option<&Origin>, tokenizer: &Tokenizer, place: &str) -> Result<ModelConfig> {
    let vocabulary = tokenizer.vocabulary();
    let mut config = match (&file.model, origin) {
        (Some(ModelChoice::Preset(name)), None) => ModelConfig { vocab_size: vocabulary, ..ModelConfig::preset(name)? },
        (Some(ModelChoice::Spelled(fields)), None) => config_of(fields.clone().into(), &format!("{place}: model"))?,
        (Some(ModelChoice::Config(config)), None) => config.clone(),
        (None, Some(origin)) => origin.config()?,
        _ => {
            return Err(Error::input(
                place,
                "give either 'model' (trained from scratch) or 'from' (a model folder or a .gguf file)",
            ));
        }
    };
    if file.model.is_some() {
        config.check_runs()?;
    }
    config.check(place)?;
    if config.model_type == Family::Other && config.vocab_size == 0 {
        config.vocab_size = vocabulary;
    }
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
pub(super) fn different_settings(old: &Settings, new: &Settings) -> String {
    let (old, new) = (serde_json::to_value(old), serde_json::to_value(new));
    let (Ok(serde_json::Value::Object(old)), Ok(serde_json::Value::Object(new))) = (old, new) else {
        return "settings differ".into();
    };
    let differing: Vec<&str> =
        old.iter().filter(|(key, value)| new.get(*key) != Some(value)).map(|(key, _)| key.as_str()).collect();
    format!("different: {}", differing.join(", "))
}
