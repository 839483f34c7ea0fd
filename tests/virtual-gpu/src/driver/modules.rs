//! Modules, their functions, and launches.

use super::device::most_shared;
use super::status::Status;
use super::{call_on_device, put, stream_of};
use crate::modules::Function;
use crate::ptx::Entry;
use crate::work::{Kernel, Work};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, PoisonError};

/// Most threads of a block.
const MOST_THREADS: u64 = 1024;
/// The attribute of a function that says how much dynamic shared memory it may have.
const MOST_DYNAMIC_SHARED: c_int = 8;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut u64, image: *const c_void) -> c_int {
    call_on_device("cuModuleLoadData", |machine, device| {
        if image.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: an image is machine code, which this library does not know, or text that ends with a zero.
        let text = unsafe { CStr::from_ptr(image.cast::<c_char>()) }.to_str().map_err(|_| Status::INVALID_IMAGE)?;
        let handle = machine.handle();
        let settings = &machine.settings;
        machine.modules.load(handle, device, text, settings.capability, settings.driver)?;
        unsafe { put(module, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: u64) -> c_int {
    call_on_device("cuModuleUnload", |machine, _| {
        machine.modules.unload(module).then_some(()).ok_or(Status::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char) -> c_int {
    call_on_device("cuModuleGetFunction", |machine, _| {
        // SAFETY: the caller's text ends with a zero.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| Status::NOT_FOUND)?;
        let handle = machine.handle();
        machine.modules.find(handle, module, name)?;
        unsafe { put(function, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: u64, attribute: c_int, value: c_int) -> c_int {
    call_on_device("cuFuncSetAttribute", |machine, _| {
        let function = machine.modules.function(function).ok_or(Status::INVALID_HANDLE)?;
        let most = most_shared(machine.settings.capability).saturating_sub(function.entry().static_shared);
        let asked = u32::try_from(value).ok().filter(|asked| *asked <= most);
        let (MOST_DYNAMIC_SHARED, Some(asked)) = (attribute, asked) else { return Err(Status::INVALID_VALUE) };
        *function.most_shared.lock().unwrap_or_else(PoisonError::into_inner) = asked;
        Ok(())
    })
}

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)] // NVIDIA's
pub unsafe extern "C" fn cuLaunchKernel(
    function: u64,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic_shared: c_uint,
    stream: u64,
    arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> c_int {
    call_on_device("cuLaunchKernel", |machine, device| {
        let function = machine.modules.function(function).ok_or(Status::INVALID_HANDLE)?;
        let stream = stream_of(machine, device, stream)?;
        if function.device != device || !extra.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        check(&function, grid, block, dynamic_shared)?;
        // SAFETY: the caller gives as many arguments as the kernel has, each as long as it is there.
        let parameters = unsafe { parameters(function.entry(), arguments) }?;
        let seed = machine.seed();
        machine.push(stream, Work::Kernel(Kernel { function, grid, block, dynamic_shared, parameters, seed }));
        Ok(())
    })
}

/// Whether a device would begin such a launch at all.
fn check(function: &Arc<Function>, grid: [u32; 3], block: [u32; 3], dynamic_shared: u32) -> Result<(), Status> {
    let entry = function.entry();
    let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
    let none = grid.contains(&0) || block.contains(&0);
    let many = grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 || block[2] > 64;
    if none || many || threads > MOST_THREADS {
        eprintln!("virtual GPU: {}: no device runs {grid:?} blocks of {block:?} threads", entry.name);
        return Err(Status::INVALID_VALUE);
    }
    if entry.most_threads.is_some_and(|most| threads > u64::from(most)) {
        eprintln!("virtual GPU: {}: {threads} threads, and it was compiled for {:?}", entry.name, entry.most_threads);
        return Err(Status::INVALID_VALUE);
    }
    let most = *function.most_shared.lock().unwrap_or_else(PoisonError::into_inner);
    let allowed = most.max(crate::modules::SHARED.saturating_sub(entry.static_shared));
    if dynamic_shared > allowed {
        eprintln!("virtual GPU: {}: {dynamic_shared} bytes of shared memory, and {allowed} are allowed", entry.name);
        return Err(Status::INVALID_VALUE);
    }
    Ok(())
}

/// Arguments as the kernel finds them.
unsafe fn parameters(entry: &Entry, arguments: *mut *mut c_void) -> Result<Vec<u8>, Status> {
    let length = entry.parameters.iter().map(|parameter| parameter.offset + parameter.size).max().unwrap_or(0);
    let mut bytes = vec![0; length];
    for (index, parameter) in entry.parameters.iter().enumerate() {
        if arguments.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the caller's promise of `cuLaunchKernel`.
        let argument = unsafe { arguments.add(index).read() };
        if argument.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: as above.
        let value = unsafe { std::slice::from_raw_parts(argument.cast::<u8>(), parameter.size) };
        bytes[parameter.offset..parameter.offset + parameter.size].copy_from_slice(value);
    }
    Ok(bytes)
}
