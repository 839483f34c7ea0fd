//! Settings: the recipe file a user writes for `init`, and what it resolves to in `pool.json`.

use crate::error::{Error, Result, closest};
use crate::files;
use crate::kernels::Precision;
use crate::model::ModelConfig;
use crate::text::{OnBadRecord, ReadOptions, TokenType};
use crate::train::{Schedule, TrainConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Version of the pool's files; another version is refused.
pub(super) const FORMAT: u32 = 1;
/// Sequences per step, unless the recipe says otherwise.
const BATCH: usize = 8;
/// Predictions per sequence, unless the recipe says otherwise.
const SEQUENCE: usize = 256;

/// `pool.json`: what every model and score of the pool has in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Version of the pool's files.
    pub format: u32,
    /// Shape of every model.
    pub model: ModelConfig,
    /// Hash of `tokenizer.json`.
    pub tokenizer: String,
    /// Id that begins every document (BOS, or EOS where there is none).
    pub prefix_token: u32,
    /// Predictions per scoring window.
    pub window: usize,
    /// The imported model that training starts from; none for a seed model trained from scratch.
    pub origin: Option<String>,
    /// How the seed model is trained; none when the imported model is the seed.
    pub seed: Option<SeedTraining>,
    /// How experts and ground-truth models are trained; `steps` is 0 when an expert sees its unit once.
    pub expert: TrainConfig,
}

/// How the seed model is trained, and on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeedTraining {
    /// Hash of the token file.
    pub tokens: String,
    /// Training settings.
    pub train: TrainConfig,
}

/// A recipe file: the model, the tokenizer, and how seed and experts are trained.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// A preset's name, or a mapping with the fields of `config.json`; for a model trained from scratch.
    pub model: Option<ModelChoice>,
    /// A model to start from, relative to the recipe: the folder of an object of a pool or of a model in Hugging Face's
    /// form, or a GGUF file.
    pub from: Option<PathBuf>,
    /// Path of `tokenizer.json`, relative to the recipe (default: that of `from`).
    pub tokenizer: Option<PathBuf>,
    /// The token that begins a document, when the tokenizer's own BOS or EOS is not found by its usual names.
    pub prefix_token: Option<String>,
    /// Predictions per scoring window (default: the seed's `sequence_length`).
    pub window: Option<usize>,
    /// Training of the seed model; left out, the model in `from` is the seed.
    pub seed: Option<SeedSection>,
    /// Training of the experts.
    pub expert: ExpertSection,
}

/// `model:` of a recipe.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "expected the name of a preset (pico, nano, micro, small, smol-135m) or a mapping with these fields of a \
                 config.json: vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, \
                 num_key_value_heads, head_dim, rms_norm_eps, rope_theta, max_position_embeddings, tie_word_embeddings; and, where the model is not plain \
                 Llama, model_type, rope_scaling, attention_bias, mlp_bias, sliding_window; or a mapping with model_type gpt2 or gpt_neox \
                 and the fields of such a config.json"
)]
pub enum ModelChoice {
    /// One of [`crate::model::PRESETS`].
    Preset(String),
    /// Spelled out in the fields of a family that has names of its own for them.
    Spelled(FamilyFields),
    /// Spelled out.
    Config(ModelConfig),
}

/// The fields of a `config.json` whose `model_type` is one that spells them in its own way.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct FamilyFields(Map<String, Value>);

impl TryFrom<Map<String, Value>> for FamilyFields {
    type Error = &'static str;

    fn try_from(fields: Map<String, Value>) -> std::result::Result<Self, Self::Error> {
        let own = matches!(fields.get("model_type").and_then(Value::as_str), Some("gpt2" | "gpt_neox"));
        if own { Ok(Self(fields)) } else { Err("expected 'model_type' gpt2 or gpt_neox") }
    }
}

impl From<FamilyFields> for Map<String, Value> {
    fn from(fields: FamilyFields) -> Self {
        fields.0
    }
}

