//! Cross-entropy: the output matrix and the loss in one operator that never holds all logits.
//!
//! Rows are taken in chunks; only one chunk of logits exists at a time, whatever the vocabulary.

use super::matmul::{Into, Matrix, MatrixMut, matmul};
use super::{Exec, for_blocks, modify, simd, tensor, values};
use crate::error::{Error, Result};
use candle_core::Tensor;
use std::sync::atomic::{AtomicU64, Ordering};

/// Logits held at once: 512 Ki values, 2 MiB.
const LOGITS: usize = 1 << 19;

/// Rows of one chunk; depends on the vocabulary alone.
fn chunk_rows(vocabulary: usize) -> usize {
    (LOGITS / vocabulary).clamp(64, 512)
}

/// The negative log-likelihood of each target in nats: `logsumexp(w xᵢ) − (w xᵢ)[targetᵢ]`.
///
/// # Shapes
/// `x: [n, d]`, `w: [vocabulary, d]`, `targets: [n]` → `[n]`.
pub fn cross_entropy(exec: Exec, x: &Tensor, w: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
    let (_, width) = x.dims2()?;
    let vocabulary = w.dim(0)?;
    check(targets, vocabulary)?;
    let (x, w) = (values(x)?, values(w)?);
    let rows = chunk_rows(vocabulary);
    let mut logits = vec![0f32; rows.min(targets.len()) * vocabulary];
    let mut nll = Vec::with_capacity(targets.len());
    for (x, targets) in x.chunks(rows * width).zip(targets.chunks(rows)) {
        let logits = &mut logits[..targets.len() * vocabulary];
        chunk_logits(exec, x, &w, width, logits);
        nll.extend(rows_nll(exec, logits, vocabulary, targets, None));
    }
    Ok(nll)
}

/// The negative log-likelihoods, and the gradients of `scale · Σ nll`: adds to `dw`, returns `dx`.
///
/// # Shapes
/// `x, dx: [n, d]`, `w, dw: [vocabulary, d]`, `targets: [n]` → `[n]`, `[n, d]`.
pub fn cross_entropy_backward(
    exec: Exec,
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    scale: f32,
    dw: &Tensor,
) -> Result<(Vec<f64>, Tensor)> {
    let (n, width) = x.dims2()?;
    let vocabulary = w.dim(0)?;
    check(targets, vocabulary)?;
    let (x, w) = (values(x)?, values(w)?);
    let rows = chunk_rows(vocabulary);
    let mut logits = vec![0f32; rows.min(n) * vocabulary];
    let mut nll = Vec::with_capacity(n);
    let mut dx = vec![0f32; n * width];
    for ((x, dx), targets) in x.chunks(rows * width).zip(dx.chunks_mut(rows * width)).zip(targets.chunks(rows)) {
        let logits = &mut logits[..targets.len() * vocabulary];
        chunk_logits(exec, x, &w, width, logits);
        nll.extend(rows_nll(exec, logits, vocabulary, targets, Some(scale)));
        let dlogits = Matrix::new(logits, targets.len(), vocabulary);
        let w = Matrix::new(&w, vocabulary, width);
        matmul(exec, Into::Overwrite, MatrixMut::new(dx, targets.len(), width), dlogits, w);
        modify(dw, |dw| {
            let x = Matrix::new(x, targets.len(), width);
            matmul(exec, Into::Accumulate, MatrixMut::new(dw, vocabulary, width), dlogits.t(), x);
        })?;
    }
    Ok((nll, tensor(dx, n, width)?))
}

/// Refuses targets outside the vocabulary.
fn check(targets: &[u32], vocabulary: usize) -> Result<()> {
    let Some(id) = targets.iter().find(|id| **id as usize >= vocabulary) else { return Ok(()) };
    Err(Error::Mismatch {
        what: "target ids against the output matrix".into(),
        differences: format!(
            "id {id}, but the vocabulary has {vocabulary} entries; 'mixpool verify --deep' finds damage"
        ),
    })
}

fn chunk_logits(exec: Exec, x: &[f32], w: &[f32], width: usize, logits: &mut [f32]) {
    let (rows, vocabulary) = (x.len() / width, w.len() / width);
    let out = MatrixMut::new(logits, rows, vocabulary);
    matmul(exec, Into::Overwrite, out, Matrix::new(x, rows, width), Matrix::new(w, vocabulary, width).t());
}

/// The loss of each row of logits; with `scale`, the logits are replaced by their gradient.
fn rows_nll(exec: Exec, logits: &mut [f32], vocabulary: usize, targets: &[u32], scale: Option<f32>) -> Vec<f64> {
    let nll: Vec<AtomicU64> = targets.iter().map(|_| AtomicU64::new(0)).collect();
    for_blocks(exec, logits, vocabulary, |row, logits| {
        let target = targets[row] as usize;
        let loss = simd::vectorised(
            #[inline(always)]
            || row_nll(logits, target, scale),
        );
        nll[row].store(loss.to_bits(), Ordering::Relaxed);
    });
    nll.into_iter().map(|bits| f64::from_bits(bits.into_inner())).collect()
}

#[inline(always)]
fn row_nll(logits: &mut [f32], target: usize, scale: Option<f32>) -> f64 {
    let max = simd::max(logits);
    let chosen = logits[target];
    let sum = simd::exp_sum(logits, max);
    if let Some(scale) = scale {
        let factor = scale / sum;
        logits.iter_mut().for_each(|p| *p *= factor);
        logits[target] -= scale;
    }
    f64::from(sum).ln() + f64::from(max) - f64::from(chosen)
}
