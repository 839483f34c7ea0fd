//! Product: what cuBLAS computes, α op(A) op(B) + β C, all matrices columns first.

use crate::Fault;
use crate::memory::{Memory, Unwritten};
use half::bf16;

/// Lanes in which a sum is gathered.
const LANES: usize = 16;
/// Columns of the result that are computed side by side.
const TILE: usize = 4;

/// A type of values in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// 32 bits.
    F32,
    /// The upper half of that.
    Bf16,
}

impl Type {
    /// Bytes of a value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A matrix in memory.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Its first value.
    pub address: u64,
    /// Of its values.
    pub values: Type,
    /// As it lies, before it is transposed.
    pub rows: usize,
    /// As it lies.
    pub columns: usize,
    /// Values from one column to the next.
    pub stride: usize,
}

impl Matrix {
    fn span(&self) -> u64 {
        let values = if self.columns == 0 || self.rows == 0 { 0 } else { (self.columns - 1) * self.stride + self.rows };
        values as u64 * self.values.bytes()
    }

    fn is_aligned(&self) -> bool {
        self.address.is_multiple_of(16) && (self.stride as u64 * self.values.bytes()).is_multiple_of(16)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.address < other.address + other.span() && other.address < self.address + self.span()
    }

    /// Its values without gaps, columns first.
    fn read(&self, memory: &Memory) -> Result<Vec<f32>, Fault> {
        let bytes = self.values.bytes();
        let mut all = Vec::with_capacity(self.rows * self.columns);
        for column in 0..self.columns {
            let address = self.address + (column * self.stride) as u64 * bytes;
            let read = memory.read(address, self.rows as u64 * bytes, Unwritten::Refused)?;
            match self.values {
                Type::F32 => all.extend(read.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
                Type::Bf16 => all.extend(read.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32())),
            }
        }
        Ok(all)
    }

    fn write(&self, memory: &mut Memory, values: &[f32]) -> Result<(), Fault> {
        for (column, values) in values.chunks(self.rows).enumerate() {
            let address = self.address + (column * self.stride) as u64 * self.values.bytes();
            let bytes: Vec<u8> = match self.values {
                Type::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                Type::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            };
            memory.write(address, &bytes)?;
        }
        Ok(())
    }
}

/// A product that is queued.
#[derive(Debug, Clone)]
pub struct Product {
    /// The first factor, and whether its transpose is meant.
    pub first: (Matrix, bool),
    /// The second, likewise.
    pub second: (Matrix, bool),
    /// The result; read as well unless `beta` is 0.
    pub out: Matrix,
    /// Of the product.
    pub alpha: f32,
    /// Of what was in the result.
    pub beta: f32,
    /// Whether factors are rounded to 10 bits of fraction.
    pub tf32: bool,
}

impl Product {
    fn inner(&self) -> usize {
        if self.first.1 { self.first.0.rows } else { self.first.0.columns }
    }

