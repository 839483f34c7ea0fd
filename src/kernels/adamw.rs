//! AdamW: one fused pass over flat parameters, moments and gradient.

use super::{modify, simd, values};
use crate::error::Result;
use candle_core::Tensor;
use rayon::prelude::*;

/// Values handled by one task; fixed, so that the gradient norm is the same for any number of threads.
const BLOCK: usize = 1 << 14;

/// The numbers of one AdamW step (Loshchilov and Hutter 2017, arXiv 1711.05101, in PyTorch's form).
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
    let AdamW { rate, beta1, beta2, eps, weight_decay, gradient_scale, step } = *options;
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = 1.0 - beta2.powf(step as f64);
    let keep = (1.0 - rate * weight_decay) as f32;
    let step_size = (rate / correction1) as f32;
    let root = correction2.sqrt() as f32;
    let (gain, eps) = (gradient_scale as f32, eps as f32);
    let (new1, new2, beta2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32, beta2 as f32);
    let update = |p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]| {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * gain;
            *m += (g - *m) * new1;
            *v = *v * beta2 + g * g * new2;
            *p = *p * keep - step_size * (*m / (v.sqrt() / root + eps));
        }
    };
    let mut inner = Ok(());
    modify(parameters, |p| {
        inner = modify_both(first, second, |m, v| {
            p.par_chunks_mut(BLOCK)
                .zip(m.par_chunks_mut(BLOCK))
                .zip(v.par_chunks_mut(BLOCK))
                .zip(grad.par_chunks(BLOCK))
                .for_each(|(((p, m), v), g)| simd::vectorised(|| update(p, m, v, g)));
        });
    })?;
    inner
}

fn modify_both(a: &Tensor, b: &Tensor, change: impl FnOnce(&mut [f32], &mut [f32])) -> Result<()> {
    let mut inner = Ok(());
    modify(a, |a| inner = modify(b, |b| change(a, b)))?;
    inner
}

/// Σ xᵢ² in f64.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    let x = values(x)?;
    let blocks: Vec<f64> =
        x.par_chunks(BLOCK).map(|block| block.iter().map(|v| f64::from(*v) * f64::from(*v)).sum()).collect();
    Ok(blocks.iter().sum())
}
