//! Linear: a matrix applied to every row, and its gradient.

use super::matmul::{Into, Matrix, MatrixMut, matmul};
use super::{Exec, modify, tensor, values};
use crate::error::Result;
use candle_core::Tensor;

/// `x wᵀ`.
///
/// # Shapes
/// `x: [n, in]`, `w: [out, in]` (`PyTorch`'s layout) → `[n, out]`.
pub fn linear(exec: Exec, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (n, inputs) = x.dims2()?;
    let outputs = w.dim(0)?;
    let (x, w) = (values(x)?, values(w)?);
    let mut y = vec![0f32; n * outputs];
    matmul(
        exec,
        Into::Overwrite,
        MatrixMut::new(&mut y, n, outputs),
        Matrix::new(&x, n, inputs),
        Matrix::new(&w, outputs, inputs).t(),
    );
    tensor(y, n, outputs)
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
    let (n, inputs) = x.dims2()?;
    let outputs = w.dim(0)?;
    let (x, w, dy) = (values(x)?, values(w)?, values(dy)?);
    modify(dw, |dw| {
        let dy = Matrix::new(&dy, n, outputs).t();
        matmul(exec, Into::Accumulate, MatrixMut::new(dw, outputs, inputs), dy, Matrix::new(&x, n, inputs));
    })?;
    let into = if dx.is_some() { Into::Accumulate } else { Into::Overwrite };
    let dx = dx.map_or_else(|| tensor(vec![0f32; n * inputs], n, inputs), Ok)?;
    modify(&dx, |dx| {
        let dy = Matrix::new(&dy, n, outputs);
        matmul(exec, into, MatrixMut::new(dx, n, inputs), dy, Matrix::new(&w, outputs, inputs));
    })?;
    Ok(dx)
}
