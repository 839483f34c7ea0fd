//! Rows on the device: picked from a table, put back, added up by id, turned by position, taken apart and joined.

use super::places::places;
use super::{
    Argument, Grid, NULL, all_aligned, empty_like, int, launch, read, typed, upload, widest, write, write_rows,
};
use crate::error::Result;
use crate::kernels::{RopeTable, Turns};
use candle_core::{DType, Device, Tensor};

const THREADS: usize = 256;
/// Threads of the kernel that adds rows up by id.
const COLUMNS: usize = 128;

/// A block for each of `rows`, whose threads take so many values at a time, and whether that is `per_thread`: where every row and every
/// address allow it.
fn row_grid(rows: usize, width: usize, per_thread: usize, period: usize, addresses: &[Argument]) -> (Grid, Argument) {
    let wide = period.is_multiple_of(per_thread) && all_aligned(addresses);
    let threads = if wide { width / per_thread } else { width };
    let grid = Grid::new([rows, 1, 1], threads.next_multiple_of(32).clamp(32, THREADS));
    (grid, Argument::Int(i32::from(wide)))
}

/// The rows of `table` with these ids: `[ids, width]`.
pub(in crate::kernels) fn gather(table: &Tensor, ids: Vec<u32>) -> Result<Tensor> {
    let (n, width) = (ids.len(), table.dim(1)?);
    let out = empty_like((n, width), table)?;
    let ids = upload(ids, table.device())?;
    let (out_at, table_at) = (write(&out)?, read(table)?);
    let (grid, wide) = row_grid(n, width, widest(table), width, &[out_at, table_at]);
    launch(table.device(), &typed("gather", table)?, grid, &[out_at, table_at, read(&ids)?, int(width)?, wide])?;
    Ok(out)
}

/// Row i of `x` in row `ids[i]` of a tensor of `n` rows, 0 elsewhere.
pub(in crate::kernels) fn scatter(x: &Tensor, ids: Vec<u32>, n: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let out = Tensor::zeros((n, width), x.dtype(), x.device())?;
    let ids = upload(ids, x.device())?;
    let (out_at, x_at) = (write(&out)?, read(x)?);
    let (grid, wide) = row_grid(rows, width, widest(x), width, &[out_at, x_at]);
    launch(x.device(), &typed("scatter", x)?, grid, &[out_at, x_at, read(&ids)?, int(width)?, wide])?;
    Ok(out)
}

/// Adds row i of `dx` to row `ids[i]` of `dtable`, f32: the rows of one id in their order.
pub(in crate::kernels) fn add_by_id(ids: &[u32], dx: &Tensor, dtable: &Tensor) -> Result<()> {
    let width = dx.dim(1)?;
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|row| ids[*row as usize]); // stable
    let (mut unique, mut starts) = (Vec::new(), Vec::new());
    for (at, row) in order.iter().enumerate() {
        let id = ids[*row as usize];
        if unique.last() != Some(&id) {
            unique.push(id);
            starts.push(at as u32);
        }
    }
    starts.push(order.len() as u32);
    let lengths = [unique.len(), starts.len()];
    let count = unique.len();
    let all = upload([unique, starts, order].concat(), dx.device())?;
    let part = |from: usize, length: usize| read(&all.narrow(0, from, length)?);
    launch(
        dx.device(),
        &typed("add_by_id", dx)?,
        Grid::new([count, width.div_ceil(COLUMNS), 1], COLUMNS),
        &[
            write(dtable)?,
            read(dx)?,
            part(0, lengths[0])?,
            part(lengths[0], lengths[1])?,
            part(lengths[0] + lengths[1], ids.len())?,
            int(width)?,
        ],
    )
}

/// Turns every head of queries, and of keys where given, by the position of its row; either may be columns of a wider tensor.
pub(in crate::kernels) fn rope(
    q: &Tensor,
    k: Option<&Tensor>,
    table: &RopeTable,
    lengths: &[usize],
    inverse: bool,
) -> Result<()> {
    let n = q.dim(0)?;
    let heads = |tensor: &Tensor| -> Result<usize> { Ok(tensor.dim(1)? / table.head_dim) };
    let (q_heads, k_heads) = (heads(q)?, k.map_or(Ok(0), heads)?);
    let (cos, sin) = table.placed(q.device())?;
    let places = places(lengths, q.device())?;
    let ((q_at, q_stride), (k_at, k_stride)) = (write_rows(q)?, k.map_or(Ok((NULL, 0)), write_rows)?);
    let (cos_at, sin_at) = (read(&cos)?, read(&sin)?);
    let pairs = (q_heads + k_heads) * table.half;
    // Four pairs a thread, 16 bytes of cosines, where rows, heads and what turns of them are multiples of that.
    let starts = [table.head_dim, q_stride, k_stride];
    let period = if starts.iter().all(|start| start.is_multiple_of(4)) { table.half } else { 1 };
    let (grid, wide) = row_grid(n, pairs, 4, period, &[q_at, k_at, cos_at, sin_at]);
    launch(
        q.device(),
        &typed("rope", q)?,
        grid,
        &[
            q_at,
            k_at,
            cos_at,
            sin_at,
            read(&places.positions)?,
            int(q_heads)?,
            int(k_heads)?,
            int(q_stride)?,
            int(k_stride)?,
            int(table.head_dim)?,
            int(table.half)?,
            Argument::Float(if inverse { -1.0 } else { 1.0 }),
            wide,
        ],
    )
}

/// Queries, keys and values out of the rows in which they take turns.
pub(in crate::kernels) fn split_fused(turns: Turns, fused: &Tensor) -> Result<[Tensor; 3]> {
    let n = fused.dim(0)?;
    let [q, k, v] = turns.widths.map(|width| empty_like((n, width * turns.count), fused));
    let parts = [q?, k?, v?];
    fused_rows(turns, read(fused)?, fused, [write(&parts[0])?, write(&parts[1])?, write(&parts[2])?], false)?;
    Ok(parts)
}

/// The inverse of [`split_fused`].
pub(in crate::kernels) fn join_fused(turns: Turns, parts: [&Tensor; 3]) -> Result<Tensor> {
    let fused = empty_like((parts[0].dim(0)?, turns.width()), parts[0])?;
    fused_rows(turns, write(&fused)?, &fused, [read(parts[0])?, read(parts[1])?, read(parts[2])?], true)?;
    Ok(fused)
}

fn fused_rows(turns: Turns, at: Argument, fused: &Tensor, parts: [Argument; 3], join: bool) -> Result<()> {
    let [q, k, v] = parts;
    let [q_width, k_width, v_width] = turns.widths;
    launch(
        fused.device(),
        &typed("fused", fused)?,
        Grid::over(fused.elem_count(), THREADS),
        &[
            at,
            q,
            k,
            v,
            Argument::Long(fused.dim(0)? as i64),
            int(turns.count)?,
            int(q_width)?,
            int(k_width)?,
            int(v_width)?,
            Argument::Int(i32::from(join)),
        ],
    )
}

/// A table of cosines or sines on a device.
pub(in crate::kernels) fn table(values: &[f32], device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, values.len(), device)?.to_dtype(DType::F32)?)
}
