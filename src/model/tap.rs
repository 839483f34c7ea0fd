//! Tap: what the gradient of every weight is made of, shown as the backward pass comes by it.
//!
//! A layer's gradient is a sum over tokens, so whoever sees its factors can sum over the tokens of one sequence, or take
//! inner products, without a backward pass of their own.

use super::weights::{Linear, Norm};
use crate::error::{Error, Result};
use crate::kernels::{
    Exec, bias_backward, conv1d_backward, cross_entropy_backward, cross_entropy_backward_seen, embedding_backward,
    layer_norm_backward, linear_backward, rms_norm_backward,
};
use candle_core::Tensor;

/// The gradient of one weight, or of matrices that lie next to each other, taken as one, before it is summed over tokens. A tied
/// embedding is shown twice, its parts add up.
pub struct Part<'a> {
    /// Where the weight begins in the flat vector.
    pub offset: usize,
    /// What is summed.
    pub factors: Factors<'a>,
}

/// What is summed over tokens to a gradient.
pub enum Factors<'a> {
    /// A matrix `[out, in]`: Σ bₜ aₜᵀ, with the layer's input a and the gradient b of its output; of a matrix stored inputs
    /// first a and b have changed places. The output matrix comes in several parts, each for some consecutive tokens.
    Linear {
        /// The token of the first row.
        first_row: usize,
        /// a: `[rows, in]`.
        inputs: &'a Tensor,
        /// b: `[rows, out]`.
        outputs: &'a Tensor,
    },
    /// A bias `[out]`: Σ bₜ.
    Bias {
        /// b: `[tokens, out]`.
        outputs: &'a Tensor,
    },
    /// The gain `[d]` of an RMS norm: Σ bₜ ∘ xₜ / rms(xₜ). Norms of single heads have a row for each head of a token.
    Norm {
        /// x: `[tokens · heads, d]`.
        inputs: &'a Tensor,
        /// b: `[tokens · heads, d]`.
        outputs: &'a Tensor,
        /// Added to the mean square.
        eps: f32,
    },
    /// The gain `[d]` of a layer norm: Σ bₜ ∘ x̂ₜ, with the normed rows x̂. Its bias is shown as a bias.
    LayerNorm {
        /// x: `[tokens, d]`.
        inputs: &'a Tensor,
        /// b: `[tokens, d]`.
        outputs: &'a Tensor,
        /// Added to the variance.
        eps: f32,
    },
    /// An embedding `[vocabulary, d]`: bₜ is added to the row of token t.
    Embedding {
        /// Token ids.
        ids: &'a [u32],
        /// b: `[tokens, d]`.
        outputs: &'a Tensor,
    },
}

/// Who is shown every part of a gradient.
pub type See<'a> = dyn FnMut(Part<'_>) -> Result<()> + 'a;

/// The kernels of the backward pass, each shown to `see` before it runs.
pub(super) struct Tap<'a, 'b> {
    pub(super) exec: Exec,
    pub(super) eps: f32,
    pub(super) see: Option<&'a mut See<'b>>,
}

impl Tap<'_, '_> {
    /// [`Tap::linear`] of layers that read one input; returns the gradient of that.
    pub(super) fn linears(&mut self, x: &Tensor, ws: &[Linear], dys: &[Tensor], into: &[Linear]) -> Result<Tensor> {
        let mut dx = None;
        for ((w, dy), into) in ws.iter().zip(dys).zip(into) {
            dx = Some(self.linear(x, w, dy, dx, into)?);
        }
        dx.ok_or_else(|| Error::Mismatch { what: "layers of a model".into(), differences: "there are none".into() })
    }

    /// [`linear_backward`] or [`conv1d_backward`], and [`bias_backward`].
    pub(super) fn linear(
        &mut self,
        x: &Tensor,
        w: &Linear,
        dy: &Tensor,
        dx: Option<Tensor>,
        into: &Linear,
    ) -> Result<Tensor> {
        if let Some(see) = &mut self.see {
            let (outputs, inputs) = if into.inputs_first { (x, dy) } else { (dy, x) };
            let factors = Factors::Linear { first_row: 0, inputs, outputs };
            see(Part { offset: offset(&into.weight), factors })?;
        }
        self.bias(into.bias.as_ref(), dy)?;
        let backward = if w.inputs_first { conv1d_backward } else { linear_backward };
        backward(self.exec, x, &w.weight, dy, dx, &into.weight)
    }

    fn show(&mut self, weight: &Tensor, factors: Factors<'_>) -> Result<()> {
        self.see.as_mut().map_or(Ok(()), |see| see(Part { offset: offset(weight), factors }))
    }

    fn bias(&mut self, into: Option<&Tensor>, dy: &Tensor) -> Result<()> {
        let Some(dbias) = into else { return Ok(()) };
        self.show(dbias, Factors::Bias { outputs: dy })?;
        bias_backward(self.exec, dy, dbias)
    }

    /// [`rms_norm_backward`], or [`layer_norm_backward`] and [`bias_backward`] of a norm with a bias.
    pub(super) fn norm(
        &mut self,
        x: &Tensor,
        w: &Norm,
        dy: &Tensor,
        dx: Option<Tensor>,
        into: &Norm,
    ) -> Result<Tensor> {
        let eps = self.eps;
        let (factors, backward): (_, NormBackward) = match into.bias {
            Some(_) => (Factors::LayerNorm { inputs: x, outputs: dy, eps }, layer_norm_backward),
            None => (Factors::Norm { inputs: x, outputs: dy, eps }, rms_norm_backward),
        };
        self.show(&into.gain, factors)?;
        self.bias(into.bias.as_ref(), dy)?;
        backward(self.exec, x, &w.gain, eps, dy, dx, &into.gain)
    }

    /// The loss and the output matrix: [`cross_entropy_backward_seen`].
    pub(super) fn cross_entropy(
        &mut self,
        x: &Tensor,
        w: &Tensor,
        targets: &[u32],
        scale: f32,
        dw: &Tensor,
    ) -> Result<(Vec<f64>, Tensor)> {
        let Some(see) = &mut self.see else { return cross_entropy_backward(self.exec, x, w, targets, scale, dw) };
        let offset = offset(dw);
        cross_entropy_backward_seen(self.exec, x, w, targets, scale, dw, &mut |first_row, inputs, outputs| {
            see(Part { offset, factors: Factors::Linear { first_row, inputs, outputs } })
        })
    }

    /// [`embedding_backward`].
    pub(super) fn embedding(&mut self, ids: &[u32], dx: &Tensor, dtable: &Tensor) -> Result<()> {
        self.show(dtable, Factors::Embedding { ids, outputs: dx })?;
        embedding_backward(self.exec, ids, dx, dtable)
    }
}

/// The backward pass of a norm: execution, x, gain, eps, dy, dx, dgain.
type NormBackward = fn(Exec, &Tensor, &Tensor, f32, &Tensor, Option<Tensor>, &Tensor) -> Result<Tensor>;

/// Where a view of the flat gradient begins, and so the weight it belongs to.
fn offset(view: &Tensor) -> usize {
    view.layout().start_offset()
}
