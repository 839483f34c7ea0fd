//! Inner product: Σ aᵢ bᵢ in f64, of values in memory and values as they lie in a file.

use super::{Floats, simd, weighted_sum};
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
    let tiles = values.par_chunks(TILE).zip(single.par_chunks(TILE)).map(|(a, b)| {
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
