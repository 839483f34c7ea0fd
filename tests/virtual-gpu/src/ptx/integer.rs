//! Integer and bit instructions.

use super::operation::{Operation, binary, ternary, unary};
use super::registers::Value;
use super::scope::Decoder;

/// Whole numbers of a width, whose arithmetic wraps.
trait Integer: Value + Ord {
    const BITS: u32;
    fn wide(self) -> i128;
    fn wrap(value: i128) -> Self;
    fn sum(self, other: Self) -> Self;
    fn difference(self, other: Self) -> Self;
    fn product(self, other: Self) -> Self;
    fn quotient(self, other: Self) -> Self;
    fn remainder(self, other: Self) -> Self;
    fn left(self, by: u32) -> Self;
    fn right(self, by: u32) -> Self;
}

macro_rules! integer {
    ($($kind:ty)*) => {$(
        impl Integer for $kind {
            const BITS: u32 = <$kind>::BITS;

            #[inline]
            fn wide(self) -> i128 {
                self as i128
            }

            #[inline]
            fn wrap(value: i128) -> Self {
                value as Self
            }

            #[inline]
            fn sum(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline]
            fn difference(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }

            #[inline]
            fn product(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }

            // By 0 all ones, as on the machines known.
            #[inline]
            fn quotient(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_div(other) }
            }

            #[inline]
            fn remainder(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_rem(other) }
            }

            // Shifts by the width or more leave zeros, or the sign.
            #[inline]
            fn left(self, by: u32) -> Self {
                self.checked_shl(by).unwrap_or(0)
            }

            #[inline]
            fn right(self, by: u32) -> Self {
                self.checked_shr(by).unwrap_or(self >> (Self::BITS - 1) >> 1)
            }
        }
    )*};
}
integer! { u16 i16 u32 i32 u64 i64 }

/// Decodes an integer or bit instruction; none where it is of another kind.
pub(super) fn decode(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    let kind = *parts.last().unwrap_or(&"");
    match kind {
        "u16" => arithmetic::<u16>(parts, it),
        "s16" => arithmetic::<i16>(parts, it),
        "u32" => arithmetic::<u32>(parts, it),
        "s32" => arithmetic::<i32>(parts, it),
        "u64" => arithmetic::<u64>(parts, it),
        "s64" => arithmetic::<i64>(parts, it),
        "b16" => bits::<u16>(parts, it),
        "b32" => bits::<u32>(parts, it),
        "b64" => bits::<u64>(parts, it),
        "pred" => predicates(parts, it),
        _ => Ok(None),
    }
}

fn arithmetic<T: Integer>(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    Ok(Some(match parts {
        ["add", _] => binary(it, T::sum)?,
        ["sub", _] => binary(it, T::difference)?,
        ["mul", "lo", _] => binary(it, T::product)?,
        ["mul", "hi", _] => binary(it, |a: T, b: T| T::wrap((a.wide() * b.wide()) >> T::BITS))?,
        ["mad", "lo", _] => ternary(it, |a: T, b: T, c: T| a.product(b).sum(c))?,
        ["mad", "hi", _] => ternary(it, |a: T, b: T, c: T| T::wrap((a.wide() * b.wide()) >> T::BITS).sum(c))?,
        ["mul" | "mad", "wide", _] => return wide(parts, it),
        ["div", _] => binary(it, T::quotient)?,
        ["rem", _] => binary(it, T::remainder)?,
        ["min", _] => binary(it, T::min)?,
        ["max", _] => binary(it, T::max)?,
        ["neg", _] => unary(it, |a: T| T::wrap(-a.wide()))?,
        ["abs", _] => unary(it, |a: T| T::wrap(a.wide().abs()))?,
        ["shr", _] => binary(it, T::right)?,
        ["bfe", _] => field::<T>(it)?,
        _ => return Ok(None),
    }))
}

/// Products twice as wide as their factors.
fn wide(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    Ok(Some(match parts {
        ["mul", _, "u16"] => binary(it, |a: u16, b: u16| u32::from(a) * u32::from(b))?,
        ["mul", _, "s16"] => binary(it, |a: i16, b: i16| i32::from(a) * i32::from(b))?,
        ["mul", _, "u32"] => binary(it, |a: u32, b: u32| u64::from(a) * u64::from(b))?,
        ["mul", _, "s32"] => binary(it, |a: i32, b: i32| i64::from(a) * i64::from(b))?,
        ["mad", _, "u32"] => ternary(it, |a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c))?,
        ["mad", _, "s32"] => ternary(it, |a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c))?,
        _ => return Ok(None),
    }))
}

/// `bfe`: `length` bits from `position` on, signed or not.
fn field<T: Integer>(it: &mut Decoder<'_>) -> Result<Operation, String> {
    ternary(it, |a: T, position: u32, length: u32| {
        let (position, length) = (position & 0xFF, length & 0xFF);
        if length == 0 {
            return T::wrap(0);
        }
        let shifted = a.wide() >> position.min(T::BITS);
        let unused = 128 - length.min(T::BITS);
        let is_signed = T::wrap(-1).wide() < 0;
        T::wrap(if is_signed { shifted << unused >> unused } else { ((shifted as u128) << unused >> unused) as i128 })
    })
}

