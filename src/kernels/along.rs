//! Along: inner products of every sequence's gradient with given directions, no gradient kept.
//!
//! A linear layer's gradient is Σ over tokens of bₜ aₜᵀ (input a, gradient of the output b). Its inner product with a
//! direction D can be taken as Σ bₜᵀ D aₜ, which costs a product as large as the layer's forward pass per direction, or
//! as ⟨D, Σ bₜ aₜᵀ⟩ with the sum over one sequence's tokens first, which costs one such product for all directions and
//! then as many operations as a token has, once per direction and sequence. There are many directions and sequences are
//! long, so the latter is done: one layer's gradient of a few sequences exists at a time, at most [`HELD`] values.

use super::bias::bias_gradients;
use super::device::{DeviceAlong, NormKind};
use super::layer_norm::layer_norm_gains;
use super::matmul::{Into, Matrix, MatrixMut, matmul};
use super::rms_norm::rms_norm_gains;
use super::{Compute, Exec, values};
use crate::error::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Values of gradients held at once, unless one sequence's are more: 16 MiB.
const HELD: usize = 1 << 22;
/// Values whose products one task adds up, in f32; tasks' sums are added up in f64.
const TILE: usize = 1 << 12;

/// Vectors as long as all parameters of a model.
pub struct Directions {
    values: Vec<f32>, // one after another; none on a device
    count: usize,
    placed: Option<Tensor>, // the values on a device
}

impl Directions {
    /// Packs vectors of one length.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn new(vectors: &[Vec<f32>]) -> Self {
        assert!(vectors.windows(2).all(|pair| pair[0].len() == pair[1].len()), "directions of several lengths");
        Self { values: vectors.concat(), count: vectors.len(), placed: None }
    }

    /// As [`Directions::new`], where gradients are taken.
    ///
    /// # Errors
    /// Those of the device.
    pub fn on(compute: &Compute, vectors: &[Vec<f32>]) -> Result<Self> {
        let own = Self::new(vectors);
        if !compute.is_queued() || own.count == 0 {
            return Ok(own);
        }
        let length = own.values.len();
        let placed = Some(Tensor::from_vec(own.values, length, compute.device())?);
        Ok(Self { values: Vec::new(), count: own.count, placed })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The inner products of every direction, from its value `offset` on, with every row: `[count, rows]`.
    fn products(&self, offset: usize, rows: &[f32], width: usize) -> Vec<f64> {
        if self.values.is_empty() {
            return Vec::new();
        }
        let (n, length) = (rows.len() / width, self.values.len() / self.count);
        let tile = |start: usize| {
            let columns = TILE.min(width - start);
            let mut products = vec![0f32; self.count * n];
            let directions = Matrix::strided(&self.values[offset + start..], self.count, columns, length);
            let rows = Matrix::strided(&rows[start..], n, columns, width);
            matmul(Exec::Alone, Into::Overwrite, MatrixMut::new(&mut products, self.count, n), directions, rows.t());
            products
        };
        let starts: Vec<usize> = (0..width).step_by(TILE).collect();
        let tiles: Vec<Vec<f32>> = starts.into_par_iter().map(tile).collect();
        let mut sums = vec![0f64; self.count * n];
        for tile in tiles {
            sums.iter_mut().zip(tile).for_each(|(sum, product)| *sum += f64::from(product));
        }
        sums
    }

    /// The inner products of every direction with one vector as long: `[count]`.
    ///
    /// # Panics
    /// When the directions lie on a device.
    pub fn along(&self, vector: &[f32]) -> Vec<f64> {
        assert!(self.placed.is_none(), "directions on a device");
        self.products(0, vector, vector.len())
    }
}

/// Inner products of the gradients of a batch's sequences with directions, growing as parts of the gradients are shown.
pub struct Along<'a> {
    directions: &'a Directions,
    lengths: &'a [usize],
    sums: Vec<f64>,                  // [directions, sequences]
    device: Option<DeviceAlong<'a>>, // where directions lie there
}

