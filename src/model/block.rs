//! Block: attention and feed-forward layer around the residual stream, with norms before or after them; and the gradient.

use super::Transformer;
use super::attention::Attended;
use super::feed_forward::Fed;
use super::tap::Tap;
use super::weights::{Block, Norm};
use crate::error::Result;
use crate::kernels::add_assign;
use candle_core::Tensor;

/// The residual stream between two blocks.
#[derive(Clone)]
pub(super) struct Stream {
    pub(super) x: Tensor,
    normed: Option<Tensor>, // by the norm that reads it next, where that was taken with the sum
}

impl Stream {
    pub(super) fn new(x: Tensor) -> Self {
        Self { x, normed: None }
    }
}

/// What the backward pass of one block needs from its forward pass.
pub(super) struct Activations {
    pub(super) x: Tensor, // input of the block
    pub(super) attention: Attended,
    attention_out: Option<Tensor>, // before its norm, where norms come after
    middle: Tensor,                // the stream that the feed-forward layer reads
    pub(super) feed_forward: Fed,
    feed_forward_out: Option<Tensor>, // as of the attention
}

impl Transformer {
    /// The residual stream after a block; normed by the norm that is `next` to read it, if one is.
    pub(super) fn block_forward(
        &self,
        w: &Block,
        lengths: &[usize],
        stream: Stream,
        next: Option<&Norm>,
    ) -> Result<(Stream, Activations)> {
        let read = self.read(&stream, &w.attention_norm)?;
        let (out, attention) = self.attend(&w.attention, lengths, read)?;
        let Stream { x, .. } = stream;
        let parallel = self.config.use_parallel_residual;
        let norm = self.read_by(&w.feed_forward_norm).filter(|_| !parallel);
        let (attention_out, stream) = self.write(out, &w.attention_norm, &x, norm)?;
        let middle = if parallel { Stream::new(x.clone()) } else { stream.clone() };
        let read = self.read(&middle, &w.feed_forward_norm)?;
        let (out, feed_forward) = self.feed(&w.feed_forward, read)?;
        let (feed_forward_out, stream) = self.write(out, &w.feed_forward_norm, &stream.x, next)?;
        Ok((stream, Activations { x, attention, attention_out, middle: middle.x, feed_forward, feed_forward_out }))
    }

    /// Takes the gradient of the block's output, adds those of its weights to `into`, returns that of its input.
    pub(super) fn block_backward(
        &self,
        w: &Block,
        into: &Block,
        lengths: &[usize],
        a: Activations,
        dout: Tensor,
        tap: &mut Tap<'_, '_>,
    ) -> Result<Tensor> {
        let (norm, dnorm) = (&w.feed_forward_norm, &into.feed_forward_norm);
        let dwritten = write_backward(a.feed_forward_out.as_ref(), norm, &dout, dnorm, tap)?;
        let dfed = self.feed_backward(&w.feed_forward, &into.feed_forward, &a.feed_forward, &dwritten, tap)?;
        // Gradients of the stream are added up in place, so the parallel attention takes its own before that.
        let attend = |dstream: &Tensor, tap: &mut Tap<'_, '_>| {
            let (norm, dnorm) = (&w.attention_norm, &into.attention_norm);
            let dwritten = write_backward(a.attention_out.as_ref(), norm, dstream, dnorm, tap)?;
            self.attend_backward(&w.attention, &into.attention, lengths, &a.attention, &dwritten, tap)
        };
        let (dattended, dmiddle) = if self.config.use_parallel_residual {
            let dattended = attend(&dout, tap)?;
            (dattended, self.read_backward(&a.middle, norm, dfed, dout, dnorm, tap)?)
        } else {
            let dmiddle = self.read_backward(&a.middle, norm, dfed, dout, dnorm, tap)?;
            (attend(&dmiddle, tap)?, dmiddle)
        };
        self.read_backward(&a.x, &w.attention_norm, dattended, dmiddle, &into.attention_norm, tap)
    }

    /// What attention or feed-forward layer reads of the residual stream: its norm, or the stream where norms come after.
    fn read(&self, stream: &Stream, norm: &Norm) -> Result<Tensor> {
        if self.config.norms_come_after() { Ok(stream.x.clone()) } else { self.normed(stream, norm) }
    }

    /// The norm by which a layer reads the residual stream; none where norms come after.
    pub(super) fn read_by<'a>(&self, norm: &'a Norm) -> Option<&'a Norm> {
        Some(norm).filter(|_| !self.config.norms_come_after())
    }

    /// The norm of the residual stream, taken now unless it was taken on the way.
    pub(super) fn normed(&self, stream: &Stream, norm: &Norm) -> Result<Tensor> {
        stream.normed.clone().map_or_else(|| self.norm(&stream.x, norm), Ok)
    }

    /// The gradient of the stream: of what was read of it, and of the connection around the layer, `around`.
    fn read_backward(
        &self,
        stream: &Tensor,
        norm: &Norm,
        dread: Tensor,
        around: Tensor,
        dnorm: &Norm,
        tap: &mut Tap<'_, '_>,
    ) -> Result<Tensor> {
        if self.config.norms_come_after() {
            add_assign(self.exec, &dread, &around)?;
            return Ok(dread);
        }
        tap.norm(stream, norm, &dread, Some(around), dnorm)
    }

    /// The residual stream with a layer's output, or its norm where norms come after, and normed by the norm that is `next` to read
    /// it: one launch on a device for sum and norm. Beside it what was normed of the output.
    fn write(
        &self,
        out: Tensor,
        norm: &Norm,
        stream: &Tensor,
        next: Option<&Norm>,
    ) -> Result<(Option<Tensor>, Stream)> {
        let (read, x) = if self.config.norms_come_after() {
            let normed = self.norm(&out, norm)?;
            (Some(out), normed)
        } else {
            (None, out)
        };
        let normed = next.map(|next| self.norm_of_sum(&x, stream, next)).transpose()?;
        if normed.is_none() {
            add_assign(self.exec, &x, stream)?;
        }
        Ok((read, Stream { x, normed }))
    }
}

/// The gradient of a layer's output: that of the stream, through the norm where norms come after.
fn write_backward(
    normed: Option<&Tensor>,
    norm: &Norm,
    dstream: &Tensor,
    dnorm: &Norm,
    tap: &mut Tap<'_, '_>,
) -> Result<Tensor> {
    normed.map_or_else(|| Ok(dstream.clone()), |out| tap.norm(out, norm, dstream, None, dnorm))
}
