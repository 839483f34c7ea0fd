//! `RegMean`: linear layers merged so that the merge answers each expert's own inputs as that expert does.
//!
//! Jin et al. 2023 (arXiv 2212.09849): the W that minimises Σ wᵢ E|W x − Wᵢ x|² over the inputs x of
//! expert i is (Σ wᵢ Wᵢ G̃ᵢ)(Σ wᵢ G̃ᵢ)⁻¹, with Gᵢ = E[x xᵀ] and its off-diagonals shrunk. The paper sums over samples and has
//! no weights; here Gᵢ is a mean per token, so that the weights of a mixture mean what they mean in an average.
//!
//! Computed as R + (Σ wᵢ (Wᵢ − R) G̃ᵢ)(Σ wᵢ G̃ᵢ)⁻¹ with R the plain average: the same in exact arithmetic for any R, and in
//! rounded arithmetic it leaves equal experts and single ones as they are.

use super::average;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Layout, ModelConfig, Parameter, linear_layers};
use nalgebra::{Cholesky, DMatrix, Dyn};
use rayon::prelude::*;

/// A pivot below this part of its diagonal is rounding of the f32 Gram matrices.
const SMALLEST_PIVOT: f64 = 1e-6;
/// Added to the diagonal when a matrix is singular, as a part of its mean: unseen directions keep the plain average.
const RIDGE: f64 = 1e-4;

/// Writes the `RegMean` merge over `out`, in the order of `layout`; what is not a linear layer is averaged.
///
/// `members` are weight, parameters and [Gram matrices](crate::eval::Evaluator::grams); `scale` multiplies off-diagonals.
///
/// # Errors
/// [`Error::Mismatch`] when a member does not fit the layout or lacks a Gram matrix, [`Error::Input`] when the matrices of a
/// layer are all 0.
pub fn regression_mean(
    out: &mut [f32],
    config: &ModelConfig,
    layout: &Layout,
    members: &[(f64, &Checkpoint, &Checkpoint)],
    scale: f64,
) -> Result<()> {
    let plain: Vec<_> = members.iter().map(|(weight, model, _)| (*weight, *model)).collect();
    average(out, layout, &plain)?;
    let averaged: &[f32] = out;
    let layers = linear_layers(config).into_par_iter().map(|names| {
        let weights = names.iter().map(|name| Ok(Matrix::new(config, layout.parameter(name)?)));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let change = change(averaged, &weights, members, scale)?;
        Ok((weights, change))
    });
    for (weights, change) in layers.collect::<Result<Vec<_>>>()? {
        let mut changes = change.as_slice().iter();
        for weight in weights {
            for place in weight.places() {
                if let Some(change) = changes.next() {
                    out[place] = (f64::from(out[place]) + change) as f32;
                }
            }
        }
    }
    Ok(())
}

/// The matrix of a linear layer in the flat vector.
struct Matrix<'a> {
    parameter: &'a Parameter,
    inputs: usize,
    outputs: usize,
    inputs_first: bool,
}

impl<'a> Matrix<'a> {
    fn new(config: &ModelConfig, parameter: &'a Parameter) -> Self {
        let (rows, columns) = (parameter.shape[0], parameter.shape[1]);
        let inputs_first = config.stores_inputs_first(&parameter.name);
        let (outputs, inputs) = if inputs_first { (columns, rows) } else { (rows, columns) };
        Self { parameter, inputs, outputs, inputs_first }
    }

    /// The places of the values in the file, by outputs and then by inputs.
    fn indices(&self) -> impl Iterator<Item = usize> {
        let Self { inputs, outputs, inputs_first, .. } = *self;
        let index = move |output, input| if inputs_first { input * outputs + output } else { output * inputs + input };
        (0..outputs).flat_map(move |output| (0..inputs).map(move |input| index(output, input)))
    }

    /// The places of the values in the flat vector, in the same order.
    fn places(&self) -> impl Iterator<Item = usize> {
        self.indices().map(|index| self.parameter.offset + index)
    }
}

/// What is added to the averages of weights that read one input: `[in, Σ out]` by columns, which is `[Σ out, in]` by rows.
fn change(
    averaged: &[f32],
    weights: &[Matrix<'_>],
    members: &[(f64, &Checkpoint, &Checkpoint)],
    scale: f64,
) -> Result<DMatrix<f64>> {
    let (name, inputs) = (&weights[0].parameter.name, weights[0].inputs);
    let outputs = weights.iter().map(|weight| weight.outputs).sum();
    let mut sides = DMatrix::zeros(inputs, outputs);
    let mut grams = DMatrix::zeros(inputs, inputs);
    for (share, model, gram) in members {
        let mut gram = DMatrix::from_vec(inputs, inputs, read(gram, name, inputs * inputs)?);
        gram.iter_mut().enumerate().for_each(|(i, value)| *value *= share * off_diagonal(i, inputs, scale));
        let mut moved = Vec::with_capacity(inputs * outputs);
        for weight in weights {
            let expert = read(model, &weight.parameter.name, weight.parameter.len())?;
            let places = weight.indices().zip(weight.places());
            moved.extend(places.map(|(index, place)| expert[index] - f64::from(averaged[place])));
        }
        sides.gemm(1.0, &gram, &DMatrix::from_vec(inputs, outputs, moved), 1.0);
        grams += gram;
    }
    let singular = || {
        let place = format!("Gram matrices of '{name}'");
        Error::input(place, "not positive definite, even with a ridge; take them on more tokens")
    };
    Ok(factor(grams).ok_or_else(singular)?.solve(&sides))
}

/// What multiplies entry `index` of a Gram matrix of `width` columns.
fn off_diagonal(index: usize, width: usize, scale: f64) -> f64 {
    if index % width == index / width { 1.0 } else { scale }
}

/// The Cholesky factor; of the matrix with a small ridge when it is singular to the precision it is known to.
fn factor(matrix: DMatrix<f64>) -> Option<Cholesky<f64, Dyn>> {
    let diagonal = matrix.diagonal();
    let sound = |factor: &Cholesky<f64, Dyn>| {
        let pivots = factor.l_dirty().diagonal();
        pivots.iter().zip(&diagonal).all(|(pivot, diagonal)| pivot * pivot > SMALLEST_PIVOT * diagonal)
    };
    let ridge = RIDGE * diagonal.mean();
    Cholesky::new(matrix.clone()).filter(sound).or_else(|| {
        let width = matrix.ncols();
        Cholesky::new(matrix + DMatrix::from_diagonal_element(width, width, ridge))
    })
}

/// A tensor's values, by rows.
fn read(file: &Checkpoint, name: &str, length: usize) -> Result<Vec<f64>> {
    let values = file.values(name).filter(|values| values.len() == length).ok_or_else(|| Error::Mismatch {
        what: format!("'{}'", file.path().display()),
        differences: format!("tensor '{name}' of {length} values is missing"),
    })?;
    Ok(values.into_iter().map(f64::from).collect())
}
