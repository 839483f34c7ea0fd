//! Reserved ranges: zeroed memory that costs nothing until it is touched.
#![allow(unsafe_code)] // the system's own call for address space without memory behind it

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A number that any bits, and so zeroed memory, are a value of.
pub(super) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u64 {}

/// `len` zeros of type `T`, of which only touched pages take memory.
pub(super) struct Reserved<T: Plain> {
    start: NonNull<T>,
    len: usize,
    owned: PhantomData<T>,
}

// SAFETY: the range is owned as a Vec owns its elements.
unsafe impl<T: Plain + Send> Send for Reserved<T> {}
// SAFETY: as above; shared references only read.
unsafe impl<T: Plain + Sync> Sync for Reserved<T> {}

impl<T: Plain> Reserved<T> {
    /// Reserves address space for `len` values; panics where the system has none left.
    pub(super) fn new(len: usize) -> Self {
        let (readable, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping at a place of the system's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len * size_of::<T>(), readable, private | libc::MAP_NORESERVE, -1, 0)
        };
        assert!(start != libc::MAP_FAILED, "no address space for {len} values: {}", std::io::Error::last_os_error());
        Self { start: NonNull::new(start.cast()).expect("mappings are not at 0"), len, owned: PhantomData }
    }
}

impl<T: Plain> Deref for Reserved<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values are mapped from `start` on, zeroed by the system, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Reserved<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Reserved<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length and nobody borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}
