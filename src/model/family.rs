//! Family: what sets models apart that are otherwise Llama, and how the position of a token is scaled.

use super::ModelConfig;
use crate::error::{Error, Result};
use crate::kernels::rope_frequencies;
use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

/// The families that one transformer covers; names are those of `model_type` in Hugging Face's `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 1 to 3, `SmolLM` and whatever else calls itself `llama`.
    #[default]
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen3: every head of queries and keys is normed.
    Qwen3,
    /// `OLMo` 2: queries and keys are normed whole; the norms of a block stand after its layers.
    Olmo2,
}

impl Family {
    /// Every family, with the class that `transformers` has for it.
    const ALL: [(Self, &str, &str); 5] = [
        (Self::Llama, "llama", "LlamaForCausalLM"),
        (Self::Mistral, "mistral", "MistralForCausalLM"),
        (Self::Qwen2, "qwen2", "Qwen2ForCausalLM"),
        (Self::Qwen3, "qwen3", "Qwen3ForCausalLM"),
        (Self::Olmo2, "olmo2", "Olmo2ForCausalLM"),
    ];

    /// The family of this `model_type`.
    ///
    /// # Errors
    /// [`Error::Input`] naming `place` and what is supported.
    pub(super) fn named(name: &str, place: &str) -> Result<Self> {
        let known = Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(family, ..)| *family);
        known.ok_or_else(|| {
            let names = Self::ALL.map(|(_, name, _)| name).join(", ");
            Error::input(place, format!("'model_type' is '{name}', a family mixpool cannot run; it runs {names}"))
        })
    }

    /// `model_type` and the class in `transformers`.
    pub(super) fn names(self) -> (&'static str, &'static str) {
        Self::ALL.iter().find(|(family, ..)| *family == self).map_or(("", ""), |(_, name, class)| (*name, *class))
    }

    /// Whether this is Llama, which configs need not say.
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    pub(super) fn is_llama(&self) -> bool {
        *self == Self::Llama
    }
}

/// How rotary frequencies were changed to reach beyond the context that a model was first trained with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// Every frequency divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// What divides.
        factor: f64,
    },
    /// Llama 3.1's: slow frequencies divided by `factor`, fast ones kept, those between blended.
    Llama3 {
        /// What divides.
        factor: f64,
        /// Frequencies that turn less often than this in the first context are slow.
        low_freq_factor: f64,
        /// Frequencies that turn more often than this in the first context are fast.
        high_freq_factor: f64,
        /// The first context, in tokens.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// The frequency to use for `frequency`, both in radians per token.
    fn scaled(&self, frequency: f64) -> f64 {
        match *self {
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let turns = original_max_position_embeddings as f64 * frequency / TAU;
                let fast = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                frequency * (fast + (1.0 - fast) / factor)
            }
        }
    }

    /// Whether the numbers make sense.
    fn is_sound(&self) -> bool {
        match *self {
            Self::Linear { factor } => factor > 0.0,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let rising = 0.0 < low_freq_factor && low_freq_factor < high_freq_factor;
                factor > 0.0 && rising && original_max_position_embeddings > 0
            }
        }
    }
}

/// What the family makes of a config.
impl ModelConfig {
    /// Names of the two norms of a block: of the attention and of the feed-forward layer.
    pub(super) fn block_norms(&self) -> [&'static str; 2] {
        if self.norms_come_after() {
            ["post_attention_layernorm", "post_feedforward_layernorm"]
        } else {
            ["input_layernorm", "post_attention_layernorm"]
        }
    }

    /// Whether the norms of a block are taken of what its layers add to the residual stream, not of what they read.
    pub(super) fn norms_come_after(&self) -> bool {
        self.model_type == Family::Olmo2
    }

    /// Widths of the gains of queries and of keys, where they are normed: that of one head, or of all heads together.
    pub(super) fn head_norms(&self) -> Option<[usize; 2]> {
        match self.model_type {
            Family::Qwen3 => Some([self.head_dim; 2]),
            Family::Olmo2 => Some([self.num_attention_heads, self.num_key_value_heads].map(|n| n * self.head_dim)),
            Family::Llama | Family::Mistral | Family::Qwen2 => None,
        }
    }

    /// Whether a linear layer of a block, such as `mlp.up_proj`, has a bias.
    pub(super) fn has_bias(&self, layer: &str) -> bool {
        match layer {
            "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" => {
                self.attention_bias || self.model_type == Family::Qwen2
            }
            "self_attn.o_proj" => self.attention_bias,
            _ => self.mlp_bias,
        }
    }

    /// Rotary frequencies of the pairs of a head's elements, in radians per token.
    pub(super) fn rope_frequencies(&self) -> Vec<f64> {
        let mut frequencies = rope_frequencies(self.head_dim, self.rope_theta);
        if let Some(scaling) = &self.rope_scaling {
            frequencies.iter_mut().for_each(|frequency| *frequency = scaling.scaled(*frequency));
        }
        frequencies
    }

    /// Refuses sequences that a sliding window would cut: shorter ones see all that came before.
    ///
    /// # Errors
    /// [`Error::Input`] naming `place`.
    pub fn check_context(&self, context: usize, place: &str) -> Result<()> {
        match self.sliding_window {
            Some(window) if window < context => Err(Error::input(
                place,
                format!(
                    "sequences of {context} tokens, but 'sliding_window' is {window}, and attention is always to all that \
                     came before; use sequences and windows of at most {window}"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses options that no model of the family has, and scalings that make no sense.
    pub(super) fn check_family(&self, place: &str) -> Result<()> {
        let refuse = |problem: String| Err(Error::input(place, problem));
        let name = self.model_type.names().0;
        let may_bias = matches!(self.model_type, Family::Llama | Family::Qwen3 | Family::Olmo2);
        if self.attention_bias && !may_bias {
            return refuse(format!("'attention_bias' is no option of '{name}'; leave it out"));
        }
        if self.mlp_bias && self.model_type != Family::Llama {
            return refuse(format!("'mlp_bias' is no option of '{name}'; leave it out"));
        }
        if self.sliding_window.is_some() && self.model_type != Family::Mistral {
            return refuse(format!("'sliding_window' is no option of '{name}' here; leave it out"));
        }
        if self.sliding_window == Some(0) {
            return refuse("'sliding_window' must be at least 1, got 0".into());
        }
        if self.rope_scaling.as_ref().is_some_and(|scaling| !scaling.is_sound()) {
            return refuse(
                "'rope_scaling': factors must be positive, and low_freq_factor below high_freq_factor".into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::RopeScaling;
    use std::f64::consts::TAU;

    #[test]
    fn llama3_divides_slow_frequencies_keeps_fast_ones_and_blends_between() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 100,
        };
        let turning = |turns: f64| scaling.scaled(turns * TAU / 100.0) / (turns * TAU / 100.0);
        for (turns, expected) in [(0.5, 0.125), (1.0, 0.125), (4.0, 1.0), (9.0, 1.0), (2.5, 0.5 + 0.5 / 8.0)] {
            assert!((turning(turns) - expected).abs() < 1e-12, "{turns} turns: {}", turning(turns));
        }
    }
}
