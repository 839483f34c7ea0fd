//! Weighted sum: Σ wᵢ xᵢ of mapped tensors of any float type, in one pass.

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::simd;
use rayon::prelude::*;

/// Elements handled by one task: 64 KiB of result.
const TILE: usize = 1 << 14;
/// Elements summed together: eight AVX-512 registers of f64.
const BLOCK: usize = 64;
/// Results of at least this many elements (32 MiB) are written past the caches, where they would not stay anyway.
const STREAMED: usize = 1 << 23;

/// Little-endian floats as they lie in a file, at any alignment.
#[derive(Debug, Clone, Copy)]
pub enum Floats<'a> {
    /// IEEE single precision.
    F32(&'a [u8]),
    /// The upper half of IEEE single precision.
    BF16(&'a [u8]),
    /// IEEE half precision.
    F16(&'a [u8]),
}

impl Floats<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(bytes) => bytes.len() / 4,
            Self::BF16(bytes) | Self::F16(bytes) => bytes.len() / 2,
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes they lie in.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(bytes) | Self::BF16(bytes) | Self::F16(bytes) => bytes,
        }
    }

    /// Whether these are the very values of `other`, not equal ones elsewhere.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::F32(a), Self::F32(b)) | (Self::BF16(a), Self::BF16(b)) | (Self::F16(a), Self::F16(b)) => {
                std::ptr::eq(*a, *b)
            }
            _ => false,
        }
    }

    fn slice(&self, start: usize, length: usize) -> Self {
        match self {
            Self::F32(bytes) => Self::F32(&bytes[start * 4..(start + length) * 4]),
            Self::BF16(bytes) => Self::BF16(&bytes[start * 2..(start + length) * 2]),
            Self::F16(bytes) => Self::F16(&bytes[start * 2..(start + length) * 2]),
        }
    }
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    /// Through the caches: whoever reads a small result next finds it there.
    Cached,
    /// Past the caches, where the processor has a way: memory is not read before it is overwritten.
    Streamed,
}

/// What is summed: weights and values.
pub type Members<'a> = Vec<(f64, Floats<'a>)>;

