//! Inner products of every sequence's gradient with directions, on the device where these lie.

use super::inner_product::{Rows, add_inner_products};
use super::norm::{NormKind, column_sums, norm_backward};
use super::rows::gather;
use super::{Operand, empty, gemm};
use crate::error::Result;
use crate::kernels::along::pieces;
use candle_core::{DType, Tensor};

/// Values of gradients held at once, unless one sequence's are more: 256 MiB.
const HELD: usize = 1 << 26;

/// The sums of a batch, growing as parts of gradients are shown; what is read is f32 or bf16.
pub(in crate::kernels) struct DeviceAlong<'a> {
    directions: &'a Tensor, // f32, one after another
    count: usize,
    lengths: &'a [usize],
    sums: Tensor, // [sequences, directions] f64
}

impl<'a> DeviceAlong<'a> {
    pub(in crate::kernels) fn new(directions: &'a Tensor, count: usize, lengths: &'a [usize]) -> Result<Self> {
        let sums = Tensor::zeros(count * lengths.len(), DType::F64, directions.device())?;
        Ok(Self { directions, count, lengths, sums })
    }

    /// The inner products, read back: `[directions, sequences]`.
    pub(in crate::kernels) fn sums(&self) -> Result<Vec<f64>> {
        let sums = self.sums.to_vec1::<f64>()?;
        let of = |direction| sums.iter().skip(direction).step_by(self.count);
        Ok((0..self.count).flat_map(of).copied().collect())
    }

    pub(in crate::kernels) fn add_linear(
        &self,
        offset: usize,
        first_row: usize,
        inputs: &Tensor,
        outputs: &Tensor,
    ) -> Result<()> {
        let ((n_rows, width), n_out) = (inputs.dims2()?, outputs.dim(1)?);
        let size = n_out * width;
        let pieces = pieces(self.lengths, first_row, n_rows);
        let together = (HELD / size).clamp(1, pieces.len().max(1));
        let gradients = empty(together * size, DType::F32, self.directions.device())?;
        for pieces in pieces.chunks(together) {
            for (at, (_, rows)) in pieces.iter().enumerate() {
                let gradient = gradients.narrow(0, at * size, size)?.reshape((n_out, width))?;
                let part = |all: &Tensor| all.narrow(0, rows.start, rows.len());
                gemm(false, &gradient, false, Operand::transposed(&part(outputs)?), Operand::plain(&part(inputs)?))?;
            }
            self.add(pieces[0].0, pieces.len(), offset, &gradients, size)?;
        }
        Ok(())
    }

    pub(in crate::kernels) fn add_norm(
        &self,
        kind: NormKind,
        offset: usize,
        x: &Tensor,
        dy: &Tensor,
        eps: f32,
    ) -> Result<()> {
        let (x, dy) = (x.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?);
        let (n, width) = x.dims2()?;
        let gain = Tensor::zeros(width, DType::F32, x.device())?; // for the gradient of x, which nobody wants
        self.add_vectors(offset, n, width, |from, count, into| {
            norm_backward(kind, &x.narrow(0, from, count)?, &gain, eps, &dy.narrow(0, from, count)?, None, into)?;
            Ok(())
        })
    }

    pub(in crate::kernels) fn add_bias(&self, offset: usize, dy: &Tensor) -> Result<()> {
        let (n, width) = dy.dims2()?;
        self.add_vectors(offset, n, width, |from, count, into| column_sums(&dy.narrow(0, from, count)?, into))
    }

    pub(in crate::kernels) fn add_embedding(&self, offset: usize, ids: &[u32], dy: &Tensor) -> Result<()> {
        let width = dy.dim(1)?;
        let dy = dy.to_dtype(DType::F32)?.flatten_all()?;
        let vocabulary = ids.iter().max().map_or(0, |id| *id as usize + 1);
        for direction in 0..self.count {
            let start = direction * self.length() + offset;
            let table = self.directions.narrow(0, start, vocabulary * width)?.reshape((vocabulary, width))?;
            let rows = gather(&table, ids.to_vec())?.flatten_all()?;
            let mut first = 0;
            for (sequence, length) in self.lengths.iter().enumerate() {
                let n = length * width;
                let sum = self.sums.narrow(0, sequence * self.count + direction, 1)?;
                let part = |values| Rows { values, first, stride: n, count: 1 };
                add_inner_products(&sum, part(&rows), part(&dy), n)?;
                first += n;
            }
        }
        Ok(())
    }

    /// Adds those of a vector of `width` values; `write` adds its gradient from some of `n` rows, the first and how many, to a vector of
    /// zeros.
    fn add_vectors(
        &self,
        offset: usize,
        n: usize,
        width: usize,
        write: impl Fn(usize, usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let span = n / self.lengths.iter().sum::<usize>().max(1); // rows of a token
        let vectors = Tensor::zeros(self.lengths.len() * width, DType::F32, self.directions.device())?;
        let mut first = 0;
        for (sequence, length) in self.lengths.iter().enumerate() {
            write(first * span, length * span, &vectors.narrow(0, sequence * width, width)?)?;
            first += length;
        }
        self.add(0, self.lengths.len(), offset, &vectors, width)
    }

    /// Adds those of gradients of `size` values that lie one after another, of `n` sequences from the `first` on.
    fn add(&self, first: usize, n: usize, offset: usize, gradients: &Tensor, size: usize) -> Result<()> {
        let sums = self.sums.narrow(0, first * self.count, n * self.count)?;
        let gradients = Rows { values: gradients, first: 0, stride: size, count: n };
        let directions = Rows { values: self.directions, first: offset, stride: self.length(), count: self.count };
        add_inner_products(&sums, gradients, directions, size)
    }

    /// Values of a direction.
    fn length(&self) -> usize {
        self.directions.elem_count() / self.count.max(1)
    }
}
