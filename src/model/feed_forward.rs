//! Feed-forward half of a block: gated by silu, or GELU alone; and the gradient.

use super::Transformer;
use super::tap::Tap;
use super::weights::{FeedForward, Linear};
use crate::error::{Error, Result};
use crate::kernels::{
    columns, columns_on_device, gelu, gelu_backward, swiglu, swiglu_backward, swiglu_backward_on_device,
};
use candle_core::Tensor;

/// What the backward pass needs of the forward pass.
pub(super) struct Fed {
    pub(super) read: Tensor,   // what the first layers read
    pub(super) active: Tensor, // what the last layer reads
    entered: Vec<Tensor>,      // what the first layers make of it; columns of one tensor where they are joined
}

impl Transformer {
    /// What the half adds to the residual stream, of what it reads of it: `[tokens, hidden]` both.
    pub(super) fn feed(&self, w: &FeedForward, read: Tensor) -> Result<(Tensor, Fed)> {
        let entered = match self.joined(w) {
            Some(joined) => {
                let whole = self.linear(&read, joined)?;
                columns(&whole, &[whole.dim(1)? / 2; 2])?
            }
            None => w.entry.iter().map(|w| self.linear(&read, w)).collect::<Result<Vec<_>>>()?,
        };
        let active = match (self.config.hidden_act.gelu(), entered.as_slice()) {
            (None, [gate, up]) => swiglu(self.exec, gate, up)?,
            (Some(form), [up]) => gelu(self.exec, form, up)?,
            (_, entered) => return Err(unfit(entered.len())),
        };
        let out = self.linear(&active, &w.down)?;
        Ok((out, Fed { read, active, entered }))
    }

    /// Takes the gradient of what the half adds, adds those of its weights to `into`, returns that of what it reads.
    pub(super) fn feed_backward(
        &self,
        w: &FeedForward,
        into: &FeedForward,
        f: &Fed,
        dout: &Tensor,
        tap: &mut Tap<'_, '_>,
    ) -> Result<Tensor> {
        let dactive = tap.linear(&f.active, &w.down, dout, None, &into.down)?;
        if let (Some(w), Some(into), [gate, up]) = (self.joined(w), &into.joined, f.entered.as_slice()) {
            let (n, width) = gate.dims2()?;
            let (dentered, parts) = columns_on_device(gate, n, &[width; 2])?;
            swiglu_backward_on_device(gate, up, &dactive, &parts[0], &parts[1])?;
            return tap.linear(&f.read, w, &dentered, None, into);
        }
        let dentered = match (self.config.hidden_act.gelu(), f.entered.as_slice()) {
            (None, [gate, up]) => <[Tensor; 2]>::from(swiglu_backward(self.exec, gate, up, &dactive)?).to_vec(),
            (Some(form), [up]) => vec![gelu_backward(self.exec, form, up, &dactive)?],
            (_, entered) => return Err(unfit(entered.len())),
        };
        tap.linears(&f.read, &w.entry, &dentered, &into.entry)
    }

    /// The first layers as one, where they are and the processor does not compute: there two products are no slower than one of twice the
    /// width, and have the bits they always had.
    fn joined<'a>(&self, w: &'a FeedForward) -> Option<&'a Linear> {
        w.joined.as_ref().filter(|_| self.is_on_device())
    }
}

fn unfit(layers: usize) -> Error {
    Error::Mismatch {
        what: "feed-forward layer against its activation".into(),
        differences: format!("{layers} first layers; a gate has two, GELU one"),
    }
}
