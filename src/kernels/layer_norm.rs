//! Layer norm: rows shifted to mean 0 and scaled to variance 1, then gain and bias; and the gradient.

use super::device::{self, NormKind};
use super::{Exec, ROW_BLOCK, add_assign, for_blocks, modify, simd, tensor, values};
use crate::error::Result;
use candle_core::Tensor;

/// `(x − mean) / sqrt(variance + eps) · gain + bias`, row by row (Ba et al. 2016, arXiv 1607.06450).
///
/// # Shapes
/// `x: [n, d]`, `gain, bias: [d]` → `[n, d]`.
pub fn layer_norm(exec: Exec, x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::norm(NormKind::Layer, x, None, gain, Some(bias), eps);
    }
    let (n, width) = x.dims2()?;
    let (x, gain, bias) = (values(x)?, values(gain)?, values(bias)?);
    let mut y = vec![0f32; n * width];
    for_blocks(exec, &mut y, ROW_BLOCK * width, |block, y| {
        let x = &x[block * ROW_BLOCK * width..];
        simd::vectorised(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                    let Moments { mean, scale } = Moments::of(x, eps);
                    for (((y, x), gain), bias) in y.iter_mut().zip(x).zip(gain.iter()).zip(bias.iter()) {
                        *y = gain * ((x - mean) * scale) + bias;
                    }
                }
            },
        );
    });
    tensor(y, n, width)
}

/// Adds `added` to `x` in place, and [`layer_norm`] of the sum: one launch on a device.
///
/// # Shapes
/// `x, added: [n, d]`, `gain, bias: [d]` → `[n, d]`.
pub fn layer_norm_of_sum(
    exec: Exec,
    x: &Tensor,
    added: &Tensor,
    gain: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::norm(NormKind::Layer, x, Some(added), gain, Some(bias), eps);
    }
    add_assign(exec, x, added)?;
    layer_norm(exec, x, gain, bias, eps)
}

/// Adds the gradients to `dx` (a new tensor when `None`) and `dgain`; returns `dx`. That of the bias is
/// [`bias_backward`](super::bias_backward)'s.
///
/// With x̂ the normed row, r = 1 / sqrt(variance + eps) and g = gain · dy: dx = r (g − mean(g) − x̂ mean(g x̂)),
/// dgain = Σ over rows of dy x̂.
///
/// # Shapes
/// `x, dy, dx: [n, d]`, `gain, dgain: [d]`.
pub fn layer_norm_backward(
    exec: Exec,
    x: &Tensor,
    gain: &Tensor,
    eps: f32,
    dy: &Tensor,
    dx: Option<Tensor>,
    dgain: &Tensor,
) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::norm_backward(NormKind::Layer, x, gain, eps, dy, dx, dgain);
    }
    let (n, width) = x.dims2()?;
    let (x, gain, dy) = (values(x)?, values(gain)?, values(dy)?);
    let dx = dx.map_or_else(|| tensor(vec![0f32; n * width], n, width), Ok)?;
    modify(&dx, |dx| {
        for_blocks(exec, dx, ROW_BLOCK * width, |block, dx| {
            let start = block * ROW_BLOCK * width;
            simd::vectorised(
                #[inline(always)]
                || rows_backward(&x[start..], &gain, eps, &dy[start..], dx),
            );
        });
    })?;
    let mut partial = vec![0f32; n.div_ceil(ROW_BLOCK) * width];
    for_blocks(exec, &mut partial, width, |block, partial| {
        let start = block * ROW_BLOCK * width;
        let end = (start + ROW_BLOCK * width).min(n * width);
        simd::vectorised(
            #[inline(always)]
            || gain_backward(&x[start..end], eps, &dy[start..end], partial),
        );
    });
    modify(dgain, |dgain| {
        for partial in partial.chunks_exact(width) {
            dgain.iter_mut().zip(partial).for_each(|(sum, d)| *sum += d);
        }
    })?;
    Ok(dx)
}

/// The gradient of the gain from each sequence alone: Σ over its rows of dy x̂.
///
/// # Shapes
/// `x, dy: [n, d]`, `lengths` sum to n → `[sequences, d]`.
pub(crate) fn layer_norm_gains(x: &Tensor, eps: f32, dy: &Tensor, lengths: &[usize]) -> Result<Vec<f32>> {
    let width = x.dim(1)?;
    let (x, dy) = (values(x)?, values(dy)?);
    let mut gains = vec![0f32; lengths.len() * width];
    let mut start = 0;
    for (length, gain) in lengths.iter().zip(gains.chunks_exact_mut(width)) {
        let rows = start * width..(start + length) * width;
        start += length;
        simd::vectorised(
            #[inline(always)]
            || gain_backward(&x[rows.clone()], eps, &dy[rows.clone()], gain),
        );
    }
    Ok(gains)
}

/// What a row is normed by.
struct Moments {
    mean: f32,
    scale: f32, // 1 / sqrt(variance + eps)
}

impl Moments {
    #[inline(always)]
    fn of(x: &[f32], eps: f32) -> Self {
        let n = x.len() as f32;
        let mean = simd::sum2(x, x, |x, _| x) / n;
        let variance = simd::sum2(x, x, |x, _| (x - mean) * (x - mean)) / n;
        Self { mean, scale: 1.0 / (variance + eps).sqrt() }
    }
}

#[inline(always)]
fn rows_backward(x: &[f32], gain: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let width = gain.len();
    let (mut normed, mut weighted) = (vec![0f32; width], vec![0f32; width]);
    for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
        let Moments { mean, scale } = Moments::of(x, eps);
        normed.iter_mut().zip(x).for_each(|(normed, x)| *normed = (x - mean) * scale);
        weighted.iter_mut().zip(dy).zip(gain).for_each(|((g, dy), gain)| *g = dy * gain);
        let shift = simd::sum2(&weighted, &weighted, |g, _| g) / width as f32;
        let pull = simd::dot(&weighted, &normed) / width as f32;
        for ((dx, normed), g) in dx.iter_mut().zip(&normed).zip(&weighted) {
            *dx += scale * (g - shift - normed * pull);
        }
    }
}

#[inline(always)]
fn gain_backward(x: &[f32], eps: f32, dy: &[f32], dgain: &mut [f32]) {
    let width = dgain.len();
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        let Moments { mean, scale } = Moments::of(x, eps);
        dgain.iter_mut().zip(x).zip(dy).for_each(|((sum, x), dy)| *sum += dy * ((x - mean) * scale));
    }
}
