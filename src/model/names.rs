//! Names: what the tensors of every family are called in Hugging Face's files; a merge is by these names.

use super::{Family, ModelConfig};

/// The tensors of a family, without `.weight` and `.bias`.
pub(super) struct Names {
    /// What stands before all names but that of the output matrix; files of a bare model leave it out.
    pub(super) prefix: &'static str,
    pub(super) embedding: &'static str,
    /// Learned positions, where the family has them.
    pub(super) positions: Option<&'static str>,
    pub(super) norm: &'static str,
    /// The output matrix of a model that is not tied.
    pub(super) output: &'static str,
    /// What stands before the number of a block; the names below follow it.
    pub(super) blocks: &'static str,
    pub(super) attention_norm: &'static str,
    /// Queries, keys and values; or one name for all three.
    pub(super) projections: &'static [&'static str],
    /// Norms of queries and keys, where the family has them.
    pub(super) head_norms: [&'static str; 2],
    pub(super) attention_output: &'static str,
    pub(super) feed_forward_norm: &'static str,
    /// What the feed-forward layer makes of its input: gate and up, or up alone.
    pub(super) entry: &'static [&'static str],
    pub(super) down: &'static str,
}

const LLAMA: Names = Names {
    prefix: "model.",
    embedding: "model.embed_tokens",
    positions: None,
    norm: "model.norm",
    output: "lm_head",
    blocks: "model.layers",
    attention_norm: "input_layernorm",
    projections: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    attention_output: "self_attn.o_proj",
    feed_forward_norm: "post_attention_layernorm",
    entry: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
};

/// The norms stand after the layers.
const OLMO2: Names =
    Names { attention_norm: "post_attention_layernorm", feed_forward_norm: "post_feedforward_layernorm", ..LLAMA };

const GPT2: Names = Names {
    prefix: "transformer.",
    embedding: "transformer.wte",
    positions: Some("transformer.wpe"),
    norm: "transformer.ln_f",
    output: "lm_head",
    blocks: "transformer.h",
    attention_norm: "ln_1",
    projections: &["attn.c_attn"],
    attention_output: "attn.c_proj",
    feed_forward_norm: "ln_2",
    entry: &["mlp.c_fc"],
    down: "mlp.c_proj",
    ..LLAMA
};

const GPT_NEOX: Names = Names {
    prefix: "gpt_neox.",
    embedding: "gpt_neox.embed_in",
    positions: None,
    norm: "gpt_neox.final_layer_norm",
    output: "embed_out",
    blocks: "gpt_neox.layers",
    attention_norm: "input_layernorm",
    projections: &["attention.query_key_value"],
    attention_output: "attention.dense",
    feed_forward_norm: "post_attention_layernorm",
    entry: &["mlp.dense_h_to_4h"],
    down: "mlp.dense_4h_to_h",
    ..LLAMA
};

impl Names {
    /// The names of a model of this family.
    pub(super) fn of(config: &ModelConfig) -> &'static Self {
        match config.model_type {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Other => &LLAMA,
            Family::Olmo2 => &OLMO2,
            Family::Gpt2 => &GPT2,
            Family::GptNeox => &GPT_NEOX,
        }
    }

    /// A tensor of a block: `kind` is `weight` or `bias`.
    pub(super) fn of_block(&self, layer: usize, part: &str, kind: &str) -> String {
        format!("{}.{layer}.{part}.{kind}", self.blocks)
    }

    /// Whether a matrix writes into the residual stream.
    pub(super) fn is_residual(&self, weight: &str) -> bool {
        [self.attention_output, self.down].iter().any(|name| weight.ends_with(&format!("{name}.weight")))
    }
}

/// Names of buffers that follow from the config and that old files hold: rotary frequencies, and the causal mask with what
/// it masks with. `transformers` passes over them too.
const BUFFERS: [&str; 3] = [".rotary_emb.inv_freq", ".attn.masked_bias", ".attention.masked_bias"];
/// Causal masks are told from biases by their shape `[1, 1, positions, positions]`.
const MASKS: [&str; 2] = [".attn.bias", ".attention.bias"];

/// Whether a tensor is no parameter but follows from the config.
pub(super) fn is_buffer(name: &str, shape: &[usize]) -> bool {
    let is_mask =
        MASKS.iter().any(|mask| name.ends_with(mask)) && matches!(shape, [1, 1, rows, columns] if rows == columns);
    is_mask || BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}
