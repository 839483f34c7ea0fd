//! AVX-512: the weighted sum of one tile with its sums in registers, bit for bit the portable one.
//!
//! The compiler keeps the sums of the portable loop in memory and converts half precision by integer arithmetic; here eight
//! registers hold the sums of a block while up to [`GROUP`] members pass by, and the processor converts. More members
//! are taken in groups, run by run: reading a few hundred bytes from each of many files in turns defeats the processor's own
//! prefetching. What is read next is asked for ahead, so that memory works while sums are formed.
//! Large results are written past the caches: an ordinary store reads the line it overwrites, a fifth of all traffic for four
//! members in f32, a quarter for four in bf16.
#![allow(unsafe_code)] // one call: a store that goes past the caches

use super::{BLOCK, Floats, Store};
use core::arch::x86_64::_MM_HINT_T0;
use pulp::{cast, f32x8, f64x8, x86::V4};

/// Elements whose sums wait in the second-level cache (64 KiB) between two groups of members: several pages of each file.
const RUN: usize = 8192;
/// Files that are read in turns, give or take one or two.
const GROUP: usize = 4;
/// Blocks between a hint and the use of what it asks for, where there is one group only.
const AHEAD: usize = 16;
/// Elements of one register of f64.
const LANES: usize = 8;

/// The sums of one block.
type Sums = [f64x8; BLOCK / LANES];

/// Bytes that are written at once.
const LINE: usize = 64;

/// Writes Σ `weight · values` over one tile.
pub(super) fn sum_tile(simd: V4, store: Store, out: &mut [f32], members: &[(f64, Floats<'_>)]) {
    let part = |start: usize, length: usize| -> Vec<(f64, Floats<'_>)> {
        members.iter().map(|(weight, values)| (*weight, values.slice(start, length))).collect()
    };
    let (head, aligned) = out.split_at_mut(out.as_ptr().align_offset(LINE).min(out.len()));
    super::sum_tile_portably(head, &part(0, head.len()));
    let (blocks, rest) = aligned.as_chunks_mut::<BLOCK>();
    let inner = part(head.len(), blocks.len() * BLOCK);
    simd.vectorize(
        #[inline(always)]
        || sum_blocks(simd, store, blocks, &inner),
    );
    super::sum_tile_portably(rest, &part(head.len() + blocks.len() * BLOCK, rest.len()));
    if store == Store::Streamed {
        simd.sse._mm_sfence(); // before another thread is told that the tile is done
    }
}

#[inline(always)]
fn sum_blocks(simd: V4, store: Store, blocks: &mut [[f32; BLOCK]], members: &[(f64, Floats<'_>)]) {
    let nothing: Sums = [simd.splat_f64x8(-0.0); BLOCK / LANES]; // adds nothing to any number, −0 included
    let size = members.len().div_ceil(((members.len() + 1) / GROUP).max(1)).max(1);
    let (early, last) = members.split_at(members.len().saturating_sub(1) / size * size);
    let mut waiting = if early.is_empty() { Vec::new() } else { vec![nothing; RUN / BLOCK] };
    for (run, blocks) in blocks.chunks_mut(RUN / BLOCK).enumerate() {
        let first = run * RUN / BLOCK;
        for (index, group) in early.chunks(size).enumerate() {
            let next = early.chunks(size).nth(index + 1).unwrap_or(last);
            for (block, waiting) in waiting.iter_mut().take(blocks.len()).enumerate() {
                ask_for(simd, next, first + block);
                let start = if index == 0 { nothing } else { *waiting };
                *waiting = add_members(simd, start, group, first + block);
            }
        }
        let (next, ahead) = early.chunks(size).next().map_or((last, AHEAD), |group| (group, RUN / BLOCK));
        for (block, out) in blocks.iter_mut().enumerate() {
            ask_for(simd, next, first + block + ahead);
            let start = waiting.get(block).copied().unwrap_or(nothing);
            let sums = add_members(simd, start, last, first + block);
            write(simd, store, out, sums);
        }
    }
}

/// Hints that one block of every member will be read soon.
#[inline(always)]
fn ask_for(simd: V4, members: &[(f64, Floats<'_>)], block: usize) {
    for (_, values) in members {
        let (bytes, width) = match values {
            Floats::F32(bytes) => (bytes, 4),
            Floats::BF16(bytes) | Floats::F16(bytes) => (bytes, 2),
        };
        for line in 0..BLOCK * width / LINE {
            let place = bytes.as_ptr().wrapping_add(block * BLOCK * width + line * LINE);
            simd.sse._mm_prefetch::<_MM_HINT_T0>(place.cast()); // touches no memory and cannot fault, wherever it points
        }
    }
}

/// Rounds the sums of one block, whose place begins a line.
#[inline(always)]
fn write(simd: V4, store: Store, out: &mut [f32; BLOCK], sums: Sums) {
    let (eights, _) = out.as_chunks_mut::<LANES>();
    for i in 0..BLOCK / LANES {
        let rounded = simd.convert_f64x8_to_f32x8(sums[i]);
        match store {
            Store::Cached => eights[i] = cast(rounded),
            // SAFETY: the place is eight f32 long and aligned to 32 bytes: blocks begin at a multiple of LINE.
            Store::Streamed => unsafe { simd.avx._mm256_stream_ps(eights[i].as_mut_ptr(), cast(rounded)) },
        }
    }
}

/// Adds `weight · value` of every member for the values of one block.
#[inline(always)]
fn add_members(simd: V4, mut sums: Sums, members: &[(f64, Floats<'_>)], block: usize) -> Sums {
    for (weight, values) in members {
        let weight = simd.splat_f64x8(*weight);
        sums = match values {
            Floats::F32(bytes) => add(simd, sums, weight, bytes, block, cast::<[u8; 32], f32x8>),
            Floats::BF16(bytes) => add(simd, sums, weight, bytes, block, |values: [u8; 16]| {
                cast(simd.shl_const_u32x8::<16>(simd.convert_u16x8_to_u32x8(cast(values))))
            }),
            Floats::F16(bytes) => add(simd, sums, weight, bytes, block, |values: [u8; 16]| {
                cast(simd.avx512f._mm256_maskz_cvtph_ps(0xff, cast(values)))
            }),
        };
    }
    sums
}

/// Adds one member; `read` makes eight f32 of eight values as they lie in the file. The product is rounded before it is
/// added, as in `NumPy`.
#[inline(always)]
fn add<const BYTES: usize>(
    simd: V4,
    mut sums: Sums,
    weight: f64x8,
    bytes: &[u8],
    block: usize,
    read: impl Fn([u8; BYTES]) -> f32x8,
) -> Sums {
    let (eights, _) = bytes.as_chunks::<BYTES>();
    // An array of known length: a loop over a slice is not unrolled, and the sums would go through memory.
    let Some(eights) = eights[block * BLOCK / LANES..].first_chunk::<{ BLOCK / LANES }>() else { return sums };
    for i in 0..BLOCK / LANES {
        let product = simd.mul_f64x8(weight, simd.convert_f32x8_to_f64x8(read(eights[i])));
        sums[i] = simd.add_f64x8(sums[i], product);
    }
    sums
}
