//! Transformer: tokens to losses, and losses to gradients, for Llama and the families that resemble it.
//!
//! The backward pass of each block stands beside its forward pass. Weights and gradients are views into flat vectors of
//! one [`Layout`]; activations are tensors of shape `[tokens, width]` in which several sequences lie one after another.

use super::tap::{See, Tap};
use super::weights::{Block, Linear};
use super::{Layout, ModelConfig, Weights};
use crate::error::{Error, Result};
use crate::kernels::{
    Exec, Heads, RopeTable, add_assign, add_bias, attention, attention_backward, cross_entropy, embedding, linear,
    log_odds_backward, rms_norm, rope, select_rows, select_rows_backward, swiglu, swiglu_backward,
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

/// A model over parameters that lie in one flat tensor.
pub struct Transformer {
    config: ModelConfig,
    weights: Weights,
    rope: RopeTable,
    exec: Exec,
}

/// What the backward pass of one block needs from its forward pass.
struct Activations {
    x: Tensor,                   // input of the block
    read: Tensor,                // what the attention reads: the norm of x, or x
    projected_q: Option<Tensor>, // before its norm, where it has one
    projected_k: Option<Tensor>,
    q: Tensor,                     // rotated
    k: Tensor,                     // rotated
    v: Tensor,                     // as projected
    lse: Tensor,                   // log-sum-exp of the attention scores
    attended: Tensor,              // output of the attention, before `o`
    attention_out: Option<Tensor>, // after `o` and before its norm, where it has one
    middle: Tensor,                // residual stream between attention and feed-forward
    middle_read: Tensor,           // what the feed-forward layer reads
    gate: Tensor,
    up: Tensor,
    active: Tensor,                   // silu(gate) · up
    feed_forward_out: Option<Tensor>, // as of the attention
}

impl Transformer {
    /// A model whose parameters are views into `flat`: `[layout length]` f32. Changing `flat` in place changes the model.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the layout does not fit the config, [`Error::Input`] when a sliding window is shorter than
    /// the context.
    pub fn new(config: &ModelConfig, layout: &Layout, flat: &Tensor, context: usize, exec: Exec) -> Result<Self> {
        config.check_context(context, "model")?;
        let weights = Weights::views(config, layout, flat)?;
        let rope = RopeTable::of_frequencies(context, &config.rope_frequencies());
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

    /// As [`Transformer::loss_and_gradient`], with the loss of every target: `[m]`.
    pub fn nll_and_gradient(
        &self,
        batch: Sequences<'_>,
        rows: Option<&[usize]>,
        targets: &[u32],
        scale: f32,
        gradient: &Weights,
    ) -> Result<Vec<f64>> {
        let scale = scale / targets.len() as f32;
        self.backward(batch, rows, gradient, &mut |_| Ok(()), |normed, tap| {
            tap.cross_entropy(normed, &self.weights.output, targets, scale, &gradient.output)
        })
    }

    /// As [`Transformer::loss_and_gradient`] without rows, and shows `see` what the gradient of every weight is made of.
    ///
    /// # Errors
    /// Those of `see`.
    pub fn loss_and_gradient_seen(
        &self,
        batch: Sequences<'_>,
        targets: &[u32],
        scale: f32,
        gradient: &Weights,
        see: &mut See<'_>,
    ) -> Result<f64> {
        let scale = scale / targets.len() as f32;
        let nll = self.backward(batch, None, gradient, see, |normed, tap| {
            tap.cross_entropy(normed, &self.weights.output, targets, scale, &gradient.output)
        })?;
        Ok(nll.iter().sum::<f64>() / targets.len() as f64)
    }

    /// As [`Transformer::loss_and_gradient`], of the mean [log-odds](crate::kernels::log_odds) of the targets.
    pub fn log_odds_and_gradient(
        &self,
        batch: Sequences<'_>,
        rows: Option<&[usize]>,
        targets: &[u32],
        scale: f32,
        gradient: &Weights,
    ) -> Result<f64> {
        let scale = scale / targets.len() as f32;
        let log_odds = self.backward(batch, rows, gradient, &mut |_| Ok(()), |normed, _| {
            log_odds_backward(self.exec, normed, &self.weights.output, targets, scale, &gradient.output)
        })?;
        Ok(log_odds.iter().sum::<f64>() / targets.len() as f64)
    }

    /// Runs the model forward and back, adding to `gradient`; `see` is shown what is added. `head` takes the normed residual
    /// stream where something is predicted, `[m, hidden]`, and returns an output of each row and the gradient of what it
    /// read.
    fn backward(
        &self,
        batch: Sequences<'_>,
        rows: Option<&[usize]>,
        gradient: &Weights,
        see: &mut See<'_>,
        head: impl FnOnce(&Tensor, &mut Tap<'_, '_>) -> Result<(Vec<f64>, Tensor)>,
    ) -> Result<Vec<f64>> {
        let mut saved = Vec::with_capacity(self.weights.blocks.len());
        let x = self.hidden(batch, |activations| {
            saved.push(activations);
            Ok(())
        })?;
        let mut tap = Tap { exec: self.exec, eps: self.eps(), see };
        let predicting = rows.map_or_else(|| Ok(x.clone()), |rows| select_rows(&x, rows))?;
        let (outputs, dnormed) = head(&self.norm(&predicting)?, &mut tap)?;
        let dx = tap.norm(&predicting, &self.weights.norm, &dnormed, None, &gradient.norm)?;
        let mut dx = match rows {
            Some(rows) => select_rows_backward(rows, &dx, batch.tokens.len())?,
            None => dx,
        };
        for ((block, into), activations) in self.weights.blocks.iter().zip(&gradient.blocks).zip(saved).rev() {
            dx = self.block_backward(block, into, batch.lengths, activations, dx, &mut tap)?;
        }
        tap.embedding(batch.tokens, &dx, &gradient.embedding)?;
        Ok(outputs)
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
        let x = self
            .hidden(batch, |a| [&a.read, &a.attended, &a.middle_read, &a.active].into_iter().try_for_each(&mut show))?;
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

    fn linear(&self, x: &Tensor, w: &Linear) -> Result<Tensor> {
        let y = linear(self.exec, x, &w.weight)?;
        w.bias.iter().try_for_each(|bias| add_bias(self.exec, &y, bias))?;
        Ok(y)
    }

    fn block_forward(&self, w: &Block, lengths: &[usize], x: Tensor) -> Result<(Tensor, Activations)> {
        let exec = self.exec;
        let read = self.read(&x, &w.attention_norm)?;
        let (q, k, v) = (self.linear(&read, &w.q)?, self.linear(&read, &w.k)?, self.linear(&read, &w.v)?);
        let (projected_q, q) = self.head_norm(q, w.q_norm.as_ref())?;
        let (projected_k, k) = self.head_norm(k, w.k_norm.as_ref())?;
        rope(exec, &q, &self.rope, lengths, false)?;
        rope(exec, &k, &self.rope, lengths, false)?;
        let (attended, lse) = attention(exec, self.heads(), lengths, &q, &k, &v)?;
        let (attention_out, middle) = self.write(self.linear(&attended, &w.o)?, &w.attention_norm, &x)?;

        let middle_read = self.read(&middle, &w.feed_forward_norm)?;
        let (gate, up) = (self.linear(&middle_read, &w.gate)?, self.linear(&middle_read, &w.up)?);
        let active = swiglu(exec, &gate, &up)?;
        let (feed_forward_out, out) = self.write(self.linear(&active, &w.down)?, &w.feed_forward_norm, &middle)?;
        let activations = Activations {
            x,
            read,
            projected_q,
            projected_k,
            q,
            k,
            v,
            lse,
            attended,
            attention_out,
            middle,
            middle_read,
            gate,
            up,
            active,
            feed_forward_out,
        };
        Ok((out, activations))
    }

    /// Takes the gradient of the block's output, adds those of its weights to `into`, returns that of its input.
    fn block_backward(
        &self,
        w: &Block,
        into: &Block,
        lengths: &[usize],
        a: Activations,
        dout: Tensor,
        tap: &mut Tap<'_, '_>,
    ) -> Result<Tensor> {
        let exec = self.exec;
        let (gain, dgain) = (&w.feed_forward_norm, &into.feed_forward_norm);
        let dwritten = write_backward(a.feed_forward_out.as_ref(), gain, &dout, dgain, tap)?;
        let dactive = tap.linear(&a.active, &w.down, &dwritten, None, &into.down)?;
        let (dgate, dup) = swiglu_backward(exec, &a.gate, &a.up, &dactive)?;
        let dread = tap.linear(&a.middle_read, &w.gate, &dgate, None, &into.gate)?;
        let dread = tap.linear(&a.middle_read, &w.up, &dup, Some(dread), &into.up)?;
        let dmiddle = self.read_backward(&a.middle, gain, dread, dout, dgain, tap)?;

        let (gain, dgain) = (&w.attention_norm, &into.attention_norm);
        let dwritten = write_backward(a.attention_out.as_ref(), gain, &dmiddle, dgain, tap)?;
        let dattended = tap.linear(&a.attended, &w.o, &dwritten, None, &into.o)?;
        let (dq, dk, dv) =
            attention_backward(exec, self.heads(), lengths, &a.q, &a.k, &a.v, &a.attended, &a.lse, &dattended)?;
        rope(exec, &dq, &self.rope, lengths, true)?;
        rope(exec, &dk, &self.rope, lengths, true)?;
        let dq = head_norm_backward(a.projected_q.as_ref(), w.q_norm.as_ref(), dq, into.q_norm.as_ref(), tap)?;
        let dk = head_norm_backward(a.projected_k.as_ref(), w.k_norm.as_ref(), dk, into.k_norm.as_ref(), tap)?;
        let dread = tap.linear(&a.read, &w.q, &dq, None, &into.q)?;
        let dread = tap.linear(&a.read, &w.k, &dk, Some(dread), &into.k)?;
        let dread = tap.linear(&a.read, &w.v, &dv, Some(dread), &into.v)?;
        self.read_backward(&a.x, gain, dread, dmiddle, dgain, tap)
    }

    /// What attention or feed-forward layer reads of the residual stream: its norm, or the stream where norms come after.
    fn read(&self, stream: &Tensor, gain: &Tensor) -> Result<Tensor> {
        if self.config.norms_come_after() {
            return Ok(stream.clone());
        }
        rms_norm(self.exec, stream, gain, self.eps())
    }

    /// The gradient of the stream: of what was read of it, and of the connection around the layer, `around`.
    fn read_backward(
        &self,
        stream: &Tensor,
        gain: &Tensor,
        dread: Tensor,
        around: Tensor,
        dgain: &Tensor,
        tap: &mut Tap<'_, '_>,
    ) -> Result<Tensor> {
        if self.config.norms_come_after() {
            add_assign(self.exec, &dread, &around)?;
            return Ok(dread);
        }
        tap.norm(stream, gain, &dread, Some(around), dgain)
    }

    /// The residual stream with a layer's output, or its norm where norms come after; with it, what was normed.
    fn write(&self, out: Tensor, gain: &Tensor, stream: &Tensor) -> Result<(Option<Tensor>, Tensor)> {
        let (normed, sum) = if self.config.norms_come_after() {
            let sum = rms_norm(self.exec, &out, gain, self.eps())?;
            (Some(out), sum)
        } else {
            (None, out)
        };
        add_assign(self.exec, &sum, stream)?;
        Ok((normed, sum))
    }

    /// Queries or keys, normed in rows as long as the gain (a head or all of them) where there is one; with them, what was
    /// normed.
    fn head_norm(&self, projected: Tensor, gain: Option<&Tensor>) -> Result<(Option<Tensor>, Tensor)> {
        let Some(gain) = gain else { return Ok((None, projected)) };
        let rows = projected.reshape(((), gain.dim(0)?))?;
        let normed = rms_norm(self.exec, &rows, gain, self.eps())?.reshape(projected.shape())?;
        Ok((Some(rows), normed))
    }

    fn heads(&self) -> Heads {
        self.config.heads()
    }

    fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }
}

/// The gradient of a layer's output: that of the stream, through the norm where norms come after.
fn write_backward(
    normed: Option<&Tensor>,
    gain: &Tensor,
    dstream: &Tensor,
    dgain: &Tensor,
    tap: &mut Tap<'_, '_>,
) -> Result<Tensor> {
    normed.map_or_else(|| Ok(dstream.clone()), |out| tap.norm(out, gain, dstream, None, dgain))
}

/// The gradient of queries or keys before their norm, if they have one.
fn head_norm_backward(
    rows: Option<&Tensor>,
    gain: Option<&Tensor>,
    dnormed: Tensor,
    dgain: Option<&Tensor>,
    tap: &mut Tap<'_, '_>,
) -> Result<Tensor> {
    let (Some(rows), Some(gain), Some(dgain)) = (rows, gain, dgain) else { return Ok(dnormed) };
    let drows = tap.norm(rows, gain, &dnormed.reshape(rows.shape())?, None, dgain)?;
    Ok(drows.reshape(dnormed.shape())?)
}
