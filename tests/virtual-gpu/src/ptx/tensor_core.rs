//! Tensor cores: products of small matrices whose elements are spread over the lanes of a warp.
//
// Where an element lies is taken from CUTLASS (include/cute/atom): `MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>` and
// `Copy_Traits<SM75_U16x8_LDSM_T>`, which state for lane and value an index into the matrix, columns first. The numbers below are
// the strides there; lanes count as (lane % 4, lane / 4), values of a register by its halves first.

use super::operation::Together;
use super::registers::{LANES, Registers, Slot};
use super::scope::Decoder;
use half::{bf16, f16};

const M: usize = 16;
const N: usize = 8;
const K: usize = 16;

/// Row and column of half `half` of register `register` of the left factor.
fn left(lane: usize, register: usize, half: usize) -> (usize, usize) {
    let index = 32 * (lane % 4) + lane / 4 + 16 * half + 8 * (register % 2) + 128 * (register / 2);
    (index % M, index / M)
}

/// Column and row of half `half` of register `register` of the right factor.
fn right(lane: usize, register: usize, half: usize) -> (usize, usize) {
    let index = 16 * (lane % 4) + lane / 4 + 8 * half + 64 * register;
    (index % N, index / N)
}

/// Row and column of register `register` of the sums.
fn sum(lane: usize, register: usize) -> (usize, usize) {
    let index = 32 * (lane % 4) + lane / 4 + 16 * (register % 2) + 8 * (register / 2);
    (index % M, index / M)
}

/// The place of half `half` of what a lane is given of an 8x8 matrix by `ldmatrix`: the lane of the row's address, and the column.
pub(super) fn loaded(lane: usize, half: usize, transposed: bool) -> (usize, usize) {
    let bit = if transposed { 256 * (lane % 4) + 16 * (lane / 4) + 128 * half } else { 32 * lane + 16 * half };
    (bit / 128, bit % 128 / 16)
}

/// Decodes `mma.sync.aligned.m16n8k16.row.col` with sums in f32; none where it is another instruction.
pub(super) fn decode(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Together>, String> {
    let widen: fn(u16) -> f64 = match parts {
        ["mma", "sync", "aligned", "m16n8k16", "row", "col", "f32", "bf16", "bf16", "f32"] => {
            |bits| bf16::from_bits(bits).to_f64()
        }
        ["mma", "sync", "aligned", "m16n8k16", "row", "col", "f32", "f16", "f16", "f32"] => {
            |bits| f16::from_bits(bits).to_f64()
        }
        _ => return Ok(None),
    };
    let (d, a, b, c) = (it.slots(0, false)?, it.slots(1, false)?, it.slots(2, false)?, it.slots(3, false)?);
    let words = |slots: &[Slot], count| {
        let words: Option<Vec<usize>> =
            slots.iter().map(|slot| if let Slot::Word(word) = slot { Some(*word) } else { None }).collect();
        words.filter(|words| words.len() == count).ok_or_else(|| format!("{count} registers of 32 bits expected"))
    };
    let (d, a, b, c) = (words(&d, 4)?, words(&a, 4)?, words(&b, 2)?, words(&c, 4)?);
    Ok(Some(Box::new(move |registers, _| {
        multiply(registers, &d, &a, &b, &c, widen);
        Ok(())
    })))
}

/// `d = a b + c`. The manual leaves open in which order and how precisely an element is summed: here exactly, or nearly, then cut off
/// at an f32, as the hardware cuts off and does not round.
fn multiply(registers: &mut Registers, d: &[usize], a: &[usize], b: &[usize], c: &[usize], widen: fn(u16) -> f64) {
    let (mut rows, mut columns) = ([[0.0; K]; M], [[0.0; N]; K]);
    for lane in 0..LANES {
        for half in 0..2 {
            let value = |register: usize| widen((registers.words[register][lane] >> (16 * half)) as u16);
            for (at, register) in a.iter().enumerate() {
                let (row, k) = left(lane, at, half);
                rows[row][k] = value(*register);
            }
            for (at, register) in b.iter().enumerate() {
                let (column, k) = right(lane, at, half);
                columns[k][column] = value(*register);
            }
        }
    }
    let mut sums = [[0.0f64; N]; M];
    for (row, sums) in rows.iter().zip(&mut sums) {
        for (left, right) in row.iter().zip(&columns) {
            sums.iter_mut().zip(right).for_each(|(sum, right)| *sum += left * right);
        }
    }
    for (at, (d, c)) in d.iter().zip(c).enumerate() {
        registers.words[*d] = std::array::from_fn(|lane| {
            let (row, column) = sum(lane, at);
            cut(sums[row][column] + f64::from(f32::from_bits(registers.words[*c][lane]))).to_bits()
        });
    }
}

/// An f32 towards zero.
fn cut(x: f64) -> f32 {
    super::rounding::narrow(x, super::rounding::Rounding::Zero)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_element_has_one_place() {
        let lanes = || (0..LANES).flat_map(|lane| (0..2).map(move |half| (lane, half)));
        let left: BTreeSet<_> = lanes().flat_map(|(l, h)| (0..4).map(move |r| left(l, r, h))).collect();
        let right: BTreeSet<_> = lanes().flat_map(|(l, h)| (0..2).map(move |r| right(l, r, h))).collect();
        let sums: BTreeSet<_> = (0..LANES).flat_map(|l| (0..4).map(move |r| sum(l, r))).collect();
        assert_eq!((left.len(), right.len(), sums.len()), (M * K, N * K, M * N));
        for transposed in [false, true] {
            let loaded: BTreeSet<_> = lanes().map(|(l, h)| loaded(l, h, transposed)).collect();
            assert_eq!(loaded.len(), 64);
        }
    }
}
