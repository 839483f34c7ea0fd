//! `MixMin`: the weights whose mixture of predictions has the least loss, a convex problem solved to a known accuracy.
//!
//! arXiv 2502.10510: minimise f(w) = −meanₜ ln Σ wᵢ Pᵢ(xₜ) over the simplex by exponentiated gradient, wᵢ ∝ wᵢ e^(−ηgᵢ), from
//! uniform weights with η = 1, at most 100 steps and tolerance 10⁻⁴. Three things differ here:
//! * P is mixed token by token, as the ensemble does; the authors' program mixes whole sequences.
//! * A step that would raise f is tried again with half the rate, which doubles up to η after every step taken: with
//!   many, sharply different experts the plain step overshoots, and a weight that has reached 0 stays there.
//! * It stops when maxᵢ −gᵢ − 1 is within the tolerance, not when max |gᵢ| is: Σ wᵢ gᵢ = −1 always, so the latter never
//!   comes near 0. The former bounds f(w) − min f, since f is convex.

use super::ensemble::BLOCK;
use crate::error::{Error, Result};
use rayon::prelude::*;

/// How the descent goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descent {
    /// The rate η.
    pub rate: f64,
    /// Steps at most.
    pub steps: usize,
    /// It stops once the loss is known to be within this many nats of the least one.
    pub tolerance: f64,
}

impl Default for Descent {
    /// The paper's.
    fn default() -> Self {
        Self { rate: 1.0, steps: 100, tolerance: 1e-4 }
    }
}

/// Where a descent ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimum {
    /// Weights of the experts; they sum to 1.
    pub weights: Vec<f64>,
    /// Loss of the mixture, in nats per token.
    pub loss: f64,
    /// A bound on how much more that is than the least loss.
    pub gap: f64,
    /// Steps taken.
    pub steps: usize,
}

/// The best weights for a mixture of predictions; `nll` is −ln p of every token under each expert: `[experts][n_tokens]`.
///
/// # Errors
/// [`Error::Usage`] without experts or tokens, [`Error::Mismatch`] when experts differ in the number of tokens.
///
/// # Examples
/// ```
/// use mixpool::estimators::{Descent, mixmin};
/// let nll = [[0.9f32, 0.2].map(|p| -p.ln()), [0.1f32, 0.6].map(|p| -p.ln())];
/// let best = mixmin(&[&nll[0], &nll[1]], &Descent { tolerance: 1e-12, ..Descent::default() })?;
/// assert!((best.weights[0] - 0.6875).abs() < 1e-5);
/// # Ok::<(), mixpool::Error>(())
/// ```
pub fn mixmin(nll: &[&[f32]], descent: &Descent) -> Result<Optimum> {
    let predictions = Predictions::new(nll)?;
    let mut at = predictions.at(vec![1.0 / nll.len() as f64; nll.len()]);
    let mut rate = descent.rate;
    let mut steps = 0;
    while at.gap() > descent.tolerance && steps < descent.steps {
        let next = predictions.at(at.step(rate));
        if next.loss <= at.loss {
            (at, steps, rate) = (next, steps + 1, descent.rate.min(2.0 * rate));
        } else if rate > descent.rate * f64::EPSILON {
            rate /= 2.0;
        } else {
            break; // no smaller loss can be told from this one
        }
    }
    Ok(Optimum { loss: at.loss, gap: at.gap(), weights: at.weights, steps })
}

/// The experts' predictions, each token's divided by the largest of them so that none is lost by underflow.
struct Predictions {
    ratios: Vec<f64>, // Pᵢ(xₜ) / maxⱼ Pⱼ(xₜ): `[n_tokens, experts]`
    least: f64,       // meanₜ minⱼ nllⱼₜ
    n_experts: usize,
}

/// Weights, their loss, and −gᵢ = meanₜ Pᵢ / Σ wⱼ Pⱼ.
struct Point {
    weights: Vec<f64>,
    loss: f64,
    descent: Vec<f64>,
}

impl Predictions {
    fn new(nll: &[&[f32]]) -> Result<Self> {
        let n_tokens = nll.first().map_or(0, |nll| nll.len());
        if n_tokens == 0 {
            return Err(Error::Usage("no predictions to mix; expected one expert and one token at least".into()));
        }
        if let Some(other) = nll.iter().find(|other| other.len() != n_tokens) {
            let differences = format!("{n_tokens} and {} tokens", other.len());
            return Err(Error::Mismatch { what: "predictions of two experts".into(), differences });
        }
        let mut ratios = Vec::with_capacity(n_tokens * nll.len());
        let mut least = 0.0;
        for token in 0..n_tokens {
            let smallest = nll.iter().map(|nll| f64::from(nll[token])).fold(f64::INFINITY, f64::min);
            least += smallest;
            ratios.extend(nll.iter().map(|nll| (smallest - f64::from(nll[token])).exp()));
        }
        Ok(Self { ratios, least: least / n_tokens as f64, n_experts: nll.len() })
    }

    fn at(&self, weights: Vec<f64>) -> Point {
        let blocks: Vec<(f64, Vec<f64>)> =
            self.ratios.par_chunks(BLOCK * self.n_experts).map(|block| sums(block, &weights)).collect();
        let n_tokens = (self.ratios.len() / self.n_experts) as f64;
        let mut loss = 0.0;
        let mut descent = vec![0.0; self.n_experts];
        for (block_loss, block_descent) in blocks {
            loss += block_loss / n_tokens;
            descent.iter_mut().zip(block_descent).for_each(|(sum, part)| *sum += part / n_tokens);
        }
        Point { weights, loss: self.least + loss, descent }
    }
}

/// Σ −ln Σ wᵢ rᵢ and Σ rᵢ / Σ wⱼ rⱼ over the tokens of a block.
fn sums(block: &[f64], weights: &[f64]) -> (f64, Vec<f64>) {
    let mut loss = 0.0;
    let mut descent = vec![0.0; weights.len()];
    for ratios in block.chunks_exact(weights.len()) {
        let mixed: f64 = ratios.iter().zip(weights).map(|(ratio, weight)| ratio * weight).sum();
        loss -= mixed.ln();
        descent.iter_mut().zip(ratios).for_each(|(sum, ratio)| *sum += ratio / mixed);
    }
    (loss, descent)
}

impl Point {
    /// maxᵢ −gᵢ − Σ wᵢ (−gᵢ), an upper bound of f(w) − min f; the sum is 1.
    fn gap(&self) -> f64 {
        self.descent.iter().copied().fold(f64::NEG_INFINITY, f64::max) - 1.0
    }

    /// wᵢ e^(−ηgᵢ), normalised; the largest exponent is subtracted first.
    fn step(&self, rate: f64) -> Vec<f64> {
        let largest = self.gap() + 1.0;
        let grow = |(weight, descent): (&f64, &f64)| weight * (rate * (descent - largest)).exp();
        let grown: Vec<f64> = self.weights.iter().zip(&self.descent).map(grow).collect();
        let sum: f64 = grown.iter().sum();
        grown.into_iter().map(|weight| weight / sum).collect()
    }
}
