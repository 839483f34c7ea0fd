//! Exchanges between the lanes of a warp: shuffles, votes.

use super::operation::Together;
use super::registers::{LANES, Mask, Slot, Value, lanes, mask_of};
use super::scope::Decoder;

/// Decodes an exchange, and the operand that names the lanes which take part; none where it is another instruction.
pub(super) fn decode(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<(Together, Slot)>, String> {
    match parts {
        ["shfl", "sync", mode, "b32"] => Ok(Some((shuffle(mode, it)?, it.source_slot(4, false)?))),
        ["vote", "sync", mode, "pred" | "b32"] => Ok(Some((vote(mode, it)?, it.source_slot(2, false)?))),
        ["bar", "warp", "sync"] => Ok(Some((Box::new(|_, _| Ok(())), it.source_slot(0, false)?))),
        _ => Ok(None),
    }
}

/// `shfl.sync.mode.b32 d|p, a, b, c, members`: `c` holds the segment's mask (bits 8 to 12) and the last lane that counts (0 to 4).
fn shuffle(mode: &str, it: &mut Decoder<'_>) -> Result<Together, String> {
    let from: fn(usize, usize) -> isize = match mode {
        "up" => |lane, by| lane as isize - by as isize,
        "down" => |lane, by| (lane + by) as isize,
        "bfly" => |lane, by| (lane ^ by) as isize,
        "idx" => |_, at| at as isize,
        _ => return Err(format!("shfl.{mode} is not known")),
    };
    let (is_up, is_index) = (mode == "up", mode == "idx");
    let (target, inside) = (it.target::<u32>(0)?, it.second_predicate(0));
    let (value, by, limits) = (it.source::<u32>(1)?, it.source::<u32>(2)?, it.source::<u32>(3)?);
    Ok(Box::new(move |registers, mask| {
        let (value, by) = (registers.words[value], registers.words[by]);
        let limits = registers.words[limits];
        let (mut result, mut is_inside) = (value, 0);
        for lane in lanes(mask) {
            let (segment, clamp) = ((limits[lane] >> 8 & 31) as usize, (limits[lane] & 31) as usize);
            let (least, most) = (lane & segment, (lane & segment) | (clamp & !segment));
            let by = (by[lane] & 31) as usize;
            let source = if is_index { (least | (by & !segment)) as isize } else { from(lane, by) };
            let fits = if is_up { source >= most as isize } else { source <= most as isize };
            let source = if fits { source as usize } else { lane };
            if mask >> source & 1 == 0 {
                return Err(format!("lane {lane} asks for a register of lane {source}, which takes no part"));
            }
            result[lane] = value[source];
            is_inside |= Mask::from(fits) << lane;
        }
        u32::write(registers, target, mask, result);
        if let Some(inside) = inside {
            registers.set_predicate(inside, mask, is_inside);
        }
        Ok(())
    }))
}

fn vote(mode: &str, it: &mut Decoder<'_>) -> Result<Together, String> {
    let (condition, negated) = it.predicate(1)?;
    let target = it.slot(0)?;
    let outcome: fn(Mask, Mask) -> u64 = match mode {
        "all" => |votes, mask| u64::from(votes == mask),
        "any" => |votes, _| u64::from(votes != 0),
        "uni" => |votes, mask| u64::from(votes == 0 || votes == mask),
        "ballot" => |votes, _| u64::from(votes),
        _ => return Err(format!("vote.{mode} is not known")),
    };
    Ok(Box::new(move |registers, mask| {
        let condition = registers.predicates[condition] ^ if negated { u32::MAX } else { 0 };
        let votes = mask_of(|lane| condition >> lane & 1 != 0) & mask;
        registers.set_bits(target, mask, &[outcome(votes, mask); LANES]);
        Ok(())
    }))
}
