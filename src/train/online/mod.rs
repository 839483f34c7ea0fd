//! Online: training runs whose data weights may change while they train, resumable bit for bit.
//!
//! A [`Policy`] says what the weights are; a run tells it what it saw. The *arms* that it weighs are the domains of the data,
//! or, where there are too many, histograms over them: α = Σⱼ wⱼ pⱼ (Fan et al. 2024, section on many domains), and the policy
//! moves w. Every sequence of a step is drawn from the weights then in force, independently, by a random stream of seed and
//! step; which text it is follows from how often its domain was drawn before. So a run is a function of its recipe.

mod alignment;
mod classifier;
mod dga;
mod odm;
mod run;

pub use classifier::classify;
pub use dga::Dga;
pub use odm::{Odm, Reward};
pub use run::{OnlineSources, OnlineTrainer};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What a policy is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Seen<'a> {
    /// A step was done: how many there are now, the mean loss in nats per token of each arm's sequences in it; none where the
    /// arm was not drawn.
    Losses(u64, &'a [Option<f64>]),
    /// ⟨∇ℓ(xᵢ), ∇ℓ(z)⟩ of a fresh mini-batch xᵢ of each arm and one z of the target, at the present parameters.
    Alignments(&'a [f64]),
}

/// Weights and whatever else a policy remembers; with the recipe, all it needs to go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyState {
    /// The weights of the next step: positive or 0, summing to 1.
    pub weights: Vec<f64>,
    /// Numbers whose meaning is the policy's.
    pub memory: Vec<f64>,
}

/// How weights follow from what a run sees: a function from state and observation to state.
pub trait Policy {
    /// The state before the first step, given the weights of the recipe.
    fn start(&self, weights: Vec<f64>) -> PolicyState {
        PolicyState { weights, memory: Vec::new() }
    }

    /// Whether alignments are wanted after so many steps.
    fn wants_alignments(&self, _steps: u64) -> bool {
        false
    }

    /// Changes the state by what was seen.
    fn observe(&self, _state: &mut PolicyState, _seen: &Seen<'_>) {}
}

/// Weights that stay: uniform, in proportion to tokens, or by importance sampling, as the recipe sets them.
pub struct Fixed;

impl Policy for Fixed {}

/// A policy and its settings, as recipes name them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum Method {
    /// Weights that stay.
    Fixed,
    /// Dynamic gradient alignment.
    Dga(Dga),
    /// Online data mixing.
    Odm(Odm),
}

impl Method {
    /// The policy.
    pub fn policy(&self) -> Box<dyn Policy> {
        match self {
            Self::Fixed => Box::new(Fixed),
            Self::Dga(dga) => Box::new(dga.clone()),
            Self::Odm(odm) => Box::new(odm.clone()),
        }
    }

    /// Sequences of a mini-batch whose gradient is compared; 0 where none is.
    pub fn probe(&self) -> usize {
        if let Self::Dga(dga) = self { dga.probe } else { 0 }
    }

    /// Checks that the settings make a run.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the setting.
    pub fn check(&self) -> Result<()> {
        let fields = match self {
            Self::Fixed => Vec::new(),
            Self::Dga(Dga { every, rate, ema, probe }) => vec![
                ("every", *every > 0, "a whole number above 0"),
                ("rate", *rate > 0.0 && rate.is_finite(), "a number above 0"),
                ("ema", *ema > 0.0 && *ema <= 1.0, "a number above 0, at most 1"),
                ("probe", *probe > 0, "a whole number above 0"),
            ],
            Self::Odm(Odm { smoothing, .. }) => {
                vec![("smoothing", (0.0..1.0).contains(smoothing), "a number from 0, below 1")]
            }
        };
        match fields.iter().find(|(_, sound, _)| !sound) {
            Some((field, _, expected)) => Err(Error::Usage(format!("'{field}' is out of range; expected {expected}"))),
            None => Ok(()),
        }
    }
}

/// The weights of the domains from some step on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Weighting {
    /// Steps done when they came into force.
    pub step: u64,
    /// One per domain.
    pub weights: Vec<f64>,
}

/// What was compared with the target after some step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alignments {
    /// Steps done.
    pub step: u64,
    /// The weights of the arms until then.
    pub before: Vec<f64>,
    /// ⟨∇ℓ(xᵢ), ∇ℓ(z)⟩ of each arm.
    pub alignments: Vec<f64>,
    /// The weights of the arms from then on.
    pub after: Vec<f64>,
}

/// How far an online run has come: what a stored state adds to parameters and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What the policy knows.
    pub policy: PolicyState,
    /// Sequences drawn from each domain to train on.
    pub drawn: Vec<u64>,
    /// Sequences drawn from each domain to compare gradients.
    pub probed: Vec<u64>,
    /// Sequences drawn from the target.
    pub target_drawn: u64,
    /// The weights, from the first on.
    pub trajectory: Vec<Weighting>,
    /// Every comparison.
    pub alignments: Vec<Alignments>,
    /// Tokens that went through the model to compare gradients.
    pub gradient_tokens: u64,
    /// Seconds spent comparing gradients, those before an interruption included.
    pub gradient_seconds: f64,
    /// Seconds spent on all steps and comparisons.
    pub seconds: f64,
}

/// The mean weights over `steps` steps: the mixture that was trained on.
pub fn average_weights(trajectory: &[Weighting], steps: u64) -> Vec<f64> {
    let mut mean = vec![0.0; trajectory.first().map_or(0, |first| first.weights.len())];
    for (index, weighting) in trajectory.iter().enumerate() {
        let end = trajectory.get(index + 1).map_or(steps, |next| next.step).min(steps);
        let share = end.saturating_sub(weighting.step) as f64 / steps as f64;
        mean.iter_mut().zip(&weighting.weights).for_each(|(mean, weight)| *mean += share * weight);
    }
    mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_counts_weights_for_as_long_as_they_held() {
        let weighting = |step, a: f64| Weighting { step, weights: vec![a, 1.0 - a] };
        let trajectory = [weighting(0, 0.5), weighting(4, 0.75), weighting(10, 1.0)]; // the last came after the last step
        let mean = average_weights(&trajectory, 10);
        assert!((mean[0] - 0.65).abs() < 1e-15 && (mean[1] - 0.35).abs() < 1e-15, "{mean:?}");
        assert_eq!(average_weights(&trajectory[..1], 3), [0.5, 0.5]);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let refused = |method: Method| method.check().unwrap_err().to_string();
        assert!(refused(Method::Dga(Dga { every: 0, ..Dga::default() })).contains("'every'"));
        assert!(refused(Method::Dga(Dga { rate: f64::NAN, ..Dga::default() })).contains("'rate'"));
        assert!(refused(Method::Dga(Dga { ema: 1.5, ..Dga::default() })).contains("'ema'"));
        assert!(refused(Method::Odm(Odm { smoothing: 1.0, ..Odm::default() })).contains("'smoothing'"));
        assert!(Method::Fixed.check().is_ok() && Method::Dga(Dga::default()).check().is_ok());
    }
}
