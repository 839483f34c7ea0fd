//! cuBLAS: the functions of libcublas.so.13 that programs of ours call, under the names and with the arguments of its headers.
#![allow(unsafe_code, non_snake_case)] // C's pointers, and C's names
#![allow(clippy::missing_safety_doc, missing_docs)] // NVIDIA's manual says what each does and may be given

use crate::driver::{current, stream_of};
use crate::machine::{Machine, machine};
use crate::product::{Matrix, Product, Type};
use crate::work::Work;
use std::ffi::{c_int, c_void};

/// What a function of cuBLAS returns when it fails (`cublasStatus_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status(c_int);

impl Status {
    const NOT_INITIALIZED: Self = Self(1);
    const INVALID_VALUE: Self = Self(7);
    const EXECUTION_FAILED: Self = Self(13);
    const NOT_SUPPORTED: Self = Self(15);
}

/// A handle's device and stream.
#[derive(Debug, Clone, Copy)]
pub struct Handle {
    device: usize,
    stream: u64,
}

fn call(name: &'static str, body: impl FnOnce(&mut Machine) -> Result<(), Status>) -> c_int {
    let mut machine = machine();
    if let Some(code) = machine.calls.enter(name) {
        return code;
    }
    body(&mut machine).map_or_else(|status| status.0, |()| 0)
}

/// A handle in the context that is bound to this thread.
fn handle_of(machine: &Machine, handle: u64) -> Result<Handle, Status> {
    let found = *machine.blas.get(&handle).ok_or(Status::NOT_INITIALIZED)?;
    let device = current(machine).map_err(|_| Status::EXECUTION_FAILED)?;
    if device == found.device {
        return Ok(found);
    }
    eprintln!("virtual GPU: cuBLAS is asked for device {} while {device} is bound to the thread", found.device);
    Err(Status::INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasCreate_v2(handle: *mut u64) -> c_int {
    call("cublasCreate_v2", |machine| {
        let device = current(machine).map_err(|_| Status::NOT_INITIALIZED)?;
        let stream = stream_of(machine, device, 0).map_err(|_| Status::NOT_INITIALIZED)?;
        let number = machine.handle();
        machine.blas.insert(number, Handle { device, stream });
        if handle.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the caller's pointer is for a handle.
        unsafe { handle.write(number) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasDestroy_v2(handle: u64) -> c_int {
    call("cublasDestroy_v2", |machine| machine.blas.remove(&handle).map(drop).ok_or(Status::NOT_INITIALIZED))
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasSetStream_v2(handle: u64, stream: u64) -> c_int {
    call("cublasSetStream_v2", |machine| {
        let Handle { device, .. } = handle_of(machine, handle)?;
        let stream = stream_of(machine, device, stream).map_err(|_| Status::INVALID_VALUE)?;
        machine.blas.insert(handle, Handle { device, stream });
        Ok(())
    })
}

/// A factor or result as the caller describes it.
struct Described {
    address: u64,
    values: c_int,
    rows: c_int,
    columns: c_int,
    stride: c_int,
}

impl Described {
    fn matrix(&self) -> Result<Matrix, Status> {
        let values = match self.values {
            0 => Type::F32,
            14 => Type::Bf16,
            _ => return Err(Status::NOT_SUPPORTED),
        };
        let (rows, columns, stride) = (self.rows as usize, self.columns as usize, self.stride as usize);
        let address = self.address;
        if stride < rows.max(1) || address == 0 || !address.is_multiple_of(values.bytes()) {
            eprintln!("virtual GPU: cuBLAS: {values:?} at {address:#x}, {rows} rows with a stride of {stride}");
            return Err(Status::INVALID_VALUE);
        }
        Ok(Matrix { address, values, rows, columns, stride })
    }
}

/// `CUBLAS_OP_N` or `CUBLAS_OP_T`.
fn transposed(operation: c_int) -> Result<bool, Status> {
    match operation {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Status::INVALID_VALUE),
    }
}

/// Whether a `cublasComputeType_t` rounds f32 factors to TF32.
fn rounds(compute: c_int, values: Type) -> Result<bool, Status> {
    match (compute, values) {
        (68 | 69, _) => Ok(false),
        (77, Type::F32) => Ok(true),
        _ => Err(Status::NOT_SUPPORTED),
    }
}

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)] // NVIDIA's
pub unsafe extern "C" fn cublasGemmEx(
    handle: u64,
    first_operation: c_int,
    second_operation: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const c_void,
    first: u64,
    first_type: c_int,
    first_stride: c_int,
    second: u64,
    second_type: c_int,
    second_stride: c_int,
    beta: *const c_void,
    out: u64,
    out_type: c_int,
    out_stride: c_int,
    compute: c_int,
    _algorithm: c_int,
) -> c_int {
    call("cublasGemmEx", |machine| {
        let Handle { stream, .. } = handle_of(machine, handle)?;
        let (first_transposed, second_transposed) = (transposed(first_operation)?, transposed(second_operation)?);
        if m < 0 || n < 0 || k < 0 || alpha.is_null() || beta.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        if m == 0 || n == 0 {
            return Ok(());
        }
        let turned = |turn, rows, columns| if turn { (columns, rows) } else { (rows, columns) };
        let described =
            |address, values, (rows, columns), stride| Described { address, values, rows, columns, stride }.matrix();
        let first = described(first, first_type, turned(first_transposed, m, k), first_stride)?;
        let second = described(second, second_type, turned(second_transposed, k, n), second_stride)?;
        let out = described(out, out_type, (m, n), out_stride)?;
        if first.values != second.values || first.values == Type::F32 && out.values != Type::F32 {
            return Err(Status::NOT_SUPPORTED);
        }
        let tf32 = rounds(compute, first.values)?;
        // SAFETY: both are f32 of the host, as the pointer mode and the type of the sums say.
        let (alpha, beta) = unsafe { (alpha.cast::<f32>().read_unaligned(), beta.cast::<f32>().read_unaligned()) };
        let product =
            Product { first: (first, first_transposed), second: (second, second_transposed), out, alpha, beta, tf32 };
        machine.push(stream, Work::Product(product));
        Ok(())
    })
}
