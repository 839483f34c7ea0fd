//! Allocator: mimalloc, told to keep what is freed.
//!
//! Kernels allocate and free large blocks all the time. Handed back to the system, each would come back as zeroed pages: a
//! quarter of a training step of the largest preset.
#![allow(unsafe_code)] // one call, which sets a number

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h: milliseconds until freed memory goes back to the system; −1 for never.
const PURGE_DELAY: i32 = 15;

/// Keeps freed memory in the process.
pub(crate) fn keep_freed_memory() {
    // SAFETY: sets one option of the allocator; called before there are other threads.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}
