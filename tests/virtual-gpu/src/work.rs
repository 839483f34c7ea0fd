//! Work: what lies in a stream, with all that it needs when it runs.

use crate::Fault;
use crate::memory::{Memory, Unwritten};
use crate::modules::Function;
use crate::product::Product;
use crate::ptx::Launch;
use crate::statistics::Statistics;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

/// Something queued.
#[derive(Debug)]
pub enum Work {
    /// A kernel.
    Kernel(Kernel),
    /// Bytes to a device.
    Upload {
        /// The device's address.
        to: u64,
        /// The bytes.
        from: Source,
    },
    /// Bytes to pinned memory of the host.
    Download {
        /// The host's address.
        to: usize,
        /// The device's address.
        from: u64,
        /// How many.
        bytes: u64,
    },
    /// Bytes from one place on devices to another.
    Copy {
        /// The address copied to.
        to: u64,
        /// The address copied from, and how many.
        from: (u64, u64),
        /// The bytes, where they come from another device.
        bytes: Option<Vec<u8>>,
    },
    /// One byte over a range.
    Fill {
        /// The first address.
        at: u64,
        /// The byte.
        value: u8,
        /// How many.
        bytes: u64,
    },
    /// Memory given back.
    Free(u64),
    /// A matrix product.
    Product(Product),
    /// The time taken for an event.
    Stamp(u64),
}

/// A kernel with its arguments.
#[derive(Debug)]
pub struct Kernel {
    /// Its code.
    pub function: Arc<Function>,
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of shared memory beside what the kernel declares.
    pub dynamic_shared: u32,
    /// Arguments, where the kernel expects them.
    pub parameters: Vec<u8>,
    /// In which order blocks and warps run.
    pub seed: u64,
}

/// Where an upload's bytes are until it runs.
#[derive(Debug)]
pub enum Source {
    /// Taken along when the copy was queued.
    Staged(Vec<u8>),
    /// In pinned memory, which must stay as it was.
    Pinned {
        /// The host's address.
        address: usize,
        /// How many bytes.
        bytes: usize,
        /// Of the bytes when the copy was queued.
        hash: u64,
    },
}

impl Source {
    /// Pinned memory as it is now.
    ///
    /// # Safety
    /// The range must be readable.
    pub unsafe fn pinned(address: usize, bytes: usize) -> Self {
        // SAFETY: the caller's.
        let hash = hash(unsafe { host(address, bytes) });
        Self::Pinned { address, bytes, hash }
    }
}

/// # Safety
/// The range must be readable and stay so.
unsafe fn host<'a>(address: usize, bytes: usize) -> &'a [u8] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(address as *const u8, bytes) }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

impl Work {
    /// The host's memory that this will read or write.
    pub fn host_range(&self) -> Option<(usize, usize)> {
        match self {
            Self::Upload { from: Source::Pinned { address, bytes, .. }, .. } => Some((*address, *bytes)),
            Self::Download { to, bytes, .. } => Some((*to, *bytes as usize)),
            _ => None,
        }
    }

    /// Does it, in the memory of its device.
    pub fn run(self, memory: &mut Memory, statistics: &mut Statistics) -> Result<(), Fault> {
        match self {
            Self::Kernel(kernel) => kernel.run(memory, statistics),
            Self::Upload { to, from: Source::Staged(bytes) } | Self::Copy { to, bytes: Some(bytes), .. } => {
                memory.write(to, &bytes)
            }
            Self::Upload { to, from: Source::Pinned { address, bytes, hash: before } } => {
                // SAFETY: pinned memory is not given back while queued work refers to it: `Machine::unpin` looks.
                let bytes = unsafe { host(address, bytes) };
                if hash(bytes) != before {
                    let what = format!("the pinned buffer at {address:#x} was changed before its copy to {to:#x} ran");
                    return Err(Fault::new(what));
                }
                memory.write(to, bytes)
            }
            Self::Download { to, from, bytes } => {
                let bytes = memory.read(from, bytes, Unwritten::Refused)?;
                // SAFETY: the range was checked to be pinned, and stays so while this is queued.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
                Ok(())
            }
            Self::Copy { to, from, bytes: None } => memory.copy(to, from.0, from.1),
            Self::Fill { at, value, bytes } => memory.fill(at, &[value], bytes),
            Self::Free(address) => {
                let freed = memory.free(address);
                freed.then_some(()).ok_or_else(|| Fault::new(format!("memory at {address:#x} was given back twice")))
            }
            Self::Product(product) => product.run(memory),
            Self::Stamp(_) => Ok(()), // the machine's affair
        }
    }
}

impl Kernel {
    fn run(&self, memory: &mut Memory, statistics: &mut Statistics) -> Result<(), Fault> {
        let Self { function, grid, block, dynamic_shared, parameters, seed } = self;
        let launch = Launch { grid: *grid, block: *block, dynamic_shared: *dynamic_shared, parameters, seed: *seed };
        function.entry().run(&launch, memory, statistics)
    }
}
