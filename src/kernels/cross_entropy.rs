//! Cross-entropy: the output matrix and the loss in one operator that never holds all logits.
//!
//! Scoring walks over tiles of rows × vocabulary and keeps a running log-sum-exp per row. Training takes all of the
//! vocabulary for some rows at a time, because their gradient needs the finished sum. Either way one tile of logits
//! exists at a time, whatever the vocabulary.

use super::matmul::{Into, Matrix, MatrixMut, matmul};
use super::{Exec, device, for_blocks, modify, simd, tensor, values};
use crate::error::{Error, Result};
use candle_core::Tensor;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows of a tile in scoring.
const TILE_ROWS: usize = 256;
/// Vocabulary entries of a tile in scoring: 1 MiB of logits, and an output matrix that is packed once per 256 rows.
const TILE_VOCABULARY: usize = 1024;
/// Logits held at once in training, unless that is less than 256 rows: 512 Ki values, 2 MiB.
const LOGITS: usize = 1 << 19;

/// Rows of one chunk in training; depends on the vocabulary alone. With fewer rows, packing the output matrix for each
/// chunk costs as much as the product.
fn chunk_rows(vocabulary: usize) -> usize {
    (LOGITS / vocabulary).clamp(TILE_ROWS, 512)
}

/// The negative log-likelihood of each target in nats: `logsumexp(w xᵢ) − (w xᵢ)[targetᵢ]`.
///
/// # Shapes
/// `x: [n, d]`, `w: [vocabulary, d]`, `targets: [n]` → `[n]`.
pub fn cross_entropy(exec: Exec, x: &Tensor, w: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
    let (_, width) = x.dims2()?;
    let vocabulary = w.dim(0)?;
    check(targets, vocabulary)?;
    if let Exec::Device { .. } = exec {
        return Ok(cross_entropy_queued(exec, x, w, targets)?.to_vec1()?);
    }
    let (x, w) = (values(x)?, values(w)?);
    let mut logits = vec![0f32; TILE_ROWS.min(targets.len()) * TILE_VOCABULARY.min(vocabulary)];
    let mut nll = Vec::with_capacity(targets.len());
    for (x, targets) in x.chunks(TILE_ROWS * width).zip(targets.chunks(TILE_ROWS)) {
        let mut sums = vec![LogSumExp::EMPTY; targets.len()];
        for (tile, w) in w.chunks(TILE_VOCABULARY * width).enumerate() {
            let columns = w.len() / width;
            let logits = &mut logits[..targets.len() * columns];
            tile_logits(exec, x, w, width, logits);
            let first = tile * TILE_VOCABULARY;
            for ((sum, row), target) in sums.iter_mut().zip(logits.chunks_exact_mut(columns)).zip(targets) {
                if let Some(chosen) = (*target as usize).checked_sub(first).and_then(|column| row.get(column)) {
                    sum.chosen = *chosen;
                }
                simd::vectorised(
                    #[inline(always)]
                    || sum.add(row),
                );
            }
        }
        nll.extend(sums.iter().map(LogSumExp::nll));
    }
    Ok(nll)
}

/// As [`cross_entropy`], of a device, where the losses stay: `[n]` f64.
///
/// # Errors
/// [`Error::Usage`] when operators run on the processor.
pub(crate) fn cross_entropy_queued(exec: Exec, x: &Tensor, w: &Tensor, targets: &[u32]) -> Result<Tensor> {
    check(targets, w.dim(0)?)?;
    let Exec::Device { tf32 } = exec else { return Err(not_queued()) };
    device::cross_entropy(tf32, x, w, targets)
}

fn not_queued() -> Error {
    Error::Usage("losses that stay on a device, asked of the processor".into())
}

/// A running log-sum-exp over the logits of one row, and the logit of its target.
#[derive(Clone, Copy)]
struct LogSumExp {
    max: f32,
    sum: f64, // of e^(logit − max)
    chosen: f32,
}

