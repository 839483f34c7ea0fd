//! Attention on the device: on tensor cores where type and head dimension allow, in plain tiles otherwise.

use super::places::{Places, places};
use super::{Argument, Grid, all_aligned, empty, empty_like, int, launch, read, read_rows, typed, write, write_rows};
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
    operands: [Argument; 3], // queries, keys, values
    strides: [usize; 3],     // values between the starts of two of their rows
}

impl Attention {
    fn new(heads: Heads, lengths: &[usize], q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        if heads.dim > MAX_DIM {
            return Err(Error::Usage(format!(
                "heads of {} values, but the GPU's kernels take at most {MAX_DIM}; use the CPU",
                heads.dim
            )));
        }
        let rows = [read_rows(q)?, read_rows(k)?, read_rows(v)?];
        let (operands, strides) = (rows.map(|row| row.0), rows.map(|row| row.1));
        let aligned = all_aligned(&operands) && strides.iter().all(|stride| stride.is_multiple_of(8));
        let tiled = q.dtype() == DType::BF16 && matches!(heads.dim, 64 | 128) && aligned;
        let path = if tiled { Path::Tiles } else { Path::Plain };
        Ok(Self { path, heads, places: places(lengths, q.device())?, operands, strides })
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
        let mut arguments = vec![read(tiles)?];
        arguments.extend(self.strides.iter().map(|stride| int(*stride)).collect::<Result<Vec<_>>>()?);
        arguments.extend([int(queries)?, int(keys)?]);
        if self.path == Path::Plain {
            arguments.push(int(dim)?);
        }
        arguments.push(Argument::Float(self.heads.scale()));
        Ok(arguments)
    }
}

/// The result and the log-sum-exp of each score row, f32. Queries, keys and values may be columns of wider tensors.
pub(in crate::kernels) fn attention(
    heads: Heads,
    lengths: &[usize],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let attention = Attention::new(heads, lengths, q, k, v)?;
    let out = empty_like(q.shape(), q)?;
    let lse = empty((q.dim(0)?, heads.queries), DType::F32, q.device())?;
    let mut arguments = vec![write(&out)?, write(&lse)?];
    arguments.extend(attention.operands);
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
    let gradients = [q, k, v].map(|tensor| empty_like(tensor.shape(), tensor));
    let [dq, dk, dv] = gradients;
    let (dq, dk, dv) = (dq?, dk?, dv?);
    attention_backward_on_device(heads, lengths, [q, k, v], out, lse, dout, [&dq, &dk, &dv])?;
    Ok((dq, dk, dv))
}

/// As [`attention_backward`](crate::kernels::attention_backward), of kernels, writing the gradients of queries, keys and values over tensors
/// that lie as these do: all may be columns.
///
/// # Errors
/// [`Error::Mismatch`] when rows of one and of its gradient lie in different distances.
pub fn attention_backward_on_device(
    heads: Heads,
    lengths: &[usize],
    [q, k, v]: [&Tensor; 3],
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    gradients: [&Tensor; 3],
) -> Result<()> {
    let attention = Attention::new(heads, lengths, q, k, v)?;
    let [dq, dk, dv] = gradients.map(write_rows);
    let gradients = [dq?, dk?, dv?];
    let (results, strides) = (gradients.map(|row| row.0), gradients.map(|row| row.1));
    if strides != attention.strides {
        let differences = format!("rows {:?} apart, gradients {strides:?}", attention.strides);
        return Err(Error::Mismatch { what: "queries, keys and values and their gradients".into(), differences });
    }
    let run = |part: &str, results: &[Argument], others: &[Argument], grid: Grid| {
        let arguments = [results, &attention.operands, others, &attention.geometry()?].concat();
        launch(q.device(), &attention.kernel(part, q)?, grid, &arguments)
    };
    let rows = q.dim(0)? * heads.queries;
    let delta = empty(rows, DType::F32, q.device())?;
    let [out_at, dout_at, lse_at] = [read(out)?, read(dout)?, read(lse)?];
    let wide = heads.dim == 64; // tiles that pass by are half as long for 128, which takes twice the registers
    let grid = attention.grid(heads.queries, [4, 1], 4 * if wide { 64 } else { 32 })?;
    match attention.path {
        Path::Plain => {
            let arguments = [write(&delta)?, out_at, dout_at, int(rows)?, int(heads.dim)?];
            launch(q.device(), &typed("attention_deltas", q)?, Grid::over(rows * 32, 128), &arguments)?;
            run("_queries", &results[..1], &[dout_at, lse_at, read(&delta)?], grid)?;
        }
        Path::Tiles => run("_queries", &[results[0], write(&delta)?], &[out_at, dout_at, lse_at], grid)?,
    }
    let passing = if wide { 32 } else { 16 };
    let mut grid = attention.grid(heads.keys, [4, 2], 2 * 64 + 4 * passing)?;
    if attention.path == Path::Tiles {
        grid.shared += 4 * 4 * passing as u32; // log-sum-exp and delta of the queries that pass by, two stages
    }
    run("_keys", &results[1..], &[dout_at, lse_at, read(&delta)?], grid)
}
