//! Pool: seed model, experts, tokenised data, evaluation sets and every score, in one folder.
//!
//! | path | holds |
//! |---|---|
//! | `pool.json`, `tokenizer.json` | what everything in the pool has in common |
//! | `tokens/<hash>/` | tokenised documents, immutable |
//! | `objects/<recipe hash>/` | trained models, each a Hugging Face folder with a manifest, immutable |
//! | `partitions/<name>.json`, `evals/<name>.json` | names bound to tokens; replaced atomically |
//! | `scores/<hash>.log` | append-only score records of one eval set |
//! | `work/<recipe hash>.*` | claims and the state of unfinished training |
//!
//! A name binds only to a complete object, and a score names its inputs by hash.

mod binding;
mod recipe;
mod scores;
mod settings;
mod training;

pub use binding::{EvalBinding, Outcome, Partition};
pub use recipe::{DataShare, Manifest, Recipe, Start};
pub use scores::{ScoreLog, ScoreRecord};
pub use settings::{Count, RecipeFile, Settings, parse_count};

use crate::error::{Error, Result};
use crate::eval::{EvalSet, Evaluator, PROTOCOL, Score};
use crate::files;
use crate::merge::average;
use crate::mixture::{Mixture, unknown};
use crate::model::{Checkpoint, Layout};
use crate::progress::Observer;
use crate::text::{ReadOptions, TokenFile, TokenManifest, Tokenizer, tokenize_files};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// An open pool.
pub struct Pool {
    root: PathBuf,
    settings: Settings,
    layout: Layout,
}

/// A model as a member of a merge: the hash of its weights, its folder, its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// BLAKE3 of `model.safetensors`.
    pub weights: String,
    /// The object's folder.
    pub folder: PathBuf,
    /// Its weight in the average.
    pub weight: f64,
}

/// The trained expert of every unit of every partition, as far as there is one.
pub struct Experts {
    units: BTreeMap<String, Vec<Option<Member>>>,
}

impl Experts {
    /// The expert models of a mixture, each with its weight.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the partitions whose experts are not trained yet.
    pub fn members(&self, mixture: &Mixture) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        let mut missing = Vec::new();
        for (name, unit, weight) in mixture.members() {
            match self.units.get(name).and_then(|units| units.get(unit)?.clone()) {
                Some(expert) => members.push(Member { weight, ..expert }),
                None if missing.last() != Some(&name) => missing.push(name),
                None => {}
            }
        }
        if missing.is_empty() {
            return Ok(canonical(members));
        }
        let (names, list) = (missing.join("', '"), missing.join(" "));
        Err(Error::Usage(format!("no expert yet for '{names}'; run 'mixpool train {list}' first")))
    }
}

