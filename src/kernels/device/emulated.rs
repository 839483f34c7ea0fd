//! Emulated: the CUDA kernels compiled for the processor; products by the CPU's own.
#![allow(unsafe_code)] // one call into the emulator, which checks names and types of arguments

use super::gemm::{Factor, Product};
use super::{Argument, Grid};
use crate::error::{Error, Result};
use crate::kernels::matmul::{Into, Matrix, MatrixMut, matmul};
use crate::kernels::{Exec, modify};
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Tensor};
use std::ffi::{CString, c_char, c_int, c_void};

unsafe extern "C" {
    fn mixpool_emulated_launch(
        name: *const c_char,
        grid: *const u32,
        threads: u32,
        shared: usize,
        arguments: *const *const c_void,
        sizes: *const u32,
        count: u32,
    ) -> c_int;
}

pub(super) fn launch(kernel: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
    let name = CString::new(kernel).map_err(|_| Error::Usage("a kernel's name with a zero byte".into()))?;
    let place = |argument: &Argument| match argument {
        Argument::Address(address) => (std::ptr::from_ref(address).cast(), 8),
        Argument::Int(number) => (std::ptr::from_ref(number).cast(), 4),
        Argument::Long(number) => (std::ptr::from_ref(number).cast(), 8),
        Argument::Float(number) => (std::ptr::from_ref(number).cast(), 4),
        Argument::Double(number) => (std::ptr::from_ref(number).cast(), 8),
    };
    let (places, sizes): (Vec<*const c_void>, Vec<u32>) = arguments.iter().map(place).unzip();
    // SAFETY: all pointers are of values that live here; the kernel writes where its own arguments say, which the operators
    // take from tensors that nobody else uses meanwhile.
    let code = unsafe {
        mixpool_emulated_launch(
            name.as_ptr(),
            grid.blocks.as_ptr(),
            grid.threads,
            grid.shared as usize,
            places.as_ptr(),
            sizes.as_ptr(),
            arguments.len() as u32,
        )
    };
    let problem = match code {
        0 => return Ok(()),
        1 => "there is no such kernel",
        2 => "it takes other arguments",
        _ => "more threads than it is made for, or no whole warps",
    };
    Err(Error::Usage(format!("emulated kernel '{kernel}': {problem}")))
}

/// One product as cuBLAS documents it, with sums in f32 that are rounded once.
pub(super) fn gemm(product: &Product<'_>) -> Result<()> {
    let Product { first, second, out, rows, columns, inner, accumulate, tf32 } = *product;
    let (first_values, second_values) = (widened(first.tensor, tf32)?, widened(second.tensor, tf32)?);
    // A matrix [r, c] whose columns come first is one [c, r] whose rows come first: all three are taken that way.
    let oriented = |factor: Factor<'_>, values, rows, columns| {
        if factor.transposed {
            Matrix::strided(values, rows, columns, factor.stride).t()
        } else {
            Matrix::strided(values, columns, rows, factor.stride)
        }
    };
    let first = oriented(first, &first_values, rows, inner);
    let second = oriented(second, &second_values, inner, columns);
    let into = if accumulate { Into::Accumulate } else { Into::Overwrite };
    if out.dtype() == DType::F32 {
        return modify(out, |out| matmul(Exec::Split, into, MatrixMut::new(out, columns, rows), second, first));
    }
    let mut sums = if accumulate { widened(out, false)? } else { vec![0f32; rows * columns] };
    matmul(Exec::Split, into, MatrixMut::new(&mut sums, columns, rows), second, first);
    Ok(out.inplace_op1(&Round(sums))?)
}

/// The values of a tensor in f32, rounded to TF32 where they may be.
fn widened(tensor: &Tensor, tf32: bool) -> Result<Vec<f32>> {
    let mut values: Vec<f32> = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
    if tf32 && tensor.dtype() == DType::F32 {
        values.iter_mut().for_each(|value| *value = f32::from_bits((value.to_bits() + 0x1000) & !0x1fff));
    }
    Ok(values)
}

/// Writes values over a bf16 tensor, rounded.
struct Round(Vec<f32>);

impl InplaceOp1 for Round {
    fn name(&self) -> &'static str {
        "round"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let range = super::contiguous(layout).map_err(candle_core::Error::wrap)?;
        let CpuStorage::BF16(values) = storage else { candle_core::bail!("expected bf16") };
        values[range].iter_mut().zip(&self.0).for_each(|(out, value)| *out = half::bf16::from_f32(*value));
        Ok(())
    }
}
