//! Device memory: allocations in a range of addresses of their own, which bytes were written, and who touched them.

mod bits;
mod races;
mod reserved;

use crate::Fault;
use bits::Bits;
pub use races::Access;
pub(crate) use races::Order;
use races::Races;
use reserved::Reserved;
use std::collections::BTreeMap;
use std::ops::Range;

/// Device address of the first device's first byte. Nothing of the host lies here, so that a host that follows a device pointer
/// crashes.
pub const BASE: u64 = 0x20_0000_0000;
/// Every allocation starts at a multiple of this, as the driver's do, and this much after it belongs to nobody.
const GRANULE: u64 = 256;
/// What memory holds before it is written: NaN in f32, f64 and bf16, -1 as an index.
const POISON: u8 = 0xFF;
/// Addresses are given out again only after at least this many bytes of others.
const FRESH: u64 = 256 << 20;

/// Whether a read may see bytes that nobody wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unwritten {
    /// They are a fault.
    Refused,
    /// They are read as they are, all ones.
    Allowed,
}

/// The memory of one GPU.
pub struct Memory {
    bytes: Reserved<u8>,
    written: Bits,
    live: Bits,
    races: Races,
    base: u64,
    /// Length by offset.
    allocations: BTreeMap<u64, u64>,
    /// Offset from which room is looked for.
    next: u64,
    used: u64,
    capacity: u64,
    launches: u64,
}

impl Memory {
    /// A memory of which `capacity` bytes may be in use at a time.
    pub fn new(capacity: u64) -> Self {
        Self::at(BASE, capacity)
    }

    /// As [`Memory::new`], with addresses from `base` on.
    ///
    /// # Panics
    /// Where the system has no address space left.
    pub fn at(base: u64, capacity: u64) -> Self {
        let range = 4 * capacity + 2 * FRESH;
        let len = usize::try_from(range).expect("64-bit addresses");
        Self {
            bytes: Reserved::new(len),
            written: Bits::new(len),
            live: Bits::new(len),
            races: Races::new(len),
            base,
            allocations: BTreeMap::new(),
            next: 0,
            used: 0,
            capacity,
            launches: 0,
        }
    }

    /// The first address behind all that it may give out.
    pub fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    /// Bytes that may be in use.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes in use, as the driver rounds them.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Address of `bytes` new bytes, of which none counts as written; none where there is no room.
    pub fn allocate(&mut self, bytes: u64) -> Option<u64> {
        let taken = bytes.max(1).checked_next_multiple_of(GRANULE)?;
        if taken > self.capacity - self.used {
            return None;
        }
        if self.next > 4 * self.used + FRESH {
            self.next = 0;
        }
        let offset = self.room(self.next, taken + GRANULE).or_else(|| self.room(0, taken + GRANULE))?;
        self.next = offset + taken + GRANULE;
        self.used += taken;
        self.allocations.insert(offset, bytes);
        let range = offset as usize..(offset + bytes) as usize;
        self.bytes[range.clone()].fill(POISON);
        self.live.set(range, true);
        Some(self.base + offset)
    }

    /// The first gap of `bytes` at or after an offset.
    fn room(&self, from: u64, bytes: u64) -> Option<u64> {
        let end = |(&offset, &len): (&u64, &u64)| offset + len.max(1).next_multiple_of(GRANULE) + GRANULE;
        let mut start = self.allocations.range(..from).next_back().map_or(0, end).max(from);
        for allocation in self.allocations.range(start..) {
            if start + bytes <= *allocation.0 {
                return Some(start);
            }
            start = end(allocation);
        }
        (start + bytes <= self.bytes.len() as u64).then_some(start)
    }

    /// Ends an allocation; whether there was one at this very address.
    pub fn free(&mut self, address: u64) -> bool {
        let Some(len) = address.checked_sub(self.base).and_then(|offset| self.allocations.remove(&offset)) else {
            return false;
        };
        let range = (address - self.base) as usize..(address - self.base + len) as usize;
        self.written.set(range.clone(), false);
        self.live.set(range, false);
        self.used -= len.max(1).next_multiple_of(GRANULE);
        true
    }

