//! Gemm: matrix products of f32 or bf16 with sums in f32.

use super::unavailable;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// A matrix in a product, as it lies or transposed.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(super) tensor: &'a Tensor,
    pub(super) transposed: bool,
}

impl<'a> Operand<'a> {
    /// The matrix as it lies.
    pub(crate) fn plain(tensor: &'a Tensor) -> Self {
        Self { tensor, transposed: false }
    }

    /// Its transpose; nothing moves.
    pub(crate) fn transposed(tensor: &'a Tensor) -> Self {
        Self { tensor, transposed: true }
    }

    fn dims(&self) -> Result<(usize, usize)> {
        let (rows, columns) = self.tensor.dims2()?;
        Ok(if self.transposed { (columns, rows) } else { (rows, columns) })
    }
}

/// A product as cuBLAS is asked for it. It counts columns first, so what it sees are the transposes of our matrices, and what we
/// want, outᵀ = bᵀ aᵀ, is its product of `b` and `a`, in this order.
#[derive(Clone, Copy)]
#[cfg_attr(not(any(feature = "cuda", feature = "cuda-emulation")), allow(dead_code))] // read where products run
pub(super) struct Product<'a> {
    pub(super) first: Factor<'a>,
    pub(super) second: Factor<'a>,
    /// `[columns, rows]`, columns first, packed.
    pub(super) out: &'a Tensor,
    /// Rows of the first factor and the result.
    pub(super) rows: usize,
    /// Columns of the second factor and the result.
    pub(super) columns: usize,
    /// Columns of the first factor and rows of the second.
    pub(super) inner: usize,
    pub(super) accumulate: bool,
    pub(super) tf32: bool,
}

/// A factor as cuBLAS sees it.
#[derive(Clone, Copy)]
#[cfg_attr(not(any(feature = "cuda", feature = "cuda-emulation")), allow(dead_code))]
pub(super) struct Factor<'a> {
    pub(super) tensor: &'a Tensor,
    /// Whether its transpose is meant.
    pub(super) transposed: bool,
    /// Values between the starts of two of its columns.
    pub(super) stride: usize,
}

impl<'a> Factor<'a> {
    fn of(operand: Operand<'a>) -> Result<Self> {
        // Row-major [r, c] is column-major [c, r] with columns c apart; transposed twice it is as it was.
        Ok(Self { tensor: operand.tensor, transposed: operand.transposed, stride: operand.tensor.dim(1)? })
    }
}

/// Adds `a b` to `sum`, or to a new tensor of the factors' type; returns it.
pub(crate) fn product(tf32: bool, a: Operand<'_>, b: Operand<'_>, sum: Option<Tensor>) -> Result<Tensor> {
    let accumulate = sum.is_some();
    let shape = (a.dims()?.0, b.dims()?.1);
    let out = sum.map_or_else(|| super::empty_like(shape, a.tensor), Ok)?;
    gemm(tf32, &out, accumulate, a, b)?;
    Ok(out)
}

/// `out = a b`, or `out += a b`. Both factors are of one type; sums are carried in f32 and rounded to the type of `out` once.
/// With `tf32`, f32 factors may be rounded to 10 bits of fraction.
///
/// # Errors
/// [`Error::Mismatch`] when the shapes or types do not agree.
pub(crate) fn gemm(tf32: bool, out: &Tensor, accumulate: bool, a: Operand<'_>, b: Operand<'_>) -> Result<()> {
    let ((rows, inner), (b_rows, columns)) = (a.dims()?, b.dims()?);
    let wanted = (out.dims2()?, b_rows, b.tensor.dtype());
    let types =
        matches!((a.tensor.dtype(), out.dtype()), (DType::F32 | DType::BF16, DType::F32) | (DType::BF16, DType::BF16));
    if wanted != ((rows, columns), inner, a.tensor.dtype()) || !types {
        let shapes = [a.tensor, b.tensor, out].map(|tensor| format!("{:?} {:?}", tensor.dtype(), tensor.dims()));
        return Err(Error::Mismatch { what: "operands of a matrix product".into(), differences: shapes.join(", ") });
    }
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    super::count_launch();
    let (first, second) = (Factor::of(b)?, Factor::of(a)?);
    let product = Product { first, second, out, rows: columns, columns: rows, inner, accumulate, tf32 };
    match out.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::cuda::gemm(device, &product),
        #[cfg(feature = "cuda-emulation")]
        Device::Cpu => super::emulated::gemm(&product),
        _ => {
            let _ = (product, Device::Cpu);
            Err(unavailable("a matrix product"))
        }
    }
}
