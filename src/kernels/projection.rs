//! Projection: a random matrix of signs that is never stored, and its transpose.
//!
//! Inner products survive a projection Pᵀx with P in {±1/√d}^{p×d} of independent signs (Achlioptas 2003): the mean of
//! ⟨Pᵀx, Pᵀy⟩ over P is ⟨x, y⟩, its variance (‖x‖²‖y‖² + ⟨x, y⟩² − 2 Σ xᵢ²yᵢ²) / d. A sign is one bit of a hash of the seed,
//! its column and its block of 64 positions, so P costs no memory, parts of a vector may come in any order, and the
//! signs of a column do not depend on how many columns there are.

use super::device::PlacedProjection;
use super::simd;
use crate::error::Result;
use candle_core::Device;
use rayon::prelude::*;
use std::ops::Range;

/// Positions whose signs in one column are one draw of the generator.
const BLOCK: usize = 64;
/// Positions handled by one task: 64 KiB of values. Sums within one are carried in f32, by lane and column.
const TILE: usize = 1 << 14;
/// Independent partial sums of a column: one AVX-512 register.
const LANES: usize = 16;
/// The most columns there may be; the generator counts blocks in steps of it.
const MAX_COLUMNS: usize = 1 << 20;
/// The top bit of an f32.
const SIGN: u32 = 1 << 31;

/// P in {±1/√d}^{p×d}, for vectors of any length p.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projection {
    seed: u64,
    columns: usize,
}

impl Projection {
    /// The projection to `columns` dimensions that belongs to a seed.
    ///
    /// # Panics
    /// When there is no column or there are more than 2²⁰.
    pub fn new(seed: u64, columns: usize) -> Self {
        assert!((1..=MAX_COLUMNS).contains(&columns), "a projection has 1 to 2^20 columns");
        Self { seed: mix(seed ^ 0x6d69_7870_6f6f_6c31), columns }
    }

    /// The dimension d that vectors are projected to.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The entry of P at a position and a column: 1/√d or −1/√d.
    pub fn entry(&self, position: usize, column: usize) -> f64 {
        let negative = self.word(position / BLOCK, column) >> (position % BLOCK) & 1 == 1;
        if negative { -self.scale() } else { self.scale() }
    }

    /// Adds Pᵀx to `sums`, for the part of x that begins at position `start`.
    ///
    /// The bytes of the sums depend on the parts and their order, not on the number of threads.
    ///
    /// # Panics
    /// When `sums` is not `[d]`.
    pub fn project(&self, start: usize, x: &[f32], sums: &mut [f64]) {
        assert_eq!(sums.len(), self.columns, "one sum per column");
        let tiles: Vec<Vec<f64>> = tiles(start, x.len())
            .into_par_iter()
            .map(|(first, length)| {
                let x = &x[first - start..][..length];
                simd::vectorised(
                    #[inline(always)]
                    || self.project_tile(first, x),
                )
            })
            .collect();
        let scale = self.scale();
        for (column, sum) in sums.iter_mut().enumerate() {
            *sum += scale * tiles.iter().map(|tile| tile[column]).sum::<f64>();
        }
    }