impl LogSumExp {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, chosen: 0.0 };

    /// Takes in more logits, which are overwritten.
    #[inline(always)]
    fn add(&mut self, logits: &mut [f32]) {
        let max = simd::max(logits).max(self.max);
        let sum = f64::from(simd::exp_sum(logits, max));
        self.sum = self.sum * f64::from(self.max - max).exp() + sum;
        self.max = max;
    }

    fn nll(&self) -> f64 {
        self.sum.ln() + f64::from(self.max) - f64::from(self.chosen)
    }
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
    seen(exec, x, w, targets, scale, dw, None)
}

/// As [`cross_entropy_backward`], of a device, where the losses stay: `[n]` f64.
///
/// # Errors
/// [`Error::Usage`] when operators run on the processor.
pub(crate) fn cross_entropy_backward_queued(
    exec: Exec,
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    scale: f32,
    dw: &Tensor,
) -> Result<(Tensor, Tensor)> {
    check(targets, w.dim(0)?)?;
    let Exec::Device { tf32 } = exec else { return Err(not_queued()) };
    device::cross_entropy_backward(tf32, x, w, targets, scale, dw, None)
}

/// Who is shown some rows: the index of the first, their inputs and the gradients of their logits.
pub(crate) type SeeRows<'a> = dyn FnMut(usize, &Tensor, &Tensor) -> Result<()> + 'a;

/// As [`cross_entropy_backward`], and shows `see` all rows, some at a time and in order, with the gradients of their logits.
pub(crate) fn cross_entropy_backward_seen(
    exec: Exec,
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    scale: f32,
    dw: &Tensor,
    see: &mut SeeRows<'_>,
) -> Result<(Vec<f64>, Tensor)> {
    seen(exec, x, w, targets, scale, dw, Some(see))
}

fn seen(
    exec: Exec,
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    scale: f32,
    dw: &Tensor,
    see: Option<&mut SeeRows<'_>>,
) -> Result<(Vec<f64>, Tensor)> {
    if let Exec::Device { tf32 } = exec {
        check(targets, w.dim(0)?)?;
        let (nll, dx) = device::cross_entropy_backward(tf32, x, w, targets, scale, dw, see)?;
        return Ok((nll.to_vec1()?, dx));
    }
    backward(
        exec,
        x,
        w,
        targets,
        dw,
        #[inline(always)]
        |logits, target| row_nll(logits, target, scale),
        see,
    )
}

/// The [`log_odds`] of each target, and the gradients of `scale · Σ log-odds`: adds to `dw`, returns `dx`.
///
/// # Shapes
/// As [`cross_entropy_backward`].
pub fn log_odds_backward(
    exec: Exec,
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    scale: f32,
    dw: &Tensor,
) -> Result<(Vec<f64>, Tensor)> {
    if let Exec::Device { tf32 } = exec {
        check(targets, w.dim(0)?)?;
        let (outputs, dx) = device::log_odds_backward(tf32, x, w, targets, scale, dw)?;
        return Ok((outputs.to_vec1()?, dx));
    }
    backward(
        exec,
        x,
        w,
        targets,
        dw,
        #[inline(always)]
        |logits, target| row_log_odds(logits, target, scale),
        None,
    )
}

/// ln(p / (1 − p)) of a probability clipped as in the program of Li et al. 2024 (arXiv 2409.19458): above 0.9 it is lowered
/// by 0.01, below 0.001 raised by as much.
pub fn log_odds(p: f64) -> f64 {
    let p = clipped(p);
    (p / (1.0 - p)).ln()
}

fn clipped(p: f64) -> f64 {
    if p > 0.9 {
        p - 0.01
    } else if p < 0.001 {
        p + 0.01
    } else {
        p
    }
}