impl Pool {
    /// Creates a pool from a recipe file; a pool that was created from an equal recipe is opened.
    ///
    /// # Errors
    /// Those of [`RecipeFile::read`], of reading the seed's text and of tokenising it; [`Error::Usage`] when a pool with
    /// other settings is there already.
    pub fn init(root: &Path, recipe: &Path, observer: &dyn Observer) -> Result<Self> {
        let file = RecipeFile::read(recipe)?;
        let place = recipe.display().to_string();
        let (seed, expert) = file.training(&place)?;
        let tokenizer_path = RecipeFile::resolve(recipe, &file.tokenizer);
        let tokenizer = Tokenizer::load(&tokenizer_path)?;
        let prefix_token = prefix_token(&file, &tokenizer, &place)?;
        let model = model_config(&file, &tokenizer, &place)?;
        let sources: Vec<PathBuf> = file.seed.files.iter().map(|path| RecipeFile::resolve(recipe, path)).collect();
        if sources.is_empty() {
            return Err(Error::input(&place, "'seed.files' is empty; name at least one text file"));
        }
        let options = ReadOptions { text_field: file.seed.text_field.clone(), ..ReadOptions::default() };
        files::create_folder(root)?;
        for folder in ["tokens", "objects", "partitions", "evals", "scores", "work"] {
            files::create_folder(&root.join(folder))?;
        }
        let tokens = tokenize_files(&root.join("tokens"), &sources, &options, &tokenizer, model.vocab_size, observer)?;
        let window = file.window.unwrap_or(seed.sequence_length);
        if window == 0 {
            return Err(Error::input(&place, "'window' must be at least 1"));
        }
        let settings = Settings {
            format: settings::FORMAT,
            model,
            tokenizer: tokenizer.hash().to_owned(),
            prefix_token,
            window,
            seed_tokens: tokens.hash,
            seed,
            expert,
        };
        let settings_path = root.join(POOL);
        if settings_path.exists() {
            let pool = Self::open(root)?;
            if pool.settings != settings {
                return Err(Error::Usage(format!(
                    "'{}' is already a pool with other settings ({}); choose another folder with --pool",
                    root.display(),
                    different_settings(&pool.settings, &settings)
                )));
            }
            return Ok(pool);
        }
        let bytes = std::fs::read(&tokenizer_path).map_err(Error::io("read", &tokenizer_path))?;
        files::publish(&root.join(TOKENIZER), &bytes)?;
        files::publish(&settings_path, &files::to_json(&settings)?)?; // last: from here on it is a pool
        Self::open(root)
    }

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
        let value: serde_json::Value = files::read_json(&path)?;
        let format = value["format"].as_u64();
        if format != Some(u64::from(settings::FORMAT)) {
            return Err(Error::Usage(format!(
                "'{}' has pool format {}, this mixpool reads format {}; use the version of mixpool that made it",
                path.display(),
                format.map_or("(none)".into(), |f| f.to_string()),
                settings::FORMAT
            )));
        }
        let settings: Settings =
            serde_json::from_value(value).map_err(|error| Error::damaged(&path, error.to_string()))?;
        for folder in ["tokens", "objects", "partitions", "evals", "scores", "work"] {
            files::sweep(&root.join(folder))?;
        }
        let layout = Layout::of(&settings.model);
        Ok(Self { root: root.to_path_buf(), settings, layout })
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
    pub fn tokens(&self, hash: &str) -> Result<TokenFile> {
        TokenFile::open(&self.root.join("tokens").join(hash))
    }

    /// Tokenises documents into the pool.
    fn tokenize(&self, paths: &[PathBuf], options: &ReadOptions, observer: &dyn Observer) -> Result<TokenManifest> {
        let path = self.root.join(TOKENIZER);
        let tokenizer = Tokenizer::load(&path)?;
        if tokenizer.hash() != self.settings.tokenizer {
            return Err(Error::damaged(path, "it is not the tokenizer the pool was made with; restore it"));
        }
        let vocabulary = self.settings.model.vocab_size;
        tokenize_files(&self.root.join("tokens"), paths, options, &tokenizer, vocabulary, observer)
    }

    /// Looks up the trained expert of every unit.
    pub fn experts(&self) -> Result<Experts> {
        let mut experts = Experts { units: BTreeMap::new() };
        for (name, partition) in self.partitions()? {
            let expert = |unit| self.manifest(&self.expert_recipe(&partition, unit)?.id()?);
            let manifests = (0..partition.units.len()).map(expert).collect::<Result<Vec<_>>>()?;
            let member = |manifest: Manifest| self.single(&manifest).remove(0);
            experts.units.insert(name, manifests.into_iter().map(|manifest| manifest.map(member)).collect());
        }
        Ok(experts)
    }

    /// The member list of one trained object.
    pub fn single(&self, manifest: &Manifest) -> Vec<Member> {
        let folder = self.object_folder(&manifest.id);
        vec![Member { weights: manifest.weights.clone(), folder, weight: 1.0 }]
    }