impl<'a> Along<'a> {
    /// No part was shown yet. `lengths` are those of the sequences that lie end to end in the batch.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(directions: &'a Directions, lengths: &'a [usize]) -> Result<Self> {
        let placed = directions.placed.as_ref();
        let device = placed.map(|values| DeviceAlong::new(values, directions.count, lengths)).transpose()?;
        Ok(Self { directions, lengths, sums: vec![0.0; directions.count * lengths.len()], device })
    }

    /// The inner products: `[directions, sequences]`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn sums(self) -> Result<Vec<f64>> {
        self.device.map_or(Ok(self.sums), |device| device.sums())
    }

    /// Adds those of a linear layer that begins at `offset`, from the rows `first_row..` of the batch.
    ///
    /// # Shapes
    /// `inputs: [rows, width]`, `outputs: [rows, out]`.
    pub fn add_linear(&mut self, offset: usize, first_row: usize, inputs: &Tensor, outputs: &Tensor) -> Result<()> {
        if let Some(device) = &self.device {
            return device.add_linear(offset, first_row, inputs, outputs);
        }
        let ((n_rows, width), n_out) = (inputs.dims2()?, outputs.dim(1)?);
        let (inputs, outputs) = (values(inputs)?, values(outputs)?);
        let pieces = pieces(self.lengths, first_row, n_rows);
        let size = n_out * width;
        let mut gradients = vec![0f32; size * pieces.len().min((HELD / size).max(1))];
        for pieces in pieces.chunks((HELD / size).max(1)) {
            for ((_, rows), gradient) in pieces.iter().zip(gradients.chunks_exact_mut(size)) {
                let n = rows.len();
                let a = Matrix::new(&inputs[rows.start * width..rows.end * width], n, width);
                let b = Matrix::new(&outputs[rows.start * n_out..rows.end * n_out], n, n_out);
                matmul(Exec::Split, Into::Overwrite, MatrixMut::new(gradient, n_out, width), b.t(), a);
            }
            let products = self.directions.products(offset, &gradients[..size * pieces.len()], size);
            self.add(&products, pieces.iter().map(|(sequence, _)| *sequence));
        }
        Ok(())
    }

    /// Adds those of an RMS norm's gain that begins at `offset`.
    pub fn add_norm(&mut self, offset: usize, inputs: &Tensor, outputs: &Tensor, eps: f32) -> Result<()> {
        if let Some(device) = &self.device {
            return device.add_norm(NormKind::Rms, offset, inputs, outputs, eps);
        }
        let gains = rms_norm_gains(inputs, eps, outputs, self.lengths)?;
        self.add_vectors(offset, &gains, inputs.dim(1)?);
        Ok(())
    }

    /// Adds those of a layer norm's gain that begins at `offset`.
    pub fn add_layer_norm(&mut self, offset: usize, inputs: &Tensor, outputs: &Tensor, eps: f32) -> Result<()> {
        if let Some(device) = &self.device {
            return device.add_norm(NormKind::Layer, offset, inputs, outputs, eps);
        }
        let gains = layer_norm_gains(inputs, eps, outputs, self.lengths)?;
        self.add_vectors(offset, &gains, inputs.dim(1)?);
        Ok(())
    }

    /// Adds those of a bias that begins at `offset`.
    pub fn add_bias(&mut self, offset: usize, outputs: &Tensor) -> Result<()> {
        if let Some(device) = &self.device {
            return device.add_bias(offset, outputs);
        }
        let gradients = bias_gradients(outputs, self.lengths)?;
        self.add_vectors(offset, &gradients, outputs.dim(1)?);
        Ok(())
    }

    /// Adds those of an embedding that begins at `offset`: the gradient of a sequence has only the rows of its tokens.
    pub fn add_embedding(&mut self, offset: usize, ids: &[u32], outputs: &Tensor) -> Result<()> {
        if let Some(device) = &self.device {
            return device.add_embedding(offset, ids, outputs);
        }
        let width = outputs.dim(1)?;
        let outputs = values(outputs)?;
        let length = self.directions.values.len() / self.directions.count.max(1);
        let starts = self.lengths.iter().scan(0, |next, length| Some(std::mem::replace(next, *next + length)));
        let sequences: Vec<_> = starts.zip(self.lengths).map(|(start, length)| start..start + length).collect();
        let product = |at: usize| {
            let (direction, rows) = (at / sequences.len(), sequences[at % sequences.len()].clone());
            let direction = &self.directions.values[direction * length + offset..];
            let row = |token: usize| {
                let (a, b) = (&direction[ids[token] as usize * width..][..width], &outputs[token * width..][..width]);
                f64::from(a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>())
            };
            rows.map(row).sum::<f64>()
        };
        let products: Vec<f64> = (0..self.sums.len()).into_par_iter().map(product).collect();
        self.add(&products, 0..self.lengths.len());
        Ok(())
    }

    /// Adds those of a vector of `width` values that begins at `offset`, from its gradient by every sequence.
    fn add_vectors(&mut self, offset: usize, gradients: &[f32], width: usize) {
        let products = self.directions.products(offset, gradients, width);
        self.add(&products, 0..self.lengths.len());
    }

    /// Adds products, `[directions, pieces]`, to the sequences that the pieces are of.
    fn add(&mut self, products: &[f64], sequences: impl ExactSizeIterator<Item = usize> + Clone) {
        let n = sequences.len();
        for (direction, sums) in self.sums.chunks_exact_mut(self.lengths.len()).enumerate() {
            let products = &products[direction * n..][..n];
            sequences.clone().zip(products).for_each(|(sequence, product)| sums[sequence] += product);
        }
    }
}

/// Sequences and their rows among the rows `first_row..first_row + n_rows` of a batch, counted from the first of these.
pub(super) fn pieces(lengths: &[usize], first_row: usize, n_rows: usize) -> Vec<(usize, Range<usize>)> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for (sequence, length) in lengths.iter().enumerate() {
        let (from, to) = (start.max(first_row), (start + length).min(first_row + n_rows));
        if from < to {
            pieces.push((sequence, from - first_row..to - first_row));
        }
        start += length;
    }
    pieces
}
