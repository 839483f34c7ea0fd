//! Moves: `mov`, `cvta`, and registers put together or taken apart.

use super::operation::Operation;
use super::registers::Slot;
use super::scope::Decoder;
use super::syntax::{Operand, size_of};

/// Device address of the first byte of shared memory, as generic addresses see it.
pub(super) const SHARED_WINDOW: u64 = 0x1_0000_0000;
/// Likewise of a thread's local memory.
pub(super) const LOCAL_WINDOW: u64 = 0x2_0000_0000;
/// Where the variables of a module seem to lie. They can be named, as failed assertions do, and not accessed.
pub(super) const MODULE_WINDOW: u64 = 0x3_0000_0000;
/// Bytes of a window.
pub(super) const WINDOW: u64 = 0x100_0000;

/// Decodes a move; none where it is another instruction.
pub(super) fn decode(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Operation>, String> {
    match parts {
        ["mov", "pred"] => Ok(None),
        ["mov", kind] => moved(kind, it).map(Some),
        ["cvta", "to", space, _] => shifted(it, space, u64::wrapping_sub).map(Some),
        ["cvta", space, _] => shifted(it, space, u64::wrapping_add).map(Some),
        _ => Ok(None),
    }
}

/// Between the addresses of a space and generic ones; device memory has the same in both.
fn shifted(it: &mut Decoder<'_>, space: &str, f: fn(u64, u64) -> u64) -> Result<Operation, String> {
    let window = match space {
        "global" | "const" => 0,
        "shared" => SHARED_WINDOW,
        "local" => LOCAL_WINDOW,
        _ => return Err(format!("cvta of .{space} is not known")),
    };
    let (target, source) = (it.slot(0)?, it.source_slot(1, true)?);
    Ok(Box::new(move |registers, mask| {
        let bits = registers.bits(source).map(|address| f(address, window));
        registers.set_bits(target, mask, &bits);
    }))
}

fn moved(kind: &str, it: &mut Decoder<'_>) -> Result<Operation, String> {
    let bytes = size_of(kind).ok_or_else(|| format!("mov.{kind} is not known"))?;
    let is_vector = |at| matches!(it.operand(at), Ok(Operand::Vector(_)));
    match (is_vector(0), is_vector(1)) {
        (false, false) => {
            let (target, source) = (it.slot(0)?, it.source_slot(1, bytes == 8)?);
            Ok(match (target, source) {
                (Slot::Word(target), Slot::Word(source)) => Box::new(move |registers, mask| {
                    let row = registers.words[source];
                    super::registers::Value::write(registers, target, mask, row);
                }),
                _ => Box::new(move |registers, mask| {
                    let bits = registers.bits(source);
                    registers.set_bits(target, mask, &bits);
                }),
            })
        }
        (true, false) => {
            let (parts, source) = (it.slots(0, false)?, it.source_slot(1, bytes == 8)?);
            let width = 8 * bytes / parts.len();
            Ok(Box::new(move |registers, mask| {
                let bits = registers.bits(source);
                for (at, part) in parts.iter().enumerate() {
                    let ones = u64::MAX >> (64 - width);
                    registers.set_bits(*part, mask, &bits.map(|bits| bits >> (width * at) & ones));
                }
            }))
        }
        (false, true) => {
            let (target, parts) = (it.slot(0)?, it.slots(1, false)?);
            let width = 8 * bytes / parts.len();
            Ok(Box::new(move |registers, mask| {
                let mut whole = [0; super::registers::LANES];
                for (at, part) in parts.iter().enumerate() {
                    let (bits, ones) = (registers.bits(*part), u64::MAX >> (64 - width));
                    (0..whole.len()).for_each(|lane| whole[lane] |= (bits[lane] & ones) << (width * at));
                }
                registers.set_bits(target, mask, &whole);
            }))
        }
        (true, true) => Err("a vector is moved to a vector".to_owned()),
    }
}
