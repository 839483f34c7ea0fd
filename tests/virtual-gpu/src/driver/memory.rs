//! Memory: of devices, from their pools and directly, and pinned memory of the host.

use super::device::number;
use super::status::Status;
use super::{call, call_on_device, put, stream_of};
use crate::machine::Machine;
use crate::work::Work;
use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{c_int, c_uint, c_void};

/// What a device's pool is called, before the device's number.
const POOL: u64 = 0x3000_0000_0000;
/// Pinned memory starts at a page.
const PAGE: usize = 4096;
/// What pinned memory holds before it is written.
const UNSET: u8 = 0xA5;
/// The attribute of a pool that says how much it keeps.
const RELEASE_THRESHOLD: c_int = 4;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: u64) -> c_int {
    call_on_device("cuMemAllocAsync", |machine, device| {
        stream_of(machine, device, stream)?;
        if !machine.settings.pools {
            return Err(Status::NOT_SUPPORTED);
        }
        let given = if bytes == 0 { 0 } else { machine.allocate(device, bytes as u64, false)? };
        unsafe { put(address, given) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> c_int {
    call_on_device("cuMemAlloc_v2", |machine, device| {
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        let given = machine.allocate(device, bytes as u64, true)?;
        unsafe { put(address, given) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, stream: u64) -> c_int {
    call_on_device("cuMemFreeAsync", |machine, device| {
        let stream = stream_of(machine, device, stream)?;
        if address != 0 {
            machine.release(address)?;
            machine.push(stream, Work::Free(address));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    call_on_device("cuMemFree_v2", |machine, device| {
        if address == 0 {
            return Ok(());
        }
        machine.finish_device(device)?;
        machine.release(address)?;
        let stream = stream_of(machine, device, 0)?;
        machine.push(stream, Work::Free(address));
        machine.finish(stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    call_on_device("cuMemGetInfo_v2", |machine, device| {
        let pool = &machine.gpus[device].pool;
        unsafe {
            put(free, pool.free() as usize)?;
            put(total, pool.total() as usize)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, _flags: c_uint) -> c_int {
    call_on_device("cuMemHostAlloc", |machine, _| {
        let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| Status::INVALID_VALUE)?;
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the layout's size is not 0.
        let memory = unsafe { alloc(layout) };
        if memory.is_null() {
            return Err(Status::OUT_OF_MEMORY);
        }
        // SAFETY: so many bytes were given.
        unsafe { memory.write_bytes(UNSET, bytes) };
        machine.pin(memory as usize, bytes);
        unsafe { put(address, memory.cast()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(address: *mut c_void) -> c_int {
    call_on_device("cuMemFreeHost", |machine, _| {
        let bytes = machine.unpin(address as usize).ok_or(Status::INVALID_VALUE)?;
        let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| Status::INVALID_VALUE)?;
        // SAFETY: the memory was given by `cuMemHostAlloc` with this layout, and is given back once.
        unsafe { dealloc(address.cast(), layout) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut u64, device: c_int) -> c_int {
    call("cuDeviceGetDefaultMemPool", |machine| {
        let device = number(machine, device)?;
        if !machine.settings.pools {
            return Err(Status::NOT_SUPPORTED);
        }
        unsafe { put(pool, POOL + device as u64) }
    })
}

fn device_of_pool(machine: &Machine, pool: u64) -> Result<usize, Status> {
    let device = pool.checked_sub(POOL).map(|device| device as usize);
    device.filter(|device| *device < machine.gpus.len()).ok_or(Status::INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolGetAttribute(pool: u64, attribute: c_int, value: *mut c_void) -> c_int {
    call("cuMemPoolGetAttribute", |machine| {
        let device = device_of_pool(machine, pool)?;
        let answer = machine.gpus[device].pool.attribute(attribute).ok_or(Status::INVALID_VALUE)?;
        unsafe { put(value.cast(), answer) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolSetAttribute(pool: u64, attribute: c_int, value: *mut c_void) -> c_int {
    call("cuMemPoolSetAttribute", |machine| {
        let device = device_of_pool(machine, pool)?;
        if attribute != RELEASE_THRESHOLD || value.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: this attribute's value is a 64-bit number.
        machine.gpus[device].pool.threshold = unsafe { value.cast::<u64>().read_unaligned() };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolTrimTo(pool: u64, keep: usize) -> c_int {
    call("cuMemPoolTrimTo", |machine| {
        let device = device_of_pool(machine, pool)?;
        machine.gpus[device].pool.trim(keep as u64);
        Ok(())
    })
}
