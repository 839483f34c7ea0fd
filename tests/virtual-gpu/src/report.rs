//! Report: what was counted, written at the end of the program.
#![allow(unsafe_code)] // a function that C calls at exit

use crate::machine::{Machine, machine};
use std::fmt::Write as _;

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

/// The counts of products, copies and calls.
fn table(machine: &Machine) -> String {
    let mut text = String::new();
    let mut row = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{line}");
    };
    row(format_args!("kind,name,count,bytes,flops,unaligned"));
    for (shape, products) in &machine.traffic.products {
        let crate::traffic::Products { count, bytes, flops, unaligned } = products;
        row(format_args!("product,{shape},{count},{bytes},{flops},{unaligned}"));
    }
    for (name, copies) in &machine.traffic.copies {
        row(format_args!("copy,\"{name}\",{},{},,", copies.count, copies.bytes));
    }
    for (name, count) in machine.calls.counts() {
        row(format_args!("call,{name},{count},,,"));
    }
    let left = machine.queues.waiting().count();
    row(format_args!("call,work that nobody waited for,{left},,,"));
    text
}
