//! Log-odds: the mean log-odds of what a model should have predicted, by sequence, and their gradients.
//!
//! The scalar output f of Li et al. 2024 (arXiv 2409.19458): the mean of ln(p / (1 − p)) over the tokens to predict.

use super::gradient::{Differentiable, TOGETHER};
use super::{EvalSet, Evaluator};
use crate::error::{Error, Result};
use crate::kernels::{Projection, fill_zero, log_odds, with_values};
use crate::model::Sequences;
use crate::text::Batch;
use candle_core::Tensor;
use std::ops::Range;

impl Evaluator {
    /// Shows `see` the output f of every sequence of `length` ids and its gradient, in the order of the layout, one
    /// after the other: one gradient exists at a time.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when an output is not; those of `see`.
    pub fn log_odds_gradients(
        &self,
        batch: &Batch,
        length: usize,
        mut see: impl FnMut(f64, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.each_log_odds_gradient(batch, length, |output, gradient| with_values(gradient, |x| see(output, x)))
    }

    /// As [`Evaluator::log_odds_gradients`], shows the gradients where they lie.
    fn each_log_odds_gradient(
        &self,
        batch: &Batch,
        length: usize,
        mut see: impl FnMut(f64, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let Differentiable { model, gradient, views } = self.differentiable(length)?;
        for (tokens, targets) in batch.inputs.chunks(length).zip(batch.targets.chunks(length)) {
            fill_zero(self.compute.exec(), &gradient)?;
            let sequences = Sequences { tokens, lengths: &[length] };
            let output = finite(model.log_odds_and_gradient(sequences, None, targets, 1.0, &views)?)?;
            see(output, &gradient)?;
        }
        Ok(())
    }

    /// Pᵀx of these ranges of the gradient x of every sequence's output f; on a device without reading the gradients back.
    ///
    /// # Errors
    /// As [`Evaluator::log_odds_gradients`].
    pub fn projected_log_odds_gradients(
        &self,
        batch: &Batch,
        length: usize,
        projection: Projection,
        ranges: &[Range<usize>],
    ) -> Result<Vec<Vec<f64>>> {
        let mut projected = Vec::new();
        let compute = &self.compute;
        let placed = compute.is_queued().then(|| projection.placed(ranges, compute.device())).transpose()?;
        self.each_log_odds_gradient(batch, length, |_, gradient| {
            projected.push(match &placed {
                Some(placed) => placed.project(gradient)?,
                None => with_values(gradient, |x| Ok(projection.project_ranges(ranges, x)))?,
            });
            Ok(())
        })?;
        Ok(projected)
    }

    /// The mean log-odds of all predicted tokens of an eval set, and its gradient, in the order of the layout.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the output is not.
    pub fn set_log_odds_gradient(&self, set: &EvalSet) -> Result<(f64, Vec<f32>)> {
        let Differentiable { model, gradient, views } = self.differentiable(self.length)?;
        let mut output = 0.0;
        for pass in set.passes(TOGETHER) {
            let share = pass.targets.len() as f64 / set.n_tokens() as f64;
            let rows = Some(pass.rows.as_slice());
            output +=
                share * model.log_odds_and_gradient(pass.sequences(), rows, &pass.targets, share as f32, &views)?;
        }
        Ok((finite(output)?, gradient.to_vec1()?))
    }

    /// The output f of every sequence of `length` ids, by forward passes.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when an output is not.
    pub fn log_odds(&self, batch: &Batch, length: usize) -> Result<Vec<f64>> {
        let model = self.transformer(length, self.compute.exec())?;
        let rows: Vec<usize> = (0..length).collect();
        let output = |(tokens, targets): (&[u32], &[u32])| {
            let nll = model.nll(Sequences { tokens, lengths: &[length] }, &rows, targets)?;
            finite(nll.iter().map(|nll| log_odds((-nll).exp())).sum::<f64>() / length as f64)
        };
        batch.inputs.chunks(length).zip(batch.targets.chunks(length)).map(output).collect()
    }
}

fn finite(output: f64) -> Result<f64> {
    if output.is_finite() {
        return Ok(output);
    }
    Err(Error::NotFinite { what: format!("log-odds {output}"), place: "a differentiated sequence".into() })
}
