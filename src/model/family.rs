//! Family: what sets models apart that one transformer covers, and how the position of a token is scaled.

use super::ModelConfig;
use crate::error::{Error, Result};
use crate::kernels::{Gelu, Turns, rope_frequencies};
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
    /// GPT-2: layer norms, learned positions, no gate, matrices stored inputs first.
    Gpt2,
    /// GPT-NeoX and Pythia: layer norms, no gate, a part of each head turns, both layers of a block may read its input.
    #[serde(rename = "gpt_neox")]
    GptNeox,
    /// Any other: it can be merged and exported by the names of its tensors, and not be run.
    Other,
}

/// What the feed-forward layer does to its inner values; names are those of Hugging Face.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// silu(gate) · up.
    #[default]
    Silu,
    /// GELU, exact.
    Gelu,
    /// GELU's tanh form.
    GeluNew,
    /// Another name of [`Activation::GeluNew`].
    GeluFast,
    /// Another name of [`Activation::GeluNew`].
    GeluPytorchTanh,
}

impl Activation {
    /// The form of GELU, if it is one.
    pub(super) fn gelu(self) -> Option<Gelu> {
        match self {
            Self::Silu => None,
            Self::Gelu => Some(Gelu::Exact),
            Self::GeluNew | Self::GeluFast | Self::GeluPytorchTanh => Some(Gelu::Tanh),
        }
    }

    /// Whether this is the one that configs need not name.
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    pub(super) fn is_silu(&self) -> bool {
        *self == Self::Silu
    }
}

/// Which layers of a block share a rule about biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Projection,
    AttentionOutput,
    FeedForward,
}

impl Family {
    /// Every family, with the class that `transformers` has for it.
    const ALL: [(Self, &str, &str); 7] = [
        (Self::Llama, "llama", "LlamaForCausalLM"),
        (Self::Mistral, "mistral", "MistralForCausalLM"),
        (Self::Qwen2, "qwen2", "Qwen2ForCausalLM"),
        (Self::Qwen3, "qwen3", "Qwen3ForCausalLM"),
        (Self::Olmo2, "olmo2", "Olmo2ForCausalLM"),
        (Self::Gpt2, "gpt2", "GPT2LMHeadModel"),
        (Self::GptNeox, "gpt_neox", "GPTNeoXForCausalLM"),
    ];

    /// The family of this `model_type`.
    pub(super) fn named(name: &str) -> Self {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map_or(Self::Other, |(family, ..)| *family)
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

    /// Fields that the family's `config.json` spells otherwise than a [`ModelConfig`]: its name, then ours.
    pub(super) fn spellings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Gpt2 => &[
                ("n_embd", "hidden_size"),
                ("n_inner", "intermediate_size"),
                ("n_layer", "num_hidden_layers"),
                ("n_head", "num_attention_heads"),
                ("n_positions", "max_position_embeddings"),
                ("layer_norm_epsilon", "rms_norm_eps"),
                ("activation_function", "hidden_act"),
            ],
            Self::GptNeox => &[
                ("layer_norm_eps", "rms_norm_eps"),
                ("rotary_emb_base", "rope_theta"),
                ("rotary_pct", "partial_rotary_factor"),
            ],
            _ => &[],
        }
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
    /// Refuses to run a model whose family is not known.
    ///
    /// # Errors
    /// [`Error::Usage`] with the families that can be run.
    pub fn check_runs(&self) -> Result<()> {
        if self.model_type != Family::Other {
            return Ok(());
        }
        let names = Family::ALL.map(|(_, name, _)| name).join(", ");
        Err(Error::Usage(format!(
            "the family ('model_type') of the pool's model is not known: its models can be merged and exported, but \
             training and scoring need one of {names}"
        )))
    }

    /// Whether the norms of a block are taken of what its layers add to the residual stream, not of what they read.
    pub(super) fn norms_come_after(&self) -> bool {
        self.model_type == Family::Olmo2
    }

    /// Whether norms shift rows to mean 0 and have biases; the others are RMS norms.
    pub(super) fn has_layer_norms(&self) -> bool {
        matches!(self.model_type, Family::Gpt2 | Family::GptNeox)
    }

    /// Whether a token's position is a learned vector added to its embedding; the others rotate queries and keys.
    pub(super) fn has_learned_positions(&self) -> bool {
        self.model_type == Family::Gpt2
    }

    /// Whether the matrix of a linear layer is stored `[in, out]`, as GPT-2's are; the others are `[out, in]`.
    pub fn stores_inputs_first(&self, weight: &str) -> bool {
        self.model_type == Family::Gpt2 && weight != "lm_head.weight"
    }

