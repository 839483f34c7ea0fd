//! cuRAND: the functions of libcurand.so.10 with which candle opens a device. Nothing of ours draws from it.
#![allow(unsafe_code, non_snake_case)] // C's pointers, and C's names
#![allow(clippy::missing_safety_doc, missing_docs)] // NVIDIA's manual says what each does and may be given

use crate::driver::{current, stream_of};
use crate::machine::{Machine, machine};
use std::ffi::{c_int, c_ulonglong};

/// `CURAND_STATUS_NOT_INITIALIZED`
const NOT_INITIALIZED: c_int = 101;
/// `CURAND_STATUS_INITIALIZATION_FAILED`
const INITIALIZATION_FAILED: c_int = 203;

fn call(name: &'static str, body: impl FnOnce(&mut Machine) -> Result<(), c_int>) -> c_int {
    let mut machine = machine();
    if let Some(code) = machine.calls.enter(name) {
        return code;
    }
    body(&mut machine).map_or_else(|status| status, |()| 0)
}

fn known(machine: &Machine, generator: u64) -> Result<(), c_int> {
    machine.generators.contains(&generator).then_some(()).ok_or(NOT_INITIALIZED)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn curandCreateGenerator(generator: *mut u64, _kind: c_int) -> c_int {
    call("curandCreateGenerator", |machine| {
        current(machine).map_err(|_| INITIALIZATION_FAILED)?;
        let handle = machine.handle();
        machine.generators.insert(handle);
        // SAFETY: the caller's pointer is for a generator.
        unsafe { generator.write(handle) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn curandSetStream(generator: u64, stream: u64) -> c_int {
    call("curandSetStream", |machine| {
        known(machine, generator)?;
        let device = current(machine).map_err(|_| NOT_INITIALIZED)?;
        stream_of(machine, device, stream).map(drop).map_err(|_| NOT_INITIALIZED)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn curandSetPseudoRandomGeneratorSeed(generator: u64, _seed: c_ulonglong) -> c_int {
    call("curandSetPseudoRandomGeneratorSeed", |machine| known(machine, generator))
}

#[unsafe(no_mangle)]
pub extern "C" fn curandDestroyGenerator(generator: u64) -> c_int {
    call("curandDestroyGenerator", |machine| {
        known(machine, generator)?;
        machine.generators.remove(&generator);
        Ok(())
    })
}
