//! Scope: the names of a kernel while it is decoded, and the registers and constants they stand for.

use super::registers::{LANES, Registers, Slot, Value};
use super::syntax::{Declared, Instruction, Operand, Space, Variable, size_of};
use std::collections::BTreeMap;

/// What a special register says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Special {
    /// `%tid`, by axis.
    Thread(usize),
    /// `%ntid`.
    Threads(usize),
    /// `%ctaid`.
    Block(usize),
    /// `%nctaid`.
    Blocks(usize),
    Lane,
    Warp,
    /// `%lanemask_lt`: the lanes before this one.
    LanesBefore,
}

impl Special {
    fn named(name: &str) -> Option<Self> {
        let axis = |name: &str| ["x", "y", "z"].iter().position(|axis| *axis == name);
        Some(match name.split_once('.') {
            Some(("%tid", name)) => Self::Thread(axis(name)?),
            Some(("%ntid", name)) => Self::Threads(axis(name)?),
            Some(("%ctaid", name)) => Self::Block(axis(name)?),
            Some(("%nctaid", name)) => Self::Blocks(axis(name)?),
            None if name == "%laneid" => Self::Lane,
            None if name == "%warpid" => Self::Warp,
            None if name == "%lanemask_lt" => Self::LanesBefore,
            _ => return None,
        })
    }
}

/// What registers hold before a kernel begins.
#[derive(Default, Debug)]
pub(super) struct Constants {
    pub(super) words: BTreeMap<u32, usize>,
    pub(super) longs: BTreeMap<u64, usize>,
    pub(super) specials: BTreeMap<Special, usize>,
}

/// The names in force, innermost last, and all registers so far.
#[derive(Default)]
pub(super) struct Scope {
    /// By name or, for numbered ones, by what is before the number.
    registers: Vec<BTreeMap<String, (Slot, u32)>>,
    words: usize,
    longs: usize,
    predicates: usize,
    pub(super) constants: Constants,
    symbols: BTreeMap<String, (Space, u64)>,
    pub(super) labels: BTreeMap<String, usize>,
    pub(super) parameters: BTreeMap<String, usize>,
}

impl Scope {
    pub(super) fn open(&mut self) {
        self.registers.push(BTreeMap::new());
    }

    pub(super) fn close(&mut self) {
        self.registers.pop();
    }

    /// Places a variable at an address of its space.
    pub(super) fn place(&mut self, variable: &Variable, address: u64) {
        self.symbols.insert(variable.name.clone(), (variable.space, address));
    }

    /// Gives registers a place each.
    pub(super) fn declare(&mut self, declared: &Declared) -> Result<(), String> {
        let count = declared.count.unwrap_or(1) as usize;
        let slot = match (declared.kind.as_str(), size_of(&declared.kind)) {
            ("pred", _) => Slot::Predicate(next(&mut self.predicates, count)),
            (_, Some(8)) => Slot::Long(next(&mut self.longs, count)),
            (_, Some(_)) => Slot::Word(next(&mut self.words, count)),
            (kind, None) => return Err(format!("registers of type .{kind} are not known")),
        };
        if self.registers.is_empty() {
            self.open();
        }
        let names = self.registers.last_mut().expect("one was opened");
        names.insert(declared.name.clone(), (slot, declared.count.unwrap_or(0)));
        Ok(())
    }

    /// A register by its name.
    pub(super) fn register(&self, name: &str) -> Option<Slot> {
        if name == "_" {
            return Some(Slot::Sink);
        }
        let prefix = name.trim_end_matches(|last: char| last.is_ascii_digit());
        let number: Option<usize> = name[prefix.len()..].parse().ok();
        self.registers.iter().rev().find_map(|names| match (names.get(name), names.get(prefix), number) {
            (Some((slot, 0)), ..) => Some(*slot),
            (_, Some((first, count)), Some(number)) if number < *count as usize => Some(match *first {
                Slot::Word(first) => Slot::Word(first + number),
                Slot::Long(first) => Slot::Long(first + number),
                Slot::Predicate(first) => Slot::Predicate(first + number),
                Slot::Sink => Slot::Sink,
            }),
            _ => None,
        })
    }

    fn constant_word(&mut self, value: u32) -> Slot {
        Slot::Word(*self.constants.words.entry(value).or_insert_with(|| next(&mut self.words, 1)))
    }

    fn constant_long(&mut self, value: u64) -> Slot {
        Slot::Long(*self.constants.longs.entry(value).or_insert_with(|| next(&mut self.longs, 1)))
    }

    fn constant(&mut self, bits: u64, is_long: bool) -> Slot {
        if is_long { self.constant_long(bits) } else { self.constant_word(bits as u32) }
    }

