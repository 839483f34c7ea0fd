//! Approximate functions: as far off as the PTX manual allows, by a hash of the argument.
//
// A GPU's ex2.approx and the like are not specified to the bit. Here they are computed exactly in f64 and then moved by up to the
// documented error, so that a tolerance that a real GPU could break breaks here. `VIRTUAL_GPU_EXACT=1` rounds them only.

use std::sync::LazyLock;

static EXACT: LazyLock<bool> = LazyLock::new(|| std::env::var("VIRTUAL_GPU_EXACT").is_ok_and(|value| value == "1"));

/// The largest error that the manual states.
#[derive(Clone, Copy)]
enum Error {
    /// In parts of the result, as a power of two.
    Relative(f64),
    /// As a power of two.
    Absolute(f64),
}

/// An approximate function of one f32 by its name (PTX ISA, "Floating Point Instructions").
pub(super) fn function(name: &str) -> Option<fn(f32) -> f32> {
    Some(match name {
        // Two units in the last place.
        "ex2" => |x| moved(f64::from(x).exp2(), x, Error::Relative(-22.0)),
        "lg2" => |x| {
            let near_one = (0.5..=2.0).contains(&x);
            moved(f64::from(x).log2(), x, if near_one { Error::Absolute(-22.0) } else { Error::Relative(-22.0) })
        },
        "rcp" => |x| moved(1.0 / f64::from(x), x, Error::Relative(-23.0)),
        "rsqrt" => |x| moved(1.0 / f64::from(x).sqrt(), x, Error::Relative(-22.9)),
        "sqrt" => |x| moved(f64::from(x).sqrt(), x, Error::Relative(-23.0)),
        "sin" => |x| moved(f64::from(x).sin(), x, Error::Absolute(-20.5)),
        "cos" => |x| moved(f64::from(x).cos(), x, Error::Absolute(-20.5)),
        "tanh" => |x| moved(f64::from(x).tanh(), x, Error::Relative(-11.0)),
        _ => return None,
    })
}

/// `div.approx` and `div.full`: within two units in the last place.
pub(super) fn divide(a: f32, b: f32) -> f32 {
    moved(f64::from(a) / f64::from(b), a, Error::Relative(-22.0))
}

/// `rcp.approx.ftz.f64`: of the upper 32 bits of the argument, with the lower 32 bits of the result zero.
pub(super) fn reciprocal(x: f64) -> f64 {
    let upper = |x: f64| f64::from_bits(x.to_bits() & 0xFFFF_FFFF_0000_0000);
    let flushed = if x.is_subnormal() { 0.0f64.copysign(x) } else { x };
    let result = upper(1.0 / upper(flushed));
    if result.is_subnormal() { 0.0f64.copysign(result) } else { result }
}

fn moved(exact: f64, argument: f32, error: Error) -> f32 {
    // The manual's tables of special arguments are exact: 2^0 among them.
    if *EXACT || !exact.is_finite() || exact == 0.0 || exact == 1.0 {
        return exact as f32;
    }
    let share = share(argument);
    match error {
        Error::Relative(power) => (exact * (1.0 + share * power.exp2())) as f32,
        Error::Absolute(power) => (exact + share * power.exp2()) as f32,
    }
}

/// A number in [-0.5, 0.5] that the argument's bits decide: half the bound, as the rounding to f32 takes the rest.
fn share(argument: f32) -> f64 {
    let mixed = u64::from(argument.to_bits()).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (mixed >> 40) as f64 / f64::from(1 << 24) - 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_stay_within_two_units_and_do_occur() {
        let (mut worst, mut moved) = (0.0f64, 0);
        for step in 0..10_000 {
            let x = (step as f32 - 5000.0) / 100.0;
            let (exact, got) = (f64::from(x).exp2(), function("ex2").unwrap()(x));
            worst = worst.max((f64::from(got) / exact - 1.0).abs());
            moved += usize::from(got != exact as f32);
        }
        assert!(worst < 2.0f64.powi(-22) && worst > 2.0f64.powi(-24), "{worst}");
        assert!(moved > 1000, "{moved}");
    }

    #[test]
    fn special_arguments() {
        let ex2 = function("ex2").unwrap();
        assert_eq!((ex2(f32::NEG_INFINITY), ex2(f32::INFINITY)), (0.0, f32::INFINITY));
        assert_eq!(function("rcp").unwrap()(f32::INFINITY), 0.0);
        assert_eq!(reciprocal(4.0), 0.25);
    }
}
