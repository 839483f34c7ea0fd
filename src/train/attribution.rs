//! Attribution: what every sequence of a training step contributes to the change of other losses.
//!
//! In-run data Shapley (Wang et al. 2024, arXiv 2406.11011). With a step θ' = θ + Σᵢ uᵢ, where uᵢ is what sequence i adds to
//! the update, the change of a loss L is expanded around θ, and sequence i is given
//!
//! φᵢ = ⟨∇L, uᵢ⟩ + ½ uᵢᵀ ∇²L Σⱼ uⱼ:
//!
//! the Shapley value of the game whose players are the step's sequences and whose pay-off is the expansion. The paper's
//! uᵢ are those of stochastic gradient descent, −η gᵢ. Training here is `AdamW` with clipping, so u is a choice:
//! * [`Update::Sgd`]: uᵢ = −η c gᵢ / B, with the step's rate η, its clip factor c and B sequences: the paper's formula, which
//!   it too applies to runs that were not plain descent. A sum of these is no prediction of the change of a loss.
//! * [`Update::Adam`]: uᵢ = −η c D gᵢ / B, with D = 1 / (√v̂ + ε) of the step (its own gradient included, taken as given). A
//!   gradient is credited at once with all that the momentum carries of it into later steps; decay is nobody's. Noise that
//!   the momentum would average out is credited at full length too, which may be why second-order sums over whole runs came out far
//!   too high.
//!
//! Neither adds up to what a run did. On the study's pool (30 steps, 14 eval sets; `results/2026-11-22-gradients`) losses fell
//! by 0.02 to 0.37 nats; the first-order sums over the run are 0.2 to 2 % of that by descent, and 0.22 to 0.45 nats too
//! low by the optimiser's. Over eval sets, either correlates with the change (0.84 and 0.83).
//!
//! Per step, the losses' gradients are taken at θ, and the step's own backward pass takes their inner products with every
//! gᵢ ([`Along`]). Curvature and preconditioner depend on the whole step: they cost a backward pass before it.

use super::{CurvePoint, Trainer};
use crate::error::Result;
use crate::kernels::{AdamW, Along, Directions, preconditioner, sum_of_squares};
use crate::model::{Factors, Part};
use crate::text::Batches;

/// How far parameters are moved along the step to see how gradients change, as a share of their norm, either way.
///
/// The difference is off by the third derivative times the square of the step, and by rounding over the step. On a model of
/// ten thousand random parameters (`tests/attribution.rs`) ∇²L u is off by 0.5 to 0.8 % of its norm at 1e-3, by 1e-4 of it
/// at 1e-4, and by 2e-4 of it at 3e-5, where rounding has taken over.
pub const HESSIAN_STEP: f64 = 1e-4;

/// Which step the contributions add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// That of gradient descent with the run's rates and clipping.
    Sgd,
    /// That of the run's optimiser, momentum credited at once.
    Adam,
}

/// What is attributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribution {
    /// Which step.
    pub update: Update,
    /// Whether the curvature of the losses is taken in.
    pub second_order: bool,
}

/// The gradients of some losses: given the number of the step, from 0, and parameters in the order of the layout. For one
/// step they must be gradients of the same functions.
pub type Gradients<'a> = dyn FnMut(u64, &[f32]) -> Result<Vec<Vec<f32>>> + 'a;

/// What the sequences of one step contribute to the change of some losses, in nats per token; below 0 is helpful.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// The unit that each sequence is from.
    pub units: Vec<usize>,
    /// ⟨∇L, uᵢ⟩: `[losses][sequences]`.
    pub first: Vec<Vec<f64>>,
    /// ½ uᵢᵀ ∇²L Σ uⱼ: `[losses][sequences]`; without the second order, no loss.
    pub second: Vec<Vec<f64>>,
}

