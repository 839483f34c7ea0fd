//! Operation: what an instruction does to the registers of a warp, made once when a kernel is decoded.

use super::registers::{LANES, Mask, Registers, Value, each};
use super::scope::Decoder;

/// An instruction that touches registers only, in the lanes of a mask.
pub(super) type Operation = Box<dyn Fn(&mut Registers, Mask) + Send + Sync>;

/// `d = f(a)` lane by lane.
pub(super) fn unary<A: Value, D: Value>(
    it: &mut Decoder<'_>,
    f: impl Fn(A) -> D + Send + Sync + 'static,
) -> Result<Operation, String> {
    let (d, a) = (it.target::<D>(0)?, it.source::<A>(1)?);
    Ok(Box::new(move |registers, mask| {
        let result = each(&A::read(registers, a), &f);
        D::write(registers, d, mask, result);
    }))
}

/// `d = f(a, b)` lane by lane.
pub(super) fn binary<A: Value, B: Value, D: Value>(
    it: &mut Decoder<'_>,
    f: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Result<Operation, String> {
    let (d, a, b) = (it.target::<D>(0)?, it.source::<A>(1)?, it.source::<B>(2)?);
    Ok(Box::new(move |registers, mask| {
        let (a, b) = (A::read(registers, a), B::read(registers, b));
        let mut result = [D::default(); LANES];
        for lane in 0..LANES {
            result[lane] = f(a[lane], b[lane]);
        }
        D::write(registers, d, mask, result);
    }))
}

/// `d = f(a, b, c)` lane by lane.
pub(super) fn ternary<A: Value, B: Value, C: Value, D: Value>(
    it: &mut Decoder<'_>,
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Result<Operation, String> {
    let (d, a, b, c) = (it.target::<D>(0)?, it.source::<A>(1)?, it.source::<B>(2)?, it.source::<C>(3)?);
    Ok(Box::new(move |registers, mask| {
        let (a, b, c) = (A::read(registers, a), B::read(registers, b), C::read(registers, c));
        let mut result = [D::default(); LANES];
        for lane in 0..LANES {
            result[lane] = f(a[lane], b[lane], c[lane]);
        }
        D::write(registers, d, mask, result);
    }))
}

/// An instruction that reads registers of other lanes, which must all be there.
pub(super) type Together = Box<dyn Fn(&mut Registers, Mask) -> Result<(), String> + Send + Sync>;
