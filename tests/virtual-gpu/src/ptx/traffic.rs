//! Traffic of one instruction: the 32-byte sectors of device memory it asks for, the passes over shared memory it takes.

use super::registers::LANES;
use crate::statistics::Traffic;

/// Bytes of a sector.
const SECTOR: u64 = 32;
/// Bytes of all banks of shared memory side by side.
const BANKS: u64 = 128;
/// Banks, of words of 4 bytes.
const BANK_COUNT: usize = 32;

/// The addresses of the lanes that take part.
pub(super) struct Addresses {
    at: [u64; LANES],
    count: usize,
    lanes: [u8; LANES],
}

impl Addresses {
    pub(super) fn new() -> Self {
        Self { at: [0; LANES], count: 0, lanes: [0; LANES] }
    }

    pub(super) fn push(&mut self, lane: usize, address: u64) {
        self.at[self.count] = address;
        self.lanes[self.count] = lane as u8;
        self.count += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Sectors asked for, and those that the same bytes would fill.
    pub(super) fn sectors(&self, width: usize) -> Traffic {
        let mut at = self.at;
        let at = &mut at[..self.count];
        if !at.is_sorted() {
            at.sort_unstable();
        }
        let count = |unit: u64| {
            at.iter()
                .fold((0, u64::MAX), |(count, last), at| {
                    let which = at / unit;
                    (count + u64::from(which != last), which)
                })
                .0
        };
        let distinct = count(width as u64) * width as u64;
        Traffic {
            requests: u64::from(self.count > 0),
            taken: count(SECTOR),
            needed: distinct.div_ceil(SECTOR),
            bytes: distinct,
        }
    }

    /// Passes over the banks, and those of as many bytes without conflicts. Values of 8 bytes are taken by half a warp at a time, of
    /// 16 bytes by a quarter.
    pub(super) fn passes(&self, width: usize) -> Traffic {
        let group = LANES / (width / 4).max(1);
        let mut traffic = Traffic { requests: u64::from(self.count > 0), ..Traffic::default() };
        let mut start = 0;
        while start < self.count {
            let which = usize::from(self.lanes[start]) / group;
            let end =
                (start..self.count).find(|at| usize::from(self.lanes[*at]) / group != which).unwrap_or(self.count);
            traffic.taken += conflicts(&self.at[start..end], width as u64);
            traffic.needed += 1;
            start = end;
        }
        traffic.bytes = (self.count * width) as u64;
        traffic
    }
}

/// The most different words that any bank must give.
fn conflicts(addresses: &[u64], width: u64) -> u64 {
    let words = || addresses.iter().flat_map(|at| at / 4..(at + width).div_ceil(4));
    let first = addresses[0] / BANKS;
    if addresses.iter().all(|at| at / BANKS == first) {
        return 1; // neighbours: no two words of one bank
    }
    let mut of_bank = [[0; LANES]; BANK_COUNT];
    let mut counts = [0; BANK_COUNT];
    for word in words() {
        let bank = (word % BANK_COUNT as u64) as usize;
        let known = &of_bank[bank][..counts[bank]];
        if !known.contains(&word) {
            of_bank[bank][counts[bank]] = word;
            counts[bank] += 1;
        }
    }
    counts.into_iter().max().unwrap_or(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(at: impl Fn(u64) -> u64) -> Addresses {
        let mut all = Addresses::new();
        (0..LANES).for_each(|lane| all.push(lane, at(lane as u64)));
        all
    }

    #[test]
    fn neighbours_fill_sectors_and_strides_waste_them() {
        let taken = |at: &dyn Fn(u64) -> u64, width| {
            let traffic = addresses(at).sectors(width);
            (traffic.taken, traffic.needed)
        };
        assert_eq!(taken(&|lane| 4 * lane, 4), (4, 4));
        assert_eq!(taken(&|lane| 16 * lane, 16), (16, 16));
        assert_eq!(taken(&|lane| 128 * lane, 4), (32, 4));
        assert_eq!(taken(&|_| 64, 4), (1, 1));
        assert_eq!(taken(&|lane| 4 * lane + 16, 4), (5, 4));
    }

    #[test]
    fn banks() {
        let taken = |at: &dyn Fn(u64) -> u64, width| {
            let traffic = addresses(at).passes(width);
            (traffic.taken, traffic.needed)
        };
        assert_eq!(taken(&|lane| 4 * lane, 4), (1, 1));
        assert_eq!(taken(&|_| 8, 4), (1, 1));
        assert_eq!(taken(&|lane| 8 * lane, 4), (2, 1));
        assert_eq!(taken(&|lane| 128 * lane, 4), (32, 1));
        assert_eq!(taken(&|lane| 16 * lane, 16), (4, 4));
        assert_eq!(taken(&|lane| 256 * lane, 16), (32, 4));
    }
}
