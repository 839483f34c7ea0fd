//! Low-rank sum: products of thin matrices added to a matrix, as one product.

use super::Exec;
use super::matmul::{Into, Matrix, MatrixMut, matmul};

/// What is added to a matrix `[rows, columns]`: `scale · left · right`.
#[derive(Debug, Clone)]
pub struct LowRankFactors {
    /// `[rows, rank]`.
    pub left: Vec<f32>,
    /// `[rank, columns]`.
    pub right: Vec<f32>,
    /// The inner dimension.
    pub rank: usize,
    /// Multiplies the product.
    pub scale: f64,
}

/// Adds Σ `weight · scale · left · right` to `out`, `[rows, columns]`.
///
/// The factors are laid side by side, Σ wᵢLᵢRᵢ = [w₁L₁ w₂L₂ …] [R₁; R₂; …], so that the matrix is passed over once, whatever the
/// number of updates. Weights enter the left factors, rounded to f32.
///
/// # Panics
/// When a factor does not fit the others or `out`.
pub fn add_low_rank(out: &mut [f32], updates: &[(f64, LowRankFactors)]) {
    let Some((_, first)) = updates.first() else { return };
    let (rows, rank) = (first.left.len() / first.rank, updates.iter().map(|(_, update)| update.rank).sum());
    let mut left = Vec::with_capacity(rows * rank);
    for row in 0..rows {
        for (weight, update) in updates {
            let weight = weight * update.scale;
            let values = &update.left[row * update.rank..][..update.rank];
            left.extend(values.iter().map(|value| (weight * f64::from(*value)) as f32));
        }
    }
    let right = updates.iter().map(|(_, update)| update.right.as_slice()).collect::<Vec<_>>().concat();
    let columns = right.len() / rank;
    assert!(out.len() == rows * columns, "an update of {rows} rows and {columns} columns for {} values", out.len());
    let out = MatrixMut::new(out, rows, columns);
    matmul(Exec::Split, Into::Accumulate, out, Matrix::new(&left, rows, rank), Matrix::new(&right, rank, columns));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn updates_side_by_side_are_those_one_by_one_in_f64() {
        let mut stream = Stream::new(0, "low-rank sums");
        let (rows, columns) = (7, 5);
        let mut normals = |n: usize| (0..n).map(|_| stream.normal() as f32).collect::<Vec<f32>>();
        let updates: Vec<(f64, LowRankFactors)> = [(0.3, 1), (-0.7, 4), (1.0, 2)]
            .map(|(weight, rank)| {
                let (left, right) = (normals(rows * rank), normals(rank * columns));
                (weight, LowRankFactors { left, right, rank, scale: 2.0 / rank as f64 })
            })
            .into();
        let before = normals(rows * columns);
        let mut after = before.clone();
        add_low_rank(&mut after, &updates);
        for row in 0..rows {
            for column in 0..columns {
                let product = |(weight, update): &(f64, LowRankFactors)| {
                    let LowRankFactors { left, right, rank, scale } = update;
                    let terms =
                        (0..*rank).map(|k| f64::from(left[row * rank + k]) * f64::from(right[k * columns + column]));
                    weight * scale * terms.sum::<f64>()
                };
                let place = row * columns + column;
                let expected = f64::from(before[place]) + updates.iter().map(product).sum::<f64>();
                let error = (f64::from(after[place]) - expected).abs();
                assert!(error < 2e-6, "row {row}, column {column}: {error}"); // seven f32 roundings of numbers near 3
            }
        }
    }
}
