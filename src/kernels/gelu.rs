//! GELU: x Φ(x) element by element, exact or by its tanh form, and its gradient.

use super::{Exec, device, for_blocks, simd, tensor, values};
use crate::error::Result;
use candle_core::Tensor;
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

const BLOCK: usize = 1 << 13;
/// √(2/π).
const SQRT_2_OVER_PI: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
/// What the tanh form adds of x³.
const CUBIC: f32 = 0.044_715;

/// The form of the function (Hendrycks and Gimpel 2016, arXiv 1606.08415).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// x Φ(x), with the distribution function Φ of the normal distribution.
    Exact,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
    Tanh,
}

impl Gelu {
    /// The value and the derivative.
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        match self {
            Self::Exact => {
                let phi = 0.5 + 0.5 * simd::erf(x * FRAC_1_SQRT_2);
                let density = 0.5 * SQRT_2_OVER_PI * simd::exp(-0.5 * x * x);
                (x * phi, phi + x * density)
            }
            Self::Tanh => {
                // (1 + tanh u) / 2 is the sigmoid of 2u.
                let s = simd::sigmoid(2.0 * SQRT_2_OVER_PI * x * (1.0 + CUBIC * x * x));
                let slope = 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
                (x * s, s + x * s * (1.0 - s) * slope)
            }
        }
    }
}

/// GELU of every element.
///
/// # Shapes
/// `x: [n, f]` → `[n, f]`.
pub fn gelu(exec: Exec, form: Gelu, x: &Tensor) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::gelu(form, x, None);
    }
    let (n, width) = x.dims2()?;
    let x = values(x)?;
    let mut y = vec![0f32; n * width];
    for_blocks(exec, &mut y, BLOCK, |block, y| {
        let x = &x[block * BLOCK..];
        simd::vectorised(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, x)| *y = form.at(*x).0),
        );
    });
    tensor(y, n, width)
}

/// The gradient for the gradient `dy` of the result.
///
/// # Shapes
/// All `[n, f]`.
pub fn gelu_backward(exec: Exec, form: Gelu, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::gelu(form, x, Some(dy));
    }
    let (n, width) = x.dims2()?;
    let (x, dy) = (values(x)?, values(dy)?);
    let mut dx = vec![0f32; n * width];
    for_blocks(exec, &mut dx, BLOCK, |block, dx| {
        let (x, dy) = (&x[block * BLOCK..], &dy[block * BLOCK..]);
        simd::vectorised(
            #[inline(always)]
            || dx.iter_mut().zip(x).zip(dy).for_each(|((dx, x), dy)| *dx = dy * form.at(*x).1),
        );
    });
    tensor(dx, n, width)
}
