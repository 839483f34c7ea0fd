//! Transformer: tokens to losses, and losses to gradients, for the Llama family.
//!
//! The backward pass of each block stands beside its forward pass. Weights and gradients are views into flat vectors of
//! one [`Layout`]; activations are tensors of shape `[tokens, width]` in which several sequences lie one after another.

use super::{Layout, ModelConfig};
use crate::error::{Error, Result};
use crate::kernels::{
    Exec, Heads, RopeTable, add_assign, attention, attention_backward, cross_entropy, cross_entropy_backward,
    embedding, embedding_backward, linear, linear_backward, rms_norm, rms_norm_backward, rope, select_rows,
    select_rows_backward, swiglu, swiglu_backward,
};
use candle_core::Tensor;

/// Several token sequences laid end to end; none sees another.
#[derive(Debug, Clone, Copy)]
pub struct Sequences<'a> {
    /// All input ids.
    pub tokens: &'a [u32],
    /// Length of each sequence; they sum to `tokens.len()`.
    pub lengths: &'a [usize],
}

/// A Llama model over parameters that lie in one flat tensor.
pub struct Transformer {
    config: ModelConfig,
    weights: Weights,
    rope: RopeTable,
    exec: Exec,
}

/// Views of every tensor of the model in one flat tensor: of parameters, or of their gradients.
pub struct Weights {
    embedding: Tensor, // [vocabulary, hidden]
    blocks: Vec<Block>,
    norm: Tensor,   // [hidden]
    output: Tensor, // [vocabulary, hidden]; the embedding itself when tied
}

struct Block {
    input_norm: Tensor, // [hidden]
    q: Tensor,          // [queries · dim, hidden]
    k: Tensor,          // [keys · dim, hidden]
    v: Tensor,          // [keys · dim, hidden]
    o: Tensor,          // [hidden, queries · dim]
    post_norm: Tensor,  // [hidden]
    gate: Tensor,       // [ffn, hidden]
    up: Tensor,         // [ffn, hidden]
    down: Tensor,       // [hidden, ffn]
}

/// What the backward pass of one block needs from its forward pass.
struct Activations {
    x: Tensor,        // input of the block
    normed: Tensor,   // its norm
    q: Tensor,        // rotated
    k: Tensor,        // rotated
    v: Tensor,        // as projected
    lse: Tensor,      // log-sum-exp of the attention scores
    attended: Tensor, // output of the attention, before `o`
    middle: Tensor,   // residual stream between attention and feed-forward
    post_normed: Tensor,
    gate: Tensor,
    up: Tensor,
    active: Tensor, // silu(gate) · up
}

