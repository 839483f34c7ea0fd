//! Train config: how a model is trained, and its learning rate at every step.

use crate::error::{Error, Result};
use crate::kernels::{AdamW, Precision};
use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls along half a cosine to `final_rate` times its peak.
    Cosine,
}

/// Everything about a training run but its data and its starting point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Sequences per step.
    pub batch_size: usize,
    /// Sequences per forward and backward pass; fewer need less memory and accumulate the gradient.
    pub micro_batch_size: usize,
    /// Predictions per sequence.
    pub sequence_length: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// What follows the warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Where a cosine ends, as a fraction of the peak.
    pub final_rate: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest norm of the gradient; 0 for no limit.
    pub clip: f64,
    /// Seeds initialisation and data order.
    pub seed: u64,
    /// In what precision the model runs forward and back; parameters and moments are f32 whatever it is.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
}

/// Sizes that make sense; beyond them memory runs out long before anything is learned.
const SIZES: std::ops::RangeInclusive<usize> = 1..=1 << 20;

impl TrainConfig {
    /// `AdamW` (0.9, 0.95, 1e-8), decay 0.1, clip 1, constant rate without warm-up.
    pub fn new(steps: u64, batch_size: usize, sequence_length: usize, learning_rate: f64) -> Self {
        Self {
            steps,
            batch_size,
            micro_batch_size: batch_size,
            sequence_length,
            learning_rate,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            final_rate: 0.1,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            clip: 1.0,
            seed: 0,
            precision: Precision::F32,
        }
    }

    /// The learning rate of `step`, counted from 0.
    ///
    /// Warm-up: `(step + 1) / warmup_steps` of the peak. Cosine: `f + (1 − f) (1 + cos πp) / 2` of it, with f the final
    /// fraction and p the share of the steps after the warm-up that are done.
    pub fn rate_at(&self, step: u64) -> f64 {
        let factor = if step < self.warmup_steps {
            (step + 1) as f64 / self.warmup_steps as f64
        } else if self.schedule == Schedule::Constant {
            1.0
        } else {
            let progress = (step - self.warmup_steps) as f64 / (self.steps - self.warmup_steps).max(1) as f64;
            self.final_rate + (1.0 - self.final_rate) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        };
        self.learning_rate * factor
    }

    /// What a gradient of this norm is multiplied with so that it is no longer than the limit.
    pub fn gradient_scale(&self, norm: f64) -> f64 {
        // PyTorch's clip_grad_norm_ adds 1e-6 to the norm.
        if self.clip > 0.0 { (self.clip / (norm + 1e-6)).min(1.0) } else { 1.0 }
    }

    /// The numbers of the optimiser's step number `step`, counted from 1: of an unclipped gradient, without decay.
    pub fn adamw(&self, step: u64) -> AdamW {
        let Self { beta1, beta2, eps, .. } = *self;
        let rate = self.rate_at(step.saturating_sub(1));
        AdamW { rate, beta1, beta2, eps, weight_decay: 0.0, gradient_scale: 1.0, step }
    }

    /// Steps that see at least `tokens` predictions, at least one.
    pub fn steps_for(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.tokens_per_step().max(1)).max(1)
    }

    /// Predictions per step.
    pub fn tokens_per_step(&self) -> u64 {
        (self.batch_size * self.sequence_length) as u64
    }

    /// Checks that the numbers make a run.
    ///
    /// # Errors
    /// [`Error::Input`] naming `place` and the field.
    pub fn check(&self, place: &str) -> Result<()> {
        let fields = [
            ("steps", self.steps > 0),
            ("batch_size", SIZES.contains(&self.batch_size)),
            ("micro_batch_size", SIZES.contains(&self.micro_batch_size)),
            ("sequence_length", SIZES.contains(&self.sequence_length)),
            ("learning_rate", self.learning_rate > 0.0 && self.learning_rate.is_finite()),
            ("final_rate", (0.0..=1.0).contains(&self.final_rate)),
            ("weight_decay", self.weight_decay >= 0.0 && self.weight_decay.is_finite()),
            ("beta1", (0.0..1.0).contains(&self.beta1)),
            ("beta2", (0.0..1.0).contains(&self.beta2)),
            ("eps", self.eps > 0.0 && self.eps.is_finite()),
            ("clip", self.clip >= 0.0),
        ];
        match fields.iter().find(|(_, sound)| !sound) {
            Some((field, _)) => Err(Error::input(place, format!("'{field}' is out of range"))),
            None => Ok(()),
        }
    }
}
