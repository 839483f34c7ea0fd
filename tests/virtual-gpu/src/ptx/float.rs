//! Floating-point instructions.

use super::approximate;
use super::operation::{Operation, binary, ternary, unary};
use super::rounding::{self, Rounding};
use super::scope::Decoder;
use half::{bf16, f16};

/// What modifiers ask of every f32 that goes in or out.
#[derive(Clone, Copy)]
struct Modes {
    rounding: Rounding,
    /// `.ftz`: subnormal numbers are zeros.
    flushes: bool,
    /// `.sat`: results are clamped to [0, 1], NaN to 0.
    saturates: bool,
}

impl Modes {
    fn of(parts: &[&str]) -> Self {
        let rounding = parts.iter().find_map(|part| Rounding::of(part)).unwrap_or(Rounding::Nearest);
        Self { rounding, flushes: parts.contains(&"ftz"), saturates: parts.contains(&"sat") }
    }

    #[inline]
    fn take(self, x: f32) -> f32 {
        if self.flushes && x.is_subnormal() { 0.0f32.copysign(x) } else { x }
    }

    #[inline]
    fn give(self, x: f32) -> f32 {
        let x = self.take(x);
        if !self.saturates {
            x
        } else if x > 0.0 {
            x.min(1.0)
        } else {
            0.0
        }
    }
}

/// Decodes a floating-point instruction; none where it is of another kind.
pub(super) fn decode(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    match parts.last() {
        Some(&"f32") => single(parts, it),
        Some(&"f64") => double(parts, it),
        Some(&"bf16") => half::<bf16>(parts, it, bf16::from_f32, bf16::to_f32),
        Some(&"f16") => half::<f16>(parts, it, f16::from_f32, f16::to_f32),
        _ => Ok(None),
    }
}

fn single(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    let m = Modes::of(parts);
    let plain = !m.flushes && !m.saturates && m.rounding == Rounding::Nearest;
    let is_approximate = parts.contains(&"approx") || parts.contains(&"full");
    Ok(Some(match parts[0] {
        "add" if plain => binary(it, |a: f32, b: f32| a + b)?,
        "sub" if plain => binary(it, |a: f32, b: f32| a - b)?,
        "mul" if plain => binary(it, |a: f32, b: f32| a * b)?,
        "fma" | "mad" if plain => ternary(it, f32::mul_add)?,
        "add" => binary(it, move |a, b| m.give(rounding::add(m.take(a), m.take(b), m.rounding)))?,
        "sub" => binary(it, move |a, b: f32| m.give(rounding::add(m.take(a), -m.take(b), m.rounding)))?,
        "mul" => binary(it, move |a, b| m.give(rounding::multiply(m.take(a), m.take(b), m.rounding)))?,
        "fma" | "mad" => {
            ternary(it, move |a, b, c| m.give(rounding::fused(m.take(a), m.take(b), m.take(c), m.rounding)))?
        }
        "div" if is_approximate => binary(it, move |a, b| m.give(approximate::divide(m.take(a), m.take(b))))?,
        name if is_approximate => {
            let Some(f) = approximate::function(name) else { return Ok(None) };
            unary(it, move |a| m.give(f(m.take(a))))?
        }
        "div" if m.rounding == Rounding::Nearest => binary(it, move |a, b| m.give(m.take(a) / m.take(b)))?,
        "rcp" if m.rounding == Rounding::Nearest => unary(it, move |a| m.give(1.0 / m.take(a)))?,
        "sqrt" if m.rounding == Rounding::Nearest => unary(it, move |a| m.give(m.take(a).sqrt()))?,
        "neg" => unary(it, move |a: f32| m.take(-a))?,
        "abs" => unary(it, move |a: f32| m.take(a.abs()))?,
        "min" => binary(it, move |a, b| lesser(m.take(a), m.take(b)))?,
        "max" => binary(it, move |a, b| -lesser(-m.take(a), -m.take(b)))?,
        "copysign" => binary(it, |a: f32, b: f32| b.copysign(a))?,
        _ => return Ok(None),
    }))
}

/// The lesser of two numbers: the other where one is NaN, and -0 before 0.
fn lesser(a: f32, b: f32) -> f32 {
    if a.is_nan() || b < a || b == a && b.is_sign_negative() { b } else { a }
}

fn double(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    if parts.iter().any(|part| matches!(*part, "rz" | "rm" | "rp")) {
        return Ok(None);
    }
    Ok(Some(match parts[0] {
        "add" => binary(it, |a: f64, b: f64| a + b)?,
        "sub" => binary(it, |a: f64, b: f64| a - b)?,
        "mul" => binary(it, |a: f64, b: f64| a * b)?,
        "fma" | "mad" => ternary(it, f64::mul_add)?,
        "div" => binary(it, |a: f64, b: f64| a / b)?,
        "rcp" if parts.contains(&"approx") => unary(it, approximate::reciprocal)?,
        "rcp" => unary(it, |a: f64| 1.0 / a)?,
        "sqrt" => unary(it, f64::sqrt)?,
        "neg" => unary(it, |a: f64| -a)?,
        "abs" => unary(it, f64::abs)?,
        "min" => {
            binary(it, |a: f64, b: f64| if a.is_nan() || b < a || b == a && b.is_sign_negative() { b } else { a })?
        }
        "max" => {
            binary(it, |a: f64, b: f64| if a.is_nan() || b > a || b == a && a.is_sign_negative() { b } else { a })?
        }
        "copysign" => binary(it, |a: f64, b: f64| b.copysign(a))?,
        _ => return Ok(None),
    }))
}

/// Arithmetic of 16-bit floats: exact in f64, or nearly, then rounded once.
fn half<T: super::registers::Value>(
    parts: &[&str],
    it: &mut Decoder<'_>,
    from: fn(f32) -> T,
    to: fn(T) -> f32,
) -> Result<Option<Operation>, String> {
    Ok(Some(match parts[0] {
        "add" => binary(it, move |a, b| from(to(a) + to(b)))?,
        "sub" => binary(it, move |a, b| from(to(a) - to(b)))?,
        "mul" => binary(it, move |a, b| from(to(a) * to(b)))?,
        "fma" => ternary(it, move |a, b, c| from(odd(f64::from(to(a)) * f64::from(to(b)), f64::from(to(c)))))?,
        "neg" => unary(it, move |a| from(-to(a)))?,
        "abs" => unary(it, move |a| from(to(a).abs()))?,
        "min" => binary(it, move |a, b| from(lesser(to(a), to(b))))?,
        "max" => binary(it, move |a, b| from(-lesser(-to(a), -to(b))))?,
        _ => return Ok(None),
    }))
}

/// The exact `a + b` as an f32 that rounds further as the exact sum would: to odd.
fn odd(a: f64, b: f64) -> f32 {
    let sum = a + b;
    let second = sum - a;
    let error = (a - (sum - second)) + (b - second);
    let toward_zero = rounding::narrow(sum, Rounding::Zero);
    if toward_zero.is_finite() && (f64::from(toward_zero) != sum || error != 0.0) {
        f32::from_bits(toward_zero.to_bits() | 1)
    } else {
        toward_zero
    }
}
