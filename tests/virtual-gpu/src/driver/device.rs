//! Devices: which there are, and what they can.

use super::status::Status;
use super::{call, put};
use crate::machine::Machine;
use std::ffi::{c_char, c_int, c_uint};

/// Multiprocessors, as an H100 SXM has.
const MULTIPROCESSORS: i32 = 132;

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> c_int {
    call("cuInit", |machine| {
        if machine.gpus.is_empty() {
            return Err(Status::NO_DEVICE);
        }
        machine.ready = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    call("cuDriverGetVersion", |machine| unsafe { put(version, machine.settings.driver) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    call("cuDeviceGetCount", |machine| {
        if !machine.ready {
            return Err(Status::NOT_INITIALIZED);
        }
        unsafe { put(count, machine.gpus.len() as c_int) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    call("cuDeviceGet", |machine| {
        number(machine, ordinal)?;
        unsafe { put(device, ordinal) }
    })
}

/// The index of a device.
pub(super) fn number(machine: &Machine, device: c_int) -> Result<usize, Status> {
    if !machine.ready {
        return Err(Status::NOT_INITIALIZED);
    }
    let index = usize::try_from(device).ok().filter(|device| *device < machine.gpus.len());
    index.ok_or(Status::INVALID_DEVICE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> c_int {
    call("cuDeviceGetName", |machine| {
        let text = format!("Virtual GPU {}\0", number(machine, device)?);
        if name.is_null() || (length as usize) < text.len() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the buffer is as long as the caller says, and that is enough.
        unsafe { name.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> c_int {
    call("cuDeviceTotalMem_v2", |machine| {
        let device = number(machine, device)?;
        unsafe { put(bytes, machine.gpus[device].pool.total() as usize) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> c_int {
    call("cuDeviceGetAttribute", |machine| {
        number(machine, device)?;
        let (major, minor) = machine.settings.capability;
        let answer = match attribute {
            1..=3 => 1024,                        // threads in a block, and in its x and y
            4 => 64,                              // in its z
            5 => i32::MAX,                        // blocks in x
            6 | 7 => 65535,                       // in y and z
            8 => crate::modules::SHARED as c_int, // shared memory of a block
            10 => 32,                             // lanes of a warp
            12 | 82 => 65536,                     // registers of a block and of a multiprocessor
            16 => MULTIPROCESSORS,
            31 | 40 | 41 => 1, // concurrent kernels, engines that copy, one address space
            39 => 2048,        // threads of a multiprocessor
            75 => major,
            76 => minor,
            81 => most_shared(machine.settings.capability) as c_int + 1024, // of a multiprocessor
            97 => most_shared(machine.settings.capability) as c_int,        // of a block that asks for it
            115 => c_int::from(machine.settings.pools),
            other => {
                eprintln!("virtual GPU: attribute {other} of a device is not known");
                return Err(Status::INVALID_VALUE);
            }
        };
        unsafe { put(value, answer) }
    })
}

/// Bytes of shared memory that a block may ask for, by compute capability (table of the CUDA C++ Programming Guide).
pub(super) fn most_shared(capability: (i32, i32)) -> u32 {
    let kibibytes = match capability {
        (8, 0 | 7) => 163,
        (8 | 12, _) => 99,
        (9.., _) => 227,
        (7, 0) => 96,
        _ => 64,
    };
    kibibytes << 10
}
