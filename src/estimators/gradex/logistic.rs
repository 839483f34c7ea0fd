//! Logistic regression: the L2-regularised fit that `GradEx` turns gradients into one direction with.

use crate::error::{Error, Result};
use nalgebra::{DMatrix, DVector};

/// Newton steps at most; far from saturation it takes five.
const STEPS: usize = 100;
/// Stop when no component of the gradient is larger than this share of the first gradient's largest.
const TOLERANCE: f64 = 1e-12;

/// An observation: its features, signed already, its label, its weight.
pub struct Observation<'a> {
    /// Features: `[d]`.
    pub features: &'a [f64],
    /// Whether the label is 1.
    pub label: bool,
    /// How often it counts.
    pub weight: f64,
}

/// The coefficients, and the intercept after them, that minimise
/// ½(‖w‖² + b²) + C Σ sᵢ ln(1 + exp(−yᵢ(w·xᵢ + b))), yᵢ = ±1.
///
/// The intercept is regularised like a coefficient, as in liblinear, which the authors use. Solved by Newton's method with
/// step halving.
///
/// # Errors
/// [`Error::Input`] when observations differ in length or there is none.
///
/// # Examples
/// ```
/// use mixpool::estimators::{Observation, logistic_regression};
/// let observation = |x: &'static [f64], label| Observation { features: x, label, weight: 1.0 };
/// let fit = logistic_regression(&[observation(&[1.0], true), observation(&[-1.0], false)], 1.0)?;
/// assert!(fit[0] > 0.0 && fit[1].abs() < 1e-12);
/// # Ok::<(), mixpool::Error>(())
/// ```
pub fn logistic_regression(observations: &[Observation<'_>], c: f64) -> Result<Vec<f64>> {
    let n = observations.first().map_or(0, |first| first.features.len());
    if n == 0 || observations.iter().any(|row| row.features.len() != n) {
        return Err(Error::input("logistic regression", "expected observations of one length, at least one"));
    }
    // yᵢ xᵢ with yᵢ for the intercept: every label becomes 1.
    let signed = DMatrix::from_fn(n + 1, observations.len(), |feature, row| {
        let Observation { features, label, .. } = observations[row];
        let value = features.get(feature).copied().unwrap_or(1.0);
        if label { value } else { -value }
    });
    let costs = DVector::from_iterator(observations.len(), observations.iter().map(|row| c * row.weight));
    let problem = Problem { signed, costs };
    let mut at = DVector::zeros(n + 1);
    let mut value = problem.value(&at);
    let mut first = None;
    for _ in 0..STEPS {
        let (gradient, hessian) = problem.derivatives(&at);
        let size = gradient.amax();
        if size <= TOLERANCE * *first.get_or_insert(size) {
            break;
        }
        let Some(cholesky) = hessian.cholesky() else { break }; // never: the identity is part of it
        let step = cholesky.solve(&gradient);
        let mut length = 1.0;
        let next = loop {
            let next = &at - length * &step;
            let lower = problem.value(&next);
            if lower <= value || length < 1e-10 {
                value = lower.min(value);
                break next;
            }
            length /= 2.0;
        };
        if (&next - &at).amax() <= f64::EPSILON * next.amax() {
            break;
        }
        at = next;
    }
    Ok(at.iter().copied().collect())
}

/// Observations by column, signed by their labels, and C times the weight of each.
struct Problem {
    signed: DMatrix<f64>,
    costs: DVector<f64>,
}

impl Problem {
    fn value(&self, at: &DVector<f64>) -> f64 {
        let margins = self.signed.tr_mul(at);
        // ln(1 + e⁻ᵐ) without overflow
        let loss = |(margin, cost): (&f64, &f64)| cost * ((-margin.abs()).exp().ln_1p() + (-margin).max(0.0));
        0.5 * at.norm_squared() + margins.iter().zip(&self.costs).map(loss).sum::<f64>()
    }

    fn derivatives(&self, at: &DVector<f64>) -> (DVector<f64>, DMatrix<f64>) {
        let wrong = self.signed.tr_mul(at).map(|margin| 1.0 / (1.0 + margin.exp())); // σ(−m)
        let pull = self.costs.component_mul(&wrong);
        let gradient = at - &self.signed * &pull;
        let mut scaled = self.signed.clone();
        for (index, mut column) in scaled.column_iter_mut().enumerate() {
            column *= pull[index] * (1.0 - wrong[index]);
        }
        let n = at.len();
        (gradient, DMatrix::identity(n, n) + scaled * self.signed.transpose())
    }
}
