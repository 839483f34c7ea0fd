//! Attention on the device: on tensor cores where type and head dimension allow, in plain tiles otherwise.

use super::places::{Places, places};
use super::{Argument, Grid, empty, empty_like, int, launch, read, typed, write};
use crate::error::{Error, Result};
use crate::kernels::Heads;
use candle_core::{DType, Tensor};

/// The largest head dimension of the plain kernels.
const MAX_DIM: usize = 256;

/// Which kernels a pair of type and head dimension takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    /// Tiles of 16 by 16, a thread a score; any head dimension.
    Plain,
    /// Tiles of 64 rows on tensor cores.
    Tiles,
}

/// The launches of one attention.
struct Attention {
    path: Path,
    heads: Heads,
    places: Places,
}

impl Attention {
    fn new(heads: Heads, lengths: &[usize], q: &Tensor) -> Result<Self> {
        if heads.dim > MAX_DIM {
            return Err(Error::Usage(format!(
                "heads of {} values, but the GPU's kernels take at most {MAX_DIM}; use the CPU",
                heads.dim
            )));
        }
        let path = if q.dtype() == DType::BF16 && matches!(heads.dim, 64 | 128) { Path::Tiles } else { Path::Plain };
        Ok(Self { path, heads, places: places(lengths, q.device())? })
    }

    /// A grid with shared memory for so many tiles and scores of the plain path, or rows of the other.
    fn grid(&self, heads: usize, plain: [usize; 2], tiled_rows: usize) -> Result<Grid> {
        let dim = self.heads.dim;
        let (tiles, threads, shared) = match self.path {
            Path::Plain => (&self.places.tiles16, 256, (plain[0] * 16 * (dim + 1) + plain[1] * 256) * 4),
            Path::Tiles => (&self.places.tiles64, 128, tiled_rows * (dim + 8) * 2),
        };
        Ok(Grid { shared: shared as u32, ..Grid::new([tiles.dim(0)?, heads, 1], threads) })
    }

    fn kernel(&self, part: &str, q: &Tensor) -> Result<String> {
        match self.path {
            Path::Plain => typed(&format!("attention{part}"), q),
            Path::Tiles => Ok(format!("attention_tiles{part}_{}", self.heads.dim)),
        }
    }

    /// The arguments that end every call.
    fn geometry(&self) -> Result<Vec<Argument>> {
        let Heads { queries, keys, dim } = self.heads;
        let tiles = if self.path == Path::Plain { &self.places.tiles16 } else { &self.places.tiles64 };
        let mut arguments = vec![read(tiles)?, int(queries)?, int(keys)?];
        if self.path == Path::Plain {
            arguments.push(int(dim)?);
        }
        arguments.push(Argument::Float(self.heads.scale()));
        Ok(arguments)
    }
}

/// The result and the log-sum-exp of each score row, f32.
pub(in crate::kernels) fn attention(
    heads: Heads,
    lengths: &[usize],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let attention = Attention::new(heads, lengths, q)?;
    let out = empty_like(q.shape(), q)?;
    let lse = empty((q.dim(0)?, heads.queries), DType::F32, q.device())?;
    let mut arguments = vec![write(&out)?, write(&lse)?, read(q)?, read(k)?, read(v)?];
    arguments.extend(attention.geometry()?);
    let grid = attention.grid(heads.queries, [3, 2], 4 * 64)?;
    launch(q.device(), &attention.kernel("", q)?, grid, &arguments)?;
    Ok((out, lse))
}

/// The gradients of queries, keys and values.
#[allow(clippy::too_many_arguments)] // as of the operator
pub(in crate::kernels) fn attention_backward(
    heads: Heads,
    lengths: &[usize],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let attention = Attention::new(heads, lengths, q)?;
    let run = |part: &str, results: &[&Tensor], operands: &[&Tensor], grid: Grid| {
        let mut arguments = results.iter().map(|result| write(result)).collect::<Result<Vec<_>>>()?;
        arguments.extend(operands.iter().map(|operand| read(operand)).collect::<Result<Vec<_>>>()?);
        arguments.extend(attention.geometry()?);
        launch(q.device(), &attention.kernel(part, q)?, grid, &arguments)
    };
    let wide = heads.dim == 64; // tiles that pass by are half as long for 128, which takes twice the registers
    let rows = q.dim(0)? * heads.queries;
    let delta = empty(rows, DType::F32, q.device())?;
    let (dq, dk, dv) = (empty_like(q.shape(), q)?, empty_like(k.shape(), k)?, empty_like(v.shape(), v)?);
    let grid = attention.grid(heads.queries, [4, 1], 4 * if wide { 64 } else { 32 })?;
    match attention.path {
        Path::Plain => {
            let arguments = [write(&delta)?, read(out)?, read(dout)?, int(rows)?, int(heads.dim)?];
            launch(q.device(), &typed("attention_deltas", q)?, Grid::over(rows * 32, 128), &arguments)?;
            run("_queries", &[&dq], &[q, k, v, dout, lse, &delta], grid)?;
        }
        Path::Tiles => run("_queries", &[&dq, &delta], &[q, k, v, out, dout, lse], grid)?,
    }
    let passing = if wide { 32 } else { 16 };
    let mut grid = attention.grid(heads.keys, [4, 2], 2 * 64 + 4 * passing)?;
    if attention.path == Path::Tiles {
        grid.shared += 4 * 4 * passing as u32; // log-sum-exp and delta of the queries that pass by, two stages
    }
    run("_keys", &[&dk, &dv], &[q, k, v, dout, lse, &delta], grid)?;
    Ok((dq, dk, dv))
}
