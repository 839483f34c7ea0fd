//! Golden merge: averages of models against `NumPy` (`scripts/reference/merge.py`), and the laws that averaging keeps for
//! arbitrary values, types, sizes and alignments.

mod common;

use common::{bits, golden, ids, numbers, splitmix, spread};
use mixpool::kernels::{Floats, weighted_sum};
use mixpool::merge::average;
use mixpool::model::{Checkpoint, Layout, ModelConfig, write_checkpoint};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[test]
fn averages_are_those_of_numpy_to_the_last_bit() {
    let golden = golden("merge");
    let size = golden["size"].as_u64().unwrap() as usize;
    let layout = Layout::from_shapes(BTreeMap::from([("w".to_owned(), vec![size])]));
    let config = ModelConfig::preset("pico").unwrap();
    let members: Vec<_> = golden["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| {
            let folder = tempfile::tempdir().unwrap();
            let values = common::values(name.as_str().unwrap(), size);
            write_checkpoint(folder.path(), &config, &layout, &values).unwrap();
            Checkpoint::open(folder.path()).unwrap()
        })
        .collect();
    for case in golden["cases"].as_array().unwrap() {
        let weighted: Vec<_> = numbers(&case["weights"]).into_iter().zip(&members).collect();
        let mut out = vec![f32::NAN; size];
        average(&mut out, &layout, &weighted).unwrap();
        // No tolerance: both sides add the same f64 products in the same order and round once.
        assert_eq!(bits(&out), ids(&case["bits"]), "{}", case["name"]);
    }
}

/// Sizes around the vector, block and tile lengths of the kernel.
fn size() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![0, 1, 3, 15, 16, 17, 255, 256, 257, 16_383, 16_384, 16_385, 40_001])
}

/// Positive weights that sum to 1 up to rounding, one to seven of them.
fn weights() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(0.01..1f64, 1..8).prop_map(|weights| {
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    })
}

/// `size` finite numbers of every magnitude and sign, zeros and subnormals among them.
fn wild(seed: u64, size: usize) -> Vec<f32> {
    let number = |i| match splitmix(seed, i) {
        r if r % 8 == 0 => f32::copysign(0.0, if r & 8 == 0 { 1.0 } else { -1.0 }),
        r => f32::from_bits((r >> 32) as u32),
    };
    (0..size as u64).map(number).map(|x| if x.is_finite() { x } else { -1.5 }).collect()
}

/// The bytes of `values` behind one byte, so that the values are not aligned.
fn unaligned(values: &[f32]) -> Vec<u8> {
    std::iter::once(0).chain(values.iter().flat_map(|value| value.to_le_bytes())).collect()
}

/// The weighted sum of f32 members, none of them aligned.
fn merged(weights: &[f64], members: &[Vec<f32>]) -> Vec<f32> {
    let bytes: Vec<_> = members.iter().map(|member| unaligned(member)).collect();
    let weighted: Vec<_> = weights.iter().zip(&bytes).map(|(w, bytes)| (*w, Floats::F32(&bytes[1..]))).collect();
    sum(members[0].len(), &weighted)
}

