//! Registers of a warp: a row of 32 lanes for each, predicates as one bit a lane.

use half::{bf16, f16};

/// Threads that execute together.
pub(super) const LANES: usize = 32;
/// One bit for every lane.
pub(super) type Mask = u32;
/// All lanes.
pub(super) const ALL: Mask = u32::MAX;

/// A register's place. Registers of 16 bits lie in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Word(usize),
    Long(usize),
    Predicate(usize),
    /// Written and forgotten: `_`.
    Sink,
}

/// All registers of a warp, and the constants its instructions name.
#[derive(Clone, Default)]
pub(super) struct Registers {
    pub(super) words: Vec<[u32; LANES]>,
    pub(super) longs: Vec<[u64; LANES]>,
    pub(super) predicates: Vec<Mask>,
}

/// The lanes of a mask, ascending.
pub(super) fn lanes(mut mask: Mask) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = (mask != 0).then_some(mask.trailing_zeros() as usize);
        mask &= mask.wrapping_sub(1);
        lane
    })
}

/// The lanes for which something holds.
pub(super) fn mask_of(mut holds: impl FnMut(usize) -> bool) -> Mask {
    (0..LANES).fold(0, |mask, lane| mask | Mask::from(holds(lane)) << lane)
}

impl Registers {
    /// Bits of a register in every lane.
    pub(super) fn bits(&self, slot: Slot) -> [u64; LANES] {
        match slot {
            Slot::Word(index) => each(&self.words[index], u64::from),
            Slot::Long(index) => self.longs[index],
            Slot::Predicate(index) => std::array::from_fn(|lane| u64::from(self.predicates[index] >> lane & 1)),
            Slot::Sink => [0; LANES],
        }
    }

    /// Sets a register in the lanes of a mask, to as many bits as it has.
    pub(super) fn set_bits(&mut self, slot: Slot, mask: Mask, bits: &[u64; LANES]) {
        match slot {
            Slot::Word(index) => blend(&mut self.words[index], mask, &each(bits, |bits| bits as u32)),
            Slot::Long(index) => blend(&mut self.longs[index], mask, bits),
            Slot::Predicate(index) => self.set_predicate(index, mask, mask_of(|lane| bits[lane] & 1 != 0)),
            Slot::Sink => {}
        }
    }

    /// Sets a predicate in the lanes of a mask.
    pub(super) fn set_predicate(&mut self, index: usize, mask: Mask, values: Mask) {
        let predicate = &mut self.predicates[index];
        *predicate = *predicate & !mask | values & mask;
    }
}

/// A value for every lane. A plain loop, as the compiler makes vectors of it where it does not of `map`.
#[allow(clippy::inline_always)] // it is to become part of the loop that calls it
#[inline(always)]
pub(super) fn each<A: Copy, B: Copy + Default>(row: &[A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    let mut values = [B::default(); LANES];
    for (value, a) in values.iter_mut().zip(row) {
        *value = f(*a);
    }
    values
}

/// Takes the lanes of a mask from `values`.
#[inline]
fn blend<T: Copy>(row: &mut [T; LANES], mask: Mask, values: &[T; LANES]) {
    if mask == ALL {
        *row = *values;
        return;
    }
    for lane in 0..LANES {
        if mask >> lane & 1 != 0 {
            row[lane] = values[lane];
        }
    }
}

/// A type that instructions compute in: how it lies in a register.
pub(super) trait Value: Copy + Default + PartialOrd + 'static {
    /// The register's value in every lane.
    fn read(registers: &Registers, index: usize) -> [Self; LANES];
    /// Sets the register in the lanes of a mask.
    fn write(registers: &mut Registers, index: usize, mask: Mask, values: [Self; LANES]);
    /// Whether it lies in a register of 64 bits.
    const IS_LONG: bool = size_of::<Self>() == 8;
    /// The index of a register of this type's width.
    fn index(slot: Slot) -> Option<usize> {
        match slot {
            Slot::Word(index) if !Self::IS_LONG => Some(index),
            Slot::Long(index) if Self::IS_LONG => Some(index),
            _ => None,
        }
    }
}

macro_rules! value {
    ($rows:ident, $($kind:ty, $from:expr, $into:expr;)*) => {$(
        impl Value for $kind {
            #[inline]
            fn read(registers: &Registers, index: usize) -> [Self; LANES] {
                each(&registers.$rows[index], $from)
            }

            #[inline]
            fn write(registers: &mut Registers, index: usize, mask: Mask, values: [Self; LANES]) {
                blend(&mut registers.$rows[index], mask, &each(&values, $into));
            }
        }
    )*};
}

value! { words,
    u32, |bits| bits, |value| value;
    i32, |bits| bits as i32, |value| value as u32;
    f32, f32::from_bits, f32::to_bits;
    u16, |bits| bits as u16, u32::from;
    i16, |bits| bits as i16, |value| u32::from(value as u16);
    f16, |bits| f16::from_bits(bits as u16), |value| u32::from(value.to_bits());
    bf16, |bits| bf16::from_bits(bits as u16), |value| u32::from(value.to_bits());
}
value! { longs,
    u64, |bits| bits, |value| value;
    i64, |bits| bits as i64, |value| value as u64;
    f64, f64::from_bits, f64::to_bits;
}