impl Weights {
    /// Views of `flat`, whose values are laid out as `layout` says.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when a tensor of the model is missing from the layout.
    pub fn views(config: &ModelConfig, layout: &Layout, flat: &Tensor) -> Result<Self> {
        let view = |name: &str| layout.view(flat, name);
        let block = |layer: usize| {
            let part = |part: &str| view(&format!("model.layers.{layer}.{part}.weight"));
            Ok(Block {
                input_norm: part("input_layernorm")?,
                q: part("self_attn.q_proj")?,
                k: part("self_attn.k_proj")?,
                v: part("self_attn.v_proj")?,
                o: part("self_attn.o_proj")?,
                post_norm: part("post_attention_layernorm")?,
                gate: part("mlp.gate_proj")?,
                up: part("mlp.up_proj")?,
                down: part("mlp.down_proj")?,
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

impl Transformer {
    /// A model whose parameters are views into `flat`: `[layout length]` f32. Changing `flat` in place changes the model.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the layout does not fit the config.
    pub fn new(config: &ModelConfig, layout: &Layout, flat: &Tensor, context: usize, exec: Exec) -> Result<Self> {
        let weights = Weights::views(config, layout, flat)?;
        let rope = RopeTable::new(context, config.head_dim, config.rope_theta);
        Ok(Self { config: config.clone(), weights, rope, exec })
    }

    /// Logits of every position: `[tokens, vocabulary]`. For tests and small inputs; scoring never forms them all.
    pub fn logits(&self, batch: Sequences<'_>) -> Result<Tensor> {
        let x = self.hidden(batch, |_| Ok(()))?;
        linear(self.exec, &self.norm(&x)?, &self.weights.output)
    }

    /// The negative log-likelihood in nats of `targets`, each predicted from the position of the same index in `rows`.
    ///
    /// # Shapes
    /// `rows, targets: [m]`, indices into `batch.tokens` and token ids → `[m]`.
    pub fn nll(&self, batch: Sequences<'_>, rows: &[usize], targets: &[u32]) -> Result<Vec<f64>> {
        let x = select_rows(&self.hidden(batch, |_| Ok(()))?, rows)?;
        cross_entropy(self.exec, &self.norm(&x)?, &self.weights.output, targets)
    }

    /// The mean loss of `targets` in nats per token, each predicted from the position of the same index in `rows`, or
    /// of the same index in the batch when there are none; its gradient times `scale` is added to `gradient`.
    ///
    /// # Shapes
    /// `rows, targets: [m]`, indices into `batch.tokens` and token ids; `targets: [tokens]` without rows.
    pub fn loss_and_gradient(
        &self,
        batch: Sequences<'_>,
        rows: Option<&[usize]>,
        targets: &[u32],
        scale: f32,
        gradient: &Weights,
    ) -> Result<f64> {
        let nll = self.nll_and_gradient(batch, rows, targets, scale, gradient)?;
        Ok(nll.iter().sum::<f64>() / targets.len() as f64)
    }

    /// As [`Transformer::loss_and_gradient`], with the loss of every target.
    ///
    /// # Shapes
    /// `rows, targets: [m]` → `[m]`.
    pub fn nll_and_gradient(
        &self,
        batch: Sequences<'_>,
        rows: Option<&[usize]>,
        targets: &[u32],
        scale: f32,
        gradient: &Weights,
    ) -> Result<Vec<f64>> {
        let mut saved = Vec::with_capacity(self.weights.blocks.len());
        let x = self.hidden(batch, |activations| {
            saved.push(activations);
            Ok(())
        })?;
        let (exec, eps) = (self.exec, self.eps());
        let predicting = rows.map_or_else(|| Ok(x.clone()), |rows| select_rows(&x, rows))?;
        let normed = self.norm(&predicting)?;
        let scale = scale / targets.len() as f32;
        let (nll, dnormed) =
            cross_entropy_backward(exec, &normed, &self.weights.output, targets, scale, &gradient.output)?;
        let dx = rms_norm_backward(exec, &predicting, &self.weights.norm, eps, &dnormed, None, &gradient.norm)?;
        let mut dx = match rows {
            Some(rows) => select_rows_backward(rows, &dx, batch.tokens.len())?,
            None => dx,
        };
        for ((block, into), activations) in self.weights.blocks.iter().zip(&gradient.blocks).zip(saved).rev() {
            dx = self.block_backward(block, into, batch.lengths, activations, dx)?;
        }
        embedding_backward(batch.tokens, &dx, &gradient.embedding)?;
        Ok(nll)
    }

    /// Shows `see` what the linear layers read: one input `[tokens, in]` per entry of
    /// [`linear_layers`](super::linear_layers), with the index of that entry, in order.
    ///
    /// # Errors
    /// Those of `see`.
    pub fn linear_inputs(&self, batch: Sequences<'_>, mut see: impl FnMut(usize, &Tensor) -> Result<()>) -> Result<()> {
        let mut index = 0;
        let mut show = |input: &Tensor| {
            index += 1;
            see(index - 1, input)
        };
        let x = self.hidden(batch, |a| {
            [&a.normed, &a.attended, &a.post_normed, &a.active].into_iter().try_for_each(&mut show)
        })?;
        if self.config.tie_word_embeddings { Ok(()) } else { show(&self.norm(&x)?) }
    }

    /// The residual stream after the last block: `[tokens, hidden]`; `keep` is handed what every block computed.
    fn hidden(&self, batch: Sequences<'_>, mut keep: impl FnMut(Activations) -> Result<()>) -> Result<Tensor> {
        let mut x = self.embed(batch)?;
        for block in &self.weights.blocks {
            let (next, activations) = self.block_forward(block, batch.lengths, x)?;
            keep(activations)?;
            x = next;
        }
        Ok(x)
    }

    fn embed(&self, batch: Sequences<'_>) -> Result<Tensor> {
        let longest = batch.lengths.iter().max().copied().unwrap_or(0);
        if longest > self.rope.positions() {
            return Err(Error::Usage(format!(
                "a sequence of {longest} tokens, but the model was set up for {}",
                self.rope.positions()
            )));
        }
        embedding(&self.weights.embedding, batch.tokens)
    }

    fn norm(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(self.exec, x, &self.weights.norm, self.eps())
    }

    fn block_forward(&self, w: &Block, lengths: &[usize], x: Tensor) -> Result<(Tensor, Activations)> {
        let (exec, eps) = (self.exec, self.eps());
        let normed = rms_norm(exec, &x, &w.input_norm, eps)?;
        let (q, k, v) = (linear(exec, &normed, &w.q)?, linear(exec, &normed, &w.k)?, linear(exec, &normed, &w.v)?);
        rope(exec, &q, &self.rope, lengths, false)?;
        rope(exec, &k, &self.rope, lengths, false)?;
        let (attended, lse) = attention(exec, self.heads(), lengths, &q, &k, &v)?;
        let middle = linear(exec, &attended, &w.o)?;
        add_assign(exec, &middle, &x)?;

        let post_normed = rms_norm(exec, &middle, &w.post_norm, eps)?;
        let (gate, up) = (linear(exec, &post_normed, &w.gate)?, linear(exec, &post_normed, &w.up)?);
        let active = swiglu(exec, &gate, &up)?;
        let out = linear(exec, &active, &w.down)?;
        add_assign(exec, &out, &middle)?;
        Ok((out, Activations { x, normed, q, k, v, lse, attended, middle, post_normed, gate, up, active }))
    }

    /// Takes the gradient of the block's output, adds those of its weights to `into`, returns that of its input.
    fn block_backward(
        &self,
        w: &Block,
        into: &Block,
        lengths: &[usize],
        a: Activations,
        dout: Tensor,
    ) -> Result<Tensor> {
        let (exec, eps) = (self.exec, self.eps());
        let dactive = linear_backward(exec, &a.active, &w.down, &dout, None, &into.down)?;
        let (dgate, dup) = swiglu_backward(exec, &a.gate, &a.up, &dactive)?;
        let dpost = linear_backward(exec, &a.post_normed, &w.gate, &dgate, None, &into.gate)?;
        let dpost = linear_backward(exec, &a.post_normed, &w.up, &dup, Some(dpost), &into.up)?;
        // The residual connection: the gradient of the output is also that of the block's middle.
        let dmiddle = rms_norm_backward(exec, &a.middle, &w.post_norm, eps, &dpost, Some(dout), &into.post_norm)?;

        let dattended = linear_backward(exec, &a.attended, &w.o, &dmiddle, None, &into.o)?;
        let (dq, dk, dv) =
            attention_backward(exec, self.heads(), lengths, &a.q, &a.k, &a.v, &a.attended, &a.lse, &dattended)?;
        rope(exec, &dq, &self.rope, lengths, true)?;
        rope(exec, &dk, &self.rope, lengths, true)?;
        let dnormed = linear_backward(exec, &a.normed, &w.q, &dq, None, &into.q)?;
        let dnormed = linear_backward(exec, &a.normed, &w.k, &dk, Some(dnormed), &into.k)?;
        let dnormed = linear_backward(exec, &a.normed, &w.v, &dv, Some(dnormed), &into.v)?;
        rms_norm_backward(exec, &a.x, &w.input_norm, eps, &dnormed, Some(dmiddle), &into.input_norm)
    }

    fn heads(&self) -> Heads {
        self.config.heads()
    }

    fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }
}