    /// Start and length of the allocation that holds an address.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64)> {
        let offset = address.checked_sub(self.base)?;
        let (&start, &len) = self.allocations.range(..=offset).next_back()?;
        (offset - start < len).then_some((self.base + start, len))
    }

    /// Bytes of one allocation, for the host or a library.
    pub fn read(&self, address: u64, bytes: u64, unwritten: Unwritten) -> Result<&[u8], Fault> {
        let range = self.range(address, bytes, "reads")?;
        if unwritten == Unwritten::Refused
            && let Some(missing) = self.written.first_missing(range.clone())
        {
            let at = (missing - range.start) as u64;
            let place = self.describe(address + at, 1);
            return Err(Fault::new(format!(
                "reads {bytes} bytes at {address:#x}, of which byte {at} was never written: {place}"
            )));
        }
        Ok(&self.bytes[range])
    }

    /// Writes bytes of one allocation, for the host or a library.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let range = self.range(address, bytes.len() as u64, "writes")?;
        self.bytes[range.clone()].copy_from_slice(bytes);
        self.written.set(range, true);
        Ok(())
    }

    /// Writes a pattern of 1, 2 or 4 bytes `count` times.
    pub fn fill(&mut self, address: u64, pattern: &[u8], count: u64) -> Result<(), Fault> {
        let bytes = count.saturating_mul(pattern.len() as u64);
        let range = self.range(address, bytes, "fills")?;
        self.bytes[range.clone()].chunks_exact_mut(pattern.len()).for_each(|to| to.copy_from_slice(pattern));
        self.written.set(range, true);
        Ok(())
    }

    /// Copies within the device, what was never written included: it stays so.
    pub fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<(), Fault> {
        let (source, target) = (self.range(from, bytes, "copies from")?, self.range(to, bytes, "copies to")?);
        self.bytes.copy_within(source.clone(), target.start);
        for (from, to) in source.zip(target) {
            let written = self.written.has(from, 1);
            self.written.set(to..to + 1, written);
        }
        Ok(())
    }

    /// Checks what a kernel is about to do with 1 to 16 bytes and notes it; the offset at which it may.
    #[inline]
    pub(crate) fn touch(
        &mut self,
        address: u64,
        width: usize,
        access: Access,
        warp: u32,
        order: &Order,
    ) -> Result<usize, String> {
        if !address.is_multiple_of(width as u64) {
            return Err(format!("{access:?} of {width} bytes at {address:#x}, which is no multiple of {width}"));
        }
        let offset = address.wrapping_sub(self.base) as usize;
        let is_inside = offset < self.bytes.len() && self.live.has(offset, width);
        if !is_inside || access != Access::Write && !self.written.has(offset, width) {
            let reason = if is_inside { "never written: " } else { "" };
            let place = self.describe(address, width as u64);
            return Err(format!("{access:?} of {width} bytes at {address:#x}, {reason}{place}"));
        }
        if access != Access::Read {
            self.written.add(offset, width);
        }
        self.races
            .touch(offset, width, access, warp, order)
            .map_err(|race| format!("{race} ({})", self.describe(address, width as u64)))?;
        Ok(offset)
    }

    /// Bytes at an offset that `touch` gave.
    #[inline]
    pub(crate) fn bytes(&mut self, offset: usize, width: usize) -> &mut [u8] {
        &mut self.bytes[offset..offset + width]
    }

    /// Number of the launch that begins, from 1.
    pub(crate) fn next_launch(&mut self) -> u64 {
        self.launches += 1;
        if self.launches.is_multiple_of(1 << 20) {
            self.races = Races::new(self.bytes.len()); // the numbers that it keeps of launches come again
        }
        self.launches
    }

    /// Offsets of bytes that lie in one allocation.
    fn range(&self, address: u64, bytes: u64, verb: &str) -> Result<Range<usize>, Fault> {
        if bytes == 0 {
            return Ok(0..0);
        }
        let inside = self.allocation(address).is_some_and(|(start, len)| bytes <= len - (address - start));
        if !inside {
            return Err(Fault::new(format!("{verb} {bytes} bytes at {address:#x}: {}", self.describe(address, bytes))));
        }
        let offset = (address - self.base) as usize;
        Ok(offset..offset + bytes as usize)
    }

    /// Where an address lies among the allocations, for messages.
    pub fn describe(&self, address: u64, bytes: u64) -> String {
        let before = address.checked_sub(self.base).and_then(|offset| self.allocations.range(..=offset).next_back());
        match before {
            _ if address < self.base => "no device address".to_owned(),
            Some((start, len)) if address - self.base - start < *len => {
                let at = address - self.base - start;
                format!("bytes {at} to {} of an allocation of {len} bytes at {:#x}", at + bytes, self.base + start)
            }
            Some((start, len)) if address - self.base - start - len < 1 << 20 => {
                let beyond = address - self.base - start - len;
                format!("{beyond} bytes beyond the end of the {len} bytes at {:#x}", self.base + start)
            }
            _ => "in no allocation (freed, or never made)".to_owned(),
        }
    }
}
