//! Dga: dynamic gradient alignment, which moves weight to domains whose gradients point where the target's does.
//!
//! Fan, Grangier and Ablin 2024 (arXiv 2410.02498). After every `every` steps (Tᵣ): aᵢ = ⟨∇ℓ(θ; xᵢ), ∇ℓ(θ; z)⟩ of a fresh
//! mini-batch of each domain and one of the target; α̂ᵢ ∝ αᵢ exp(η aᵢ); α ← (1 − β) α + β α̂. Gradients are those of the loss,
//! before clipping and before `AdamW`. The paper trains from scratch; here a seed model goes on training, so alignments are
//! small from the start and η is larger than it would be there.

use super::{Policy, PolicyState, Seen};
use serde::{Deserialize, Serialize};

/// Dynamic gradient alignment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dga {
    /// Steps between two comparisons, Tᵣ in the paper.
    pub every: u64,
    /// Step size of the weights, η, per nat² of alignment.
    pub rate: f64,
    /// Share of the new weights, β; 1 for no average.
    pub ema: f64,
    /// Sequences of a mini-batch whose gradient is compared.
    pub probe: usize,
}

impl Default for Dga {
    fn default() -> Self {
        Self { every: 10, rate: 10.0, ema: 0.1, probe: 4 }
    }
}

impl Policy for Dga {
    fn wants_alignments(&self, steps: u64) -> bool {
        steps.is_multiple_of(self.every)
    }

    fn observe(&self, state: &mut PolicyState, seen: &Seen<'_>) {
        let Seen::Alignments(alignments) = seen else { return };
        // Relative to the largest, so that no exponential overflows; it cancels in the sum.
        let best = alignments.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let moved = state.weights.iter().zip(*alignments).map(|(weight, a)| weight * (self.rate * (a - best)).exp());
        let moved: Vec<f64> = moved.collect();
        let sum: f64 = moved.iter().sum();
        for (weight, moved) in state.weights.iter_mut().zip(&moved) {
            *weight = (1.0 - self.ema) * *weight + self.ema * moved / sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(dga: &Dga, updates: usize, alignments: &[f64]) -> Vec<f64> {
        let n = alignments.len();
        let mut state = dga.start(vec![1.0 / n as f64; n]);
        (0..updates).for_each(|_| dga.observe(&mut state, &Seen::Alignments(alignments)));
        assert!((state.weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        state.weights
    }

    #[test]
    fn without_an_average_log_odds_grow_by_the_rate_times_the_difference_of_alignments() {
        // Orthogonal domains: only the first helps. ln(α₁/α₂) = updates · η · (0.3 − 0).
        let dga = Dga { rate: 2.0, ema: 1.0, ..Dga::default() };
        let weights = after(&dga, 5, &[0.3, 0.0, 0.0]);
        assert!(((weights[0] / weights[1]).ln() - 5.0 * 2.0 * 0.3).abs() < 1e-12);
        assert!((weights[1] - weights[2]).abs() < 1e-15);
    }

    #[test]
    fn a_harmful_domain_loses_weight_at_the_known_rate() {
        // One update of the average: α₃ = (1 − β)/3 + β e^(−ηh) / (2 + e^(−ηh)).
        let dga = Dga { rate: 4.0, ema: 0.25, ..Dga::default() };
        let weights = after(&dga, 1, &[0.0, 0.0, -0.5]);
        let harm = (-4.0f64 * 0.5).exp();
        assert!((weights[2] - (0.75 / 3.0 + 0.25 * harm / (2.0 + harm))).abs() < 1e-15);
        assert!(after(&dga, 60, &[0.0, 0.0, -0.5])[2] < 1e-4);
    }

    #[test]
    fn equal_alignments_and_losses_change_nothing_and_huge_ones_do_not_overflow() {
        let dga = Dga { rate: 1e6, ema: 1.0, ..Dga::default() };
        assert_eq!(after(&dga, 3, &[7.0, 7.0]), [0.5, 0.5]);
        assert_eq!(after(&dga, 1, &[9.0, 0.0]), [1.0, 0.0]);
        let mut state = dga.start(vec![0.2, 0.8]);
        dga.observe(&mut state, &Seen::Losses(1, &[Some(3.0), None]));
        assert_eq!(state.weights, [0.2, 0.8]);
    }
}