    /// An eval set and its score log.
    fn eval(&self, name: &str) -> Result<EvalHandle> {
        let binding = self.eval_binding(name)?;
        let key = files::hash(
            format!(
                "protocol {PROTOCOL} tokens {} window {} prefix {}",
                binding.tokens, self.settings.window, self.settings.prefix_token
            )
            .as_bytes(),
        );
        let log = ScoreLog::open(&self.root.join("scores").join(format!("{key}.log")))?;
        Ok(EvalHandle { name: name.to_owned(), tokens: binding.tokens, set: None, log })
    }

    /// A scorer over some eval sets; all of them when `names` is empty.
    ///
    /// # Errors
    /// [`Error::Usage`] when a name is unknown or there is no eval set at all.
    pub fn scorer(&self, names: &[String]) -> Result<Scorer<'_>> {
        let names = if names.is_empty() { self.eval_names()? } else { names.to_vec() };
        if names.is_empty() {
            return Err(Error::Usage("no eval set yet; run 'mixpool eval-set NAME FILE...' first".into()));
        }
        let evals = names.iter().map(|name| self.eval(name)).collect::<Result<_>>()?;
        Ok(Scorer { pool: self, evals, evaluator: None })
    }
}

/// Sorts members by the hash of their weights and adds up the weights of equal ones, so that a merge and its key depend
/// on what is merged and not on names or order.
fn canonical(members: Vec<Member>) -> Vec<Member> {
    let mut merged: BTreeMap<String, Member> = BTreeMap::new();
    for member in members {
        match merged.get_mut(&member.weights) {
            Some(known) => known.weight += member.weight,
            None => {
                merged.insert(member.weights.clone(), member);
            }
        }
    }
    merged.into_values().collect()
}

/// The key of a score: hashes and exact weights of everything merged.
pub fn score_key(members: &[Member]) -> String {
    let parts: Vec<String> =
        members.iter().map(|member| format!("{}:{:016x}", member.weights, member.weight.to_bits())).collect();
    files::hash(format!("weighted sum in f64 on cpu f32\n{}", parts.join("\n")).as_bytes())
}

/// One eval set of a scorer: its log, and its windows once they are needed.
struct EvalHandle {
    name: String,
    tokens: String,
    set: Option<EvalSet>,
    log: ScoreLog,
}

/// A score with what is known about how it came about.
#[derive(Debug, Clone)]
pub struct Scored {
    /// Name of the eval set.
    pub eval_set: String,
    /// The stored record.
    pub record: ScoreRecord,
    /// Whether it was there before.
    pub cached: bool,
}

/// Scores member lists on some eval sets; what was scored before is read from the log.
pub struct Scorer<'a> {
    pool: &'a Pool,
    evals: Vec<EvalHandle>,
    evaluator: Option<Evaluator>,
}

