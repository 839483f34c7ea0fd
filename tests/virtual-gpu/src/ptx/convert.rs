//! Conversions between types: `cvt`.

use super::operation::{Operation, unary};
use super::registers::Slot;
use super::rounding::{self, Rounding};
use super::scope::Decoder;
use half::{bf16, f16};

/// A value between its two types.
#[derive(Clone, Copy)]
enum Number {
    Whole(i128),
    Float(f64),
}

/// What a conversion does besides.
#[derive(Clone, Copy)]
struct Modes {
    rounding: Rounding,
    /// Rounds to a whole number: always towards an integer type, by `rni` and the like within floats.
    to_whole: Option<fn(f64) -> f64>,
    flushes: bool,
    saturates: bool,
    /// `.relu`: negative results and NaN are 0.
    clamps: bool,
}

/// Decodes a conversion; none where it is another instruction.
pub(super) fn decode(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    let ["cvt", modifiers @ .., to, from] = parts else { return Ok(None) };
    if let Some(simple) = simple(modifiers, to, from, it) {
        return simple.map(Some);
    }
    if to.ends_with("x2") {
        return pair(modifiers, to, from, it).map(Some);
    }
    let (modes, read, write) = (modes(modifiers, to)?, reader(from)?, writer(to)?);
    let source = it.source_slot(1, matches!(*from, "u64" | "s64" | "f64" | "b64"))?;
    let target = it.slot(0)?;
    // A signed result fills a wider register with its sign.
    let sign_from = (to.starts_with('s') && target != Slot::Sink).then(|| to[1..].parse::<u32>().unwrap_or(64));
    Ok(Some(Box::new(move |registers, mask| {
        let bits = registers.bits(source).map(|bits| {
            let bits = write(read(bits), modes);
            sign_from.map_or(bits, |width| ((bits << (64 - width)) as i64 >> (64 - width)) as u64)
        });
        registers.set_bits(target, mask, &bits);
    })))
}

/// The frequent conversions, which need no detour.
fn simple(modifiers: &[&str], to: &str, from: &str, it: &mut Decoder<'_>) -> Option<Result<Operation, String>> {
    let one = |f: Result<Operation, String>| f.ok().map(Ok);
    match (modifiers, to, from) {
        ([], "u64" | "s64", "u32") => one(unary(it, |a: u32| u64::from(a))),
        ([], "u64" | "s64", "s32") => one(unary(it, |a: i32| i64::from(a))),
        ([], "u32" | "s32", "u64" | "s64") => one(unary(it, |a: u64| a as u32)),
        ([], "f64", "f32") => one(unary(it, |a: f32| f64::from(a))),
        (["rn"], "f32", "f64") => one(unary(it, |a: f64| a as f32)),
        (["rn"], "f32", "s32") => one(unary(it, |a: i32| a as f32)),
        (["rn"], "bf16", "f32") => one(unary(it, bf16::from_f32)),
        ([], "f32", "bf16") => one(unary(it, bf16::to_f32)),
        ([], "f32", "f16") => one(unary(it, f16::to_f32)),
        _ => None,
    }
}

/// `cvt.rn.bf16x2.f32 d, high, low`.
fn pair(modifiers: &[&str], to: &str, from: &str, it: &mut Decoder<'_>) -> Result<Operation, String> {
    if from != "f32" {
        return Err(format!("cvt from .{from} to .{to} is not known"));
    }
    let half = &to[..to.len() - 2];
    let (modes, write) = (modes(modifiers, half)?, writer(half)?);
    let (target, high, low) = (it.slot(0)?, it.source::<f32>(1)?, it.source::<f32>(2)?);
    Ok(Box::new(move |registers, mask| {
        let (high, low) = (registers.words[high], registers.words[low]);
        let one = |bits: u32| write(Number::Float(f64::from(f32::from_bits(bits))), modes);
        registers.set_bits(target, mask, &std::array::from_fn(|lane| one(high[lane]) << 16 | one(low[lane])));
    }))
}

fn modes(modifiers: &[&str], to: &str) -> Result<Modes, String> {
    let mut modes = Modes {
        rounding: Rounding::Nearest,
        to_whole: (!to.contains('f')).then_some(f64::trunc as fn(f64) -> f64),
        flushes: false,
        saturates: false,
        clamps: false,
    };
    for modifier in modifiers {
        match *modifier {
            "rni" => modes.to_whole = Some(f64::round_ties_even),
            "rzi" => modes.to_whole = Some(f64::trunc),
            "rmi" => modes.to_whole = Some(f64::floor),
            "rpi" => modes.to_whole = Some(f64::ceil),
            "ftz" => modes.flushes = true,
            "sat" => modes.saturates = true,
            "relu" => modes.clamps = true,
            other => modes.rounding = Rounding::of(other).ok_or_else(|| format!("cvt.{other} is not known"))?,
        }
    }
    Ok(modes)
}

