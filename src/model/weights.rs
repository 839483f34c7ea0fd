//! Weights: views of every tensor of a model in one flat tensor, of parameters or of their gradients.

use super::{Layout, ModelConfig};
use crate::error::Result;
use candle_core::Tensor;

/// Views of every tensor of the model in one flat tensor: of parameters, or of their gradients.
pub struct Weights {
    pub(super) embedding: Tensor, // [vocabulary, hidden]
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Tensor,   // [hidden]
    pub(super) output: Tensor, // [vocabulary, hidden]; the embedding itself when tied
}

/// One block; which norms and biases there are is the family's choice.
pub(super) struct Block {
    pub(super) attention_norm: Tensor, // [hidden]; of what the attention reads, or of what it adds
    pub(super) q: Linear,              // [queries · dim, hidden]
    pub(super) k: Linear,              // [keys · dim, hidden]
    pub(super) v: Linear,              // [keys · dim, hidden]
    pub(super) q_norm: Option<Tensor>, // [dim], or [queries · dim]
    pub(super) k_norm: Option<Tensor>, // [dim], or [keys · dim]
    pub(super) o: Linear,              // [hidden, queries · dim]
    pub(super) feed_forward_norm: Tensor, // [hidden]; as of the attention
    pub(super) gate: Linear,           // [ffn, hidden]
    pub(super) up: Linear,             // [ffn, hidden]
    pub(super) down: Linear,           // [hidden, ffn]
}

/// A matrix and what is added to its products.
pub(super) struct Linear {
    pub(super) weight: Tensor,       // [out, in]
    pub(super) bias: Option<Tensor>, // [out]
}

impl Weights {
    /// Views of `flat`, whose values are laid out as `layout` says.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] when a tensor of the model is missing from the layout.
    pub fn views(config: &ModelConfig, layout: &Layout, flat: &Tensor) -> Result<Self> {
        let view = |name: &str| layout.view(flat, name);
        let block = |layer: usize| {
            let part = |part: &str, kind: &str| view(&format!("model.layers.{layer}.{part}.{kind}"));
            let linear = |name: &str| -> Result<Linear> {
                let bias = config.has_bias(name).then(|| part(name, "bias")).transpose()?;
                Ok(Linear { weight: part(name, "weight")?, bias })
            };
            let head_norm = |name: &str| config.head_norms().map(|_| part(name, "weight")).transpose();
            let [attention_norm, feed_forward_norm] = config.block_norms();
            Ok(Block {
                attention_norm: part(attention_norm, "weight")?,
                q: linear("self_attn.q_proj")?,
                k: linear("self_attn.k_proj")?,
                v: linear("self_attn.v_proj")?,
                q_norm: head_norm("self_attn.q_norm")?,
                k_norm: head_norm("self_attn.k_norm")?,
                o: linear("self_attn.o_proj")?,
                feed_forward_norm: part(feed_forward_norm, "weight")?,
                gate: linear("mlp.gate_proj")?,
                up: linear("mlp.up_proj")?,
                down: linear("mlp.down_proj")?,
            })
        };
        let output = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        Ok(Self {
            embedding: view("model.embed_tokens.weight")?,
            blocks: (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?,
            norm: view("model.norm.weight")?,
            output: view(output)?,
        })
    }
}
