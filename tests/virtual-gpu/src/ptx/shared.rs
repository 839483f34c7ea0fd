//! Shared memory of a block, and races between its threads.
//
// Kept for every granule, which is as wide as the kernel's narrowest access: who wrote last and who read since. Two threads of different warps are ordered by barriers, two of one warp
// also by bar.warp.sync; that warps run in lockstep orders nothing. Writes of the same value do not count as a race.

use super::registers::LANES;
use crate::memory::Access;

/// A thread at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moment {
    /// The thread's number in its block.
    pub(super) thread: u32,
    /// How often its warp was ordered.
    pub(super) order: u32,
}

impl Moment {
    /// The number of its warp.
    pub(super) fn warp(self) -> u32 {
        self.thread / LANES as u32
    }
}

/// Who read since the last barrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Readers {
    #[default]
    One,
    /// Several of one warp, since it was ordered last.
    OneWarp,
    Several,
}

#[derive(Clone, Copy, Default)]
struct Touched {
    /// Barriers before the last write; those of earlier blocks count.
    write_epoch: u32,
    writer: Moment,
    read_epoch: u32,
    reader: Moment,
    readers: Readers,
}

/// Two accesses that nothing orders.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Between warps, out of bounds, unaligned or of bytes nobody wrote.
    Fault(String),
    /// Within one warp.
    WithinWarp(String),
}

/// The shared memory of one block after the other.
pub(super) struct Shared {
    bytes: Vec<u8>,
    touched: Vec<Touched>,
    /// Bytes of a granule.
    granule: usize,
    epoch: u32,
    /// The first epoch of this block.
    begin: u32,
}

impl Shared {
    pub(super) fn new(bytes: usize, granule: usize) -> Self {
        let bytes = bytes.next_multiple_of(16);
        Self {
            bytes: vec![0xFF; bytes],
            touched: vec![Touched::default(); bytes / granule],
            granule,
            epoch: 1,
            begin: 1,
        }
    }

    /// A block begins: nothing is written.
    pub(super) fn begin(&mut self) {
        self.epoch += 1;
        self.begin = self.epoch;
    }

    /// All threads of the block met.
    pub(super) fn barrier(&mut self) {
        self.epoch += 1;
    }

    /// Checks and notes an access.
    pub(super) fn touch(
        &mut self,
        at: u64,
        width: usize,
        access: Access,
        who: Moment,
        new: &[u8],
    ) -> Result<(), Trouble> {
        if !at.is_multiple_of(width as u64) {
            return Err(Trouble::Fault(format!(
                "{access:?} of {width} bytes at shared address {at}, which is no multiple of {width}"
            )));
        }
        let size = self.bytes.len();
        let Some(range) = usize::try_from(at).ok().filter(|at| at + width <= size).map(|at| at..at + width) else {
            return Err(Trouble::Fault(format!("{access:?} of {width} bytes at shared address {at} of {size}")));
        };
        let same = access == Access::Write && self.bytes[range.clone()] == *new;
        let mut within = None;
        for touched in &mut self.touched[range.start / self.granule..range.end / self.granule] {
            if access != Access::Write && touched.write_epoch < self.begin {
                return Err(Trouble::Fault(format!(
                    "{access:?} of {width} bytes at shared address {at} that nobody wrote"
                )));
            }
            match touched.conflict(access, who, self.epoch, same) {
                Some((other, true)) => {
                    return Err(Trouble::Fault(format!(
                        "{access:?} of shared address {at}, which thread {other} of another warp touched since the last barrier"
                    )));
                }
                Some((other, false)) => within = Some(other),
                None => {}
            }
            touched.note(access, who, self.epoch);
        }
        within.map_or(Ok(()), |other| {
            Err(Trouble::WithinWarp(format!(
                "{access:?} of shared address {at}, which lane {} of this warp touched",
                other % LANES as u32
            )))
        })
    }

    /// Bytes that `touch` allowed to write hold nothing until they are written again.
    pub(super) fn forget(&mut self, at: u64, width: usize) {
        let range = at as usize..at as usize + width;
        self.touched[range.start / self.granule..range.end / self.granule].fill(Touched::default());
        self.bytes[range].fill(0xFF);
    }

    /// Bytes that `touch` allowed.
    pub(super) fn bytes(&mut self, at: u64, width: usize) -> &mut [u8] {
        &mut self.bytes[at as usize..at as usize + width]
    }
}

impl Touched {
    /// Another thread whose access nothing orders against this one, and whether it is of another warp.
    fn conflict(&self, access: Access, who: Moment, epoch: u32, same_value: bool) -> Option<(u32, bool)> {
        let against = |other: Moment| {
            if other.warp() != who.warp() {
                Some((other.thread, true))
            } else if other.thread != who.thread && other.order == who.order {
                Some((other.thread, false))
            } else {
                None
            }
        };
        if self.write_epoch == epoch && !same_value {
            let conflict = against(self.writer);
            if conflict.is_some() {
                return conflict;
            }
        }
        if access == Access::Read || self.read_epoch != epoch {
            return None;
        }
        match self.readers {
            Readers::Several => Some((self.reader.thread, true)),
            Readers::OneWarp if self.reader.warp() == who.warp() && self.reader.order == who.order => {
                Some((self.reader.thread, false))
            }
            _ => against(self.reader),
        }
    }

    fn note(&mut self, access: Access, who: Moment, epoch: u32) {
        if access != Access::Read {
            (self.write_epoch, self.writer) = (epoch, who);
            return;
        }
        let is_first = self.read_epoch != epoch;
        self.readers = match self.readers {
            _ if is_first || self.reader == who && self.readers == Readers::One => Readers::One,
            Readers::Several => Readers::Several,
            _ if self.reader.warp() != who.warp() => Readers::Several,
            _ if self.reader.order != who.order => Readers::One,
            _ => Readers::OneWarp,
        };
        (self.read_epoch, self.reader) = (epoch, who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(thread: u32, order: u32) -> Moment {
        Moment { thread, order }
    }

    #[test]
    fn threads_need_a_barrier_between_a_write_and_a_read() {
        let mut shared = Shared::new(64, 2);
        shared.begin();
        shared.touch(8, 4, Access::Write, at(0, 0), &[1; 4]).unwrap();
        assert!(matches!(shared.touch(8, 4, Access::Read, at(40, 0), &[]), Err(Trouble::Fault(_))));
        assert!(matches!(shared.touch(8, 4, Access::Read, at(3, 0), &[]), Err(Trouble::WithinWarp(_))));
        shared.touch(8, 4, Access::Read, at(3, 1), &[]).unwrap();
        shared.barrier();
        shared.touch(8, 4, Access::Read, at(40, 1), &[]).unwrap();
        assert!(matches!(shared.touch(8, 4, Access::Write, at(0, 2), &[2; 4]), Err(Trouble::Fault(_))));
    }

    #[test]
    fn what_nobody_wrote_cannot_be_read() {
        let mut shared = Shared::new(64, 2);
        shared.begin();
        assert!(shared.touch(0, 4, Access::Read, at(0, 0), &[]).is_err());
        shared.touch(0, 4, Access::Write, at(0, 0), &[0; 4]).unwrap();
        shared.begin();
        assert!(shared.touch(0, 4, Access::Read, at(0, 0), &[]).is_err(), "the block before wrote it");
        assert!(shared.touch(2, 4, Access::Write, at(0, 0), &[0; 4]).is_err(), "unaligned");
        assert!(shared.touch(64, 4, Access::Write, at(0, 0), &[0; 4]).is_err(), "out of bounds");
    }
}