    /// A register that holds what an operand of 32 or fewer bits, or of 64, says.
    pub(super) fn source(&mut self, operand: &Operand, is_long: bool) -> Result<Slot, String> {
        match operand {
            Operand::Number(bits) => Ok(self.constant(*bits, is_long)),
            Operand::Single(bits) if is_long => Ok(self.constant_long(f64::from(f32::from_bits(*bits)).to_bits())),
            Operand::Single(bits) => Ok(self.constant_word(*bits)),
            Operand::Name(name) => {
                if let Some(slot) = self.register(name) {
                    Ok(slot)
                } else if let Some((_, address)) = self.symbols.get(name) {
                    Ok(self.constant(*address, is_long))
                } else if name == "WARP_SZ" {
                    Ok(self.constant(LANES as u64, is_long))
                } else if let Some(special) = Special::named(name) {
                    Ok(Slot::Word(*self.constants.specials.entry(special).or_insert_with(|| next(&mut self.words, 1))))
                } else {
                    Err(format!("`{name}` is not known"))
                }
            }
            other => Err(format!("{other:?} is no value")),
        }
    }

    /// The register and the offset of an address, and the space of the variable it names, if it names one.
    pub(super) fn address(&self, operand: &Operand) -> Result<(Option<Slot>, i64), String> {
        let Operand::Address(base, offset) = operand else { return Err(format!("{operand:?} is no address")) };
        match base {
            None => Ok((None, *offset)),
            Some(name) => match (self.register(name), self.symbols.get(name)) {
                (Some(slot @ (Slot::Word(_) | Slot::Long(_))), _) => Ok((Some(slot), *offset)),
                (None, Some((_, address))) => Ok((None, *offset + *address as i64)),
                _ => Err(format!("`{name}` is no address")),
            },
        }
    }

    /// Registers for a warp, constants set, the rest 0.
    pub(super) fn registers(&self) -> Registers {
        let mut registers = Registers {
            words: vec![[0; LANES]; self.words],
            longs: vec![[0; LANES]; self.longs],
            predicates: vec![0; self.predicates],
        };
        self.constants.words.iter().for_each(|(value, index)| registers.words[*index] = [*value; LANES]);
        self.constants.longs.iter().for_each(|(value, index)| registers.longs[*index] = [*value; LANES]);
        registers
    }
}

/// The first of `count` new places.
fn next(places: &mut usize, count: usize) -> usize {
    let first = *places;
    *places += count;
    first
}

/// An instruction and the scope in which its operands are looked up.
pub(super) struct Decoder<'a> {
    pub(super) scope: &'a mut Scope,
    pub(super) instruction: &'a Instruction,
}

impl Decoder<'_> {
    pub(super) fn operand(&self, at: usize) -> Result<&Operand, String> {
        self.instruction.operands.get(at).ok_or_else(|| format!("operand {} is missing", at + 1))
    }

    /// The register of a name.
    pub(super) fn slot(&self, at: usize) -> Result<Slot, String> {
        match self.operand(at)? {
            Operand::Name(name) | Operand::Both(name, _) => {
                self.scope.register(name).ok_or_else(|| format!("`{name}` is no register"))
            }
            other => Err(format!("{other:?} is no register")),
        }
    }

    /// A register, or what holds a constant, of whichever width it has; of 64 bits for constants if `is_long`.
    pub(super) fn source_slot(&mut self, at: usize, is_long: bool) -> Result<Slot, String> {
        let operand = self.operand(at)?.clone();
        self.scope.source(&operand, is_long)
    }

    /// The index of what operand `at` reads, as a `T`.
    pub(super) fn source<T: Value>(&mut self, at: usize) -> Result<usize, String> {
        let slot = self.source_slot(at, T::IS_LONG)?;
        T::index(slot).ok_or_else(|| format!("operand {} has another width", at + 1))
    }

    /// The index of the register that operand `at` sets, as a `T`.
    pub(super) fn target<T: Value>(&self, at: usize) -> Result<usize, String> {
        T::index(self.slot(at)?).ok_or_else(|| format!("operand {} has another width", at + 1))
    }

    /// The index of a predicate, and whether it is negated.
    pub(super) fn predicate(&self, at: usize) -> Result<(usize, bool), String> {
        let (name, negated) = match self.operand(at)? {
            Operand::Name(name) | Operand::Both(name, _) => (name, false),
            Operand::Not(name) => (name, true),
            other => return Err(format!("{other:?} is no predicate")),
        };
        match self.scope.register(name) {
            Some(Slot::Predicate(index)) => Ok((index, negated)),
            _ => Err(format!("`{name}` is no predicate")),
        }
    }

    /// The index of the second of two results, a predicate: `a|p`.
    pub(super) fn second_predicate(&self, at: usize) -> Option<usize> {
        let Operand::Both(_, name) = self.instruction.operands.get(at)? else { return None };
        match self.scope.register(name)? {
            Slot::Predicate(index) => Some(index),
            _ => None,
        }
    }

    /// Registers in braces, or one without them.
    pub(super) fn slots(&mut self, at: usize, is_long: bool) -> Result<Vec<Slot>, String> {
        match self.operand(at)?.clone() {
            Operand::Vector(parts) => parts.iter().map(|part| self.scope.source(part, is_long)).collect(),
            operand => Ok(vec![self.scope.source(&operand, is_long)?]),
        }
    }
}
