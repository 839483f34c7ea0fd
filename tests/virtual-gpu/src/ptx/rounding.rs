//! Rounding of f32 arithmetic: exact results as a sum of two f64, rounded once in a direction of choice.

/// The direction in which a result that is no f32 is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

impl Rounding {
    /// That of a modifier: `rn`, `rz`, `rm` or `rp`.
    pub(super) fn of(modifier: &str) -> Option<Self> {
        Some(match modifier {
            "rn" => Self::Nearest,
            "rz" => Self::Zero,
            "rm" => Self::Down,
            "rp" => Self::Up,
            _ => return None,
        })
    }
}

/// `a + b`.
pub(super) fn add(a: f32, b: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest { a + b } else { sum(f64::from(a), f64::from(b), rounding) }
}

/// `a · b`.
pub(super) fn multiply(a: f32, b: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest { a * b } else { nearest_or(f64::from(a) * f64::from(b), 0.0, rounding) }
}

/// `a · b + c`. The product of two f32 is an f64.
pub(super) fn fused(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest {
        a.mul_add(b, c)
    } else {
        sum(f64::from(a) * f64::from(b), f64::from(c), rounding)
    }
}

/// `value` as an f32.
pub(super) fn narrow(value: f64, rounding: Rounding) -> f32 {
    nearest_or(value, 0.0, rounding)
}

fn sum(a: f64, b: f64, rounding: Rounding) -> f32 {
    let sum = a + b;
    // What the f64 sum leaves out, exactly (Knuth's TwoSum).
    let second = sum - a;
    let error = (a - (sum - second)) + (b - second);
    nearest_or(sum, if error.is_finite() { error } else { 0.0 }, rounding)
}

/// `value + error` as an f32; `error` is less than half a last place of `value`.
fn nearest_or(value: f64, error: f64, rounding: Rounding) -> f32 {
    let nearest = value as f32;
    if !value.is_finite() || rounding == Rounding::Nearest {
        return nearest;
    }
    let difference = f64::from(nearest) - value;
    let is_above = difference > 0.0 || difference == 0.0 && error < 0.0;
    let is_below = difference < 0.0 || difference == 0.0 && error > 0.0;
    let down = rounding == Rounding::Down || rounding == Rounding::Zero && (value > 0.0 || value == 0.0 && error > 0.0);
    match (down, rounding) {
        (true, _) if is_above => nearest.next_down(),
        (false, Rounding::Up | Rounding::Zero) if is_below => nearest.next_up(),
        _ => nearest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_around_a_third() {
        let (third, tiny) = (1.0 / 3.0, 1e-30f32);
        let nearest = third as f32;
        assert_eq!(narrow(third, Rounding::Nearest), nearest);
        assert_eq!(narrow(third, Rounding::Down), nearest.next_down()); // the f32 nearest to 1/3 is above it
        assert_eq!(narrow(third, Rounding::Up), nearest);
        assert_eq!(narrow(-third, Rounding::Zero), -nearest.next_down());
        assert_eq!(add(1.0, tiny, Rounding::Up), 1.0f32.next_up());
        assert_eq!(add(1.0, -tiny, Rounding::Down), 1.0f32.next_down());
        assert_eq!(add(1.0, -tiny, Rounding::Zero), 1.0f32.next_down());
        assert_eq!(add(-1.0, tiny, Rounding::Zero), (-1.0f32).next_up());
        assert_eq!(add(1.0, -tiny, Rounding::Up), 1.0);
        assert_eq!(fused(3.0, nearest, -1.0, Rounding::Down), 3.0f32.mul_add(nearest, -1.0));
        let (low, high) = (multiply(nearest, nearest, Rounding::Down), multiply(nearest, nearest, Rounding::Up));
        assert_eq!((low.next_up(), low == nearest * nearest || high == nearest * nearest), (high, true));
    }
}
