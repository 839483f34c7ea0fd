//! Transformer: tokens to losses, and losses to gradients, for every family that its config describes.
//!
//! Every backward pass stands beside its forward pass: those of a block and of its halves in files of their own. Weights and gradients are views into flat vectors of
//! one [`Layout`]; activations are tensors of shape `[tokens, width]` in which several sequences lie one after another.

use super::block::{Activations, Stream};
use super::tap::{See, Tap};
use super::weights::{Linear, Norm};
use super::{Layout, ModelConfig, Weights};
use crate::error::{Error, Result};
use crate::kernels::{
    Exec, RopeTable, add_assign, add_bias, conv1d, cross_entropy, cross_entropy_backward_queued, cross_entropy_queued,
    embedding, layer_norm, layer_norm_of_sum, linear, log_odds_backward, rms_norm, rms_norm_of_sum, select_rows,
    select_rows_backward,
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
    pub(super) config: ModelConfig,
    weights: Weights,
    context: usize,
    pub(super) rope: Option<RopeTable>, // none where positions are learned
    pub(super) exec: Exec,
    recomputes: bool,
}

/// What is kept of a block until its backward pass.
enum Kept {
    Activations(Activations),
    /// What it read, `[tokens, hidden]`, from which the rest is computed again.
    Input(Tensor),
}

impl Transformer {
    /// A model whose parameters are views into `flat`: `[layout length]` f32. Changing `flat` in place changes the model.
    ///
    /// # Errors
    /// [`Error::Usage`] when the family is not known, [`Error::Mismatch`] when the layout does not fit the config,
    /// [`Error::Input`] when a sliding window or the learned positions are shorter than the context.
    pub fn new(config: &ModelConfig, layout: &Layout, flat: &Tensor, context: usize, exec: Exec) -> Result<Self> {
        let weights = Weights::views(config, layout, flat)?;
        config.check_context(context, "model")?;
        let turning = || RopeTable::of_part(context, &config.rope_frequencies(), config.head_dim);
        let rope = (!config.has_learned_positions()).then(turning);
        Ok(Self { config: config.clone(), weights, context, rope, exec, recomputes: false })
    }

    /// The model keeping, from now on, only what every block reads until the backward pass, which runs the block forward once more:
    /// the same bits for a third more time and the memory of one block's activations instead of all of them.
    #[must_use]
    pub fn recomputing(mut self, recomputes: bool) -> Self {
        self.recomputes = recomputes;
        self
    }

    /// Logits of every position: `[tokens, vocabulary]`. For tests and small inputs; scoring never forms them all.
    pub fn logits(&self, batch: Sequences<'_>) -> Result<Tensor> {
        let x = self.hidden(batch, true, |_| Ok(()))?;
        linear(self.exec, &self.normed(&x, &self.weights.norm)?, &self.weights.output)
    }

