//! Odm: online data mixing, a bandit that draws more from domains whose training loss is high.
//!
//! Albalak, Pan, Raffel and Wang 2023 (arXiv 2312.02406): Exp3 with the loss of a drawn domain as its reward. With K domains,
//! ε₀ = 1/K and εₜ = min(1/K, √(ln K / (K t))), step t draws from
//!
//! πᵢ = (1 − K εₜ) exp(εₜ₋₁ R̂ᵢ) / Σⱼ exp(εₜ₋₁ R̂ⱼ) + εₜ,
//!
//! then R̂ᵢ ← γ R̂ᵢ + (1 − γ) Lᵢ / πᵢ for the domains that were drawn, Lᵢ their mean loss in the step ([`Reward::Loss`]). The
//! public code ends with another rule for steps that mix domains: R̂ᵢ ← γ R̂ᵢ + (1 − γ) exp(Lᵢ) and π = (1 − K ε) R̂ / Σ R̂ + ε,
//! without the outer exponential and without division by π ([`Reward::Perplexity`]).
//!
//! Both are uniform until t exceeds K ln K, whatever is seen; the paper also begins with a warm-up of one per cent of the
//! steps, which that covers for runs as short as ours.

use super::{Policy, PolicyState, Seen};
use serde::{Deserialize, Serialize};

/// What a loss is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reward {
    /// The loss divided by the weight it was drawn with: the paper.
    Loss,
    /// e to the loss: the public code.
    Perplexity,
}

/// Online data mixing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Odm {
    /// How much of the old reward stays, γ.
    pub smoothing: f64,
    /// What a loss is worth.
    pub reward: Reward,
}

impl Default for Odm {
    fn default() -> Self {
        Self { smoothing: 0.9, reward: Reward::Loss }
    }
}

/// εₜ for `arms` arms.
fn exploration(arms: usize, step: u64) -> f64 {
    let k = arms as f64;
    if step == 0 { 1.0 / k } else { (k.ln() / (k * step as f64)).sqrt().min(1.0 / k) }
}

impl Odm {
    /// π of `step`, counted from 1.
    fn weights(&self, rewards: &[f64], step: u64) -> Vec<f64> {
        let arms = rewards.len();
        let (before, now) = (exploration(arms, step - 1), exploration(arms, step));
        let largest = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let value = |reward: &f64| match self.reward {
            Reward::Loss => (before * (reward - largest)).exp(), // the largest cancels in the sum
            Reward::Perplexity => *reward,
        };
        let values: Vec<f64> = rewards.iter().map(value).collect();
        let sum: f64 = values.iter().sum();
        let share = |value: &f64| if sum > 0.0 { value / sum } else { 1.0 / arms as f64 }; // nothing is known yet
        let weights: Vec<f64> = values.iter().map(|v| (1.0 - arms as f64 * now) * share(v) + now).collect();
        let total: f64 = weights.iter().sum(); // 1, to rounding
        weights.iter().map(|weight| weight / total).collect()
    }
}

impl Policy for Odm {
    /// The rewards are the memory. The first step is uniform whatever the recipe says: ε₁ = 1/K leaves no room.
    fn start(&self, weights: Vec<f64>) -> PolicyState {
        let memory = vec![0.0; weights.len()];
        PolicyState { weights: self.weights(&memory, 1), memory }
    }

    fn observe(&self, state: &mut PolicyState, seen: &Seen<'_>) {
        let Seen::Losses(steps, losses) = seen else { return };
        let PolicyState { weights, memory } = state;
        for ((reward, weight), loss) in memory.iter_mut().zip(weights.iter()).zip(*losses) {
            let Some(loss) = loss else { continue };
            let worth = match self.reward {
                Reward::Loss => loss / weight,
                Reward::Perplexity => loss.exp(),
            };
            *reward = self.smoothing * *reward + (1.0 - self.smoothing) * worth;
        }
        state.weights = self.weights(&state.memory, steps + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// Draws one arm a step whose losses are known; returns the last weights and their mean over the second half.
    fn bandit(odm: &Odm, losses: &[f64], steps: u64) -> (Vec<f64>, Vec<f64>) {
        let mut stream = Stream::new(0, "bandit");
        let mut state = odm.start(vec![1.0 / losses.len() as f64; losses.len()]);
        let mut mean = vec![0.0; losses.len()];
        for step in 1..=steps {
            assert!((state.weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            let floor = exploration(losses.len(), step);
            assert!(state.weights.iter().all(|weight| *weight >= floor * (1.0 - 1e-12)), "no arm falls below ε");
            let (mut arm, mut rest) = (0, stream.uniform() - state.weights[0]);
            while rest >= 0.0 && arm + 1 < losses.len() {
                arm += 1;
                rest -= state.weights[arm];
            }
            let seen: Vec<_> = (0..losses.len()).map(|index| (index == arm).then_some(losses[index])).collect();
            odm.observe(&mut state, &Seen::Losses(step, &seen));
            if 2 * step > steps {
                mean.iter_mut().zip(&state.weights).for_each(|(mean, w)| *mean += 2.0 * w / steps as f64);
            }
        }
        (state.weights, mean)
    }

    #[test]
    fn it_is_uniform_until_k_ln_k_steps_are_done() {
        let odm = Odm::default();
        let mut state = odm.start(vec![0.7, 0.1, 0.1, 0.1]);
        let last = (4.0 * 4f64.ln()) as u64; // εₜ = 1/K up to here
        for step in 1..last {
            odm.observe(&mut state, &Seen::Losses(step, &[Some(9.0), Some(1.0), Some(1.0), Some(1.0)]));
            assert_eq!(state.weights, [0.25; 4], "after step {step}");
        }
        odm.observe(&mut state, &Seen::Losses(last, &[Some(9.0), Some(1.0), Some(1.0), Some(1.0)]));
        assert!(state.weights[0] > state.weights[1]);
    }

    #[test]
    fn the_arm_of_higher_loss_is_drawn_more() {
        for reward in [Reward::Loss, Reward::Perplexity] {
            let (_, mean) = bandit(&Odm { reward, ..Odm::default() }, &[5.0, 3.0, 3.0], 2000);
            assert!(mean[0] > mean[1].max(mean[2]), "{reward:?}: {mean:?}");
        }
    }

    #[test]
    fn rewards_of_the_code_end_in_the_proportion_of_perplexities() {
        // Every arm is drawn often enough for its smoothed reward to be e^L: π → (1 − Kε) e^Lᵢ / Σ + ε.
        let losses = [1.0, 0.5];
        let odm = Odm { reward: Reward::Perplexity, ..Odm::default() };
        let steps = 4000;
        let (weights, _) = bandit(&odm, &losses, steps);
        let floor = exploration(2, steps + 1);
        let share = 1f64.exp() / (1f64.exp() + 0.5f64.exp());
        assert!((weights[0] - ((1.0 - 2.0 * floor) * share + floor)).abs() < 1e-9, "{weights:?}");
    }

    #[test]
    fn one_arm_has_all_the_weight() {
        let mut state = Odm::default().start(vec![1.0]);
        Odm::default().observe(&mut state, &Seen::Losses(1, &[Some(4.0)]));
        assert_eq!(state.weights, [1.0]);
    }
}
