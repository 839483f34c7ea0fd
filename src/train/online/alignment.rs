//! Alignment: inner products of gradients, with one gradient held besides the one being worked out.

use super::super::Trainer;
use crate::error::{Error, Result};
use crate::kernels::{dot, fill_zero};
use crate::model::Sequences;
use crate::text::Batch;

impl Trainer<'_> {
    /// Fills the gradient with that of a batch's mean loss; returns the mean loss of each sequence, in nats per token.
    pub(super) fn gradient_of(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        fill_zero(self.compute.exec(), &self.gradient)?;
        let length = self.config.sequence_length;
        let total = batch.targets.len();
        let micro = self.config.micro_batch_size.max(1) * length;
        let mut losses = Vec::with_capacity(total / length);
        for (inputs, targets) in batch.inputs.chunks(micro).zip(batch.targets.chunks(micro)) {
            let lengths = vec![length; targets.len() / length];
            let share = targets.len() as f32 / total as f32;
            let sequences = Sequences { tokens: inputs, lengths: &lengths };
            let nll = self.model.nll_and_gradient(sequences, None, targets, share, &self.gradient_views)?;
            losses.extend(nll.chunks(length).map(|sequence| sequence.iter().sum::<f64>() / length as f64));
        }
        Ok(losses)
    }

    /// ⟨∇ℓ(x), ∇ℓ(target)⟩ of every batch x at the present parameters, in order. Batches are asked for one by one; the
    /// gradient of the target is the only one kept.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when one is NaN or infinite.
    pub fn alignments(&mut self, target: &Batch, batches: impl Iterator<Item = Batch>) -> Result<Vec<f64>> {
        self.gradient_of(target)?;
        let wanted = self.gradient.copy()?;
        let mut alignments = Vec::new();
        for (index, batch) in batches.enumerate() {
            self.gradient_of(&batch)?;
            let alignment = dot(self.compute.exec(), &wanted, &self.gradient)?;
            if !alignment.is_finite() {
                let place = format!("after step {}", self.step);
                return Err(Error::NotFinite { what: format!("alignment {alignment} of domain {}", index + 1), place });
            }
            alignments.push(alignment);
        }
        Ok(alignments)
    }
}
