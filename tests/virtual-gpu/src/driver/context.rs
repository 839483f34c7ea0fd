//! Contexts: the primary one of each device, and which is bound to a thread.

use super::device::number;
use super::status::Status;
use super::{CONTEXT, CURRENT, call, call_on_device, device_of, put};
use crate::machine::Machine;
use std::ffi::{CStr, c_char, c_int};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut u64, device: c_int) -> c_int {
    call("cuDevicePrimaryCtxRetain", |machine| {
        let device = number(machine, device)?;
        machine.gpus[device].retained += 1;
        unsafe { put(context, CONTEXT + device as u64) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> c_int {
    call("cuDevicePrimaryCtxRelease_v2", |machine| {
        let device = number(machine, device)?;
        let held = &mut machine.gpus[device].retained;
        *held = held.checked_sub(1).ok_or(Status::INVALID_CONTEXT)?;
        if *held == 0 {
            machine.reset(device);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: u64) -> c_int {
    call("cuCtxSetCurrent", |machine| {
        if context != 0 {
            device_of(machine, context)?;
        }
        CURRENT.set(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut u64) -> c_int {
    call("cuCtxGetCurrent", |machine| {
        if !machine.ready {
            return Err(Status::NOT_INITIALIZED);
        }
        unsafe { put(context, CURRENT.get()) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> c_int {
    call_on_device("cuCtxSynchronize", Machine::finish_device)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: c_int, name: *mut *const c_char) -> c_int {
    unsafe { word(code, name, |words| words.0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: c_int, text: *mut *const c_char) -> c_int {
    unsafe { word(code, text, |words| words.1) }
}

unsafe fn word(
    code: c_int,
    place: *mut *const c_char,
    which: impl Fn((&'static CStr, &'static CStr)) -> &'static CStr,
) -> c_int {
    let words = Status(code).words().map(which);
    let put = unsafe { put(place, words.map_or(std::ptr::null(), CStr::as_ptr)) };
    if words.is_some() && put.is_ok() { 0 } else { Status::INVALID_VALUE.0 }
}
