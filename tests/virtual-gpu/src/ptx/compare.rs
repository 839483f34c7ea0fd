//! Comparisons and selections.

use super::operation::Operation;
use super::registers::{LANES, Mask, Value, mask_of};
use super::scope::Decoder;
use half::{bf16, f16};

/// Calls a function that is generic in the type of a value with the type of a name.
macro_rules! by_type {
    ($kind:expr, $f:ident($($argument:expr),*)) => {
        match $kind {
            "u16" | "b16" => $f::<u16>($($argument),*),
            "s16" => $f::<i16>($($argument),*),
            "u32" | "b32" => $f::<u32>($($argument),*),
            "s32" => $f::<i32>($($argument),*),
            "u64" | "b64" => $f::<u64>($($argument),*),
            "s64" => $f::<i64>($($argument),*),
            "f32" => $f::<f32>($($argument),*),
            "f64" => $f::<f64>($($argument),*),
            "f16" => $f::<f16>($($argument),*),
            "bf16" => $f::<bf16>($($argument),*),
            kind => Err(format!("values of type .{kind} are not known here")),
        }
    };
}

/// Decodes `setp`, `set` or `selp`; none where it is another instruction.
pub(super) fn decode(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    let kind = *parts.last().unwrap_or(&"");
    match parts {
        ["setp", comparison, .., _] => by_type!(kind, predicate(comparison, join(parts), it)).map(Some),
        ["set", comparison, .., result, _] => by_type!(kind, value(comparison, result, it)).map(Some),
        ["selp", _] => by_type!(kind, select(it)).map(Some),
        _ => Ok(None),
    }
}

/// How a comparison and a third predicate are joined.
fn join(parts: &[&str]) -> Option<fn(u32, u32) -> u32> {
    parts.iter().find_map(|part| match *part {
        "and" => Some((|a, b| a & b) as fn(u32, u32) -> u32),
        "or" => Some(|a, b| a | b),
        "xor" => Some(|a, b| a ^ b),
        _ => None,
    })
}

/// The lanes in which a comparison holds.
type Comparison<T> = fn(&[T; LANES], &[T; LANES]) -> Mask;

/// A comparison by name; those that end in `u` hold also where a number is none.
#[allow(clippy::neg_cmp_op_on_partial_ord, clippy::nonminimal_bool, clippy::double_comparisons)] // NaN is neither less nor more
fn comparison<T: Value>(name: &str) -> Result<Comparison<T>, String> {
    /// The lanes in which an expression of `a` and `b` is true.
    macro_rules! where_true {
        (|$a:ident, $b:ident| $holds:expr) => {
            |left, right| {
                mask_of(|lane| {
                    let ($a, $b) = (left[lane], right[lane]);
                    $holds
                })
            }
        };
    }
    Ok(match name {
        "eq" => where_true!(|a, b| a == b),
        "ne" => where_true!(|a, b| a < b || a > b),
        "lt" | "lo" => where_true!(|a, b| a < b),
        "le" | "ls" => where_true!(|a, b| a <= b),
        "gt" | "hi" => where_true!(|a, b| a > b),
        "ge" | "hs" => where_true!(|a, b| a >= b),
        "equ" => where_true!(|a, b| !(a < b || a > b)),
        "neu" => where_true!(|a, b| a != b),
        "ltu" => where_true!(|a, b| !(a >= b)),
        "leu" => where_true!(|a, b| !(a > b)),
        "gtu" => where_true!(|a, b| !(a <= b)),
        "geu" => where_true!(|a, b| !(a < b)),
        "num" => where_true!(|a, b| a.partial_cmp(&b).is_some()),
        "nan" => where_true!(|a, b| a.partial_cmp(&b).is_none()),
        _ => return Err(format!("comparison `{name}` is not known")),
    })
}

fn predicate<T: Value>(
    name: &str,
    join: Option<fn(u32, u32) -> u32>,
    it: &mut Decoder<'_>,
) -> Result<Operation, String> {
    let holds = comparison::<T>(name)?;
    let ((target, _), second) = (it.predicate(0)?, it.second_predicate(0));
    let (a, b) = (it.source::<T>(1)?, it.source::<T>(2)?);
    let third = if join.is_some() { Some(it.predicate(3)?) } else { None };
    Ok(Box::new(move |registers, mask| {
        let (a, b) = (T::read(registers, a), T::read(registers, b));
        let compared = holds(&a, &b);
        let joined = |compared: u32| match (join, third) {
            (Some(join), Some((third, negated))) => {
                let third = registers.predicates[third];
                join(compared, if negated { !third } else { third })
            }
            _ => compared,
        };
        let (first, opposite) = (joined(compared), joined(!compared));
        registers.set_predicate(target, mask, first);
        if let Some(second) = second {
            registers.set_predicate(second, mask, opposite);
        }
    }))
}

/// `set`: 1.0 in floats, all ones in integers, where the comparison holds.
fn value<T: Value>(name: &str, result: &str, it: &mut Decoder<'_>) -> Result<Operation, String> {
    let holds = comparison::<T>(name)?;
    let one = match result {
        "f32" => u64::from(1.0f32.to_bits()),
        "f16" => u64::from(f16::ONE.to_bits()),
        "bf16" => u64::from(bf16::ONE.to_bits()),
        "u32" | "s32" => u64::from(u32::MAX),
        _ => return Err(format!("set to .{result} is not known")),
    };
    let (target, a, b) = (it.slot(0)?, it.source::<T>(1)?, it.source::<T>(2)?);
    Ok(Box::new(move |registers, mask| {
        let (a, b) = (T::read(registers, a), T::read(registers, b));
        let holds = holds(&a, &b);
        let bits = std::array::from_fn(|lane| if holds >> lane & 1 != 0 { one } else { 0 });
        registers.set_bits(target, mask, &bits);
    }))
}

fn select<T: Value>(it: &mut Decoder<'_>) -> Result<Operation, String> {
    let (target, a, b) = (it.target::<T>(0)?, it.source::<T>(1)?, it.source::<T>(2)?);
    let (condition, negated) = it.predicate(3)?;
    Ok(Box::new(move |registers, mask| {
        let (a, b) = (T::read(registers, a), T::read(registers, b));
        let condition = registers.predicates[condition] ^ if negated { u32::MAX } else { 0 };
        T::write(
            registers,
            target,
            mask,
            std::array::from_fn(|lane| if condition >> lane & 1 != 0 { a[lane] } else { b[lane] }),
        );
    }))
}
