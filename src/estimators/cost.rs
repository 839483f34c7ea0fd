//! Cost: what an answer took, in units that do not depend on what was cached.

use crate::pool::{Manifest, Scored};
use serde::{Deserialize, Serialize};
use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// Tokens, operations and seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Tokens trained on.
    pub train_tokens: u64,
    /// Floating-point operations of all forward and backward passes: 2 per parameter and token forward, 4 backward.
    pub flops: f64,
    /// Seconds, as measured when the work was done.
    pub seconds: f64,
}

impl Cost {
    /// What training this model took.
    pub fn of_training(manifest: &Manifest) -> Self {
        let flops = 6.0 * manifest.n_parameters as f64 * manifest.n_tokens as f64;
        Self { train_tokens: manifest.n_tokens, flops, seconds: manifest.seconds }
    }

    /// What merging and scoring took, for models of `n_parameters`.
    pub fn of_scoring(scored: &[Scored], n_parameters: usize) -> Self {
        let one = |scored: &Scored| {
            let tokens = scored.record.score.n_tokens as f64;
            Self { flops: 2.0 * n_parameters as f64 * tokens, seconds: scored.record.eval_seconds, ..Self::default() }
        };
        let merge = scored.first().map_or(0.0, |scored| scored.record.merge_seconds);
        scored.iter().map(one).sum::<Self>() + Self::of_seconds(merge)
    }

    /// Work that is neither training nor a pass through the model.
    pub fn of_seconds(seconds: f64) -> Self {
        Self { seconds, ..Self::default() }
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            train_tokens: self.train_tokens + other.train_tokens,
            flops: self.flops + other.flops,
            seconds: self.seconds + other.seconds,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}