/// What `row` makes of the logits of each row and its target, and the gradients: `row` leaves those of the logits in their
/// place, where `see` is shown them.
fn backward(
    exec: Exec,
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    dw: &Tensor,
    row: impl Fn(&mut [f32], usize) -> f64 + Sync,
    mut see: Option<&mut SeeRows<'_>>,
) -> Result<(Vec<f64>, Tensor)> {
    let (n, width) = x.dims2()?;
    let vocabulary = w.dim(0)?;
    check(targets, vocabulary)?;
    let (x, w) = (values(x)?, values(w)?);
    let rows = chunk_rows(vocabulary);
    let mut logits = vec![0f32; rows.min(n) * vocabulary];
    let mut outputs = Vec::with_capacity(n);
    let mut dx = vec![0f32; n * width];
    for ((x, dx), targets) in x.chunks(rows * width).zip(dx.chunks_mut(rows * width)).zip(targets.chunks(rows)) {
        let logits = &mut logits[..targets.len() * vocabulary];
        tile_logits(exec, x, &w, width, logits);
        let first_row = outputs.len();
        outputs.extend(each_row(exec, logits, vocabulary, targets, &row));
        if let Some(see) = &mut see {
            let rows = |values: &[f32]| tensor(values.to_vec(), targets.len(), values.len() / targets.len());
            see(first_row, &rows(x)?, &rows(logits)?)?;
        }
        let dlogits = Matrix::new(logits, targets.len(), vocabulary);
        let w = Matrix::new(&w, vocabulary, width);
        matmul(exec, Into::Overwrite, MatrixMut::new(dx, targets.len(), width), dlogits, w);
        modify(dw, |dw| {
            let x = Matrix::new(x, targets.len(), width);
            matmul(exec, Into::Accumulate, MatrixMut::new(dw, vocabulary, width), dlogits.t(), x);
        })?;
    }
    Ok((outputs, tensor(dx, n, width)?))
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

fn tile_logits(exec: Exec, x: &[f32], w: &[f32], width: usize, logits: &mut [f32]) {
    let (rows, vocabulary) = (x.len() / width, w.len() / width);
    let out = MatrixMut::new(logits, rows, vocabulary);
    matmul(exec, Into::Overwrite, out, Matrix::new(x, rows, width), Matrix::new(w, vocabulary, width).t());
}

/// What `row` makes of each row of logits and its target.
fn each_row(
    exec: Exec,
    logits: &mut [f32],
    vocabulary: usize,
    targets: &[u32],
    row: &(impl Fn(&mut [f32], usize) -> f64 + Sync),
) -> Vec<f64> {
    let outputs: Vec<AtomicU64> = targets.iter().map(|_| AtomicU64::new(0)).collect();
    for_blocks(exec, logits, vocabulary, |index, logits| {
        let target = targets[index] as usize;
        let output = simd::vectorised(
            #[inline(always)]
            || row(logits, target),
        );
        outputs[index].store(output.to_bits(), Ordering::Relaxed);
    });
    outputs.into_iter().map(|bits| f64::from_bits(bits.into_inner())).collect()
}

/// The loss of a row of logits, which are replaced by its gradient times `scale`.
#[inline(always)]
fn row_nll(logits: &mut [f32], target: usize, scale: f32) -> f64 {
    let max = simd::max(logits);
    let chosen = logits[target];
    let sum = simd::exp_sum(logits, max);
    let factor = scale / sum;
    logits.iter_mut().for_each(|p| *p *= factor);
    logits[target] -= scale;
    f64::from(sum).ln() + f64::from(max) - f64::from(chosen)
}

/// The log-odds of a row of logits, which are replaced by its gradient times `scale`: p′(δ − pⱼ) / (p(1 − p)), with p the
/// clipped probability of the target and p′ the one before.
#[inline(always)]
fn row_log_odds(logits: &mut [f32], target: usize, scale: f32) -> f64 {
    let max = simd::max(logits);
    let chosen = logits[target];
    let sum = simd::exp_sum(logits, max);
    let before = (f64::from(chosen) - f64::from(max)).exp() / f64::from(sum);
    let p = clipped(before);
    let scale = f64::from(scale) * before / (p * (1.0 - p));
    let factor = (-scale / f64::from(sum)) as f32;
    logits.iter_mut().for_each(|p| *p *= factor);
    logits[target] = (scale * (1.0 - before)) as f32;
    (p / (1.0 - p)).ln()
}
