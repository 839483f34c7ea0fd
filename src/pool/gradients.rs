//! Gradients of models in the pool, taken in f32 wherever the pool computes.

use super::candidate::{Parameters, Purpose};
use super::members::Member;
use super::scorer::ready;
use super::{Pool, Scorer};
use crate::error::Result;
use crate::eval::Evaluator;
use crate::kernels::{Compute, Precision};

impl Pool {
    /// A model to differentiate where the pool computes, for sequences of at most `length` ids and passes of `tokens`.
    ///
    /// # Errors
    /// Those of opening the device; [`Error::Usage`](crate::Error::Usage) when it has too little memory.
    pub fn differentiator(&self, length: usize, tokens: usize) -> Result<Evaluator> {
        let (compute, recomputes) = self.differentiating(tokens)?;
        let mut evaluator = Evaluator::on(&compute, &self.settings.model, &self.layout, length)?;
        evaluator.set_recomputing(recomputes);
        Ok(evaluator)
    }

    /// Where gradients of passes of `tokens` ids are taken, in f32, and whether activations are computed again there to save memory.
    ///
    /// # Errors
    /// As [`Pool::differentiator`].
    pub fn differentiating(&self, tokens: usize) -> Result<(Compute, bool)> {
        let compute = self.gradient_device()?;
        let room = self.differentiating_room(&compute, tokens)?;
        Ok((compute, room.is_some_and(|room| room.recomputes)))
    }
}

impl Scorer<'_> {
    /// As [`Scorer::eval_key`], of what is made of gradients, which do not have the precision of scores.
    ///
    /// # Errors
    /// As [`Pool::eval_key`].
    pub fn gradient_key(&self, eval: usize) -> Result<String> {
        self.pool.eval_key_in(Precision::F32, &self.evals[eval].name)
    }

    /// The loss of the average of `members` on one eval set, nats per token, and its derivative by the weight of each:
    /// ∂L/∂wᵢ = ⟨∇L(Σ wⱼθⱼ), θᵢ⟩, by one backward pass for all of them.
    ///
    /// # Errors
    /// As [`Scorer::score`], and [`Error::NotFinite`](crate::Error::NotFinite) when a derivative is not finite.
    pub fn slopes(&mut self, eval: usize, members: &[Member]) -> Result<(f64, Vec<f64>)> {
        let layout = &self.pool.layout;
        self.set_for(Purpose::Gradients, Parameters::Average(members))?;
        let set = self.evals[eval].set(self.pool)?;
        let gradient = ready(self.candidate.as_mut())?.gradient(|evaluator| evaluator.gradient(set))?;
        let models = self.open.of(members)?;
        let slopes = models.iter().map(|(_, model)| gradient.along(layout, model)).collect::<Result<_>>()?;
        Ok((gradient.loss, slopes))
    }

    /// The mean log-odds of an eval set's tokens under the model whose parameters `write` writes, and its gradient; both in
    /// the order of the layout.
    ///
    /// # Errors
    /// [`Error::NotFinite`](crate::Error::NotFinite) when the output is not finite.
    pub fn log_odds_gradient(&mut self, eval: usize, write: impl FnOnce(&mut [f32])) -> Result<(f64, Vec<f32>)> {
        let write = |out: &mut [f32]| {
            write(out);
            Ok(())
        };
        self.set_for(Purpose::Gradients, Parameters::Written(Box::new(|_, out| write(out))))?;
        let set = self.evals[eval].set(self.pool)?;
        ready(self.candidate.as_mut())?.gradient(|evaluator| evaluator.set_log_odds_gradient(set))
    }
}
