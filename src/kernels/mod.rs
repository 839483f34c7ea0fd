//! Kernels: the operators of a transformer on tensors, each with its hand-written gradient.
//!
//! Every operator takes and returns contiguous `f32` tensors; rows are tokens. Gradients are accumulated in place
//! into views of one flat gradient tensor, so nothing is zero-filled, copied or added twice. Results do not depend on
//! the number of threads: work is cut into blocks of fixed size and partial sums are added in block order.
//!
//! candle's automatic differentiation is not used (several of its layers drop gradients silently and each edge of its
//! graph costs an extra zero-fill and addition); it is the twin that the tests compare these gradients with.

mod adamw;
mod along;
mod attention;
mod bias;
mod cross_entropy;
// Without launches, nobody reads what they take.
#[cfg_attr(not(any(feature = "cuda", feature = "cuda-emulation")), allow(dead_code, unused_variables))]
mod device;
mod embedding;
mod fused;
mod gelu;
mod gram;
mod inner_product;
mod layer_norm;
mod linear;
mod low_rank;
mod matmul;
mod projection;
mod rms_norm;
mod rope;
mod simd;
mod swiglu;
mod weighted_sum;

pub use adamw::{AdamW, adamw_direction, adamw_step, preconditioner, sum_of_squares};
pub use along::{Along, Directions};
pub use attention::{Heads, attention, attention_backward};
pub use bias::{add_bias, bias_backward};
pub use cross_entropy::{cross_entropy, cross_entropy_backward, log_odds, log_odds_backward};
pub(crate) use cross_entropy::{cross_entropy_backward_queued, cross_entropy_backward_seen, cross_entropy_queued};
pub use device::{
    Compute, DeviceChoice, DeviceMemory, Later, Mark, PlacedProjection, Precision, Source, StreamedSums,
    attention_backward_on_device, columns, columns_on_device, launches, swiglu_backward_on_device,
    weighted_sums_on_device,
};
pub(crate) use device::{DeviceAdamW, add_sum};
pub use embedding::{embedding, embedding_backward, select_rows, select_rows_backward};
pub use fused::{Turns, join_fused, split_fused};
pub use gelu::{Gelu, gelu, gelu_backward};
pub use gram::add_gram;
pub use inner_product::{dot, inner_product};
pub use layer_norm::{layer_norm, layer_norm_backward, layer_norm_of_sum};
pub use linear::{conv1d, conv1d_backward, linear, linear_backward};
pub use low_rank::{LowRankFactors, add_low_rank};
pub(crate) use matmul::{Into, Matrix, MatrixMut, matmul};
pub use projection::Projection;
pub use rms_norm::{rms_norm, rms_norm_backward, rms_norm_of_sum};
pub use rope::{RopeTable, rope, rope_both, rope_frequencies};
pub use swiglu::{swiglu, swiglu_backward};
pub use weighted_sum::{Floats, Members, weighted_sum, weighted_sums};

use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::{Deref, Range};

use crate::error::{Error, Result};

/// How an operator may use the machine. The numbers it computes on the processor are the same either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exec {
    /// Split the work over the current rayon pool: one large batch at a time, as in training.
    Split,
    /// Stay on the calling thread: many small batches side by side, as in scoring.
    Alone,
    /// Launch kernels on the device where the tensors lie, or their emulation where that is the CPU. Results are near those of
    /// the processor, not the same.
    Device {
        /// Whether products of f32 may round their operands to TF32.
        tf32: bool,
    },
}

/// Rows handled by one task; fixed, so that sums over rows are the same for any number of threads.
const ROW_BLOCK: usize = 64;

/// A borrowed view of a tensor's values.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => &[], // excluded by `values`
        }
    }
}

/// Borrows the values of a contiguous `f32` tensor on the CPU.
pub(crate) fn values(tensor: &Tensor) -> Result<Values<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = contiguous(layout)?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Values { storage, range }),
        _ => Err(unsupported("an f32 tensor on the CPU")),
    }
}

