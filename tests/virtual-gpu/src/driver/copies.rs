//! Copies and fills, in a stream.

use super::status::Status;
use super::{call_on_device, stream_of};
use crate::work::Work;
use std::ffi::{c_int, c_uchar, c_void};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: u64) -> c_int {
    call_on_device("cuMemcpyHtoDAsync_v2", |machine, device| {
        let stream = stream_of(machine, device, stream)?;
        if bytes == 0 {
            return Ok(());
        }
        if from.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the caller's range is readable.
        machine.upload(stream, to, unsafe { std::slice::from_raw_parts(from.cast(), bytes) })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: u64) -> c_int {
    call_on_device("cuMemcpyDtoHAsync_v2", |machine, device| {
        let stream = stream_of(machine, device, stream)?;
        if bytes == 0 {
            return Ok(());
        }
        if to.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        machine.download(stream, to as usize, from, bytes as u64)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> c_int {
    call_on_device("cuMemcpyDtoDAsync_v2", |machine, device| {
        let stream = stream_of(machine, device, stream)?;
        if bytes > 0 {
            machine.push(stream, Work::Copy { to, from: (from, bytes as u64), bytes: None });
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    _to_context: u64,
    from: u64,
    _from_context: u64,
    bytes: usize,
    stream: u64,
) -> c_int {
    call_on_device("cuMemcpyPeerAsync", |machine, device| {
        let stream = stream_of(machine, device, stream)?;
        if bytes > 0 {
            machine.push(stream, Work::Copy { to, from: (from, bytes as u64), bytes: None });
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(at: u64, value: c_uchar, bytes: usize, stream: u64) -> c_int {
    call_on_device("cuMemsetD8Async", |machine, device| {
        let stream = stream_of(machine, device, stream)?;
        if bytes > 0 {
            machine.push(stream, Work::Fill { at, value, bytes: bytes as u64 });
        }
        Ok(())
    })
}
