//! RMS norm: rows divided by their root mean square, and the gradient.

use super::device::{self, NormKind};
use super::{Exec, ROW_BLOCK, add_assign, for_blocks, modify, simd, tensor, values};
use crate::error::Result;
use candle_core::Tensor;

/// `x / sqrt(mean(x²) + eps) · weight`, row by row (Zhang and Sennrich 2019, arXiv 1910.07467).
///
/// # Shapes
/// `x: [n, d]`, `weight: [d]` → `[n, d]`.
pub fn rms_norm(exec: Exec, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::norm(NormKind::Rms, x, None, weight, None, eps);
    }
    let (n, width) = x.dims2()?;
    let (x, weight) = (values(x)?, values(weight)?);
    let mut y = vec![0f32; n * width];
    for_blocks(exec, &mut y, ROW_BLOCK * width, |block, y| {
        let x = &x[block * ROW_BLOCK * width..];
        simd::vectorised(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                    let scale = inverse_rms(x, eps);
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight.iter()) {
                        *y = w * (x * scale);
                    }
                }
            },
        );
    });
    tensor(y, n, width)
}

/// Adds `added` to `x` in place, and [`rms_norm`] of the sum: one launch on a device.
///
/// # Shapes
/// `x, added: [n, d]`, `weight: [d]` → `[n, d]`.
pub fn rms_norm_of_sum(exec: Exec, x: &Tensor, added: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::norm(NormKind::Rms, x, Some(added), weight, None, eps);
    }
    add_assign(exec, x, added)?;
    rms_norm(exec, x, weight, eps)
}

/// Adds the gradients to `dx` (a new tensor when `None`) and `dweight`; returns `dx`.
///
/// With r = 1 / rms(x): dx = r w dy − x r³ / d Σ(w dy x), dweight = Σ over rows of dy x r.
///
/// # Shapes
/// `x, dy, dx: [n, d]`, `weight, dweight: [d]`.
pub fn rms_norm_backward(
    exec: Exec,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
    dx: Option<Tensor>,
    dweight: &Tensor,
) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::norm_backward(NormKind::Rms, x, weight, eps, dy, dx, dweight);
    }
    let (n, width) = x.dims2()?;
    let (x, weight, dy) = (values(x)?, values(weight)?, values(dy)?);
    let dx = dx.map_or_else(|| tensor(vec![0f32; n * width], n, width), Ok)?;
    modify(&dx, |dx| {
        for_blocks(exec, dx, ROW_BLOCK * width, |block, dx| {
            let start = block * ROW_BLOCK * width;
            simd::vectorised(
                #[inline(always)]
                || rows_backward(&x[start..], &weight, eps, &dy[start..], dx),
            );
        });
    })?;
    let blocks = n.div_ceil(ROW_BLOCK);
    let mut partial = vec![0f32; blocks * width];
    for_blocks(exec, &mut partial, width, |block, partial| {
        let start = block * ROW_BLOCK * width;
        let end = (start + ROW_BLOCK * width).min(n * width);
        simd::vectorised(
            #[inline(always)]
            || weight_backward(&x[start..end], eps, &dy[start..end], partial),
        );
    });
    modify(dweight, |dweight| {
        for partial in partial.chunks_exact(width) {
            dweight.iter_mut().zip(partial).for_each(|(sum, d)| *sum += d);
        }
    })?;
    Ok(dx)
}

/// The gradient of the gain from each sequence alone: Σ over its rows of dy x r.
///
/// # Shapes
/// `x, dy: [n · heads, d]`, `lengths` sum to n → `[sequences, d]`; a token may have several rows, one per head.
pub(crate) fn rms_norm_gains(x: &Tensor, eps: f32, dy: &Tensor, lengths: &[usize]) -> Result<Vec<f32>> {
    let width = x.dim(1)?;
    let (x, dy) = (values(x)?, values(dy)?);
    let mut gains = vec![0f32; lengths.len() * width];
    let span = x.len() / lengths.iter().sum::<usize>().max(1); // values of one token
    let mut start = 0;
    for (length, gain) in lengths.iter().zip(gains.chunks_exact_mut(width)) {
        let rows = start * span..(start + length) * span;
        start += length;
        simd::vectorised(
            #[inline(always)]
            || weight_backward(&x[rows.clone()], eps, &dy[rows.clone()], gain),
        );
    }
    Ok(gains)
}

#[inline(always)]
fn rows_backward(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let width = weight.len();
    let mut weighted = vec![0f32; width];
    for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
        weighted.iter_mut().zip(dy).zip(weight).for_each(|((g, dy), w)| *g = dy * w);
        let scale = inverse_rms(x, eps);
        let pull = simd::dot(&weighted, x) * scale * scale * scale / width as f32;
        for ((dx, x), g) in dx.iter_mut().zip(x).zip(&weighted) {
            *dx += scale * g - pull * x;
        }
    }
}

#[inline(always)]
fn weight_backward(x: &[f32], eps: f32, dy: &[f32], dweight: &mut [f32]) {
    let width = dweight.len();
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        let scale = inverse_rms(x, eps);
        dweight.iter_mut().zip(x).zip(dy).for_each(|((sum, x), dy)| *sum += dy * (x * scale));
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (simd::dot(x, x) / x.len() as f32 + eps).sqrt()
}