fn reader(from: &str) -> Result<fn(u64) -> Number, String> {
    Ok(match from {
        "u8" | "b8" => |bits| Number::Whole(i128::from(bits as u8)),
        "s8" => |bits| Number::Whole(i128::from(bits as i8)),
        "u16" | "b16" => |bits| Number::Whole(i128::from(bits as u16)),
        "s16" => |bits| Number::Whole(i128::from(bits as i16)),
        "u32" | "b32" => |bits| Number::Whole(i128::from(bits as u32)),
        "s32" => |bits| Number::Whole(i128::from(bits as i32)),
        "u64" | "b64" => |bits| Number::Whole(i128::from(bits)),
        "s64" => |bits| Number::Whole(i128::from(bits as i64)),
        "f16" => |bits| Number::Float(f16::from_bits(bits as u16).to_f64()),
        "bf16" => |bits| Number::Float(bf16::from_bits(bits as u16).to_f64()),
        "f32" => |bits| Number::Float(f64::from(f32::from_bits(bits as u32))),
        "f64" => |bits| Number::Float(f64::from_bits(bits)),
        _ => return Err(format!("cvt from .{from} is not known")),
    })
}

fn writer(to: &str) -> Result<fn(Number, Modes) -> u64, String> {
    Ok(match to {
        "u8" | "b8" => |x, m| whole(x, m, 0, u8::MAX.into()),
        "s8" => |x, m| whole(x, m, i8::MIN.into(), i8::MAX.into()) & 0xFF,
        "u16" | "b16" => |x, m| whole(x, m, 0, u16::MAX.into()),
        "s16" => |x, m| whole(x, m, i16::MIN.into(), i16::MAX.into()) & 0xFFFF,
        "u32" | "b32" => |x, m| whole(x, m, 0, u32::MAX.into()),
        "s32" => |x, m| whole(x, m, i32::MIN.into(), i32::MAX.into()) & 0xFFFF_FFFF,
        "u64" | "b64" => |x, m| whole(x, m, 0, u64::MAX.into()),
        "s64" => |x, m| whole(x, m, i64::MIN.into(), i64::MAX.into()),
        "f16" => |x, m| u64::from(f16::from_f32(float(x, m) as f32).to_bits()),
        "bf16" => |x, m| u64::from(narrow_bf16(float(x, m), m.rounding).to_bits()),
        "f32" => |x, m| {
            let narrow = match x {
                Number::Whole(value) if m.rounding == Rounding::Nearest => value as f32,
                _ => rounding::narrow(float(x, m), m.rounding),
            };
            u64::from(flushed(narrow, m).to_bits())
        },
        "f64" => |x, m| float(x, m).to_bits(),
        _ => return Err(format!("cvt to .{to} is not known")),
    })
}

fn flushed(x: f32, modes: Modes) -> f32 {
    if modes.flushes && x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

fn narrow_bf16(x: f64, rounding: Rounding) -> bf16 {
    let nearest = bf16::from_f32(x as f32);
    // Truncation is what `rz` adds to the nearest.
    if rounding == Rounding::Zero && x.is_finite() {
        bf16::from_bits(((x as f32).to_bits() >> 16) as u16)
    } else {
        nearest
    }
}

/// The value as a float, rounded to a whole number and clamped as the modes say.
fn float(x: Number, modes: Modes) -> f64 {
    let x = match x {
        Number::Whole(value) => value as f64,
        Number::Float(x) if modes.flushes && (x as f32).is_subnormal() => 0.0f64.copysign(x),
        Number::Float(x) => modes.to_whole.map_or(x, |round| round(x)),
    };
    if modes.saturates {
        return if x > 0.0 { x.min(1.0) } else { 0.0 };
    }
    if modes.clamps && (x.is_nan() || x < 0.0) { 0.0 } else { x }
}

/// The value in an integer type of a range: floats are clamped, NaN is 0; integers wrap unless they are to saturate.
fn whole(x: Number, modes: Modes, least: i128, most: i128) -> u64 {
    match x {
        Number::Whole(value) if modes.saturates => value.clamp(least, most) as u64,
        Number::Whole(value) => value as u64 & (most - least) as u64,
        Number::Float(x) if x.is_nan() => 0,
        Number::Float(x) => {
            let round = modes.to_whole.unwrap_or(f64::trunc);
            (round(x) as i128).clamp(least, most) as u64
        }
    }
}
