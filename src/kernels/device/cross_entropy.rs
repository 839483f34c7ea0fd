//! Cross-entropy on the device: logits of some rows at a time, by a product, and their losses and gradients by a kernel.

use super::gemm::{Operand, gemm};
use super::{Argument, Grid, empty, empty_like, int, launch, read, typed, upload, write};
use crate::error::Result;
use crate::kernels::cross_entropy::SeeRows;
use candle_core::{DType, Tensor};

/// Logits held at once, unless that is less than 128 rows: 256 MiB in f32. Every chunk passes over the whole gradient of the output
/// matrix, so chunks are as large as memory allows.
const LOGITS: usize = 1 << 26;
const THREADS: usize = 256;

/// Rows of one chunk: a multiple of what tensor cores like, depending on the vocabulary alone.
fn chunk_rows(vocabulary: usize) -> usize {
    (LOGITS / vocabulary / 128 * 128).max(128)
}

/// Some rows: the first and how many.
fn chunks(n: usize, vocabulary: usize) -> impl Iterator<Item = (usize, usize)> {
    let rows = chunk_rows(vocabulary);
    (0..n).step_by(rows).map(move |first| (first, rows.min(n - first)))
}

/// The negative log-likelihood of each target in nats, f64, on the device: `[n]`.
pub(crate) fn cross_entropy(tf32: bool, x: &Tensor, w: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (n, vocabulary) = (x.dim(0)?, w.dim(0)?);
    let device = x.device();
    let nll = empty(n, DType::F64, device)?;
    let targets = upload(targets.to_vec(), device)?;
    let logits = empty((chunk_rows(vocabulary).min(n), vocabulary), DType::F32, device)?;
    for (first, rows) in chunks(n, vocabulary) {
        let logits = logits.narrow(0, 0, rows)?;
        gemm(tf32, &logits, false, Operand::plain(&x.narrow(0, first, rows)?), Operand::transposed(w))?;
        let (nll, targets) = (nll.narrow(0, first, rows)?, targets.narrow(0, first, rows)?);
        let arguments = [write(&nll)?, read(&logits)?, read(&targets)?, int(vocabulary)?];
        launch(device, "nll", Grid::new([rows, 1, 1], THREADS), &arguments)?;
    }
    Ok(nll)
}

/// As [`cross_entropy`], and the gradients of `scale · Σ nll`: adds to `dw`, f32, and returns `dx` with the losses. `see` is shown inputs and
/// gradients of logits, some rows at a time.
pub(crate) fn cross_entropy_backward(
    tf32: bool,
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    scale: f32,
    dw: &Tensor,
    see: Option<&mut SeeRows<'_>>,
) -> Result<(Tensor, Tensor)> {
    backward("nll_backward", tf32, x, w, targets, scale, dw, see)
}

/// As [`cross_entropy_backward`], of the log-odds of the targets.
pub(crate) fn log_odds_backward(
    tf32: bool,
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    scale: f32,
    dw: &Tensor,
) -> Result<(Tensor, Tensor)> {
    backward("log_odds_backward", tf32, x, w, targets, scale, dw, None)
}

/// An output of each row, f64, and `dx`: `kernel` takes logits and targets, and leaves the outputs and the gradients of the logits.
#[allow(clippy::too_many_arguments)] // those of the operators, and which it is
fn backward(
    kernel: &str,
    tf32: bool,
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    scale: f32,
    dw: &Tensor,
    mut see: Option<&mut SeeRows<'_>>,
) -> Result<(Tensor, Tensor)> {
    let (n, width) = x.dims2()?;
    let vocabulary = w.dim(0)?;
    let device = x.device();
    let outputs = empty(n, DType::F64, device)?;
    let targets = upload(targets.to_vec(), device)?;
    let dx = empty_like((n, width), x)?;
    let held = (chunk_rows(vocabulary).min(n), vocabulary);
    let logits = empty(held, DType::F32, device)?;
    let dlogits = if x.dtype() == DType::F32 { logits.clone() } else { empty_like(held, x)? };
    for (first, rows) in chunks(n, vocabulary) {
        let (logits, dlogits) = (logits.narrow(0, 0, rows)?, dlogits.narrow(0, 0, rows)?);
        let x = x.narrow(0, first, rows)?;
        gemm(tf32, &logits, false, Operand::plain(&x), Operand::transposed(w))?;
        let (outputs, targets) = (outputs.narrow(0, first, rows)?, targets.narrow(0, first, rows)?);
        launch(
            device,
            &typed(kernel, &x)?,
            Grid::new([rows, 1, 1], THREADS),
            &[
                write(&dlogits)?,
                read(&logits)?,
                read(&targets)?,
                write(&outputs)?,
                int(vocabulary)?,
                Argument::Float(scale),
            ],
        )?;
        gemm(tf32, &dx.narrow(0, first, rows)?, false, Operand::plain(&dlogits), Operand::plain(w))?;
        gemm(tf32, dw, true, Operand::transposed(&dlogits), Operand::plain(&x))?;
        if let Some(see) = &mut see {
            see(first, &x, &dlogits)?;
        }
    }
    Ok((outputs, dx))
}

/// Adds `factor · Σ values` to a single f64.
pub(crate) fn add_sum(sum: &Tensor, values: &Tensor, factor: f64) -> Result<()> {
    launch(
        values.device(),
        "add_sum",
        Grid::new([1, 1, 1], THREADS),
        &[write(sum)?, read(values)?, int(values.elem_count())?, Argument::Double(factor)],
    )
}
