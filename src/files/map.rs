//! Mapped file: bytes of a published file, mapped or read; one that is cut short meanwhile ends the program in one line.
//!
//! Reading a mapped page that lies beyond the end of its file raises SIGBUS. The handler finds the file by the address in a
//! table and ends the process with the exit code of damage: the read cannot be undone, and what it was for is worth nothing.
#![allow(unsafe_code)] // maps a file; a signal handler that looks up an address, writes a line and ends the process

use super::{parent, shared_kind};
use crate::error::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::io::Read;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// The content of a file that does not change.
pub struct Mapped(Content);

enum Content {
    Map { map: Mmap, slot: Option<usize> },
    Read(Vec<u8>),
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Content::Map { map, .. } => map,
            Content::Read(bytes) => bytes,
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Content::Map { slot: Some(slot), .. } = self.0 {
            TABLE[slot].start.store(0, Ordering::Release);
        }
    }
}

/// Whether files are read where they could be mapped.
static READ: AtomicBool = AtomicBool::new(false);

/// Reads all files from now on and maps none: for file systems on which a file may change under its readers.
pub fn read_instead_of_mapping() {
    READ.store(true, Ordering::Relaxed);
}

/// Maps a file for reading; on a file system that hosts share, or where it was asked for, reads it.
///
/// Only files that are published once and never changed afterwards may be mapped (pool objects and token files).
///
/// # Errors
/// [`Error::Io`] when it cannot be opened, [`Error::Damaged`] when it is empty.
pub fn map(path: &Path) -> Result<Mapped> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    if length == 0 {
        return Err(Error::damaged(path, "the file is empty"));
    }
    if READ.load(Ordering::Relaxed) || shared_kind(parent(path)).is_some() {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length as usize).map_err(|_| {
            Error::Usage(format!(
                "no memory to read the {length} bytes of '{}' instead of mapping them",
                path.display()
            ))
        })?;
        file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        return Ok(Mapped(Content::Read(bytes)));
    }
    // SAFETY: published files are immutable: they are replaced by rename, never written or truncated in place. One that
    // someone else truncates ends the program (see `watch_maps`).
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
    let slot = note(&map, path);
    Ok(Mapped(Content::Map { map, slot }))
}

/// Maps that the handler can name; those beyond are named by their address only.
const SLOTS: usize = 1 << 12;

/// One map: its addresses and the name of its file. `start` is 0 in a slot that is free; names are never freed.
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    name: AtomicPtr<u8>,
    length: AtomicUsize,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        name: AtomicPtr::new(std::ptr::null_mut()),
        length: AtomicUsize::new(0),
    }
}; SLOTS];

/// Enters a map into the table; none when it is full.
fn note(map: &Mmap, path: &Path) -> Option<usize> {
    let index = TABLE.iter().position(|slot| {
        if slot.start.load(Ordering::Acquire) != 0 || slot.taken.swap(true, Ordering::AcqRel) {
            return false;
        }
        let is_free = slot.start.load(Ordering::Acquire) == 0; // also now that no other thread can take it
        slot.taken.store(is_free, Ordering::Release);
        is_free
    })?;
    let slot = &TABLE[index];
    let name: &'static mut [u8] = Box::leak(path.as_os_str().as_bytes().to_vec().into_boxed_slice());
    slot.end.store(map.as_ptr() as usize + map.len(), Ordering::Relaxed);
    slot.length.store(name.len(), Ordering::Relaxed);
    slot.name.store(name.as_mut_ptr(), Ordering::Relaxed);
    slot.start.store(map.as_ptr() as usize, Ordering::Release);
    slot.taken.store(false, Ordering::Release);
    Some(index)
}

/// Lets a mapped file that is cut short end the program with one line on stderr and the exit code of damage.
///
/// # Errors
/// [`Error::Io`] when the system refuses the handler.
pub fn watch_maps() -> Result<()> {
    let handler = |info: &libc::siginfo_t| {
        // SAFETY: for SIGBUS the kernel fills in the address.
        let address = unsafe { info.si_addr() } as usize;
        let holds = |slot: &&Slot| {
            (slot.start.load(Ordering::Acquire).max(1)..slot.end.load(Ordering::Relaxed)).contains(&address)
        };
        let Some(slot) = TABLE.iter().find(holds) else {
            let _ = signal_hook::low_level::emulate_default_handler(libc::SIGBUS);
            return;
        };
        // SAFETY: a noted name is `length` bytes that are never freed.
        let name = unsafe {
            std::slice::from_raw_parts(slot.name.load(Ordering::Relaxed), slot.length.load(Ordering::Relaxed))
        };
        // Allowed in a handler: no allocation, no lock, one system call for a line of ordinary length.
        let mut line = [0u8; 4096];
        let mut length = 0;
        for part in [b"mixpool: '".as_slice(), name, TOLD] {
            let room = part.len().min(line.len() - length);
            line[length..length + room].copy_from_slice(&part[..room]);
            length += room;
        }
        // SAFETY: the bytes are initialised and outlive the call.
        unsafe { libc::write(2, line.as_ptr().cast(), length) };
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(12) };
    };
    // SAFETY: the handler above does only what a signal handler may.
    unsafe { signal_hook_registry::register_sigaction(libc::SIGBUS, handler) }
        .map(|_| ())
        .map_err(Error::io("watch", "signals"))
}

const TOLD: &[u8] =
    b"' is damaged: it was cut short, or could not be read, while it was in use; run 'mixpool verify --deep'\n";