impl Trainer<'_> {
    /// One optimiser step, the same one to the bit as [`Trainer::step`] takes, and what its sequences contribute to the
    /// losses whose gradients are given.
    ///
    /// # Errors
    /// As [`Trainer::step`], and those of `gradients`.
    pub fn step_attributed(
        &mut self,
        batches: &mut Batches,
        name: &str,
        attribution: Attribution,
        gradients: &mut Gradients<'_>,
    ) -> Result<(CurvePoint, Values)> {
        let (drawn, units) = self.draw(batches);
        let mut directions = gradients(self.step, &self.parameters.to_vec1::<f32>()?)?;
        let losses = directions.len();
        let ahead = attribution.second_order || attribution.update == Update::Adam;
        if ahead {
            let loss = self.accumulate(&drawn, None)?.0;
            let norm = self.check(loss, name)?;
            let scales = self.scales(attribution.update, norm)?;
            if attribution.second_order {
                let bends = self.bends(&scales, gradients)?;
                directions.extend(bends);
            }
            for direction in &mut directions {
                direction.iter_mut().zip(&scales).for_each(|(value, scale)| *value *= scale);
            }
        }
        let directions = Directions::on(&self.compute, &directions)?;
        let (loss, mut first) = self.accumulate(&drawn, Some(&directions))?;
        let point = self.descend(loss, name)?;
        let size = point.learning_rate * self.config.gradient_scale(point.gradient_norm);
        first.iter_mut().flatten().for_each(|product| *product *= -size);
        let second = first.split_off(losses);
        Ok((point, Values { units, first, second }))
    }

    /// What the update multiplies every derivative with, besides rate and clip factor.
    fn scales(&self, update: Update, norm: f64) -> Result<Vec<f32>> {
        if update == Update::Sgd {
            return Ok(vec![1.0; self.layout.len()]);
        }
        let options = AdamW { gradient_scale: self.config.gradient_scale(norm), ..self.config.adamw(self.step + 1) };
        Ok(preconditioner(&options, &self.second.to_vec1::<f32>()?, &self.gradient.to_vec1::<f32>()?))
    }

    /// ½ ∇²L u for every loss, u the update of the gradient at hand: central differences of the losses' gradients.
    fn bends(&self, scales: &[f32], gradients: &mut Gradients<'_>) -> Result<Vec<Vec<f32>>> {
        let (at, gradient) = (self.parameters.to_vec1::<f32>()?, self.gradient.to_vec1::<f32>()?);
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let size = squares(&mut at.iter().map(|value| f64::from(*value))).sqrt();
        let pairs = || gradient.iter().zip(scales).map(|(g, scale)| f64::from(*g) * f64::from(*scale));
        let length = squares(&mut pairs()).sqrt();
        let norm = sum_of_squares(&self.gradient)?.sqrt();
        let update = -self.config.rate_at(self.step) * self.config.gradient_scale(norm); // u = update · scales · gradient
        let step = if length > 0.0 { HESSIAN_STEP * size.max(f64::MIN_POSITIVE) / length } else { 0.0 };
        let mut moved = |sign: f64| -> Result<Vec<Vec<f32>>> {
            let there: Vec<f32> =
                at.iter().zip(pairs()).map(|(at, g)| (f64::from(*at) + sign * step * g) as f32).collect();
            gradients(self.step, &there)
        };
        let (ahead, behind) = (moved(1.0)?, moved(-1.0)?);
        let half = if step > 0.0 { 0.5 * update / (2.0 * step) } else { 0.0 };
        let difference = |(a, b): (Vec<f32>, Vec<f32>)| {
            a.iter().zip(&b).map(|(a, b)| ((f64::from(*a) - f64::from(*b)) * half) as f32).collect()
        };
        Ok(ahead.into_iter().zip(behind).map(difference).collect())
    }
}

/// Takes the inner products with one part of the gradients.
pub(super) fn add(along: &mut Along<'_>, part: &Part<'_>) -> Result<()> {
    match part.factors {
        Factors::Linear { first_row, inputs, outputs } => along.add_linear(part.offset, first_row, inputs, outputs),
        Factors::Bias { outputs } => along.add_bias(part.offset, outputs),
        Factors::Norm { inputs, outputs, eps } => along.add_norm(part.offset, inputs, outputs, eps),
        Factors::LayerNorm { inputs, outputs, eps } => along.add_layer_norm(part.offset, inputs, outputs, eps),
        Factors::Embedding { ids, outputs } => along.add_embedding(part.offset, ids, outputs),
    }
}
