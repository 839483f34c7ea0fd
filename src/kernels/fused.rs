//! Fused: queries, keys and values as one layer's output, taken apart for the attention and put together for its gradient.

use super::{Exec, ROW_BLOCK, device, for_each, tensor, values};
use crate::error::Result;
use candle_core::Tensor;

/// How the columns of queries, keys and values take turns in a fused projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    /// How often they take turns: 1 where all queries come first, the number of heads where each head has its own three.
    pub count: usize,
    /// Columns of queries, keys and values in one turn.
    pub widths: [usize; 3],
}

impl Turns {
    /// Columns of all turns.
    pub(super) fn width(self) -> usize {
        self.count * self.widths.iter().sum::<usize>()
    }
}

/// The queries, keys and values of every row.
///
/// # Shapes
/// `fused: [n, Σ widths · count]` → three times `[n, width · count]`.
pub fn split_fused(exec: Exec, turns: Turns, fused: &Tensor) -> Result<[Tensor; 3]> {
    if let Exec::Device { .. } = exec {
        return device::split_fused(turns, fused);
    }
    let n = fused.dim(0)?;
    let fused = values(fused)?;
    let mut parts = turns.widths.map(|width| vec![0f32; n * turns.count * width]);
    let [q, k, v] = &mut parts;
    let [wide, narrow, last] = turns.widths.map(|width| ROW_BLOCK * turns.count * width);
    let blocks = q.chunks_mut(wide).zip(k.chunks_mut(narrow)).zip(v.chunks_mut(last)).collect();
    for_each(exec, blocks, |block, ((q, k), v)| {
        let mut turn = fused[block * ROW_BLOCK * turns.width()..].chunks_exact(turns.widths.iter().sum());
        let [wq, wk, wv] = turns.widths;
        for ((q, k), v) in q.chunks_exact_mut(wq).zip(k.chunks_exact_mut(wk)).zip(v.chunks_exact_mut(wv)) {
            let Some(turn) = turn.next() else { return };
            q.copy_from_slice(&turn[..wq]);
            k.copy_from_slice(&turn[wq..wq + wk]);
            v.copy_from_slice(&turn[wq + wk..]);
        }
    });
    let [q, k, v] = parts;
    let [wide, narrow, last] = turns.widths.map(|width| turns.count * width);
    Ok([tensor(q, n, wide)?, tensor(k, n, narrow)?, tensor(v, n, last)?])
}

/// The inverse of [`split_fused`], which is its gradient.
pub fn join_fused(exec: Exec, turns: Turns, parts: [&Tensor; 3]) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::join_fused(turns, parts);
    }
    let n = parts[0].dim(0)?;
    let [q, k, v] = parts;
    let (q, k, v) = (values(q)?, values(k)?, values(v)?);
    let mut fused = vec![0f32; n * turns.width()];
    let blocks = fused.chunks_mut(ROW_BLOCK * turns.width()).collect();
    let [wq, wk, wv] = turns.widths;
    for_each(exec, blocks, |block, fused: &mut [f32]| {
        let first = block * ROW_BLOCK * turns.count;
        for (at, turn) in fused.chunks_exact_mut(wq + wk + wv).enumerate() {
            let at = first + at;
            turn[..wq].copy_from_slice(&q[at * wq..][..wq]);
            turn[wq..wq + wk].copy_from_slice(&k[at * wk..][..wk]);
            turn[wq + wk..].copy_from_slice(&v[at * wv..][..wv]);
        }
    });
    tensor(fused, n, turns.width())
}
