//! Races between blocks: who of a launch touched which bytes of device memory.

use super::reserved::Reserved;

/// How an instruction touches memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Reads and writes at once.
    Atomic,
}

/// One word for every two bytes of device memory.
pub(super) struct Races(Reserved<u64>);

impl Races {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Reserved::new(bytes.div_ceil(2)))
    }
}