/// Shows `see` the values of an `f32` vector wherever it lies: borrowed on the processor, read back from a device.
pub(crate) fn with_values<T>(tensor: &Tensor, see: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    if tensor.device().is_cpu() { see(&values(tensor)?) } else { see(&tensor.to_vec1::<f32>()?) }
}

/// Lets `change` rewrite the values of a contiguous `f32` tensor in place, views of a larger one included.
pub(crate) fn modify(tensor: &Tensor, change: impl FnOnce(&mut [f32])) -> Result<()> {
    struct Modify<F>(Cell<Option<F>>);
    impl<F: FnOnce(&mut [f32])> InplaceOp1 for Modify<F> {
        fn name(&self) -> &'static str {
            "modify"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let range = contiguous(layout).map_err(candle_core::Error::wrap)?;
            match (storage, self.0.take()) {
                (CpuStorage::F32(values), Some(change)) => change(&mut values[range]),
                _ => candle_core::bail!("expected an f32 tensor"),
            }
            Ok(())
        }
    }
    Ok(tensor.inplace_op1(&Modify(Cell::new(Some(change))))?)
}

fn contiguous(layout: &Layout) -> Result<Range<usize>> {
    layout.contiguous_offsets().map(|(start, end)| start..end).ok_or_else(|| unsupported("a contiguous tensor"))
}

fn unsupported(expected: &str) -> Error {
    Error::Tensor(candle_core::Error::Msg(format!("kernel expected {expected}")))
}

/// A new CPU tensor that takes over `values`.
pub(crate) fn tensor(values: Vec<f32>, rows: usize, columns: usize) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, (rows, columns), &candle_core::Device::Cpu)?)
}

/// Adds `source` to `target` in place; both of one shape.
pub fn add_assign(exec: Exec, target: &Tensor, source: &Tensor) -> Result<()> {
    if let Exec::Device { .. } = exec {
        return device::add(target, source);
    }
    let source = values(source)?;
    modify(target, |target| {
        for_blocks(exec, target, 1 << 14, |block, target| {
            let source = &source[block << 14..];
            simd::vectorised(
                #[inline(always)]
                || target.iter_mut().zip(source).for_each(|(t, s)| *t += s),
            );
        });
    })
}

/// Calls `each(block index, block)` for consecutive blocks of `length` values.
pub(crate) fn for_blocks(exec: Exec, out: &mut [f32], length: usize, each: impl Fn(usize, &mut [f32]) + Sync) {
    match exec {
        Exec::Split => out.par_chunks_mut(length).enumerate().for_each(|(i, block)| each(i, block)),
        _ => out.chunks_mut(length).enumerate().for_each(|(i, block)| each(i, block)),
    }
}

/// Calls `each(index, item)` for every item, in parallel if `exec` allows.
pub(crate) fn for_each<T: Send>(exec: Exec, items: Vec<T>, each: impl Fn(usize, T) + Sync) {
    match exec {
        Exec::Split => items.into_par_iter().enumerate().for_each(|(i, item)| each(i, item)),
        _ => items.into_iter().enumerate().for_each(|(i, item)| each(i, item)),
    }
}

/// Cuts `all` into consecutive parts of the given lengths.
pub(crate) fn split_mut(mut all: &mut [f32], lengths: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    lengths
        .map(|length| {
            let (part, rest) = std::mem::take(&mut all).split_at_mut(length);
            all = rest;
            part
        })
        .collect()
}

/// Sets every value of an f32 tensor to 0.
pub fn fill_zero(exec: Exec, target: &Tensor) -> Result<()> {
    if let Exec::Device { .. } = exec {
        return device::fill_zero(target);
    }
    modify(target, |values| values.fill(0.0))
}

/// Lets `write` rewrite a flat tensor on the CPU in place: how a merge reaches the model that reads it.
pub fn rewrite(target: &Tensor, write: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    let mut inner = Ok(());
    modify(target, |values| inner = write(values))?;
    inner
}
