//! Norms of rows on the device: RMS norm, layer norm, and gradients that are sums over rows.

use super::{Argument, Grid, NULL, empty, empty_like, int, launch, read, read_if, typed, write};
use crate::error::Result;
use candle_core::{DType, Tensor};

/// Threads of a block: as many warps of 32 take a row each.
const THREADS: usize = 128;
/// Rows of one partial sum, at least.
const ROWS: usize = 64;
/// Partial sums, at most.
const PARTIALS: usize = 64;

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) enum NormKind {
    Rms,
    Layer,
}

impl NormKind {
    fn kernel(self) -> &'static str {
        match self {
            Self::Rms => "rms_norm",
            Self::Layer => "layer_norm",
        }
    }
}

/// The norm of every row; `bias` for a layer norm. With `added`, that is added to `x` in place first.
pub(in crate::kernels) fn norm(
    kind: NormKind,
    x: &Tensor,
    added: Option<&Tensor>,
    gain: &Tensor,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let y = empty_like((n, width), x)?;
    let x_at = if added.is_some() { write(x)? } else { read(x)? };
    launch(
        x.device(),
        &typed(kind.kernel(), x)?,
        Grid::over(n * 32, THREADS),
        &[write(&y)?, x_at, read_if(added)?, read(gain)?, read_if(bias)?, int(n)?, int(width)?, Argument::Float(eps)],
    )?;
    Ok(y)
}

/// Adds the gradients to `dx` (a new tensor when `None`) and `dgain`; returns `dx`.
pub(in crate::kernels) fn norm_backward(
    kind: NormKind,
    x: &Tensor,
    gain: &Tensor,
    eps: f32,
    dy: &Tensor,
    dx: Option<Tensor>,
    dgain: &Tensor,
) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let accumulate = Argument::Int(i32::from(dx.is_some()));
    let dx = dx.map_or_else(|| empty_like((n, width), x), Ok)?;
    let stats = empty((n, 2), DType::F32, x.device())?;
    let kernel = typed(&format!("{}_backward", kind.kernel()), x)?;
    let arguments = [
        write(&dx)?,
        write(&stats)?,
        read(x)?,
        read(gain)?,
        read(dy)?,
        int(n)?,
        int(width)?,
        Argument::Float(eps),
        accumulate,
    ];
    launch(x.device(), &kernel, Grid::over(n * 32, THREADS), &arguments)?;
    column_sums(dy, Some((x, &stats)), dgain)?;
    Ok(dx)
}

/// Adds Σ over rows of `dy`, or of `dy` times the normed rows of x by their mean and scale, to `sums`: `[width]` f32.
pub(in crate::kernels) fn column_sums(dy: &Tensor, normed: Option<(&Tensor, &Tensor)>, sums: &Tensor) -> Result<()> {
    let (n, width) = dy.dims2()?;
    let rows = ROWS.max(n.div_ceil(PARTIALS));
    let blocks = n.div_ceil(rows);
    let partials = empty((blocks, width), DType::F32, dy.device())?;
    let (x, stats) = match normed {
        Some((x, stats)) => (read(x)?, read(stats)?),
        None => (NULL, NULL),
    };
    launch(
        dy.device(),
        &typed("column_sums", dy)?,
        Grid::new([width.div_ceil(THREADS), blocks, 1], THREADS),
        &[write(&partials)?, read(dy)?, x, stats, int(n)?, int(width)?, int(rows)?],
    )?;
    let arguments = [write(sums)?, read(&partials)?, int(blocks)?, int(width)?];
    launch(dy.device(), "add_partials", Grid::over(width, THREADS), &arguments)
}
