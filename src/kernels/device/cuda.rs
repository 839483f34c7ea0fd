//! CUDA: our kernels on NVIDIA GPUs by the driver, matrix products by cuBLAS.
#![allow(unsafe_code)] // launches, whose arguments nobody can check; memory that kernels will write; a setting of the allocator

use super::gemm::Product;
use super::{Argument, Grid};
use crate::error::{Error, Result};
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaSlice, DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::driver::{result as driver, sys as driver_sys};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Shape, Storage, Tensor};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// All kernels, compiled by build.rs; the driver compiles them for the GPU at hand and keeps the result on disk.
pub(super) static KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
/// Bytes of shared memory that a block has without asking for more.
const SHARED: u32 = 48 << 10;
/// Values of one piece of an upload: 64 KiB.
const PIECE: usize = 1 << 14;
/// Kernels that were looked up, by context and name.
static FUNCTIONS: Mutex<BTreeMap<usize, BTreeMap<String, CudaFunction>>> = Mutex::new(BTreeMap::new());

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Tensor(candle_core::Error::wrap(error))
}

/// Opens a GPU with one queue of its own, whose freed memory stays with this process.
pub(super) fn open(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    if let Device::Cuda(cuda) = &device {
        let context = cuda.cuda_stream().context().clone();
        let keep = u64::MAX; // bytes kept of what was freed
        // SAFETY: everything runs in the device's one queue, so order needs no events.
        unsafe { cuda.disable_event_tracking() };
        std::mem::forget(cuda.cublas_handle()); // its end panics where the GPU has failed
        if !context.has_async_alloc() {
            return Ok(device); // no pools on some shared GPUs: every allocation waits
        }
        // SAFETY: the pool belongs to a device that was just opened, and the attribute is a 64-bit number that the call reads.
        unsafe {
            let pool = driver::device::get_default_mem_pool(context.cu_device()).map_err(failed)?;
            let threshold = driver_sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            driver_sys::cuMemPoolSetAttribute(pool, threshold, std::ptr::from_ref(&keep).cast_mut().cast())
                .result()
                .map_err(failed)?;
        }
    }
    Ok(device)
}

/// The address of a storage.
pub(super) fn address(storage: &CudaStorage) -> Result<u64> {
    fn of<T>(slice: &CudaSlice<T>, device: &CudaDevice) -> u64 {
        slice.device_ptr(&device.cuda_stream()).0
    }
    let device = &storage.device;
    Ok(match &storage.slice {
        CudaStorageSlice::F32(slice) => of(slice, device),
        CudaStorageSlice::F64(slice) => of(slice, device),
        CudaStorageSlice::BF16(slice) => of(slice, device),
        CudaStorageSlice::F16(slice) => of(slice, device),
        CudaStorageSlice::U32(slice) => of(slice, device),
        CudaStorageSlice::I64(slice) => of(slice, device),
        _ => return Err(super::super::unsupported("floats or indices")),
    })
}

/// Memory that is not set.
pub(super) fn empty(shape: Shape, dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: the caller launches a kernel that writes all of it before anything reads it; the emulation checks that.
    Ok(unsafe { Tensor::empty(shape, dtype, device) }?)
}

/// Indices on the device, in pieces that the driver takes along with its commands: larger copies from memory that is not pinned
/// wait until the queue is empty.
pub(super) fn upload(values: &[u32], device: &CudaDevice) -> Result<Tensor> {
    // SAFETY: all of it is written by the copies that follow, before anything reads it.
    let mut slice = unsafe { device.alloc::<u32>(values.len()) }?;
    for (index, piece) in values.chunks(PIECE).enumerate() {
        let start = index * PIECE;
        device.memcpy_htod(piece, &mut slice.slice_mut(start..start + piece.len()))?;
    }
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Ok(Tensor::from_storage(storage, values.len(), BackpropOp::none(), false))
}

fn function(device: &CudaDevice, kernel: &str) -> Result<CudaFunction> {
    let context = device.cuda_stream().context().cu_ctx() as usize;
    let mut known = FUNCTIONS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let known = known.entry(context).or_default();
    if let Some(function) = known.get(kernel) {
        return Ok(function.clone());
    }
    let function = device.get_or_load_custom_func(kernel, "mixpool", KERNELS)?.into_cuda_function();
    known.insert(kernel.to_owned(), function.clone());
    Ok(function)
}

pub(super) fn launch(device: &CudaDevice, kernel: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
    let function = function(device, kernel)?;
    if grid.shared > SHARED {
        device.cuda_stream().context().bind_to_thread().map_err(failed)?; // which setting an attribute does not
        let attribute = driver_sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, grid.shared.cast_signed()).map_err(failed)?;
    }
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    for argument in arguments {
        match argument {
            Argument::Address(address) => builder.arg(address),
            Argument::Int(number) => builder.arg(number),
            Argument::Long(number) => builder.arg(number),
            Argument::Float(number) => builder.arg(number),
            Argument::Double(number) => builder.arg(number),
        };
    }
    let [x, y, z] = grid.blocks;
    let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (grid.threads, 1, 1), shared_mem_bytes: grid.shared };
    // SAFETY: the operators give each kernel the types it declares (the emulation refuses others) and addresses of tensors
    // as long as it reads and writes; memory freed after this call is reused in queue order only.
    unsafe { builder.launch(config) }.map_err(failed)?;
    Ok(())
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        _ => Err(super::super::unsupported("f32 or bf16")),
    }
}

/// One product by cuBLAS.
pub(super) fn gemm(device: &CudaDevice, product: &Product<'_>) -> Result<()> {
    let Product { first, second, out, rows, columns, inner, accumulate, tf32 } = *product;
    let pointer = |argument: Argument| match argument {
        Argument::Address(address) => address,
        _ => 0,
    };
    let first_at = pointer(super::read(first.tensor)?);
    let (second_at, out_at) = (pointer(super::read(second.tensor)?), pointer(super::write(out)?));
    let operation = |transposed: bool| {
        if transposed { sys::cublasOperation_t::CUBLAS_OP_T } else { sys::cublasOperation_t::CUBLAS_OP_N }
    };
    let length = |n: usize| i32::try_from(n).map_err(|_| Error::Usage(format!("{n} is too large for a product")));
    let (alpha, beta) = (1f32, if accumulate { 1f32 } else { 0f32 });
    let compute = if tf32 && first.tensor.dtype() == DType::F32 {
        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
    } else {
        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F
    };
    device.cuda_stream().context().bind_to_thread().map_err(failed)?;
    // SAFETY: shapes were checked against the tensors, whose memory lives until the product has run (it is freed in queue
    // order); both factors of the sum are read before the call returns.
    unsafe {
        result::gemm_ex(
            *device.cublas_handle().handle(),
            operation(first.transposed),
            operation(second.transposed),
            length(rows)?,
            length(columns)?,
            length(inner)?,
            std::ptr::from_ref(&alpha).cast(),
            first_at as *const _,
            data_type(first.tensor.dtype())?,
            length(first.stride)?,
            second_at as *const _,
            data_type(second.tensor.dtype())?,
            length(second.stride)?,
            std::ptr::from_ref(&beta).cast(),
            out_at as *mut _,
            data_type(out.dtype())?,
            length(rows)?,
            compute,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(failed)
}