/// `seed:` of a recipe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedSection {
    /// Files, folders and patterns of text or token ids, relative to the recipe.
    pub files: Vec<PathBuf>,
    /// Field of records, or column of tables, that holds the text.
    #[serde(default = "default_text_field")]
    pub text_field: String,
    /// `fail` (default), `skip` or `quarantine`.
    #[serde(default)]
    pub on_bad_record: OnBadRecord,
    /// Type of the ids in files of token ids without a header: `u16`, `u32`, ...
    pub token_dtype: Option<TokenType>,
    /// The token that ends documents in files of token ids, when it is not found by its usual names.
    pub end_token: Option<String>,
    /// Training tokens: `800000`, `800k`, `2M`.
    pub tokens: Count,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// `cosine` (default) or `constant`.
    pub schedule: Option<Schedule>,
    /// Warm-up steps (default: a twentieth of the steps).
    pub warmup_steps: Option<u64>,
    /// Where the cosine ends, as a fraction of the peak (default 0.1).
    pub final_rate: Option<f64>,
    /// Sequences per step (default 8).
    pub batch_size: Option<usize>,
    /// Sequences per pass (default: all of a step).
    pub micro_batch_size: Option<usize>,
    /// Predictions per sequence (default 256).
    pub sequence_length: Option<usize>,
    /// Weight decay of matrices (default 0.1).
    pub weight_decay: Option<f64>,
    /// Gradient norm limit (default 1).
    pub clip: Option<f64>,
    /// Seeds initialisation and data order (default 0).
    pub random_seed: Option<u64>,
    /// `f32` (default), or on GPUs only `tf32` or `bf16`.
    pub precision: Option<Precision>,
}

/// `expert:` of a recipe; what is left out is taken from the seed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertSection {
    /// Training tokens per unit (default: one pass over the unit).
    pub tokens: Option<Count>,
    /// Learning rate, constant by default: what keeps experts mergeable.
    pub learning_rate: f64,
    /// `constant` (default) or `cosine`.
    pub schedule: Option<Schedule>,
    /// Warm-up steps (default 0).
    pub warmup_steps: Option<u64>,
    /// Where a cosine ends (default 0.1).
    pub final_rate: Option<f64>,
    /// Sequences per step.
    pub batch_size: Option<usize>,
    /// Sequences per pass.
    pub micro_batch_size: Option<usize>,
    /// Predictions per sequence.
    pub sequence_length: Option<usize>,
    /// Weight decay of matrices.
    pub weight_decay: Option<f64>,
    /// Gradient norm limit.
    pub clip: Option<f64>,
    /// Seeds the data order.
    pub random_seed: Option<u64>,
    /// `f32`, `tf32` or `bf16`.
    pub precision: Option<Precision>,
}

/// A number of tokens: `800000`, `800k`, `2M`, `1.5B`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a number of tokens such as 500000, 500k or 2M")]
pub enum Count {
    /// A plain number.
    Number(u64),
    /// A number with a suffix.
    Text(String),
}

fn default_text_field() -> String {
    "text".into()
}

impl Count {
    /// The number meant.
    ///
    /// # Errors
    /// [`Error::Input`] naming `place`.
    pub fn tokens(&self, place: &str) -> Result<u64> {
        let (number, text) = match self {
            Self::Number(number) => (Some(*number), number.to_string()),
            Self::Text(text) => (parse_count(text), text.clone()),
        };
        number.filter(|number| *number > 0).ok_or_else(|| {
            Error::input(place, format!("'{text}' is not a number of tokens such as 500000, 500k or 2M"))
        })
    }
}

/// Reads `500000`, `500k`, `2M`, `1.5B`.
pub fn parse_count(text: &str) -> Option<u64> {
    let text = text.trim().replace('_', "");
    let (digits, factor) = match text.strip_suffix(['k', 'K', 'M', 'm', 'B', 'b', 'G']) {
        Some(digits) if text.ends_with(['k', 'K']) => (digits, 1e3),
        Some(digits) if text.ends_with(['M', 'm']) => (digits, 1e6),
        Some(digits) => (digits, 1e9),
        None => (text.as_str(), 1.0),
    };
    let number: f64 = digits.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)?;
    Some((number * factor).round() as u64)
}

impl RecipeFile {
    /// Reads a recipe.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Input`] with line and column when it is not a recipe; an unknown key
    /// comes with the closest known one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read_text(path)?;
        serde_saphyr::from_str(&text).map_err(|error| recipe_error(path, &error))
    }

    /// The path a recipe means: relative to its own folder.
    pub fn resolve(recipe: &Path, path: &Path) -> PathBuf {
        recipe.parent().unwrap_or(Path::new("")).join(path)
    }

    /// The training settings of seed and experts; `precision` is theirs where the recipe names none.
    ///
    /// # Errors
    /// [`Error::Input`] naming the section and the field that is out of range.
    pub fn training(&self, precision: Precision, place: &str) -> Result<(Option<TrainConfig>, TrainConfig)> {
        let place_of = |section: &str| format!("{place}: {section}");
        let seed = self.seed.as_ref().map(|section| section.training(precision, &place_of("seed"))).transpose()?;
        let expert = self.expert.training(seed.as_ref(), precision, &place_of("expert"))?;
        Ok((seed, expert))
    }
}

