//! Inner product: Σ aᵢ bᵢ in f64, of values in memory and values in memory or as they lie in a file.

use super::device::{Rows, add_inner_products};
use super::{Exec, Floats, simd, values, weighted_sum};
use crate::error::Result;
use candle_core::{DType, Tensor};
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

/// Σ aᵢ bᵢ in f64 of two f32 vectors of one length; the order of additions depends on the length alone.
///
/// # Errors
/// [`crate::Error::Tensor`] when a tensor is not contiguous f32.
pub fn dot(exec: Exec, a: &Tensor, b: &Tensor) -> Result<f64> {
    let n = a.elem_count();
    debug_assert_eq!(n, b.elem_count());
    if let Exec::Device { .. } = exec {
        let sum = Tensor::zeros(1, DType::F64, a.device())?;
        let row = |values| Rows { values, first: 0, stride: n, count: 1 };
        add_inner_products(&sum, row(a), row(b), n)?;
        return Ok(sum.to_vec1::<f64>()?.into_iter().sum());
    }
    Ok(tiled(&values(a)?, &values(b)?))
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
