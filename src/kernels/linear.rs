//! Linear: a matrix applied to every row, and its gradient; stored outputs first or, as GPT-2's, inputs first.

use super::device::{self, Operand};
use super::matmul::{Into, Matrix, MatrixMut, matmul};
use super::{Exec, modify, tensor, values};
use crate::error::Result;
use candle_core::Tensor;

/// `x wᵀ`.
///
/// # Shapes
/// `x: [n, in]`, `w: [out, in]` (`PyTorch`'s layout) → `[n, out]`.
pub fn linear(exec: Exec, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = w.dims2()?;
    if let Exec::Device { tf32 } = exec {
        return device::product(tf32, Operand::plain(x), Operand::transposed(w), None);
    }
    multiply(exec, x, Matrix::new(&values(w)?, outputs, inputs).t(), outputs)
}

/// `x w`, what Hugging Face's GPT-2 calls `Conv1D`.
///
/// # Shapes
/// `x: [n, in]`, `w: [in, out]` → `[n, out]`.
pub fn conv1d(exec: Exec, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (inputs, outputs) = w.dims2()?;
    if let Exec::Device { tf32 } = exec {
        return device::product(tf32, Operand::plain(x), Operand::plain(w), None);
    }
    multiply(exec, x, Matrix::new(&values(w)?, inputs, outputs), outputs)
}

/// Adds `dyᵀ x` to `dw` and `dy w` to `dx` (a new tensor when `dx` is `None`); returns `dx`.
///
/// # Shapes
/// `x, dx: [n, in]`, `w, dw: [out, in]`, `dy: [n, out]`.
pub fn linear_backward(
    exec: Exec,
    x: &Tensor,
    w: &Tensor,
    dy: &Tensor,
    dx: Option<Tensor>,
    dw: &Tensor,
) -> Result<Tensor> {
    if let Exec::Device { tf32 } = exec {
        device::gemm(tf32, dw, true, Operand::transposed(dy), Operand::plain(x))?;
        return device::product(tf32, Operand::plain(dy), Operand::plain(w), dx);
    }
    let (n, inputs) = x.dims2()?;
    let outputs = w.dim(0)?;
    let (x, w, dy) = (values(x)?, values(w)?, values(dy)?);
    modify(dw, |dw| {
        let dy = Matrix::new(&dy, n, outputs).t();
        matmul(exec, Into::Accumulate, MatrixMut::new(dw, outputs, inputs), dy, Matrix::new(&x, n, inputs));
    })?;
    add_product(exec, Matrix::new(&dy, n, outputs), Matrix::new(&w, outputs, inputs), dx, [n, inputs])
}

/// Adds `xᵀ dy` to `dw` and `dy wᵀ` to `dx` (a new tensor when `dx` is `None`); returns `dx`.
///
/// # Shapes
/// `x, dx: [n, in]`, `w, dw: [in, out]`, `dy: [n, out]`.
pub fn conv1d_backward(
    exec: Exec,
    x: &Tensor,
    w: &Tensor,
    dy: &Tensor,
    dx: Option<Tensor>,
    dw: &Tensor,
) -> Result<Tensor> {
    if let Exec::Device { tf32 } = exec {
        device::gemm(tf32, dw, true, Operand::transposed(x), Operand::plain(dy))?;
        return device::product(tf32, Operand::plain(dy), Operand::transposed(w), dx);
    }
    let (n, inputs) = x.dims2()?;
    let outputs = w.dim(1)?;
    let (x, w, dy) = (values(x)?, values(w)?, values(dy)?);
    modify(dw, |dw| {
        let x = Matrix::new(&x, n, inputs).t();
        matmul(exec, Into::Accumulate, MatrixMut::new(dw, inputs, outputs), x, Matrix::new(&dy, n, outputs));
    })?;
    add_product(exec, Matrix::new(&dy, n, outputs), Matrix::new(&w, inputs, outputs).t(), dx, [n, inputs])
}

/// `x w` for a matrix `[in, out]` however it lies.
fn multiply(exec: Exec, x: &Tensor, w: Matrix<'_>, outputs: usize) -> Result<Tensor> {
    let (n, inputs) = x.dims2()?;
    let x = values(x)?;
    let mut y = vec![0f32; n * outputs];
    matmul(exec, Into::Overwrite, MatrixMut::new(&mut y, n, outputs), Matrix::new(&x, n, inputs), w);
    tensor(y, n, outputs)
}

/// Adds `a b` to `sum`, or to a new tensor.
fn add_product(exec: Exec, a: Matrix<'_>, b: Matrix<'_>, sum: Option<Tensor>, shape: [usize; 2]) -> Result<Tensor> {
    let into = if sum.is_some() { Into::Accumulate } else { Into::Overwrite };
    let [rows, columns] = shape;
    let sum = sum.map_or_else(|| tensor(vec![0f32; rows * columns], rows, columns), Ok)?;
    modify(&sum, |sum| matmul(exec, into, MatrixMut::new(sum, rows, columns), a, b))?;
    Ok(sum)
}
