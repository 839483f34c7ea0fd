//! Matmul: products of strided matrices, by the `gemm` crate.
#![allow(unsafe_code)] // one call into `gemm`, whose bounds are checked just before it

use super::Exec;
use gemm::Parallelism;

/// A borrowed matrix: element (i, j) lies at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A packed row-major matrix.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// A row-major matrix whose rows lie `row_stride` values apart.
    pub(crate) fn strided(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose; moves nothing.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn fits(&self) -> bool {
        fits(self.values.len(), self.rows, self.columns, self.row_stride, self.column_stride)
    }
}

/// A row-major matrix to write into.
pub(crate) struct MatrixMut<'a> {
    values: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// A packed row-major matrix.
    pub(crate) fn new(values: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// A row-major matrix whose rows lie `row_stride` values apart.
    pub(crate) fn strided(values: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, rows, columns, row_stride }
    }
}

/// What happens to the values already in the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    Overwrite,
    Accumulate,
}

/// `out = a b`, or `out += a b`.
///
/// The order of the additions in one element depends on the shapes alone, not on the number of threads.
///
/// # Panics
/// When the shapes do not agree or reach past the slices: a mistake in a kernel, never in a user's data.
pub(crate) fn matmul(exec: Exec, into: Into, out: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    assert!(a.columns == b.rows && out.rows == a.rows && out.columns == b.columns, "matmul shapes disagree");
    assert!(a.fits() && b.fits(), "matmul operand is too short");
    assert!(fits(out.values.len(), out.rows, out.columns, out.row_stride, 1), "matmul result is too short");
    let parallelism = match exec {
        Exec::Split => Parallelism::Rayon(0),
        Exec::Alone | Exec::Device { .. } => Parallelism::None,
    };
    // SAFETY: every element addressed by the strides lies inside its slice (asserted above), `out` is borrowed
    // mutably and so overlaps neither operand.
    unsafe {
        gemm::gemm(
            out.rows,
            out.columns,
            a.columns,
            out.values.as_mut_ptr(),
            1,
            out.row_stride.cast_signed(),
            into == Into::Accumulate,
            a.values.as_ptr(),
            a.column_stride.cast_signed(),
            a.row_stride.cast_signed(),
            b.values.as_ptr(),
            b.column_stride.cast_signed(),
            b.row_stride.cast_signed(),
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn fits(length: usize, rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + (columns - 1) * column_stride < length
}