impl Scorer<'_> {
    /// Names of the eval sets, in order.
    pub fn eval_names(&self) -> Vec<String> {
        self.evals.iter().map(|eval| eval.name.clone()).collect()
    }

    /// What is stored for each eval set, by how the model came about; computes nothing.
    pub fn stored(&self, estimator: &str) -> Vec<(String, Vec<Scored>)> {
        let of = |eval: &EvalHandle| {
            let records = eval.log.records().filter(|record| record.estimator == estimator);
            let scored =
                |record: &ScoreRecord| Scored { eval_set: eval.name.clone(), record: record.clone(), cached: true };
            (eval.name.clone(), records.map(scored).collect())
        };
        self.evals.iter().map(of).collect()
    }

    /// Whether every score of these members is stored.
    pub fn is_cached(&self, members: &[Member]) -> bool {
        let key = score_key(members);
        self.evals.iter().all(|eval| eval.log.get(&key).is_some())
    }

    /// Scores the average of `members` on every eval set, in order; `label` is kept in the log for readers.
    ///
    /// The merge goes straight from the mapped files into the model; each finished score is stored at once.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when members do not fit the pool, [`Error::NotFinite`] when a log-likelihood is not finite.
    pub fn score(&mut self, members: &[Member], label: &str, observer: &dyn Observer) -> Result<Vec<Scored>> {
        self.score_as(members, label, "merged", observer)
    }

    /// As [`Scorer::score`], noting in the log how the model came about.
    pub fn score_as(
        &mut self,
        members: &[Member],
        label: &str,
        estimator: &str,
        observer: &dyn Observer,
    ) -> Result<Vec<Scored>> {
        let key = score_key(members);
        let mut merge_seconds = None;
        let mut scored = Vec::with_capacity(self.evals.len());
        for index in 0..self.evals.len() {
            if let Some(record) = self.evals[index].log.get(&key) {
                let record = record.clone();
                scored.push(Scored { eval_set: self.evals[index].name.clone(), record, cached: true });
                continue;
            }
            observer.check()?;
            let merge_seconds = match merge_seconds {
                Some(seconds) => seconds,
                None => *merge_seconds.insert(self.merge(members)?),
            };
            let record = ScoreRecord {
                key: key.clone(),
                mixture: label.to_owned(),
                estimator: estimator.to_owned(),
                merge_seconds,
                ..self.evaluate(index, label)?
            };
            self.evals[index].log.append(record.clone())?;
            scored.push(Scored { eval_set: self.evals[index].name.clone(), record, cached: false });
        }
        Ok(scored)
    }

    /// Overwrites the model with the average of `members`; returns the seconds it took.
    fn merge(&mut self, members: &[Member]) -> Result<f64> {
        let Settings { model, window, .. } = &self.pool.settings;
        let evaluator = match &mut self.evaluator {
            Some(evaluator) => evaluator,
            None => self.evaluator.insert(Evaluator::new(model, &self.pool.layout, *window)?),
        };
        let start = Instant::now();
        let open = members.iter().map(|member| Checkpoint::open(&member.folder)).collect::<Result<Vec<_>>>()?;
        let weighted: Vec<(f64, &Checkpoint)> = members.iter().map(|member| member.weight).zip(&open).collect();
        evaluator.set(|out| average(out, &self.pool.layout, &weighted))?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Runs the model over one eval set.
    fn evaluate(&mut self, index: usize, label: &str) -> Result<ScoreRecord> {
        let Settings { window, prefix_token, .. } = self.pool.settings;
        let eval = &mut self.evals[index];
        let set = if let Some(set) = &eval.set {
            set
        } else {
            let tokens = self.pool.tokens(&eval.tokens)?;
            eval.set.insert(EvalSet::new(&eval.name, &tokens, prefix_token, window)?)
        };
        let start = Instant::now();
        let Some(evaluator) = &self.evaluator else {
            return Err(Error::Usage("nothing was merged".into()));
        };
        let documents = evaluator.nll(set)?;
        let place = format!("eval set '{}' under mixture '{label}'", eval.name);
        Ok(ScoreRecord {
            score: Score::from_documents(&documents, set.n_tokens(), set.n_bytes(), &place)?,
            eval_seconds: start.elapsed().as_secs_f64(),
            documents,
            ..ScoreRecord::default()
        })
    }
}

const POOL: &str = "pool.json";
const TOKENIZER: &str = "tokenizer.json";
const MANIFEST: &str = "manifest.json";

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

fn model_config(file: &RecipeFile, tokenizer: &Tokenizer, place: &str) -> Result<crate::model::ModelConfig> {
    let vocabulary = tokenizer.vocabulary();
    let config = match &file.model {
        settings::ModelChoice::Preset(name) => {
            let mut config = crate::model::ModelConfig::preset(name)?;
            config.vocab_size = vocabulary;
            config
        }
        settings::ModelChoice::Config(config) => config.clone(),
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

/// "unknown eval set ...", worded like an unknown partition.
fn unknown_eval(name: &str, known: &[String]) -> String {
    unknown(name, known.iter()).replacen("partition", "eval set", 1)
}
