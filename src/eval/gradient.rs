//! Gradient: the derivative of an eval set's loss by every parameter, under the score protocol.

use super::evaluator::PACK;
use super::{EvalSet, Evaluator};
use crate::error::{Error, Result};
use crate::kernels::{Exec, LowRankFactors, add_low_rank, inner_product};
use crate::model::{Checkpoint, Layout, Parameter, Transformer, Weights};
use candle_core::{DType, Tensor};

/// Passes of scoring that go through the model together: about 2048 ids, enough to divide one pass over threads.
pub(super) const TOGETHER: usize = 4;

/// Ids of such a pass, in windows of at most `length` predictions.
pub fn gradient_pass(length: usize) -> usize {
    TOGETHER * PACK.max(length)
}

/// The loss of a model on an eval set, and its gradient.
pub struct Gradient {
    /// Nats per predicted token.
    pub loss: f64,
    /// The derivative of the loss by every parameter, in the order of the layout: `[layout length]`.
    pub values: Vec<f32>,
}

/// A model that is differentiated, and the gradient that it adds to.
pub(super) struct Differentiable {
    pub(super) model: Transformer,
    pub(super) gradient: Tensor,
    pub(super) views: Weights,
}

impl Evaluator {
    /// The loss of the model on `set` and its gradient.
    ///
    /// The windows are those that are scored, and only predicted tokens count. Passes go through the model in order, each
    /// divided over the current rayon pool, so the result does not depend on the number of threads.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the loss or a derivative is NaN or infinite.
    pub fn gradient(&self, set: &EvalSet) -> Result<Gradient> {
        let Differentiable { model, gradient, views } = self.differentiable(self.length)?;
        let mut loss = 0.0;
        for pass in set.passes(TOGETHER) {
            let share = pass.targets.len() as f64 / set.n_tokens() as f64;
            let rows = Some(pass.rows.as_slice());
            loss += share * model.loss_and_gradient(pass.sequences(), rows, &pass.targets, share as f32, &views)?;
        }
        let gradient = Gradient { loss, values: gradient.to_vec1()? };
        gradient.checked(&format!("an eval set of {} tokens", set.n_tokens()))
    }

    /// The model for sequences of at most `length` ids.
    pub(super) fn transformer(&self, length: usize, exec: Exec) -> Result<Transformer> {
        let model = Transformer::new(&self.config, &self.layout, &self.flat, length, exec)?;
        Ok(model.recomputing(self.recomputes))
    }

    /// The model for sequences of at most `length` ids, each pass divided over threads, and a gradient of 0 to add to.
    pub(super) fn differentiable(&self, length: usize) -> Result<Differentiable> {
        let gradient = Tensor::zeros(self.layout.len(), DType::F32, self.compute.device())?;
        let views = Weights::views(&self.config, &self.layout, &gradient)?;
        let model = self.transformer(length, self.compute.exec())?;
        Ok(Differentiable { model, gradient, views })
    }
}

impl Gradient {
    /// Itself, unless something of it is not finite.
    pub(super) fn checked(self, place: &str) -> Result<Self> {
        if self.loss.is_finite() && self.values.iter().all(|value| value.is_finite()) {
            return Ok(self);
        }
        Err(Error::NotFinite { what: format!("loss {} or its gradient", self.loss), place: place.to_owned() })
    }

    /// ⟨∇L, θ⟩, the derivative of the loss along the parameters of a model, summed in f64 from its mapped file.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the model does not fit the layout.
    pub fn along(&self, layout: &Layout, model: &Checkpoint) -> Result<f64> {
        model.check(layout)?;
        let product = |parameter: &Parameter| {
            let gradient = &self.values[parameter.range()];
            let stored = model.stored(&parameter.name).map_or(0.0, |values| inner_product(gradient, values));
            let update = model.update().and_then(|update| update.factors(&parameter.name));
            stored + update.map_or(0.0, |factors| along_low_rank(gradient, factors))
        };
        Ok(layout.parameters().iter().map(product).sum())
    }
}

/// The inner product of a matrix's gradient with a low-rank update of it.
fn along_low_rank(gradient: &[f32], factors: LowRankFactors) -> f64 {
    let mut update = vec![0f32; gradient.len()];
    add_low_rank(&mut update, &[(1.0, factors)]);
    update.iter().zip(gradient).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
