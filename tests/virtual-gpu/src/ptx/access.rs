//! Accesses of a warp to memory: where each lane reads and writes, whether it may, what it costs.

use super::copies::Pending;
use super::moves::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW};
use super::registers::{LANES, Mask, Registers, Slot, each, lanes};
use super::shared::{Moment, Shared, Trouble};
use super::step::{Address, Atomic, Transfer};
use super::syntax::Space;
use super::tensor_core;
use super::traffic::Addresses;
use crate::memory::{Access, Memory, Order};
use crate::statistics::{Counts, Traffic};

/// What went wrong, and for which lane.
pub(super) type Failed = (usize, String);

/// Everything outside a warp that its instructions touch.
pub(super) struct Device<'a> {
    pub(super) memory: &'a mut Memory,
    pub(super) order: Order,
    pub(super) shared: Shared,
    /// Local memory of one thread after another, so many bytes each.
    pub(super) local: Vec<u8>,
    pub(super) local_size: usize,
    /// Copies that were begun and not waited for.
    pub(super) copies: Vec<Pending>,
    pub(super) arguments: &'a [u8],
    pub(super) counts: Counts,
    /// By step.
    pub(super) traffic: Vec<Traffic>,
}

/// The warp that accesses, as far as memory cares.
#[derive(Clone, Copy)]
pub(super) struct Party {
    /// Number of lane 0 in its block.
    pub(super) first_thread: u32,
    pub(super) order: u32,
    /// The step it is at.
    pub(super) step: usize,
}

impl Party {
    pub(super) fn moment(self, lane: usize) -> Moment {
        Moment { thread: self.first_thread + lane as u32, order: self.order }
    }
}

/// One address in the space it belongs to.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Global(u64),
    Shared(u64),
    Local(u64),
}

pub(super) fn addresses(address: Address, registers: &Registers) -> [u64; LANES] {
    let base = address.base.map_or([0; LANES], |slot| registers.bits(slot));
    each(&base, |base: u64| base.wrapping_add(address.offset as u64))
}

pub(super) fn place(space: Space, address: u64) -> Result<Place, String> {
    let window = |start: u64| (start..start + WINDOW).contains(&address);
    Ok(match space {
        Space::Shared => Place::Shared(address & 0xFFFF_FFFF),
        Space::Local => Place::Local(address),
        Space::Generic if window(SHARED_WINDOW) => Place::Shared(address - SHARED_WINDOW),
        Space::Generic if window(LOCAL_WINDOW) => Place::Local(address - LOCAL_WINDOW),
        Space::Global | Space::Generic => Place::Global(address),
        Space::Const | Space::Param => return Err("constant memory is not known here".to_owned()),
    })
}

/// Bits of a value of 1, 2, 4 or 8 bytes, with its sign where it has one.
#[inline]
fn bits(bytes: &[u8], is_signed: bool) -> u64 {
    match *bytes {
        [a] if is_signed => a as i8 as u64,
        [a] => u64::from(a),
        [a, b] if is_signed => i16::from_le_bytes([a, b]) as u64,
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] if is_signed => i32::from_le_bytes([a, b, c, d]) as u64,
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    }
}

