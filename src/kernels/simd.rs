//! Simd: vector loops compiled for AVX-512, AVX2 and plain, chosen when the program runs.

/// Independent partial sums kept by a reduction: one AVX-512 register of `f32`.
const LANES: usize = 16;

/// Runs `work` compiled for the best instruction set of this machine.
///
/// The closure must be marked `#[inline(always)]`: code that is not inlined into the chosen version is compiled for the
/// plain one.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// eˣ with a relative error below 2⁻²²·⁵ (Cephes' polynomial after reduction by ln 2); 0 below −87.3.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.336, 88.376);
    let n = x.mul_add(std::f32::consts::LOG2_E, 0.5).floor();
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r) + 1.0;
    let power = f32::from_bits(((n as i32 + 127) as u32) << 23);
    p * power
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function, off by less than 2e-7 (Cephes' polynomials: of x² below 1, of 1/x² times e^(−x²) above).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let (a, square) = (x.abs(), x * x);
    let near = x * polynomial(square, &ERF_BELOW_1);
    let q = 1.0 / a.max(1.0);
    let tail = if a < 2.0 { polynomial(q * q, &ERFC_BELOW_2) } else { polynomial(q * q, &ERFC_ABOVE_2) };
    let far = (1.0 - exp(-square) * q * tail).copysign(x);
    if a < 1.0 { near } else { far } // a NaN is in both
}

/// Σ cᵢ xⁿ⁻ⁱ, the coefficient of the highest power first.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: &[f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for c in &coefficients[1..] {
        sum = sum.mul_add(x, *c);
    }
    sum
}

/// erf(x) / x by x².
const ERF_BELOW_1: [f32; 7] = [
    7.853_861_4e-5,
    -8.010_194e-4,
    5.188_327_6e-3,
    -2.685_381_2e-2,
    1.128_358_5e-1,
    -3.761_262_6e-1,
    std::f32::consts::FRAC_2_SQRT_PI,
];
/// x e^(x²) erfc(x) by 1/x².
const ERFC_BELOW_2: [f32; 9] = [
    2.326_82e-2,
    -1.387_039_4e-1,
    3.687_424_7e-1,
    -5.824_733e-1,
    6.210_005e-1,
    -4.944_515_3e-1,
    3.404_88e-1,
    -2.741_127e-1,
    5.638_259_4e-1,
];
/// As [`ERFC_BELOW_2`].
const ERFC_ABOVE_2: [f32; 8] =
    [-10.477_664, 12.977_2, -7.495_518_7, 2.921_019, -1.015_265_2, 4.218_463_5e-1, -2.820_767_5e-1, 5.641_895e-1];

/// Σ `f(aᵢ, bᵢ)` with sixteen partial sums; the order of additions depends on the length alone.
#[inline(always)]
pub(crate) fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] += f(*a, *b);
    }
    fold(lanes)
}

/// Σ aᵢ bᵢ.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum2(a, b, |a, b| a * b)
}

/// max aᵢ; −∞ when empty. A NaN among the values may be lost: sums taken later keep it.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |m, v| m.max(*v))
}

/// Replaces each value by e^(value − shift) and returns the sum of the results.
#[inline(always)]
pub(crate) fn exp_sum(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - shift);
            lanes[i] += chunk[i];
        }
    }
    for (i, value) in rest.iter_mut().enumerate() {
        *value = exp(*value - shift);
        lanes[i] += *value;
    }
    fold(lanes)
}

/// Adds the lanes pairwise.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps_of_the_standard_library() {
        for step in -8_700..8_800 {
            let x = step as f32 * 0.01;
            let (got, expected) = (exp(x), x.exp());
            assert!((got - expected).abs() <= 2.5e-7 * expected, "exp({x}) = {got}, expected {expected}");
        }
    }

    #[test]
    fn erf_is_that_of_tables_and_odd() {
        // Abramowitz and Stegun, table 7.1.
        for (x, expected) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916),
            (0.5, 0.520_499_878),
            (0.95, 0.820_890_807),
            (1.0, 0.842_700_793),
            (1.05, 0.862_436_106),
            (1.5, 0.966_105_146),
            (1.95, 0.994_179_334),
            (2.0, 0.995_322_265),
            (3.0, 0.999_977_91),
            (9.0, 1.0),
        ] {
            assert!((f64::from(erf(x)) - expected).abs() < 2e-7, "erf({x}) = {}, expected {expected}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn exp_of_nan_is_nan() {
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_agree_with_f64_on_every_length() {
        let a: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
        for n in 0..a.len() {
            let expected: f64 = a[..n].iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            assert!((f64::from(dot(&a[..n], &a[..n])) - expected).abs() < 1e-5);
            assert_eq!(max(&a[..n]), a[..n].iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v)));
        }
    }
}
