//! Driver: what NVIDIA's driver says of GPUs, whether it takes our kernels; copies beside them, or not waited for.
#![allow(unsafe_code)] // attributes of the allocator, pinned memory, copies by address

use super::choice::{DeviceChoice, DeviceMemory};
use crate::error::{Error, Result};
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::driver::sys::{self, CUevent_flags, CUmemPool_attribute, CUresult};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DevicePtr, DriverError, PinnedHostSlice, result,
};
use candle_core::{CudaDevice, Storage, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// The oldest generation with bf16 in its matrix units: Ampere.
const OLDEST: (i32, i32) = (8, 0);

fn failed(error: DriverError) -> Error {
    Error::Tensor(candle_core::Error::wrap(error))
}

/// How many GPUs the driver knows; at least one.
pub(super) fn count(asked: DeviceChoice) -> Result<usize> {
    let none = |why: String| {
        Error::Usage(format!(
            "'--device {asked}': no NVIDIA GPU can be used ({why}); see whether 'nvidia-smi' lists one, or use --device cpu"
        ))
    };
    result::init().map_err(|error| none(worded(error)))?;
    match result::device::get_count() {
        Ok(0) => Err(none("the driver lists none".into())),
        Ok(count) => Ok(count as usize),
        Err(error) => Err(none(worded(error))),
    }
}

fn worded(error: DriverError) -> String {
    match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => "no driver or no device".into(),
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver in the kernel and its library are of different versions".into()
        }
        other => format!("the driver says {other:?}"),
    }
}

/// Refuses a GPU that is too old, and a driver that does not take our kernels.
pub(super) fn check(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    let (major, minor) = context.compute_capability().map_err(failed)?;
    if (major, minor) < OLDEST {
        return Err(Error::Usage(format!(
            "'{}' has compute capability {major}.{minor}; 8.0 (Ampere, 2020) or newer is needed: use --device cpu",
            name(device)
        )));
    }
    let entry = super::cuda::KERNELS.lines().find_map(|line| line.trim().strip_prefix(".visible .entry "));
    let any = entry.map_or("", |entry| entry.trim_end_matches('('));
    let Err(error) = device.get_or_load_custom_func(any, "mixpool", super::cuda::KERNELS) else { return Ok(()) };
    let said = error.to_string();
    if ["UNSUPPORTED_PTX", "INVALID_PTX", "NO_BINARY_FOR_GPU"].iter().any(|code| said.contains(code)) {
        let version = super::cuda::KERNELS.lines().find_map(|line| line.strip_prefix(".version ")).unwrap_or("unknown");
        return Err(Error::Usage(format!(
            "the GPU's driver (for CUDA {}) does not take kernels of PTX {version}; update the driver, or build with an older CUDA \
             toolkit",
            driver_version()
        )));
    }
    Err(Error::Tensor(error))
}

/// The newest CUDA that the driver knows, as `12.4`.
fn driver_version() -> String {
    let mut version = 0;
    // SAFETY: the call writes one number.
    let answer = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
    answer.map_or_else(|_| "unknown".into(), |()| format!("{}.{}", version / 1000, version % 1000 / 10))
}

pub(super) fn name(device: &CudaDevice) -> String {
    device.cuda_stream().context().name().unwrap_or_else(|_| "NVIDIA GPU".into())
}

