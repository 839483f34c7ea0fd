//! Driver: the functions of libcuda.so.1 that programs of ours call, under the names and with the arguments of `cuda.h`.
//!
//! A function that is not here is missing from the library, and its caller says so.
#![allow(unsafe_code, non_snake_case)] // C's pointers, and C's names
#![allow(clippy::missing_safety_doc, missing_docs)] // NVIDIA's manual says what each does and may be given

pub mod context;
pub mod copies;
pub mod device;
pub mod memory;
pub mod modules;
pub mod status;
pub mod streams;

use crate::machine::{Machine, machine};
use status::Status;
use std::cell::Cell;

/// What a primary context is called, before its device's number.
const CONTEXT: u64 = 0x4000_0000_0000;

thread_local! {
    /// The context bound to this thread; 0 is none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// Runs a function of the driver: counts it, lets it fail if it is to, and turns its result into a code.
fn call(name: &'static str, body: impl FnOnce(&mut Machine) -> Result<(), Status>) -> i32 {
    let mut machine = machine();
    if let Some(code) = machine.calls.enter(name) {
        return code;
    }
    body(&mut machine).map_or_else(|status| status.0, |()| 0)
}

/// As [`call`], of a function that works on the device whose context is bound to the calling thread.
fn call_on_device(name: &'static str, body: impl FnOnce(&mut Machine, usize) -> Result<(), Status>) -> i32 {
    call(name, |machine| {
        let device = current(machine)?;
        body(machine, device)
    })
}

/// The device whose context is bound to this thread and in order.
pub fn current(machine: &Machine) -> Result<usize, Status> {
    let device = device_of(machine, CURRENT.get())?;
    machine.gpus[device].fault.map_or(Ok(device), Err)
}

/// The device of a context.
fn device_of(machine: &Machine, context: u64) -> Result<usize, Status> {
    if !machine.ready {
        return Err(Status::NOT_INITIALIZED);
    }
    let device = context.checked_sub(CONTEXT).map(|device| device as usize);
    let held = |device: &usize| machine.gpus.get(*device).is_some_and(|gpu| gpu.retained > 0);
    device.filter(held).ok_or(Status::INVALID_CONTEXT)
}

/// The stream that a handle means in the context of a device, which must be its own: 0 and 1 are the default one.
pub fn stream_of(machine: &mut Machine, device: usize, handle: u64) -> Result<u64, Status> {
    const DEFAULT: u64 = 0x10;
    const OF_THREADS: u64 = 2;
    let handle = match handle {
        0 | 1 => {
            let stream = DEFAULT + device as u64;
            if machine.queues.device(stream).is_none() {
                machine.queues.open(stream, device);
            }
            stream
        }
        OF_THREADS => {
            eprintln!("virtual GPU: the default streams of threads are not modelled");
            return Err(Status::NOT_SUPPORTED);
        }
        handle => handle,
    };
    match machine.queues.device(handle) {
        Some(owner) if owner == device => Ok(handle),
        Some(_) => Err(Status::INVALID_CONTEXT),
        None => Err(Status::INVALID_HANDLE),
    }
}

/// Writes a result where the caller wants it.
unsafe fn put<T>(place: *mut T, value: T) -> Result<(), Status> {
    if place.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: the caller's pointer is for a `T`, by the function's declaration in cuda.h.
    unsafe { place.write(value) };
    Ok(())
}