fn bits<T: Integer>(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    let width = T::BITS;
    let unsigned = move |a: T| a.wide() as u64;
    Ok(Some(match parts {
        ["and", _] => binary(it, |a: T, b: T| T::wrap(a.wide() & b.wide()))?,
        ["or", _] => binary(it, |a: T, b: T| T::wrap(a.wide() | b.wide()))?,
        ["xor", _] => binary(it, |a: T, b: T| T::wrap(a.wide() ^ b.wide()))?,
        ["not", _] => unary(it, |a: T| T::wrap(!a.wide()))?,
        ["shl", _] => binary(it, T::left)?,
        ["shr", _] => binary(it, T::right)?,
        ["popc", _] => unary(it, move |a: T| unsigned(a).count_ones())?,
        ["clz", _] => unary(it, move |a: T| unsigned(a).leading_zeros() - (64 - width))?,
        ["brev", _] => unary(it, move |a: T| T::wrap((unsigned(a).reverse_bits() >> (64 - width)) as i128))?,
        ["bfi", _] => insert(it, width)?,
        ["lop3", _] => lop3(it)?,
        ["prmt", _] => ternary(it, permute)?,
        ["shf", side @ ("l" | "r"), mode @ ("wrap" | "clamp"), _] => funnel(it, *side == "l", *mode == "wrap")?,
        _ => return Ok(None),
    }))
}

/// `bfi d, a, b, position, length`: the lowest bits of `a` put into `b`.
fn insert(it: &mut Decoder<'_>, width: u32) -> Result<Operation, String> {
    let is_long = width == 64;
    let (target, a, b) = (it.slot(0)?, it.source_slot(1, is_long)?, it.source_slot(2, is_long)?);
    let (position, length) = (it.source::<u32>(3)?, it.source::<u32>(4)?);
    Ok(Box::new(move |registers, mask| {
        let (a, b) = (registers.bits(a), registers.bits(b));
        let (position, length) = (u32::read(registers, position), u32::read(registers, length));
        let result = std::array::from_fn(|lane| {
            let (position, length) = (position[lane] & 0xFF, length[lane] & 0xFF);
            let field = ((1u128 << length.min(64)) - 1).checked_shl(position).unwrap_or(0) as u64;
            b[lane] & !field | (u128::from(a[lane]).checked_shl(position).unwrap_or(0) as u64) & field
        });
        registers.set_bits(target, mask, &result);
    }))
}

/// `lop3 d, a, b, c, table`: bit by bit, the table's entry of the three bits.
fn lop3(it: &mut Decoder<'_>) -> Result<Operation, String> {
    let super::syntax::Operand::Number(table) = *it.operand(4)? else {
        return Err("the table of lop3 is no number".into());
    };
    ternary(it, move |a: u32, b: u32, c: u32| {
        (0..8u32).filter(|entry| table >> entry & 1 != 0).fold(0, |result, entry| {
            let pick = |x: u32, bit: u32| if entry & bit != 0 { x } else { !x };
            result | pick(a, 4) & pick(b, 2) & pick(c, 1)
        })
    })
}

/// `prmt` without a mode: four bytes picked out of eight, or their sign.
fn permute(a: u32, b: u32, selection: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    u32::from_le_bytes(std::array::from_fn(|at| {
        let which = selection >> (4 * at) & 0xF;
        let byte = bytes[(which & 7) as usize];
        if which & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 }
    }))
}

/// `shf`: 32 bits out of 64, shifted left or right.
fn funnel(it: &mut Decoder<'_>, left: bool, wraps: bool) -> Result<Operation, String> {
    ternary(it, move |a: u32, b: u32, by: u32| {
        let by = if wraps { by & 31 } else { by.min(32) };
        let both = u64::from(b) << 32 | u64::from(a);
        if left { (both << by >> 32) as u32 } else { (both >> by) as u32 }
    })
}

/// Predicates hold all lanes in one word.
fn predicates(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    let (target, _) = it.predicate(0)?;
    let constant = |it: &Decoder<'_>| match it.operand(1) {
        Ok(super::syntax::Operand::Number(value)) => Some(if *value == 0 { 0 } else { u32::MAX }),
        _ => None,
    };
    if let (["mov", _], Some(value)) = (parts, constant(it)) {
        return Ok(Some(Box::new(move |registers, mask| registers.set_predicate(target, mask, value))));
    }
    let (a, flips_a) = it.predicate(1)?;
    let (b, flips_b) = if it.instruction.operands.len() > 2 { it.predicate(2)? } else { (a, flips_a) };
    let f: fn(u32, u32) -> u32 = match parts {
        ["and", _] => |a, b| a & b,
        ["or", _] => |a, b| a | b,
        ["xor", _] => |a, b| a ^ b,
        ["not", _] => |a, _| !a,
        ["mov", _] => |a, _| a,
        _ => return Ok(None),
    };
    let flip = |value: u32, flips: bool| if flips { !value } else { value };
    Ok(Some(Box::new(move |registers, mask| {
        let (a, b) = (flip(registers.predicates[a], flips_a), flip(registers.predicates[b], flips_b));
        registers.set_predicate(target, mask, f(a, b));
    })))
}
