//! `RoPE`: rotary position embedding in the half-split form of Hugging Face weights.

use super::{Exec, device, modify, simd, split_mut};
use crate::error::Result;
use candle_core::{Device, Tensor};
use std::sync::{Arc, Mutex};

/// Cosines and sines for every position and frequency.
#[derive(Debug, Clone)]
pub struct RopeTable {
    pub(super) head_dim: usize,
    pub(super) half: usize, // pairs that turn; elements from 2 · half on do not
    cos: Vec<f32>,          // [positions, half]
    sin: Vec<f32>,
    placed: Placed,
}

/// Cosines and sines on the device that asked for them last.
type Placed = Arc<Mutex<Option<[Tensor; 2]>>>;

impl RopeTable {
    /// Angles `position · theta^(−2i / head_dim)` for positions below `positions` (Su et al. 2021, arXiv 2104.09864).
    pub fn new(positions: usize, head_dim: usize, theta: f64) -> Self {
        Self::of_frequencies(positions, &rope_frequencies(head_dim, theta))
    }

    /// Angles `position · frequency` for positions below `positions`, one frequency per pair of a head's elements.
    pub fn of_frequencies(positions: usize, frequencies: &[f64]) -> Self {
        Self::of_part(positions, frequencies, 2 * frequencies.len())
    }

    /// As [`RopeTable::of_frequencies`], for heads of which only the first elements turn, two for each frequency.
    ///
    /// # Panics
    /// When there are more frequencies than pairs.
    pub fn of_part(positions: usize, frequencies: &[f64], head_dim: usize) -> Self {
        assert!(2 * frequencies.len() <= head_dim, "more frequencies than pairs of elements");
        let angles = (0..positions).flat_map(|position| frequencies.iter().map(move |f| position as f64 * f));
        let (sin, cos) = angles.map(|angle| (angle.sin() as f32, angle.cos() as f32)).unzip();
        Self { head_dim, half: frequencies.len(), cos, sin, placed: Placed::default() }
    }

    /// The table on a device.
    pub(super) fn placed(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let mut placed = self.placed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some([cos, sin]) = placed.as_ref().filter(|[cos, _]| cos.device().same_device(device)) {
            return Ok((cos.clone(), sin.clone()));
        }
        let (cos, sin) = (device::table(&self.cos, device)?, device::table(&self.sin, device)?);
        *placed = Some([cos.clone(), sin.clone()]);
        Ok((cos, sin))
    }

    /// How many positions the table covers.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(usize::MAX)
    }
}

/// `theta^(−2i / head_dim)` for every pair i of a head's elements, in radians per position.
pub fn rope_frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

/// Rotates every head of every row in place by its position; `inverse` turns back, which is the gradient.
///
/// Element i and i + d/2 of the first d of a head form a pair, d twice the number of frequencies. Positions count from 0 in each sequence.
///
/// # Shapes
/// `x: [n, heads · head_dim]`; `lengths` are the sequence lengths, their sum is n.
pub fn rope(exec: Exec, x: &Tensor, table: &RopeTable, lengths: &[usize], inverse: bool) -> Result<()> {
    if let Exec::Device { .. } = exec {
        return device::rope(x, None, table, lengths, inverse);
    }
    let width = x.dim(1)?;
    let sign = if inverse { -1.0 } else { 1.0 };
    modify(x, |x| {
        let sequences = split_mut(x, lengths.iter().map(|length| length * width));
        super::for_each(exec, sequences, |_, rows| {
            simd::vectorised(
                #[inline(always)]
                || {
                    for (position, row) in rows.chunks_exact_mut(width).enumerate() {
                        rotate(row, table, position, sign);
                    }
                },
            );
        });
    })
}

/// [`rope`] of queries and keys: one launch on a device.
pub fn rope_both(
    exec: Exec,
    q: &Tensor,
    k: &Tensor,
    table: &RopeTable,
    lengths: &[usize],
    inverse: bool,
) -> Result<()> {
    if let Exec::Device { .. } = exec {
        return device::rope(q, Some(k), table, lengths, inverse);
    }
    rope(exec, q, table, lengths, inverse)?;
    rope(exec, k, table, lengths, inverse)
}

#[inline(always)]
fn rotate(row: &mut [f32], table: &RopeTable, position: usize, sign: f32) {
    let half = table.half;
    let cos = &table.cos[position * half..][..half];
    let sin = &table.sin[position * half..][..half];
    for head in row.chunks_exact_mut(table.head_dim) {
        let (first, second) = head[..2 * half].split_at_mut(half);
        for i in 0..half {
            let (a, b, s) = (first[i], second[i], sign * sin[i]);
            first[i] = a * cos[i] - b * s;
            second[i] = b * cos[i] + a * s;
        }
    }
}
