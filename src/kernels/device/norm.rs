//! Norms of rows on the device: RMS norm, layer norm, and gradients that are sums over rows.

use super::{Argument, Grid, empty, empty_like, int, launch, read, read_if, typed, write};
use crate::error::Result;
use candle_core::{DType, Tensor};

/// Threads of a block: as many warps of 32 take a row each.
const THREADS: usize = 128;
/// Rows of one partial sum, at least.
const ROWS: usize = 16;
/// Partial sums, at most.
const PARTIALS: usize = 512;
/// Values of a row that four warps have room for in the shared memory of a block; longer rows are taken by two.
const NARROW: usize = 3072;

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
    let (rows, partials) = partial_sums(n, width, x)?;
    let threads = if width <= NARROW { THREADS } else { THREADS / 2 };
    let padded = width.next_multiple_of(256); // 32 lanes of 8 values
    let grid = Grid { shared: (threads / 32 * padded * 4) as u32, ..Grid::new([partials.dim(0)?, 1, 1], threads) };
    let arguments = [
        write(&dx)?,
        write(&partials)?,
        read(x)?,
        read(gain)?,
        read(dy)?,
        int(n)?,
        int(width)?,
        Argument::Float(eps),
        accumulate,
        int(rows)?,
        int(padded)?,
    ];
    launch(x.device(), &typed(&format!("{}_backward", kind.kernel()), x)?, grid, &arguments)?;
    add_partials(&partials, dgain)?;
    Ok(dx)
}

/// Adds Σ over rows of `dy` to `sums`: `[width]` f32.
pub(in crate::kernels) fn column_sums(dy: &Tensor, sums: &Tensor) -> Result<()> {
    let (n, width) = dy.dims2()?;
    let (rows, partials) = partial_sums(n, width, dy)?;
    launch(
        dy.device(),
        &typed("column_sums", dy)?,
        Grid::new([width.div_ceil(THREADS), partials.dim(0)?, 1], THREADS),
        &[write(&partials)?, read(dy)?, int(n)?, int(width)?, int(rows)?],
    )?;
    add_partials(&partials, sums)
}

/// How many of `n` rows a block takes, and room for the blocks' sums; by the number of rows alone.
fn partial_sums(n: usize, width: usize, like: &Tensor) -> Result<(usize, Tensor)> {
    let rows = ROWS.max(n.div_ceil(PARTIALS));
    Ok((rows, empty((n.div_ceil(rows), width), DType::F32, like.device())?))
}

fn add_partials(partials: &Tensor, sums: &Tensor) -> Result<()> {
    let (blocks, width) = partials.dims2()?;
    let arguments = [write(sums)?, read(partials)?, int(blocks)?, int(width)?];
    launch(sums.device(), "add_partials", Grid::over(width * 8, 256), &arguments)
}