/// What is free, with what the allocator keeps of memory that was freed.
pub(super) fn memory(device: &CudaDevice) -> Result<DeviceMemory> {
    let context = device.cuda_stream().context().clone();
    let (free, total) = context.mem_get_info().map_err(failed)?;
    if !context.has_async_alloc() {
        return Ok(DeviceMemory { free: free as u64, total: total as u64 });
    }
    let attribute = |which| -> Result<u64> {
        let mut bytes = 0u64;
        // SAFETY: both attributes are 64-bit numbers, which the call writes.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device()).map_err(failed)?;
            sys::cuMemPoolGetAttribute(pool, which, (&raw mut bytes).cast()).result().map_err(failed)?;
        }
        Ok(bytes)
    };
    let reserved = attribute(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = attribute(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Ok(DeviceMemory { free: free as u64 + reserved.saturating_sub(used), total: total as u64 })
}

/// Two pinned buffers that are copied to a device in turns, in a queue of their own, while kernels run in the device's.
pub(super) struct Copier {
    compute: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    pinned: [PinnedHostSlice<u8>; 2],
    copied: [CudaEvent; 2],
    used: [Option<CudaEvent>; 2],
    context: Arc<CudaContext>,
}

impl Copier {
    /// Two buffers of so many bytes each.
    pub(super) fn new(device: &CudaDevice, bytes: usize) -> Result<Self> {
        let compute = device.cuda_stream();
        let context = compute.context().clone();
        let copies = context.new_stream().map_err(failed)?;
        // SAFETY: every byte is written before it is copied. Plain pinned memory, as several threads write it.
        let buffer = || unsafe { context.alloc_pinned_with_flags::<u8>(bytes, 0) }.map_err(failed);
        let event = || context.new_event(None).map_err(failed);
        let (pinned, copied) = ([buffer()?, buffer()?], [event()?, event()?]);
        Ok(Self { compute, copies, pinned, copied, used: [None, None], context })
    }

    /// Lets `fill` write buffer `slot` and begins to copy its first `length` bytes to `address`, memory that no kernel in the
    /// queue before the last [`Copier::release`] of this slot still reads. What is queued on the device from now on waits for it.
    pub(super) fn send(
        &mut self,
        slot: usize,
        length: usize,
        address: u64,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        self.copied[slot].synchronize().map_err(failed)?; // the buffer's last copy
        let buffer = &mut self.pinned[slot].as_mut_slice().map_err(failed)?[..length];
        fill(buffer);
        self.context.bind_to_thread().map_err(failed)?;
        let used = match self.used[slot].take() {
            Some(used) => used,
            None => self.compute.record_event(None).map_err(failed)?, // the target's allocation
        };
        self.copies.wait(&used).map_err(failed)?; // the kernels that read the last piece
        // SAFETY: the target is as long as the caller says, and the buffer is not written before `copied` has passed.
        unsafe { result::memcpy_htod_async(address, buffer, self.copies.cu_stream()) }.map_err(failed)?;
        self.copied[slot].record(&self.copies).map_err(failed)?;
        self.compute.wait(&self.copied[slot]).map_err(failed)
    }

    /// Says that whatever reads the piece of `slot` is in the queue.
    pub(super) fn release(&mut self, slot: usize) -> Result<()> {
        self.used[slot] = Some(self.compute.record_event(None).map_err(failed)?);
        Ok(())
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        let _ = self.copies.synchronize(); // before the buffers go
    }
}

/// Pinned memory that values are copied back to, used again and again: making it takes long.
static PINNED: Mutex<Vec<Pinned>> = Mutex::new(Vec::new());
/// Values of the shortest of them.
const SHORTEST: usize = 1 << 14;

struct Pinned {
    values: PinnedHostSlice<f64>,
    copied: CudaEvent, // the last copy to it; the slice's own event stands still while the context tracks none
}

/// Values that are copied back when the device gets there.
pub(super) struct ReadBack {
    pinned: Option<Pinned>, // none once it was given back
    length: usize,
}

impl ReadBack {
    /// Queues the copy of a vector of f64.
    pub(super) fn of(vector: &Tensor) -> Result<Self> {
        let (storage, layout) = vector.storage_and_layout();
        let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            return Err(super::super::unsupported("a contiguous vector on a GPU"));
        };
        let CudaStorageSlice::F64(values) = &storage.slice else { return Err(super::super::unsupported("f64")) };
        let stream = storage.device.cuda_stream();
        let length = end - start;
        let mut pinned = Pinned::of(stream.context(), length)?;
        stream.wait(&pinned.copied).map_err(failed)?; // a copy that nobody took, in another queue
        let target = &mut pinned.values.as_mut_slice().map_err(failed)?[..length];
        let source = values.slice(start..end);
        // SAFETY: both are as long as each other. The memory is kept, and read only when `copied` has passed.
        unsafe { result::memcpy_dtoh_async(target, source.device_ptr(&stream).0, stream.cu_stream()) }
            .map_err(failed)?;
        pinned.copied.record(&stream).map_err(failed)?;
        Ok(Self { pinned: Some(pinned), length })
    }

    /// Waits for the values and adds them at the end of others.
    pub(super) fn add_to(self, values: &mut Vec<f64>) -> Result<()> {
        if let Some(Pinned { values: buffer, copied }) = &self.pinned {
            copied.synchronize().map_err(failed)?;
            values.extend(&buffer.as_slice().map_err(failed)?[..self.length]);
        }
        Ok(())
    }
}

impl Drop for ReadBack {
    fn drop(&mut self) {
        PINNED.lock().unwrap_or_else(PoisonError::into_inner).extend(self.pinned.take());
    }
}

impl Pinned {
    /// Memory for at least so many values.
    fn of(context: &Arc<CudaContext>, length: usize) -> Result<Self> {
        let mut free = PINNED.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |pinned: &Self| pinned.values.len() >= length && pinned.values.context() == context;
        if let Some(index) = free.iter().position(fits) {
            return Ok(free.swap_remove(index));
        }
        let length = length.next_power_of_two().max(SHORTEST);
        // SAFETY: only what was copied is read. Plain pinned memory, as it is read.
        let values = unsafe { context.alloc_pinned_with_flags(length, 0) }.map_err(failed)?;
        Ok(Self { values, copied: context.new_event(None).map_err(failed)? })
    }
}

/// A place in a device's queue whose time is taken.
pub(super) struct Event(CudaEvent);

impl Event {
    /// At the end of the queue.
    pub(super) fn record(device: &CudaDevice) -> Result<Self> {
        device.cuda_stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map(Self).map_err(failed)
    }

    /// The seconds since an earlier one.
    pub(super) fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        Ok(f64::from(earlier.0.elapsed_ms(&self.0).map_err(failed)?) / 1000.0)
    }
}
