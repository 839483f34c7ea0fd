//! Weights: views of every tensor of a model in one flat tensor, of parameters or of their gradients.

use super::family::Role;
use super::names::Names;
use super::{Layout, ModelConfig};
use crate::error::Result;
use candle_core::Tensor;

/// Views of every tensor of the model in one flat tensor: of parameters, or of their gradients.
pub struct Weights {
    pub(super) embedding: Tensor,         // [vocabulary, hidden]
    pub(super) positions: Option<Tensor>, // [positions, hidden]
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,     // of [hidden]
    pub(super) output: Tensor, // [vocabulary, hidden]; the embedding itself when tied
}

/// One block; which norms and biases there are is the family's choice.
pub(super) struct Block {
    pub(super) attention_norm: Norm, // of [hidden]; of what the attention reads, or of what it adds
    pub(super) attention: Attention,
    pub(super) feed_forward_norm: Norm, // as of the attention
    pub(super) feed_forward: FeedForward,
}

/// The attention half of a block.
pub(super) struct Attention {
    pub(super) projections: Vec<Linear>, // queries, keys, values; or one layer for all three
    pub(super) joined: Option<[Linear; 2]>, // queries with values, and keys, where the former lie next to each other
    pub(super) q_norm: Option<Norm>,     // of [dim], or [queries · dim]
    pub(super) k_norm: Option<Norm>,     // of [dim], or [keys · dim]
    pub(super) output: Linear,           // queries · dim → hidden
}

/// The feed-forward half of a block.
pub(super) struct FeedForward {
    pub(super) entry: Vec<Linear>,     // gate and up, or up alone: hidden → inner
    pub(super) joined: Option<Linear>, // gate with up, where they lie next to each other
    pub(super) down: Linear,           // inner → hidden
}

/// A matrix and what is added to its products.
pub(super) struct Linear {
    pub(super) weight: Tensor, // [out, in]; [in, out] where inputs come first
    pub(super) inputs_first: bool,
    pub(super) bias: Option<Tensor>, // [out]
}

/// A norm: with a bias, a layer norm; without, an RMS norm.
pub(super) struct Norm {
    pub(super) gain: Tensor,
    pub(super) bias: Option<Tensor>,
}

impl Weights {
    /// Views of `flat`, whose values are laid out as `layout` says.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] when the family is not known, [`crate::Error::Mismatch`] when a tensor of the model is missing
    /// from the layout.
    pub fn views(config: &ModelConfig, layout: &Layout, flat: &Tensor) -> Result<Self> {
        config.check_runs()?;
        let names = Names::of(config);
        let view = |name: &str, kind: &str| layout.view(flat, &format!("{name}.{kind}"));
        let norm = |name: &str, has_bias: bool| -> Result<Norm> {
            Ok(Norm { gain: view(name, "weight")?, bias: has_bias.then(|| view(name, "bias")).transpose()? })
        };
        let linear = |name: &str, role: Role| -> Result<Linear> {
            let bias = config.has_bias(role).then(|| view(name, "bias")).transpose()?;
            Ok(Linear { weight: view(name, "weight")?, inputs_first: config.stores_inputs_first(name), bias })
        };
        let block = |layer: usize| {
            let part = |part: &str| format!("{}.{layer}.{part}", names.blocks);
            let several = |parts: &[&str], role: Role| -> Result<Vec<Linear>> {
                parts.iter().map(|name| linear(&part(name), role)).collect()
            };
            let joined = |[first, second]: [&str; 2]| -> Result<Option<Linear>> {
                let weights = [first, second].map(|name| format!("{}.weight", part(name)));
                let apart = weights.iter().any(|weight| config.stores_inputs_first(weight));
                let weight = if apart { None } else { layout.joined_view(flat, &weights)? };
                Ok(weight.map(|weight| Linear { weight, inputs_first: false, bias: None }))
            };
            // Norms of heads need queries whose rows lie next to each other.
            let queries_and_values = match names.projections {
                &[queries, keys, values] if config.head_norms().is_none() => joined([queries, values])?.zip(Some(keys)),
                _ => None,
            };
            let head_norm = |name: &str| config.head_norms().map(|_| norm(&part(name), false)).transpose();
            let [q_norm, k_norm] = names.head_norms;
            Ok(Block {
                attention_norm: norm(&part(names.attention_norm), config.has_layer_norms())?,
                attention: Attention {
                    projections: several(names.projections, Role::Projection)?,
                    joined: queries_and_values
                        .map(|(joined, keys)| Ok::<_, crate::Error>([joined, linear(&part(keys), Role::Projection)?]))
                        .transpose()?,
                    q_norm: head_norm(q_norm)?,
                    k_norm: head_norm(k_norm)?,
                    output: linear(&part(names.attention_output), Role::AttentionOutput)?,
                },
                feed_forward_norm: norm(&part(names.feed_forward_norm), config.has_layer_norms())?,
                feed_forward: FeedForward {
                    entry: several(names.entry, Role::FeedForward)?,
                    joined: match names.entry {
                        &[gate, up] => joined([gate, up])?,
                        _ => None,
                    },
                    down: linear(&part(names.down), Role::FeedForward)?,
                },
            })
        };
        let output = if config.tie_word_embeddings { names.embedding } else { names.output };
        Ok(Self {
            embedding: view(names.embedding, "weight")?,
            positions: names.positions.map(|positions| view(positions, "weight")).transpose()?,
            blocks: (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?,
            norm: norm(names.norm, config.has_layer_norms())?,
            output: view(output, "weight")?,
        })
    }
}