fn sum(size: usize, members: &[(f64, Floats<'_>)]) -> Vec<f32> {
    let mut out = vec![f32::NAN; size];
    weighted_sum(&mut out, members);
    out
}

/// The spacing of f32 numbers around `x`.
fn ulp(x: f32) -> f64 {
    let next = f32::from_bits(x.abs().to_bits() + 1);
    f64::from(next) - f64::from(x.abs())
}

/// A bf16 or f16 number as f64, by its definition; infinity and NaN are not asked for.
fn decode(bits: u16, exponent_bits: u32) -> f64 {
    let fraction_bits = 15 - exponent_bits;
    let (exponent, fraction) =
        (i32::from(bits & 0x7fff) >> fraction_bits, f64::from(bits & ((1 << fraction_bits) - 1)));
    let (bias, unit) = ((1 << (exponent_bits - 1)) - 1, 2f64.powi(-(fraction_bits as i32)));
    let magnitude = match exponent {
        0 => fraction * unit * 2f64.powi(1 - bias),
        _ => (1.0 + fraction * unit) * 2f64.powi(exponent - bias),
    };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

proptest! {
    #[test]
    fn a_member_of_weight_one_comes_out_bit_for_bit(
        size in size(), seed: u64, count in 1..5usize, chosen: prop::sample::Index
    ) {
        let members: Vec<_> = (0..count as u64).map(|k| wild(seed ^ k, size)).collect();
        let chosen = chosen.index(count);
        let one_hot: Vec<_> = (0..count).map(|k| f64::from(u8::from(k == chosen))).collect();
        prop_assert_eq!(bits(&merged(&one_hot, &members)), bits(&members[chosen]));
    }

    #[test]
    fn equal_members_come_out_bit_for_bit(size in size(), seed: u64, weights in weights()) {
        let member = wild(seed, size);
        prop_assert_eq!(bits(&merged(&weights, &vec![member.clone(); weights.len()])), bits(&member));
    }

    #[test]
    fn the_order_of_members_changes_at_most_the_last_bit(size in size(), seed: u64, mut weights in weights()) {
        let mut members: Vec<_> = (0..weights.len()).map(|k| spread(&format!("{seed} {k}"), size, 2.0)).collect();
        let forwards = merged(&weights, &members);
        weights.reverse();
        members.reverse();
        for (a, b) in forwards.iter().zip(merged(&weights, &members)) {
            // Where members cancel, the f64 rounding errors of terms below 1 may exceed the last bit of what is left.
            let tolerance = ulp(*a).max(8.0 * f64::EPSILON);
            prop_assert!((f64::from(*a) - f64::from(b)).abs() <= tolerance, "{} and {}", a, b);
        }
    }

    #[test]
    fn mixed_types_are_summed_in_f64_and_rounded_once(size in size(), seed: u64, weights in weights()) {
        // Exponents with the top bit clear leave out infinities, NaN and sums beyond f32.
        let bytes = |k: usize| -> Vec<u8> {
            (0..=4 * size as u64).map(|i| (splitmix(seed ^ k as u64, i) >> 56) as u8).collect()
        };
        let all: Vec<_> = (0..weights.len()).map(|k| {
            let mut bytes = bytes(k);
            let width = if k % 3 == 0 { 4 } else { 2 };
            bytes[1..].chunks_mut(width).for_each(|value| value[width - 1] &= 0xbf);
            bytes
        }).collect();
        let floats = |k: usize| match k % 3 {
            0 => Floats::F32(&all[k][1..]),
            1 => Floats::BF16(&all[k][1..=2 * size]),
            _ => Floats::F16(&all[k][1..=2 * size]),
        };
        let value = |k: usize, i: usize| {
            let short = || u16::from_le_bytes([all[k][1 + 2 * i], all[k][2 + 2 * i]]);
            match k % 3 {
                0 => f64::from(f32::from_le_bytes(*all[k][1 + 4 * i..].first_chunk().unwrap())),
                1 => decode(short(), 8),
                _ => decode(short(), 5),
            }
        };
        let weighted: Vec<_> = weights.iter().enumerate().map(|(k, weight)| (*weight, floats(k))).collect();
        for (i, got) in sum(size, &weighted).into_iter().enumerate() {
            let exact: f64 = weights.iter().enumerate().map(|(k, weight)| weight * value(k, i)).sum();
            // Rounding to nearest: half the spacing of f32, and no more.
            prop_assert!((f64::from(got) - exact).abs() <= 0.5 * ulp(got), "{} is not {} rounded", got, exact);
        }
    }
}

#[test]
#[should_panic(expected = "members must match the result in length")]
fn members_of_another_length_are_refused() {
    sum(3, &[(1.0, Floats::F32(&[0; 8]))]);
}

#[test]
fn a_member_of_weight_zero_is_not_read() {
    let members = [vec![f32::NAN, f32::INFINITY, -0.0], vec![1.0, -0.0, -0.0]];
    assert_eq!(bits(&merged(&[0.0, 1.0], &members)), bits(&members[1]));
}