    /// The negative log-likelihood in nats of `targets`, each predicted from the position of the same index in `rows`.
    ///
    /// # Shapes
    /// `rows, targets: [m]`, indices into `batch.tokens` and token ids → `[m]`.
    pub fn nll(&self, batch: Sequences<'_>, rows: &[usize], targets: &[u32]) -> Result<Vec<f64>> {
        let x = select_rows(self.exec, &self.hidden(batch, false, |_| Ok(()))?.x, rows)?;
        cross_entropy(self.exec, &self.norm(&x, &self.weights.norm)?, &self.weights.output, targets)
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
        self.backward(batch, rows, gradient, None, |normed, tap| {
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
        let nll = self.backward(batch, None, gradient, Some(see), |normed, tap| {
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
        let log_odds = self.backward(batch, rows, gradient, None, |normed, _| {
            log_odds_backward(self.exec, normed, &self.weights.output, targets, scale, &gradient.output)
        })?;
        Ok(log_odds.iter().sum::<f64>() / targets.len() as f64)
    }

    /// As [`Transformer::nll_and_gradient`] without rows, on a device, where the losses stay: `[tokens]` f64.
    pub(crate) fn queue_gradient(
        &self,
        batch: Sequences<'_>,
        targets: &[u32],
        scale: f32,
        gradient: &Weights,
    ) -> Result<Tensor> {
        let scale = scale / targets.len() as f32;
        self.backward(batch, None, gradient, None, |normed, _| {
            cross_entropy_backward_queued(self.exec, normed, &self.weights.output, targets, scale, &gradient.output)
        })
    }

    /// As [`Transformer::nll`], on a device, where the losses stay: `[m]` f64.
    pub(crate) fn queue_nll(&self, batch: Sequences<'_>, rows: &[usize], targets: &[u32]) -> Result<Tensor> {
        let x = select_rows(self.exec, &self.hidden(batch, false, |_| Ok(()))?.x, rows)?;
        cross_entropy_queued(self.exec, &self.norm(&x, &self.weights.norm)?, &self.weights.output, targets)
    }

    /// Runs the model forward and back, adding to `gradient`; `see` is shown what is added. `head` takes the normed residual
    /// stream where something is predicted, `[m, hidden]`, and returns an output of each row and the gradient of what it
    /// read.
    fn backward<T>(
        &self,
        batch: Sequences<'_>,
        rows: Option<&[usize]>,
        gradient: &Weights,
        see: Option<&mut See<'_>>,
        head: impl FnOnce(&Tensor, &mut Tap<'_, '_>) -> Result<(T, Tensor)>,
    ) -> Result<T> {
        let mut saved = Vec::with_capacity(self.weights.blocks.len());
        let stream = self.hidden(batch, rows.is_none(), |activations| {
            saved.push(if self.recomputes { Kept::Input(activations.x) } else { Kept::Activations(activations) });
            Ok(())
        })?;
        let mut tap = Tap { exec: self.exec, eps: self.eps(), see };
        let predicting = match rows {
            Some(rows) => Stream::new(select_rows(self.exec, &stream.x, rows)?),
            None => stream,
        };
        let (outputs, dnormed) = head(&self.normed(&predicting, &self.weights.norm)?, &mut tap)?;
        let dx = tap.norm(&predicting.x, &self.weights.norm, &dnormed, None, &gradient.norm)?;
        let mut dx = match rows {
            Some(rows) => select_rows_backward(self.exec, rows, &dx, batch.tokens.len())?,
            None => dx,
        };
        for ((block, into), kept) in self.weights.blocks.iter().zip(&gradient.blocks).zip(saved).rev() {
            let activations = match kept {
                Kept::Activations(activations) => activations,
                Kept::Input(x) => self.block_forward(block, batch.lengths, Stream::new(x), None)?.1,
            };
            dx = self.block_backward(block, into, batch.lengths, activations, dx, &mut tap)?;
        }
        tap.embedding(batch.tokens, &dx, &gradient.embedding)?;
        if let Some(positions) = &gradient.positions {
            tap.embedding(&positions_of(batch), &dx, positions)?;
        }
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
        let stream = self.hidden(batch, true, |Activations { attention: a, feed_forward: f, .. }| {
            [&a.read, &a.output_read, &f.read, &f.active].into_iter().try_for_each(&mut show)
        })?;
        if self.config.tie_word_embeddings { Ok(()) } else { show(&self.normed(&stream, &self.weights.norm)?) }
    }

    /// The residual stream after the last block: `[tokens, hidden]`, normed at once by the last norm where `all` rows of it are read;
    /// `keep` is handed what every block computed.
    fn hidden(
        &self,
        batch: Sequences<'_>,
        all: bool,
        mut keep: impl FnMut(Activations) -> Result<()>,
    ) -> Result<Stream> {
        let mut stream = Stream::new(self.embed(batch)?);
        let Weights { blocks, norm, .. } = &self.weights;
        let last = Some(norm).filter(|_| all);
        let nexts = blocks.iter().skip(1).map(|block| self.read_by(&block.attention_norm)).chain([last]);
        for (block, next) in blocks.iter().zip(nexts) {
            let (after, activations) = self.block_forward(block, batch.lengths, stream, next)?;
            keep(activations)?;
            stream = after;
        }
        Ok(stream)
    }

    fn embed(&self, batch: Sequences<'_>) -> Result<Tensor> {
        let longest = batch.lengths.iter().max().copied().unwrap_or(0);
        if longest > self.context {
            return Err(Error::Usage(format!(
                "a sequence of {longest} tokens, but the model was set up for {}",
                self.context
            )));
        }
        let x = embedding(self.exec, &self.weights.embedding, batch.tokens)?;
        if let Some(positions) = &self.weights.positions {
            add_assign(self.exec, &x, &embedding(self.exec, positions, &positions_of(batch))?)?;
        }
        Ok(x)
    }

    /// Rows normed as their norm says.
    pub(super) fn norm(&self, x: &Tensor, w: &Norm) -> Result<Tensor> {
        match &w.bias {
            Some(bias) => layer_norm(self.exec, x, &w.gain, bias, self.eps()),
            None => rms_norm(self.exec, x, &w.gain, self.eps()),
        }
    }

    /// Adds `added` to `x` in place, and norms the sum.
    pub(super) fn norm_of_sum(&self, x: &Tensor, added: &Tensor, w: &Norm) -> Result<Tensor> {
        match &w.bias {
            Some(bias) => layer_norm_of_sum(self.exec, x, added, &w.gain, bias, self.eps()),
            None => rms_norm_of_sum(self.exec, x, added, &w.gain, self.eps()),
        }
    }

    /// A linear layer applied to rows.
    pub(super) fn linear(&self, x: &Tensor, w: &Linear) -> Result<Tensor> {
        let y = if w.inputs_first { conv1d(self.exec, x, &w.weight)? } else { linear(self.exec, x, &w.weight)? };
        w.bias.iter().try_for_each(|bias| add_bias(self.exec, &y, bias))?;
        Ok(y)
    }

    /// Whether kernels compute on a device, or their emulation.
    pub(super) fn is_on_device(&self) -> bool {
        matches!(self.exec, Exec::Device { .. })
    }

    fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }
}

/// The position of every token in its sequence.
fn positions_of(batch: Sequences<'_>) -> Vec<u32> {
    batch.lengths.iter().flat_map(|length| 0..*length as u32).collect()
}