    /// Pᵀx of these ranges of x.
    ///
    /// # Panics
    /// When x is shorter.
    pub fn project_ranges(&self, ranges: &[Range<usize>], x: &[f32]) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        ranges.iter().for_each(|range| self.project(range.start, &x[range.clone()], &mut sums));
        sums
    }

    /// The projection of these ranges of vectors that lie on a device, or its emulation.
    ///
    /// # Errors
    /// Those of the device.
    pub fn placed(&self, ranges: &[Range<usize>], device: &Device) -> Result<PlacedProjection> {
        PlacedProjection::new((self.seed, self.columns, self.scale()), ranges, device)
    }

    /// Writes P w over `out`, the part of the result that begins at position `start`; `w: [d]`.
    ///
    /// # Panics
    /// When `w` is not `[d]`.
    pub fn back_project(&self, w: &[f64], start: usize, out: &mut [f32]) {
        assert_eq!(w.len(), self.columns, "one weight per column");
        let w: Vec<f32> = w.iter().map(|w| (w * self.scale()) as f32).collect();
        let mut parts = Vec::new();
        let mut rest = out;
        for (first, length) in tiles(start, rest.len()) {
            let (part, after) = rest.split_at_mut(length);
            parts.push((first, part));
            rest = after;
        }
        parts.into_par_iter().for_each(|(first, out)| {
            simd::vectorised(
                #[inline(always)]
                || self.back_project_tile(&w, first, out),
            );
        });
    }

    /// The sums of signed values, by column; `first` is the position of the first value.
    #[inline(always)]
    fn project_tile(&self, first: usize, x: &[f32]) -> Vec<f64> {
        let mut lanes = vec![[0f32; LANES]; self.columns];
        let mut words = vec![0; self.columns];
        let mut done = 0;
        while done < x.len() {
            let (block, offset) = ((first + done) / BLOCK, (first + done) % BLOCK);
            let part = &x[done..(done + BLOCK - offset).min(x.len())];
            self.words(block, &mut words);
            if let Some(part) = part.first_chunk() {
                add_signed(&mut lanes, &words, part);
            } else {
                let mut padded = [0f32; BLOCK];
                padded[offset..offset + part.len()].copy_from_slice(part);
                add_signed(&mut lanes, &words, &padded);
            }
            done += part.len();
        }
        lanes.iter().map(|lanes| lanes.iter().map(|lane| f64::from(*lane)).sum()).collect()
    }

    #[inline(always)]
    fn back_project_tile(&self, w: &[f32], first: usize, out: &mut [f32]) {
        let mut words = vec![0; self.columns];
        let mut done = 0;
        while done < out.len() {
            let (block, offset) = ((first + done) / BLOCK, (first + done) % BLOCK);
            let end = (done + BLOCK - offset).min(out.len());
            self.words(block, &mut words);
            let sums = sum_signed(w, &words);
            out[done..end].copy_from_slice(&sums[offset..offset + end - done]);
            done = end;
        }
    }

    /// The signs of one block in every column.
    #[inline(always)]
    fn words(&self, block: usize, words: &mut [u64]) {
        words.iter_mut().enumerate().for_each(|(column, word)| *word = self.word(block, column));
    }

    /// The signs of one block in one column: bit i is set where the entry at its position i is negative.
    #[inline(always)]
    fn word(&self, block: usize, column: usize) -> u64 {
        let counter = (block * MAX_COLUMNS + column) as u64;
        mix(self.seed.wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    fn scale(&self) -> f64 {
        1.0 / (self.columns as f64).sqrt()
    }
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood 2014), which is a hash of a counter.
#[inline(always)]
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The positions of each task, as first and length; they begin at multiples of [`TILE`].
fn tiles(start: usize, length: usize) -> Vec<(usize, usize)> {
    let end = start + length;
    let firsts = std::iter::successors(Some(start), |first| Some((first / TILE + 1) * TILE));
    firsts.take_while(|first| *first < end).map(|first| (first, end.min((first / TILE + 1) * TILE) - first)).collect()
}

/// `x` with its sign changed where bit `i` of `bits` is set.
#[inline(always)]
fn signed(x: f32, bits: u32, i: usize) -> f32 {
    f32::from_bits(x.to_bits() ^ (bits << (31 - i) & SIGN))
}

/// Adds a block with the signs of each column to the column's lanes.
#[inline(always)]
fn add_signed(lanes: &mut [[f32; LANES]], words: &[u64], x: &[f32; BLOCK]) {
    for (lanes, word) in lanes.iter_mut().zip(words) {
        let mut sums = *lanes;
        for part in 0..BLOCK / LANES {
            let bits = (word >> (part * LANES)) as u32;
            for i in 0..LANES {
                sums[i] += signed(x[part * LANES + i], bits, i);
            }
        }
        *lanes = sums;
    }
}

/// The sum over columns of their weights with the signs of each position of a block.
#[inline(always)]
fn sum_signed(w: &[f32], words: &[u64]) -> [f32; BLOCK] {
    let mut all = [0f32; BLOCK];
    for (part, out) in all.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut sums = [0f32; LANES]; // of one register: all four at once are kept in memory
        for (w, word) in w.iter().zip(words) {
            let bits = (word >> (part * LANES)) as u32;
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum += signed(*w, bits, i);
            }
        }
        *out = sums;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn normals(purpose: &str, n: usize) -> Vec<f32> {
        let mut stream = Stream::new(1, purpose);
        (0..n).map(|_| stream.normal() as f32).collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn projected(p: Projection, start: usize, x: &[f32]) -> Vec<f64> {
        let mut sums = vec![0.0; p.columns()];
        p.project(start, x, &mut sums);
        sums
    }

    #[test]
    fn both_ways_agree_with_the_matrix_written_out() {
        for (start, length, columns) in [(0, 1, 1), (0, 64, 3), (5, 100, 7), (63, 2, 20), (TILE - 70, TILE + 200, 33)] {
            let (p, x) = (Projection::new(9, columns), normals("x", length));
            let w: Vec<f64> = normals("w", columns).into_iter().map(f64::from).collect();
            let plain = |column| {
                let terms = x.iter().enumerate().map(|(i, x)| f64::from(*x) * p.entry(start + i, column));
                terms.sum::<f64>()
            };
            // f32 sums of up to TILE / 16 terms in each of 16 lanes; measured 1e-6 of the norm.
            let norm = x.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            for (column, got) in projected(p, start, &x).into_iter().enumerate() {
                assert!(
                    (got - plain(column)).abs() < 1e-5 * norm,
                    "column {column}: {got}, expected {}",
                    plain(column)
                );
            }
            let mut out = vec![7.0; length];
            p.back_project(&w, start, &mut out);
            for (i, got) in out.iter().enumerate() {
                let expected: f64 = (0..columns).map(|column| p.entry(start + i, column) * w[column]).sum();
                assert!((f64::from(*got) - expected).abs() < 2e-6 * dot(&w, &w).sqrt(), "{got}, expected {expected}");
            }
        }
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let (p, x) = (Projection::new(2, 50), normals("x", 3 * TILE / 2));
        let mut sums = vec![0.0; 50];
        for (first, end) in [(100, 20_000), (20_000, x.len()), (0, 100)] {
            p.project(first, &x[first..end], &mut sums);
        }
        let whole = projected(p, 0, &x);
        assert!(sums.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-3), "{sums:?} is not {whole:?}");
    }

    #[test]
    fn inner_products_survive_within_their_variance() {
        const SEEDS: u64 = 400;
        let (n, columns) = (500, 32);
        let x = normals("x", n);
        let y: Vec<f32> = x.iter().zip(normals("noise", n)).map(|(x, noise)| 0.5 * x + noise).collect();
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
        let (x64, y64) = (wide(&x), wide(&y));
        let exact = dot(&x64, &y64);
        let fourth: f64 = x64.iter().zip(&y64).map(|(x, y)| (x * y).powi(2)).sum();
        let variance = (dot(&x64, &x64) * dot(&y64, &y64) + exact * exact - 2.0 * fourth) / columns as f64;
        let errors: Vec<f64> = (0..SEEDS)
            .map(|seed| {
                let p = Projection::new(seed, columns);
                dot(&projected(p, 0, &x), &projected(p, 0, &y)) - exact
            })
            .collect();
        let mean = errors.iter().sum::<f64>() / SEEDS as f64;
        let spread = dot(&errors, &errors) / SEEDS as f64;
        // Four standard errors of the mean; of the variance, √(2/400) each.
        assert!(mean.abs() < 4.0 * (variance / SEEDS as f64).sqrt(), "mean error {mean}, variance {variance}");
        assert!((spread / variance - 1.0).abs() < 0.3, "variance {spread}, expected {variance}");
    }

    #[test]
    fn the_way_back_is_the_transpose() {
        let (p, x) = (Projection::new(3, 40), normals("x", 20_000));
        let w: Vec<f64> = normals("w", 40).into_iter().map(f64::from).collect();
        let mut back = vec![0.0; x.len()];
        p.back_project(&w, 1000, &mut back);
        let right: f64 = x.iter().zip(&back).map(|(x, b)| f64::from(*x) * f64::from(*b)).sum();
        let left = dot(&projected(p, 1000, &x), &w);
        assert!((left - right).abs() < 1e-5 * 20_000f64.sqrt(), "{left} is not {right}");
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (p, x) = (Projection::new(4, 30), normals("x", 5 * TILE));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| projected(p, 77, &x)).into_iter().map(f64::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(on(1), on(3));
    }
}