    /// Shape and types in words, for the counts.
    pub fn shape(&self) -> String {
        let letter = |transposed| if transposed { 'T' } else { 'N' };
        let (first, second) = (letter(self.first.1), letter(self.second.1));
        let values = if self.tf32 { "TF32".into() } else { format!("{:?}", self.first.0.values) };
        let add = if self.beta == 0.0 { "" } else { " +=" };
        let Matrix { rows, columns, values: out, .. } = self.out;
        format!("{first}{second} {rows}x{columns}x{} {values} to {out:?}{add}", self.inner())
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> u64 {
        2 * (self.out.rows * self.out.columns * self.inner()) as u64
    }

    /// Bytes of the operands.
    pub fn bytes(&self) -> u64 {
        let size = |matrix: &Matrix| (matrix.rows * matrix.columns) as u64 * matrix.values.bytes();
        let out = if self.beta == 0.0 { 1 } else { 2 } * size(&self.out);
        size(&self.first.0) + size(&self.second.0) + out
    }

    /// Whether all operands suit 16-byte accesses.
    pub fn is_aligned(&self) -> bool {
        [&self.first.0, &self.second.0, &self.out].iter().all(|matrix| matrix.is_aligned())
    }

    /// Computes it. Sums run in [`LANES`] lanes from the last term to the first, so that nobody agrees by the same order.
    pub fn run(&self, memory: &mut Memory) -> Result<(), Fault> {
        self.compute(memory).map_err(|fault| Fault::new(format!("cuBLAS, {}: {fault}", self.shape())))
    }

    fn compute(&self, memory: &mut Memory) -> Result<(), Fault> {
        if self.out.overlaps(&self.first.0) || self.out.overlaps(&self.second.0) {
            return Err(Fault::new("the result lies over a factor"));
        }
        let Matrix { rows, columns, .. } = self.out;
        let inner = self.inner();
        let mut first = self.lines(memory, self.first.0, !self.first.1)?; // rows of op(A)
        let second = self.lines(memory, self.second.0, self.second.1)?; // columns of op(B)
        first.truncate(rows * padded(inner));
        let mut out = if self.beta == 0.0 { vec![0.0; rows * columns] } else { self.out.read(memory)? };
        let width = padded(inner);
        for (out, second) in out.chunks_mut(TILE * rows).zip(second.chunks(TILE * width)) {
            for (row, first) in first.chunks(width).enumerate() {
                let sums = dots(first, second);
                for (out, sum) in out.chunks_mut(rows).zip(sums) {
                    let old = if self.beta == 0.0 { 0.0 } else { self.beta * out[row] };
                    out[row] = self.alpha * sum + old;
                }
            }
        }
        self.out.write(memory, &out)
    }

    /// The lines along which sums run, the matrix's rows or its columns, padded with zeros to whole lanes and whole tiles.
    fn lines(&self, memory: &Memory, matrix: Matrix, rows: bool) -> Result<Vec<f32>, Fault> {
        let values = matrix.read(memory)?;
        let (lines, length) = if rows { (matrix.rows, matrix.columns) } else { (matrix.columns, matrix.rows) };
        let width = padded(length);
        let mut packed = vec![0.0; lines.next_multiple_of(TILE) * width];
        for (column, values) in values.chunks(matrix.rows.max(1)).enumerate() {
            for (row, value) in values.iter().enumerate() {
                let (line, place) = if rows { (row, column) } else { (column, row) };
                packed[line * width + place] = if self.tf32 { tf32(*value) } else { *value };
            }
        }
        Ok(packed)
    }
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(LANES).max(LANES)
}

/// Inner products of a line with each of [`TILE`] lines.
fn dots(one: &[f32], lines: &[f32]) -> [f32; TILE] {
    let one = one.as_chunks::<LANES>().0;
    let count = one.len();
    let (lines, _) = lines.as_chunks::<LANES>();
    let [a, b, c, d] = std::array::from_fn(|line| &lines[line * count..(line + 1) * count]);
    let mut sums = [[0f32; LANES]; TILE];
    for ((((one, a), b), c), d) in one.iter().zip(a).zip(b).zip(c).zip(d).rev() {
        for lane in 0..LANES {
            sums[0][lane] = one[lane].mul_add(a[lane], sums[0][lane]);
            sums[1][lane] = one[lane].mul_add(b[lane], sums[1][lane]);
            sums[2][lane] = one[lane].mul_add(c[lane], sums[2][lane]);
            sums[3][lane] = one[lane].mul_add(d[lane], sums[3][lane]);
        }
    }
    sums.map(|lanes| lanes.iter().rev().sum())
}

/// Rounds to 10 bits of fraction, halves away from zero, as `cvt.rna.tf32` does.
fn tf32(value: f32) -> f32 {
    if value.is_finite() { f32::from_bits((value.to_bits() + 0x1000) & !0x1fff) } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(memory: &mut Memory, values: Type, rows: usize, columns: usize, stride: usize) -> (Matrix, Vec<f32>) {
        let address = memory.allocate(((columns - 1) * stride + rows) as u64 * values.bytes()).unwrap();
        let matrix = Matrix { address, values, rows, columns, stride };
        let numbers: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 + rows) % 23) as f32 - 11.0).collect();
        matrix.write(memory, &numbers).unwrap();
        (matrix, numbers)
    }

    #[test]
    fn products_are_those_of_the_definition() {
        let (m, n, k) = (7, 9, 33);
        for (first_t, second_t, values, beta) in [
            (false, false, Type::F32, 0.0),
            (true, false, Type::Bf16, 0.0),
            (false, true, Type::F32, 1.0),
            (true, true, Type::Bf16, 2.0),
        ] {
            let mut memory = Memory::new(1 << 20);
            let (a_rows, a_columns) = if first_t { (k, m) } else { (m, k) };
            let (b_rows, b_columns) = if second_t { (n, k) } else { (k, n) };
            let (first, a) = filled(&mut memory, values, a_rows, a_columns, a_rows + 3);
            let (second, b) = filled(&mut memory, values, b_rows, b_columns, b_rows);
            let (out, c) = filled(&mut memory, Type::F32, m, n, m + 1);
            let product =
                Product { first: (first, first_t), second: (second, second_t), out, alpha: 0.5, beta, tf32: false };
            product.run(&mut memory).unwrap();
            let read = out.read(&memory).unwrap();
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let a = |l: usize| f64::from(if first_t { a[l + i * k] } else { a[i + l * m] });
                let b = |l: usize| f64::from(if second_t { b[j + l * n] } else { b[l + j * k] });
                let sum: f64 = (0..k).map(|l| a(l) * b(l)).sum();
                let wanted = 0.5 * sum + f64::from(beta) * f64::from(c[i + j * m]);
                assert_eq!(f64::from(read[i + j * m]), wanted, "{i} {j} {first_t} {second_t}"); // whole halves: exact
            }
        }
    }

    #[test]
    fn operands_that_end_too_early_or_overlap_are_faults() {
        let mut memory = Memory::new(1 << 20);
        let (first, _) = filled(&mut memory, Type::F32, 8, 8, 8);
        let (second, _) = filled(&mut memory, Type::F32, 8, 8, 8);
        let (out, _) = filled(&mut memory, Type::F32, 8, 8, 8);
        let product =
            Product { first: (first, false), second: (second, false), out, alpha: 1.0, beta: 0.0, tf32: false };
        assert!(product.run(&mut memory).is_ok());
        let long = Product { second: (Matrix { stride: 9, ..second }, false), ..product.clone() };
        assert!(long.run(&mut memory).unwrap_err().to_string().contains("reads 32 bytes"));
        let over = Product { out: Matrix { address: first.address, ..out }, ..product };
        assert!(over.run(&mut memory).unwrap_err().to_string().contains("over a factor"));
    }

    #[test]
    fn tf32_keeps_ten_bits() {
        assert_eq!(tf32(1.0 + 1.0 / 1024.0), 1.0 + 1.0 / 1024.0);
        assert_eq!((tf32(1.0 + 1.0 / 2048.0), tf32(1.0 + 1.0 / 4096.0)), (1.0 + 1.0 / 1024.0, 1.0));
        assert!(tf32(f32::NAN).is_nan());
    }
}
