//! Races between blocks: who of a launch touched which bytes of device memory.
//
// Blocks run one after the other here, so a race changes nothing that can be seen; it is found by what blocks touch. Kept for every
// two bytes, as neighbouring bf16 may belong to two blocks; single bytes are not checked. A block that stores, executes a fence and
// then an atomic instruction on some address hands over to whoever executes one on the same address and then a fence: that is the
// block that finishes last and adds up. What a block stores after it handed over is not told apart from what it stored before.

use super::reserved::Reserved;
use std::collections::{BTreeMap, BTreeSet};

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

const BITS: u32 = 22;
const FIELD: u64 = (1 << BITS) - 1;
/// In place of a block: several of them.
const SEVERAL: u64 = FIELD;
/// In place of a block: atomic instructions.
const ATOMIC: u64 = FIELD - 1;

/// The order between the blocks of one launch, as far as fences and atomic instructions make one.
#[derive(Default)]
pub(crate) struct Order {
    launch: u64,
    blocks: u64,
    block: u64,
    has_fenced: bool,
    /// Blocks that handed over, by the address of the atomic instruction.
    released: BTreeMap<u64, BTreeSet<u64>>,
    /// Blocks that this one took over from, once it has executed a fence.
    pending: BTreeSet<u64>,
    acquired: BTreeSet<u64>,
}

impl Order {
    /// Of a launch, numbered from 1, of so many blocks.
    pub(crate) fn new(launch: u64, blocks: u64) -> Self {
        Self { launch: launch % (1 << 20), blocks, ..Self::default() }
    }

    /// A block begins.
    pub(crate) fn begin(&mut self, block: u64) {
        self.block = block;
        self.has_fenced = false;
        self.pending.clear();
        self.acquired.clear();
    }

    /// A thread of the block executes a fence.
    pub(crate) fn fence(&mut self) {
        self.has_fenced = true;
        self.acquired.append(&mut self.pending);
    }

    /// A thread of the block executes an atomic instruction on an address.
    pub(crate) fn atomic(&mut self, address: u64) {
        let released = self.released.entry(address).or_default();
        self.pending.extend(released.iter());
        if self.has_fenced {
            released.insert(self.block);
        }
    }

    /// Whether what another did lies before what this block does now.
    fn is_after(&self, other: u64) -> bool {
        let took_over_from_all = || self.acquired.len() as u64 + 1 >= self.blocks;
        if other == SEVERAL || other == ATOMIC { took_over_from_all() } else { self.acquired.contains(&(other - 1)) }
    }
}

/// One word for every two bytes: the launch, who wrote last and who read (a block's number and 1, or 0) in 20, 22 and 22 bits.
pub(super) struct Races(Reserved<u64>);

impl Races {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Reserved::new(bytes.div_ceil(2)))
    }

    /// Notes an access of the order's block; what another block did to the same bytes, if nothing orders the two.
    #[inline]
    pub(super) fn touch(&mut self, offset: usize, width: usize, access: Access, order: &Order) -> Result<(), String> {
        if order.blocks <= 1 || order.blocks >= ATOMIC - 1 || width < 2 {
            return Ok(());
        }
        let (launch, own) = (order.launch, order.block + 1);
        for word in &mut self.0[offset / 2..(offset + width) / 2] {
            let (mut writer, mut reader) = (0, 0);
            if *word >> (2 * BITS) == launch {
                (writer, reader) = (*word >> BITS & FIELD, *word & FIELD);
            }
            let both_atomic = access == Access::Atomic && writer == ATOMIC;
            if writer != 0 && writer != own && !both_atomic && !order.is_after(writer) {
                return Err(format!("{access:?} of bytes that {} wrote in the same launch", name(writer)));
            }
            if access != Access::Read && reader != 0 && reader != own && !both_atomic && !order.is_after(reader) {
                return Err(format!("{access:?} of bytes that {} read in the same launch", name(reader)));
            }
            match access {
                Access::Read if reader == 0 || reader == own => reader = own,
                Access::Read => reader = SEVERAL,
                Access::Write => writer = own,
                Access::Atomic => writer = ATOMIC,
            }
            *word = launch << (2 * BITS) | writer << BITS | reader;
        }
        Ok(())
    }
}

fn name(block: u64) -> String {
    match block {
        SEVERAL => "other blocks".to_owned(),
        ATOMIC => "atomic instructions".to_owned(),
        block => format!("block {}", block - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(block: u64) -> Order {
        let mut order = Order::new(1, 3);
        order.begin(block);
        order
    }

    #[test]
    fn blocks_may_share_what_none_writes_and_neighbouring_halves() {
        let mut races = Races::new(64);
        for block in 0..3 {
            races.touch(0, 16, Access::Read, &order(block)).unwrap();
            races.touch(32 + 2 * block as usize, 2, Access::Write, &order(block)).unwrap();
        }
        assert!(races.touch(8, 4, Access::Write, &order(1)).is_err());
        assert!(races.touch(34, 2, Access::Read, &order(0)).unwrap_err().contains("block 1"));
        races.touch(34, 2, Access::Read, &Order::new(2, 3)).unwrap();
    }

    #[test]
    fn the_last_block_takes_over_by_fence_and_atomic() {
        let mut races = Races::new(64);
        let mut order = Order::new(1, 3);
        for block in 0..3 {
            order.begin(block);
            races.touch(8 * block as usize, 8, Access::Write, &order).unwrap();
            order.fence();
            order.atomic(100);
        }
        assert!(races.touch(0, 8, Access::Read, &order).is_err(), "a fence must follow");
        order.fence();
        races.touch(0, 8, Access::Read, &order).unwrap();
    }
}
