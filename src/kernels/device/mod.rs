//! Device: kernels launched by name on a GPU, or, for tests, through their emulation on the processor.
//!
//! This is the whole layer between the operators and the hardware: addresses out of tensors, [`launch`] and [`gemm`]. The
//! operators of the files beside this one say which kernel takes what; they are the same for a GPU and for the emulation.
//! A tensor on the processor is taken by the emulation, one on a GPU by CUDA.

mod adamw;
mod along;
mod attention;
mod choice;
mod compute;
mod cross_entropy;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod driver;
mod elementwise;
#[cfg(feature = "cuda-emulation")]
mod emulated;
mod gemm;
mod inner_product;
mod later;
mod norm;
mod places;
mod projection;
mod rows;
mod streamed;
mod weighted_sum;

pub(crate) use adamw::DeviceAdamW;
pub(super) use along::DeviceAlong;
pub use attention::attention_backward_on_device;
pub(super) use attention::{attention, attention_backward};
pub use choice::{DeviceChoice, DeviceMemory};
pub use compute::{Compute, Precision};
pub(crate) use cross_entropy::{add_sum, cross_entropy, cross_entropy_backward, log_odds_backward};
pub use elementwise::swiglu_backward_on_device;
pub(super) use elementwise::{add, fill_zero, gelu, swiglu, swiglu_backward};
pub(super) use gemm::{Operand, gemm, product};
pub(super) use inner_product::{Rows, add_inner_products};
pub use later::{Later, Mark};
pub(super) use norm::{NormKind, column_sums, norm, norm_backward};
pub use projection::PlacedProjection;
pub(super) use rows::{add_by_id, gather, join_fused, rope, scatter, split_fused, table};
pub use streamed::{Source, StreamedSums};
pub use weighted_sum::weighted_sums_on_device;

use super::contiguous;
use crate::error::{Error, Result};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Shape, Storage, Tensor};
use std::cell::Cell;

/// What a kernel is given: C's types, by position.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument {
    /// A pointer to the first value of a tensor, or null.
    Address(u64),
    /// `int`
    Int(i32),
    /// `long long`
    Long(i64),
    /// `float`
    Float(f32),
    /// `double`
    Double(f64),
}

/// The pointer to nothing.
const NULL: Argument = Argument::Address(0);

/// How a launch is divided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    blocks: [u32; 3],
    threads: u32,
    shared: u32, // bytes of dynamic shared memory
}

impl Grid {
    fn new(blocks: [usize; 3], threads: usize) -> Self {
        Self { blocks: blocks.map(|blocks| blocks as u32), threads: threads as u32, shared: 0 }
    }

    /// One thread for each of `n` things, in blocks of `threads`.
    fn over(n: usize, threads: usize) -> Self {
        Self::new([n.div_ceil(threads), 1, 1], threads)
    }
}

thread_local! {
    static LAUNCHES: Cell<u64> = const { Cell::new(0) };
}

/// Kernels and matrix products that this thread has laid in the queues of devices so far.
pub fn launches() -> u64 {
    LAUNCHES.get()
}

fn count_launch() {
    LAUNCHES.set(LAUNCHES.get() + 1);
}

/// Whether all that is pointed to begins at a multiple of 16 bytes.
fn all_aligned(arguments: &[Argument]) -> bool {
    !arguments.iter().any(|argument| matches!(argument, Argument::Address(address) if address % 16 != 0))
}

/// Values of 16 bytes.
fn widest(tensor: &Tensor) -> usize {
    16 / tensor.dtype().size_in_bytes()
}

/// Lays a kernel in the queue of the device; its results are there for whoever is queued next. A grid without blocks is none.
fn launch(device: &Device, kernel: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
    if grid.blocks.contains(&0) {
        return Ok(());
    }
    count_launch();
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::launch(device, kernel, grid, arguments),
        #[cfg(feature = "cuda-emulation")]
        Device::Cpu => emulated::launch(kernel, grid, arguments),
        _ => Err(unavailable(kernel)),
    }
}

fn unavailable(what: &str) -> Error {
    Error::Usage(format!(
        "'{what}' needs a GPU, and this program was built without: cargo build --release --features cuda"
    ))
}

/// The address of a contiguous tensor that a kernel reads.
fn read(tensor: &Tensor) -> Result<Argument> {
    read_from(tensor, contiguous(tensor.layout())?.start)
}

/// As [`read`], of `[n, width]`, which may be columns of a wider tensor; with the values between the starts of two rows.
fn read_rows(tensor: &Tensor) -> Result<(Argument, usize)> {
    let (start, stride) = rows_of(tensor.layout())?;
    Ok((read_from(tensor, start)?, stride))
}

/// Where rows whose values lie next to each other start, and how many values apart.
fn rows_of(layout: &Layout) -> Result<(usize, usize)> {
    match (layout.dims(), layout.stride()) {
        (&[n, width], &[stride, step]) if step == 1 || width <= 1 => {
            Ok((layout.start_offset(), if n > 1 { stride } else { width }))
        }
        _ => Err(super::unsupported("rows whose values lie next to each other")),
    }
}