impl SeedSection {
    /// How its files are read.
    pub(super) fn read_options(&self) -> ReadOptions {
        ReadOptions {
            text_field: self.text_field.clone(),
            on_bad_record: self.on_bad_record,
            token_type: self.token_dtype,
            end_token: self.end_token.clone(),
            ..ReadOptions::default()
        }
    }

    fn training(&self, precision: Precision, place: &str) -> Result<TrainConfig> {
        let s = self;
        let mut seed =
            TrainConfig::new(1, s.batch_size.unwrap_or(BATCH), s.sequence_length.unwrap_or(SEQUENCE), s.learning_rate);
        seed.schedule = s.schedule.unwrap_or(Schedule::Cosine);
        seed.final_rate = s.final_rate.unwrap_or(seed.final_rate);
        seed.micro_batch_size = s.micro_batch_size.unwrap_or(seed.batch_size);
        seed.weight_decay = s.weight_decay.unwrap_or(seed.weight_decay);
        seed.clip = s.clip.unwrap_or(seed.clip);
        seed.seed = s.random_seed.unwrap_or(0);
        seed.precision = s.precision.unwrap_or(precision);
        seed.steps = seed.steps_for(s.tokens.tokens(&format!("{place}.tokens"))?);
        seed.warmup_steps = s.warmup_steps.unwrap_or(seed.steps / 20);
        seed.check(place)?;
        Ok(seed)
    }
}

impl ExpertSection {
    fn training(&self, seed: Option<&TrainConfig>, precision: Precision, place: &str) -> Result<TrainConfig> {
        let e = self;
        let mut expert = seed.cloned().unwrap_or_else(|| TrainConfig::new(1, BATCH, SEQUENCE, e.learning_rate));
        expert.learning_rate = e.learning_rate;
        expert.schedule = e.schedule.unwrap_or(Schedule::Constant);
        expert.final_rate = e.final_rate.unwrap_or(expert.final_rate);
        expert.micro_batch_size = e.micro_batch_size.or(e.batch_size).unwrap_or(expert.micro_batch_size);
        expert.batch_size = e.batch_size.unwrap_or(expert.batch_size);
        expert.sequence_length = e.sequence_length.unwrap_or(expert.sequence_length);
        expert.weight_decay = e.weight_decay.unwrap_or(expert.weight_decay);
        expert.clip = e.clip.unwrap_or(expert.clip);
        expert.seed = e.random_seed.unwrap_or(expert.seed);
        expert.precision = e.precision.unwrap_or(if seed.is_some() { expert.precision } else { precision });
        expert.warmup_steps = e.warmup_steps.unwrap_or(0);
        expert.steps = 1;
        expert.check(place)?;
        expert.steps = match &e.tokens {
            Some(tokens) => expert.steps_for(tokens.tokens(&format!("{place}.tokens"))?),
            None => 0,
        };
        Ok(expert)
    }
}

/// What the YAML reader says, in words for people who write recipes.
const WORDED: [(&str, &str); 5] = [
    ("invalid u64", "expected a whole number"),
    ("invalid f64", "expected a number"),
    ("expected sequence start", "expected a list such as [general.txt]"),
    ("unexpected end of input", "the file ends; expected lines of the form 'key: value'"),
    ("expected mapping start", "expected lines of the form 'key: value'"),
];

/// One line from the YAML reader's message, with a hint when a key is misspelt.
fn recipe_error(path: &Path, error: &serde_saphyr::Error) -> Error {
    let message = error.to_string();
    let line = message.lines().next().unwrap_or_default().trim_end_matches(':');
    let (place, said) = match error.location() {
        Some(at) => {
            let (line_number, column) = (at.line(), at.column());
            let place = format!("{}:{line_number}:{column}", path.display());
            (place, line.trim_start_matches(&format!("error: line {line_number} column {column}: ")))
        }
        None => (path.display().to_string(), line),
    };
    let worded = WORDED.iter().find(|(theirs, _)| said.starts_with(theirs)).map_or(said, |(_, ours)| *ours);
    // "unknown field `exprt`, expected one of model, seed, expert"
    let names = said.split_once(", expected one of ").filter(|_| said.starts_with("unknown "));
    let hint = names.and_then(|(wrong, known)| closest(wrong.split('`').nth(1)?, known.split(", ")));
    let hint = hint.map(|known| format!("; did you mean '{known}'?")).unwrap_or_default();
    Error::input(place, format!("{worded}{hint}"))
}
