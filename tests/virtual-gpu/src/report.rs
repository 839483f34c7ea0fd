//! Report: what was counted, written at the end of the program.
#![allow(unsafe_code)] // a function that C calls at exit

use crate::machine::{Machine, machine};
use crate::statistics::{Counts, Traffic};
use crate::tally::Products;

/// Sees to it that the counts are written when the program ends.
pub fn at_exit() {
    // SAFETY: the function takes nothing and is there as long as the library.
    unsafe { libc::atexit(write) };
}

extern "C" fn write() {
    let machine = machine();
    let Some(path) = &machine.settings.statistics else { return };
    if let Err(error) = std::fs::write(path, table(&machine)) {
        eprintln!("virtual GPU: {path}: {error}");
    }
}

/// Columns, of which each kind of row fills those that mean something for it.
const COLUMNS: [&str; 28] = [
    "kind",
    "name",
    "line",
    "count",
    "bytes",
    "flops",
    "unaligned",
    "blocks",
    "threads",
    "instructions",
    "lanes",
    "divergences",
    "barriers",
    "mma",
    "atomics",
    "within_warp",
    "load_requests",
    "load_sectors",
    "load_sectors_needed",
    "load_bytes",
    "store_requests",
    "store_sectors",
    "store_sectors_needed",
    "store_bytes",
    "shared_requests",
    "shared_passes",
    "shared_passes_needed",
    "shared_bytes",
];

/// All counts: of kernels and their lines, of products, copies and calls.
fn table(machine: &Machine) -> String {
    let mut text = COLUMNS.join(",") + "\n";
    for (name, counts) in &machine.statistics.kernels {
        text += &row("kernel", name, &of_kernel(counts));
        for ((line, instruction), traffic) in &counts.lines {
            let cells = [("line", *line as u64)].into_iter().chain(of_line(instruction, traffic)).collect::<Vec<_>>();
            text += &row("line", &format!("{name}: {instruction}"), &cells);
        }
    }
    for (shape, products) in &machine.tally.products {
        let Products { count, bytes, flops, unaligned } = *products;
        let cells = [("count", count), ("bytes", bytes), ("flops", flops), ("unaligned", unaligned)];
        text += &row("product", shape, &cells);
    }
    for (name, copies) in &machine.tally.copies {
        text += &row("copy", name, &[("count", copies.count), ("bytes", copies.bytes)]);
    }
    for (name, count) in machine.calls.counts() {
        text += &row("call", name, &[("count", *count)]);
    }
    text + &row("call", "work that nobody waited for", &[("count", machine.queues.waiting().count() as u64)])
}

fn of_kernel(counts: &Counts) -> Vec<(&'static str, u64)> {
    let own = [
        ("count", counts.launches),
        ("blocks", counts.blocks),
        ("threads", counts.threads),
        ("instructions", counts.instructions),
        ("lanes", counts.lanes),
        ("divergences", counts.divergences),
        ("barriers", counts.barriers),
        ("mma", counts.products),
        ("atomics", counts.atomics),
        ("within_warp", counts.within_warp),
    ];
    let traffic = [(16, &counts.loads), (20, &counts.stores), (24, &counts.shared)];
    own.into_iter().chain(traffic.into_iter().flat_map(|(first, traffic)| cells(first, traffic))).collect()
}

/// Of one line: shared memory or device memory, by the instruction.
fn of_line(instruction: &str, traffic: &Traffic) -> [(&'static str, u64); 4] {
    let shared = instruction.contains("shared") || instruction.contains("ldmatrix");
    cells(
        if shared {
            24
        } else if instruction.contains("st.") {
            20
        } else {
            16
        },
        traffic,
    )
}

/// Four cells from a column on.
fn cells(first: usize, traffic: &Traffic) -> [(&'static str, u64); 4] {
    let numbers = [traffic.requests, traffic.taken, traffic.needed, traffic.bytes];
    std::array::from_fn(|index| (COLUMNS[first + index], numbers[index]))
}

fn row(kind: &str, name: &str, cells: &[(&str, u64)]) -> String {
    let cell = |column: &&str| cells.iter().find(|(of, _)| of == column).map_or(String::new(), |(_, n)| n.to_string());
    let numbers: Vec<String> = COLUMNS[2..].iter().map(cell).collect();
    format!("{kind},\"{}\",{}\n", name.replace('"', "'"), numbers.join(","))
}
