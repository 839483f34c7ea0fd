//! Syntax of PTX: what a text says, before any name is looked up.

/// Where a variable or an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// Device memory or shared memory, by the address.
    Generic,
    Global,
    Shared,
    Local,
    Param,
    Const,
}

/// A declared variable.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) space: Space,
    pub(super) name: String,
    pub(super) align: usize,
    pub(super) size: usize,
    /// Declared without a size: the launch says.
    pub(super) is_extern: bool,
}

/// Registers `name0`, `name1`, ... of one type, or one register `name`.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) count: Option<u32>,
}

/// A kernel as written.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) parameters: Vec<Variable>,
    pub(super) most_threads: Option<u32>,
    pub(super) variables: Vec<Variable>,
    pub(super) body: Vec<Statement>,
}

/// A part of a kernel's body.
#[derive(Clone, Debug)]
pub(super) enum Statement {
    /// A scope begins: registers declared in it hide others of their name.
    Open,
    Close,
    Registers(Declared),
    Label(String),
    Instruction(Instruction),
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub(super) struct Instruction {
    pub(super) line: usize,
    /// The predicate, and whether it must be false.
    pub(super) guard: Option<(String, bool)>,
    /// The opcode, without its first part's modifiers cut off: `ld.global.f32`.
    pub(super) opcode: String,
    pub(super) operands: Vec<Operand>,
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    /// A register, a special register, a label or a variable.
    Name(String),
    /// A negated predicate.
    Not(String),
    /// Bits of a number: two's complement, or those of an f64 written `0d` or with a point.
    Number(u64),
    /// Bits of an f32 written `0f`.
    Single(u32),
    /// `[base + offset]`; a base that is a number is in the offset.
    Address(Option<String>, i64),
    /// `{a, b, ...}`.
    Vector(Vec<Operand>),
    /// `a|b`: a result and a predicate.
    Both(String, String),
}

impl Instruction {
    /// The parts of the opcode: `ld`, `global`, `f32`.
    pub(super) fn parts(&self) -> Vec<&str> {
        self.opcode.split('.').collect()
    }
}

/// Bytes of a type's value; none for predicates and what is no type.
pub(super) fn size_of(kind: &str) -> Option<usize> {
    Some(match kind {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}
