//! Copies to shared memory that go on while their thread computes: `cp.async`.
//
// What is copied is read when the copy begins and written when its thread waits, the latest that hardware may. Between the two, the
// target holds nothing: who reads it meets bytes that nobody wrote. Other threads need a barrier behind the wait.

use super::access::{Device, Failed, Party, Place, addresses, note, place};
use super::registers::{Mask, Registers, lanes};
use super::step::CopyAsync;
use super::traffic::Addresses;
use crate::memory::Access;

/// Bytes on their way to shared memory.
pub(super) struct Pending {
    thread: u32,
    at: u64,
    bytes: [u8; 16],
    width: usize,
}

impl Device<'_> {
    /// Begins copies.
    pub(super) fn copy_async(
        &mut self,
        it: &CopyAsync,
        mask: Mask,
        registers: &Registers,
        party: Party,
    ) -> Result<(), Failed> {
        let (to, from) = (addresses(it.to, registers), addresses(it.from, registers));
        let lengths = it.length.map(|slot| registers.bits(slot));
        let (mut global, mut shared) = (Addresses::new(), Addresses::new());
        for lane in lanes(mask) {
            let failed = |what| (lane, what);
            let who = party.moment(lane);
            let length = lengths.map_or(it.width, |lengths| lengths[lane] as usize);
            if length > it.width || !length.is_multiple_of(4) {
                return Err((lane, format!("{length} of {} bytes are copied", it.width)));
            }
            let source = place(it.from.space, from[lane]).map_err(failed)?;
            if !from[lane].is_multiple_of(it.width as u64) {
                return Err((lane, format!("copy of {} bytes from {:#x}, which is no multiple", it.width, from[lane])));
            }
            let mut bytes = [0; 16];
            if length > 0 {
                note(source, lane, &mut global, &mut Addresses::new());
                bytes[..length].copy_from_slice(self.touch(source, length, Access::Read, who, &[]).map_err(failed)?);
            }
            let target = place(it.to.space, to[lane]).map_err(failed)?;
            let Place::Shared(at) = target else { return Err((lane, "a copy to no shared memory".to_owned())) };
            note(target, lane, &mut Addresses::new(), &mut shared);
            self.touch(target, it.width, Access::Write, who, &[]).map_err(failed)?;
            self.shared.forget(at, it.width);
            self.copies.push(Pending { thread: who.thread, at, bytes, width: it.width });
        }
        self.count(&global, &Addresses::new(), it.width, Access::Read, party.step);
        self.count(&Addresses::new(), &shared, it.width, Access::Write, party.step);
        Ok(())
    }

    /// Ends the copies of some threads.
    pub(super) fn wait_async(&mut self, mask: Mask, party: Party) -> Result<(), Failed> {
        let waits = |copy: &Pending| copy.thread.checked_sub(party.first_thread).filter(|lane| *lane < 32);
        let (done, left) = std::mem::take(&mut self.copies)
            .into_iter()
            .partition(|copy| waits(copy).is_some_and(|lane| mask >> lane & 1 == 1));
        self.copies = left;
        for copy in &done {
            let lane = (copy.thread - party.first_thread) as usize;
            let bytes = &copy.bytes[..copy.width];
            let target = self.touch(Place::Shared(copy.at), copy.width, Access::Write, party.moment(lane), bytes);
            target.map_err(|what| (lane, what))?.copy_from_slice(bytes);
        }
        Ok(())
    }
}
