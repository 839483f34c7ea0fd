//! PTX: the text that nvcc writes, read and executed.

mod access;
mod approximate;
mod compare;
mod convert;
mod copies;
mod exchange;
mod float;
mod integer;
mod lex;
mod moves;
mod operation;
mod parse;
mod program;
mod registers;
mod rounding;
mod run;
mod scope;
mod shared;
mod step;
mod syntax;
mod tensor_core;
mod traffic;
mod warp;

use crate::Fault;
use crate::memory::Memory;
use crate::statistics::Statistics;
use program::Program;
use std::sync::Arc;
use step::Action;
use syntax::{Kernel, Variable};

/// A text of PTX with its kernels.
pub struct Module {
    entries: Vec<Entry>,
}

/// A kernel.
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
    /// Most threads a block may have, where the kernel says.
    pub most_threads: Option<u32>,
    /// Bytes of shared memory that every block has before the launch's own.
    pub static_shared: u32,
    program: Program,
    lines: Arc<[String]>,
}

/// A parameter's place among the bytes of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// From the start.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// Bytes.
    pub align: usize,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of shared memory besides what the kernel declares.
    pub dynamic_shared: u32,
    /// Arguments, laid out as `Entry::parameters` says.
    pub parameters: &'a [u8],
    /// Blocks, and warps of a block, run in an order that this decides; 0 is the natural one.
    pub seed: u64,
}

impl Module {
    /// Reads a text of PTX. An instruction that is not known is a fault only when it is executed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines: Arc<[String]> = text.lines().map(|line| line.trim().to_owned()).collect();
        let parsed = parse::parse(text)?;
        let entries = parsed.kernels.iter().map(|kernel| Entry::new(kernel, &parsed.variables, lines.clone()));
        Ok(Self { entries: entries.collect::<Result<_, _>>()? })
    }

    /// A kernel by its name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// All kernels, in the order of the text.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl Entry {
    fn new(kernel: &Kernel, variables: &[Variable], lines: Arc<[String]>) -> Result<Self, String> {
        let parameters = program::parameters(kernel);
        let program =
            program::decode(kernel, variables, &parameters).map_err(|reason| format!("{}: {reason}", kernel.name))?;
        let static_shared = program.static_shared as u32;
        Ok(Self {
            name: kernel.name.clone(),
            parameters,
            most_threads: kernel.most_threads,
            static_shared,
            program,
            lines,
        })
    }

    /// Executes a launch: every block, to its end.
    pub fn run(&self, launch: &Launch<'_>, memory: &mut Memory, statistics: &mut Statistics) -> Result<(), Fault> {
        run::run(self, launch, memory, statistics)
    }

    /// Instructions that would be faults if they were executed: line, text and reason.
    pub fn unknown(&self) -> impl Iterator<Item = (usize, String, &str)> {
        self.program.steps.iter().filter_map(|step| match &step.action {
            Action::Unknown(reason) => Some((step.line, self.text(step.line), reason.as_str())),
            _ => None,
        })
    }

    fn program(&self) -> &Program {
        &self.program
    }

    /// A line of the PTX.
    fn text(&self, line: usize) -> String {
        line.checked_sub(1).and_then(|line| self.lines.get(line)).cloned().unwrap_or_default()
    }
}
