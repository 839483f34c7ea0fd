//! Model config: the shape of a model, as Hugging Face's `config.json` describes it, with named presets.

use super::family::{Activation, Family, RopeScaling};
use crate::error::{Error, Result, closest};
use crate::kernels::Heads;
use serde::{Deserialize, Serialize};

/// Names accepted by [`ModelConfig::preset`], smallest first.
pub const PRESETS: [&str; 5] = ["pico", "nano", "micro", "small", "smol-135m"];

/// The shape of a model. Field names are those of Hugging Face's `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // Hugging Face's fields
pub struct ModelConfig {
    /// What the model has beyond Llama, or instead.
    #[serde(default, skip_serializing_if = "Family::is_llama")]
    pub model_type: Family,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads (grouped-query attention when fewer than query heads).
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Epsilon inside the root of norms (of layer norms too).
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies; means nothing where positions are learned.
    pub rope_theta: f64,
    /// Longest sequence the model is meant for.
    pub max_position_embeddings: usize,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// How rotary frequencies are scaled, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether all four projections of the attention have biases.
    #[serde(default, skip_serializing_if = "is_false")]
    pub attention_bias: bool,
    /// Whether the three projections of the feed-forward layer have biases.
    #[serde(default, skip_serializing_if = "is_false")]
    pub mlp_bias: bool,
    /// How many tokens, itself included, a token sees; longer sequences are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<usize>,
    /// What the feed-forward layer does to its inner values.
    #[serde(default, skip_serializing_if = "Activation::is_silu")]
    pub hidden_act: Activation,
    /// Whether both layers of a block read its input; else the second reads what the first has made of it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub use_parallel_residual: bool,
    /// The share of a head's elements that turn with the position; all of them when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial_rotary_factor: Option<f64>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(value: &bool) -> bool {
    !*value
}

impl ModelConfig {
    /// A named shape.
    ///
    /// | name | parameters | hidden | layers | heads / KV | feed-forward | vocabulary |
    /// |---|---|---|---|---|---|---|
    /// | `pico` | 32 k | 32 | 2 | 4 / 2 | 48 | 512 |
    /// | `nano` | 1.3 M | 128 | 4 | 4 / 2 | 344 | 4096 |
    /// | `micro` | 6.4 M | 256 | 6 | 8 / 4 | 688 | 8192 |
    /// | `small` | 32 M | 512 | 8 | 8 / 4 | 1376 | 16384 |
    /// | `smol-135m` | 135 M | 576 | 30 | 9 / 3 | 1536 | 49152 |
    ///
    /// All are tied. The vocabulary follows the tokenizer of the pool.
    ///
    /// # Errors
    /// [`Error::Usage`] for another name, with the closest known one.
    ///
    /// # Examples
    /// ```
    /// let micro = mixpool::model::ModelConfig::preset("micro")?;
    /// assert_eq!((micro.hidden_size, micro.num_hidden_layers), (256, 6));
    /// # Ok::<(), mixpool::Error>(())
    /// ```
    pub fn preset(name: &str) -> Result<Self> {
        let (hidden, layers, heads, keys, ffn, vocabulary, positions) = match name {
            "pico" => (32, 2, 4, 2, 48, 512, 256),
            "nano" => (128, 4, 4, 2, 344, 4096, 1024),
            "micro" => (256, 6, 8, 4, 688, 8192, 2048),
            "small" => (512, 8, 8, 4, 1376, 16384, 2048),
            "smol-135m" => (576, 30, 9, 3, 1536, 49152, 2048),
            _ => {
                let hint = closest(name, PRESETS).map(|c| format!("; did you mean '{c}'?")).unwrap_or_default();
                return Err(Error::Usage(format!(
                    "unknown model preset '{name}' (known: {}){hint}",
                    PRESETS.join(", ")
                )));
            }
        };
        Ok(Self {
            model_type: Family::Llama,
            vocab_size: vocabulary,
            hidden_size: hidden,
            intermediate_size: ffn,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: keys,
            head_dim: hidden / heads,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            max_position_embeddings: positions,
            tie_word_embeddings: true,
            rope_scaling: None,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: None,
            hidden_act: Activation::Silu,
            use_parallel_residual: false,
            partial_rotary_factor: None,
        })
    }

    /// A model of a family that is not known, of which nothing but the vocabulary is known.
    pub(super) fn unknown(vocab_size: usize) -> Self {
        Self {
            model_type: Family::Other,
            vocab_size,
            hidden_size: 0,
            intermediate_size: 0,
            num_hidden_layers: 0,
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim: 0,
            rms_norm_eps: 0.0,
            rope_theta: 0.0,
            max_position_embeddings: 0,
            tie_word_embeddings: false,
            rope_scaling: None,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: None,
            hidden_act: Activation::Silu,
            use_parallel_residual: false,
            partial_rotary_factor: None,
        }
    }

    /// The layout of the attention heads.
    pub fn heads(&self) -> Heads {
        Heads { queries: self.num_attention_heads, keys: self.num_key_value_heads, dim: self.head_dim }
    }

    /// Checks that the numbers describe a model that can be built.
    ///
    /// # Errors
    /// [`Error::Input`] naming `place` and the first field that makes no sense.
    pub fn check(&self, place: &str) -> Result<()> {
        if self.model_type == Family::Other {
            return Ok(()); // nothing is built
        }
        // Far above any model that was ever trained, and low enough for sizes that are products of these.
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 18),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 14),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 40),
        ];
        if let Some((field, value, most)) = sizes.iter().find(|(_, value, most)| value == &0 || value > most) {
            return Err(Error::input(place, format!("'{field}' must be 1 to {most}, got {value}")));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(Error::input(
                place,
                format!(
                    "'num_attention_heads' ({}) must be a multiple of 'num_key_value_heads' ({})",
                    self.num_attention_heads, self.num_key_value_heads
                ),
            ));
        }
        if !(self.head_dim.is_multiple_of(2) || self.has_learned_positions()) {
            return Err(Error::input(
                place,
                format!("'head_dim' must be even for rotary positions, got {}", self.head_dim),
            ));
        }
        if !(self.rms_norm_eps > 0.0 && self.rope_theta > 0.0) {
            return Err(Error::input(place, "'rms_norm_eps' and 'rope_theta' must be positive"));
        }
        self.check_family(place)
    }

    /// Floating-point operations of one forward pass per token, matrix products only (2 per multiply-add).
    pub fn forward_flops_per_token(&self, context: usize) -> f64 {
        let heads = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        let matrices = if self.hidden_act.is_silu() { 3 } else { 2 }; // of the feed-forward layer
        let block = self.hidden_size * (2 * heads + 2 * keys + matrices * self.intermediate_size) + heads * context;
        2.0 * (self.num_hidden_layers * block + self.vocab_size * self.hidden_size) as f64
    }
}
