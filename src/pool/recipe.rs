//! Recipe: what fully determines a trained model, and the hash that names it.

use super::{Online, OnlineCost};
use crate::error::Result;
use crate::files;
use crate::model::ModelConfig;
use crate::train::TrainConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where training starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// From fresh parameters drawn with the training seed.
    Scratch,
    /// From the object of this name.
    Object(String),
    /// Not trained here: the weights with this hash were imported.
    Imported(String),
    /// Not trained here: an adapter on top of an object.
    Adapter {
        /// Name of the object.
        base: String,
        /// Hash of the adapter's files.
        weights: String,
    },
}

/// Some documents of a token file and their share of the training sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataShare {
    /// Hash of the token file.
    pub tokens: String,
    /// First document, and the one after the last.
    pub documents: (usize, usize),
    /// Share of the sequences.
    pub weight: f64,
}

/// Everything that determines a trained model. Seed model, expert and ground truth differ only in what they say here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Version of the meaning of a recipe; raised when the same recipe would give other bytes.
    pub version: u32,
    /// Shape of the model.
    pub model: ModelConfig,
    /// Hash of `tokenizer.json`.
    pub tokenizer: String,
    /// Id that separates documents.
    pub prefix_token: u32,
    /// Starting point.
    pub start: Start,
    /// Training data, sorted.
    pub data: Vec<DataShare>,
    /// Training settings.
    pub train: TrainConfig,
    /// How the weights of the data change while it is trained; none when they do not and units take turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<Online>,
}

impl Recipe {
    /// The version that this code gives meaning to.
    pub const VERSION: u32 = 1;

    /// The name of the object: BLAKE3 of the recipe's canonical JSON (fields in declaration order, shortest decimals).
    pub fn id(&self) -> Result<String> {
        Ok(files::hash(&files::to_json(self)?))
    }

    /// The same training with its batches drawn in another order; 0 is the recipe itself.
    #[must_use]
    pub fn repeated(mut self, repeat: u64) -> Self {
        self.train.seed += repeat;
        self
    }

    /// Puts the data into their canonical order.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.data.sort_by(|a, b| (&a.tokens, a.documents).cmp(&(&b.tokens, b.documents)));
        self
    }
}

/// What an object says of itself, beside its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The recipe's hash: the object's name.
    pub id: String,
    /// BLAKE3 of `model.safetensors` (of several hashes for shards and for adapters); scores name models by it.
    pub weights: String,
    /// How the model was made.
    pub recipe: Recipe,
    /// Trained parameters.
    pub n_parameters: u64,
    /// Training tokens seen.
    pub n_tokens: u64,
    /// Loss of the last training step, nats per token; none for an imported model.
    pub final_loss: Option<f64>,
    /// How far training moved: Σ|θ − θ₀| / Σ(|θ| + |θ₀|); none for a model trained from scratch.
    pub relative_update: Option<f64>,
    /// Seconds of training in the process that finished it.
    pub seconds: f64,
    /// Version of mixpool that wrote the object.
    pub created_by: String,
    /// Hashes of the other files in the folder, by name; empty in objects of earlier versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// What an online method did beside training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<OnlineCost>,
}
