//! Steps: a kernel's instructions in the form that a warp executes.

use super::operation::{Operation, Together};
use super::registers::Slot;
use super::scope::Decoder;
use super::syntax::{Instruction, Operand, Space, size_of};
use super::{compare, convert, exchange, float, integer, moves, tensor_core};

/// What an instruction does.
pub(super) enum Action {
    /// Touches registers only.
    Compute(Operation),
    /// Reads registers of other lanes, those that `members` lists or all 32; `orders` memory accesses too.
    Together {
        run: Together,
        members: Option<Slot>,
        orders: bool,
        is_product: bool,
    },
    /// Continues at a step.
    Branch(usize),
    /// Ends the thread.
    Exit,
    /// Waits for all threads of the block.
    Barrier,
    /// Orders this thread's accesses before its later ones, for other blocks.
    Fence,
    /// Reads the launch's arguments.
    Argument(Transfer),
    /// Reads or writes memory.
    Load(Transfer),
    Store(Transfer),
    /// Reads a value, puts another in its place.
    Atomic(Atomic),
    /// Reads 8x8 matrices from shared memory.
    LoadMatrix {
        to: Vec<Slot>,
        from: Address,
        transposed: bool,
    },
    /// Begins to copy to shared memory.
    CopyAsync(CopyAsync),
    /// Waits for the copies that this thread began.
    WaitAsync,
    /// Is not known, for this reason: a fault where it is executed.
    Unknown(String),
}

/// An address by lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) space: Space,
    pub(super) base: Option<Slot>,
    pub(super) offset: i64,
}

/// One or more neighbouring values between memory and registers.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    pub(super) address: Address,
    /// Bytes of one value.
    pub(super) width: usize,
    pub(super) is_signed: bool,
    pub(super) registers: Vec<Slot>,
}

/// A copy from device to shared memory that is there when its thread has waited.
pub(super) struct CopyAsync {
    pub(super) to: Address,
    pub(super) from: Address,
    /// Bytes that are written: 4, 8 or 16.
    pub(super) width: usize,
    /// How many of them are read, the others being zeros; all where nothing is said.
    pub(super) length: Option<Slot>,
}

/// An atomic instruction on values of 2, 4 or 8 bytes.
pub(super) struct Atomic {
    pub(super) address: Address,
    pub(super) width: usize,
    /// Where the old value goes.
    pub(super) to: Slot,
    pub(super) operands: Vec<Slot>,
    /// The new value from the old one and the operands.
    pub(super) change: fn(u64, &[u64]) -> u64,
}

impl Action {
    /// Decodes an instruction; what is not known becomes `Unknown`.
    pub(super) fn decode(it: &mut Decoder<'_>) -> Self {
        let parts = it.instruction.parts();
        match known(&parts, it) {
            Ok(Some(action)) => action,
            Ok(None) => Self::Unknown("this instruction is not known".to_owned()),
            Err(reason) => Self::Unknown(reason),
        }
    }
}

