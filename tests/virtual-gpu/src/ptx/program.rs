//! Program of a kernel: its instructions decoded, its variables placed.

use super::Parameter;
use super::moves::MODULE_WINDOW;
use super::registers::Registers;
use super::scope::{Constants, Decoder, Scope};
use super::step::{Action, Step};
use super::syntax::{Kernel, Operand, Space, Statement, Variable};
use std::collections::{BTreeMap, BTreeSet};

/// What a launch executes.
pub(super) struct Program {
    pub(super) steps: Vec<Step>,
    /// A warp's registers before the first step.
    pub(super) registers: Registers,
    pub(super) constants: Constants,
    /// Bytes of shared memory besides the launch's own, which lie behind them.
    pub(super) static_shared: usize,
    /// Bytes of local memory of a thread.
    pub(super) local: usize,
    /// Bytes of the narrowest access that may be one to shared memory, at most 4.
    pub(super) granule: usize,
}

/// Alignment of what the launch adds of shared memory.
const DYNAMIC: usize = 16;

/// Places parameters one after the other.
pub(super) fn parameters(kernel: &Kernel) -> Vec<Parameter> {
    let mut end = 0usize;
    let place = |variable: &Variable| {
        let offset = end.next_multiple_of(variable.align);
        end = offset + variable.size;
        Parameter { offset, size: variable.size, align: variable.align }
    };
    kernel.parameters.iter().map(place).collect()
}

/// Decodes a kernel of a text with these variables.
pub(super) fn decode(kernel: &Kernel, module: &[Variable], parameters: &[Parameter]) -> Result<Program, String> {
    let mut scope = Scope::default();
    let named = names(kernel);
    let variables =
        || kernel.variables.iter().chain(module.iter().filter(|variable| named.contains(variable.name.as_str())));
    let static_shared = place(&mut scope, 0, variables().filter(|it| it.space == Space::Shared && !it.is_extern));
    let dynamic =
        if variables().any(|it| it.is_extern) { static_shared.next_multiple_of(DYNAMIC) } else { static_shared };
    variables().filter(|it| it.space == Space::Shared && it.is_extern).for_each(|it| scope.place(it, dynamic as u64));
    let local = place(&mut scope, 0, variables().filter(|it| it.space == Space::Local));
    place(
        &mut scope,
        MODULE_WINDOW as usize,
        variables().filter(|it| matches!(it.space, Space::Global | Space::Const)),
    );
    scope.parameters =
        kernel.parameters.iter().zip(parameters).map(|(it, place)| (it.name.clone(), place.offset)).collect();
    scope.labels = labels(kernel);
    scope.open();
    let mut steps = Vec::new();
    for statement in &kernel.body {
        match statement {
            Statement::Open => scope.open(),
            Statement::Close => scope.close(),
            Statement::Registers(declared) => scope.declare(declared)?,
            Statement::Label(_) => {}
            Statement::Instruction(instruction) => {
                steps.push(Step::decode(instruction, &mut Decoder { scope: &mut scope, instruction }));
            }
        }
    }
    let granule = steps.iter().filter_map(shared_width).min().unwrap_or(4).min(4);
    Ok(Program {
        steps,
        registers: scope.registers(),
        constants: scope.constants,
        static_shared: dynamic,
        local,
        granule,
    })
}

/// Bytes of an access that may be one to shared memory.
fn shared_width(step: &Step) -> Option<usize> {
    let (address, width) = match &step.action {
        Action::Load(it) | Action::Store(it) => (it.address, it.width * it.registers.len()),
        Action::Atomic(it) => (it.address, it.width),
        _ => return None,
    };
    matches!(address.space, Space::Shared | Space::Generic).then_some(width)
}

/// Places variables one after the other, from an address on; where they end.
fn place<'a>(scope: &mut Scope, from: usize, variables: impl Iterator<Item = &'a Variable>) -> usize {
    variables.fold(from, |end, variable| {
        let start = end.next_multiple_of(variable.align);
        scope.place(variable, start as u64);
        start + variable.size
    })
}

/// Everything that instructions name.
fn names(kernel: &Kernel) -> BTreeSet<&str> {
    let instructions = kernel.body.iter().filter_map(|statement| match statement {
        Statement::Instruction(instruction) => Some(instruction),
        _ => None,
    });
    let operands = instructions.flat_map(|instruction| &instruction.operands);
    operands
        .filter_map(|operand| match operand {
            Operand::Name(name) | Operand::Address(Some(name), _) => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

/// The step that follows each label.
fn labels(kernel: &Kernel) -> BTreeMap<String, usize> {
    let mut next = 0;
    let mut labels = BTreeMap::new();
    for statement in &kernel.body {
        match statement {
            Statement::Label(label) => drop(labels.insert(label.clone(), next)),
            Statement::Instruction(_) => next += 1,
            _ => {}
        }
    }
    labels
}