/// Writes Σ `weight · values` over `out`.
///
/// Sums are carried in f64 in the order of `members` and rounded to f32 once, so the result is within half a unit in
/// the last place of exact arithmetic (to f64's own error), a single member of weight 1 is copied bit for bit, and equal
/// members come out unchanged. Members of weight 0 are not read.
///
/// # Panics
/// When a member has another length than `out`.
pub fn weighted_sum(out: &mut [f32], members: &[(f64, Floats<'_>)]) {
    weighted_sums(vec![(out, members.to_vec())]);
}

/// As [`weighted_sum`] for many tensors at once, so that threads wait for each other only at the end.
///
/// # Panics
/// When a member has another length than what it is added to.
pub fn weighted_sums(tensors: Vec<(&mut [f32], Members<'_>)>) {
    let length: usize = tensors.iter().map(|(out, _)| out.len()).sum();
    let store = if length < STREAMED { Store::Cached } else { Store::Streamed };
    let mut sources = Vec::with_capacity(tensors.len());
    let mut tiles = Vec::new();
    for (out, mut members) in tensors {
        assert!(members.iter().all(|(_, values)| values.len() == out.len()), "members must match the result in length");
        members.retain(|(weight, _)| *weight != 0.0);
        tiles.extend(out.chunks_mut(TILE).enumerate().map(|(tile, out)| (out, sources.len(), tile * TILE)));
        sources.push(members);
    }
    tiles.into_par_iter().for_each(|(out, tensor, start)| {
        let members = sources[tensor].iter().map(|(weight, values)| (*weight, values.slice(start, out.len())));
        let members: Vec<_> = members.collect();
        sum_tile(store, out, &members);
    });
}

/// One tile, by the fastest way this processor has.
fn sum_tile(store: Store, out: &mut [f32], members: &[(f64, Floats<'_>)]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        return avx512::sum_tile(simd, store, out, members);
    }
    let _ = store; // elsewhere the compiler chooses the stores
    sum_tile_portably(out, members);
}

/// One tile on processors without AVX-512.
fn sum_tile_portably(out: &mut [f32], members: &[(f64, Floats<'_>)]) {
    simd::vectorised(
        #[inline(always)]
        || sum_blocks(out, members),
    );
}

/// All members pass by the sums of one block after the other.
#[inline(always)]
fn sum_blocks(out: &mut [f32], members: &[(f64, Floats<'_>)]) {
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let mut sums = [-0.0; BLOCK]; // the number that adds nothing to any other, −0 included
        for (weight, values) in members {
            match values {
                Floats::F32(bytes) => add::<4>(&mut sums, *weight, bytes, block, f32::from_le_bytes),
                Floats::BF16(bytes) => add::<2>(&mut sums, *weight, bytes, block, |v| {
                    f32::from_bits(u32::from(u16::from_le_bytes(v)) << 16)
                }),
                Floats::F16(bytes) => add::<2>(&mut sums, *weight, bytes, block, |v| half(u16::from_le_bytes(v))),
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
    }
}

/// Adds `weight · value` for the values of one block; the last block may be shorter. The product is rounded before it is
/// added, as in `NumPy`.
#[inline(always)]
fn add<const N: usize>(
    sums: &mut [f64; BLOCK],
    weight: f64,
    bytes: &[u8],
    block: usize,
    read: impl Fn([u8; N]) -> f32,
) {
    let (values, _) = bytes.as_chunks::<N>();
    let values = &values[block * BLOCK..];
    if let Some(values) = values.first_chunk::<BLOCK>() {
        for i in 0..BLOCK {
            sums[i] += weight * f64::from(read(values[i]));
        }
    } else {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += weight * f64::from(read(*value));
        }
    }
}

/// Half precision to single precision, exact, without a branch: the exponent is rebased by a multiplication, which
/// also normalises subnormal numbers; infinities and NaN are put back.
#[inline(always)]
fn half(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = (bits & 0x7fff) << 13;
    let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000); // 2^112
    let value = if magnitude >= 0x0f80_0000 { f32::from_bits(magnitude | 0x7f80_0000) } else { scaled };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// Random bytes are all sorts of numbers: subnormal, infinite and not a number too.
    fn random_bytes(stream: &mut Stream, n: usize) -> Vec<u8> {
        (0..n).map(|_| (stream.uniform() * 256.0) as u8).collect()
    }

    fn bits(values: &[f32]) -> Vec<Option<u32>> {
        values.iter().map(|value| (!value.is_nan()).then_some(value.to_bits())).collect()
    }

    /// The formats in turns.
    fn floats(index: usize, bytes: &[u8]) -> Floats<'_> {
        match index % 3 {
            0 => Floats::F32(bytes),
            1 => Floats::BF16(&bytes[..bytes.len() / 2]),
            _ => Floats::F16(&bytes[..bytes.len() / 2]),
        }
    }

    #[test]
    fn the_fast_path_gives_the_bits_of_the_portable_one() {
        let mut stream = Stream::new(0, "weighted sums");
        for length in [1, 63, 64, 65, 1000, TILE - 1, TILE, 2 * TILE + 77] {
            for k in [1, 2, 3, 4, 5, 8, 9, 17] {
                let bytes: Vec<Vec<u8>> = (0..k).map(|_| random_bytes(&mut stream, 4 * length)).collect();
                let mut members = Vec::new();
                for (i, bytes) in bytes.iter().enumerate() {
                    members.push((stream.normal(), floats(i, bytes)));
                }
                let mut portable = vec![0.0; length];
                sum_tile_portably(&mut portable, &members);
                let mut fast = vec![0.0; length];
                weighted_sum(&mut fast, &members);
                assert_eq!(bits(&fast), bits(&portable), "{k} members of {length}");
                for store in [Store::Cached, Store::Streamed] {
                    let mut fast = vec![0.0; length + 5];
                    sum_tile(store, &mut fast[5..], &members); // at an odd address
                    assert_eq!(bits(&fast[5..]), bits(&portable), "{k} members of {length}, {store:?}");
                    assert_eq!(fast[..5], [0.0; 5], "{store:?} wrote before its tile");
                }
            }
        }
    }

    #[test]
    fn every_half_precision_number_is_converted_exactly() {
        for bits in 0..=u16::MAX {
            let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
            let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
            let expected = match exponent {
                0 => sign * fraction * 2f64.powi(-24),
                31 if fraction == 0.0 => sign * f64::INFINITY,
                31 => f64::NAN,
                _ => sign * (1024.0 + fraction) * 2f64.powi(exponent - 25),
            };
            let got = f64::from(half(bits));
            assert!(got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()), "{bits:#06x}");
        }
    }
}