fn known(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Action>, String> {
    if let Some(action) = control(parts, it)? {
        return Ok(Some(action));
    }
    if let Some(action) = memory(parts, it)? {
        return Ok(Some(action));
    }
    if let Some((run, members)) = exchange::decode(parts, it)? {
        return Ok(Some(Action::Together {
            run,
            members: Some(members),
            orders: parts[0] == "bar",
            is_product: false,
        }));
    }
    if let Some(run) = tensor_core::decode(parts, it)? {
        return Ok(Some(Action::Together { run, members: None, orders: false, is_product: true }));
    }
    for decode in [moves::decode, convert::decode, compare::decode, integer::decode, float::decode] {
        if let Some(operation) = decode(parts, it)? {
            return Ok(Some(Action::Compute(operation)));
        }
    }
    Ok(None)
}

fn control(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Action>, String> {
    Ok(Some(match parts {
        ["bra", ..] => {
            let Operand::Name(label) = it.operand(0)? else { return Err("a branch to no label".to_owned()) };
            Action::Branch(*it.scope.labels.get(label).ok_or_else(|| format!("no label `{label}`"))?)
        }
        ["ret" | "exit", ..] => Action::Exit,
        ["bar", "sync"] | ["bar" | "barrier", "cta", "sync", ..] | ["barrier", "sync", ..] => {
            if it.instruction.operands != [Operand::Number(0)] {
                return Err("only barrier 0 of all threads is known".to_owned());
            }
            Action::Barrier
        }
        ["membar" | "fence", ..] => Action::Fence,
        _ => return Ok(None),
    }))
}

fn space_of(parts: &[&str]) -> Space {
    let named = |part: &&str| match *part {
        "global" => Some(Space::Global),
        "shared" => Some(Space::Shared),
        "local" => Some(Space::Local),
        "param" => Some(Space::Param),
        "const" => Some(Space::Const),
        _ => None,
    };
    parts.iter().find_map(named).unwrap_or(Space::Generic)
}

fn memory(parts: &[&str], it: &mut Decoder<'_>) -> Result<Option<Action>, String> {
    let address = |it: &Decoder<'_>, at| {
        let (base, offset) = it.scope.address(it.operand(at)?)?;
        Ok::<_, String>(Address { space: space_of(parts), base, offset })
    };
    match parts[0] {
        "ld" | "ldu" if parts.contains(&"param") => argument(parts, it).map(Some),
        "ld" | "ldu" => Ok(Some(Action::Load(transfer(parts, address(it, 1)?, 0, it)?))),
        "st" if !parts.contains(&"param") => Ok(Some(Action::Store(transfer(parts, address(it, 0)?, 1, it)?))),
        "atom" => atomic(parts, address(it, 1)?, it).map(Some),
        "cp" => copy_async(parts, address(it, 0), address(it, 1), it),
        "ldmatrix" => {
            let count = match parts {
                ["ldmatrix", "sync", "aligned", "m8n8", count, .., "b16"] => {
                    count.trim_start_matches('x').parse::<usize>().ok()
                }
                _ => None,
            };
            let (to, from) = (it.slots(0, false)?, Address { space: Space::Shared, ..address(it, 1)? });
            if count != Some(to.len()) {
                return Err("ldmatrix of other matrices than 8x8 of 16 bits is not known".to_owned());
            }
            Ok(Some(Action::LoadMatrix { to, from, transposed: parts.contains(&"trans") }))
        }
        _ => Ok(None),
    }
}

fn transfer(parts: &[&str], address: Address, at: usize, it: &mut Decoder<'_>) -> Result<Transfer, String> {
    let kind = parts.last().unwrap_or(&"");
    let width = size_of(kind).ok_or_else(|| format!("values of type .{kind} are not known"))?;
    let registers = it.slots(at, width == 8)?;
    let count = if parts.contains(&"v4") { 4 } else { 1 + usize::from(parts.contains(&"v2")) };
    if registers.len() != count || count * width > 16 {
        return Err(format!("{} registers for {count} values of {width} bytes", registers.len()));
    }
    Ok(Transfer { address, width, is_signed: kind.starts_with('s'), registers })
}

fn copy_async(
    parts: &[&str],
    to: Result<Address, String>,
    from: Result<Address, String>,
    it: &mut Decoder<'_>,
) -> Result<Option<Action>, String> {
    match parts {
        ["cp", "async", "wait_all"] => Ok(Some(Action::WaitAsync)),
        ["cp", "async", "ca" | "cg", "shared", "global"] => {
            let width = match it.operand(2)? {
                Operand::Number(width @ (4 | 8 | 16)) => *width as usize,
                _ => return Err("copies are of 4, 8 or 16 bytes".to_owned()),
            };
            if parts[2] == "cg" && width != 16 {
                return Err("cp.async.cg copies 16 bytes".to_owned());
            }
            let length = if it.instruction.operands.len() > 3 { Some(it.source_slot(3, false)?) } else { None };
            let from = Address { space: Space::Global, ..from? };
            Ok(Some(Action::CopyAsync(CopyAsync { to: to?, from, width, length })))
        }
        _ => Ok(None),
    }
}

fn argument(parts: &[&str], it: &mut Decoder<'_>) -> Result<Action, String> {
    let Operand::Address(Some(name), offset) = it.operand(1)? else {
        return Err("an argument without a name".to_owned());
    };
    let place = *it.scope.parameters.get(name).ok_or_else(|| format!("no parameter `{name}`"))?;
    let address = Address { space: Space::Param, base: None, offset: offset + place as i64 };
    Ok(Action::Argument(transfer(parts, address, 0, it)?))
}

fn atomic(parts: &[&str], address: Address, it: &mut Decoder<'_>) -> Result<Action, String> {
    let kind = *parts.last().unwrap_or(&"");
    let width = size_of(kind).ok_or_else(|| format!("values of type .{kind} are not known"))?;
    let name = parts.iter().find(|part| CHANGES.iter().any(|(name, ..)| name == *part));
    let change = CHANGES.iter().find(|(other, kinds, _)| Some(other) == name && kinds.contains(&kind));
    let (_, _, change) = change.ok_or("this atomic operation is not known")?;
    let operands =
        (2..it.instruction.operands.len()).map(|at| it.source_slot(at, width == 8)).collect::<Result<_, _>>()?;
    Ok(Action::Atomic(Atomic { address, width, to: it.slot(0)?, operands, change: *change }))
}

/// A new value from the old one and the operands.
type Change = fn(u64, &[u64]) -> u64;

/// What atomic instructions do, by name and types.
const CHANGES: [(&str, &[&str], Change); 13] = [
    ("add", &["u32", "s32"], |old, with| u64::from((old as u32).wrapping_add(with[0] as u32))),
    ("add", &["u64"], |old, with| old.wrapping_add(with[0])),
    ("add", &["f32"], |old, with| u64::from((f32::from_bits(old as u32) + f32::from_bits(with[0] as u32)).to_bits())),
    ("add", &["f64"], |old, with| (f64::from_bits(old) + f64::from_bits(with[0])).to_bits()),
    ("exch", &["b32", "b64"], |_, with| with[0]),
    ("cas", &["b16", "b32", "b64"], |old, with| if old == with[0] { with[1] } else { old }),
    ("min", &["u32", "u64"], |old, with| old.min(with[0])),
    ("max", &["u32", "u64"], |old, with| old.max(with[0])),
    ("min", &["s32"], |old, with| (old as i32).min(with[0] as i32) as u32 as u64),
    ("max", &["s32"], |old, with| (old as i32).max(with[0] as i32) as u32 as u64),
    ("and", &["b32", "b64"], |old, with| old & with[0]),
    ("or", &["b32", "b64"], |old, with| old | with[0]),
    ("inc", &["u32"], |old, with| if old >= with[0] { 0 } else { old + 1 }),
];

/// An instruction with what decides whether a lane executes it.
pub(super) struct Step {
    /// A predicate, and whether it must be false.
    pub(super) guard: Option<(usize, bool)>,
    pub(super) action: Action,
    /// Line of the PTX.
    pub(super) line: usize,
}

impl Step {
    /// Decodes an instruction.
    pub(super) fn decode(instruction: &Instruction, it: &mut Decoder<'_>) -> Self {
        let guard = instruction.guard.as_ref().map(|(name, negated)| (it.scope.register(name), *negated));
        let line = instruction.line;
        match guard {
            None => Self { guard: None, action: Action::decode(it), line },
            Some((Some(Slot::Predicate(index)), negated)) => {
                Self { guard: Some((index, negated)), action: Action::decode(it), line }
            }
            Some(_) => Self { guard: None, action: Action::Unknown("its predicate is not known".to_owned()), line },
        }
    }
}