/// The address of a tensor's storage, from its value `start` on.
fn read_from(tensor: &Tensor, start: usize) -> Result<Argument> {
    let (storage, _) = tensor.storage_and_layout();
    let address = match &*storage {
        Storage::Cpu(values) => address_of(values)?,
        #[cfg(feature = "cuda")]
        Storage::Cuda(values) => cuda::address(values)?,
        _ => return Err(unavailable("a tensor elsewhere")),
    };
    Ok(Argument::Address(address + (start * tensor.dtype().size_in_bytes()) as u64))
}

/// As [`read`], of nothing as well.
fn read_if(tensor: Option<&Tensor>) -> Result<Argument> {
    tensor.map_or(Ok(NULL), read)
}

fn address_of(values: &CpuStorage) -> Result<u64> {
    Ok(match values {
        CpuStorage::F32(values) => values.as_ptr() as u64,
        CpuStorage::F64(values) => values.as_ptr() as u64,
        CpuStorage::BF16(values) => values.as_ptr() as u64,
        CpuStorage::F16(values) => values.as_ptr() as u64,
        CpuStorage::U32(values) => values.as_ptr() as u64,
        CpuStorage::I64(values) => values.as_ptr() as u64,
        _ => return Err(super::unsupported("floats or indices")),
    })
}

/// The address of a contiguous tensor that a kernel writes.
fn write(tensor: &Tensor) -> Result<Argument> {
    write_from(tensor, contiguous(tensor.layout())?.start)
}

/// As [`write()`], of what [`read_rows`] takes.
fn write_rows(tensor: &Tensor) -> Result<(Argument, usize)> {
    let (start, stride) = rows_of(tensor.layout())?;
    Ok((write_from(tensor, start)?, stride))
}

fn write_from(tensor: &Tensor, start: usize) -> Result<Argument> {
    if !tensor.device().is_cpu() {
        return read_from(tensor, start); // a device's memory is nobody's slice
    }
    let locate = Locate { start, address: Cell::new(0) };
    tensor.inplace_op1(&locate)?;
    Ok(Argument::Address(locate.address.get()))
}

/// Finds the address from which on may be written.
struct Locate {
    start: usize,
    address: Cell<u64>,
}

impl InplaceOp1 for Locate {
    fn name(&self) -> &'static str {
        "address to write to"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let start = self.start;
        self.address.set(match storage {
            CpuStorage::F32(values) => values[start..].as_mut_ptr() as u64,
            CpuStorage::F64(values) => values[start..].as_mut_ptr() as u64,
            CpuStorage::BF16(values) => values[start..].as_mut_ptr() as u64,
            CpuStorage::U32(values) => values[start..].as_mut_ptr() as u64,
            _ => candle_core::bail!("expected floats or indices"),
        });
        Ok(())
    }
}

/// A number that fits C's `int`.
fn int(number: usize) -> Result<Argument> {
    i32::try_from(number).map(Argument::Int).map_err(|_| Error::Usage(format!("{number} is too large for a kernel")))
}

/// What kernels of this type of values end in.
fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        _ => Err(super::unsupported("f32 or bf16")),
    }
}

/// The kernel for the type of a tensor's values.
fn typed(name: &str, tensor: &Tensor) -> Result<String> {
    Ok(format!("{name}_{}", suffix(tensor.dtype())?))
}

/// A new tensor whose values are not set; NaN in the emulation, so that whoever does not set them is found out.
fn empty(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::empty(shape.into(), dtype, device),
        _ => {
            let nan = if dtype.is_float() { f32::NAN } else { f32::MAX };
            Ok(Tensor::full(nan, shape, device)?.to_dtype(dtype)?)
        }
    }
}

/// As [`empty`], of the type and on the device of another.
fn empty_like(shape: impl Into<Shape>, like: &Tensor) -> Result<Tensor> {
    empty(shape, like.dtype(), like.device())
}

/// A new tensor of `n` rows whose values are not set, and its columns in parts of these widths; of the type of another and on its device.
///
/// # Shapes
/// `[n, Σ widths]`; `[n, width]` for each.
pub fn columns_on_device(like: &Tensor, n: usize, widths: &[usize]) -> Result<(Tensor, Vec<Tensor>)> {
    let whole = empty_like((n, widths.iter().sum::<usize>()), like)?;
    let parts = columns(&whole, widths)?;
    Ok((whole, parts))
}

/// The columns of a tensor in parts of these widths; nothing moves.
///
/// # Shapes
/// `[n, Σ widths]` → `[n, width]` for each.
pub fn columns(whole: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
    let starts = widths.iter().scan(0, |next, width| Some(std::mem::replace(next, *next + width)));
    starts.zip(widths).map(|(start, width)| Ok(whole.narrow(1, start, *width)?)).collect()
}

/// Indices on a device.
fn upload(values: Vec<u32>, device: &Device) -> Result<Tensor> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::upload(&values, device),
        _ => {
            let length = values.len();
            Ok(Tensor::from_vec(values, length, device)?)
        }
    }
}
