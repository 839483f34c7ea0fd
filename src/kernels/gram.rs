//! Gram matrix: the sums of products of every two columns.

use super::device::{self, Operand};
use super::matmul::{Into, Matrix, MatrixMut, matmul};
use super::{Exec, values};
use crate::error::Result;
use candle_core::Tensor;

/// Rows that are multiplied in f32 before their products are added up in f64.
const ROWS: usize = 512;

/// Adds `xᵀ x` to `sums`, row-major, on the processor. On a device all rows are multiplied in f32 at once.
///
/// # Shapes
/// `x: [n, d]`, `sums: [d · d]`.
pub fn add_gram(exec: Exec, x: &Tensor, sums: &mut [f64]) -> Result<()> {
    let (_, width) = x.dims2()?;
    let mut add = |products: &[f32]| {
        sums.iter_mut().zip(products).for_each(|(sum, product)| *sum += f64::from(*product));
    };
    if let Exec::Device { tf32 } = exec {
        let products = device::product(tf32, Operand::transposed(x), Operand::plain(x), None)?;
        add(&products.flatten_all()?.to_vec1::<f32>()?);
        return Ok(());
    }
    let x = values(x)?;
    let mut products = vec![0f32; width * width];
    for x in x.chunks(ROWS * width) {
        let x = Matrix::new(x, x.len() / width, width);
        matmul(exec, Into::Overwrite, MatrixMut::new(&mut products, width, width), x.t(), x);
        add(&products);
    }
    Ok(())
}
