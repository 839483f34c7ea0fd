//! Bias: a vector added to every row, and its gradient.

use super::{Exec, ROW_BLOCK, device, for_blocks, modify, simd, values};
use crate::error::Result;
use candle_core::Tensor;

/// Adds `bias` to every row of `y` in place.
///
/// # Shapes
/// `y: [n, d]`, `bias: [d]`.
pub fn add_bias(exec: Exec, y: &Tensor, bias: &Tensor) -> Result<()> {
    if let Exec::Device { .. } = exec {
        return device::add(y, bias);
    }
    let width = y.dim(1)?;
    let bias = values(bias)?;
    modify(y, |y| {
        for_blocks(exec, y, ROW_BLOCK * width, |_, y| {
            simd::vectorised(
                #[inline(always)]
                || {
                    for y in y.chunks_exact_mut(width) {
                        y.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
                    }
                },
            );
        });
    })
}

/// Adds the gradient of the bias, Σ over rows of dy, to `dbias`.
///
/// # Shapes
/// `dy: [n, d]`, `dbias: [d]`.
pub fn bias_backward(exec: Exec, dy: &Tensor, dbias: &Tensor) -> Result<()> {
    if let Exec::Device { .. } = exec {
        return device::column_sums(dy, dbias);
    }
    let (n, width) = dy.dims2()?;
    let dy = values(dy)?;
    let mut partial = vec![0f32; n.div_ceil(ROW_BLOCK) * width];
    for_blocks(exec, &mut partial, width, |block, partial| {
        let start = block * ROW_BLOCK * width;
        add_rows(&dy[start..(start + ROW_BLOCK * width).min(n * width)], partial);
    });
    modify(dbias, |dbias| add_rows(&partial, dbias))
}

/// The gradient of the bias from each sequence alone: Σ over its rows of dy.
///
/// # Shapes
/// `dy: [n, d]`, `lengths` sum to n → `[sequences, d]`.
pub(crate) fn bias_gradients(dy: &Tensor, lengths: &[usize]) -> Result<Vec<f32>> {
    let width = dy.dim(1)?;
    let dy = values(dy)?;
    let mut gradients = vec![0f32; lengths.len() * width];
    let mut rest: &[f32] = &dy;
    for (length, gradient) in lengths.iter().zip(gradients.chunks_exact_mut(width)) {
        let (rows, later) = rest.split_at(length * width);
        rest = later;
        add_rows(rows, gradient);
    }
    Ok(gradients)
}

fn add_rows(rows: &[f32], sum: &mut [f32]) {
    simd::vectorised(
        #[inline(always)]
        || {
            for row in rows.chunks_exact(sum.len()) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        },
    );
}
