//! Fault: what a program did that a GPU would not forgive, or not tell, and where.

use std::fmt;

/// One mistake of the program under test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happened, in one sentence without a full stop.
    pub what: String,
    /// Where in a kernel; none for what the host asked for.
    pub place: Option<Place>,
}

/// A thread of a launch at an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the kernel.
    pub kernel: String,
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Index of the thread in the block; the first concerned, where it is several.
    pub thread: [u32; 3],
    /// Line of the PTX, from 1.
    pub line: usize,
    /// The instruction there.
    pub text: String,
}

impl Fault {
    /// A fault of the host's making.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), place: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { kernel, block, thread, line, text }) = &self.place {
            write!(f, "{kernel}, block {block:?}, thread {thread:?}, PTX line {line} `{text}`: ")?;
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}