impl Device<'_> {
    /// Bytes at a place that one lane may touch in this way; `new` is what it will write.
    #[inline]
    pub(super) fn touch(
        &mut self,
        place: Place,
        width: usize,
        access: Access,
        who: Moment,
        new: &[u8],
    ) -> Result<&mut [u8], String> {
        match place {
            Place::Global(address) => {
                let offset = self.memory.touch(address, width, access, who.warp(), &self.order)?;
                Ok(self.memory.bytes(offset, width))
            }
            Place::Shared(at) => {
                match self.shared.touch(at, width, access, who, new) {
                    Ok(()) => {}
                    Err(Trouble::Fault(what)) => return Err(what),
                    Err(Trouble::WithinWarp(what)) => {
                        self.counts.within_warp += 1;
                        self.counts.first_within_warp.get_or_insert(what);
                    }
                }
                Ok(self.shared.bytes(at, width))
            }
            Place::Local(at) => {
                let (at, size) = (usize::try_from(at).unwrap_or(usize::MAX), self.local_size);
                if at % width != 0 || at.checked_add(width).is_none_or(|end| end > size) {
                    return Err(format!("{access:?} of {width} bytes at local address {at} of {size}"));
                }
                let start = who.thread as usize * size + at;
                Ok(&mut self.local[start..start + width])
            }
        }
    }

    /// Counts what one instruction moved.
    pub(super) fn count(&mut self, global: &Addresses, shared: &Addresses, width: usize, access: Access, step: usize) {
        if !global.is_empty() {
            let traffic = global.sectors(width);
            *(if access == Access::Read { &mut self.counts.loads } else { &mut self.counts.stores }) += traffic;
            self.traffic[step] += traffic;
        }
        if !shared.is_empty() {
            let traffic = shared.passes(width);
            self.counts.shared += traffic;
            self.traffic[step] += traffic;
        }
    }

    /// Reads values into registers.
    pub(super) fn load(
        &mut self,
        it: &Transfer,
        mask: Mask,
        registers: &mut Registers,
        party: Party,
    ) -> Result<(), Failed> {
        let (at, whole) = (addresses(it.address, registers), it.width * it.registers.len());
        let (mut values, mut global, mut shared) = ([[0u64; LANES]; 4], Addresses::new(), Addresses::new());
        for lane in lanes(mask) {
            let place = place(it.address.space, at[lane]).map_err(|what| (lane, what))?;
            note(place, lane, &mut global, &mut shared);
            let bytes = self.touch(place, whole, Access::Read, party.moment(lane), &[]).map_err(|what| (lane, what))?;
            for (values, bytes) in values.iter_mut().zip(bytes.chunks_exact(it.width)) {
                values[lane] = bits(bytes, it.is_signed);
            }
        }
        for (register, values) in it.registers.iter().zip(&values) {
            registers.set_bits(*register, mask, values);
        }
        self.count(&global, &shared, whole, Access::Read, party.step);
        Ok(())
    }

    /// Writes values from registers.
    pub(super) fn store(
        &mut self,
        it: &Transfer,
        mask: Mask,
        registers: &Registers,
        party: Party,
    ) -> Result<(), Failed> {
        let (at, whole) = (addresses(it.address, registers), it.width * it.registers.len());
        let (mut global, mut shared) = (Addresses::new(), Addresses::new());
        let mut values = [[0u64; LANES]; 4];
        values.iter_mut().zip(&it.registers).for_each(|(values, slot)| *values = registers.bits(*slot));
        for lane in lanes(mask) {
            let place = place(it.address.space, at[lane]).map_err(|what| (lane, what))?;
            note(place, lane, &mut global, &mut shared);
            let mut new = [0; 16];
            for (new, values) in new[..whole].chunks_exact_mut(it.width).zip(&values) {
                new.copy_from_slice(&values[lane].to_le_bytes()[..it.width]);
            }
            let bytes = self.touch(place, whole, Access::Write, party.moment(lane), &new[..whole]);
            bytes.map_err(|what| (lane, what))?.copy_from_slice(&new[..whole]);
        }
        self.count(&global, &shared, whole, Access::Write, party.step);
        Ok(())
    }

    /// Reads, changes and writes, one lane after the other.
    pub(super) fn atomic(
        &mut self,
        it: &Atomic,
        mask: Mask,
        registers: &mut Registers,
        party: Party,
    ) -> Result<(), Failed> {
        let at = addresses(it.address, registers);
        let operands: Vec<_> = it.operands.iter().map(|slot| registers.bits(*slot)).collect();
        let (mut old, mut global, mut shared) = ([0; LANES], Addresses::new(), Addresses::new());
        for lane in lanes(mask) {
            let place = place(it.address.space, at[lane]).map_err(|what| (lane, what))?;
            note(place, lane, &mut global, &mut shared);
            if let Place::Global(address) = place {
                self.order.atomic(address);
            }
            let bytes =
                self.touch(place, it.width, Access::Atomic, party.moment(lane), &[]).map_err(|what| (lane, what))?;
            old[lane] = bits(bytes, false);
            let operands: Vec<u64> = operands.iter().map(|operand| operand[lane]).collect();
            bytes.copy_from_slice(&(it.change)(old[lane], &operands).to_le_bytes()[..it.width]);
        }
        self.counts.atomics += u64::from(mask.count_ones());
        registers.set_bits(it.to, mask, &old);
        self.count(&global, &shared, it.width, Access::Atomic, party.step);
        Ok(())
    }

    /// `ldmatrix`: lanes name rows of 16 bytes, 8 to a matrix, and all are given a pair of each matrix.
    pub(super) fn load_matrix(
        &mut self,
        to: &[Slot],
        from: Address,
        transposed: bool,
        registers: &mut Registers,
        party: Party,
    ) -> Result<(), Failed> {
        let at = addresses(from, registers);
        let mut rows = [[0u8; 16]; LANES];
        for matrix in 0..to.len() {
            let mut asked = Addresses::new();
            for lane in 8 * matrix..8 * matrix + 8 {
                let place = place(from.space, at[lane]).map_err(|what| (lane, what))?;
                note(place, lane, &mut Addresses::new(), &mut asked);
                let row = self.touch(place, 16, Access::Read, party.moment(lane), &[]).map_err(|what| (lane, what))?;
                rows[lane].copy_from_slice(row);
            }
            self.count(&Addresses::new(), &asked, 16, Access::Read, party.step);
        }
        for (matrix, to) in to.iter().enumerate() {
            let pair = std::array::from_fn(|lane| {
                let half = |half| {
                    let (row, column) = tensor_core::loaded(lane, half, transposed);
                    let bytes = &rows[8 * matrix + row][2 * column..2 * column + 2];
                    u64::from(bytes[0]) | u64::from(bytes[1]) << 8
                };
                half(0) | half(1) << 16
            });
            registers.set_bits(*to, super::registers::ALL, &pair);
        }
        Ok(())
    }

    /// Reads the launch's arguments.
    pub(super) fn argument(&self, it: &Transfer, mask: Mask, registers: &mut Registers) -> Result<(), Failed> {
        for (index, register) in it.registers.iter().enumerate() {
            let start = it.address.offset as usize + index * it.width;
            let bytes = self.arguments.get(start..start + it.width);
            let bytes = bytes.ok_or_else(|| (0, format!("argument at byte {start} of {}", self.arguments.len())))?;
            registers.set_bits(*register, mask, &[bits(bytes, it.is_signed); LANES]);
        }
        Ok(())
    }
}

pub(super) fn note(place: Place, lane: usize, global: &mut Addresses, shared: &mut Addresses) {
    match place {
        Place::Global(address) => global.push(lane, address),
        Place::Shared(at) => shared.push(lane, at),
        Place::Local(_) => {}
    }
}
