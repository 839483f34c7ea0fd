//! `AdamW`: one fused pass over flat parameters, moments and gradient.

use super::{modify, simd, values};
use crate::error::Result;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Values handled by one task; fixed, so that the gradient norm is the same for any number of threads.
const BLOCK: usize = 1 << 14;

/// The numbers of one `AdamW` step (Loshchilov and Hutter 2017, arXiv 1711.05101, in `PyTorch`'s form).
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate of this step.
    pub rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// What the gradient is multiplied with before use (clipping).
    pub gradient_scale: f64,
    /// Number of this step, counted from 1.
    pub step: u64,
}

/// Updates parameters and both moments in place.
///
/// # Shapes
/// All of one length.
pub fn adamw_step(options: &AdamW, parameters: &Tensor, first: &Tensor, second: &Tensor, grad: &Tensor) -> Result<()> {
    let grad = values(grad)?;
    let update = Update::new(options);
    let mut inner = Ok(());
    modify(parameters, |p| {
        inner = modify_both(first, second, |m, v| {
            p.par_chunks_mut(BLOCK)
                .zip(m.par_chunks_mut(BLOCK))
                .zip(v.par_chunks_mut(BLOCK))
                .zip(grad.par_chunks(BLOCK))
                .for_each(|(((p, m), v), g)| {
                    simd::vectorised(
                        #[inline(always)]
                        || update.apply(p, m, v, g),
                    );
                });
        });
    })?;
    inner
}

/// The constants of a step, in the precision of the parameters.
pub(super) struct Update {
    pub(super) keep: f32,
    pub(super) step_size: f32,
    pub(super) root: f32,
    pub(super) eps: f32,
    gain: f32,
    pub(super) new1: f32,
    pub(super) new2: f32,
    pub(super) beta2: f32,
}

impl Update {
    pub(super) fn new(options: &AdamW) -> Self {
        let AdamW { rate, beta1, beta2, eps, weight_decay, gradient_scale, step } = *options;
        Self {
            keep: (1.0 - rate * weight_decay) as f32,
            step_size: (rate / (1.0 - beta1.powf(step as f64))) as f32,
            root: (1.0 - beta2.powf(step as f64)).sqrt() as f32,
            eps: eps as f32,
            gain: gradient_scale as f32,
            new1: (1.0 - beta1) as f32,
            new2: (1.0 - beta2) as f32,
            beta2: beta2 as f32,
        }
    }

    #[inline(always)]
    fn apply(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.gain;
            *m += (g - *m) * self.new1;
            *v = *v * self.beta2 + g * g * self.new2;
            *p = *p * self.keep - self.step_size * (*m / (v.sqrt() / self.root + self.eps));
        }
    }
}

/// Replaces a gradient by the direction that a step would take with it: m̂ / (√v̂ + ε), with the moments after the step
/// and their biases corrected. Nothing else changes; `rate` and `weight_decay` are not used.
///
/// # Panics
/// When the lengths differ.
pub fn adamw_direction(options: &AdamW, first: &[f32], second: &[f32], gradient: &mut [f32]) {
    assert!(first.len() == gradient.len() && second.len() == gradient.len(), "moments of another length");
    let update = Update::new(&AdamW { rate: 1.0, ..*options });
    simd::vectorised(
        #[inline(always)]
        || {
            for ((g, m), v) in gradient.iter_mut().zip(first).zip(second) {
                let new = *g * update.gain;
                let m = m + (new - m) * update.new1;
                let v = v * update.beta2 + new * new * update.new2;
                *g = update.step_size * m / (v.sqrt() / update.root + update.eps);
            }
        },
    );
}

/// 1 / (√v̂ + ε) with the second moment after a step with this gradient: what a step multiplies every derivative with.
///
/// # Panics
/// When the lengths differ.
pub fn preconditioner(options: &AdamW, second: &[f32], gradient: &[f32]) -> Vec<f32> {
    assert!(second.len() == gradient.len(), "moments of another length");
    let update = Update::new(options);
    let scale = |(v, g): (&f32, &f32)| {
        let new = g * update.gain;
        1.0 / ((v * update.beta2 + new * new * update.new2).sqrt() / update.root + update.eps)
    };
    second.iter().zip(gradient).map(scale).collect()
}

fn modify_both(a: &Tensor, b: &Tensor, change: impl FnOnce(&mut [f32], &mut [f32])) -> Result<()> {
    let mut inner = Ok(());
    modify(a, |a| inner = modify(b, |b| change(a, b)))?;
    inner
}

/// Σ xᵢ² in f64.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    if !x.device().is_cpu() {
        return sum_of_squares(&x.to_device(&Device::Cpu)?);
    }
    let x = values(x)?;
    let blocks: Vec<f64> = x
        .par_chunks(BLOCK)
        .map(|block| {
            simd::vectorised(
                #[inline(always)]
                || squares(block),
            )
        })
        .collect();
    Ok(blocks.iter().sum())
}

/// Σ xᵢ² with eight partial sums in f64.
#[inline(always)]
fn squares(x: &[f32]) -> f64 {
    let (chunks, rest) = x.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for chunk in chunks {
        for i in 0..8 {
            sums[i] += f64::from(chunk[i]) * f64::from(chunk[i]);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()
}
