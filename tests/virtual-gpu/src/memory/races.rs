//! Races in device memory: between the blocks of a launch, and between the warps of a block.
//
// Blocks and warps run one after the other here, so a race changes nothing that can be seen; it is found by what they touch. Kept for
// every two bytes, as neighbouring bf16 may belong to two of them; single bytes are not checked. Warps are ordered by barriers. A block
// that stores, executes a fence and then an atomic instruction on some address hands over to whoever executes one on the same address
// and then a fence: that is the block that finishes last and adds up. What a block stores after it handed over is not told apart from
// what it stored before.

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

/// Bits in which a block is written, and a warp. The all-ones value stands for several of them, the one below for atomic instructions.
const BLOCK: u32 = 22;
const WARP: u32 = 6;

const fn several(bits: u32) -> u64 {
    (1 << bits) - 1
}

const fn atomic(bits: u32) -> u64 {
    several(bits) - 1
}

/// The order between the blocks of one launch, as far as fences and atomic instructions make one, and between the warps of a block.
#[derive(Default)]
pub(crate) struct Order {
    launch: u64,
    /// How often a block began or its threads met.
    moment: u64,
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
        self.barrier();
        self.block = block;
        self.has_fenced = false;
        self.pending.clear();
        self.acquired.clear();
    }

    /// The threads of the block met.
    pub(crate) fn barrier(&mut self) {
        self.moment += 1;
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
        if other >= atomic(BLOCK) { took_over_from_all() } else { self.acquired.contains(&(other - 1)) }
    }
}

/// Two words for every two bytes, about blocks and about warps: when (the launch, or launch and moment), who wrote last and who read
/// (a number and 1, or 0).
pub(super) struct Races(Reserved<u64>);

impl Races {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Reserved::new(bytes.div_ceil(2) * 2))
    }

    /// Notes an access by a warp of the order's block; what another did to the same bytes, if nothing orders the two.
    #[inline]
    pub(super) fn touch(
        &mut self,
        offset: usize,
        width: usize,
        access: Access,
        warp: u32,
        order: &Order,
    ) -> Result<(), String> {
        if order.blocks >= atomic(BLOCK) - 1 || width < 2 {
            return Ok(());
        }
        let moment = order.launch << 32 | order.moment & 0xFFFF_FFFF;
        let first = offset / 2 * 2; // two words for two bytes
        for words in self.0[first..first + width].chunks_exact_mut(2) {
            let own = order.block + 1;
            let between_blocks = note(&mut words[0], BLOCK, order.launch, own, access, |other| order.is_after(other));
            between_blocks.map_err(|race| told(access, "block", BLOCK, race, "in the same launch"))?;
            let between_warps = note(&mut words[1], WARP, moment, u64::from(warp) + 1, access, |_| false);
            between_warps.map_err(|race| told(access, "warp", WARP, race, "of this block since the last barrier"))?;
        }
        Ok(())
    }
}

/// Brings a word up to date; who else did what, if that is a race.
#[inline]
fn note(
    word: &mut u64,
    bits: u32,
    now: u64,
    own: u64,
    access: Access,
    is_after: impl Fn(u64) -> bool,
) -> Result<(), (u64, &'static str)> {
    let (mut writer, mut reader) = (0, 0);
    if *word >> (2 * bits) == now {
        (writer, reader) = (*word >> bits & several(bits), *word & several(bits));
    }
    let is_strange = |other: u64| other != 0 && other != own && !is_after(other);
    let both_atomic = access == Access::Atomic && writer == atomic(bits);
    if is_strange(writer) && !both_atomic {
        return Err((writer, "wrote"));
    }
    if access != Access::Read && is_strange(reader) && !both_atomic {
        return Err((reader, "read"));
    }
    match access {
        Access::Read if reader == 0 || reader == own => reader = own,
        Access::Read => reader = several(bits),
        Access::Write => writer = own,
        Access::Atomic => writer = atomic(bits),
    }
    *word = now << (2 * bits) | writer << bits | reader;
    Ok(())
}

fn told(access: Access, kind: &str, bits: u32, (other, did): (u64, &str), when: &str) -> String {
    let who = match other {
        other if other == several(bits) => format!("other {kind}s"),
        other if other == atomic(bits) => "atomic instructions".to_owned(),
        other => format!("{kind} {}", other - 1),
    };
    format!("{access:?} of bytes that {who} {did} {when}")
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
            races.touch(0, 16, Access::Read, 0, &order(block)).unwrap();
            races.touch(32 + 2 * block as usize, 2, Access::Write, 0, &order(block)).unwrap();
        }
        assert!(races.touch(8, 4, Access::Write, 0, &order(1)).is_err());
        assert!(races.touch(34, 2, Access::Read, 0, &order(0)).unwrap_err().contains("block 1"));
        races.touch(34, 2, Access::Read, 0, &Order::new(2, 3)).unwrap();
    }

    #[test]
    fn warps_need_a_barrier() {
        let (mut races, mut order) = (Races::new(64), order(0));
        races.touch(0, 4, Access::Read, 0, &order).unwrap();
        races.touch(0, 4, Access::Read, 1, &order).unwrap();
        assert!(races.touch(2, 2, Access::Write, 1, &order).unwrap_err().contains("other warps read"));
        order.barrier();
        races.touch(2, 2, Access::Write, 1, &order).unwrap();
        assert!(races.touch(0, 8, Access::Read, 2, &order).unwrap_err().contains("warp 1 wrote"));
    }

    #[test]
    fn the_last_block_takes_over_by_fence_and_atomic() {
        let mut races = Races::new(64);
        let mut order = Order::new(1, 3);
        for block in 0..3 {
            order.begin(block);
            races.touch(8 * block as usize, 8, Access::Write, 0, &order).unwrap();
            order.fence();
            order.atomic(100);
        }
        assert!(races.touch(0, 8, Access::Read, 0, &order).is_err(), "a fence must follow");
        order.fence();
        races.touch(0, 8, Access::Read, 0, &order).unwrap();
    }
}
