//! PTX: the text that nvcc writes, read and executed.

use crate::memory::Memory;
use crate::statistics::Statistics;
use crate::Fault;

/// A text of PTX with its kernels.
pub struct Module {
    entries: Vec<Entry>,
}

/// A kernel.
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
    /// Most threads a block may have, where the kernel says.
    pub most_threads: Option<u32>,
    /// Bytes of shared memory that every block has before the launch's own.
    pub static_shared: u32,
}

/// A parameter's place among the bytes of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// From the start.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// Bytes.
    pub align: usize,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of shared memory besides what the kernel declares.
    pub dynamic_shared: u32,
    /// Arguments, laid out as `Entry::parameters` says.
    pub parameters: &'a [u8],
    /// Blocks, and warps of a block, run in an order that this decides; 0 is the natural one.
    pub seed: u64,
}

impl Module {
    /// Reads a text of PTX. An instruction that is not known is a fault only when it is executed.
    pub fn parse(_text: &str) -> Result<Self, String> {
        todo!()
    }

    /// A kernel by its name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// All kernels, in the order of the text.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl Entry {
    /// Executes a launch: every block, to its end.
    pub fn run(&self, _launch: &Launch<'_>, _memory: &mut Memory, _statistics: &mut Statistics) -> Result<(), Fault> {
        todo!()
    }
}
