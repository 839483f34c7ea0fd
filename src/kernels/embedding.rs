//! Embedding: rows picked from a table, and the scatter that is its gradient.

use super::{Exec, device, modify, tensor, values};
use crate::error::{Error, Result};
use candle_core::Tensor;

/// The rows of `table` named by `ids`.
///
/// # Shapes
/// `table: [vocabulary, d]`, `ids: [n]` → `[n, d]`.
///
/// # Errors
/// [`Error::Mismatch`] when an id lies outside the table.
pub fn embedding(exec: Exec, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (vocabulary, width) = table.dims2()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        return Err(Error::Mismatch {
            what: "token ids against the embedding".into(),
            differences: format!(
                "id {id}, but the vocabulary has {vocabulary} entries; 'mixpool verify --deep' finds damage"
            ),
        });
    }
    if let Exec::Device { .. } = exec {
        return device::gather(table, ids.to_vec());
    }
    let rows: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
    gather(table, &rows, width)
}

/// The rows of `x` with the given indices, in that order.
///
/// # Shapes
/// `x: [n, d]`, `rows: [m]` → `[m, d]`.
pub fn select_rows(exec: Exec, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::gather(x, narrowed(rows));
    }
    let width = x.dim(1)?;
    gather(x, rows, width)
}

fn narrowed(rows: &[usize]) -> Vec<u32> {
    rows.iter().map(|row| *row as u32).collect()
}

fn gather(table: &Tensor, rows: &[usize], width: usize) -> Result<Tensor> {
    let table = values(table)?;
    let mut out = Vec::with_capacity(rows.len() * width);
    for row in rows {
        out.extend_from_slice(&table[row * width..][..width]);
    }
    tensor(out, rows.len(), width)
}

/// The gradient of [`select_rows`]: row i of `dy` in row `rows[i]` of a tensor of `n` rows, 0 elsewhere.
///
/// # Shapes
/// `rows: [m]`, none twice, `dy: [m, d]` → `[n, d]`.
pub fn select_rows_backward(exec: Exec, rows: &[usize], dy: &Tensor, n: usize) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::scatter(dy, narrowed(rows), n);
    }
    let width = dy.dim(1)?;
    let dy = values(dy)?;
    let mut dx = vec![0f32; n * width];
    for (row, dy) in rows.iter().zip(dy.chunks_exact(width)) {
        dx[row * width..][..width].copy_from_slice(dy);
    }
    tensor(dx, n, width)
}

/// Adds row i of `dx` to row `ids[i]` of `dtable`, in the order of the rows.
///
/// # Shapes
/// `ids: [n]`, `dx: [n, d]`, `dtable: [vocabulary, d]`.
pub fn embedding_backward(exec: Exec, ids: &[u32], dx: &Tensor, dtable: &Tensor) -> Result<()> {
    if let Exec::Device { .. } = exec {
        return device::add_by_id(ids, dx, dtable);
    }
    let width = dx.dim(1)?;
    let dx = values(dx)?;
    modify(dtable, |dtable| {
        for (id, dx) in ids.iter().zip(dx.chunks_exact(width)) {
            let row = &mut dtable[*id as usize * width..][..width];
            row.iter_mut().zip(dx).for_each(|(sum, d)| *sum += d);
        }
    })
}
