//! Bit sets: one bit for every byte of device memory.

use super::reserved::Reserved;
use std::ops::Range;

/// A set of byte offsets.
pub(super) struct Bits(Reserved<u64>);

/// `width` ones, for widths from 1 to 64.
fn ones(width: usize) -> u64 {
    u64::MAX >> (64 - width)
}

impl Bits {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Reserved::new(bytes.div_ceil(64)))
    }

    /// Whether all of `width` bytes are in the set; `offset` is a multiple of `width`, a power of two up to 64.
    #[inline]
    pub(super) fn has(&self, offset: usize, width: usize) -> bool {
        let wanted = ones(width) << (offset % 64);
        self.0[offset / 64] & wanted == wanted
    }

    /// Adds `width` bytes; `offset` as in `has`.
    #[inline]
    pub(super) fn add(&mut self, offset: usize, width: usize) {
        self.0[offset / 64] |= ones(width) << (offset % 64);
    }

    /// Adds a range, or takes it away.
    pub(super) fn set(&mut self, range: Range<usize>, on: bool) {
        each_word(range, |word, bits| {
            if on {
                self.0[word] |= bits;
            } else {
                self.0[word] &= !bits;
            }
            true
        });
    }

    /// The first byte of a range that is not in the set.
    pub(super) fn first_missing(&self, range: Range<usize>) -> Option<usize> {
        let mut missing = None;
        each_word(range, |word, bits| {
            let lacking = bits & !self.0[word];
            if lacking != 0 {
                missing = Some(word * 64 + lacking.trailing_zeros() as usize);
            }
            lacking == 0
        });
        missing
    }
}

/// Calls `visit` with every word that a range touches and the bits of it that belong to the range, until it says no.
fn each_word(range: Range<usize>, mut visit: impl FnMut(usize, u64) -> bool) {
    let mut at = range.start;
    while at < range.end {
        let width = (64 - at % 64).min(range.end - at);
        if !visit(at / 64, ones(width) << (at % 64)) {
            return;
        }
        at += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_across_words() {
        let mut bits = Bits::new(256);
        bits.set(60..200, true);
        assert_eq!((bits.first_missing(60..200), bits.first_missing(60..201)), (None, Some(200)));
        assert!(bits.has(64, 64) && !bits.has(56, 8));
        bits.set(100..101, false);
        assert_eq!(bits.first_missing(60..200), Some(100));
        bits.add(100, 1);
        assert_eq!(bits.first_missing(60..200), None);
    }
}