    /// How queries, keys and values lie in one projection, where they do.
    pub(super) fn turns(&self) -> Option<Turns> {
        let queries = self.num_attention_heads * self.head_dim;
        match self.model_type {
            Family::Gpt2 => Some(Turns { count: 1, widths: [queries; 3] }),
            Family::GptNeox => Some(Turns { count: self.num_attention_heads, widths: [self.head_dim; 3] }),
            _ => None,
        }
    }

    /// Widths of the gains of queries and of keys, where they are normed: that of one head, or of all heads together.
    pub(super) fn head_norms(&self) -> Option<[usize; 2]> {
        match self.model_type {
            Family::Qwen3 => Some([self.head_dim; 2]),
            Family::Olmo2 => Some([self.num_attention_heads, self.num_key_value_heads].map(|n| n * self.head_dim)),
            _ => None,
        }
    }

    /// Whether linear layers of a block have biases.
    pub(super) fn has_bias(&self, role: Role) -> bool {
        match (self.model_type, role) {
            (Family::Gpt2, _) | (Family::GptNeox, Role::FeedForward) | (Family::Qwen2, Role::Projection) => true,
            (_, Role::Projection | Role::AttentionOutput) => self.attention_bias,
            (_, Role::FeedForward) => self.mlp_bias,
        }
    }

    /// Rotary frequencies of the pairs of a head's elements that turn, in radians per token.
    pub(super) fn rope_frequencies(&self) -> Vec<f64> {
        let mut frequencies = rope_frequencies(self.rotary_dim(), self.rope_theta);
        if let Some(scaling) = &self.rope_scaling {
            frequencies.iter_mut().for_each(|frequency| *frequency = scaling.scaled(*frequency));
        }
        frequencies
    }

    /// How many elements of a head turn with the position.
    fn rotary_dim(&self) -> usize {
        self.partial_rotary_factor.map_or(self.head_dim, |part| (self.head_dim as f64 * part) as usize)
    }

    /// Refuses sequences that a sliding window would cut (shorter ones see all that came before) or that have more tokens than
    /// there are learned positions.
    ///
    /// # Errors
    /// [`Error::Input`] naming `place`.
    pub fn check_context(&self, context: usize, place: &str) -> Result<()> {
        let positions = self.max_position_embeddings;
        if self.has_learned_positions() && positions < context {
            let problem = format!(
                "sequences of {context} tokens, but the model has {positions} learned positions ('n_positions'); use \
                 sequences and windows of at most {positions}"
            );
            return Err(Error::input(place, problem));
        }
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
        let (family, name) = (self.model_type, self.model_type.names().0);
        let gelu = matches!(family, Family::Gpt2 | Family::GptNeox);
        let may_bias = matches!(family, Family::Llama | Family::Qwen3 | Family::Olmo2 | Family::GptNeox);
        for (option, is_set, may) in [
            ("attention_bias", self.attention_bias, may_bias),
            ("mlp_bias", self.mlp_bias, family == Family::Llama),
            ("sliding_window", self.sliding_window.is_some(), family == Family::Mistral),
            ("use_parallel_residual", self.use_parallel_residual, family == Family::GptNeox),
            ("partial_rotary_factor", self.partial_rotary_factor.is_some(), family == Family::GptNeox),
            ("rope_scaling", self.rope_scaling.is_some(), family != Family::Gpt2),
        ] {
            if is_set && !may {
                return refuse(format!("'{option}' is no option of '{name}' here; leave it out"));
            }
        }
        if gelu != self.hidden_act.gelu().is_some() {
            let expected = if gelu { "gelu, gelu_new, gelu_fast or gelu_pytorch_tanh" } else { "silu" };
            return refuse(format!("the activation of '{name}' must be {expected}"));
        }
        if gelu
            && (self.num_key_value_heads, self.num_attention_heads * self.head_dim)
                != (self.num_attention_heads, self.hidden_size)
        {
            return refuse(format!(
                "{} heads do not divide a width of {} evenly; every head of '{name}' has its own keys and values",
                self.num_attention_heads, self.hidden_size
            ));
        }
        let (turning, head) = (self.rotary_dim(), self.head_dim);
        let can_turn = (2..=head).contains(&turning) && turning.is_multiple_of(2);
        if !(can_turn || self.has_learned_positions()) {
            return refuse(format!(
                "rotary positions turn {turning} of the {head} elements of a head; expected an even number of at least 2"
            ));
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
