//! Inner product: Σ aᵢ bᵢ in f64, of values in memory and values in memory or as they lie in a file.

use super::{Floats, simd, values, weighted_sum};
use crate::error::Result;
use candle_core::Tensor;
use rayon::prelude::*;

/// Values whose products are added up by one task.
const TILE: usize = 1 << 14;
/// Independent partial sums.
const LANES: usize = 16;

/// Σ `values · other` in f64; the order of additions depends on the length alone.
///
/// # Panics
/// When the lengths differ.
pub fn inner_product(values: &[f32], other: Floats<'_>) -> f64 {
    let mut single = vec![0f32; values.len()];
    weighted_sum(&mut single, &[(1.0, other)]); // reads any float type, and refuses another length
    tiled(values, &single)
}

/// Σ aᵢ bᵢ in f64 of values in memory and a tensor of as many; the order of additions depends on the length alone.
///
/// # Errors
/// [`crate::Error::Tensor`] when the tensor is not contiguous f32 on the CPU.
pub fn dot(a: &[f32], b: &Tensor) -> Result<f64> {
    let b = values(b)?;
    debug_assert_eq!(a.len(), b.len());
    Ok(tiled(a, &b))
}

fn tiled(a: &[f32], b: &[f32]) -> f64 {
    let tiles = a.par_chunks(TILE).zip(b.par_chunks(TILE)).map(|(a, b)| {
        simd::vectorised(
            #[inline(always)]
            || tile(a, b),
        )
    });
    tiles.collect::<Vec<f64>>().into_iter().sum()
}

#[inline(always)]
fn tile(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f64::from(*a) * f64::from(*b);
        }
    }
    lanes.iter().sum()
}
